"""The network as a list of instructions, from the kit's own trace: the model's operations with a grid at every tap.

Steps and taps are those of `qkit.graph`; what differs is that nothing is folded for good, dropout stays, and activations are
evaluated with gradients. Instructions name modules, parameters and grids by path and hold none of them, so that a copy or a
replica of the network runs its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import fx
from torch.nn import functional as F

from qkit.graph import Assembly, table
from qkit.graph.fronts.opaque import OpaqueCall
from qkit.graph.normal_form.fixed_norms import Recipe, folds_of, recipe_of
from qkit.graph.operation import Operation
from qkit.graph.running import ACCUMULATING
from qkit.graph.table import UNBOUNDED, Bounds
from qkit.graph.weighted import weighted
from qkit.qat.layers import Layer
from qkit.quant.plan import Plan

_DROPOUTS: Mapping[str, Callable[..., Any]] = {
    "dropout": F.dropout,
    "feature_dropout": F.dropout2d,
    "alpha_dropout": F.alpha_dropout,
    "feature_alpha_dropout": F.feature_alpha_dropout,
}


@dataclass(frozen=True)
class Slot:
    """Stands in arguments for the value of that instruction."""

    index: int


@dataclass(frozen=True)
class Instruction:
    """One operation.

    Attributes
    ----------
    what
        "input", "attribute", "constant", "function", "module" (dropout, or one kept out of the trace), "layer", "dropout"
        (a functional one, active in training mode), "same" (hands its argument on) or "output".
    target
        Position of an input, path of an attribute, a constant's tensor, function, or path and call of a module.
    args, kwargs
        With `Slot` where other instructions' values go.
    layer
        Of a "layer".
    tap
        Name of the grid that the value is put on, None for none, and `act` the bounds of the activation fused into that.
    fixed
        Whether it hangs on parameters and constants alone.
    frees
        Instructions whose values nobody reads after this one.
    """

    what: str
    target: Any = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    layer: Layer | None = None
    tap: str | None = None
    act: Bounds = UNBOUNDED
    fixed: bool = False
    frees: tuple[int, ...] = ()


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The nest of tuples, lists, dicts and slices with `function` applied to what they hold."""
    if isinstance(value, tuple):
        items = [mapped(item, function) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [mapped(item, function) for item in value]
    if isinstance(value, dict):
        return {key: mapped(item, function) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(mapped(item, function) for item in (value.start, value.stop, value.step)))
    return function(value)


def compile_program(assembly: Assembly, axes: Mapping[str, int | None], widths: Plan) -> tuple[Instruction, ...]:
    """The instructions of a traced network.

    Parameters
    ----------
    axes
        Taps and weights that get a grid, and the axis that this has a scale for every channel of, None where it has one.
    widths
        Whose bits of bias and accumulator hold.
    """
    return _Compiler(assembly, axes, widths).run()


class _Compiler:
    def __init__(self, assembly: Assembly, axes: Mapping[str, int | None], widths: Plan) -> None:
        self.assembly = assembly
        self.axes = axes
        self.widths = widths
        self.program: list[Instruction] = []
        self.slots: dict[fx.Node, Slot] = {}
        self.inputs = 0
        self.folds = folds_of(assembly.form, assembly.constants)
        self.members: dict[int, list[fx.Node]] = {}
        for node in assembly.form.graph.nodes:
            if node in assembly.operations and table.function_kind(node) != "drop":
                self.members.setdefault(assembly.operations[node], []).append(node)

    def run(self) -> tuple[Instruction, ...]:
        nodes = list(self.assembly.form.graph.nodes)
        # what only parameters reach comes first: a layer's own numbers may stand behind it in the trace
        for node in sorted(nodes, key=lambda n: n not in self.assembly.constants):
            instruction = self._instruction(node)
            op = self.assembly.graph.operations[self.assembly.operations[node]] if node in self.assembly.operations else None
            if op is not None and self._has_grid(op) and node is self.members[op.index][-1]:
                instruction = replace(instruction, tap=op.name, act=op.act if self._clamps(node, op) else UNBOUNDED)
            self.slots[node] = Slot(len(self.program))
            self.program.append(instruction)
        return _with_frees(self.program)

    def _instruction(self, node: fx.Node) -> Instruction:
        op = self.assembly.graph.operations[self.assembly.operations[node]] if node in self.assembly.operations else None
        if node.op == "placeholder":
            self.inputs += 1
            return Instruction("input", self.inputs - 1)
        if node.op == "output":
            return Instruction("output", self.assembly.form.rebuild, args=(self._filled(node.args[0]),))
        if node.op == "get_attr":
            known = dict(self.assembly.model.named_parameters()) | dict(self.assembly.model.named_buffers())
            if str(node.target) in known:
                return Instruction("attribute", str(node.target), fixed=True)
            return Instruction("constant", self.assembly.constants[node], fixed=True)
        if node in self.assembly.constants:
            return Instruction(
                "function", table.portable(node.target), self._filled(node.args), self._filled(dict(node.kwargs)), fixed=True
            )
        if table.function_kind(node) == "drop":
            return self._dropout(node)
        if op is not None and op.weight is not None and node is self.members[op.index][0]:
            return self._layer(node, op)
        clamps = op is not None and self._has_grid(op) and self._clamps(node, op)
        inside = op is not None and op.weight is not None and node is not self.members[op.index][0]
        if node in self.assembly.absorbed or clamps or (inside and not (op is not None and self._clamps(node, op))):
            source = next(a for a in node.all_input_nodes if a not in self.assembly.constants)
            return Instruction("same", args=(self.slots[source],))
        if isinstance(node.target, OpaqueCall) and node.target.is_module:
            return Instruction("module", (str(node.meta["path"]), node.target), self._filled(node.args))
        return self._function(node)

    def _function(self, node: fx.Node) -> Instruction:
        return Instruction("function", table.portable(node.target), self._filled(node.args), self._filled(dict(node.kwargs)))

    def _filled(self, value: Any) -> Any:
        return mapped(value, lambda item: self.slots[item] if isinstance(item, fx.Node) else item)

    def _has_grid(self, op: Operation) -> bool:
        return op.quantized and op.name in self.axes

    def _clamps(self, node: fx.Node, op: Operation) -> bool:
        """Whether the node is the operation's activation that clamps: evaluated together with the grid behind it."""
        return op.act != UNBOUNDED and node.op == "call_function" and table.clamp_bounds(node) is not None

    def _dropout(self, node: fx.Node) -> Instruction:
        function = _DROPOUTS.get(table.short_name(node.target))
        if function is None:
            return Instruction("same", args=(self.slots[node.args[0]],))  # type: ignore[index]
        path = str(node.meta.get("path", ""))
        if table.module_kind(self.assembly.model.get_submodule(path)) == "drop":
            return Instruction("module", (path, None), args=(self.slots[node.args[0]],))  # type: ignore[index]
        return Instruction("dropout", function, self._filled(tuple(node.args[:2])))

    def _layer(self, node: fx.Node, op: Operation) -> Instruction:
        rounds = op.weight if op.weight in self.axes else None
        source = self.assembly.graph.operations[op.inputs[0]].tap
        # a bias has a grid where its layer's input and weight both have one that is the accumulator's, as in qkit.execution.lanes
        summed = rounds is not None and self.axes[rounds] in (None, op.weight_axis)
        known = summed and source is not None and self.axes.get(source, 0) is None
        common: dict[str, Any] = {
            "rounds": rounds,
            "source": source if known else None,
            "bias_bits": self.widths.bias_bits,
            "accumulator_bits": self.widths.accumulator_bits if op.kind in ACCUMULATING else None,
            "channel_axis": op.channel_axis,
        }
        if op.kind == "batchnorm":
            return self._standing(node, op, common)
        parts = weighted(node, self.assembly.constants)
        assert parts is not None
        fold = self.folds.get(node)
        recipes = () if fold is None else fold.recipes
        layer = Layer(op.kind, parts.function, op.norm, recipes, parts.axis, parts.groups, **common)
        bias = None if parts.bias is None else self.slots[parts.bias]
        x = table.weighted_arguments(node)["input"]
        numbers = [self._filled(recipe.sources) for recipe in recipes]
        return Instruction("layer", args=(self.slots[x], self.slots[parts.weight], bias, numbers), layer=_plain(layer))

    def _standing(self, node: fx.Node, op: Operation, common: Mapping[str, Any]) -> Instruction:
        members = [n for n in self.members[op.index] if not self._clamps(n, op)]
        recipes = tuple(self._recipe(n, op.channel_axis) for n in members)
        layer = Layer("batchnorm", op.call, op.norm, recipes, 0, 1, **common)
        x = next(a for a in node.all_input_nodes if a not in self.assembly.constants)
        numbers = [self._filled(recipe.sources) for recipe in recipes]
        return Instruction("layer", args=(self.slots[x], None, None, numbers), layer=_plain(layer))

    def _recipe(self, node: fx.Node, axis: int | None = None) -> Recipe:
        rank = len(node.meta["value"].shape)
        axes = [axis] if axis is not None else [1, rank - 1, *range(rank)]
        found = next((r for a in axes if (r := recipe_of(node, self.assembly.constants, a)) is not None), None)
        assert found is not None
        return found


def _plain(layer: Layer) -> Layer:
    """The layer without nodes of the trace: where its norms' numbers come from is in the instruction."""
    return replace(layer, norms=tuple(replace(recipe, sources=()) for recipe in layer.norms))


def _with_frees(program: Sequence[Instruction]) -> tuple[Instruction, ...]:
    last: dict[int, int] = {}

    def note(index: int) -> Callable[[Any], Any]:
        def look(item: Any) -> Any:
            if isinstance(item, Slot):
                last[item.index] = index
            return item

        return look

    for index, instruction in enumerate(program):
        mapped((instruction.args, dict(instruction.kwargs or {})), note(index))
    frees: dict[int, list[int]] = {}
    for slot, index in last.items():
        frees.setdefault(index, []).append(slot)
    return tuple(replace(instruction, frees=tuple(frees.get(i, ()))) for i, instruction in enumerate(program))
