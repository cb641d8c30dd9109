"""The lockstep executor: any number of lanes through one graph, node by node, each distinct value computed once.

At every operation the lanes are grouped by the identity of their inputs and their decision (which grids the operation's weight,
bias and output get). A group is computed once, and its lanes share the result until they differ: copy on divergence. A value is
dropped, in every lane, after the last operation that reads it: bounded memory.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qkit.errors import PlanError
from qkit.execution import integer_forms
from qkit.execution.ends import Setting
from qkit.execution.products import Sums, digits, integer_product, integers, on_integers, prepared, product
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import ACCUMULATING, execution, operate, place_inputs
from qkit.graph.table import UNBOUNDED
from qkit.quant.compiled import kernels, kernels_for
from qkit.quant.grids import QuantParams, as_integers, dequantize, fake_quantize_, quantize_bias, wrap_around
from qkit.quant.memory import dense, without_gaps
from qkit.quant.plan import FLOAT, Codes, Plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lane:
    """One way of executing the graph.

    Attributes
    ----------
    name
        Unique within a run.
    plan
        Its grids; `FLOAT` for none.
    reads
        Name of the lane whose values this one takes as inputs at *every* operation; its own results go to the observer and no
        further. With the float lane's this is the local error: one layer's quantization alone on float inputs.
    """

    name: str
    plan: Plan = FLOAT
    reads: str | None = None

    def __post_init__(self) -> None:
        self.plan.refuse_factors()


@dataclass(frozen=True, eq=False)
class Decision:
    """What a lane does at an operation; equal decisions on equal inputs give equal results."""

    weight: QuantParams | None
    bias_scale: tuple[QuantParams, QuantParams, int] | None
    output: QuantParams | None
    correction: tuple[float, ...] | None = None
    accumulator: tuple[QuantParams, QuantParams, int] | None = None
    codes: Codes | None = None
    setting: Setting | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """Hashable content."""
        return self.weight, self.bias_scale, self.output, self.correction, self.accumulator, self.codes, self.setting

    @property
    def only_rounds(self) -> bool:
        """Whether it puts on a grid what a float lane computes from the same: not where an integer form may compute."""
        return self.weight is None and self.setting is None

    @property
    def is_float(self) -> bool:
        """Whether nothing is quantized."""
        return self.weight is None and self.output is None


class Value:
    """An operation's result in the lanes that share it, and the grid that it lies on, if any; sharing is told by identity."""

    __slots__ = ("data", "grid")

    def __init__(self, data: Any, grid: QuantParams | None = None) -> None:
        self.data = data
        self.grid = grid


@dataclass(frozen=True, eq=False)
class Frontier:
    """All values that operations from `index` on still read, of one lane: where a later run can start."""

    index: int
    values: Mapping[int, Value]

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(v.data.nbytes for v in self.values.values() if isinstance(v.data, Tensor))


#: ``finish(op, y, params, lanes, reference)``: apply the fused activation to the fresh tensor `y` and put it on the grid,
#: in place where possible; returns the value. `lanes` are the names that share it, `reference` the first lane's value. On a GPU
#: that Triton has kernels for, `y` may be `Sums` whose scale and bias are still to be applied; else it never is.
Finish = Callable[[Operation, "Tensor | Sums", "QuantParams | None", tuple[str, ...], "Tensor | None"], Tensor]
#: ``observe(op, values)``: every lane's value of a quantized operation, by lane name.
Observe = Callable[[Operation, Mapping[str, Tensor]], None]


def decide(op: Operation, plan: Plan, graph: Graph) -> Decision:
    """What the plan says for an operation."""
    output = plan.params(op.name) if op.quantized else None
    weight = plan.params(op.weight)
    bias_scale = accumulator = None
    if weight is not None and not (plan.bias_bits is None and plan.accumulator_bits is None):
        source = plan.params(graph.operations[op.inputs[0]].tap)
        if source is not None and source.axis is None and weight.axis in (None, op.weight_axis):
            if (op.bias is not None or op.name in plan.corrections) and plan.bias_bits is not None:
                bias_scale = (source, weight, plan.bias_bits)
            if op.kind in ACCUMULATING and plan.accumulator_bits is not None:
                accumulator = (source, weight, plan.accumulator_bits)
    correction = None if weight is None else plan.corrections.get(op.name)
    setting = None
    if output is not None and integer_forms.chosen(op, plan.arithmetic):
        setting = Setting(plan.arithmetic, plan.accumulator_bits)
    return Decision(weight, bias_scale, output, correction, accumulator, plan.codes(op.weight), setting)


