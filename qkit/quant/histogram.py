"""Streaming histograms with exact counts, and the quantization error of any range read off them in O(bins).

The bins are the float32 format's own: a value's bin is its sign, exponent and upper 7 mantissa bits. Every octave thus
has 128 equal bins, and one bin is at most 0.8 % as wide as the values in it, whether the tensor spans one octave or
thirty. Data outside the range seen so far doubles the range by whole octaves that simply were empty before: nothing is
ever resampled, counts are exact integers, and two histograms add. Beside its count a bin keeps the exact sum of its
elements (as integers: the low 16 bits), hence its exact mean.

That is what makes ranges with far outliers come out right, where a histogram of equal bins would hold the whole bulk in
one of them. (HdrHistogram uses the same layout for latencies.)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError, PlanError
from qkit.quant.compiled import kernels, kernels_for
from qkit.quant.grids import QuantParams
from qkit.quant.memory import blocks, by_channel, channels_innermost, dense, rows
from qkit.quant.sqnr import sqnr

#: Bins of the float32 format: one for all floats with the same upper 16 bits.
KEYS = 1 << 16
_SIGN = 0x8000


@dataclass(frozen=True)
class RangeError:
    """Mean squared error of a grid on a tensor, split by its cause.

    Attributes
    ----------
    rounding, clipping
        Mean over all elements of the squared error of those inside, and of those beyond the grid's ends; units squared.
    clipped
        Share of elements beyond the grid's ends by more than half a step, 0 to 1.
    signal
        Mean square of the tensor.
    """

    rounding: float
    clipping: float
    clipped: float
    signal: float

    @property
    def total(self) -> float:
        """Mean squared error."""
        return self.rounding + self.clipping

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise ratio in dB; infinite where there is no error."""
        return float(sqnr(max(self.signal, 1e-300), max(self.total, 0.0)))


