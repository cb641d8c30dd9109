"""The user's source as syntax trees."""

from __future__ import annotations

import ast
import inspect
import linecache
import textwrap
from collections.abc import Callable
from functools import lru_cache
from typing import Any


def statement_at(file: str, line: int) -> ast.stmt | None:
    """The innermost statement whose lines include `line`; None where there is no source."""
    tree = _parsed("".join(linecache.getlines(file)))
    found = None
    for node in ast.walk(tree) if tree is not None else ():
        if (
            isinstance(node, ast.stmt)
            and node.lineno <= line <= (node.end_lineno or node.lineno)
            and (found is None or node.lineno >= found.lineno)
        ):
            found = node
    return found


def text_at(file: str, line: int) -> str:
    """The line, stripped; "" where there is no source."""
    return linecache.getline(file, line).strip()


def function_at(function: Callable[..., Any]) -> tuple[ast.FunctionDef, str] | None:
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


@lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module | None:
    return _parse(text)


def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:
        return None
