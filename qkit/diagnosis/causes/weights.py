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
    outlier = _standing_out(subject)
    kind: CauseKind = "weight-outlier" if outlier else "weight-channel-imbalance"
    channel = int(np.argmax(peaks))
    if outlier:
        times, bound = outlier
        evidence = f"channel {channel} of {tensor} has an element {times:.3g} times as large as the next."
        if grid.params.axis is None:
            # not by least error: one element far out outweighs all others there, whether the network needs it or not
            rest = max(bound, float(np.delete(peaks, channel).max()))
            low = -rest if float(grid.params.lo) < 0.0 else 0.0
            clipped = replace(grid, params=grid.spec.params(low, rest), method="manual")
            remedy = Remedy("clip-weights", step.layer, f"Clip {tensor} at {rest:.4g}.", {tensor: clipped})
        else:
            clipped = subject.regrid(grid.spec)
            remedy = Remedy("clip-weights", step.layer, f"Clip the channels of {tensor} by least error.", {tensor: clipped})
        found.append(Candidate(kind, step.layer, tensor, evidence, remedy))
    else:
        ratio = spread(peaks)
        evidence = f"the widest channel of {tensor} (channel {channel}) is {ratio:.3g} times as wide as the median one."
    if grid.params.axis is None and step.weight_axis is not None and (outlier or spread(peaks) > 2.0):
        wide = subject.regrid(replace(grid.spec, per_channel=True), "minmax")
        remedy = Remedy("per-channel-weights", step.layer, f"Give {tensor} one scale per output channel.", {tensor: wide})
        found.append(Candidate(kind, step.layer, tensor, evidence, remedy))
    if not outlier and spread(peaks) > 2.0 and (even := subject.equalization("weights")) is not None:
        found.append(Candidate(kind, step.layer, tensor, evidence, even))
    return found


def _standing_out(subject: Subject) -> tuple[float, float] | None:
    """How many times the largest element exceeds the rest of its channel, and the greatest of those; None if no outlier."""
    axis = subject.step.weight_axis or 0
    weight = subject.weight.movedim(axis, 0).flatten(1).abs()
    row = weight[int(weight.amax(1).argmax())].sort(descending=True).values
    if len(row) < 3 or len(weight) < 2:
        return None
    rest = float(row[max(1, len(row) // 100)])
    times = float(row[0]) / max(rest, 1e-30)
    return (times, rest) if times > 2.5 else None