def finish_value(
    op: Operation, y: Tensor | Sums, params: QuantParams | None, lanes: tuple[str, ...], reference: Tensor | None
) -> Tensor:
    """The plain `Finish`: activation and fake quantization in place."""
    if isinstance(y, Sums) or (params is not None and kernels_for(y.device) is not None):
        return on_gpu(op, y, params)[0]
    if params is None:
        return y if op.act == UNBOUNDED else y.clamp_(*op.act)
    loops = kernels()
    if loops is None or y.device.type != "cpu" or params.axis is not None:
        return fake_quantize_(y if op.act == UNBOUNDED else y.clamp_(*op.act), params)
    y = without_gaps(y)
    loops.quantize_flat(dense(y).numpy(), params.scalars, op.act)
    return y


def on_gpu(op: Operation, y: Tensor | Sums, params: QuantParams | None, **wanted: Any) -> tuple[Tensor, Tensor | None]:
    """What `qkit.quant.gpu_kernels.finish` gives: the value, and the figures that are wanted of it."""
    sums = y if isinstance(y, Sums) else Sums(y)
    loops = kernels_for(sums.data.device)
    assert loops is not None
    found: tuple[Tensor, Tensor | None] = loops.finish(
        sums.data, op.channel_axis, step=sums.step, bias=sums.bias, act=op.act, params=params, **wanted
    )
    return found


def lane_weight(graph: Graph, plan: Plan, weight: str) -> Tensor:
    """The weight of that name as the plan's lane computes with it."""
    params = plan.params(weight)
    return graph.weights[weight] if params is None else quantize_weight(graph.weights[weight], params, plan.codes(weight))


def quantize_weight(weight: Tensor, params: QuantParams, codes: Codes | None = None) -> Tensor:
    """Fake-quantized copy of a weight, in the same memory layout; of other codes than the nearest, where there are any."""
    if codes is not None:
        if codes.tensor.shape != weight.shape:
            raise PlanError(
                f"the plan has codes of shape {tuple(codes.tensor.shape)} for a weight of shape {tuple(weight.shape)}. The plan "
                "is of another model: calibrate again."
            )
        return torch.empty_like(weight).copy_(dequantize(codes.tensor.to(weight.device), params))
    loops = kernels()
    if loops is None or weight.device.type != "cpu" or params.axis != 0:
        return fake_quantize_(weight.clone(), params)
    out = torch.empty_like(weight)
    count = weight.shape[0]
    source, target = (dense(t).view(count, -1).numpy() for t in (weight, out))
    loops.quantize_rows(source, target, *params.vectors)
    return out


