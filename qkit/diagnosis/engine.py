"""Where an engine leaves the simulation, and by which fault, told by experiment.

Differences grow on their way through a network, so comparing tensor by tensor from the input on blames every layer behind the
first bad one. Here each layer is simulated on the *engine's own* inputs, and its output compared with the engine's: what rounding
explains differs by a step here and there. The first layer that differs by more is where the engine leaves the simulation.

There, every fault that engines are known for is simulated in turn, on the same inputs. The one that reproduces what the engine
computed is named; if none does, that is said.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.remedies import Remedy
from qkit.engines.lane import EngineBatch, EngineLane
from qkit.errors import DataError
from qkit.graph import Graph
from qkit.lanes import ACCUMULATING, decide, execution, finish_value, lane_bias, lane_weight, place_inputs, run_lanes
from qkit.lanes import Lane as SimulatedLane
from qkit.metrics import Interval, Scores, paired_interval, score_batch
from qkit.numerics import QuantParams, wrap_around
from qkit.plan import FLOAT, Plan
from qkit.steps import Step

if TYPE_CHECKING:
    from qkit.study import Study

#: Share of elements within a step of the simulation from which on rounding explains a layer.
EXPLAINED = 0.999
#: A fault is named if it explains this share, and leaves unexplained less than this part of what the plain simulation does.
NAMED_SHARE, NAMED_PART = 0.99, 0.2
#: Float engines: distance from the simulation, relative to the tensor's root mean square.
FLOAT_TOLERANCE = 1e-3
_ACCUMULATORS = (32, 24, 16)


@dataclass(frozen=True)
class Departure:
    """The layer where an engine leaves the simulation.

    Attributes
    ----------
    tap, layer
        Its names.
    share
        Share of its elements that are within a step of the simulation on the engine's own inputs.
    fault
        What was simulated that reproduces the engine, in words; None where nothing did.
    explained
        Share of the elements within a step with that fault.
    cure
        What to do about it.
    """

    tap: str
    layer: str
    share: float
    fault: str | None
    explained: float
    cure: str


@dataclass(frozen=True)
class Fault:
    """One thing that engines do wrong: what it is called, what to do, and what the layer's output is with it."""

    words: str
    cure: str
    output: Callable[[], Tensor | None]


@dataclass(eq=False)
class _Seen:
    """One tap's comparison, over batches."""

    near: int = 0
    count: int = 0

    @property
    def share(self) -> float:
        return self.near / max(self.count, 1)


def shares(study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None) -> dict[str, float]:
    """By tap, the share of elements within a step of the simulation on the engine's own inputs, in execution order.

    Raises
    ------
    DataError
        If the lane has no tap of the network, or a tensor of another shape.
    """
    seen: dict[str, _Seen] = {}
    for given in lane.run(study.evaluation, limit=limit):
        for step, simulated, engine, _ in walk(study.graph, given, plan):
            found = seen.setdefault(step.name, _Seen())
            near = explained(simulated, engine, plan.params(step.name))
            found.near += int(near.sum())
            found.count += near.numel()
    if not seen:
        raise DataError(f"{lane.name} has none of the network's taps: align its names first, or make it with this study's graph.")
    return {name: found.share for name, found in seen.items()}


def departure(study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None) -> Departure | None:
    """The first layer where the engine leaves the simulation by more than rounding explains; None if it never does."""
    found = shares(study, lane, plan, limit=limit)
    first = next((name for name, share in found.items() if share < EXPLAINED), None)
    if first is None:
        return None
    given = next(iter(lane.run(study.evaluation, limit=1)))
    step, simulated, engine, inputs = next(each for each in walk(study.graph, given, plan) if each[0].name == first)
    params = plan.params(first)
    plain = float(explained(simulated, engine, params).double().mean())
    best: tuple[float, Fault | None] = plain, None
    with execution(study.graph.device):
        for fault in faults(study.graph, step, inputs, plan, simulated, engine):
            output = fault.output()
            share = 0.0 if output is None else float(near_enough(output, engine, params).double().mean())
            if share > best[0]:
                best = share, fault
    share, named = best
    if named is None or share < NAMED_SHARE or 1.0 - share > NAMED_PART * (1.0 - plain):
        cure = "Look at this layer in the engine: no fault that was tried reproduces what it computes."
        return Departure(first, step.layer, found[first], None, plain, cure)
    return Departure(first, step.layer, found[first], named.words, share, named.cure)


