"""Where: every tensor's own loss, what sparing it recovers, and which of them are suspects."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qkit.diagnosis.causes import Subject
from qkit.diagnosis.experiments import Bench
from qkit.execution.lanes import Lane, quantize_weight, run_lanes
from qkit.execution.loading import batches
from qkit.execution.statistics import Interval
from qkit.graph.operation import Operation
from qkit.quant.memory import by_channel
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.sqnr import sqnr

#: Suspects to put to interventions, and to look at by noise alone where no tensor stands out by its score.
SUSPECTS, BY_NOISE = 12, 6
#: Values of a channel to take a percentile of.
_SAMPLED = 8192


@dataclass(frozen=True)
class Place:
    """One tensor's part: `alone` is what it loses as the only quantized one, `spared` what the plan gains without it."""

    tensor: str
    alone: Interval
    spared: Interval
    tolerance: float

    @property
    def weight(self) -> float:
        """For ranking: the greater of both."""
        return max(self.alone.value, self.spared.value)

    @property
    def suspect(self) -> bool:
        """Whether either is more than chance."""
        return self.alone.sure(self.tolerance) or self.spared.sure(self.tolerance)


def subjects(bench: Bench, plan: Plan) -> dict[str, Subject]:
    """Every tensor of the plan, by name, in execution order."""
    study = bench.study
    seen = study.observe(progress=bench.progress)
    means, typical = _channels(bench)
    from qkit.ptq.smoothing import norms  # loads all of post-training calibration

    scalable = norms(study.model, study.graph)[0].keys()
    found = {}
    for tensor, grid in plan.grids.items():
        op = study.graph.operation(tensor)
        if tensor == op.weight:
            output = seen[op.name].histogram.mean_square ** 0.5 if op.name in seen else 0.0
            mean = means.get(op.inputs[0])
            found[tensor] = Subject(study.graph, op, tensor, grid, seen, plan, typical, mean, output)
        else:
            found[tensor] = Subject(study.graph, op, tensor, grid, seen, plan, typical, scalable=scalable)
    return found


def _channels(bench: Bench) -> tuple[dict[int, Tensor], dict[str, np.ndarray]]:
    """Of the first calibration batch: means of every operation's channels, float64 (C,), by index; `typical` by tap."""
    graph = bench.study.graph
    batch = next(iter(batches(bench.study.calibration)))
    taps: dict[str, Tensor] = {}
    typical: dict[str, np.ndarray] = {}

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        value = values["float"]
        if value.ndim > 1:
            rows = by_channel(value, op.channel_axis)
            taps[op.name] = rows.double().mean(1).cpu()
            typical[op.name] = _typical(rows)

    run_lanes(graph, [Lane("float")], batch.inputs, observe=look)
    means: dict[int, Tensor] = {}
    for op in graph.operations:
        # what shares a tap's grid is taken to share its means, unless it moves the channels: max pooling raises them a little
        if op.tap in taps and op.shape[1:2] == graph.operation(op.tap).shape[1:2]:
            means[op.index] = taps[op.tap]
    return means, typical


def _typical(rows: Tensor) -> np.ndarray:
    """99th percentile of the magnitudes of every row, float64 (C,)."""
    few = rows.abs()
    if rows.shape[1] > _SAMPLED:
        # by chance, not by stride: a stride that divides the width sees single columns of every image
        chosen = torch.randint(rows.shape[1], (_SAMPLED,), generator=torch.Generator().manual_seed(0))
        few = rows[:, chosen.to(rows.device)].abs()
    return np.asarray(few.kthvalue(max(1, math.floor(0.99 * few.shape[1])), dim=1).values.double().cpu())


def noise(subject: Subject) -> float:
    """Signal to quantization noise ratio of the tensor alone, in dB."""
    params = subject.grid.params
    if subject.is_weight:
        error = (quantize_weight(subject.weight, params, subject.grid.codes) - subject.weight).double().square().sum()
        return float(sqnr(float(subject.weight.double().square().sum()), float(error)))
    return subject.histogram.error(params).sqnr if params.axis is None else float("inf")


def places(bench: Bench, plan: Plan, tensors: Sequence[str]) -> list[Place]:
    """Score each tensor quantized alone, and spared; the greatest effect first."""
    only = {tensor: plan.only([tensor]) for tensor in tensors}
    spared = {tensor: plan.without([tensor]) for tensor in tensors}
    bench.scores({"float": FLOAT, "plan": plan})
    bench.scores(only, FLOAT, what="each tensor alone")
    bench.scores(spared, plan, what="each tensor spared")
    found = [Place(t, bench.gain(FLOAT, only[t]), bench.gain(spared[t], plan), bench.tolerance) for t in tensors]
    return sorted(found, key=lambda place: -place.weight)


def suspects(found: Sequence[Place], ratios: Mapping[str, float]) -> list[str]:
    """Tensors that cost something, the worst first; where none does by itself, the noisiest."""
    named = [place.tensor for place in found if place.suspect][:SUSPECTS]
    return named or sorted((p.tensor for p in found), key=ratios.__getitem__)[:BY_NOISE]
