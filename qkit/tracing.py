"""Symbolic tracing with the module path of every operation, and errors that say what to change in the user's code."""

from __future__ import annotations

import difflib
import inspect
import logging
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from qkit.errors import GraphError

logger = logging.getLogger(__name__)

_TORCH = str(Path(torch.__file__).parent) + os.sep
_HERE = str(Path(__file__).parent) + os.sep
_LIBRARIES = (*{sysconfig.get_path(name) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")},)


class PathTracer(fx.Tracer):
    """An `fx.Tracer` that notes in ``node.meta["path"]`` the path of the module whose forward made the node."""

    def __init__(self, leaf_modules: Iterable[type[nn.Module] | str] = ()) -> None:
        super().__init__()
        leaves = (leaf_modules,) if isinstance(leaf_modules, (str, type)) else tuple(leaf_modules)
        for leaf in leaves:
            if not (isinstance(leaf, str) or (isinstance(leaf, type) and issubclass(leaf, nn.Module))):
                raise GraphError(f"leaf_modules holds {leaf!r}: give module classes or module paths.")
        self._leaf_types = tuple(leaf for leaf in leaves if isinstance(leaf, type))
        self._leaf_paths = {leaf for leaf in leaves if isinstance(leaf, str)}
        self._stack: list[str] = []

    def check_leaves(self, model: nn.Module) -> None:
        """Raise `GraphError` for a leaf path that the model does not have."""
        paths = [path for path, _ in model.named_modules() if path]
        for leaf in sorted(self._leaf_paths.difference(paths)):
            near = difflib.get_close_matches(leaf, paths, 3, 0.0)
            raise GraphError(
                f"leaf_modules names {leaf!r}, which {type(model).__name__} does not have; it has {', '.join(near)}."
            )

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own modules, and those that the user named by type or by path."""
        if isinstance(m, self._leaf_types) or module_qualified_name in self._leaf_paths:
            return True
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Trace into the module with its path on the stack."""
        self._stack.append(self.path_of_module(m))
        try:
            return super().call_module(m, forward, args, kwargs)
        finally:
            self._stack.pop()

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make the node and note the path."""
        node = super().create_node(*args, **kwargs)
        node.meta["path"] = self._stack[-1] if self._stack else ""
        return node


def trace(model: nn.Module, leaf_modules: Iterable[type[nn.Module] | str] = ()) -> fx.GraphModule:
    """Trace `model` symbolically; every node's ``meta["path"]`` is the path of the module it comes from.

    Raises
    ------
    GraphError
        With the user's file and line, the reason, and the cure, if the model cannot be traced; or if `leaf_modules` names
        what is not there.
    """
    tracer = PathTracer(leaf_modules)
    tracer.check_leaves(model)
    _check_names(model)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise _explain(error, model, tracer) from error
    return fx.GraphModule(model, graph)


def _check_names(model: nn.Module) -> None:
    # torch.fx writes names into source code between double quotes, without escaping them
    for path, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        if any(sign in path for sign in '"\\\n\r'):
            raise GraphError(
                f"{path!r} cannot be traced: its name holds a quotation mark, a backslash or a line break. Give the module or "
                "parameter another name."
            )


def _explain(error: Exception, model: nn.Module, tracer: PathTracer) -> GraphError:
    frame = _user_frame(error, model)
    file, line, source = (frame.filename, frame.lineno, (frame.line or "").strip()) if frame else (None, None, "")
    where = f"{file}:{line}: `{source}`" if frame else f"the forward of {type(model).__name__}"
    reason, cure = _reason(error, source)
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


def _reason(error: Exception, source: str) -> tuple[str, str]:
    message = str(error)
    leaf = "or keep the whole module out of the trace with leaf_modules=[its class or path], which leaves it in float"
    wrap = "Move it into a module-level function decorated with torch.fx.wrap, " + leaf + "."
    if source.startswith("assert") or (isinstance(error, AssertionError) and "assert" in source):
        return (
            "an assert on a traced value",
            f"Remove the assert, move it into a module-level function decorated with torch.fx.wrap, {leaf}.",
        )
    if "iterated" in message or "cannot be unpacked" in message:
        return "a traced value is iterated or unpacked into an unknown number of parts", f"Index its parts instead. {wrap}"
    if "control flow" in message:
        return (
            "a branch or loop that depends on a tensor's data or shape",
            f"Replace it by torch.where or by a decision made in __init__; {wrap[0].lower()}{wrap[1:]}",
        )
    if "len()" in message or "'len'" in message:
        return "len() of a traced value", f"Use x.shape[0], or torch.fx.wrap('len') at module level, {leaf}."
    if isinstance(error, (TypeError, ValueError, RuntimeError)) and "Proxy" in message:
        return f"a call that takes concrete values only ({message.splitlines()[0]})", wrap
    return f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}", wrap
