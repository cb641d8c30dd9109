"""Weights whose channels or single elements differ too much to share one step."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from qkit.diagnosis.candidates import Candidate, CauseKind
from qkit.diagnosis.causes.subject import Subject, spread
from qkit.diagnosis.remedies import Remedy

#: An element is an outlier if it is so many times as large as the rest of its channel.
_TIMES = 2.5


def candidates(subject: Subject) -> list[Candidate]:
    """`weight-outlier` and `weight-channel-imbalance`.

    An outlier stands out of its own channel, an imbalance is a whole channel that stands out of the tensor; where a clip
    costs too much, the remedy of an outlier is a step per channel as well.
    """
    if not subject.is_weight or subject.grid.params.axis not in (None, subject.op.weight_axis):
        return []
    found: list[Candidate] = []
    grid, op, tensor = subject.grid, subject.op, subject.tensor
    peaks = subject.channel_peaks
    rest = _without_outliers(subject)
    stands_out = peaks > _TIMES * rest
    # on one range for all, only the widest channel's outlier matters
    outlier = bool(stands_out[int(np.argmax(peaks))] if grid.params.axis is None else stands_out.any())
    kind: CauseKind = "weight-outlier" if outlier else "weight-channel-imbalance"
    channel = int(np.argmax(peaks / rest)) if outlier else int(np.argmax(peaks))
    if outlier:
        times = peaks[channel] / rest[channel]
        evidence = f"channel {channel} of {tensor} has an element {times:.3g} times as large as the next."
        # not by least error: one element far out outweighs all others there, whether the network needs it or not
        bounds = np.where(stands_out, rest, peaks)
        bound = torch.from_numpy(bounds) if grid.params.axis is not None else torch.tensor(bounds.max())
        low = torch.where(grid.params.lo < 0.0, -bound, 0.0)
        clipped = grid.at(grid.spec.params(low, bound, axis=grid.params.axis))
        where = f"at {float(bound):.4g}" if bound.ndim == 0 else f"in {int(stands_out.sum())} channels"
        remedy = Remedy("clip-weights", op.layer, f"Clip the outliers of {tensor} {where}.", {tensor: clipped})
        found.append(Candidate(kind, op.layer, tensor, evidence, remedy))
    else:
        ratio = spread(peaks)
        evidence = f"the widest channel of {tensor} (channel {channel}) is {ratio:.3g} times as wide as the median one."
    if grid.params.axis is None and op.weight_axis is not None and (outlier or spread(peaks) > 2.0):
        wide = subject.regrid(replace(grid.spec, per_channel=True), "minmax")
        remedy = Remedy("per-channel-weights", op.layer, f"Give {tensor} one scale per output channel.", {tensor: wide})
        found.append(Candidate(kind, op.layer, tensor, evidence, remedy))
    if not outlier and spread(peaks) > 2.0 and (even := subject.equalization("weights")) is not None:
        found.append(Candidate(kind, op.layer, tensor, evidence, even))
    return found


def _without_outliers(subject: Subject) -> np.ndarray:
    """Of every output channel the greatest magnitude but for the largest hundredth, at least one element; float64 (C,)."""
    rows = subject.weight_rows.abs().sort(1, descending=True).values.cpu().double()
    if rows.shape[1] < 3:
        return np.asarray(rows[:, 0])
    return np.asarray(rows[:, max(1, rows.shape[1] // 100)].clamp(min=1e-30))
