"""Where a graph's operations are in another graph of the same network: an exported program, or one that was quantized.

The kit and `torch.export` run the same Python code, so they agree on three things: the path of the module that an operation is
in, what the operation is called, and the order of equal ones. An operation is found by these, never by its values or by parts
of names; its shape is compared too. What `torch.fx` quantization leaves without a path (functions that it replaces) is found by
name and order in the whole network, if there are as many of them there as here. Several calls that are one operation here, such
as a norm by hand, are found by the last of them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from qkit.errors import GraphError
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED, short_name

#: Where a node's metadata have the name of the operation whose value it gives, if the kit's quantizer has been at work.
TAP = "qkit_tap"
#: Operations that pass a value on, or only look at it.
_PASSING = frozenset("dropout dropout_ alias detach detach_ clone contiguous to identity lift_fresh_copy alias_copy".split())
_LOOKING = frozenset("sym_size _assert_tensor_metadata _assert_scalar _assert_async".split())
_CLAMPS = frozenset("relu relu6 hardtanh clamp clip clamp_min clamp_max".split())
_SIZES = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)
_PRODUCTS = frozenset("conv1d conv2d conv3d convolution linear addmm conv_transpose1d conv_transpose2d conv_transpose3d".split())
_ALIASES: Mapping[str, str] = {
    "rsub": "sub", "isub": "sub", "iadd": "add", "radd": "add", "imul": "mul", "rmul": "mul", "multiply": "mul",
    "subtract": "sub", "rtruediv": "div", "itruediv": "div", "truediv": "div", "divide": "div", "true_divide": "div",
    "concat": "cat", "concatenate": "cat", "rmatmul": "matmul", "ipow": "pow", "clamp": "clip", "add_relu": "add",
    "mul_relu": "mul",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Place:
    """Where an operation is.

    Attributes
    ----------
    nodes
        All nodes that the operation itself became.
    core
        The one that computes: of a convolution the product, before batch norm and activation.
    final
        The one whose value is the operation's.
    norm
        Whether a batch norm lies between the two, not folded yet.
    """

    nodes: tuple[fx.Node, ...]
    core: fx.Node
    final: fx.Node
    norm: bool = False


def operation(node: fx.Node, modules: Mapping[str, nn.Module] | None = None) -> str:
    """Name of what the node computes, without overload and underscores: ``conv2d``, ``add``; a module's class in lower case."""
    if node.op == "call_module":
        return type((modules or {}).get(str(node.target))).__name__.lower()
    if isinstance(node.target, str):
        return node.target.strip("_")
    return str(getattr(node.target, "__name__", node.target)).split(".")[0]


def is_quantize(node: fx.Node) -> bool:
    """Whether the node turns real numbers into codes."""
    return node.op.startswith("call_f") and operation(node).startswith("quantize")


def is_dequantize(node: fx.Node) -> bool:
    """Whether the node turns codes into real numbers."""
    return node.op in {"call_function", "call_method"} and operation(node).startswith("dequantize")


def places(graph: Graph, program: fx.GraphModule) -> tuple[dict[int, Place], dict[str, str]]:
    """Places of the operations by index, and the taps that were not found with the reason."""
    return _Finder(graph, program).find()


def place_all(graph: Graph, program: fx.GraphModule) -> dict[int, Place]:
    """Places of the operations; raises `GraphError` where a tap is missing."""
    found, missing = places(graph, program)
    if missing:
        name, reason = next(iter(missing.items()))
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise GraphError(
            f"{name}{more} was not found in the exported program: {reason}. Export the same model as the study's, with "
            "torch.export.export(model, inputs).module()."
        )
    return found


