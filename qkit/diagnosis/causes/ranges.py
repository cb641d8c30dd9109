"""Ranges that do not fit what was seen: too narrow, so that they clip, or too wide, so that codes lie idle."""

from __future__ import annotations

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy


def candidates(subject: Subject) -> list[Candidate]:
    """`range-too-narrow` and `range-too-wide`, for grids with one range."""
    grid = subject.grid
    if grid.params.axis is not None:
        return []
    hist = subject.histogram
    best = subject.regrid(grid.spec)
    whole = subject.regrid(grid.spec, "minmax")
    now, then = hist.error(grid.params), hist.error(best.params)
    lo, hi = float(grid.params.lo), float(grid.params.hi)
    span, wanted, seen = hi - lo, float(best.params.hi - best.params.lo), float(whole.params.hi - whole.params.lo)
    covers = f"the grid covers {lo:.4g} to {hi:.4g}, the tensor holds {hist.min:.4g} to {hist.max:.4g}"
    step, tensor = subject.step, subject.tensor
    if span < 0.9 * wanted and now.clipping > now.rounding and now.total > 1.2 * then.total:
        text = f"Widen the range of {tensor} to {float(best.params.lo):.4g} to {float(best.params.hi):.4g}."
        share = now.clipping / now.total
        evidence = f"{covers}; {now.clipped:.2%} of the elements are clipped, and clipping is {share:.0%} of its error."
        remedy = Remedy("widen-range", step.layer, text, {tensor: best})
        return [Candidate("range-too-narrow", step.layer, tensor, evidence, remedy)]
    if span > 1.3 * seen and now.total > 1.2 * then.total:
        text = f"Calibrate the range of {tensor} anew: {float(best.params.lo):.4g} to {float(best.params.hi):.4g}."
        evidence = f"{covers}: {seen / span:.0%} of its codes' range is ever reached."
        remedy = Remedy("recalibrate", step.layer, text, {tensor: best})
        return [Candidate("range-too-wide", step.layer, tensor, evidence, remedy)]
    return []
