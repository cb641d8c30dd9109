"""Range estimators: from what calibration observed of a tensor to the range of its grid.

================== ====================================================================================================
``minmax``         the extremes
``moving-average`` exponential mean over batches of their extremes (Jacob et al. 2018, section 3.1)
``percentile``     the values between which a share of the elements lies
``mse``            the range whose grid has the least mean squared error (Nagel et al. 2021, "A White Paper on Neural
                   Network Quantization", section 3.1)
``entropy``        the clip whose quantized distribution is nearest in Kullback-Leibler divergence (Migacz 2017, "8-bit
                   Inference with TensorRT"); defined up to 8 bits, wider grids get the extremes
================== ====================================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from qkit.errors import PlanError
from qkit.quant.grids import MAX_BOUND, MIN_SCALE, QuantSpec, fake_quantize_
from qkit.quant.histogram import Histogram
from qkit.quant.memory import by_channel
from qkit.quant.plan import Grid

__all__ = ["METHODS", "Method", "Observation", "activation_grid", "estimate", "weight_grid"]

Method = Literal["minmax", "moving-average", "percentile", "mse", "entropy"]
METHODS: tuple[Method, ...] = get_args(Method)

#: Weight of the newest batch in the moving average.
MOMENTUM = 0.1
#: Narrowest candidate of a search, as a power of two of the extremes: a tensor clipped to a 4096th is never best.
_OCTAVES = 12
_STEPS_PER_OCTAVE = 4
#: The same for a weight's channels, which are clipped to a 32nd at most.
_WEIGHT_OCTAVES = 5
_ENTROPY_BINS = 2048
#: Most of the elements that the entropy method may clip. Its divergence weighs what lies inside alone: of a tensor that stays
#: away from 0 a clip below nearly all values leaves a bin or two, which any grid represents without loss.
_ENTROPY_CLIPS = 0.1


@dataclass(frozen=True)
class Observation:
    """What one calibration pass keeps of a tap.

    Attributes
    ----------
    histogram
        Of all its elements.
    batch_min, batch_max
        Extremes of every batch, in order.
    channel_min, channel_max
        Extremes of every channel, float32 (C,).
    """

    histogram: Histogram
    batch_min: tuple[float, ...]
    batch_max: tuple[float, ...]
    channel_min: np.ndarray
    channel_max: np.ndarray


def check_method(method: str) -> Method:
    """`method` itself.

    Raises
    ------
    PlanError
        If there is no estimator of that name.
    """
    if method not in METHODS:
        raise PlanError(f"there is no calibration method {method!r}; the methods are {', '.join(METHODS)}.")
    return method


def activation_grid(seen: Observation, spec: QuantSpec, method: Method, axis: int, percentile: float = 99.99) -> Grid:
    """The grid of an activation tap.

    A per-channel rule takes every channel's extremes whatever the method, since only those are observed per channel.
    """
    if spec.per_channel:
        params = spec.params(torch.from_numpy(seen.channel_min), torch.from_numpy(seen.channel_max), axis=axis)
        return Grid(spec, params, "minmax" if method == "minmax" else f"minmax per channel (not {method})")
    if method == "entropy" and spec.bits > 8:
        return Grid(spec, spec.params(seen.histogram.min, seen.histogram.max), "minmax (entropy is defined up to 8 bits)")
    lo, hi = estimate(seen, spec, method, percentile)
    return Grid(spec, spec.params(lo, hi), method)


def estimate(seen: Observation, spec: QuantSpec, method: Method, percentile: float = 99.99) -> tuple[float, float]:
    """The range that `method` gives a tensor, in its own units."""
    hist = seen.histogram
    if method == "minmax":
        return hist.min, hist.max
    if method == "moving-average":
        return _moving_average(seen.batch_min), _moving_average(seen.batch_max)
    if method == "percentile":
        if not 50.0 < percentile <= 100.0:
            raise PlanError(f"percentile={percentile!r} has to be above 50 and at most 100.")
        tail = 1.0 - percentile / 100.0
        return hist.quantile(tail), hist.quantile(1.0 - tail)
    if method == "mse":
        return least_error_range(hist, spec)
    return _entropy_range(hist, spec)


def _moving_average(values: Sequence[float]) -> float:
    mean = values[0]
    for value in values[1:]:
        mean += MOMENTUM * (value - mean)
    return mean


def _grid_of(spec: QuantSpec, lo: float, hi: float) -> tuple[float, float, float]:
    """Scale and least and greatest code less the zero point, as `QuantSpec.params` has them, in plain floats for the search."""
    lo, hi = min(max(lo, -MAX_BOUND), 0.0), max(min(hi, MAX_BOUND), 0.0)
    qmin, qmax = spec.code_range(one_sided=lo >= 0.0)
    scale = (hi - lo) / (qmax - qmin)
    if spec.symmetric:
        scale = hi / qmax if qmin == 0 else max(hi / qmax, lo / min(qmin, -1))
    scale = max(scale, MIN_SCALE) if hi > lo else 1.0
    if spec.power_of_two:
        scale = 2.0 ** math.ceil(math.log2(scale))
    scale = float(np.float32(scale))
    zero = 0 if spec.symmetric else min(max(qmin - round(lo / scale), qmin), qmax)
    return scale, qmin - zero, qmax - zero


def least_error_range(hist: Histogram, spec: QuantSpec) -> tuple[float, float]:
    """The range whose grid has the least mean squared error on the histogram.

    Both ends shrink together over octaves first, then each end is refined alone, alternating.
    """
    lo, hi = min(hist.min, 0.0), max(hist.max, 0.0)
    if lo == hi:
        return lo, hi

    def cost(a: float, b: float) -> float:
        scale, low, high = _grid_of(spec, a, b)
        return sum(hist.mean_squared_error(scale, low, high)) if scale > 1e-37 else math.inf

    factors = [2.0 ** (-k / _STEPS_PER_OCTAVE) for k in range(_OCTAVES * _STEPS_PER_OCTAVE)]
    costs = [cost(lo * f, hi * f) for f in factors]
    best = min(costs)
    f = factors[costs.index(best)]
    ends = [lo * f, hi * f]
    full = [lo, hi]
    for span in (2.0, 2.0, 2.0**0.25, 2.0**0.0625):
        for side in (0, 1):
            for step in np.geomspace(1.0 / span, span, 9).tolist():
                trial = list(ends)
                trial[side] = min(max(ends[side] * step, full[0]), full[1])
                value = cost(*trial)
                if value < best:
                    best, ends = value, trial
    return ends[0], ends[1]


def _entropy_range(hist: Histogram, spec: QuantSpec) -> tuple[float, float]:
    levels = 2 ** (spec.bits - 1 if hist.min < 0 else spec.bits)
    peak = max(abs(hist.min), abs(hist.max))
    if peak == 0.0:
        return hist.min, hist.max
    positive, _ = hist.linear(_ENTROPY_BINS, 0.0, peak)
    counts = positive
    if hist.min < 0:
        both, _ = hist.linear(2 * _ENTROPY_BINS, -peak, peak)
        counts = both[_ENTROPY_BINS:] + both[:_ENTROPY_BINS][::-1]
    counts = counts.copy()
    counts[0] -= min(hist.zeros, counts[0])  # zeros are exact on every grid: they say nothing about the clip
    if counts.sum() <= 0:
        return hist.min, hist.max
    ends = np.arange(min(levels, _ENTROPY_BINS), _ENTROPY_BINS + 1)
    bound = peak * float(ends[int(_divergences(counts, ends, levels).argmin())]) / _ENTROPY_BINS
    return max(hist.min, -bound), min(hist.max, bound)


def _divergences(counts: np.ndarray, ends: np.ndarray, levels: int) -> np.ndarray:
    """For every end: Kullback-Leibler divergence of the first `end` bins, the rest clipped onto the last, from their
    quantized form, in which the used bins of a level share its count evenly.

    Prefix sums give all ends at once: within a level the quantized form is constant.
    """  # fmt: skip
    tiny = 1e-12
    safe = np.where(counts > 0, counts, 1.0)
    below, used, entropy = (
        np.concatenate([[0.0], np.cumsum(part)]) for part in (counts, (counts > 0).astype(float), counts * np.log(safe))
    )
    # a bin i below an end is of level i * levels // end
    first = -(-np.arange(levels + 1) * ends[:, None] // levels)
    sums, members = np.diff(below[first]), np.diff(used[first])
    mean = np.where(sums > 0, sums, 1.0) / np.maximum(members, 1.0)
    total, inside = below[-1], below[ends]
    kept = np.maximum(inside, tiny)
    divergence = (entropy[ends] - (sums * np.log(mean)).sum(1)) / total + inside / total * np.log(kept / total)
    last, beyond = counts[ends - 1], total - inside
    quantized = np.where(last > 0, mean[:, -1] / kept, tiny)
    before, after = last / total, (last + beyond) / total
    for share, sign in ((before, -1.0), (after, 1.0)):
        divergence += sign * share * np.log(np.maximum(share, tiny) / quantized)
    return np.where(inside >= (1.0 - _ENTROPY_CLIPS) * total, divergence, np.inf)


def weight_grid(weight: Tensor, spec: QuantSpec, method: Method, axis: int | None, percentile: float = 99.99) -> Grid:
    """The grid of a weight, from its own values: ``minmax``, ``mse`` or, per tensor, any estimator.

    Parameters
    ----------
    weight
        float32; `axis` is its output-channel axis, None where a grid per channel is impossible.

    Raises
    ------
    PlanError
        For a method that is not defined on single channels.
    """
    if not spec.per_channel or axis is None:
        hist = Histogram.of(weight)
        seen = Observation(hist, (hist.min,), (hist.max,), np.empty(0), np.empty(0))
        lo, hi = estimate(seen, spec, method, percentile)
        return Grid(spec, spec.params(lo, hi), method, weight=True)
    rows = by_channel(weight, axis)
    low, high = (bound.double() for bound in rows.aminmax(dim=1))
    # a channel of zeros is exact on any grid, but its bias is rounded to the step of input times weight: at the scale 1 of an
    # empty range that would be coarser than any other channel's, at 16 bits too
    empty = (low >= 0) & (high <= 0)
    low, high = torch.where(empty, low.min(), low), torch.where(empty, high.max(), high)
    if method == "minmax":
        return Grid(spec, spec.params(low, high, axis=axis), method, weight=True)
    if method != "mse":
        raise PlanError(f"weights per channel are calibrated by minmax or mse, not {method}: pass weight_method= one of these.")
    low, high = low.cpu(), high.cpu()
    best = torch.ones_like(low)
    least = torch.full_like(low, math.inf)
    coarse = 2.0 ** (-np.arange(_WEIGHT_OCTAVES * _STEPS_PER_OCTAVE + 1) / _STEPS_PER_OCTAVE)
    fine = 2.0 ** (np.linspace(-1.0, 1.0, 21) / _STEPS_PER_OCTAVE)
    for steps in (coarse, fine):
        centre = best.clone()
        for step in steps:
            factor = (centre * float(step)).clamp(max=1.0)
            params = spec.params(low * factor, high * factor, axis=0)
            error = (fake_quantize_(rows.clone(), params) - rows).square().mean(dim=1, dtype=torch.float64).cpu()
            best = torch.where(error < least, factor, best)
            least = torch.minimum(least, error)
    return Grid(spec, spec.params(low * best, high * best, axis=axis), method, weight=True)
