"""Why a network cannot be traced: the line of the user's code, the reason, and the cure."""

from __future__ import annotations

import ast
import inspect
import linecache
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.rnn import PackedSequence

from qkit import version
from qkit.errors import GraphError

_TORCH = str(Path(torch.__file__).parent) + os.sep
#: The kit itself.
_HERE = str(Path(version.__file__).parent) + os.sep
_LIBRARIES = (*{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},)

_LEAF = "or keep the whole module in float with leaf_modules=[its class or path]"
#: Cures by what the line does; each goes before `_LEAF`.
CURES = {
    "assert": "Take the assert out of the forward",
    "branch": "Compute both sides and choose with torch.where, or decide in __init__",
    "loop": "Loop a fixed number of times, set in __init__",
    "number": "Keep it a tensor (one of a single element broadcasts as a number does), or set a fixed number in __init__",
    "shape": "Keep the shape (torch.where, or a product with the mask), or cut this post-processing off and give the network in "
    "front of it",
    "packed": "Give the recurrent layer the padded batch itself; or pack and unpack in a module of its own with it",
    "numpy": "Use the torch function of the same purpose",
    "text": "Take the message out of the forward",
    "cond": "Compute both sides and choose with torch.where, or decide outside of the network",
    "call": "Move it into a module-level function decorated with torch.fx.wrap, which runs in float",
    "traced-assert": "Remove the assert",
    "traced-branch": "Replace it by torch.where or by a decision made in __init__",
    "traced-parts": "Index its parts instead",
    "traced-length": "Use x.shape[0], or torch.fx.wrap('len') at module level",
}
REASONS = {
    "assert": "an assert on a tensor's data",
    "branch": "a branch or loop that depends on a tensor's data",
    "loop": "a loop whose length depends on a tensor's data",
    "number": "a Python number is taken out of a tensor's data (int(), float(), .item(), .tolist()), and the rest depends on it",
    "shape": "the shape of a tensor depends on the data (nonzero, indexing by a mask, unique, a size computed from values)",
    "packed": "a packed sequence, whose shape depends on the lengths in the batch",
    "numpy": "numpy is given a tensor that is being traced",
    "text": "a traced tensor's number is formatted as text",
    "cond": "control flow inside the network (torch.cond, while_loop, scan)",
    # of torch.fx, to which sizes are as unknown as data
    "traced-assert": "an assert on a traced value",
    "traced-branch": "a branch or loop that depends on a tensor's data or shape",
    "traced-parts": "a traced value is iterated or unpacked into an unknown number of parts",
    "traced-length": "len() of a traced value",
}


def reason_of(error: Exception, model: nn.Module) -> GraphError:
    """The error to raise: where in the user's code the trace broke off, why, and what to do."""
    if isinstance(error, GraphError):
        return error
    frame = _user_frame(error, model)
    place = (frame.filename, frame.lineno or 0) if frame else None
    return _error(model, place, *_reason(error, place))


def explained(errors: Sequence[Exception], model: nn.Module) -> GraphError:
    """One error of those that all ways in raised, in their order: torch.export at another batch, at the batch's own, torch.fx.

    What torch.export says comes first, at the batch's own size, since a network may not take another. Where it names no line, the
    line at which torch.fx ends is said beside it, for what it is: the second way in asks for more, and may end elsewhere.
    """
    known = [reason_of(error, model) for error in errors]
    exported = known[-2::-1] or known
    best = next((error for error in exported if error.file is not None), exported[0])
    last = known[-1]
    if best.file is None and last.file is not None and best is not last and not is_of_data(errors[known.index(best)]):
        said = f"{best} torch.fx, the second way in, ends at {last.file}:{last.line}: `{_text(last.file, last.line)}`."
        best = GraphError(said, file=last.file, line=last.line)
        best.__cause__ = errors[0]
    else:
        best.__cause__ = errors[known.index(best)]
    return best


def shaped_by_data(nodes: Iterable[fx.Node], model: nn.Module) -> GraphError | None:
    """The first call of a torch.export graph whose result has a size that depends on the data, as the error to raise."""
    for node in nodes:
        value = node.meta.get("val")
        tensors = value if isinstance(value, (tuple, list)) else [value]
        if any(isinstance(t, Tensor) and _has_free_symbols(t) for t in tensors):
            return _error(model, place_of(node, UserCode(model)), REASONS["shape"], _cure("shape"))
    return None


def _has_free_symbols(tensor: Tensor) -> bool:
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(tensor))


def place_of(node: fx.Node, code: UserCode) -> tuple[str, int] | None:
    """The user's file and line that a node of torch.export comes from; None where there is none."""
    frames = re.findall(r'File "(.+?)", line (\d+)', str(node.meta.get("stack_trace") or ""))
    blamed = code.deepest([file for file, _ in frames])
    return None if blamed is None else (frames[blamed][0], int(frames[blamed][1]))


def _text(file: str | None, line: int | None) -> str:
    return "" if file is None or line is None else linecache.getline(file, line).strip()


def _error(model: nn.Module, place: tuple[str, int] | None, reason: str, cure: str) -> GraphError:
    file, line = place or (None, None)
    where = f"{file}:{line}: `{_text(file, line)}`" if place else f"the forward of {type(model).__name__}"
    return GraphError(f"{type(model).__name__} cannot be traced at {where}: {reason}. {cure}", file=file, line=line)


