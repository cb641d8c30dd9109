"""Counts are numpy's to the last element; errors and quantiles read off the bins are the raw tensor's."""

from __future__ import annotations

import json
import math
import re
from functools import cache, reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import rounded_by_torch

from qkit.errors import DataError, PlanError
from qkit.quant.grids import QuantSpec
from qkit.quant.histogram import Histogram, observe

SIZE = 100_000
#: The widest bin relative to the values in it: 7 bits of mantissa.
BIN = 2.0**-7


@cache
def data(kind: str, size: int = SIZE, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=size)
    made = {
        "normal": lambda: normal,
        "tiny normal": lambda: normal * 1e-6,
        "laplace": lambda: rng.laplace(size=size),
        "relu": lambda: np.maximum(normal, 0.0),
        "relu6": lambda: np.clip(normal * 4, 0.0, 6.0),
        "outliers": lambda: np.where(rng.random(size) < 1e-4, normal * 300, normal),
        "one-sided outliers": lambda: np.where(rng.random(size) < 1e-4, np.abs(normal) * 300, np.maximum(normal, 0)),
        "shifted": lambda: normal + 5.0,
        "negative": lambda: -np.abs(normal),
        "student": lambda: rng.standard_t(2, size=size),
    }
    return made[kind]().astype(np.float32)


KINDS = ["normal", "tiny normal", "laplace", "relu", "relu6", "outliers", "one-sided outliers", "shifted", "negative", "student"]


def measured(x: np.ndarray, params) -> tuple[float, float, float]:
    """Rounding and clipping error and share clipped of the raw tensor, by torch's operator and float64."""
    y = rounded_by_torch(torch.from_numpy(x), params).numpy()
    error = (y.astype(np.float64) - x) ** 2
    with np.errstate(over="ignore"):  # all of a negative tensor on an unsigned grid lies infinitely far out
        steps = np.rint(x * np.float32(1 / np.float32(params.scale))) + int(params.zero_point)
    beyond = (steps < params.qmin) | (steps > params.qmax)
    return error[~beyond].sum() / x.size, error[beyond].sum() / x.size, float(beyond.mean())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 4, 6, 8, 12, 16])
@pytest.mark.parametrize(("symmetric", "signed"), [(True, True), (True, None), (True, False), (False, None), (False, False)])
def test_error_is_within_1_percent_of_the_raw_tensors(kind: str, bits: int, symmetric: bool, signed: bool | None) -> None:
    x = data(kind)
    hist = Histogram.of(torch.from_numpy(x))
    for width in (4.0, 1.0, 0.7, 0.4, 0.1, 0.02):
        low, high = min(float(x.min()), 0.0) * width, max(float(x.max()), 0.0) * width
        params = QuantSpec(bits, symmetric, signed).params(low, high)
        rounding, clipping, share = measured(x, params)
        got = hist.error(params)
        assert got.total == pytest.approx(rounding + clipping, rel=0.01), width
        # how the total is split depends on the few elements of the bins at the two ends
        border = 0.01 * (rounding + clipping)
        assert got.rounding == pytest.approx(rounding, rel=0.01, abs=border), width
        assert got.clipping == pytest.approx(clipping, rel=0.01, abs=border), width
        assert got.clipped == pytest.approx(share, abs=0.003), width
        assert got.signal == pytest.approx(float((x.astype(float) ** 2).mean()), rel=1e-4)
        expected = 10 * math.log10((x.astype(float) ** 2).mean() / (rounding + clipping))
        assert got.sqnr == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("low", [0.0, -0.2, -3.0])
@pytest.mark.parametrize("high", [0.0, 0.3, 5.0])
def test_error_of_one_sided_and_lopsided_ranges(low: float, high: float) -> None:
    if low == high:
        return
    x = data("normal")
    params = QuantSpec(8, symmetric=False).params(low, high)
    rounding, clipping, _ = measured(x, params)
    assert Histogram.of(torch.from_numpy(x)).error(params).total == pytest.approx(rounding + clipping, rel=0.01)


def test_error_on_a_power_of_two_grid() -> None:
    x = data("laplace")
    hist = Histogram.of(torch.from_numpy(x))
    for top in (1.0, 3.0, 17.0):
        params = QuantSpec(8, power_of_two=True).params(-top, top)
        assert hist.error(params).total == pytest.approx(sum(measured(x, params)[:2]), rel=0.01)


