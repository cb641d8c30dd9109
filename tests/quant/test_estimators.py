"""Ranges against numpy, brute force on the raw data, and a second reading of the papers."""

from __future__ import annotations

import math
import re
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import rounded_by_torch
from strategies import specs

from qkit.errors import PlanError
from qkit.quant.estimators import (
    METHODS,
    Observation,
    _grid_of,
    activation_grid,
    check_method,
    estimate,
    least_error_range,
    weight_grid,
)
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.histogram import Histogram

SIZE = 50_000
KINDS = ["normal", "laplace", "relu", "outliers", "one-sided outliers", "shifted", "negative", "student", "two lumps"]


@cache
def data(kind: str) -> np.ndarray:
    rng = np.random.default_rng(5)
    normal = rng.normal(size=SIZE)
    far = rng.random(SIZE) < 1e-3
    x = {
        "normal": normal,
        "laplace": rng.laplace(size=SIZE),
        "relu": np.maximum(normal, 0.0),
        "outliers": np.where(far, normal * 50, normal),
        "one-sided outliers": np.where(far, np.abs(normal) * 50, normal),
        "shifted": normal + 5.0,
        "negative": -np.abs(normal),
        "student": rng.standard_t(2, size=SIZE),
        "two lumps": np.where(rng.random(SIZE) < 0.5, normal * 0.1 - 1, normal * 0.1 + 9),
    }[kind]
    return x.astype(np.float32)


def seen_of(*batches: np.ndarray) -> Observation:
    hist = Histogram.merge([Histogram.of(torch.from_numpy(b)) for b in batches])
    return Observation(
        hist,
        tuple(float(b.min()) for b in batches),
        tuple(float(b.max()) for b in batches),
        np.array([hist.min], np.float32),
        np.array([hist.max], np.float32),
    )


def raw_error(x: np.ndarray, params: QuantParams) -> float:
    """Mean squared error by torch's operator, in float64."""
    return float((rounded_by_torch(torch.from_numpy(x), params).numpy().astype(np.float64) - x).__pow__(2).mean())