def causes(
    study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None, scores: np.ndarray | None = None
) -> tuple[list[Cause], Interval | None]:
    """``engine-mismatch`` where the engine leaves the simulation, and what that costs in score.

    Parameters
    ----------
    scores
        Per sample, of the simulated lane on the same batches; they are computed where they are not given.
    """
    found = departure(study, lane, plan, limit=limit)
    gain = lost(study, lane, plan, limit=limit, scores=scores)
    if found is None:
        return [], gain
    what = found.fault or "does something that no fault tried here reproduces"
    evidence = (
        f"{lane.name} leaves the simulation at {found.tap}: on the engine's own inputs {found.share:.1%} of its elements are "
        f"within a step, and all layers before it agree. It {what}"
        + (f", which explains {found.explained:.1%}." if found.fault else ".")
    )
    remedy = Remedy("fix-input", found.layer, found.cure)
    return [Cause("engine-mismatch", found.layer, found.tap, evidence, remedy, gain)], gain


def plan_at(study: Study, bits: int) -> Plan:
    """The plan of the simulation that an engine's lane of that width is compared with."""
    if bits >= 32:
        return FLOAT
    return study.lane("int16") if bits == 16 and study.narrow != "int16" else study.plan


def side_by_side(study: Study, *engines: EngineLane, limit: int | None = None) -> Scores:
    """Scores of float, and of every engine's lane beside its simulation, on the same samples.

    Raises
    ------
    DataError
        If an engine's outputs are not known.
    """
    simulated = {f"simulated int{e.bits}": plan_at(study, e.bits) for e in engines if e.bits < 32}
    scores = dict(study.evaluate({"float": FLOAT, **simulated}, batches=limit, progress=False).lanes)
    for engine in engines:
        rows = []
        for given in engine.run(study.evaluation, limit=limit):
            if given.outputs is None:
                raise DataError(f"{engine.name} did not write the network's outputs: there is no score to be had of it.")
            batch = given.batch
            float_outputs = run_lanes(study.graph, [SimulatedLane("float")], batch.inputs)["float"]
            rows.append(score_batch(study.metric, given.outputs, batch.targets, float_outputs, batch.size))
        scores[engine.name] = np.concatenate(rows)
    return Scores(study.metric_name, scores)


def lost(
    study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None, scores: np.ndarray | None = None
) -> Interval | None:
    """Score of the simulation less that of the engine, paired; None where the engine's outputs are not known."""
    engine, simulated = [], []
    for given in lane.run(study.evaluation, limit=limit):
        if given.outputs is None:
            return None
        batch = given.batch
        outputs = run_lanes(study.graph, [SimulatedLane("float", FLOAT), SimulatedLane("plan", plan)], batch.inputs)
        arguments = (batch.targets, outputs["float"], batch.size)
        engine.append(score_batch(study.metric, given.outputs, *arguments))
        simulated.append(score_batch(study.metric, outputs["plan"], *arguments))
    if not engine:
        return None
    return paired_interval(np.concatenate(simulated) if scores is None else scores, np.concatenate(engine))


def walk(graph: Graph, given: EngineBatch, plan: Plan) -> Iterator[tuple[Step, Tensor, Tensor, list[Tensor]]]:
    """Steps that the engine has a tensor of: the step, its simulation on the engine's inputs, the engine's, and the inputs.

    Where the engine has none (fused, not written), the simulation's goes on to the next step.
    """
    values: dict[int, Any] = {}
    placed = place_inputs(graph, given.batch.inputs)
    for step in graph.steps:
        if step.kind == "output":
            return
        inputs = [placed[step.argument]] if step.argument is not None else [values[i] for i in step.inputs]
        with execution(graph.device):
            value = simulate(graph, step, inputs, plan)
        engine = given.taps.get(step.name) if step.quantized else None
        if engine is not None:
            held = engine.values.to(graph.device)
            if held.shape != value.shape:
                raise DataError(
                    f"{step.name} is {tuple(held.shape)} in the engine and {tuple(value.shape)} in the network: align the lane "
                    "first."
                )
            yield step, value, held, inputs
            value = held
        values[step.index] = value
        for i in {*step.inputs, step.index}:
            if graph.last_use[i] <= step.index:
                values.pop(i, None)


