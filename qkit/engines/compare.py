"""Where an engine leaves the simulation, tap by tap, and why as far as an experiment tells.

Two comparisons answer different questions. *Accumulated*: both run from the network's input, so a difference at a tap may come
from any layer before it; one step at the start is amplified on the way. *From equal inputs*: the kit's step runs on the
engine's own values of that operation's inputs (`qkit.engines.equal_inputs`), so a difference at a tap arises there. A tap that
the engine does not yield is computed from the nearest ones that it does.

Where the two differ by more than rounding explains, the kit computes the operation again as engines are known to
(`qkit.engines.faults`: biases dropped or too wide, narrow accumulators, other scales, orders, layouts, roundings), on the same
inputs; what brings the values together is the reason that is given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from qkit.engines.equal_inputs import along, placed, walk
from qkit.engines.explain import Explanations
from qkit.engines.faults import PAIRS, PAIRS_CURE
from qkit.engines.lane import EngineBatch, EngineLane
from qkit.engines.tap_comparison import Comparison, Explanation, TapSums
from qkit.errors import DataError, QkitError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches as batches_of
from qkit.execution.metrics import score_batch
from qkit.execution.scores import Scores
from qkit.execution.statistics import Samples
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.progress import track
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.plan import Grid, Plan

if TYPE_CHECKING:
    from qkit.study import Study

logger = logging.getLogger(__name__)


def compare(
    study: Study,
    lane: EngineLane,
    *,
    plan: Plan | None = None,
    batches: int | None = 1,
    data: Literal["evaluation", "calibration"] = "evaluation",
    scored: bool = False,
    progress: bool = True,
) -> Comparison:
    """An engine's lane against the simulation of a plan and against float, tap by tap.

    Parameters
    ----------
    plan
        What the engine is thought to run; by default the plan that the lane carries, else the study's. Where the lane has
        another grid at a tap than the plan, the lane's is taken, and that is said.
    batches
        How many; None for all.
    data
        Loader of the study that the lane runs over.
    scored
        Whether the lanes are scored on the way, by the study's metric, where the lane yields the network's outputs.

    Raises
    ------
    DataError
        If the lane yields no batch, none of the network's taps, or a tensor of another shape than the tap's.
    """
    loader = {"evaluation": study.evaluation, "calibration": study.calibration}.get(data)
    if loader is None:
        raise QkitError(f"data is 'evaluation' or 'calibration', not {data!r}.")
    graph = study.graph
    believed = plan if plan is not None else getattr(lane, "plan", None)
    used: Plan = study.plan if believed is None else believed
    sums: dict[str, TapSums] = {}
    grids: dict[str, QuantParams | None] = {}
    notes: list[str] = []
    explanations: Explanations | None = None
    rows: list[dict[str, Samples]] | None = [] if scored else None
    source = batches_of(loader, batches)
    samples = 0
    for batch in track(_Sized(lane.run(loader, limit=batches), source), f"comparing {lane.name}", unit="batch", show=progress):
        if explanations is None:
            before = used
            used, said = _engine_grids(graph, used, batch, lane.name)
            grids = {tap: before.params(tap) for tap in said}
            notes.extend(_said(said))
            explanations = Explanations()
        outputs = _accumulated(graph, used, batch, sums)
        for visit in walk(graph, batch, used):
            if sums[visit.op.name].add_local(visit):
                explanations.tried(visit)
        if rows is not None and batch.outputs is not None:
            rows.append(_scored(study, {**outputs, lane.name: batch.outputs}, batch))
        samples += batch.batch.size
    if explanations is None:
        raise DataError(f"the lane {lane.name!r} yielded no batch: check its loader or its files.")
    missing = tuple(tap for tap in graph.taps if tap not in sums)
    faults = explanations.found(sums)
    faults |= _saturated(study, lane, used, [tap for tap in sums if not sums[tap].agrees and tap not in faults], batches, data)
    reasons = explanations.reasons(sums, faults)
    scores = _joined(study, rows) if rows else None
    return Comparison(lane.name, used, sums, samples, reasons, missing, (*lane.notes, *notes), faults, grids, scores)


def _saturated(
    study: Study, lane: EngineLane, plan: Plan, taps: Sequence[str], batches: int | None,
    data: Literal["evaluation", "calibration"],
) -> dict[str, Explanation]:  # fmt: skip
    """Of taps that differ, those that agree as soon as the engine is told not to let products saturate."""
    other = getattr(lane, "unsaturated", None)
    if other is None or not taps:
        return {}
    again = compare(study, other, plan=plan, batches=batches, data=data, progress=False)
    return {
        tap: Explanation("accumulator", PAIRS, PAIRS_CURE, again.taps[tap].local.within_one)
        for tap in taps
        if again.taps[tap].agrees
    }


class _Sized:
    """The lane's batches with a length, for the progress bar."""

    def __init__(self, items: Iterable[EngineBatch], like: object) -> None:
        self._items, self._like = iter(items), like

    def __iter__(self) -> _Sized:
        return self

    def __next__(self) -> EngineBatch:
        return next(self._items)

    def __length_hint__(self) -> int:
        hint: int = self._like.__length_hint__()  # type: ignore[attr-defined]
        return hint