def test_methods_by_name() -> None:
    assert METHODS == ("minmax", "moving-average", "percentile", "mse", "entropy")
    for method in METHODS:
        assert check_method(method) == method
    for wrong in ("MSE", "max", "", None, 3):
        with pytest.raises(PlanError, match=re.escape(repr(wrong)) + ".*" + ", ".join(METHODS)):
            check_method(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_minmax(kind: str) -> None:
    x = data(kind)
    assert estimate(seen_of(x[:100], x[100:]), QuantSpec(8), "minmax") == (float(x.min()), float(x.max()))


@given(
    st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=5), min_size=1, max_size=12),
)
@settings(deadline=None, max_examples=100)
def test_moving_average_is_the_papers(batches: list[list[float]]) -> None:
    """Jacob et al. 2018: each batch's extremes enter an exponential mean with weight 0.1, the first batch's as they are."""
    arrays = [np.array(b, np.float32) for b in batches]
    lows, highs = ([float(f(b)) for b in arrays] for f in (np.min, np.max))
    weights = [0.9 ** (len(arrays) - 1)] + [0.1 * 0.9 ** (len(arrays) - 1 - i) for i in range(1, len(arrays))]
    assert sum(weights) == pytest.approx(1.0)
    low, high = estimate(seen_of(*arrays), QuantSpec(8), "moving-average")
    assert low == pytest.approx(math.fsum(w * v for w, v in zip(weights, lows, strict=True)), rel=1e-9, abs=1e-9)
    assert high == pytest.approx(math.fsum(w * v for w, v in zip(weights, highs, strict=True)), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_is_numpys(kind: str, percentile: float) -> None:
    x = data(kind)
    low, high = estimate(seen_of(x[: SIZE // 3], x[SIZE // 3 :]), QuantSpec(8), "percentile", percentile)
    expected = np.percentile(x.astype(np.float64), [100 - percentile, percentile])
    # a bin is 0.8 % of its values wide; the neighbours in a sparse tail lie further apart
    slack = np.abs(np.percentile(x, [100 - percentile + 0.01, percentile - 0.01]) - expected) if percentile < 100 else 0.0
    assert np.all(np.abs(np.array([low, high]) - expected) <= 0.008 * np.abs(expected) + slack)


@pytest.mark.parametrize("percentile", [50.0, 0.0, 100.1, -3.0, math.nan])
def test_impossible_percentiles_are_refused(percentile: float) -> None:
    with pytest.raises(PlanError, match=rf"percentile={percentile}\b.*\b50\b.*\b100\b"):
        estimate(seen_of(data("normal")), QuantSpec(8), "percentile", percentile)


bounds = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(spec=specs, a=bounds, b=bounds)
@settings(deadline=None, max_examples=400)
def test_the_search_tries_the_grids_that_plans_get(spec: QuantSpec, a: float, b: float) -> None:
    low, high = min(a, b), max(a, b)
    params = spec.params(low, high)
    zero = int(params.zero_point)
    assert _grid_of(spec, low, high) == (float(params.scale), params.qmin - zero, params.qmax - zero)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize(("symmetric", "power_of_two"), [(True, False), (False, False), (True, True)])
def test_mse_against_brute_force_on_the_raw_data(kind: str, bits: int, symmetric: bool, power_of_two: bool) -> None:
    x = data(kind)
    spec = QuantSpec(bits, symmetric, power_of_two=power_of_two)
    found = raw_error(x, spec.params(*least_error_range(Histogram.of(torch.from_numpy(x)), spec)))
    shrink = np.geomspace(1.0, 1 / 100, 14)
    lows = min(float(x.min()), 0.0) * (shrink if x.min() < 0 else np.ones(1))
    highs = max(float(x.max()), 0.0) * (shrink if x.max() > 0 else np.ones(1))
    best = min(raw_error(x, spec.params(low, high)) for low in lows for high in highs)
    # with four codes there are several local optima
    assert found <= best * (1.03 if bits == 2 else 1.01)


@pytest.mark.parametrize("bits", [8, 16])
def test_mse_of_a_single_far_outlier(bits: int) -> None:
    """At 8 bits one element in 50,000 is worth clipping to a tenth, at 16 bits it is not."""
    x = data("normal").copy()
    x[7] = 200.0
    low, high = least_error_range(Histogram.of(torch.from_numpy(x)), QuantSpec(bits))
    candidates = np.geomspace(200.0, 2.0, 200)
    errors = [raw_error(x, QuantSpec(bits).params(-min(c, 5), c)) for c in candidates]
    assert high == pytest.approx(candidates[int(np.argmin(errors))], rel=0.1)
    assert low <= 0


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-42, 1e-30, 1e30])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_tensors_stay_what_they_are(value: float, method: str, symmetric: bool) -> None:
    x = np.full(100, value, np.float32)
    grid = activation_grid(seen_of(x, x), QuantSpec(8, symmetric), method, 1)
    assert raw_error(x, grid.params) <= (abs(value) * 1e-3) ** 2 + 1e-76


def kl(p: np.ndarray, q: np.ndarray) -> float:
    mask = p > 0
    return float(np.sum(p[mask] * np.log(p[mask] / np.maximum(q[mask], 1e-12))))


def migacz(x: np.ndarray, levels: int, bins: int = 2048) -> tuple[np.ndarray, np.ndarray]:
    """The talk's pseudo code on the raw magnitudes, bin by bin: clips, and each one's divergence."""
    magnitude = np.abs(x[x != 0]).astype(np.float64)
    counts = np.histogram(magnitude, bins, (0.0, magnitude.max()))[0].astype(float)
    clips, divergences = [], []
    for end in range(levels, bins + 1):
        reference = counts[:end].copy()
        reference[end - 1] += counts[end:].sum()
        expanded = np.zeros(end)
        for chunk in np.array_split(np.arange(end), levels):
            filled = chunk[counts[chunk] > 0]
            if len(filled):
                expanded[filled] = counts[chunk].sum() / len(filled)
        clips.append(magnitude.max() * end / bins)
        divergences.append(kl(reference / reference.sum(), expanded / expanded.sum()))
    return np.array(clips), np.array(divergences)


@pytest.mark.parametrize("kind", ["normal", "laplace", "relu", "outliers", "student"])
@pytest.mark.parametrize("bits", [4, 8])
def test_entropy_against_the_talks_pseudo_code(kind: str, bits: int) -> None:
    x = data(kind)
    levels = 2 ** (bits - 1) if x.min() < 0 else 2**bits
    clips, divergences = migacz(x, levels)
    low, high = estimate(seen_of(x), QuantSpec(bits), "entropy")
    clip = max(-low, high)
    near = np.abs(np.log(clips / clip)) < 0.03
    assert divergences[near].min() <= divergences.min() * 1.05 + 1e-4
    assert low >= x.min()
    assert high <= x.max()


def test_entropy_of_zeros_and_denormals() -> None:
    for x in (np.zeros(10, np.float32), np.array([0.0, 1e-42, -1e-42], np.float32)):
        assert estimate(seen_of(x), QuantSpec(8), "entropy") == (float(x.min()), float(x.max()))


def test_entropy_clips_outliers_and_spares_a_uniform() -> None:
    rng = np.random.default_rng(1)
    flat = rng.uniform(-1, 1, SIZE).astype(np.float32)
    low, high = estimate(seen_of(flat), QuantSpec(8), "entropy")
    assert high == pytest.approx(1.0, rel=0.02)
    assert low == pytest.approx(-1.0, rel=0.02)
    x = data("normal").copy()
    x[0] = 40.0
    low, high = estimate(seen_of(x), QuantSpec(8), "entropy")
    assert 2.0 < high < 10.0
    assert -low <= high


def test_entropy_above_8_bits_is_minmax_and_says_so() -> None:
    x = data("outliers")
    grid = activation_grid(seen_of(x), QuantSpec(16, symmetric=False), "entropy", 1)
    assert grid.params == QuantSpec(16, symmetric=False).params(float(x.min()), float(x.max()))
    assert re.match(r"minmax\b.*entropy.*\b8\b", grid.method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_lie_within_the_data(method: str, kind: str) -> None:
    x = data(kind)
    seen = seen_of(*np.array_split(x, 4))
    low, high = estimate(seen, QuantSpec(8, symmetric=False), method)
    assert min(float(x.min()), 0.0) <= low <= high <= max(float(x.max()), 0.0)
    grid = activation_grid(seen, QuantSpec(8, symmetric=False), method, 1)
    assert grid.params == QuantSpec(8, symmetric=False).params(low, high)
    assert (grid.method, grid.weight) == (method, False)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_batches_in_any_order_give_one_range(method: str) -> None:
    parts = np.array_split(data("student"), 7)
    assert estimate(seen_of(*parts), QuantSpec(8), method) == estimate(seen_of(*reversed(parts)), QuantSpec(8), method)


def test_activations_per_channel_take_the_extremes_and_say_so() -> None:
    hist = Histogram.of(torch.tensor([-1.0, 2.0, -3.0, 4.0]))
    seen = Observation(hist, (-3.0,), (4.0,), np.array([-1.0, -3.0], np.float32), np.array([2.0, 4.0], np.float32))
    spec = QuantSpec(8, symmetric=False, per_channel=True)
    grid = activation_grid(seen, spec, "mse", 1)
    assert grid.params == spec.params(torch.tensor([-1.0, -3.0]), torch.tensor([2.0, 4.0]), axis=1)
    assert re.match(r"minmax\b.*channel.*mse", grid.method)
    assert activation_grid(seen, spec, "minmax", 1).method == "minmax"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (6, 5)])
def test_weights_per_channel_by_minmax(axis: int, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape) * torch.logspace(-2, 1, shape[axis]).view([-1 if i == axis else 1 for i in range(len(shape))])
    spec = QuantSpec(8, signed=True, per_channel=True, narrow=True)
    grid = weight_grid(weight, spec, "minmax", axis)
    peak = weight.abs().movedim(axis, 0).flatten(1).amax(1)
    np.testing.assert_allclose(grid.params.scale.numpy(), (peak.double() / 127).numpy(), rtol=1e-7)
    assert (grid.params.axis, grid.params.qmin, grid.params.qmax, grid.weight) == (axis, -127, 127, True)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["normal", "laplace", "heavy tails", "constant", "zero"])
