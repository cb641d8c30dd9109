"""Symbolic tracing with the module path of every operation, and errors that say what to change in the user's code."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from qkit.errors import GraphError
from qkit.graph.door.explaining import reason_of
from qkit.graph.door.leaves import as_leaves, leaf_paths


class PathTracer(fx.Tracer):
    """An `fx.Tracer` that notes in ``node.meta["path"]`` the path of the module whose forward made the node."""

    def __init__(self, leaves: Iterable[str] = ()) -> None:
        super().__init__()
        self._leaves = frozenset(leaves)
        self._stack: list[str] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Torch's own modules, and those that the user named."""
        return module_qualified_name in self._leaves or super().is_leaf_module(m, module_qualified_name)

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
    tracer = PathTracer(leaf_paths(model, as_leaves(leaf_modules)))
    _check_names(model)
    try:
        graph = tracer.trace(model)
    except Exception as error:
        raise reason_of(error, model) from error
    return fx.GraphModule(model, graph)


def _check_names(model: nn.Module) -> None:
    # torch.fx writes names into source code between double quotes, without escaping them
    for path, _ in (*model.named_modules(), *model.named_parameters(), *model.named_buffers()):
        if any(sign in path for sign in '"\\\n\r'):
            raise GraphError(
                f"{path!r} cannot be traced: its name holds a quotation mark, a backslash or a line break. Give the module or "
                "parameter another name."
            )
