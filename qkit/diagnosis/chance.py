"""Whether a gain is more than luck: rounding is dice, and any other step throws them again.

A tensor whose rounding costs score loses now more and now less as its step varies by a few percent, so one measured gain of a
changed step proves nothing of the step. A remedy that takes most of the tensor's rounding error away explains its gain. Any other
has to gain on average over several steps near its own, against the plan as it is with its step varied alike.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor

from qkit.diagnosis.causes import Subject
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.remedies import Remedy
from qkit.execution.lanes import quantize_weight
from qkit.execution.statistics import Interval, paired_interval
from qkit.quant.memory import by_channel
from qkit.quant.plan import Grid, Plan

#: What a step is multiplied by; never less than 1, so that nothing is clipped that was not.
_FACTORS = (1.0, 1.015, 1.03, 1.045, 1.06)
#: A remedy that takes this share of a tensor's rounding error away explains what it gains.
_EXPLAINS = 0.5
#: Remedies that change how values round, and nothing else.
_STEPS = frozenset((
    "free-scale", "clip-activation", "clip-weights", "recalibrate", "affine-activation", "per-channel-weights", "widen-range",
    "cross-layer-equalization", "smooth-scales",
))  # fmt: skip


def explained(subject: Subject, remedy: Remedy) -> bool:
    """Whether the remedy does more to the tensor's error than throw the dice again."""
    other = remedy.grids.get(subject.tensor)
    if subject.tensor in remedy.factors and other is not None and subject.grid.params.axis is None:
        steps = float(other.params.scale) * np.asarray(remedy.factors[subject.tensor])
        return 1.0 - float(np.square(steps).mean()) / float(subject.grid.params.scale) ** 2 >= _EXPLAINS
    chosen = subject.grid.codes is not None  # such a weight does not round to nearest
    return remedy.kind not in _STEPS or other is None or chosen or relief(subject, other) >= _EXPLAINS


def relief(subject: Subject, other: Grid) -> float:
    """Share of a tensor's error that another grid takes away; negative where it adds to it.

    A weight's error is that of its channels, each relative to its own energy, since each makes an output of its own.
    """
    if subject.is_weight:
        before, after = (_of_channels(subject, grid) for grid in (subject.grid, other))
    elif subject.grid.params.axis is None and other.params.axis is None:
        before, after = (subject.histogram.error(grid.params).total for grid in (subject.grid, other))
    else:
        return 1.0
    return 1.0 - after / before if before > 0.0 else 0.0


def _of_channels(subject: Subject, grid: Grid) -> float:
    def energies(value: Tensor) -> np.ndarray:
        return np.asarray(by_channel(value, subject.op.weight_axis or 0).double().square().sum(1).cpu())

    weight = subject.weight
    noise, signal = energies(quantize_weight(weight, grid.params, grid.codes) - weight), energies(weight)
    used = signal > 0.0
    return float((noise[used] / signal[used]).mean()) if used.any() else 0.0


def steady_gain(bench: Bench, plan: Plan, tensor: str, remedy: Remedy) -> Interval:
    """What a remedy gains on average over steps near its own, against the plan with the tensor's step varied alike."""
    after = [_varied(remedy.plan(plan), [name for name in remedy.grids if name in plan.grids], factor) for factor in _FACTORS]
    before = [_varied(plan, [tensor], factor) for factor in _FACTORS]
    bench.scores({str(i): p for i, p in enumerate([*after, *before])}, plan, what="steps varied")
    first, second = (np.mean([bench.expected(varied) for varied in plans], axis=0) for plans in (after, before))
    return paired_interval(first, second, ranks=bench.study.metric.whole is None)


def _varied(plan: Plan, tensors: list[str], factor: float) -> Plan:
    """The plan with these tensors' steps multiplied."""
    if factor == 1.0:
        return plan
    grids = {}
    for name in tensors:
        grid = plan.grids[name]
        grids[name] = grid.at(replace(grid.params, scale=(grid.params.scale.double() * factor).float()), "varied")
    return plan.with_grids(grids)
