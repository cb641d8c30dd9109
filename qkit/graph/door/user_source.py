"""The user's source as syntax trees."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable

from qkit.graph.door.explaining import statement_at

__all__ = ["function_at", "statement_at", "text_at"]


def text_at(file: str, line: int) -> str:
    """The line, stripped; "" where there is no source."""
    return linecache.getline(file, line).strip()


def function_at(function: Callable[..., object]) -> tuple[ast.FunctionDef, str] | None:
    """A function's tree with the line numbers of its file, and the file; None where there is no source."""
    plain = inspect.unwrap(function)
    try:
        lines, first = inspect.getsourcelines(plain)
        file = inspect.getsourcefile(plain) or plain.__code__.co_filename
    except (OSError, TypeError):
        return None
    tree = _parse(textwrap.dedent("".join(lines)))
    if tree is None or not tree.body or not isinstance(tree.body[0], ast.FunctionDef):
        return None  # a lambda, or a function within a line
    ast.increment_lineno(tree, max(first, 1) - 1)
    return tree.body[0], file


def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:
        return None
