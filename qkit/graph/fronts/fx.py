"""A module through `torch.fx`, where `torch.export` cannot follow it: its calls are run one by one, and those can be followed.

Functions under ``torch.fx.wrap`` run as they are and are never looked into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx, nn

from qkit.graph.fronts.opaque import OpaqueCall
from qkit.graph.fronts.tracing import trace
from qkit.graph.normal_form.form import fetch

_FOLLOWED = ("torch", "_operator", "operator", "math", "builtins", "numpy")


class _Call(nn.Module):
    """One function of a trace in a module of its own, so that what it becomes can be told."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self._function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The function's value."""
        return self._function(*args, **kwargs)


class Traced(nn.Module):
    """A network as the calls that `torch.fx` saw; parameters and modules have their own paths.

    Attributes
    ----------
    paths
        Path of the module that a call was made in, by the path of the call's module here.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        super().__init__()
        traced = trace(model)
        for name, child in traced.named_children():
            self.add_module(name, child)
        for name, parameter in traced.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in traced.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self._traced = [traced.graph]
        self.paths: dict[str, str] = {}
        for i, node in enumerate(traced.graph.nodes):
            if node.op not in {"call_function", "call_method"}:
                continue
            function = _method(str(node.target)) if node.op == "call_method" else node.target
            if node.op == "call_function" and not _followed(function):
                function = OpaqueCall(getattr(function, "__name__", "function"), function, batch).run
            path = f"_call_{i}"
            self.add_module(path, _Call(function))
            node.meta["call"] = path
            self.paths[path] = str(node.meta.get("path", ""))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model computes."""
        graph = self._traced[0]
        env: dict[fx.Node, Any] = {}
        given = _bound(graph, args, kwargs)
        for node in graph.nodes:
            if node.op == "placeholder":
                env[node] = given[node]
                continue
            positional, named = fx.map_arg(node.args, env.__getitem__), fx.map_arg(node.kwargs, env.__getitem__)
            if node.op == "output":
                return positional[0]
            if node.op == "get_attr":
                env[node] = fetch(self, str(node.target))
            elif node.op == "call_module":
                env[node] = self.get_submodule(str(node.target))(*positional, **named)
            else:
                env[node] = self.get_submodule(str(node.meta["call"]))(*positional, **named)
        raise AssertionError("a graph ends in its output")


def _bound(graph: fx.Graph, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[fx.Node, Any]:
    rest = list(args)
    found: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            name = str(node.target).lstrip("*")
            if str(node.target).startswith("**"):
                found[node] = dict(kwargs)
            elif str(node.target).startswith("*"):
                found[node] = tuple(rest)
            else:
                found[node] = rest.pop(0) if rest else kwargs[name] if name in kwargs else node.args[0]
    return found


def _followed(function: Any) -> bool:
    module = str(getattr(function, "__module__", None) or type(function).__module__)
    return module.split(".", maxsplit=1)[0] in _FOLLOWED or isinstance(function, type(torch.relu))


def _method(name: str) -> Callable[..., Any]:
    def call(x: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(x, name)(*args, **kwargs)

    call.__name__ = name
    return call