@dataclass(eq=False)
class Operands:
    """An operation's quantized weights and biases, each made once however many groups want it.

    They are gone with the operation, except on a GPU, where making them again for every batch would cost more than the batch.
    """

    graph: Graph
    op: Operation
    made: dict[Hashable, Any] = field(default_factory=dict)

    def weight(self, decision: Decision) -> Tensor:
        if decision.weight is None:
            return self.graph.weights[self.op.weight or ""]
        found: Tensor = self._once("weight", (decision.weight, decision.codes), lambda: self._weight(decision))
        return found

    def bias(self, decision: Decision) -> Tensor | None:
        found: Tensor | None = self._once(
            "bias", (decision.bias_scale, decision.correction), lambda: _bias(self.graph, self.op, decision)
        )
        return found

    def digits(self, decision: Decision, grid: QuantParams | None) -> tuple[Tensor, ...] | None:
        """The weight's codes in digits whose sums are exact with an input on that grid; None where they are no integers."""
        weight = decision.weight
        if weight is None or not on_integers(self.op, grid, weight):
            return None
        assert grid is not None
        found: tuple[Tensor, ...] | None = self._once(
            "digits", (weight, decision.codes, grid.reach), lambda: self._digits(decision, grid.reach)
        )
        return found

    def step(self, decision: Decision, grid: QuantParams) -> Tensor:
        """What integer sums by output channel are multiplied with, float32 (C,)."""
        weight = decision.weight
        assert weight is not None
        channels = self.op.shape[self.op.channel_axis]

        def make() -> Tensor:
            step = (grid.scale.double() * weight.scale.double()).float()
            return step.expand(channels).contiguous().to(self.graph.device)

        found: Tensor = self._once("step", (grid, weight), make)
        return found

    def _once(self, what: str, key: Hashable, make: Callable[[], Any]) -> Any:
        name = what, self.op.name, key
        if self.graph.device.type == "cuda":
            return prepared(self.graph).get(name, make)
        if name not in self.made:
            self.made[name] = make()
        return self.made[name]

    def _weight(self, decision: Decision) -> Tensor:
        params, float_weight = decision.weight, self.graph.weights[self.op.weight or ""]
        assert params is not None
        if params.axis is not None and float_weight.shape[params.axis] != params.scale.numel():
            raise PlanError(
                f"{self.op.weight}: the plan's grid has {params.scale.numel()} channels on axis {params.axis}, the weight "
                f"has shape {tuple(float_weight.shape)}. The plan is of another model: calibrate again."
            )
        return quantize_weight(float_weight, params, decision.codes)

    def _digits(self, decision: Decision, reach: int) -> tuple[Tensor, ...] | None:
        assert decision.weight is not None
        found = digits(as_integers(self._weight(decision), decision.weight), self.op.weight_axis, reach)
        if found is None:
            logger.warning(
                "%s: its integer sums may exceed 2**24, where float32 ends to be exact: they are added up in float32.",
                self.op.name,
            )
        return found


def lane_bias(graph: Graph, op: Operation, plan: Plan) -> Tensor | None:
    """The layer's bias as the plan's lane computes with it; None where it has none."""
    return _bias(graph, op, decide(op, plan, graph))


def _bias(graph: Graph, op: Operation, decision: Decision) -> Tensor | None:
    if op.bias is None and decision.correction is None:
        return None
    # a layer without bias gets one where the plan corrects its output's mean
    bias = graph.biases[op.bias] if op.bias else torch.zeros(op.shape[op.channel_axis], device=graph.device)
    if decision.correction is not None:
        if len(decision.correction) != len(bias):
            raise PlanError(
                f"{op.name}: the plan corrects {len(decision.correction)} biases, the layer has {len(bias)}. The plan is of "
                "another model: calibrate again."
            )
        bias = bias + torch.tensor(decision.correction, dtype=bias.dtype, device=bias.device)
    if decision.bias_scale is not None:
        source, weight, bits = decision.bias_scale
        bias = quantize_bias(bias, source.scale.double() * weight.scale.double(), bits)
    return bias


def run_lanes(
    graph: Graph,
    lanes: Sequence[Lane],
    inputs: tuple[Any, ...] | None,
    *,
    finish: Finish = finish_value,
    observe: Observe | None = None,
    start: Frontier | None = None,
    executed: Counter[str] | None = None,
) -> dict[str, Any]:
    """Run the lanes in lockstep; returns every lane's output by name (lanes with `reads` have none).

    Parameters
    ----------
    graph, lanes
        What to run, in which ways. The first lane is the reference that `finish` is handed.
    inputs
        The model's positional inputs; None with a `start` that lies behind all of them.
    finish, observe
        Hooks, see `Finish` and `Observe`.
    start
        Values to start from instead of the inputs; right only if no lane differs before ``start.index``.
    executed
        Counts, by operation name, the values that were made: computed, or a computed one put on another grid.

    Raises
    ------
    DataError
        If the inputs do not fit the graph.
    """
    outputs: dict[str, Any] = {}
    env = _walk(graph, lanes, inputs, finish, observe, start, len(graph.operations), executed)
    final = graph.operations[-1]
    for lane, value in zip(lanes, env[final.index], strict=True):
        if lane.reads is None:
            outputs[lane.name] = value.data
    return outputs


