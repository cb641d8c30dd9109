"""Weights whose channels or single elements differ too much to share one step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qkit.diagnosis.candidates import Candidate, CauseKind
from qkit.diagnosis.causes.subject import Subject, spread
from qkit.diagnosis.remedies import Remedy


def candidates(subject: Subject) -> list[Candidate]:
    """`weight-outlier` and `weight-channel-imbalance`.

    An outlier stands out of its own channel, an imbalance is a whole channel that stands out of the tensor; where a clip
    costs too much, the remedy of an outlier is a step per channel as well.
    """
    if not subject.is_weight:
        return []
    found: list[Candidate] = []
    grid, step, tensor = subject.grid, subject.step, subject.tensor
    peaks = subject.channel_peaks
    outlier, alone = _standing_out(subject, peaks)
    kind: CauseKind = "weight-outlier" if alone else "weight-channel-imbalance"
    channel = int(np.argmax(peaks))
    if alone:
        evidence = f"channel {channel} of {tensor} has an element {outlier:.1f} times as large as the next."
        if grid.params.axis is None:
            clipped = subject.regrid(grid.spec)
            remedy = Remedy("clip-weights", step.layer, f"Clip {tensor} at {float(clipped.params.hi):.4g}.", {tensor: clipped})
            found.append(Candidate(kind, step.layer, tensor, evidence, remedy))
        elif grid.spec.per_channel:
            clipped = subject.regrid(grid.spec)
            remedy = Remedy("clip-weights", step.layer, f"Clip the channels of {tensor} by least error.", {tensor: clipped})
            found.append(Candidate(kind, step.layer, tensor, evidence, remedy))
    else:
        ratio = spread(peaks)
        evidence = f"the widest channel of {tensor} (channel {channel}) is {ratio:.3g} times as wide as the median one."
    if grid.params.axis is None and step.weight_axis is not None and (alone or spread(peaks) > 2.0):
        wide = subject.regrid(replace(grid.spec, per_channel=True), "minmax")
        remedy = Remedy("per-channel-weights", step.layer, f"Give {tensor} one scale per output channel.", {tensor: wide})
        found.append(Candidate(kind, step.layer, tensor, evidence, remedy))
    if not alone and spread(peaks) > 2.0 and (even := subject.equalization("weights")) is not None:
        found.append(Candidate(kind, step.layer, tensor, evidence, even))
    return found


def _standing_out(subject: Subject, peaks: np.ndarray) -> tuple[float, bool]:
    """How far the largest element exceeds the next of its channel, and whether that makes it an outlier."""
    axis = subject.step.weight_axis or 0
    weight = subject.weight.movedim(axis, 0).flatten(1)
    row = weight[int(np.argmax(peaks))].abs().sort(descending=True).values
    if len(row) < 3:
        return 1.0, False
    few = max(1, len(row) // 100)
    ratio = float(row[0] / row[few].clamp(min=1e-30))
    return ratio, ratio > 2.5
