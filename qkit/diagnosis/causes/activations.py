"""Activations whose rare values or single channels stretch the one range that all share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qkit.diagnosis.candidates import Candidate, CauseKind
from qkit.diagnosis.causes.subject import Subject, spread
from qkit.diagnosis.remedies import Remedy

#: Peak over root mean square of a channel beyond which its peak is called rare; ReLU'd Gaussian data of 1e6 elements reach 7.
_RARE = 12.0


def candidates(subject: Subject) -> list[Candidate]:
    """`activation-outlier` and `activation-channel-imbalance`."""
    if subject.is_weight or subject.grid.params.axis is not None:
        return []
    grid, step, tensor = subject.grid, subject.step, subject.tensor
    found: list[Candidate] = []
    peaks = subject.channel_peaks
    channel, ratio = int(np.argmax(peaks)), spread(peaks)
    crest = float(subject.crest[channel]) if subject.crest is not None and len(subject.crest) == len(peaks) else 0.0
    clipped = subject.regrid(grid.spec)
    now, then = subject.histogram.error(grid.params), subject.histogram.error(clipped.params)
    rare = crest > _RARE
    if now.total > 1.5 * then.total:
        evidence = (
            f"{tensor} reaches {peaks[channel]:.4g}, {crest:.0f} times the root mean square of its channel; a range of "
            f"{float(clipped.params.lo):.4g} to {float(clipped.params.hi):.4g} has {now.total / then.total:.1f} times less error."
        )
        text = f"Clip {tensor} at {float(clipped.params.lo):.4g} to {float(clipped.params.hi):.4g}."
        remedy = Remedy("clip-activation", step.layer, text, {tensor: clipped})
        found.append(Candidate("activation-outlier", step.layer, tensor, evidence, remedy))
    if ratio > 3.0 and len(peaks) > 1:
        kind: CauseKind = "activation-outlier" if rare else "activation-channel-imbalance"
        evidence = f"channel {channel} of {tensor} reaches {ratio:.3g} times as far as the median channel."
        if not rare and (even := subject.equalization("activations")) is not None:
            found.append(Candidate(kind, step.layer, tensor, evidence, even))
        wide = subject.regrid(replace(grid.spec, bits=16), "minmax")
        remedy = Remedy("sixteen-bit-layer", step.layer, f"Keep {tensor} in 16 bits.", {tensor: wide})
        found.append(Candidate(kind, step.layer, tensor, evidence, remedy))
    return found
