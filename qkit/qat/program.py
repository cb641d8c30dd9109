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

from qkit import operations as ops
from qkit.graph import Assembly
from qkit.lanes import ACCUMULATING
from qkit.operations import UNBOUNDED, Bounds
from qkit.plan import Plan
from qkit.qat.layers import Layer
from qkit.steps import Step


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
        "input", "attribute", "module", "function", "method", "layer", "dropout" (a functional one, active in training mode),
        "same" (hands its argument on) or "output".
    target
        Position of an input, path of an attribute or module, function, or method's name.
    args, kwargs
        With `Slot` where other instructions' values go.
    layer
        Of a "layer".
    tap
        Name of the grid that the value is put on, None for none, and `act` the bounds of the activation fused into that.
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
        self.members: dict[int, list[fx.Node]] = {}
        for node in assembly.nodes.nodes:
            if node in assembly.steps:
                self.members.setdefault(assembly.steps[node], []).append(node)

    def run(self) -> tuple[Instruction, ...]:
        for node in self.assembly.nodes.nodes:
            step = self.assembly.graph.steps[self.assembly.steps[node]] if node in self.assembly.steps else None
            instruction: Instruction | None
            if node.op == "placeholder":
                instruction = Instruction("input", (self.inputs, str(node.target)), tuple(node.args))
                self.inputs += 1
            elif node.op == "output":
                instruction = Instruction("output", args=(self._filled(node.args[0]),))
            else:
                instruction = self._dropout(node) if step is None else self._operation(node, step)
            if instruction is None:
                continue
            if step is not None and self._has_grid(step) and node is self.members[step.index][-1]:
                instruction = replace(instruction, tap=step.name, act=step.act if self._clamps(node, step) else UNBOUNDED)
            self.slots[node] = Slot(len(self.program))
            self.program.append(instruction)
        return _with_frees(self.program)

    def _filled(self, value: Any) -> Any:
        return mapped(value, lambda item: self.slots[item] if isinstance(item, fx.Node) else item)

    def _has_grid(self, step: Step) -> bool:
        return step.quantized and step.name in self.axes

    def _clamps(self, node: fx.Node, step: Step) -> bool:
        """Whether the node is the step's activation that clamps: evaluated together with the grid behind it."""
        if step.act == UNBOUNDED or not node.op.startswith("call_"):
            return False
        module = self.assembly.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        return ops.clamp_bounds(node, module) is not None

    def _dropout(self, node: fx.Node) -> Instruction | None:
        if not node.op.startswith("call_"):
            return None  # a weight, which its layer finds itself
        if node.op == "call_module":
            return Instruction("module", str(node.target), self._filled(node.args), self._filled(dict(node.kwargs)))
        arguments = {k: v for k, v in ops.bound_arguments(node).items() if k not in {"training", "inplace"}}
        return Instruction("dropout", node.target, (), self._filled(arguments))

    def _operation(self, node: fx.Node, step: Step) -> Instruction:
        if step.weight is not None and node is self.members[step.index][0]:
            layer, source = self._layer(node, step)
            return Instruction("layer", args=(self.slots[source],), layer=layer)
        folded = step.norm is not None and node.op == "call_module" and node.target == step.norm
        if folded or (self._has_grid(step) and self._clamps(node, step)):
            return Instruction("same", args=(self.slots[node.all_input_nodes[0]],))
        if node.op == "get_attr":
            return Instruction("attribute", str(node.target))
        target, args, kwargs = (node.target, node.args, node.kwargs) if node.op == "call_module" else ops.out_of_place(node)
        what = "module" if node.op == "call_module" else "function" if callable(target) else "method"
        return Instruction(what, target, self._filled(tuple(args)), self._filled(dict(kwargs)))

    def _layer(self, node: fx.Node, step: Step) -> tuple[Layer, fx.Node]:
        rounds = step.weight if step.weight in self.axes else None
        source = self.assembly.graph.steps[step.inputs[0]].tap
        # a bias has a grid where its layer's input and weight both have one that is the accumulator's, as in qkit.lanes
        summed = rounds is not None and self.axes[rounds] in (None, step.weight_axis)
        known = summed and source is not None and self.axes.get(source, 0) is None
        common: dict[str, Any] = {
            "norm": step.norm,
            "rounds": rounds,
            "source": source if known else None,
            "bias_bits": self.widths.bias_bits,
            "accumulator_bits": self.widths.accumulator_bits if step.kind in ACCUMULATING else None,
            "channel_axis": step.channel_axis,
        }
        if node.op == "call_module":
            module = None if step.kind == "batchnorm" else str(node.target)
            return Layer(step.kind, module, **common), node.all_input_nodes[0]
        arguments = ops.weighted_arguments(node)
        weight, bias = (str(v.target) if isinstance(v, fx.Node) else None for v in (arguments["weight"], arguments.get("bias")))
        settings = {k: v for k, v in arguments.items() if k not in {"input", "weight", "bias"}}
        function: Any = node.target
        return Layer(step.kind, None, weight=weight, bias=bias, function=function, settings=settings, **common), arguments[
            "input"
        ]


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
