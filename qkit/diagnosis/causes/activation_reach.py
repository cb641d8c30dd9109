"""Activations whose rare values or single channels stretch the one range that all share."""

from __future__ import annotations

import numpy as np

from qkit.diagnosis.candidates import Candidate, CauseKind
from qkit.diagnosis.causes.subject import EVEN, Subject, spread
from qkit.diagnosis.remedies import Remedy


def candidates(subject: Subject) -> list[Candidate]:
    """`activation-outlier` and `activation-channel-imbalance`.

    An outlier stands out of its own channel, an imbalance is a whole channel that stands out of the tensor. Where a join or
    a pooling only hands them on, the tap that they come from is named, and both are treated.
    """
    tensor = subject.tensor
    if subject.is_weight or subject.grid.params.axis is not None or tensor not in subject.typical:
        return []
    lineage = subject.lineage
    origin = lineage[-1]
    # a join of many channels does not tell whether a value is rare, the tap that it comes from does
    where = origin.name if origin.name in subject.typical else tensor
    peaks, typical = subject.peaks_of(where), subject.typical[where]
    if len(peaks) != len(typical) or not peaks.any() or subject.mismatch(origin) is not None:
        return []
    channel, rare = subject.rare(where)
    found = _clips(subject, peaks, typical, channel, rare=rare)
    ratio = spread(subject.typical[tensor])
    if rare or (ratio > EVEN and len(peaks) > 1):
        kind: CauseKind = "activation-outlier" if rare else "activation-channel-imbalance"
        passing = f", and {tensor} hands it on" if where != tensor else ""
        times = peaks[channel] / max(float(np.median(subject.channel_peaks)), 1e-30)
        against = (
            f"where 99 % of it stay below {typical[channel]:.3g}" if rare else f"{times:.3g} times as far as the median channel"
        )
        evidence = f"channel {channel} of {where} reaches {peaks[channel]:.3g}, {against}{passing}."
        for even in (None if rare else subject.equalization("activations"), subject.smoothing()):
            if even is not None:
                found.append(Candidate(kind, origin.layer, where, evidence, even))
        grids = subject.at_bits(16, lineage)
        remedy = Remedy("sixteen-bit-layer", origin.layer, f"Keep {' and '.join(grids)} in 16 bits.", grids)
        found.append(Candidate(kind, origin.layer, where, evidence, remedy))
    return found


def _clips(subject: Subject, peaks: np.ndarray, typical: np.ndarray, channel: int, *, rare: bool) -> list[Candidate]:
    """Narrower ranges: one by least error, and where rare values outweigh all others in that, one that leaves them out."""
    found = []
    grid, lineage = subject.grid, subject.lineage
    origin = lineage[-1]
    reach = float(max(-grid.params.lo, grid.params.hi))
    clipped = subject.regrid(grid.spec)
    now, then = subject.histogram.error(grid.params), subject.histogram.error(clipped.params)
    figures = f"channel {channel} of {origin.name} reaches {peaks[channel]:.4g}, 99 % of it stay below {typical[channel]:.4g}"
    narrower = bool((clipped.params.lo >= grid.params.lo).all() and (clipped.params.hi <= grid.params.hi).all())
    if narrower and now.total > 1.5 * then.total:
        low, high = float(clipped.params.lo), float(clipped.params.hi)
        evidence = f"{figures}; a range of {low:.4g} to {high:.4g} has {now.total / then.total:.1f} times less error."
        remedy = Remedy("clip-activation", subject.op.layer, f"Clip {subject.tensor} at {low:.4g} to {high:.4g}.", {
            subject.tensor: clipped
        })  # fmt: skip
        found.append(Candidate("activation-outlier", origin.layer, origin.name, evidence, remedy))
    bound = 1.5 * float(subject.typical[subject.tensor].max())
    if rare and 0.0 < bound < 0.67 * reach:
        grids = {}
        for op in lineage:
            old = subject.plan.grids[op.name]
            ends = max(float(old.params.lo), -bound), min(float(old.params.hi), bound)
            grids[op.name] = old.at(old.spec.params(*ends))
        text = f"Clip {' and '.join(grids)} at {bound:.4g}."
        remedy = Remedy("clip-activation", origin.layer, text, grids)
        found.append(Candidate("activation-outlier", origin.layer, origin.name, f"{figures}.", remedy))
    return found
