"""Where: every tensor's own loss, what sparing it recovers, and which of them are suspects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qkit.capture import capture
from qkit.diagnosis.causes import Subject
from qkit.diagnosis.experiments import Bench
from qkit.lanes import quantize_weight
from qkit.measure import decibels
from qkit.metrics import Interval
from qkit.plan import FLOAT, Plan

#: Suspects to put to interventions, and to look at by noise alone where no tensor stands out by its score.
SUSPECTS, BY_NOISE = 12, 6


@dataclass(frozen=True)
class Place:
    """One tensor's part: `alone` is what it loses as the only quantized one, `spared` what the plan gains without it."""

    tensor: str
    alone: Interval
    spared: Interval

    @property
    def weight(self) -> float:
        """For ranking: the greater of both."""
        return max(self.alone.value, self.spared.value)

    @property
    def suspect(self) -> bool:
        """Whether either is more than chance."""
        return self.alone.low > 0.0 or self.spared.low > 0.0


def subjects(bench: Bench, plan: Plan) -> dict[str, Subject]:
    """Every tensor of the plan, by name, in execution order."""
    study = bench.study
    seen = study.observe(progress=bench.progress)
    floats = capture(study.graph, study.calibration, {}, limit=1, progress=False).floats
    crest = {}
    for name, sums in floats.items():
        rms = np.sqrt(np.maximum(sums.squared / sums.count, 1e-300))
        crest[name] = np.maximum(np.abs(sums.least), np.abs(sums.greatest)) / rms
    found = {}
    for tensor, grid in plan.grids.items():
        step = study.graph.step(tensor)
        found[tensor] = Subject(
            study.graph, step, tensor, grid, seen, plan, crest.get(step.name) if tensor == step.name else None
        )
    return found


def noise(subject: Subject) -> float:
    """Signal to quantization noise ratio of the tensor alone, in dB."""
    params = subject.grid.params
    if subject.is_weight:
        error = (quantize_weight(subject.weight, params) - subject.weight).double().square().sum()
        return float(decibels(float(subject.weight.double().square().sum()), float(error)))
    return subject.histogram.error(params).sqnr if params.axis is None else float("inf")


def places(bench: Bench, plan: Plan, tensors: Sequence[str]) -> list[Place]:
    """Score each tensor quantized alone, and spared; the greatest effect first."""
    only = {tensor: plan.only([tensor]) for tensor in tensors}
    spared = {tensor: plan.without([tensor]) for tensor in tensors}
    bench.scores({"float": FLOAT, "plan": plan})
    bench.scores(only, FLOAT, what="each tensor alone")
    bench.scores(spared, plan, what="each tensor spared")
    found = [Place(t, bench.gain(FLOAT, only[t]), bench.gain(spared[t], plan)) for t in tensors]
    return sorted(found, key=lambda place: -place.weight)


def suspects(found: Sequence[Place], ratios: Mapping[str, float]) -> list[str]:
    """Tensors that cost something, the worst first; where none does by itself, the noisiest."""
    named = [place.tensor for place in found if place.suspect][:SUSPECTS]
    return named or sorted((p.tensor for p in found), key=ratios.__getitem__)[:BY_NOISE]
