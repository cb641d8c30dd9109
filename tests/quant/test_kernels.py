"""The compiled loops against torch's operators and float64 arithmetic in numpy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import rounded_by_torch

from qkit.graph.table import UNBOUNDED
from qkit.quant import kernels
from qkit.quant.grids import QuantParams, QuantSpec

#: Neither rows nor positions are multiples of a vector, of the flush interval or of the number of threads.
SHAPES = [(1, 1), (1, 7), (3, 1), (65, 2), (64, 33), (63, 96), (1, 70_001), (129, 2048), (70_001, 1), (201, 1003)]
GRIDS = [
    QuantSpec(8, symmetric=False).params(-1.3, 2.1),
    QuantSpec(8).params(0.0, 1.5),
    QuantSpec(16).params(-5.0, 5.0),
    QuantSpec(2, narrow=True).params(-1.0, 1.0),
    QuantSpec(5, power_of_two=True).params(-0.7, 0.2),
]
ACTS = [UNBOUNDED, (0.0, float("inf")), (0.0, 6.0), (-1.0, 1.0)]


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def quantized(y: np.ndarray, params: QuantParams, act: tuple[float, float]) -> np.ndarray:
    """By torch's own operator."""
    return rounded_by_torch(torch.from_numpy(y).clamp(*act), params).numpy()


def sums_of(y: np.ndarray, f: np.ndarray, params: QuantParams, act: tuple[float, float]) -> dict[str, np.ndarray]:
    """What `measure` takes, per position, in float64 throughout."""
    clamped = np.clip(y, *np.float32(act)).astype(np.float64)
    value = quantized(y, params, act).astype(np.float64)
    reciprocal = np.float32(1.0) / np.float32(params.scale)
    steps = np.rint(np.clip(y, *np.float32(act)) * reciprocal) + int(params.zero_point)
    beyond = (steps < params.qmin) | (steps > params.qmax)
    error, own = value - f, value - clamped
    return {
        "squared": (error**2).sum(0),
        "product": (f * error).sum(0),
        "absolute": np.abs(error).sum(0),
        "excess": np.where(beyond, own**2, 0.0).sum(0),
        "clipped": beyond.sum(0).astype(float),
        "own": (own**2).sum(0),
        "peak": np.abs(error).max(0),
        "least": value.min(0),
        "greatest": value.max(0),
    }


@pytest.mark.parametrize("size", [1, 2, 7, 31, 1000, 65_535, 65_537, 200_003])
@pytest.mark.parametrize("params", GRIDS, ids=repr)
@pytest.mark.parametrize("act", ACTS)
def test_quantize_flat_equals_torch(size: int, params: QuantParams, act: tuple[float, float], threads: int) -> None:
    y = normal((size,)) * 3
    expected = quantized(y, params, act)
    kernels.quantize_flat(y, params.scalars, act)
    np.testing.assert_array_equal(y, expected)


@given(
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    low=st.floats(-(2.0**100), 0.0, width=32),
    high=st.floats(0.0, 2.0**100, width=32),
    values=st.lists(st.floats(-(2.0**101), 2.0**101, width=32), min_size=1, max_size=40),
)
@settings(deadline=None, max_examples=200)
def test_quantize_flat_equals_torch_on_any_grid(bits: int, symmetric: bool, low: float, high: float, values: list[float]) -> None:
    params = QuantSpec(bits, symmetric).params(low, high)
    y = np.array(values, np.float32)
    # torch casts steps to int64: beyond its range the wrong end comes out
    y = np.clip(y, *(np.float32(side * min(2.0**31 * float(params.scale), 2.0**127)) for side in (-1, 1)))
    expected = quantized(y, params, UNBOUNDED)
    kernels.quantize_flat(y, params.scalars, UNBOUNDED)
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (5, 1), (33, 27), (301, 1003)])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantize_rows_equals_torch_per_channel(shape: tuple[int, int], symmetric: bool, threads: int) -> None:
    y = normal(shape) * np.geomspace(1e-3, 1e3, shape[0], dtype=np.float32)[:, None]
    before = y.copy()
    x = torch.from_numpy(y)
    params = QuantSpec(8, symmetric).params(x.amin(1) * 0.8, (x.amax(1) * 0.8).clamp(min=1e-6).maximum(x.amin(1) * 0.8), axis=0)
    expected = rounded_by_torch(x, params)
    out = np.full_like(y, np.nan)
    low, high = ((code - params.zero_point).float().numpy() for code in (params.qmin, params.qmax))
    kernels.quantize_rows(y, out, (1.0 / params.scale).numpy(), params.scale.numpy(), low, high)
    np.testing.assert_array_equal(out, expected.numpy())
    np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("params", GRIDS, ids=repr)