def score(
    study: Study, lane: EngineLane, *, plan: Plan | None = None, batches: int | None = None, progress: bool = True
) -> Scores:
    """Scores of float, of the simulation ("simulated") and of the engine (by its name), on the same samples.

    Raises
    ------
    QkitError
        If the lane does not yield the network's outputs.
    """
    believed = plan if plan is not None else getattr(lane, "plan", None)
    lanes = [Lane("float"), Lane("simulated", study.plan if believed is None else believed)]
    rows: list[dict[str, Samples]] = []
    for found in _answers(study, lane, batches, "evaluating", progress):
        outputs = run_lanes(study.graph, lanes, found.batch.inputs)
        rows.append(_scored(study, {**outputs, lane.name: found.outputs}, found))
    return _joined(study, rows)


def engine_samples(study: Study, lane: EngineLane, *, batches: int | None = None, progress: bool = True) -> Samples:
    """Scores of the engine alone, batch by batch: nothing is simulated, and float runs along only where the metric asks for it.

    Raises
    ------
    QkitError
        If the lane does not yield the network's outputs.
    DataError
        If the lane yields no batch, or other samples than the evaluation loader.
    """
    found: list[Samples] = []
    for made in _answers(study, lane, batches, lane.name, progress):
        batch, exact = made.batch, None
        if study.metric.needs_float(batch.targets):
            exact = run_lanes(study.graph, [Lane("float")], batch.inputs)["float"]
        found.append(score_batch(study.metric, made.outputs, batch.targets, exact, batch.size))
    return Samples.joined(found)


def _answers(study: Study, lane: EngineLane, batches: int | None, what: str, progress: bool) -> Iterator[EngineBatch]:
    """The engine's batches over the evaluation data, each with the network's outputs; at least one."""
    found: EngineBatch | None = None
    source = batches_of(study.evaluation, batches)
    for found in track(_Sized(lane.run(study.evaluation, limit=batches), source), what, unit="batch", show=progress):
        if found.outputs is None:
            raise QkitError(f"the lane {lane.name!r} does not yield the network's outputs, so that it has no score.")
        yield found
    if found is None:
        raise DataError(f"the lane {lane.name!r} yielded no batch: check its loader or its files.")


def _scored(study: Study, outputs: Mapping[str, Any], found: EngineBatch) -> dict[str, Samples]:
    size, targets, reference = found.batch.size, found.batch.targets, outputs["float"]
    return {name: score_batch(study.metric, y, targets, reference, size) for name, y in outputs.items()}


def _joined(study: Study, rows: Sequence[Mapping[str, Samples]]) -> Scores:
    return Scores.of(study.metric, {name: Samples.joined([row[name] for row in rows]) for name in rows[0]})


def _engine_grids(graph: Graph, plan: Plan, batch: EngineBatch, name: str) -> tuple[Plan, list[str]]:
    """The plan with the engine's own grids where they differ, and at which taps."""
    known = [tap for tap in graph.taps if tap in batch.taps]
    if not known:
        theirs = ", ".join(list(batch.taps)[:3]) or "none at all"
        raise DataError(f"the lane {name!r} has none of the network's taps (it has {theirs}): map its names to taps first.")
    changed: dict[str, Grid] = {}
    for tap in known:
        params = batch.taps[tap].params
        if params is not None and not _same_grid(params, plan.params(tap)):
            spec = plan.grids[tap].spec if tap in plan.grids else QuantSpec(bits=params.bits, symmetric=False)
            changed[tap] = Grid(spec, params, "engine")
    return (plan.with_grids(changed) if changed else plan), list(changed)


def _same_grid(engine: QuantParams, planned: QuantParams | None) -> bool:
    """Whether the engine's grid holds what the planned one does, at its step; its integer may be a wider one."""
    if planned is None or engine.axis != planned.axis or engine.scale.shape != planned.scale.shape:
        return False
    step = planned.scale.double()
    alike = ((engine.scale.double() - step).abs() <= 1e-4 * step).all()
    return bool(alike & (engine.lo <= planned.lo + 1.5 * step).all() & (engine.hi >= planned.hi - 1.5 * step).all())


def _said(changed: Sequence[str]) -> list[str]:
    if not changed:
        return []
    few = ", ".join(changed[:3]) + (" …" if len(changed) > 3 else "")
    return [f"{len(changed)} taps have other grids in the engine than in the plan; its own are taken: {few}"]


def _accumulated(graph: Graph, plan: Plan, batch: EngineBatch, sums: dict[str, TapSums]) -> dict[str, Any]:
    """Sums up the differences of both from the network's input on; returns the outputs of float and simulation."""

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        tensor = batch.taps.get(op.name)
        if tensor is None:
            return
        engine = placed(op, tensor, values["float"])
        params = plan.params(op.name)
        scale = None if params is None else along(params.scale.to(engine.device).double(), params.axis, engine.ndim)
        found = sums.setdefault(op.name, TapSums(op.kind))
        found.add_accumulated(engine, values["float"], values["simulated"], scale)

    return run_lanes(graph, [Lane("float"), Lane("simulated", plan)], batch.batch.inputs, observe=look)


__all__ = ["Comparison", "compare", "score"]