def run_to(
    graph: Graph, lane: Lane, inputs: tuple[Any, ...] | None, index: int, *, start: Frontier | None = None,
    executed: Counter[str] | None = None,
) -> Frontier:  # fmt: skip
    """Run one lane up to but without operation `index` and return the frontier there."""
    env = _walk(graph, [lane], inputs, finish_value, None, start, index, executed)
    return Frontier(index, {i: values[0] for i, values in env.items() if graph.last_use[i] >= index})


def value_at(
    graph: Graph, lane: Lane, inputs: tuple[Any, ...] | None, op: Operation, *, start: Frontier | None = None,
    executed: Counter[str] | None = None,
) -> Tensor:  # fmt: skip
    """One lane's value of a quantized operation, running no further than that."""
    found: dict[str, Tensor] = {}

    def look(at: Operation, values: Mapping[str, Tensor]) -> None:
        if at is op:
            found.update(values)

    _walk(graph, [lane], inputs, finish_value, look, start, op.index + 1, executed)
    return found[lane.name]


def _walk(
    graph: Graph, lanes: Sequence[Lane], inputs: tuple[Any, ...] | None, finish: Finish, observe: Observe | None,
    start: Frontier | None, stop: int, executed: Counter[str] | None,
) -> dict[int, list[Value]]:  # fmt: skip
    names = {lane.name: i for i, lane in enumerate(lanes)}
    if len(names) != len(lanes):
        raise PlanError(f"lane names have to differ: {', '.join(lane.name for lane in lanes)}.")
    source = [i if lane.reads is None else names[lane.reads] for i, lane in enumerate(lanes)]
    env: dict[int, list[Value]] = {}
    if start is not None:
        env = {i: [value] * len(lanes) for i, value in start.values.items()}
    given = [] if inputs is None else [Value(x) for x in place_inputs(graph, inputs)]
    first = 0 if start is None else start.index
    with execution(graph.device):
        for op in graph.operations[first:stop]:
            arguments = [[given[op.argument]] * len(lanes)] if op.argument is not None else [env[i] for i in op.inputs]
            values = _run_step(graph, op, lanes, source, arguments, finish, executed, keep_all=observe is not None)
            if observe is not None and op.quantized:
                observe(op, {lane.name: value.data for lane, value in zip(lanes, values, strict=True)})
            # a lane that reads another hands nothing of its own on
            env[op.index] = [values[i] for i in source]
            del values
            for i in {*op.inputs, op.index}:
                if graph.last_use[i] <= op.index and i in env and op.kind != "output":
                    del env[i]
    return env


def _run_step(
    graph: Graph, op: Operation, lanes: Sequence[Lane], source: Sequence[int], arguments: list[list[Value]], finish: Finish,
    executed: Counter[str] | None, *, keep_all: bool,
) -> list[Value]:  # fmt: skip
    """Every lane's value of one operation; a lane that reads another and that nobody observes gets that one's, to save memory."""
    groups: dict[Any, tuple[Decision, tuple[Value, ...], list[int]]] = {}
    for i, lane in enumerate(lanes):
        operands = tuple(argument[source[i]] for argument in arguments)
        decision = decide(op, lane.plan, graph)
        if lane.reads is not None and decision.is_float:
            # nothing of its own happens here: it goes with the lane that it reads
            decision = decide(op, lanes[source[i]].plan, graph)
        key = (tuple(map(id, operands)), decision.key)
        groups.setdefault(key, (decision, operands, []))[2].append(i)
    result: list[Value | None] = [None] * len(lanes)
    shared = Operands(graph, op)
    reference: Tensor | None = None
    exact: tuple[Value, ...] | None = None  # what the reference was computed from, where others differ by a grid alone
    for decision, operands, members in groups.values():
        if reference is not None and decision.only_rounds and operands == exact:
            data = reference.clone()
        else:
            data = _compute(op, [operand.data for operand in operands], decision, shared, [operand.grid for operand in operands])
        if executed is not None:
            executed[op.name] += 1
        if op.quantized:
            data = finish(op, data, decision.output, tuple(lanes[i].name for i in members), reference)
            if reference is None:
                reference = data
                exact = operands if op.weight is None and op.divisor is None and decision.is_float else None
        value = Value(data, decision.output if op.quantized else _kept(op, operands))
        for i in members:
            if keep_all or source[i] == i:
                result[i] = value
        del data, value
    return [result[i] if result[i] is not None else result[source[i]] for i in range(len(lanes))]  # type: ignore[misc]


