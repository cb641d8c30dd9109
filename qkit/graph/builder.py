"""From the normal form to operations: norms folded, activations that clamp fused into their producers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from qkit.graph import table
from qkit.graph.calls import caller, fresh_copy
from qkit.graph.fronts.opaque import OpaqueCall
from qkit.graph.macs import macs_of_products
from qkit.graph.normal_form.batch import shape_at
from qkit.graph.normal_form.constants import RANDOM
from qkit.graph.normal_form.fixed_norms import Fold, folds_of, moved_axis, norm_of, together
from qkit.graph.normal_form.form import NormalForm, Outline, called, is_float, name_of, operands, outlines, shape_of, sole_reader
from qkit.graph.operation import QUANTIZED, Operation
from qkit.graph.weighted import Weighted, grouped, weighted

#: Kinds that clamping activations fuse into.
_FUSES = frozenset({"conv", "conv-transpose", "linear", "batchnorm", "add"})


class Builder:
    """Walks the calls once and appends operations."""

    def __init__(
        self, form: NormalForm, constants: Mapping[fx.Node, Any], batch: int, names: Mapping[str, str], tensors: Mapping[str, str]
    ) -> None:
        self.form = form
        self.constants = constants
        self.batch = batch
        self.renamed = names
        self.tensors = tensors
        self.ends = {str(node.meta.get("path", "")): node for node in form.calls if node not in constants and is_float(node)}
        self.folds = folds_of(form, constants)
        self.absorbed = {norm for fold in self.folds.values() for norm in fold.nodes}
        self.operations: list[Operation] = []
        self.at: dict[fx.Node, int] = {}
        self.part: dict[fx.Node, int] = {}
        self.weights: dict[str, Tensor] = {}
        self.biases: dict[str, Tensor] = {}
        self.float_macs: dict[int, int] = {}
        self.weight_names: dict[Any, str] = {}
        self.names: Counter[str] = Counter()
        self.alone = _single_operations(form)
        self.placeholders = 0

    def build(self) -> tuple[Operation, ...]:
        """The operations; `weights` and `biases` are filled meanwhile."""
        for node in self.form.graph.nodes:
            if node in self.at or (node in self.constants and node.op != "output"):
                continue
            self._add(node)
        return tuple(self.operations)

    def _add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            kind = "input" if is_float(node) else "meta"
            self._append(node, str(node.meta["name"]), kind, fresh_copy, argument=self.placeholders)
            self.placeholders += 1
        elif node.op == "output":
            call = self._call(node, self._inputs(node), self.form.rebuild)
            self._append(node, "output", "output", call)
        elif table.function_kind(node) == "drop" and is_float(node):
            self._alias(node, operands(node)[0])
        elif node in self.absorbed and node not in self.at:
            # its layer has it in its weight; what lies between moves elements alone
            self._alias(node, next(a for a in operands(node) if isinstance(a, fx.Node) and a not in self.constants))
        elif (parts := weighted(node, self.constants)) is not None:
            self._add_weighted(node, parts)
        elif norm := self._standing_norm(node):
            self._add_norm(*norm)
        else:
            self._add_plain(node, table.function_kind(node))

    def _alias(self, node: fx.Node, source: Any) -> None:
        if source in self.constants and source not in self.at:
            self._add_constant(source)
        self.at[node] = self.at[source]

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        """The values that the node reads; constants that an engine holds on a grid are among them, all others are in its call."""
        found = []
        for source in node.all_input_nodes:
            if source not in self.at and source in self.constants and not self._on_a_grid(source):
                continue
            if source not in self.at:
                self._add_constant(source)
            found.append(source)
        return found

    def _on_a_grid(self, node: fx.Node) -> bool:
        value = self.constants[node]
        return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0 and self._meets_arithmetic(node)

    def _add_constant(self, node: fx.Node) -> None:
        name = self._tensor(node) if node.op == "get_attr" else self._name(node)
        kind = "constant" if self._on_a_grid(node) else "meta"
        self._append(node, name, kind, _Constant(self.constants[node]), inputs=())

    def _meets_arithmetic(self, node: fx.Node) -> bool:
        """Whether an operation that an engine does on integers reads it, also through reshapes."""
        for user in node.users:
            kind = table.function_kind(user) if user.op == "call_function" else None
            if user not in self.constants and (kind in table.ARITHMETIC or (kind == "keep" and self._meets_arithmetic(user))):
                return True
        return False

    def _add_plain(self, node: fx.Node, kind: str | None) -> None:
        note = table.note(kind) if kind else None
        name, what = self._name(node), called(node)
        if any(o.dtype.is_complex for o in outlines(node.meta.get("value"))):
            kind, note = "float", f"{what} gives complex numbers: it runs in float on the lane's values"
        elif not is_float(node) or 0 in shape_of(node):
            kind, note = "meta", None
        elif kind == "keep" and self._makes_numbers(node):
            kind = "activation"
        elif name_of(node) in table.FILLS:
            kind, note = "constant" if self._meets_arithmetic(node) else "meta", None
        elif kind is None or kind in table.WEIGHTED or kind in {"batchnorm", "drop"}:
            kind = "random" if name_of(node) in RANDOM else kind
            reasons = {
                "random": "draws random numbers",
                "batchnorm": "takes its statistics from the batch",
                "drop": "is active in evaluation mode",
            }
            why = reasons.get(kind or "", "has its weight computed as it runs" if kind else "has no integer form here")
            kind, note = "float", f"{what} {why}: it runs in float on the lane's values and its output is not rounded"
        elif kind != "keep" and not isinstance(node.meta.get("value"), Outline):
            kind, note = "float", f"{what} returns several tensors: they are not rounded"
        clamp = table.clamp_bounds(node)
        act, last = self._fused_activation(node) if kind in _FUSES else (table.UNBOUNDED, node)
        inputs = self._inputs(node)
        call = self._call(node, inputs)
        if kind == "activation" and clamp is not None:
            # a clamp with a tap of its own: copy, and let the grid's own clamp do the work
            act, call = clamp, fresh_copy
        macs = macs_of_products(node, self.form.batch) if kind in {"matmul", "float"} else 0
        name = self._name(last) if self.renamed else name
        divisor = self._divisor(node) if kind in QUANTIZED else None
        self._append(node, name, kind or "float", call, act=act, last=last, note=note, macs=macs, divisor=divisor)

    def _divisor(self, node: fx.Node) -> int | None:
        given = operands(node)
        below: Any = given[1] if name_of(node) in table.DIVISIONS and len(given) > 1 else None
        return self.at.get(below) if isinstance(below, fx.Node) else None

    def _makes_numbers(self, node: fx.Node) -> bool:
        """Whether it turns whole numbers of the batch, such as an image's bytes, into a layer's input, which is on a grid."""
        sources = [source for source in node.all_input_nodes if source not in self.constants]
        return bool(sources) and not any(map(is_float, sources)) and self._feeds_a_layer(node)

    def _feeds_a_layer(self, node: fx.Node) -> bool:
        kinds = {user: table.function_kind(user) for user in node.users if user.op == "call_function"}
        return any(k in table.WEIGHTED or (k in {"keep", "drop"} and self._feeds_a_layer(user)) for user, k in kinds.items())

    def _call(self, node: fx.Node, inputs: list[fx.Node], function: Callable[..., Any] | None = None) -> Callable[..., Any]:
        bound = {n: self.constants[n] for n in node.all_input_nodes if n not in inputs}
        return caller(function or table.portable(node.target), operands(node), node.kwargs, inputs, bound)

    def _add_weighted(self, node: fx.Node, parts: Weighted) -> None:
        fold = self.folds.get(node, Fold((), (), (), node))
        weight = self.constants[parts.weight]
        bias = None if parts.bias is None else self.constants[parts.bias]
        weight = grouped(weight, parts.groups) if parts.groups > 1 else weight
        for norm in fold.norms:
            weight, bias = norm.fold(weight, bias, parts.axis, linear=parts.kind == "linear")
        act, last = (table.UNBOUNDED, fold.final) if fold.apart else self._fused_activation(fold.final)
        name = self._name(last if self.renamed else node)
        key = self._weight_name(node, parts, weight)
        bias_name = None
        if bias is not None:
            direct = None if parts.bias is None or parts.bias.op != "get_attr" else self._tensor(parts.bias)
            bias_name = direct or f"{key.removesuffix('.weight')}.bias"
            if bias_name in self.biases and not torch.equal(self.biases[bias_name], bias):
                bias_name = f"{name}.bias"
            self.biases[bias_name] = bias.detach()
        source = table.weighted_arguments(node)["input"]
        self._inputs_of([source])
        computed = any(part is not None and part.op != "get_attr" for part in (parts.weight, parts.bias))
        folded = tuple(recipe.how for recipe in fold.recipes)
        self._append(
            node, name, parts.kind, parts.function, act=act, last=last, weight=key, bias=bias_name, weight_axis=parts.axis,
            inputs=(source,), norm=self._norm_path(fold), groups=parts.groups, computed=computed, folded=folded,
        )  # fmt: skip

    def _inputs_of(self, nodes: list[fx.Node]) -> None:
        for node in nodes:
            if node not in self.at:
                self._add_constant(node)

    def _weight_name(self, node: fx.Node, parts: Weighted, weight: Tensor) -> str:
        """The parameter's name; for a computed weight that of the layer."""
        layer = self._layer(node, self._name(node))
        name = self._tensor(parts.weight) if parts.weight.op == "get_attr" else f"{layer}.weight"
        known = self.weights.get(name)
        packed = _packed(weight.detach())
        count = 2
        while known is not None and (known.shape != packed.shape or not torch.equal(known, packed)):
            numbered = f"{name}#{count}"
            known, count = self.weights.get(numbered), count + 1
            if known is None:
                name = numbered
        self.weights[name] = packed
        return name

    @staticmethod
    def _norm_path(fold: Fold) -> str | None:
        return next((str(node.meta.get("path", "")) for node in fold.nodes if name_of(node) == "batch_norm"), None)

    def _standing_norm(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """A norm that has no layer to fold into: a batch norm, or products and sums with constants per channel; else nothing."""
        if name_of(node) == "batch_norm":
            return () if norm_of(node, self.constants) is None else (node,)
        axis = self._source_axis(node) if len(shape_of(node)) > 1 else None
        reader: fx.Node | None = node
        found = {}
        while axis is not None and reader is not None and name_of(reader) != "batch_norm":
            norm = norm_of(reader, self.constants, axis)
            if norm is None:
                break
            found[reader] = norm
            reader = sole_reader(reader)
        scales = [norm.scale for norm in found.values() if norm.scale is not None]
        differ = any(bool((scale != scale[0]).any()) for scale in scales)
        return tuple(found) if differ and any(norm.shift is not None for norm in found.values()) else ()

    def _source_axis(self, node: fx.Node) -> int | None:
        source = next((a for a in operands(node) if isinstance(a, fx.Node) and a not in self.constants), None)
        if source is None or source not in self.at:
            return None
        return self.operations[self.at[source]].channel_axis % max(len(shape_of(node)), 1)

    def _add_norm(self, node: fx.Node, *behind: fx.Node) -> None:
        """A norm that has no layer to fold into is what engines make of it: a scale and an offset per channel."""
        source = next(a for a in operands(node) if isinstance(a, fx.Node) and a not in self.constants)
        module = name_of(node) == "batch_norm"
        axis = 1 if module else self._source_axis(node) or 0
        norms = [norm for member in (node, *behind) if (norm := norm_of(member, self.constants, axis)) is not None]
        scale, offset = together(norms)
        act, last = self._fused_activation((node, *behind)[-1])
        name = self._name(last if self.renamed else node)
        weight, bias = f"{name}.weight", f"{name}.bias"
        self.weights[weight] = _packed(scale.detach())
        self.biases[bias] = offset.detach()
        self._append(
            node, name, "batchnorm", _ScaleAndShift(axis), act=act, last=last, weight=weight, bias=bias, inputs=(source,),
            norm=self._layer(node, name) if module else None, channel_axis=axis, computed=not module,
        )  # fmt: skip

    def _fused_activation(self, node: fx.Node) -> tuple[table.Bounds, fx.Node]:
        """Bounds of the clamp that alone reads `node`, and the node whose value the operation then has."""
        reader = sole_reader(node)
        while reader is not None and table.function_kind(reader) == "drop":
            reader = sole_reader(reader)
        if reader is not None and len(reader.all_input_nodes) == 1:
            bounds = table.clamp_bounds(reader)
            if bounds is not None:
                return bounds, reader
        return table.UNBOUNDED, node

    def _name(self, node: fx.Node) -> str:
        """The file's tensor; the module's path where it is one operation of torch's own, or whose weight it is; else
        ``path:operation``.
        """
        path = str(node.meta.get("path", ""))
        if path in self.renamed:
            tensor = self.renamed[path]
            return tensor if self.ends.get(path) is node else f"{tensor}:{called(node)}"
        if isinstance(node.target, OpaqueCall) and node.target.is_module:
            return path
        if path and node in self.alone and str(node.meta.get("class", "")).startswith("torch.nn."):
            return path
        weight = table.weighted_arguments(node).get("weight") if table.KINDS.get(name_of(node)) in table.WEIGHTED else None
        if path and isinstance(weight, fx.Node) and weight in self.constants:
            owned = str(weight.target) == f"{path}.weight" if weight.op == "get_attr" else f"{path}.weight" in self.form.constants
            if owned:
                return path
        if path and name_of(node) == "batch_norm" and f"{path}.running_mean" in self.form.constants:
            return path
        return f"{path}:{called(node)}"

    def _tensor(self, node: fx.Node) -> str:
        """Name of a parameter, buffer or constant."""
        return self.tensors.get(str(node.target), str(node.target))

    def _append(
        self, node: fx.Node, name: str, kind: str, call: Callable[..., Any], *, last: fx.Node | None = None,
        inputs: tuple[Any, ...] | None = None, channel_axis: int | None = None, macs: int | None = None, **rest: Any,
    ) -> None:  # fmt: skip
        sources = list(inputs) if inputs is not None else [] if node.op == "placeholder" else self._inputs(node)
        indices = tuple(self.at[n] for n in sources)
        final = last if last is not None else node
        shape = shape_at(final.meta.get("value"), self.form.batch, self.batch) if node.op != "output" else ()
        name = self._unique(name)
        tap = name if kind in QUANTIZED else self._kept_tap(indices) if kind == "keep" else None
        axis = self._channel_axis(node, kind, indices, shape) if channel_axis is None else channel_axis
        floats = [o for o in outlines(final.meta.get("value")) if o.is_float or o.dtype.is_complex]
        op = Operation(
            len(self.operations), name, kind, self._layer(node, name), indices, call, tap=tap, shape=shape, channel_axis=axis,
            elements=sum(math.prod(o.shape) for o in floats) // self.form.batch, origin=str(node.meta.get("origin") or ""),
            **rest,
        )  # fmt: skip
        self.operations.append(replace(op, macs=self._macs(op) if macs is None else macs))
        for member in self._between(node, final):
            self.at[member] = self.part[member] = op.index

    def _between(self, node: fx.Node, final: fx.Node) -> list[fx.Node]:
        """The nodes on the way from `node` to `final`."""
        way = {final}
        current = final
        while current is not node:
            current = next(a for a in current.all_input_nodes if a not in self.constants)
            way.add(current)
        return sorted(way)

    def _unique(self, name: str) -> str:
        self.names[name] += 1
        return name if self.names[name] == 1 else f"{name}#{self.names[name]}"

    @staticmethod
    def _layer(node: fx.Node, name: str) -> str:
        return str(node.target) if node.op == "get_attr" else str(node.meta.get("path") or "") or name

    def _kept_tap(self, indices: tuple[int, ...]) -> str | None:
        taps = [self.operations[i].tap for i in indices if self.operations[i].kind != "meta"]
        return taps[0] if taps else None

    def _channel_axis(self, node: fx.Node, kind: str, indices: tuple[int, ...], shape: tuple[int, ...]) -> int:
        name = name_of(node) if node.op == "call_function" else ""
        if kind in {"conv", "conv-transpose", "batchnorm"}:
            return max(min(1, len(shape) - 1), len(shape) - self._spatial(node) - 1 if self._spatial(node) else 0)
        if len(shape) < 2:
            return min(1, max(len(shape) - 1, 0))
        if kind == "linear" or name in {"layer_norm", "rms_norm"}:
            return len(shape) - 1
        sources = [self.operations[i] for i in indices if len(self.operations[i].shape) == len(shape)]
        if not sources:
            merged = self._moved(node, indices)
            if merged is not None:
                return merged
            return 2 if len(shape) == 3 and not any(_reads_channels_first(user) for user in node.users) else 1
        axis = sources[0].channel_axis
        moved = self._moved(node, indices)
        return axis if moved is None else moved

    def _spatial(self, node: fx.Node) -> int:
        weight = table.weighted_arguments(node).get("weight") if table.KINDS.get(name_of(node)) in table.WEIGHTED else None
        return len(shape_of(weight)) - 2 if isinstance(weight, fx.Node) else 0

    def _moved(self, node: fx.Node, indices: tuple[int, ...]) -> int | None:
        if node.op != "call_function" or not indices or len(node.all_input_nodes) != 1:
            return None
        return moved_axis(node, self.operations[indices[0]].channel_axis)

    def _macs(self, op: Operation) -> int:
        """Of a layer; a sample's share of the batch, since the batch need not be the first axis, nor an axis of its own."""
        if op.weight is None or not op.shape:
            return 0
        if op.kind == "batchnorm":
            return math.prod(op.shape) // self.batch
        weight, source = self.weights[op.weight], self.operations[op.inputs[0]].shape
        if op.kind != "conv-transpose":
            return math.prod(op.shape) * weight[0].numel() // self.batch
        each = weight[0].numel() if op.groups == 1 else weight.numel() // source[op.channel_axis]
        return math.prod(source) * each // self.batch


def _computes(node: fx.Node) -> bool:
    return table.function_kind(node) not in {"keep", "drop"} and is_float(node) and name_of(node) not in table.FILLS


def _single_operations(form: NormalForm) -> set[fx.Node]:
    """Nodes that are all that a call of a module does, apart from what only moves elements."""
    counts: Counter[str] = Counter()
    for node in form.calls:
        counts[str(node.meta.get("module", ""))] += 1000 if _computes(node) else 1
    single = {key for key, count in counts.items() if key and (count < 2 or 1000 <= count < 2000)}
    return {n for n in form.calls if n.meta.get("module") in single and (_computes(n) or counts[n.meta["module"]] < 1000)}


def _reads_channels_first(user: fx.Node) -> bool:
    return user.op == "call_function" and name_of(user) in {"conv1d", "conv_transpose1d", "batch_norm"}


def _packed(weight: Tensor) -> Tensor:
    """A weight in the memory layout that lanes run fastest with: no gaps, images' channels last."""
    return weight.contiguous(memory_format=torch.channels_last if weight.ndim == 4 else torch.contiguous_format)


@dataclass(frozen=True, eq=False)
class _Constant:
    value: Any

    def __call__(self) -> Any:
        return fresh_copy(self.value)


@dataclass(frozen=True)
class _ScaleAndShift:
    axis: int = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shape = [-1 if d == self.axis else 1 for d in range(x.ndim)]
        scaled = x * weight.view(shape)
        return scaled if bias is None else scaled + bias.view(shape)