@pytest.mark.parametrize("axis", [0, 1])
def test_weights_per_channel_by_mse_against_brute_force(bits: int, kind: str, axis: int) -> None:
    rng = np.random.default_rng(2)
    size = (5, 800)
    made = {
        "normal": rng.normal(size=size),
        "laplace": rng.laplace(size=size),
        "heavy tails": rng.standard_t(3, size=size),
        "constant": np.full(size, 0.3),
        "zero": np.zeros(size),
    }[kind] * np.geomspace(1e-3, 10, 5)[:, None]
    weight = torch.from_numpy(made.astype(np.float32)).reshape(5, 8, 10, 10).movedim(0, axis)
    spec = QuantSpec(bits, signed=True, per_channel=True, narrow=True)
    params = weight_grid(weight, spec, "mse", axis).params
    rows = weight.movedim(axis, 0).reshape(5, -1).numpy()
    for c, row in enumerate(rows):
        mine = QuantParams(params.scale[c], params.zero_point[c], params.qmin, params.qmax)
        peak = float(np.abs(row).max())
        best = min(raw_error(row, spec.params(-peak * f, peak * f)) for f in np.geomspace(1.0, 1 / 64, 200))
        assert raw_error(row, mine) <= best * 1.03 + 1e-16


@pytest.mark.parametrize("method", METHODS)
def test_weights_per_tensor_take_any_method(method: str) -> None:
    weight = torch.from_numpy(data("laplace")[:9600].copy()).reshape(20, 480)
    spec = QuantSpec(8, signed=True, narrow=True)
    grid = weight_grid(weight, spec, method, 0)
    expected = estimate(seen_of(weight.numpy()), spec, method)
    assert grid.params == spec.params(*expected)
    assert grid.params.axis is None
    assert grid.weight