def _kept(op: Operation, operands: Sequence[Value]) -> QuantParams | None:
    """The grid of what only moves elements; one with channels is not followed, since its axis may have moved."""
    grid = operands[0].grid if op.kind == "keep" and operands else None
    return grid if grid is not None and grid.axis is None else None


def compute(op: Operation, values: list[Any], decision: Decision, operands: Operands) -> Any:
    """What the operation gives in a lane on these values, before activation and grid; fresh memory where it gets a grid."""
    found = _compute(op, values, decision, operands, [None] * len(values))
    return _scaled(op, found) if isinstance(found, Sums) else found


def _scaled(op: Operation, sums: Sums) -> Tensor:
    return on_gpu(replace(op, act=UNBOUNDED), sums, None)[0]


def _compute(
    op: Operation, values: list[Any], decision: Decision, operands: Operands, grids: Sequence[QuantParams | None]
) -> Any:
    """The same, where a GPU leaves a weighted operation's scale and bias to `Finish`; the values lie on these grids, if any."""
    if op.weight is not None:
        if op.kind in ACCUMULATING and values[0].dtype == torch.float32 and kernels_for(values[0].device) is not None:
            return _sums(op, values[0], grids[0], decision, operands)
        y = operate(op, values, operands.weight(decision), operands.bias(decision))
        if decision.accumulator is not None:
            source, weight, bits = decision.accumulator
            scale = source.scale.double() * weight.scale.double()
            y = wrap_around(y, scale, bits, None if weight.axis is None else op.channel_axis)
        return y
    if decision.setting is not None and decision.output is not None:
        found = integer_forms.run(op, values, grids, decision.output, decision.setting)
        if found is not None:
            return found
    if op.kind == "float":
        values = [v.contiguous() if isinstance(v, Tensor) else v for v in values]
    if op.kind == "input" and values[0].ndim == 4:
        return values[0].clone(memory_format=torch.channels_last)
    result = operate(op, values)
    if op.divisor is not None and decision.output is not None:
        return defined(result, values)
    if op.quantized and any(isinstance(v, Tensor) and v.data_ptr() == result.data_ptr() for v in values):
        result = result.clone()
    return result


def _sums(op: Operation, x: Tensor, grid: QuantParams | None, decision: Decision, operands: Operands) -> Tensor | Sums:
    """The weighted operation on a GPU: in integers where both its operands are."""
    step = None
    parts = operands.digits(decision, grid)
    if parts is None or grid is None or decision.weight is None:
        total = product(op, x, operands.weight(decision))
    else:
        total = integer_product(op, integers(x, grid), parts)
        step = operands.step(decision, grid)
    bias = operands.bias(decision)
    if decision.accumulator is None:
        return Sums(total, step, bias)
    source, weight, bits = decision.accumulator
    scale = source.scale.double() * weight.scale.double()
    return wrap_around(_scaled(op, Sums(total, step, bias)), scale, bits, None if weight.axis is None else op.channel_axis)


def defined(y: Tensor, operands: Sequence[Any]) -> Tensor:
    """A quotient in front of a grid, where 0 / 0 becomes the grid's least code.

    That is what ONNX Runtime and torch's own fake quantization make of NaN on most processors; others make 0 of it. What comes
    of operands that are themselves NaN or infinite stays, so that it is found.
    """
    nothing = y.isnan()
    if y.device.type == "cpu" and not bool(nothing.any()):
        return y
    for x in operands:
        nothing = nothing & torch.isfinite(x) if isinstance(x, Tensor) else nothing
    return y.masked_fill(nothing, -math.inf)