def test_error_of_a_constant_is_exact() -> None:
    for value in (3.3, -0.7, 1e-20, 1e20, 0.0):
        hist = Histogram.of(torch.full((1000,), value))
        params = QuantSpec(8).params(min(value, 0) * 1.3, max(value, 0) * 1.3)
        x = torch.full((1000,), value)
        raw, _, _ = measured(x.numpy(), params)
        assert hist.error(params).total == pytest.approx(raw, rel=1e-3, abs=1e-12 * value**2)


def test_no_error_has_infinite_sqnr() -> None:
    error = Histogram.of(torch.zeros(5)).error(QuantSpec(8).params(-1.0, 1.0))
    assert (error.total, error.clipped, error.signal) == (0.0, 0.0, 0.0)
    assert error.sqnr == math.inf


def test_a_grid_per_channel_is_refused() -> None:
    with pytest.raises(PlanError, match="channels"):
        Histogram.of(torch.ones(3)).error(QuantSpec(8).params(torch.zeros(3), torch.ones(3), axis=0))


def value_bins(hist: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """Every bin's sign and magnitude interval from its key, in float64."""
    inner = ((hist.keys & 0x7FFF).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.where(hist.keys >= 0x8000, -1.0, 1.0), inner


@pytest.mark.parametrize("kind", KINDS)
def test_counts_equal_numpys(kind: str) -> None:
    """Against numpy's own histogram, its edges put where the format's bins begin."""
    x = data(kind)
    hist = Histogram.of(torch.from_numpy(x))
    sign, inner = value_bins(hist)
    for side in (1.0, -1.0):
        mine = sign == side
        order = np.argsort(inner[mine])
        magnitude = x[np.copysign(1.0, x) == side].astype(np.float64) * side
        edges = ((np.arange(0x7F81, dtype=np.uint32)) << 16).view(np.float32)[:-1].astype(np.float64)
        counts, _ = np.histogram(magnitude, np.append(edges, np.inf))
        used = np.flatnonzero(counts)
        np.testing.assert_array_equal(edges[used], inner[mine][order])
        np.testing.assert_array_equal(counts[used], hist.counts[mine][order])
    assert hist.total == x.size
    assert (hist.min, hist.max) == (float(x.min()), float(x.max()))
    assert hist.mean == pytest.approx(float(x.astype(np.float64).mean()), rel=1e-9, abs=1e-9 * float(np.abs(x).max()))
    assert hist.zeros == int((x == 0).sum())


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=60))
@settings(deadline=None, max_examples=300)
def test_any_values_are_counted_and_ordered(values: list[float]) -> None:
    x = np.array(values, np.float32)
    hist = Histogram.of(torch.from_numpy(x))
    keys, counts = np.unique((x.view(np.uint32) >> 16).astype(np.uint16), return_counts=True)
    assert dict(zip(hist.keys.tolist(), hist.counts.tolist(), strict=True)) == dict(
        zip(keys.tolist(), counts.tolist(), strict=True)
    )
    sign, inner = value_bins(hist)
    assert bool((np.diff(sign * inner) >= 0).all())
    assert (hist.min, hist.max) == (float(x.min()), float(x.max()))
    quantiles = [hist.quantile(share) for share in (0.0, 0.3, 0.5, 1.0)]
    # bins below 2**-133 hold 0 and denormals alike
    assert quantiles == sorted(quantiles)
    assert quantiles[0] == pytest.approx(hist.min, abs=1e-39)
    assert quantiles[-1] == pytest.approx(hist.max, abs=1e-39)


@given(
    st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=30), min_size=2, max_size=6),
    st.randoms(use_true_random=False),
)
@settings(deadline=None, max_examples=150)
def test_streaming_equals_the_whole_in_any_order(batches: list[list[float]], order) -> None:
    whole = Histogram.of(torch.tensor([v for batch in batches for v in batch]))
    parts = [Histogram.of(torch.tensor(batch)) for batch in batches]
    order.shuffle(parts)
    for merged in (
        Histogram.merge(parts),
        reduce(Histogram.__add__, parts),
        Histogram.merge([Histogram.merge(parts[:2]), *parts[2:]]),
    ):
        np.testing.assert_array_equal(merged.keys, whole.keys)
        np.testing.assert_array_equal(merged.counts, whole.counts)
        np.testing.assert_array_equal(merged.lows, whole.lows)
        assert (merged.min, merged.max) == (whole.min, whole.max)