@dataclass(frozen=True, eq=False)
class Histogram:
    """Exact counts of a tensor's elements in the bins of the float32 format; add two with ``+``.

    Attributes
    ----------
    keys
        uint16 (B,), the upper 16 bits of a bin's floats, in the order of their values.
    counts
        int64 (B,), greater than 0.
    lows
        int64 (B,), sum over the bin of the floats' lower 16 bits.
    min, max
        Exact extremes.
    """

    keys: np.ndarray
    counts: np.ndarray
    lows: np.ndarray
    min: float
    max: float

    @classmethod
    def of(cls, x: Tensor, *, name: str = "tensor") -> Histogram:
        """Histogram of a float32 tensor of any shape, on any device.

        Raises
        ------
        DataError
            If the tensor is empty, not float32, or holds NaN or infinity.
        """
        return observe(x, 0, name=name)[0]

    @classmethod
    def of_channels(cls, x: Tensor, axis: int | None, *, name: str = "tensor") -> list[Histogram]:
        """One for every channel of a tensor, its channels along `axis`; of one without channels (None) a single one. See `of`."""
        parts = [x] if axis is None else [row.contiguous() for row in by_channel(x, axis)]
        return [cls.of(part, name=name) for part in parts]

    @classmethod
    def merge(cls, parts: Sequence[Histogram]) -> Histogram:
        """The histogram of all the parts' elements together."""
        if len(parts) == 1:
            return parts[0]
        counts, lows = np.zeros(KEYS, np.int64), np.zeros(KEYS, np.int64)
        for part in parts:
            counts[part.keys] += part.counts
            lows[part.keys] += part.lows
        used = np.flatnonzero(counts)
        return cls._ordered(used, counts[used], lows[used], min(p.min for p in parts), max(p.max for p in parts))

    @classmethod
    def _ordered(cls, keys: np.ndarray, counts: np.ndarray, lows: np.ndarray, low: float, high: float) -> Histogram:
        """From ascending keys to ascending values: the negative ones, which come last, backwards and first."""
        negative = int(np.searchsorted(keys, _SIGN))
        order = np.concatenate([np.arange(len(keys) - 1, negative - 1, -1), np.arange(negative)])
        return cls(keys[order].astype(np.uint16), counts[order], lows[order], low, high)

    def __add__(self, other: Histogram) -> Histogram:
        return self.merge((self, other))

    @functools.cached_property
    def total(self) -> int:
        """Number of elements."""
        return int(self.counts.sum())

    @property
    def zeros(self) -> int:
        """Number of elements that are 0 (or denormal below 1e-40)."""
        return int(self.counts[(self.keys & 0x7FFF) == 0].sum())

    @functools.cached_property
    def _bins(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Lower edge, upper edge, mean and uniform half-width of every bin, float64 and in the order of values."""
        magnitude = (self.keys & 0x7FFF).astype(np.uint32)
        inner = (magnitude << 16).view(np.float32).astype(np.float64)
        width = ((magnitude + 1) << 16).view(np.float32).astype(np.float64) - inner
        width = np.where(np.isfinite(width), width, inner * 2.0**-7)
        mean = inner + self.lows / self.counts * (width / KEYS)
        outer = inner + width
        zero = magnitude == 0
        inner, outer, mean = (np.where(zero, 0.0, v) for v in (inner, outer, mean))
        negative = self.keys >= _SIGN
        low, high = np.where(negative, -outer, inner), np.where(negative, -inner, outer)
        mean = np.where(negative, -mean, mean)
        high = np.minimum(high, self.max)
        low = np.minimum(np.maximum(low, self.min), high)  # the bin of 0 holds denormals too, and stays 0
        mean = np.clip(mean, low, high)
        # n samples scatter around their own mean with (n - 1) / n of the density's variance: none for a single one
        half = np.minimum(mean - low, high - mean) * np.sqrt((self.counts - 1) / self.counts)
        return low, high, mean, half

    @functools.cached_property
    def mean_square(self) -> float:
        """Mean of the squared elements."""
        _, _, mean, half = self._bins
        return float((self.counts * (mean**2 + half**2 / 3)).sum() / self.total)

    @property
    def mean(self) -> float:
        """Mean of the elements; exact but for float64 rounding."""
        return float((self.counts * self._bins[2]).sum() / self.total)

    def error(self, params: QuantParams) -> RangeError:
        """Error of a per-tensor grid on the counted elements, in O(bins).

        Within a bin the density is taken as uniform around the bin's exact mean. For a bin of one code the squared error
        is then (mean - value)**2 + half**2 / 3; for a bin of several codes it is the integral of the squared distance
        to the nearest grid point, which is step**2 / 12 for every whole step; beyond the ends it is the squared distance
        to the end.

        Raises
        ------
        PlanError
            For a per-channel grid: one histogram knows nothing of channels.
        """
        if params.axis is not None:
            raise PlanError("a histogram knows nothing of channels: give it a per-tensor grid.")
        _, scale, low, high = params.scalars
        return self.grid_error(scale, low, high)

    def grid_error(self, scale: float, low: float, high: float) -> RangeError:
        """`error` of the grid ``scale * (low..high)``, codes counted from the zero point."""
        rounding, clipping = self.mean_squared_error(scale, low, high)
        clipped = 1.0 - self.share_between(scale * (low - 0.5), scale * (high + 0.5))
        return RangeError(rounding, clipping, clipped, self.mean_square)

    def mean_squared_error(self, scale: float, low: float, high: float) -> tuple[float, float]:
        """By rounding and by clipping on the same grid: all that a search for the best one needs, and its inner loop."""
        loops = kernels()
        of = _grid_error if loops is None else loops.histogram_error
        _, _, mean, half = self._bins
        rounding, clipping = of(mean, half, self.counts, scale, low, high)
        return rounding / self.total, clipping / self.total

    def share_between(self, lo: float, hi: float) -> float:
        """Share of the elements in ``[lo, hi]``, 0 to 1, interpolated inside the two bins at the ends."""
        if lo <= self.min and self.max <= hi:
            return 1.0
        low, high, _, _ = self._bins
        width = high - low
        overlap = np.minimum(high, hi) - np.maximum(low, lo)
        inside = np.where(width > 0, np.clip(overlap / np.where(width > 0, width, 1.0), 0.0, 1.0), overlap >= 0)
        return float((self.counts * inside).sum() / self.total)

    def quantile(self, share: float) -> float:
        """The value below which `share` (0 to 1) of the elements lie, interpolated inside its bin."""
        if not 0.0 <= share <= 1.0:
            raise PlanError(f"a quantile's share is between 0 and 1, not {share!r}.")
        low, high, _, _ = self._bins
        upto = np.cumsum(self.counts)
        target = share * upto[-1]
        at = int(min(np.searchsorted(upto, target), len(upto) - 1))
        before = upto[at] - self.counts[at]
        return float(low[at] + (high[at] - low[at]) * np.clip((target - before) / self.counts[at], 0.0, 1.0))

    def linear(self, bins: int, lo: float | None = None, hi: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Counts in `bins` equal bins over ``[lo, hi]`` for drawing (a bin that straddles an edge is shared out), and edges.

        Returns
        -------
        counts
            float64 (bins,).
        edges
            float64 (bins + 1,).
        """
        lo, hi = self.min if lo is None else lo, self.max if hi is None else hi
        if hi <= lo:
            lo, hi = lo - 0.5, hi + 0.5
        edges = np.linspace(lo, hi, bins + 1)
        low, high, _, _ = self._bins
        width = np.maximum(high - low, (hi - lo) * 1e-9)
        counts = np.zeros(bins)
        first = np.clip(np.searchsorted(edges, low, side="right") - 1, 0, bins - 1)
        last = np.clip(np.searchsorted(edges, low + width, side="left") - 1, 0, bins - 1)
        inside = (low + width > lo) & (low <= hi)
        # a bin across the drawing's own ends is shared out too, even if it meets a single drawn bin
        one = inside & (first == last) & (low >= lo) & (high <= hi)
        np.add.at(counts, first[one], self.counts[one])
        for i in np.flatnonzero(inside & ~one):
            span = slice(first[i], last[i] + 1)
            overlap = np.minimum(edges[1:][span], low[i] + width[i]) - np.maximum(edges[:-1][span], low[i])
            counts[span] += self.counts[i] * np.clip(overlap, 0.0, None) / width[i]
        return counts, edges

    def to_dict(self) -> dict[str, Any]:
        """The counts as plain lists."""
        return {
            "keys": self.keys.tolist(),
            "counts": self.counts.tolist(),
            "lows": self.lows.tolist(),
            "min": self.min,
            "max": self.max,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Histogram:
        """Inverse of `to_dict`."""
        return cls(
            np.asarray(data["keys"], np.uint16),
            np.asarray(data["counts"], np.int64),
            np.asarray(data["lows"], np.int64),
            float(data["min"]),
            float(data["max"]),
        )

    def __repr__(self) -> str:
        return f"Histogram({self.total} elements in {len(self.keys)} bins, {self.min:.6g} to {self.max:.6g})"


def _grid_error(
    mean: np.ndarray, half: np.ndarray, count: np.ndarray, scale: float, low: float, high: float
) -> tuple[float, float]:
    """`qkit.quant.kernels.histogram_error` without its loop."""
    bottom, top = low * scale, high * scale
    a, b = mean - half, mean + half
    under, over = b <= bottom - 0.5 * scale, a >= top + 0.5 * scale
    end = np.where(under, bottom, top)
    clipped = count * ((mean - end) ** 2 + half * half / 3.0)
    first, last = (np.clip(np.rint(edge / scale), low, high) for edge in (a, b))
    # one code for the whole bin: exact, and free of the cancellation that the integral below would have
    within = (first == last) & (a >= bottom - 0.5 * scale) & (b <= top + 0.5 * scale)
    alone = count * ((mean - first * scale) ** 2 + half * half / 3.0)
    density = count / np.where(within | (b == a), 1.0, b - a)
    cut_a, cut_b = np.maximum(a, bottom - 0.5 * scale), np.minimum(b, top + 0.5 * scale)
    ends = np.where(a < cut_a, (cut_a - bottom) ** 3 - (a - bottom) ** 3, 0.0)
    ends = ends + np.where(b > cut_b, (b - top) ** 3 - (cut_b - top) ** 3, 0.0)
    ra, rb = cut_a - first * scale, cut_b - last * scale
    spread = density * ((last - first) * scale**3 / 12.0 + (rb**3 - ra**3) / 3.0)
    beyond = under | over
    rounding = np.where(beyond, 0.0, np.where(within, alone, spread))
    clipping = np.where(beyond, clipped, np.where(within, 0.0, density * ends / 3.0))
    return float(rounding.sum()), float(clipping.sum())


def observe(x: Tensor, axis: int, *, name: str = "tensor") -> tuple[Histogram, np.ndarray, np.ndarray]:
    """Histogram of a float32 tensor, and every channel's least and greatest value, float32 (C,), in one pass.

    Raises
    ------
    DataError
        If the tensor is empty, not float32, or holds NaN or infinity; `name` is its name in the message.
    """
    if x.dtype != torch.float32 or x.numel() == 0:
        raise DataError(f"{name}: a histogram needs a non-empty torch.float32 tensor, not {x.dtype} of shape {tuple(x.shape)}.")
    x = x.detach()
    loops = kernels() if x.device.type == "cpu" else None
    if loops is not None:
        apart = blocks(x, axis)
        array, channels = rows(channels_innermost(x, axis), axis) if apart is None else (apart.reshape(-1, apart.shape[2]), 1)
        parts = loops.observe(array)
        low = np.min([p.least for p in parts], axis=0).reshape(-1, channels).min(0)
        high = np.max([p.greatest for p in parts], axis=0).reshape(-1, channels).max(0)
        if apart is not None:
            low = apart.min((1, 2)).reshape(-1, x.shape[axis]).min(0)
            high = apart.max((1, 2)).reshape(-1, x.shape[axis]).max(0)
        tables = [(p.keys, p.counts, p.lows) for p in parts]
    else:
        tables = [counted(count_on_device(x))]
        low, high = (bound.cpu().numpy() for bound in by_channel(x, axis).aminmax(dim=1))
    for keys, counts, _ in tables:
        refuse_non_finite(name, keys, counts)
    least, greatest = float(low.min()), float(high.max())
    histograms = [Histogram._ordered(*table, least, greatest) for table in tables]
    return (histograms[0] if len(histograms) == 1 else Histogram.merge(histograms)), low, high


def refuse_non_finite(name: str, keys: np.ndarray, counts: np.ndarray) -> None:
    """Raise `DataError` naming the tensor if bins of NaN or infinity are among those in use."""
    bad = (keys & 0x7F80) == 0x7F80
    if bad.any():
        raise DataError(
            f"{name}: {int(counts[bad].sum())} of {int(counts.sum())} elements are NaN or infinite; find where they arise "
            "(weights, input scaling, a division) before asking about quantization."
        )


def count_on_device(x: Tensor, out: Tensor | None = None) -> Tensor:
    """Counts, and sums of the floats' lower 16 bits, by their upper 16 bits: int64 (2, 65536) on the device, or `out`."""
    flat = dense(x)
    out = torch.empty((2, KEYS), dtype=torch.int64, device=x.device) if out is None else out
    if (loops := kernels_for(x.device)) is not None:
        loops.count(flat, out)
        return out
    bits = flat.view(torch.int32)
    key = (bits >> 16) & 0xFFFF
    out[0] = torch.bincount(key, minlength=KEYS)
    out[1] = torch.bincount(key, (bits & 0xFFFF).double(), minlength=KEYS)
    return out


def counted(table: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of a table of `count_on_device` the bins in use, ascending, their counts and sums."""
    used = torch.nonzero(table[0]).view(-1)
    found = torch.stack([used, table[0][used], table[1][used]]).cpu().numpy()
    return found[0], found[1], found[2]


def from_tables(tables: Tensor, extremes: Sequence[tuple[float, float]]) -> list[Histogram]:
    """Histograms of several tables of `count_on_device`, int64 (T, 2, 65536), with each one's extremes; one copy to the host."""
    at, key = torch.nonzero(tables[:, 0], as_tuple=True)
    found = torch.stack([at, key, tables[at, 0, key], tables[at, 1, key]]).cpu().numpy()
    ends = np.searchsorted(found[0], np.arange(len(tables) + 1))
    parts = [slice(*pair) for pair in itertools.pairwise(ends)]
    _, keys, counts, lows = found
    return [
        Histogram._ordered(keys[part], counts[part], lows[part], low, high)
        for part, (low, high) in zip(parts, extremes, strict=True)
    ]
