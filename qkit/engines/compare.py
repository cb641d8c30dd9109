"""Where an engine leaves the simulation, tap by tap, and why as far as an experiment tells.

Two comparisons answer different questions. *Accumulated*: both run from the network's input, so a difference at a tap may come
from any layer before it; one step at the start is amplified on the way. *From equal inputs*: the kit's step runs on the engine's
own values of that step's inputs, so a difference at a tap arises there. A tap that the engine does not yield is computed from the
nearest ones that it does.

Where the two differ by more than rounding explains, the kit computes the step again as engines are known to (biases in 32 bits,
no activation, other rounding), on the same inputs; what brings the codes together is the reason that is given.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from qkit.engines.comparison import Comparison, TapSums
from qkit.engines.explain import Explanations
from qkit.engines.lane import EngineBatch, EngineLane, EngineTensor
from qkit.errors import DataError, QkitError
from qkit.graph import Graph
from qkit.lanes import Lane, finish_value, run_lanes
from qkit.loading import batches as batches_of
from qkit.metrics import Scores, score_batch
from qkit.numerics import QuantParams, QuantSpec
from qkit.plan import Grid, Plan
from qkit.progress import track
from qkit.steps import Step
from qkit.study import Study

logger = logging.getLogger(__name__)


def compare(
    study: Study,
    lane: EngineLane,
    *,
    plan: Plan | None = None,
    batches: int | None = 1,
    data: Literal["evaluation", "calibration"] = "evaluation",
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

    Raises
    ------
    DataError
        If the lane yields no batch, or a tensor of another shape than the tap's.
    QkitError
        If none of the network's taps is among the lane's.
    """
    loader = {"evaluation": study.evaluation, "calibration": study.calibration}.get(data)
    if loader is None:
        raise QkitError(f"data is 'evaluation' or 'calibration', not {data!r}.")
    graph = study.graph
    believed = plan if plan is not None else getattr(lane, "plan", None)
    used: Plan = study.plan if believed is None else believed
    sums: dict[str, TapSums] = {}
    notes: list[str] = []
    explanations: Explanations | None = None
    source = batches_of(loader, batches)
    samples = 0
    try:
        for batch in track(
            _Sized(lane.run(loader, limit=batches), source), f"comparing {lane.name}", unit="batch", show=progress
        ):
            if explanations is None:
                used, said = _engine_grids(graph, used, batch, lane.name)
                notes.extend(said)
                explanations = Explanations(graph, used)
            _accumulated(graph, used, batch, sums)
            _from_equal_inputs(graph, used, batch, sums, explanations)
            samples += batch.batch.size
    except KeyboardInterrupt:
        if not samples:
            raise
        notes.append(f"interrupted: the figures are those of {samples} samples")
        logger.warning("the comparison was interrupted: its figures are those of %d samples.", samples)
    if explanations is None:
        raise DataError(f"the lane {lane.name!r} yielded no batch: check its loader or its files.")
    missing = tuple(tap for tap in graph.taps if tap not in sums)
    return Comparison(lane.name, used, sums, samples, explanations.reasons(sums), missing, (*lane.notes, *notes))


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
    rows: list[dict[str, np.ndarray]] = []
    source = batches_of(study.evaluation, batches)
    for found in track(_Sized(lane.run(study.evaluation, limit=batches), source), "evaluating", unit="batch", show=progress):
        if found.outputs is None:
            raise QkitError(f"the lane {lane.name!r} does not yield the network's outputs, so that it has no score.")
        outputs = {**run_lanes(study.graph, lanes, found.batch.inputs), lane.name: found.outputs}
        reference, size = outputs["float"], found.batch.size
        rows.append({n: score_batch(study.metric, y, found.batch.targets, reference, size) for n, y in outputs.items()})
    if not rows:
        raise DataError(f"the lane {lane.name!r} yielded no batch: check its loader or its files.")
    return Scores(study.metric_name, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]})


def _engine_grids(graph: Graph, plan: Plan, batch: EngineBatch, name: str) -> tuple[Plan, list[str]]:
    """The plan with the engine's own grids where they differ, and what is to be said about that."""
    known = [tap for tap in graph.taps if tap in batch.taps]
    if not known:
        theirs = ", ".join(list(batch.taps)[:3]) or "none at all"
        raise QkitError(f"the lane {name!r} has none of the network's taps (it has {theirs}): map its names to taps first.")
    changed: dict[str, Grid] = {}
    for tap in known:
        params = batch.taps[tap].params
        if params is not None and params != plan.params(tap):
            spec = plan.grids[tap].spec if tap in plan.grids else QuantSpec(bits=params.bits, symmetric=False)
            changed[tap] = Grid(spec, params, "engine")
    if not changed:
        return plan, []
    few = ", ".join(list(changed)[:3]) + (" …" if len(changed) > 3 else "")
    return plan.with_grids(changed), [
        f"{len(changed)} taps have other grids in the engine than in the plan; its own are taken: {few}"
    ]


def _accumulated(graph: Graph, plan: Plan, batch: EngineBatch, sums: dict[str, TapSums]) -> None:
    def look(step: Step, values: Mapping[str, Tensor]) -> None:
        tensor = batch.taps.get(step.name)
        if tensor is not None:
            engine = _placed(step, tensor, values["float"])
            found = sums.setdefault(step.name, TapSums(step.kind))
            found.add_accumulated(engine, values["float"], values["simulated"], _scale(plan.params(step.name), engine))

    run_lanes(graph, [Lane("float"), Lane("simulated", plan)], batch.batch.inputs, observe=look)


def _from_equal_inputs(
    graph: Graph, plan: Plan, batch: EngineBatch, sums: dict[str, TapSums], explanations: Explanations
) -> None:
    """One lane whose every value is replaced by the engine's, after it was compared."""

    def finish(step: Step, y: Tensor, params: QuantParams | None, lanes: tuple[str, ...], reference: Tensor | None) -> Tensor:
        tensor = batch.taps.get(step.name)
        if tensor is None:
            return finish_value(step, y, params, lanes, reference)
        engine = _placed(step, tensor, y)
        simulated = finish_value(step, y.clone(), params, lanes, reference)
        scale = _scale(params, engine)
        if sums[step.name].add_local(engine, simulated, scale) and params is not None and scale is not None:
            explanations.tried(step, y, engine, params, scale)
        return engine

    run_lanes(graph, [Lane("engine", plan)], batch.batch.inputs, finish=finish)


def _placed(step: Step, tensor: EngineTensor, like: Tensor) -> Tensor:
    if tensor.values.shape != like.shape:
        raise DataError(
            f"{step.name} has shape {tuple(tensor.values.shape)} in the engine and {tuple(like.shape)} in the network: the "
            "engine ran another network or another batch."
        )
    values = tensor.values.to(like.device, torch.float32)
    # copied, since a step may work in place on what it reads; images in the memory layout that the kit's own lanes have
    return values.clone(memory_format=torch.channels_last if values.ndim == 4 else torch.contiguous_format)


def _scale(params: QuantParams | None, like: Tensor) -> Tensor | None:
    if params is None:
        return None
    scale = params.scale.to(like.device).double()
    if params.axis is None:
        return scale
    shape = [1] * like.ndim
    shape[params.axis] = -1
    return scale.view(shape)


__all__ = ["Comparison", "compare", "score"]