def test_weights_without_a_channel_axis_get_one_grid() -> None:
    weight = torch.randn(3, 4)
    grid = weight_grid(weight, QuantSpec(8, per_channel=True), "minmax", None)
    assert grid.params.axis is None
    assert float(grid.params.scale) == pytest.approx(float(max(weight.max() / 127, weight.min() / -128)))


@pytest.mark.parametrize("method", ["percentile", "moving-average", "entropy"])
def test_other_methods_per_channel_are_refused(method: str) -> None:
    with pytest.raises(PlanError, match=f"minmax.*mse.*{method}.*weight_method="):
        weight_grid(torch.randn(3, 4), QuantSpec(8, per_channel=True), method, 0)


def test_weights_are_left_alone() -> None:
    weight = torch.randn(4, 6)
    before = weight.clone()
    for method in ("minmax", "mse"):
        weight_grid(weight, QuantSpec(4, per_channel=True), method, 0)
    assert torch.equal(weight, before)


@cache
def _shapes() -> dict[str, np.ndarray]:
    """Thirty shapes of data: two-sided, one-sided, away from 0, with long tails, with gaps; float32 (40000,) each."""
    random, n = np.random.default_rng(0), 40_000
    found = {f"normal {m} {s}": random.normal(m, s, n) for m in (0, 0.5, 1, 2.5, 5, 20) for s in (0.1, 0.4, 1)}
    found |= {
        "relu": np.maximum(random.normal(0, 1, n), 0),
        "relu6": np.clip(random.normal(1, 3, n), 0, 6),
        "laplace": random.laplace(0, 1, n),
        "student 3": random.standard_t(3, n),
        "student 2": random.standard_t(2, n),
        "cauchy": random.standard_cauchy(n),
        "exponential": random.exponential(1, n),
        "log-normal": random.lognormal(0, 1, n),
        "uniform": random.uniform(-1, 1, n),
        "uniform away from 0": random.uniform(2, 3, n),
        "two humps": np.r_[random.normal(-3, 0.2, n // 2), random.normal(3, 0.2, n // 2)],
        "negative": -random.exponential(1, n),
    }
    return {name: values.astype(np.float32) for name, values in found.items()}


@pytest.mark.parametrize("name", _shapes())
def test_the_entropy_range_of_many_shapes_is_near_that_of_onnx_runtime(name: str) -> None:
    """ONNX Runtime takes the same divergence over 2,048 bins and 128 levels; before, of a normal tensor around 2.5 all was clipped."""
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    values = _shapes()[name]
    params = activation_grid(seen_of(values), QuantSpec(bits=8), "entropy", None).params
    low, high = float(params.lo), float(params.hi)
    assert float(((values < low - float(params.scale)) | (values > high + float(params.scale))).mean()) < 0.01
    theirs = calibrate.HistogramCollector("entropy", False, 2048, 128, 99.99, "same")
    theirs.collect({"x": [values]})
    ends = [float(np.ravel(end)[0]) for end in next(iter(theirs.compute_collection_result().items()))[1][:2]]
    reach = max(abs(end) for end in ends)
    assert 0.7 * reach < max(abs(low), abs(high)) < 1.45 * reach