@pytest.mark.parametrize("act", ACTS)
def test_measure_against_float64(shape: tuple[int, int], params: QuantParams, act: tuple[float, float], threads: int) -> None:
    y, f = normal(shape, 1) * 2, normal(shape, 2) * 2
    expected, value = sums_of(y, f, params, act), quantized(y, params, act)
    sums, peaks = kernels.measure(y, f, params.scalars, act)
    np.testing.assert_array_equal(y, value)
    weight = np.abs(f * (value.astype(float) - f)).sum(0)
    assert np.all(np.abs(sums[kernels.PRODUCT] - expected["product"]) <= 1e-5 * weight + 1e-12)
    for row, name in (
        (kernels.SQUARED, "squared"),
        (kernels.ABSOLUTE, "absolute"),
        (kernels.OWN, "own"),
        (kernels.EXCESS, "excess"),
    ):
        # int16's own error is a difference of near numbers: to the digits that float32 holds of them
        np.testing.assert_allclose(sums[row], expected[name], rtol=2e-5, atol=1e-10, err_msg=name)
    np.testing.assert_array_equal(sums[kernels.CLIPPED], expected["clipped"])
    np.testing.assert_allclose(peaks[kernels.PEAK], expected["peak"], rtol=1e-6)
    np.testing.assert_array_equal(peaks[kernels.LEAST], expected["least"])
    np.testing.assert_array_equal(peaks[kernels.GREATEST], expected["greatest"])