@dataclass(eq=False)
class _Finder:
    graph: Graph
    program: fx.GraphModule
    modules: dict[str, nn.Module] = field(default_factory=dict)
    calls: dict[str, dict[str, list[fx.Node]]] = field(default_factory=lambda: defaultdict(dict))
    functions: dict[tuple[str, str], list[list[fx.Node]]] = field(default_factory=lambda: defaultdict(list))
    named: dict[str, list[list[fx.Node]]] = field(default_factory=lambda: defaultdict(list))
    placeholders: list[fx.Node] = field(default_factory=list)
    attributes: dict[str, fx.Node] = field(default_factory=dict)
    marked: dict[str, fx.Node] = field(default_factory=dict)
    folded: bool = False

    def find(self) -> tuple[dict[int, Place], dict[str, str]]:
        self.modules = dict(self.program.named_modules(remove_duplicate=False))
        self.folded = any(is_dequantize(node) for node in self.program.graph.nodes)
        self._index()
        found: dict[int, Place] = {}
        missing: dict[str, str] = {}
        for op in self.graph.operations:
            if op.kind == "output":
                continue
            place = self._place(op)
            if isinstance(place, Place):
                found[op.index] = place
            elif op.quantized:
                missing[op.name] = place
        return found, missing

    def _index(self) -> None:
        last: tuple[Any, ...] | None = None
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.placeholders.append(node)
            elif node.op == "get_attr":
                self.attributes[str(node.target)] = node
            if TAP in node.meta:
                self.marked[node.meta[TAP]] = node
            if not node.op.startswith("call_") or is_quantize(node) or is_dequantize(node) or self._watches(node):
                continue
            if isinstance(node.meta.get("val"), _SIZES):  # arithmetic on the open batch size, which the kit has no call for
                continue
            stack = _stack(node)
            if node.op == "call_module" and (not stack or stack[-1][1] != node.target):
                stack = [*stack, (str(node.target), str(node.target))]
            for key, path in stack:
                self.calls[path].setdefault(key, []).append(node)
            key, path = stack[-1] if stack else ("", "")
            group = key, _function(node), node.meta.get("torch_fn") or node.name
            if group == last:
                self.named[group[1]][-1].append(node)  # the same list is in `functions`
            else:
                members = [node]
                self.functions[path, group[1]].append(members)
                self.named[group[1]].append(members)
            last = group

    def _watches(self, node: fx.Node) -> bool:
        """Whether the node is an observer, or checks the inputs."""
        module = self.modules.get(str(node.target)) if node.op == "call_module" else None
        return node.op == "call_module" and (hasattr(module, "calculate_qparams") or str(node.target).startswith("_guards"))

    def _place(self, op: Operation) -> Place | str:
        if op.argument is not None:
            if op.argument >= len(self.placeholders):
                return f"the program has {len(self.placeholders)} inputs"
            node = self.placeholders[op.argument]
            return Place((node,), node, node)
        if self.folded and op.name in self.marked:
            node = self.marked[op.name]
            return Place((node,), node, node)
        base, number = _numbered(op.name)
        nodes: list[fx.Node] | None
        if ":" in base:
            # what folds constants leaves out calls that the forward's own count has: there the names' is right
            ways = [(base, number), *([_numbered(op.origin)] if op.origin else [])]
            nodes = next((n for way in (ways if self.folded else ways[::-1]) if (n := self._function(*way))), None)
        elif base in self.attributes and base not in self.calls:
            nodes = [self.attributes[base]]
        else:
            calls = list(self.calls.get(base, {}).values())
            nodes = calls[number - 1] if number <= len(calls) else None
        if not nodes:
            folded = "; torchao folds a batch norm into the convolution in front of it even where both are called repeatedly"
            return f"there is no such operation{folded * (op.kind == 'batchnorm')}"
        core = next((n for n in nodes if operation(n, self.modules).strip("_") in _PRODUCTS), None) if op.weight else None
        return self._finish(op, tuple(nodes), core or nodes[-1])

    def _function(self, base: str, number: int) -> list[fx.Node] | None:
        path, name = base.split(":", 1)
        name = _plain(name)
        groups = self.functions.get((path, name), [])
        if number <= len(groups):
            return groups[number - 1]
        peers = [s.name for s in self.graph.operations if ":" in s.name and _plain(_numbered(s.name)[0].split(":", 1)[1]) == name]
        wanted = base if number == 1 else f"{base}#{number}"
        if wanted in peers and len(peers) == len(self.named.get(name, [])):
            return self.named[name][peers.index(wanted)]
        return None

    def _finish(self, op: Operation, nodes: tuple[fx.Node, ...], core: fx.Node) -> Place | str:
        final, norm = core, False
        if op.norm is not None and op.kind != "batchnorm":
            behind = self._reader(final)
            if behind is not None and "batch_norm" in operation(behind, self.modules).replace("batchnorm", "batch_norm"):
                final, norm = behind, True
        if op.act != UNBOUNDED and op.kind != "activation" and not self._clamps(final):
            behind = self._reader(final)
            if behind is None or not self._clamps(behind):
                return "its activation does not follow it"
            final = behind
        value = final.meta.get("val")
        if isinstance(value, Tensor) and op.shape and not _agree(tuple(value.shape[1:]), op.shape[1:]):
            return f"it has shape {tuple(value.shape)} there and {op.shape} here"
        return Place(nodes, core, final, norm)

    def _clamps(self, node: fx.Node) -> bool:
        name = operation(node, self.modules).strip("_")
        return (
            name in _CLAMPS or "relu" in name.split("_") or (node.op == "call_module" and "relu" in name and "prelu" not in name)
        )

    def _reader(self, node: fx.Node) -> fx.Node | None:
        """The only operation that computes with the value, behind whatever passes it on."""
        readers = list(self._readers(node))
        return readers[0] if len(readers) == 1 else None

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        for user in node.users:
            name = operation(user, self.modules)
            if self._watches(user) or is_quantize(user) or is_dequantize(user) or name in _PASSING:
                yield from self._readers(user)
            elif name.strip("_") not in _LOOKING and name not in _LOOKING:
                yield user


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """Calls of modules that the node is in, outermost first: a key for each call, and the module's path."""
    entries: Iterable[tuple[str, Any]] = (node.meta.get("nn_module_stack") or {}).items()
    return [(key, _path(value[0] if isinstance(value, tuple) else value)) for key, value in entries]


def _agree(there: tuple[Any, ...], here: tuple[int, ...]) -> bool:
    """Whether shapes are equal; sizes that the program leaves open are."""
    return len(there) == len(here) and all(a == b or not isinstance(a, int) for a, b in zip(there, here, strict=True))


def _path(text: Any) -> str:
    """A module's path as ``named_modules`` has it."""
    path = re.sub(r"^L\['self'\]\.?", "", str(text))
    path = re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", path)
    return re.sub(r"@\d+", "", path).strip(".")


def _function(node: fx.Node) -> str:
    """What the Python code called: of `torch.export`'s notes where there are any, since one call may be several nodes."""
    called = node.meta.get("torch_fn")
    return _plain(str(called[1]).rsplit(".", 1)[-1] if called else operation(node))


def _plain(name: str) -> str:
    name = short_name(name.strip("_"))
    if name.startswith("upsample"):
        return "interpolate"
    return _ALIASES.get(name, name)


def _numbered(name: str) -> tuple[str, int]:
    """An operation's name without the number of a repeated one, and that number."""
    match = re.fullmatch(r"(.*)#(\d+)", name)
    return (match[1], int(match[2])) if match else (name, 1)