def simulate(graph: Graph, step: Step, inputs: list[Any], plan: Plan) -> Any:
    """The step's value in the plan's lane on these inputs."""
    if step.weight is not None:
        y = step.call(inputs[0], lane_weight(graph, plan, step.weight), lane_bias(graph, step, plan))
        accumulator = decide(step, plan, graph).accumulator
        if accumulator is not None:
            y = wrap_around(y, _product(*accumulator[:2]), accumulator[2], _axis(step, accumulator[1]))
    else:
        y = step.call(*(x.contiguous() if step.kind == "float" and isinstance(x, Tensor) else x for x in inputs))
    if not step.quantized:
        return y
    fresh = y.clone() if any(isinstance(x, Tensor) and x.data_ptr() == y.data_ptr() for x in inputs) else y
    return finish_value(step, fresh, plan.params(step.name), ("",), None)


def explained(simulated: Tensor, engine: Tensor, params: QuantParams | None) -> Tensor:
    """Where rounding explains the engine's value: within a step of the simulation's, and on the grid."""
    near = near_enough(simulated, engine, params)
    return near if params is None else near & on_grid(engine, params)


def near_enough(simulated: Tensor, engine: Tensor, params: QuantParams | None) -> Tensor:
    """Where the engine is within a step of the simulation, booleans of the tensor's shape."""
    apart = (simulated.double() - engine.double()).abs()
    if params is None:
        return apart <= FLOAT_TOLERANCE * simulated.double().square().mean().sqrt().clamp(min=1e-30)
    return apart <= 1.01 * _steps(params, apart)


def faults(graph: Graph, step: Step, inputs: list[Any], plan: Plan, simulated: Tensor, engine: Tensor) -> Iterator[Fault]:
    """What engines are known to do wrong, each with what the layer's output then is."""
    if step.weight is not None:
        yield from _of_weights(graph, step, inputs, plan)
    if step.act[0] > -np.inf or step.act[1] < np.inf:
        free = replace(step, act=(-np.inf, np.inf))
        yield Fault(
            "leaves out the activation",
            "Check that the engine fuses this layer's activation.",
            lambda: finish_value(free, _sums(graph, step, inputs, plan), plan.params(step.name), ("",), None),
        )
    yield _in_float(graph, step, inputs, plan, engine)
    yield _scaled(simulated, engine)
    if simulated.ndim > 1:
        yield _swapped(step, simulated, engine)
    if simulated.ndim == 4:
        n, c, h, w = simulated.shape
        yield Fault(
            "holds its channels last (NHWC) where the network has them first",
            "Transpose the engine's tensor, or tell the reader its layout.",
            lambda: simulated.permute(0, 2, 3, 1).reshape(n, c, h, w),
        )


def _of_weights(graph: Graph, step: Step, inputs: list[Any], plan: Plan) -> Iterator[Fault]:
    weight, bias = lane_weight(graph, plan, step.weight or ""), lane_bias(graph, step, plan)
    params = plan.params(step.name)

    def output(other: Tensor | None) -> Tensor:
        return finish_value(step, step.call(inputs[0], weight, other), params, ("",), None)

    source, grid = plan.params(graph.steps[step.inputs[0]].tap), plan.params(step.weight)
    if bias is not None:
        yield Fault("drops the bias", "Give the engine this layer's bias.", lambda: output(None))
    if source is None or grid is None or source.axis is not None or grid.axis not in (None, step.weight_axis):
        return
    scale = _product(source, grid).to(graph.device)
    if bias is not None:
        for bits in (32, 16):
            limit = 2.0 ** (bits - 1)
            codes = torch.round(bias.double() / scale)
            beyond = (codes < -limit) | (codes > limit - 1)
            if not bool(beyond.any()):
                continue
            how = {
                "saturate": codes.clamp(-limit, limit - 1),
                # what a float becomes that is cast to an integer too narrow for it, on most processors
                "overflow to the most negative integer": torch.where(beyond, -limit, codes),
                "wrap around": torch.remainder(codes + limit, 2 * limit) - limit,
            }
            for what, held in how.items():
                yield Fault(
                    f"holds the bias in {bits} bits at the product of the input's and the weight's scale, where "
                    f"{int(beyond.sum())} of {bias.numel()} entries do not fit and {what}",
                    "Keep the bias of this layer in float or in more bits, or switch off the optimization that turns it into an "
                    "integer (in ONNX Runtime: WeightBiasQuantization).",
                    lambda held=held: output((held * scale).to(bias.dtype)),  # type: ignore[misc]
                )
    if step.kind in ACCUMULATING:
        axis = _axis(step, grid)
        shaped = scale if axis is None else scale.view([-1 if d == axis else 1 for d in range(len(step.shape))])
        for bits in _ACCUMULATORS:
            limit = 2.0 ** (bits - 1)
            sums = step.call(inputs[0], weight, bias).double()
            if float((sums / shaped).abs().max()) < limit:
                continue
            clamped = torch.minimum(torch.maximum(sums, -limit * shaped), (limit - 1) * shaped).float()
            wrapped = wrap_around(sums.float(), scale, bits, axis)
            for what, value in (("saturates", clamped), ("wraps around", wrapped)):
                yield Fault(
                    f"sums up in an accumulator of {bits} bits, which {what}",
                    "Use a wider accumulator in this layer, or smaller weights and inputs (another scale).",
                    lambda value=value: finish_value(step, value.clone(), params, ("",), None),  # type: ignore[misc]
                )