def test_measure_keeps_the_digits_of_a_16_bit_error(threads: int) -> None:
    """An error 90 dB below the signal, which sums of squares in float32 would lose."""
    f = normal((400, 512))
    y = f.copy()
    params = QuantSpec(16).params(-6.0, 6.0)
    expected = (quantized(f, params, UNBOUNDED).astype(float) - f) ** 2
    sums, _ = kernels.measure(y, f, params.scalars, UNBOUNDED)
    np.testing.assert_allclose(sums[kernels.SQUARED].sum(), expected.sum(), rtol=1e-6)
    np.testing.assert_allclose(sums[kernels.OWN].sum(), expected.sum(), rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("act", ACTS)
def test_local_error_against_float64(shape: tuple[int, int], act: tuple[float, float], threads: int) -> None:
    y, f = normal(shape, 1) * 2, normal(shape, 2) * 2
    before = y.copy()
    for params in GRIDS:
        local = kernels.local_error(y, f, params.scalars, act)
        np.testing.assert_allclose(local, sums_of(y, f, params, act)["squared"], rtol=2e-5, atol=1e-10)
        np.testing.assert_array_equal(y, before)


@pytest.mark.parametrize("shape", SHAPES)
def test_describe_against_float64(shape: tuple[int, int], threads: int) -> None:
    f = normal(shape)
    squared, least, greatest = kernels.describe(f)
    np.testing.assert_allclose(squared, (f.astype(np.float64) ** 2).sum(0), rtol=1e-5)
    np.testing.assert_array_equal(least, f.min(0))
    np.testing.assert_array_equal(greatest, f.max(0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", SHAPES)
def test_describe_lets_non_finite_values_show(bad: float, shape: tuple[int, int], threads: int) -> None:
    """The loops are compiled to ignore NaN; the caller's check of the sums has to fire nevertheless."""
    for place in {0, shape[0] * shape[1] // 2, shape[0] * shape[1] - 1}:
        f = normal(shape)
        f.reshape(-1)[place] = bad
        squared, _, _ = kernels.describe(f)
        hit = ~np.isfinite(squared)
        assert hit.tolist() == (np.arange(shape[1]) == place % shape[1]).tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_observe_counts_exactly(shape: tuple[int, int], threads: int) -> None:
    f = np.maximum(normal(shape), -0.5)
    f.reshape(-1)[::3] = 0.0
    keys, lows = (f.view(np.uint32) >> 16).reshape(-1), (f.view(np.uint32) & 0xFFFF).reshape(-1)
    counts, sums = np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64)
    least, greatest = np.full(shape[1], np.inf), np.full(shape[1], -np.inf)
    for part in kernels.observe(f):
        counts[part.keys] += part.counts
        sums[part.keys] += part.lows
        least, greatest = np.minimum(least, part.least), np.maximum(greatest, part.greatest)
    np.testing.assert_array_equal(counts, np.bincount(keys, minlength=1 << 16))
    np.testing.assert_array_equal(sums, np.bincount(keys, lows, minlength=1 << 16).astype(np.int64))
    np.testing.assert_array_equal(least, f.min(0))
    np.testing.assert_array_equal(greatest, f.max(0))


@pytest.mark.parametrize("width", [1, 2, 3, 4])
@pytest.mark.usefixtures("one_thread")
def test_observe_counts_more_equal_elements_than_an_entry_holds(width: int) -> None:
    """24 bits of a packed entry count, one of them the sign: short rows put all elements of a bin into one table."""
    count = (1 << 23) // width + 5
    value = np.array(1.0, np.float32).view(np.uint32) | np.uint32(0xFFFF)
    f = np.full((count, width), value, np.uint32).view(np.float32)
    parts = kernels.observe(f)
    assert sum(part.counts.sum() for part in parts) == count * width
    assert sum(part.lows.sum() for part in parts) == count * width * 0xFFFF


def test_an_interrupt_leaves_no_counts_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook's Ctrl-C is raised when the compiled loop returns; the thread's kept tables have to be clean afterwards."""
    f = normal((10, 10))
    (before,) = kernels.observe(f)
    compiled = kernels._count

    def interrupted(*args) -> None:
        compiled(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "_count", interrupted)
    with pytest.raises(KeyboardInterrupt):
        kernels.observe(f)
    monkeypatch.undo()
    (after,) = kernels.observe(f)
    np.testing.assert_array_equal(after.keys, before.keys)
    np.testing.assert_array_equal(after.counts, before.counts)
    np.testing.assert_array_equal(after.lows, before.lows)


def test_threads_change_the_last_digits_of_sums_only() -> None:
    y, f = normal((301, 1003), 1), normal((301, 1003), 2)
    results = {}
    before = torch.get_num_threads()
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        copy = y.copy()
        results[count] = (copy, *kernels.measure(copy, f, GRIDS[0].scalars, UNBOUNDED), kernels.describe(f)[0])
    torch.set_num_threads(before)
    for count in (2, 3, 5):
        np.testing.assert_array_equal(results[count][0], results[1][0])
        np.testing.assert_array_equal(results[count][2], results[1][2])
        np.testing.assert_allclose(results[count][1].sum(1), results[1][1].sum(1), rtol=1e-6)
        np.testing.assert_allclose(results[count][3].sum(), results[1][3].sum(), rtol=1e-6)


def test_several_python_threads_at_once(threads: int) -> None:
    """A notebook's cell and a widget's callback may enter at the same moment."""
    inputs = [normal((97 + i, 1001), i) for i in range(6)]
    alone = [kernels.observe(f) for f in inputs]
    alone_sums = [kernels.measure(f.copy(), inputs[0][:1].repeat(len(f), 0), GRIDS[0].scalars, UNBOUNDED)[0] for f in inputs]
    gate = threading.Barrier(len(inputs))

    def work(i: int) -> None:
        gate.wait()
        f = inputs[i]
        for _ in range(5):
            for got, want in zip(kernels.observe(f), alone[i], strict=True):
                np.testing.assert_array_equal(got.keys, want.keys)
                np.testing.assert_array_equal(got.counts, want.counts)
                np.testing.assert_array_equal(got.lows, want.lows)
            copy = f.copy()
            sums, _ = kernels.measure(copy, inputs[0][:1].repeat(len(f), 0), GRIDS[0].scalars, UNBOUNDED)
            np.testing.assert_array_equal(sums, alone_sums[i])
            np.testing.assert_array_equal(copy, quantized(f, GRIDS[0], UNBOUNDED))

    with ThreadPoolExecutor(len(inputs)) as pool:
        for done in [pool.submit(work, i) for i in range(len(inputs))]:
            done.result()


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
def test_parallel_covers_every_row_once(rows: int, threads: int) -> None:
    parts = kernels.parallel(lambda a, b: list(range(a, b)), rows, kernels.SERIAL)
    assert [row for part in parts for row in part] == list(range(rows))
    assert len(parts) == min(threads, rows)
    assert len(kernels.parallel(lambda a, b: (a, b), rows, kernels.SERIAL - 1)) == 1


@given(
    mean=st.floats(-4.0, 4.0),
    half=st.floats(0.0, 3.0),
    scale=st.floats(0.05, 2.0),
    codes=st.sampled_from([(-8, 7), (0, 15), (-2, 1), (-127, 127), (0, 1)]),
    count=st.integers(1, 1000),
)
@settings(deadline=None, max_examples=300)
def test_histogram_error_against_a_fine_sum(mean: float, half: float, scale: float, codes: tuple[int, int], count: int) -> None:
    """One bin's expected error against the same integral as a sum of 200,000 points."""
    points = mean + half * (np.arange(200_000) + 0.5 - 100_000) / 100_000
    low, high = codes
    error = (points - np.clip(np.rint(points / scale), low, high) * scale) ** 2
    beyond = (points < (low - 0.5) * scale) | (points > (high + 0.5) * scale)
    rounding, clipping = kernels.histogram_error(
        np.array([mean]), np.array([half]), np.array([count]), scale, float(low), float(high)
    )
    size = count * max(float(error.mean()), scale**2 * 1e-6)
    assert rounding + clipping == pytest.approx(count * float(error.mean()), abs=2e-3 * size)
    # a point at the very border counts on either side
    border = count * (scale / 2) ** 2 if half == 0 else 2e-3 * size + count * scale**2 * 1e-4
    assert clipping == pytest.approx(count * float(error[beyond].sum()) / len(points), abs=border)
