"""The walk from equal inputs: every operation of the kit computed on what the engine itself had in front of it.

Differences grow on their way through a network, so comparing tensor by tensor from the input on blames every layer behind the
first bad one. Here an operation reads the engine's own values of its inputs, so that a difference at its tap arises there.
Where the engine has no tensor (fused, not written), the simulation's goes on to the next operation, and with it a doubt: the
engine may have rounded that tensor otherwise. How far that moves what comes behind is found by rounding it down instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.errors import DataError
from qkit.execution.lanes import Operands, compute, decide, finish_value
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import execution, place_inputs
from qkit.graph.table import UNBOUNDED, Bounds
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan

#: Root mean square movements that a rounding nobody saw may make.
_DOUBT = 4.0
#: What counts as a step of a tensor without a grid, relative to its root mean square.
FLOAT_STEP = 1e-3


@dataclass(frozen=True, eq=False)
class Visit:
    """An operation that the engine has a tensor of.

    Attributes
    ----------
    graph, plan, op
        What is simulated.
    inputs
        The engine's values of what the operation reads.
    sums
        What the operation gives on them, before activation and rounding.
    simulated
        The same behind both.
    engine
        The engine's values.
    slack
        Steps that roundings in tensors which the engine does not show may move the values by, zero where it shows all that is
        read; in a shape that goes with the values'.
    """

    graph: Graph
    plan: Plan
    op: Operation
    inputs: list[Any]
    sums: Tensor
    simulated: Tensor
    engine: Tensor
    slack: Tensor

    @property
    def params(self) -> QuantParams | None:
        """The tap's grid."""
        return self.plan.params(self.op.name)

    @cached_property
    def unit(self) -> Tensor:
        """One step of the grid, float64, in a shape that goes with the values'; of a float tensor a thousandth of its size."""
        if self.params is None:
            return FLOAT_STEP * self.simulated.double().square().mean().sqrt().clamp(min=1e-30)
        return along(self.params.scale.to(self.engine.device).double(), self.params.axis, self.engine.ndim)

    @cached_property
    def on_grid(self) -> Tensor:
        """Where the engine's values are whole steps; everywhere where the tap has no grid."""
        if self.params is None:
            return torch.ones_like(self.engine, dtype=torch.bool)
        operations = self.engine.double() / self.unit
        return (operations - operations.round()).abs() < 0.02

    def apart(self, other: Tensor) -> Tensor:
        """How many steps the engine's values are from these, float64."""
        return (self.engine.double() - other.double()) / self.unit

    def finished(self, sums: Tensor, act: Bounds | None = None) -> Tensor:
        """These sums behind activation and rounding, a new tensor."""
        op = self.op if act is None else replace(self.op, act=act)
        return finish_value(op, sums.to(torch.float32, copy=True), self.params, ("",), None)


def walk(graph: Graph, batch: EngineBatch, plan: Plan) -> Iterator[Visit]:
    """Every tap that the engine has a tensor of, in execution order.

    Raises
    ------
    DataError
        If a tensor has another shape than the tap.
    """
    values: dict[int, Any] = {}
    # the same where tensors that the engine does not show are rounded down
    doubted: dict[int, Any] = {}
    given = place_inputs(graph, batch.batch.inputs)
    for op in graph.operations:
        if op.kind == "output":
            return
        inputs = [given[op.argument]] if op.argument is not None else [values[i] for i in op.inputs]
        others = [doubted.get(i, values[i]) for i in op.inputs] if any(i in doubted for i in op.inputs) else None
        params = plan.params(op.name)
        tensor = batch.taps.get(op.name) if op.quantized else None
        with execution(graph.device):
            value = computed(graph, op, inputs, plan)
            other = None if others is None else computed(graph, op, others, plan)
            if op.quantized:
                simulated = finish_value(op, value.clone(), params, ("",), None)
                if tensor is None and params is not None:
                    other = rounded(op, value if other is None else other, params, torch.floor)
                elif other is not None:
                    other = finish_value(op, other.clone(), params, ("",), None)
        if tensor is not None:
            engine = placed(op, tensor, simulated)
            visit = Visit(graph, plan, op, inputs, value, simulated, engine, torch.zeros((), dtype=torch.float64))
            yield visit if other is None else replace(visit, slack=_slack(visit, other))
            values[op.index] = engine
        else:
            values[op.index] = simulated if op.quantized else value
            if other is not None:
                doubted[op.index] = other
        for i in {*op.inputs, op.index}:
            if graph.last_use[i] <= op.index:
                values.pop(i, None)
                doubted.pop(i, None)


def _slack(visit: Visit, other: Tensor) -> Tensor:
    """By channel, how many steps apart the two are, generously: values of one channel move together."""
    apart = ((other.double() - visit.simulated.double()) / visit.unit).square()
    if apart.ndim < 2:
        return _DOUBT * apart.mean().sqrt()
    rest = [d for d in range(apart.ndim) if d != visit.op.channel_axis % apart.ndim]
    return _DOUBT * apart.mean(rest, keepdim=True).sqrt()


def rounded(op: Operation, sums: Tensor, params: QuantParams, how: Callable[[Tensor], Tensor]) -> Tensor:
    """These sums behind the activation and another way to round, such as ``torch.floor``; cut to the grid, float32."""
    exact = sums.double() if op.act == UNBOUNDED else sums.double().clamp(*op.act)
    scale, zero = (along(t.to(sums.device).double(), params.axis, sums.ndim) for t in (params.scale, params.zero_point))
    steps = torch.minimum(torch.maximum(how(exact / scale), params.qmin - zero), params.qmax - zero)
    return (steps * scale).to(torch.float32)


def computed(graph: Graph, op: Operation, inputs: list[Any], plan: Plan) -> Any:
    """What the operation gives in the plan's lane on these inputs, before activation and rounding."""
    return compute(op, inputs, decide(op, plan, graph), Operands(graph, op))


def along(values: Tensor, axis: int | None, ndim: int) -> Tensor:
    """A number or one a channel in a shape that goes with a tensor of so many dimensions."""
    return values if axis is None else values.view([-1 if d == axis % ndim else 1 for d in range(ndim)])


def placed(op: Operation, tensor: EngineTensor, like: Tensor) -> Tensor:
    """The engine's values beside the kit's: a copy on its device, in its memory layout, checked for its shape."""
    if tensor.values.shape != like.shape:
        raise DataError(
            f"{op.name} has shape {tuple(tensor.values.shape)} in the engine and {tuple(like.shape)} in the network: the "
            "engine ran another network or another batch; align the lane first."
        )
    values = tensor.values.to(like.device, torch.float32)
    # copied, since the lane's own tensor is not to be written to
    return values.clone(memory_format=torch.channels_last if values.ndim == 4 else torch.contiguous_format)
