"""The grid's rule itself: a sign that is not needed, steps that are powers of two, too few bits."""

from __future__ import annotations

from dataclasses import replace

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy


def candidates(subject: Subject) -> list[Candidate]:
    """`signed-grid-on-one-sided-tensor`, `range-too-narrow` where a grid has no negative codes, and `power-of-two-scale`."""
    found = []
    grid, op, tensor = subject.grid, subject.op, subject.tensor
    spec = grid.spec
    if not subject.is_weight and spec.symmetric and grid.params.qmin < 0:
        hist = subject.histogram
        if hist.min >= 0.0 or hist.max <= 0.0:
            side = "no negative" if hist.min >= 0.0 else "no positive"
            evidence = f"{tensor} holds {side} value ({hist.min:.4g} to {hist.max:.4g}): half of its signed grid lies idle."
            other = subject.regrid(replace(spec, symmetric=False, signed=None))
            remedy = Remedy("affine-activation", op.layer, f"Give {tensor} an unsigned or affine grid.", {tensor: other})
            found.append(Candidate("signed-grid-on-one-sided-tensor", op.layer, tensor, evidence, remedy))
    if not subject.is_weight and spec.symmetric and grid.params.qmin >= 0 and subject.histogram.min < 0.0:
        hist = subject.histogram
        lost = hist.share_between(hist.min, -0.5 * float(grid.params.scale.max()))
        evidence = (
            f"the grid of {tensor} has no negative code, {subject.noun} holds values down to {hist.min:.4g}: {lost:.2%} of its "
            "elements are cut to 0."
        )
        other = subject.regrid(replace(spec, symmetric=False, signed=None))
        remedy = Remedy(
            "affine-activation", op.layer, f"Give {tensor} an affine grid, which has negative codes.", {tensor: other}
        )
        found.append(Candidate("range-too-narrow", op.layer, tensor, evidence, remedy))
    if spec.power_of_two:
        free = replace(spec, power_of_two=False)
        other = subject.regrid(free, "minmax" if subject.is_weight else "mse")
        ratio = float((grid.params.scale.double() / other.params.scale.double()).max())
        if ratio > 1.05:
            evidence = f"the step of {tensor} is a power of two, {ratio:.2f} times as wide as a free step would be."
            remedy = Remedy("free-scale", op.layer, f"Let {tensor} have a scale that is no power of two.", {tensor: other})
            found.append(Candidate("power-of-two-scale", op.layer, tensor, evidence, remedy))
    return found


def last_resort(subject: Subject) -> list[Candidate]:
    """`insufficient-bits`: what remains if no rule at the same width helps."""
    spec, op, tensor = subject.grid.spec, subject.op, subject.tensor
    if spec.bits >= 16:
        return []
    error = subject.histogram.error(subject.grid.params) if subject.grid.params.axis is None else None
    noise = "" if error is None else f" (signal to noise {error.sqnr:.1f} dB)"
    where = f"{tensor}, {subject.noun}," if subject.noun != "the tensor" else tensor
    evidence = f"{where} has {spec.bits} bits{noise}, and no other range or rule at that width recovers the loss."
    remedy = Remedy("sixteen-bit-layer", op.layer, f"Keep {tensor} in 16 bits.", subject.at_bits(16))
    return [Candidate("insufficient-bits", op.layer, tensor, evidence, remedy)]