def _user_frame(error: BaseException, model: nn.Module) -> traceback.FrameSummary | None:
    frames = traceback.extract_tb(error.__traceback__)
    blamed = UserCode(model).deepest([frame.filename for frame in frames])
    return None if blamed is None else frames[blamed]


class UserCode:
    """Tells which file of a call stack is the user's: outside torch, and outside other libraries unless the model is theirs."""

    def __init__(self, model: nn.Module) -> None:
        self.sources = {_file_of(kind) for kind in {type(module) for module in model.modules()}}

    def owns(self, filename: str) -> bool:
        """Whether the file is the user's, or the library's that the model comes from."""
        return not _is_ours(filename) and (filename in self.sources or not filename.startswith(_LIBRARIES))

    def deepest(self, filenames: Sequence[str]) -> int | None:
        """Index of the deepest frame to blame; a tracer's error is raised below the user's line. None if all is torch."""
        mine = [i for i, filename in enumerate(filenames) if not _is_ours(filename)]
        own = [i for i in mine if self.owns(filenames[i])]
        blamed = own or mine
        return blamed[-1] if blamed else None


def _file_of(kind: type[nn.Module]) -> str | None:
    try:
        return inspect.getsourcefile(kind)
    except (TypeError, OSError):  # a class of a notebook belongs to no file; its code does
        code = getattr(inspect.unwrap(kind.forward), "__code__", None)
        return code.co_filename if code is not None else None


def _is_ours(filename: str) -> bool:
    return filename.startswith((_TORCH, _HERE, "<"))


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


@lru_cache(maxsize=64)
def _parsed(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except SyntaxError:
        return None


def _cure(kind: str) -> str:
    wrap = ", or move it into a module-level function decorated with torch.fx.wrap" if kind.startswith("traced-") else ""
    return f"{CURES[kind]}{wrap}, {_LEAF}."


def is_of_data(error: Exception) -> bool:
    """Whether torch.export raised it because something asks for a tensor's numbers."""
    return "DataDependent" in type(error).__name__ or "data-dependent" in str(error)


def _reason(error: Exception, place: tuple[str, int] | None) -> tuple[str, str]:
    message = str(error) or "no message"
    statements = _statements(*place) if place else []
    kind = _traced_kind(error, message, statements) or _kind(error, message, statements)
    if kind is not None:
        return REASONS[kind], _cure(kind)
    first = message.splitlines()[0]
    said = f"a call that takes concrete values only ({first})" if "Proxy" in message else f"{type(error).__name__}: {first}"
    return said, _cure("call")


def _traced_kind(error: Exception, message: str, statements: Sequence[ast.stmt]) -> str | None:
    """As `_kind`, of what torch.fx raises."""
    if "len()" in message or "'len'" in message:
        return "traced-length"
    if not isinstance(error, torch.fx.proxy.TraceError) and "cannot be unpacked" not in message:
        return None
    if any(isinstance(statement, ast.Assert) for statement in statements):
        return "traced-assert"
    return "traced-parts" if "iterated" in message or "cannot be unpacked" in message else "traced-branch"


def _statements(file: str, line: int) -> list[ast.stmt]:
    """The statement at a line, and those that begin there too."""
    tree, innermost = _parsed("".join(linecache.getlines(file))), statement_at(file, line)
    begun = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno == line] if tree is not None else []
    return begun if innermost in begun or innermost is None else [innermost, *begun]


def _kind(error: Exception, message: str, statements: Sequence[ast.stmt]) -> str | None:
    """What keeps the trace from going on, by what was raised and what the line does."""
    if "torch.cond" in message or "while_loop" in message or "Expected pred" in message:
        return "cond"
    if _meets_packed_sequence(error):
        return "packed"
    if "numpy" in message or "__array__" in message:
        return "numpy"
    if "format string" in message:
        return "text"
    if any(isinstance(statement, ast.Assert) for statement in statements):
        return "assert"
    if is_of_data(error) and (not statements or re.search(r"Size-like symbols: (?!none)", message)):
        return "shape"  # the trace itself has no line of the user's that asks for a number
    if is_of_data(error):
        calls = {name for statement in statements for name in _called(statement)}
        if "range" in calls:
            return "loop"
        decides = any(isinstance(statement, (ast.If, ast.While)) for statement in statements)
        return "number" if calls & {"int", "float", "item", "tolist", "round"} and not decides else "branch"
    return None


def _meets_packed_sequence(error: BaseException) -> bool:
    """Whether what failed was at work on a packed sequence."""
    values = (value for frame, _ in traceback.walk_tb(error.__traceback__) for value in frame.f_locals.values())
    return any(isinstance(value, PackedSequence) for value in values)


def _called(statement: ast.stmt) -> Iterator[str]:
    """Names of what a statement calls, without those in the body of a block."""
    parts: list[ast.AST] = [statement]
    if isinstance(statement, (ast.If, ast.While)):
        parts = [statement.test]
    elif isinstance(statement, ast.For):
        parts = [statement.iter]
    for part in parts:
        for node in ast.walk(part):
            if isinstance(node, ast.Call):
                yield node.func.attr if isinstance(node.func, ast.Attribute) else str(getattr(node.func, "id", ""))