def test_ranges_that_double_resample_nothing() -> None:
    """Each batch spans twice the one before; the first batch's bins are what they were."""
    x = data("normal", 10_000)
    first = Histogram.of(torch.from_numpy(x))
    total = first
    for octave in range(1, 12):
        total = total + Histogram.of(torch.full((3,), float(np.abs(x).max()) * 2.0**octave))
    kept = {key: count for key, count in zip(total.keys.tolist(), total.counts.tolist(), strict=True) if key in first.keys}
    assert kept == dict(zip(first.keys.tolist(), first.counts.tolist(), strict=True))
    assert total.total == x.size + 33


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0001, 0.001, 0.01, 0.25, 0.5, 0.9, 0.999, 0.9999])
def test_quantiles_are_numpys_to_a_bin(kind: str, share: float) -> None:
    x = data(kind)
    expected = float(np.quantile(x.astype(np.float64), share))
    got = Histogram.of(torch.from_numpy(x)).quantile(share)
    # beside the bin's width, the distance to the neighbours in the sparse tails
    ordered = np.sort(x)
    at = int(share * (x.size - 1))
    neighbours = ordered[max(at - 1, 0)], ordered[min(at + 2, x.size - 1)]
    assert neighbours[0] - abs(neighbours[0]) * BIN <= got <= neighbours[1] + abs(neighbours[1]) * BIN
    assert got == pytest.approx(expected, rel=2 * BIN, abs=float(neighbours[1] - neighbours[0]))


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_a_quantile_beyond_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(PlanError, match=rf"\b0\b.*\b1\b.*{share}"):
        Histogram.of(torch.ones(3)).quantile(share)


@pytest.mark.parametrize("kind", KINDS)
def test_share_between(kind: str) -> None:
    x = data(kind)
    hist = Histogram.of(torch.from_numpy(x))
    for low, high in ((-1.0, 1.0), (0.0, 2.0), (-50.0, 0.5), (float(x.min()), float(x.max())), (1e9, 2e9)):
        assert hist.share_between(low, high) == pytest.approx(float(((x >= low) & (x <= high)).mean()), abs=0.004)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bins", [1, 10, 64, 2048])
def test_equal_bins_for_drawing(kind: str, bins: int) -> None:
    x = data(kind)
    hist = Histogram.of(torch.from_numpy(x))
    counts, edges = hist.linear(bins)
    assert counts.shape == (bins,)
    assert edges.shape == (bins + 1,)
    assert counts.sum() == pytest.approx(x.size, rel=1e-9)
    expected, _ = np.histogram(x.astype(np.float64), edges)
    # what lies in a bin that straddles an edge may come out on its other side: a neighbour's worth, at most
    cumulative = np.abs(np.cumsum(counts) - np.cumsum(expected))
    assert cumulative.max() <= 0.005 * x.size + 1


@pytest.mark.parametrize(("low", "high"), [(-1.003, 1.003), (0.0, 1.0), (0.501, 0.507), (-100.0, 100.0), (50.0, 60.0)])
@pytest.mark.parametrize("bins", [1, 7])
def test_equal_bins_over_part_of_the_range(low: float, high: float, bins: int) -> None:
    x = data("normal")
    counts, _ = Histogram.of(torch.from_numpy(x)).linear(bins, low, high)
    expected, _ = np.histogram(x, np.linspace(low, high, bins + 1))
    assert counts.sum() == pytest.approx(expected.sum(), rel=0.02, abs=30)


def test_equal_bins_of_a_constant() -> None:
    for value in (0.0, 2.0, -1e-3):
        counts, edges = Histogram.of(torch.full((9,), value)).linear(5)
        assert counts.sum() == pytest.approx(9)
        assert edges[0] < value < edges[-1]


