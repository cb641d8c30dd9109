"""Where an engine leaves the simulation, and by which fault, as causes of a diagnosis.

The comparison itself is `qkit.engines.compare`'s: each layer is simulated on the *engine's own* inputs, the first that differs by
more than rounding is where the engine leaves the simulation, and the fault that reproduces what the engine computed there is
named; if none does, that is said. Here it becomes a cause, with what it costs in score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from qkit.diagnosis.candidates import Cause, CauseKind
from qkit.diagnosis.remedies import Remedy
from qkit.engines.compare import compare, score
from qkit.engines.lane import EngineLane
from qkit.engines.tap_comparison import Comparison
from qkit.errors import DataError
from qkit.execution.scores import Scores
from qkit.execution.statistics import Interval, Samples
from qkit.graph.running import ACCUMULATING
from qkit.quant.grids import QuantParams
from qkit.quant.plan import FLOAT, Plan

if TYPE_CHECKING:
    from qkit.engines.traces.aligned import Alignment
    from qkit.study import Study


#: An engine ran another network if this part of the layers with weights, of which there are some, computes something else.
_MOST, _SOME = 0.75, 3


@dataclass(frozen=True)
class Departure:
    """The layer where an engine leaves the simulation.

    Attributes
    ----------
    tap, layer
        Its names.
    share
        Share of its elements that are within a step of the simulation on the engine's own inputs.
    kind, fault
        What was simulated that reproduces the engine, as a word of `qkit.engines.faults` and in a phrase; None where nothing did.
        "grid" where the engine says itself that it has another grid than the plan.
    explained
        Share of the elements within a step with that fault.
    cure
        What to do about it.
    """

    tap: str
    layer: str
    share: float
    kind: str | None
    fault: str | None
    explained: float
    cure: str


def shares(study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None) -> dict[str, float]:
    """By tap, the share of elements within a step of the simulation on the engine's own inputs, in execution order.

    Raises
    ------
    DataError
        If the lane has no tap of the network, or a tensor of another shape.
    """
    found = compare(study, lane, plan=plan, batches=limit, progress=False)
    return {tap: sums.share for tap, sums in found.taps.items()}


def departure(study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None) -> Departure | None:
    """The first layer where the engine leaves the simulation by more than rounding explains; None if it never does."""
    return departure_of(study, compare(study, lane, plan=plan, batches=limit, progress=False))


def departure_of(study: Study, found: Comparison) -> Departure | None:
    """What a comparison says of the first layer that leaves the simulation, by its values or by its grid."""
    first = next((tap for tap in found.taps if tap in found.grids or found.differs(tap)), None)
    if first is None:
        return None
    layer, share = study.graph.operation(first).layer, found.taps[first].share
    fault = found.faults.get(first)
    if first in found.grids and (fault is None or fault.kind == "rounding"):
        words = _grids_in_words(found.plan.params(first), found.grids[first])
        cure = "Give the engine the plan's grids, or compare it with the plan that it runs (study.with_plan)."
        return Departure(first, layer, share, "grid", words, share, cure)
    if fault is None:
        cure = "Look at this layer in the engine: no fault that was tried reproduces what it computes."
        return Departure(first, layer, share, None, None, share, cure)
    return Departure(first, layer, share, fault.kind, fault.words, fault.share, fault.cure)


def causes(study: Study, lane: EngineLane, plan: Plan, *, limit: int | None = None) -> tuple[list[Cause], Interval | None]:
    """``engine-mismatch`` where the engine leaves the simulation, and what it loses against the simulation, paired.

    Images in another order than the kit's, and another network, are ``trace-alignment``. The loss is None where the engine's
    outputs are not known.
    """
    comparison = compare(study, lane, plan=plan, batches=limit, scored=True, progress=False)
    scores = comparison.scores
    loss = None if scores is None else scores.expected_loss(lane.name, against="simulated")
    found = departure_of(study, comparison)
    if found is None:
        return [], loss
    differ, weighted = _unrelated(comparison)
    if weighted >= _SOME and differ >= _MOST * weighted:
        evidence = (
            f"at {differ} of {weighted} layers with weights, {found.tap} the first, {lane.name} has values that have nothing to "
            "do with what the network gives on the engine's own inputs: it ran another network, or other weights."
        )
        cure = "Check that the engine ran this network with these weights, and that its tensors go by the right names."
        return [Cause("trace-alignment", found.layer, found.tap, evidence, Remedy("fix-input", "", cure), loss)], loss
    what = found.fault or "does something that no fault tried here reproduces"
    evidence = (
        f"{lane.name} leaves the simulation at {found.tap}: on the engine's own inputs {found.share:.1%} of its elements are "
        f"within a step, and all layers before it agree. It {what}"
        + (f", which explains {found.explained:.1%}." if found.fault else ".")
    )
    if found.kind == "grid":
        evidence = f"{lane.name} leaves the simulation at {found.tap}, and all layers before it agree. It {found.fault}."
    kind: CauseKind = "trace-alignment" if found.kind == "sample-order" else "engine-mismatch"
    remedy = Remedy("fix-engine", found.layer, found.cure)
    return [Cause(kind, found.layer, found.tap, evidence, remedy, loss)], loss


def causes_of_alignment(alignment: Alignment) -> list[Cause]:
    """The errors of a trace as causes of the kind ``trace-alignment``; they have no gain."""
    return [
        Cause(
            "trace-alignment", problem.tap.partition(":")[0], problem.tap or problem.tensor,
            f"{problem.tensor or 'The trace'}: {problem.found} (confidence {problem.confidence:.2f})",
            Remedy("fix-input", "", problem.remedy),
        )
        for problem in alignment.errors
    ]  # fmt: skip


def _unrelated(found: Comparison) -> tuple[int, int]:
    """At how many layers with weights the engine computes something else altogether, and how many there are."""
    weighted = [sums for sums in found.taps.values() if sums.kind in ACCUMULATING]
    return sum(sums.unrelated for sums in weighted), len(weighted)


def _grids_in_words(engine: QuantParams | None, planned: QuantParams | None) -> str:
    def words(params: QuantParams | None) -> str:
        if params is None:
            return "none"
        return f"{float(params.lo.min()):.4g} to {float(params.hi.max()):.4g} in steps of {float(params.scale.max()):.4g}"

    return f"has a grid of its own there ({words(engine)}) where the plan has another ({words(planned)})"


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
        If an engine's outputs are not known, or the engines have different samples.
    """
    lanes: dict[str, Samples] = {}
    for engine in engines:
        found = score(study, engine, plan=plan_at(study, engine.bits), batches=limit, progress=False)
        if lanes and len(lanes["float"]) != found.n:
            raise DataError(
                f"{engine.name} has {found.n} samples, the engines before it {len(lanes['float'])}: "
                "compare engines that ran on the same images."
            )
        names = {"float": "float", "simulated": f"simulated int{engine.bits}", engine.name: engine.name}
        lanes |= {names[name]: values for name, values in found.samples.items() if engine.bits < 32 or name != "simulated"}
    if not engines:
        return study.evaluate({"float": FLOAT}, batches=limit, progress=False)
    return Scores.of(study.metric, lanes)