def _sums(graph: Graph, step: Step, inputs: list[Any], plan: Plan) -> Tensor:
    """What the step gives before activation and rounding."""
    if step.weight is None:
        return step.call(*inputs).clone()  # type: ignore[no-any-return]
    return step.call(inputs[0], lane_weight(graph, plan, step.weight), lane_bias(graph, step, plan))  # type: ignore[no-any-return]


def _in_float(graph: Graph, step: Step, inputs: list[Any], plan: Plan, engine: Tensor) -> Fault:
    def output() -> Tensor | None:
        params = plan.params(step.name)
        if params is None or float(on_grid(engine, params).double().mean()) > 0.9:
            return None  # what lies on the grid was rounded
        return simulate(graph, step, inputs, FLOAT)  # type: ignore[no-any-return]

    cure = "Check that the engine quantizes this layer, or leave it out of the plan."
    return Fault("runs in float: its values lie between the grid's", cure, output)


def on_grid(values: Tensor, params: QuantParams) -> Tensor:
    """Where the values are whole steps of the grid."""
    steps = values.double() / _steps(params, values)
    return (steps - steps.round()).abs() < 0.02


def _steps(params: QuantParams, values: Tensor) -> Tensor:
    """The grid's step, float64, in a shape that goes with the values'."""
    scale = params.scale.double().to(values.device)
    return scale if params.axis is None else scale.view([-1 if d == params.axis else 1 for d in range(values.ndim)])


def _scaled(simulated: Tensor, engine: Tensor) -> Fault:
    energy = float(simulated.double().square().sum())
    factor = float((simulated.double() * engine.double()).sum()) / max(energy, 1e-30)

    def output() -> Tensor | None:
        return simulated * factor if abs(factor - 1.0) > 0.02 and factor > 0.0 else None

    return Fault(
        f"is off by a constant factor of {factor:.4g}",
        "Compare the scale that the engine uses for this tensor with the plan's (some engines store its reciprocal).",
        output,
    )


def _swapped(step: Step, simulated: Tensor, engine: Tensor) -> Fault:
    def output() -> Tensor | None:
        rows = [value.movedim(step.channel_axis, 0).flatten(1).double() for value in (simulated, engine)]
        a, b = (row - row.mean(1, keepdim=True) for row in rows)
        cost = -(b @ a.T) / (b.norm(dim=1)[:, None] * a.norm(dim=1) + 1e-30)
        _, columns = linear_sum_assignment(cost.cpu().numpy())
        if (columns == np.arange(len(columns))).all():
            return None
        return simulated.index_select(step.channel_axis, torch.as_tensor(columns, device=simulated.device))

    return Fault("has its channels in another order", "Check the order of this layer's output channels in the engine.", output)


def _product(source: QuantParams, weight: QuantParams) -> Tensor:
    return source.scale.double() * weight.scale.double()


def _axis(step: Step, weight: QuantParams) -> int | None:
    return None if weight.axis is None else step.channel_axis