@pytest.mark.parametrize(
    "shape", [(), (1,), (5,), (1, 1), (4, 3), (2, 3, 5), (2, 7, 6, 6), (1, 3, 97, 89), (2, 3, 2, 3, 4), (3, 2500)]
)
@pytest.mark.parametrize("memory", ["contiguous", "moved", "strided"])
def test_extremes_of_every_channel(shape: tuple[int, ...], memory: str) -> None:
    x = torch.randn(shape)
    if memory == "moved" and x.ndim > 2:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    if memory == "strided" and x.ndim:
        x = torch.stack([x, x + 100], -1)[..., 0]
    for axis in range(max(x.ndim, 1)):
        hist, low, high = observe(x, axis)
        channels = x.movedim(axis, 0).reshape(x.shape[axis], -1) if x.ndim else x.reshape(1, 1)
        np.testing.assert_array_equal(low, channels.amin(1).numpy())
        np.testing.assert_array_equal(high, channels.amax(1).numpy())
        assert hist.total == x.numel()
        assert (hist.min, hist.max) == (float(x.min()), float(x.max()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(1,), (9,), (2, 3, 5, 5), (300, 1000)])
def test_non_finite_input_names_the_tensor(bad: float, shape: tuple[int, ...]) -> None:
    for place in (0, -1):
        x = torch.randn(shape)
        x.view(-1)[place] = bad
        with pytest.raises(DataError, match=rf"^layer4\.relu\b.*\b1\b.*\b{x.numel()}\b.*NaN"):
            observe(x, 0, name="layer4.relu")
    # and the next tensor's counts are its own
    clean = torch.ones(shape)
    assert Histogram.of(clean).counts.tolist() == [clean.numel()]


def test_channels_that_lie_apart_have_their_own_extremes() -> None:
    x = torch.randn(2, 3, 64, 49, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1]).view(1, 3, 1, 1)
    seen, low, high = observe(x, 1)
    assert np.array_equal(low, x.amin((0, 2, 3)).numpy())
    assert np.array_equal(high, x.amax((0, 2, 3)).numpy())
    assert np.array_equal(seen.counts, Histogram.of(x.reshape(-1)).counts)


def test_a_negative_nan_among_ordinary_numbers() -> None:
    x = np.ones(1000, np.float32)
    x.view(np.uint32)[[3, 500]] = 0xFFC00001, 0x7F800001
    with pytest.raises(DataError, match=r"^x\b.*\b2\b.*\b1000\b.*NaN"):
        Histogram.of(torch.from_numpy(x), name="x")


@pytest.mark.parametrize("x", [torch.empty(0), torch.ones(3).double(), torch.ones(3).half(), torch.tensor([1, 2])])
def test_other_tensors_are_refused_by_name(x: torch.Tensor) -> None:
    with pytest.raises(DataError, match=rf"^stem\b.*torch\.float32.*{x.dtype}.*{re.escape(str(tuple(x.shape)))}"):
        Histogram.of(x, name="stem")


def test_the_tensor_is_left_alone_and_may_require_grad() -> None:
    x = torch.randn(4, 5, requires_grad=True)
    before = x.detach().clone()
    assert Histogram.of(x).total == 20
    assert torch.equal(x, before)


def test_through_json_and_back() -> None:
    hist = Histogram.of(torch.from_numpy(data("outliers", 5000)))
    again = Histogram.from_dict(json.loads(json.dumps(hist.to_dict())))
    np.testing.assert_array_equal(again.keys, hist.keys)
    np.testing.assert_array_equal(again.counts, hist.counts)
    np.testing.assert_array_equal(again.lows, hist.lows)
    assert (again.min, again.max) == (hist.min, hist.max)
    params = QuantSpec(8).params(-2.0, 2.0)
    assert again.error(params) == hist.error(params)
    assert (again + hist).total == 10_000
    assert "5000 elements" in repr(hist)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("shape", [(), (5,), (4, 3), (2, 7, 6, 6), (3, 2500)])
def test_a_gpu_counts_the_same(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    for axis in range(max(x.ndim, 1)):
        hist, low, high = observe(x, axis)
        there, low_there, high_there = observe(x.cuda(), axis)
        for mine, theirs in ((hist.keys, there.keys), (hist.counts, there.counts), (hist.lows, there.lows)):
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(low, low_there)
        np.testing.assert_array_equal(high, high_there)
