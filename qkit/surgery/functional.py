"""Calls inside a forward that the rules speak of: no module can be put in their place, so they are named with file and line."""

from __future__ import annotations

import ast
import inspect
import operator
from collections.abc import Iterator
from typing import Any

from torch import Tensor, fx, nn

from qkit.graph import table
from qkit.graph.door.explaining import UserCode
from qkit.graph.door.user_source import function_at, text_at
from qkit.graph.fronts.tracing import PathTracer
from qkit.surgery import convolutions, pools
from qkit.surgery.blocks import is_gate
from qkit.surgery.changes import Unchanged

#: Function's plain name -> rule.
CALLS = {
    "relu6": "relu6",
    "silu": "silu",
    "hardswish": "hardswish",
    "hardsigmoid": "hardsigmoid",
    "gelu": "gelu",
    "leakyrelu": "leaky-relu",
}
_CURE = "a call in a forward, not a module: make it nn.{0}() in __init__, or write F.relu, and retrain"
_CLASSES = {"relu6": "ReLU6", "silu": "SiLU", "hardswish": "Hardswish", "hardsigmoid": "Hardsigmoid", "gelu": "GELU"}


class _WrittenProxy(fx.Proxy):
    """A traced value for which ``x += y`` is a write to x, and not the sum that torch.fx makes of it."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self._write(operator.iadd, other)

    def __isub__(self, other: Any) -> fx.Proxy:
        return self._write(operator.isub, other)

    def __imul__(self, other: Any) -> fx.Proxy:
        return self._write(operator.imul, other)

    def __itruediv__(self, other: Any) -> fx.Proxy:
        return self._write(operator.itruediv, other)

    def _write(self, target: Any, other: Any) -> fx.Proxy:
        made: fx.Proxy = self.tracer.create_proxy("call_function", target, (self, other), {})
        return made


class _SiteTracer(PathTracer):
    """Notes the user's line of every node."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _WrittenProxy(node, self)

    def __init__(self, code: UserCode) -> None:
        super().__init__()
        self._code = code

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(*args, **kwargs)
        frame = inspect.currentframe()
        while frame is not None and not self._code.owns(frame.f_code.co_filename):
            frame = None if frame.f_code is fx.Tracer.trace.__code__ else frame.f_back
        node.meta["site"] = None if frame is None else (frame.f_code.co_filename, frame.f_lineno)
        return node


def traced_with_lines(model: nn.Module) -> fx.GraphModule | str:
    """The traced model, every node with its line in ``meta["site"]``; or what keeps `torch.fx` from tracing it."""
    try:
        return fx.GraphModule(model, _SiteTracer(UserCode(model)).trace(model))
    except Exception as error:
        return (str(error) or type(error).__name__).splitlines()[0]


def read_calls(model: nn.Module, rules: frozenset[str]) -> list[Unchanged]:
    """Calls that these rules speak of, by their names in the source of the forwards."""
    return [item for item in _read(model) if item.rule in rules]


def traced_calls(traced: fx.GraphModule, rules: frozenset[str]) -> list[Unchanged]:
    """Calls that these rules speak of, by what they compute."""
    found = []
    for node in traced.graph.nodes:
        rule = _rule(node, traced) if node.op in {"call_function", "call_method"} else None
        if rule in rules:
            file, line = node.meta.get("site") or (None, None)
            found.append(_unchanged(node.meta.get("path", ""), rule, table.short_name(node.target), file, line))
    return list(dict.fromkeys(found))


def _unchanged(path: str, rule: str, call: str, file: str | None, line: int | None) -> Unchanged:
    source = text_at(file, line) if file is not None and line is not None else ""
    name = _CLASSES.get(rule)
    reason = _CURE.format(name) if name else "a call in a forward, not a module: change that line by hand"
    return Unchanged(path, f"{call}()" + (f" in `{source}`" if source else ""), rule, reason, file, line)


def _rule(node: fx.Node, traced: fx.GraphModule) -> str | None:
    name = table.short_name(node.target).replace("_", "").lower()
    if name in CALLS:
        return CALLS[name]
    if name == "sigmoid":
        return _sigmoid_rule(node, traced)
    if name == "mul":
        # a gate whose sigmoid is a module, in a product of the block's own forward
        for gate, other in (node.all_input_nodes, node.all_input_nodes[::-1]) if len(node.all_input_nodes) == 2 else ():
            if gate.op == "call_module" and is_gate(gate, other, traced):
                return "squeeze-excitation"
        return None
    if name in {"maxpool2d", "avgpool2d"}:
        window = node.args[1] if len(node.args) > 1 else node.kwargs.get("kernel_size")
        numbers = isinstance(window, (int, tuple, list))
        return f"{name[:3]}-pool" if numbers and pools.is_large(window) else None
    return _kernel_rule(node, traced) if name == "conv2d" else None


def _sigmoid_rule(node: fx.Node, traced: fx.GraphModule) -> str | None:
    source = node.all_input_nodes[0] if node.all_input_nodes else None
    for user in node.users:
        if table.short_name(user.target) != "mul":
            continue
        others = [n for n in user.all_input_nodes if n is not node]
        if others == [source]:
            return "silu"
        if others and is_gate(node, others[0], traced):
            return "squeeze-excitation"
    return None


def _kernel_rule(node: fx.Node, traced: fx.GraphModule) -> str | None:
    weight = table.weighted_arguments(node).get("weight")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    value: Any = traced
    for part in str(weight.target).split("."):
        value = getattr(value, part)
    kernel = tuple(value.shape[2:]) if isinstance(value, Tensor) else ()
    if max(kernel, default=0) > convolutions.LARGE:
        return "large-kernel"
    return "even-kernel" if any(k % 2 == 0 for k in kernel) else None


def _read(model: nn.Module) -> Iterator[Unchanged]:
    """Calls by those names in the source of every forward that is not torch's own."""
    done = set()
    for path, module in model.named_modules():
        kind = type(module)
        if kind in done or kind.__module__.startswith("torch.nn"):
            continue
        done.add(kind)
        found = function_at(kind.forward)
        if found is None:
            continue
        tree, file = found
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                rule = CALLS.get(name.rstrip("_").replace("_", "").lower())
                if rule is not None and not _is_own_module(node.func, module):
                    yield _unchanged(path, rule, name, file, node.lineno)


def _is_own_module(function: ast.expr, module: nn.Module) -> bool:
    """Whether it is ``self.name`` of a submodule, which was replaced already."""
    own = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "self"
    return own and isinstance(getattr(module, getattr(function, "attr", ""), None), nn.Module)
