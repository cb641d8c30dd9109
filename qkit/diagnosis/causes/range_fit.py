"""Ranges that do not fit what was seen: too narrow, so that they clip, or too wide, so that codes lie idle."""

from __future__ import annotations

import torch
from torch import Tensor

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy
from qkit.execution.lanes import quantize_weight
from qkit.quant.grids import QuantParams
from qkit.quant.histogram import RangeError


def candidates(subject: Subject) -> list[Candidate]:
    """`range-too-narrow` and `range-too-wide`, for grids with one range and for weights with one a channel."""
    grid = subject.grid
    if grid.params.axis is not None and not subject.is_weight:
        return []
    best, whole = subject.regrid(grid.spec), subject.regrid(grid.spec, "minmax")
    if grid.params.axis != best.params.axis:
        return []
    now, then = _error(subject, grid.params), _error(subject, best.params)
    span, wanted, seen = (_span(g.params) for g in (grid, best, whole))
    op, tensor = subject.op, subject.tensor
    channel = None if grid.params.axis is None else int((span / seen - 1.0).abs().argmax())
    covers = f"the grid covers {_ends(grid.params, channel)}, {subject.noun} holds {_ends(whole.params, channel)}"
    if channel is not None:
        covers = f"in channel {channel} {covers}"
    fit = _ends(best.params, channel) if channel is None else "of every channel by least error"
    cut = (best.params.lo < grid.params.lo) | (best.params.hi > grid.params.hi)
    if (
        bool((span < 0.9 * wanted).any() or (cut.any() and now.total > 1.5 * then.total))
        and now.clipping > now.rounding
        and now.total > 1.2 * then.total
    ):
        share = now.clipping / now.total
        evidence = f"{covers}; {now.clipped:.2%} of the elements are clipped, and clipping is {share:.0%} of its error."
        # both ends, since what is called widening takes nothing away at the other one
        ends = torch.minimum(best.params.lo, grid.params.lo), torch.maximum(best.params.hi, grid.params.hi)
        wider = grid.at(grid.spec.params(*ends, axis=grid.params.axis))
        fit = _ends(wider.params, channel) if channel is None else "of every channel by least error"
        text = f"Widen the range of {tensor}: {fit}."
        return [Candidate("range-too-narrow", op.layer, tensor, evidence, Remedy("widen-range", op.layer, text, {tensor: wider}))]
    if bool((span > 1.3 * seen).any()) and now.total > 1.2 * then.total:
        evidence = f"{covers}: {float((seen / span).min()):.0%} of its codes' range is ever reached."
        text = f"Calibrate the range of {tensor} anew: {fit}."
        return [Candidate("range-too-wide", op.layer, tensor, evidence, Remedy("recalibrate", op.layer, text, {tensor: best}))]
    return []


def _span(params: QuantParams) -> Tensor:
    return params.hi - params.lo


def _ends(params: QuantParams, channel: int | None) -> str:
    low, high = (float(end if channel is None else end[channel]) for end in (params.lo, params.hi))
    return f"{low:.4g} to {high:.4g}"


def _error(subject: Subject, params: QuantParams) -> RangeError:
    """Of a grid, on a tap's histogram or on a weight's own values."""
    if params.axis is None:
        return subject.histogram.error(params)
    weight = subject.weight.cpu().double()
    shape = [-1 if d == params.axis else 1 for d in range(weight.ndim)]
    half = params.scale.double().view(shape) / 2
    outside = (weight < params.lo.view(shape) - half) | (weight > params.hi.view(shape) + half)
    squared = (quantize_weight(subject.weight, params).cpu().double() - weight).square()
    count = weight.numel()
    clipping = float(squared[outside].sum()) / count
    rounding = float(squared.sum()) / count - clipping
    return RangeError(rounding, clipping, float(outside.double().mean()), float(weight.square().mean()))
