"""Grids and rounding against torch's fake-quantize operators, exact rationals and float64."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import rounded_by_torch
from strategies import specs
from torch import Tensor

from qkit.errors import DataError, PlanError
from qkit.quant.grids import (
    MAX_BOUND,
    MIN_SCALE,
    QuantParams,
    QuantSpec,
    dequantize,
    fake_quantize,
    fake_quantize_,
    quantize,
    quantize_bias,
    require_finite,
    saturated_biases,
)

LARGEST = float(np.finfo(np.float32).max)
DENORMAL = float(np.finfo(np.float32).smallest_subnormal)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
magnitudes = st.sampled_from([DENORMAL, 1e-40, 1.2e-38, 1e-20, 1e-3, 1.0, 6.0, 255.0, 1e6, 1e20, 1e38, LARGEST])
bounds = st.one_of(floats, magnitudes, magnitudes.map(lambda m: -m), st.just(0.0))
#: Includes zero width at 0 and elsewhere, one-sided on either side, denormal and huge ranges.
ranges = st.one_of(
    st.tuples(bounds, bounds).map(lambda pair: (min(pair), max(pair))),
    bounds.map(lambda b: (b, b)),
    magnitudes.map(lambda m: (0.0, m)),
    magnitudes.map(lambda m: (-m, 0.0)),
    magnitudes.map(lambda m: (-m, m)),
)


def samples(params: QuantParams, seed: int, shape: tuple[int, ...]) -> Tensor:
    """Values of every kind for that grid: inside, at ties, at and beyond the ends, 0, denormal, huge."""
    rng = np.random.default_rng(seed)
    count = math.prod(shape)
    scale = params.scale.double().numpy().reshape(-1)[0]
    codes = rng.integers(params.qmin - 3, params.qmax + 4, count).astype(float)
    offset = rng.choice([0.0, 0.5, -0.5, 0.25, rng.random()], count)
    x = (codes - float(params.zero_point.reshape(-1)[0]) + offset) * scale
    odd = rng.random(count) < 0.1
    x[odd] = rng.choice([0.0, -0.0, DENORMAL, -DENORMAL, 1e-38, LARGEST, -LARGEST, 1e30, 1.0, -1.0], int(odd.sum()))
    return torch.from_numpy(np.clip(x, -LARGEST, LARGEST).astype(np.float32)).reshape(shape)


def bits_of(x: Tensor) -> Tensor:
    """The format's bits, the sign of a zero left out."""
    return (x + 0.0).view(torch.int32)


def within_torch(x: Tensor, params: QuantParams) -> Tensor:
    """`x` held below 2**31 steps: torch's operator casts steps to int64, which turns greater ones around to the wrong end."""
    limit = (params.scale.double() * 2.0**31).clamp(max=LARGEST).min()
    return x.clamp(-float(limit), float(limit))


@given(spec=specs, span=ranges, seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=400)
def test_equals_torch_per_tensor(spec: QuantSpec, span: tuple[float, float], seed: int) -> None:
    params = spec.params(*span)
    x = within_torch(samples(params, seed, (257,)), params)
    expected = rounded_by_torch(x, params)
    assert torch.equal(bits_of(fake_quantize(x, params)), bits_of(expected))
    assert torch.equal(bits_of(dequantize(quantize(x, params), params)), bits_of(expected))


@given(spec=specs, spans=st.lists(ranges, min_size=1, max_size=5), axis=st.integers(-4, 3), seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=250)
def test_equals_torch_per_channel(spec: QuantSpec, spans: list[tuple[float, float]], axis: int, seed: int) -> None:
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*spans, strict=True))
    params = spec.params(low, high, axis=axis)
    shape = [3, 2, 4, 3]
    shape[axis] = len(spans)
    x = within_torch(samples(params, seed, tuple(shape)), params)
    expected = rounded_by_torch(x, params)
    assert torch.equal(bits_of(fake_quantize(x, params)), bits_of(expected))
    assert torch.equal(bits_of(dequantize(quantize(x, params), params)), bits_of(expected))


def test_a_channels_grid_is_the_per_tensor_grid_of_that_channel() -> None:
    x = torch.randn(5, 7) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 1e5])[:, None]
    spec = QuantSpec(bits=8, symmetric=False)
    together = spec.params(x.amin(1), x.amax(1), axis=0)
    for c in range(5):
        alone = spec.params(float(x[c].min()), float(x[c].max()))
        assert torch.equal(fake_quantize(x, together)[c], fake_quantize(x[c], alone))
        assert float(together.scale[c]) == float(alone.scale)


@pytest.mark.parametrize("layout", ["transposed", "channels_last", "sliced", "0-d", "empty"])
@pytest.mark.parametrize("axis", [None, 1])
def test_any_memory_layout(layout: str, axis: int | None) -> None:
    x = torch.randn(4, 3, 6, 6)
    x = {
        "transposed": x.transpose(0, 2),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
        "sliced": x[:, :, ::2, 1:4],
        "0-d": torch.tensor(0.3),
        "empty": x[:0],
    }[layout]
    if axis is not None and x.ndim == 0:
        with pytest.raises(PlanError, match=r"\b3 channels.*axis 1\b.*\(\)"):
            fake_quantize(x, QuantSpec().params(torch.zeros(3), torch.ones(3), axis=1))
        return
    before = x.clone()
    low, high = (-2.0, 2.0) if axis is None else (torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([1.0, 2.0, 0.5]))
    params = QuantSpec(symmetric=False).params(low, high, axis=axis)
    expected = rounded_by_torch(x.contiguous(), params)
    assert torch.equal(fake_quantize(x, params), expected)
    assert torch.equal(x, before)
    assert quantize(x, params).shape == x.shape
    assert torch.equal(fake_quantize_(x.clone(), params), expected)


@given(spec=specs, span=ranges)
@settings(deadline=None, max_examples=400)
def test_the_grid_follows_its_rule(spec: QuantSpec, span: tuple[float, float]) -> None:
    params = spec.params(*span)
    low, high = max(min(span[0], 0.0), -MAX_BOUND), min(max(span[1], 0.0), MAX_BOUND)
    unsigned = spec.signed is False or (spec.signed is None and spec.symmetric and low == 0)
    half = 2 ** (spec.bits - 1)
    codes = (0, 2 * half - 1) if unsigned else (-half + spec.narrow, half - 1)
    assert (params.qmin, params.qmax) == codes
    if spec.symmetric:
        exact = max(Fraction(high) / codes[1], Fraction(0) if unsigned else Fraction(low) / codes[0])
    else:
        exact = (Fraction(high) - Fraction(low)) / (codes[1] - codes[0])
    if low == high:
        exact = Fraction(1)
    exact = max(exact, Fraction(MIN_SCALE))
    scale = Fraction(float(params.scale))
    if spec.power_of_two:
        assert math.frexp(float(params.scale))[0] == 0.5
        # the smallest power of two that reaches, up to the last digit of float64's logarithm
        assert exact <= scale * (1 + Fraction(1, 2**45))
        assert exact > scale / 2 or scale == MIN_SCALE
    else:
        assert abs(scale - exact) <= exact / 2**24
    assert params.qmin <= int(params.zero_point) <= params.qmax
    if spec.symmetric:
        assert int(params.zero_point) == 0


@given(spec=specs, span=ranges)
@settings(deadline=None, max_examples=300)
def test_the_grid_holds_0_and_covers_its_range(spec: QuantSpec, span: tuple[float, float]) -> None:
    params = spec.params(*span)
    assert float(fake_quantize(torch.zeros(1), params)) == 0.0
    ends = torch.stack([params.lo, params.hi])
    assert bool(torch.isfinite(ends.to(torch.float32)).all())
    low, high = max(min(span[0], 0.0), -MAX_BOUND), min(max(span[1], 0.0), MAX_BOUND)
    half = float(params.scale) * (0.5 + 2.0 ** (spec.bits - 23))
    if not (spec.symmetric and spec.signed is False):  # which clips what is negative, by request
        assert float(params.lo) <= low + half
    assert float(params.hi) >= high - half
    ends = torch.tensor([LARGEST, -LARGEST])
    assert fake_quantize(ends, params).tolist() == [float(params.hi.float()), float(params.lo.float())]


@given(spec=specs, span=ranges, seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=200)
def test_rounding_is_nearest_idempotent_and_monotonic(spec: QuantSpec, span: tuple[float, float], seed: int) -> None:
    params = spec.params(*span)
    x = samples(params, seed, (101,)).sort().values
    y = fake_quantize(x, params)
    assert torch.equal(fake_quantize(y, params), y)
    assert bool((y[1:] >= y[:-1]).all())
    inside = x.double().clamp(params.lo, params.hi)
    # float32's product may take a tie's other side: half a step, and the format's precision at the greatest code
    step = float(params.scale)
    assert float((y.double() - inside).abs().max()) <= step * (0.5 + 2.0 ** (spec.bits - 23)) + DENORMAL


@pytest.mark.parametrize("bits", range(2, 17))
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_against_float64(bits: int, symmetric: bool) -> None:
    """Which rounding is meant: the nearest step, ties to even, of the float32 product; float64 differs at ties only."""
    rng = np.random.default_rng(bits)
    x = rng.normal(size=200_000).astype(np.float32)
    params = QuantSpec(bits, symmetric).params(float(x.min()), float(x.max()))
    codes = quantize(torch.from_numpy(x), params).to(torch.int64).numpy()
    exact = np.rint(x.astype(np.float64) / float(params.scale)) + int(params.zero_point)
    exact = exact.clip(params.qmin, params.qmax).astype(np.int64)
    apart = np.abs(codes - exact)
    assert apart.max(initial=0) <= 1
    assert np.mean(apart) <= 2.0 ** (bits - 16) * 5e-4 + 2e-5


@pytest.mark.parametrize(
    ("bits", "signed", "dtype"),
    [
        (8, True, torch.int8),
        (8, False, torch.uint8),
        (16, True, torch.int16),
        (16, False, torch.uint16),
        (2, True, torch.int8),
        (4, False, torch.int8),  # the smallest type that holds 0..15
        (9, True, torch.int16),
        (9, False, torch.int16),
        (12, False, torch.int16),
    ],
)
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_real_integer_tensors(bits: int, signed: bool, dtype: torch.dtype, symmetric: bool) -> None:
    params = QuantSpec(bits, symmetric, signed).params(-1.0 if signed or not symmetric else 0.0, 3.0)
    x = torch.linspace(-5, 5, 1001)
    codes = quantize(x, params)
    assert codes.dtype == params.dtype == dtype
    assert params.bits == bits
    assert codes.to(torch.int64).min() == params.qmin or (symmetric and signed)
    assert codes.to(torch.int64).max() == params.qmax
    assert torch.equal(dequantize(codes, params), fake_quantize(x, params))
    again = (codes.to(torch.float64) - float(params.zero_point)) * float(params.scale)
    assert torch.equal(dequantize(codes, params), again.float())


def test_unsigned_where_one_sided() -> None:
    assert QuantSpec(8).params(0.0, 1.0).dtype is torch.uint8
    assert QuantSpec(8).params(-1e-9, 1.0).dtype is torch.int8
    assert QuantSpec(8, signed=True).params(0.0, 1.0).dtype is torch.int8
    assert QuantSpec(8).params(0.3, 0.7).qmin == 0
    assert QuantSpec(8).params(torch.tensor([0.0, -1.0]), torch.ones(2), axis=0).qmin == -128
    assert QuantSpec(8).params(torch.zeros(2), torch.ones(2), axis=0).qmin == 0


def test_zero_width_gets_scale_1() -> None:
    for spec in (QuantSpec(8), QuantSpec(8, symmetric=False), QuantSpec(8, power_of_two=True)):
        params = spec.params(0.0, 0.0)
        assert float(params.scale) == 1.0
        assert fake_quantize(torch.zeros(3), params).tolist() == [0.0] * 3


@pytest.mark.parametrize("value", [5.0, -5.0, 1e-40, -1e-40, 1e-30, 8e37, -8e37])
@pytest.mark.parametrize("symmetric", [True, False])
def test_constant_tensors_survive(value: float, symmetric: bool) -> None:
    x = torch.full((10,), value)
    spec = QuantSpec(8, symmetric)
    params = spec.params(float(x.min()), float(x.max()))
    error = (fake_quantize(x, params).double() - x.double()).abs().max()
    # below the least normal scale there are no steps left to tell a denormal from 0
    assert float(error) <= max(abs(value) * 1e-6, MIN_SCALE / 2)


def test_a_range_beyond_the_bound_is_cut() -> None:
    params = QuantSpec(8).params(-LARGEST, LARGEST)
    assert float(params.hi) == pytest.approx(MAX_BOUND, rel=0.01)
    wide = QuantSpec(2, symmetric=False).params(-LARGEST, LARGEST)
    assert bool(torch.isfinite(fake_quantize(torch.tensor([LARGEST, -LARGEST, 1.0]), wide)).all())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 500, 1000])
@pytest.mark.parametrize("operation", [quantize, fake_quantize])
def test_non_finite_input_names_the_tensor(bad: float, position: int, operation) -> None:
    x = torch.randn(1001)
    x[position] = bad
    params = QuantSpec().params(-1.0, 1.0)
    with pytest.raises(DataError, match=r"^features\.3\.conv\b.*\b1\b.*\b1001\b.*NaN"):
        operation(x, params, name="features.3.conv")
    with pytest.raises(DataError, match=r"^features\.3\.conv\b.*\b1001\b.*NaN"):
        require_finite(x, "features.3.conv")


def test_finite_and_integer_tensors_pass_the_check() -> None:
    require_finite(torch.tensor([LARGEST, -LARGEST, DENORMAL]), "x")
    require_finite(torch.tensor([1, 2]), "x")
    require_finite(torch.empty(0), "x")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_other_dtypes_are_refused_by_name(dtype: torch.dtype) -> None:
    x = torch.ones(3).to(dtype)
    for operation in (quantize, fake_quantize):
        with pytest.raises(DataError, match=rf"^head\b.*{dtype}.*torch\.float32"):
            operation(x, QuantSpec().params(-1.0, 1.0), name="head")


@pytest.mark.parametrize("bits", [1, 17, 0, -8, 8.0, "8", None])
def test_widths_outside_2_to_16_are_refused(bits) -> None:
    with pytest.raises(PlanError, match=rf"bits={bits!r}\W.*\b2\b.*\b16\b"):
        QuantSpec(bits=bits)


@pytest.mark.parametrize(
    ("low", "high", "axis", "message"),
    [
        (math.nan, 1.0, None, "nan, 1.*finite"),
        (0.0, math.inf, None, "0, inf.*finite"),
        (-math.inf, 0.0, None, "-inf, 0.*finite"),
        (1.0, 0.5, None, r"1, 0\.5.*empty"),
        (torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), 0, "empty"),
        (torch.tensor([0.0, math.nan]), torch.tensor([1.0, 1.0]), 0, "finite"),
        (torch.zeros(2), torch.ones(3), 0, "shapes"),
        (torch.zeros(2, 2), torch.ones(2, 2), 0, "shapes"),
        (torch.zeros(2), torch.ones(2), None, "axis"),
        (0.0, 1.0, 0, "axis"),
    ],
)
def test_impossible_ranges_are_refused(low, high, axis: int | None, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        QuantSpec().params(low, high, axis=axis)


def test_impossible_grids_are_refused() -> None:
    zero = torch.tensor(0, dtype=torch.int32)
    for scale in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(PlanError, match=r"scale.*finite"):
            QuantParams(torch.tensor(scale), zero, -128, 127)
    with pytest.raises(PlanError, match=r"scale.*zero point.*shapes"):
        QuantParams(torch.ones(2), zero, -128, 127, axis=0)
    with pytest.raises(PlanError, match=r"scale.*zero point.*shapes"):
        QuantParams(torch.ones(2), torch.zeros(2, dtype=torch.int32), -128, 127)


@pytest.mark.parametrize("axis", [1, 4, -5])
def test_a_grid_of_other_channels_is_refused(axis: int) -> None:
    params = QuantSpec().params(-torch.ones(3), torch.ones(3), axis=axis)
    for operation in (fake_quantize, quantize):
        with pytest.raises(PlanError, match=rf"\b3 channels.*axis {axis}\b.*\(2, 4, 3, 3\)"):
            operation(torch.zeros(2, 4, 3, 3), params)


def test_grids_compare_and_hash_by_content() -> None:
    make = QuantSpec(symmetric=False).params
    assert make(-1.0, 2.0) == make(-1.0, 2.0)
    assert hash(make(-1.0, 2.0)) == hash(make(-1.0, 2.0))
    assert make(-1.0, 2.0) != make(-1.0, 2.0001)
    assert make(-1.0, 2.0) != "a grid"
    pair = torch.tensor([-1.0, -1.0]), torch.tensor([2.0, 2.0])
    assert make(*pair, axis=0) != make(*pair, axis=1)
    assert len({make(-1.0, 2.0), make(-1.0, 2.0), make(-2.0, 2.0)}) == 2
    assert "codes -128..127" in repr(make(-1.0, 2.0))
    assert "axis 0" in repr(make(*pair, axis=0))


@given(
    biases=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
    step=st.floats(1e-12, 1e3),
    bits=st.sampled_from([8, 16, 32]),
)
@settings(deadline=None, max_examples=200)
def test_bias_on_the_accumulators_grid(biases: list[float], step: float, bits: int) -> None:
    bias, scale = torch.tensor(biases), torch.tensor(step, dtype=torch.float64)
    values = quantize_bias(bias, scale, bits)
    codes = [round(b / step) for b in biases]
    limit = 2 ** (bits - 1)
    assert saturated_biases(bias, scale, bits) == sum(not -limit <= c < limit for c in codes)
    expected = [np.float32(min(max(c, -limit), limit - 1) * step) for c in codes]
    assert values.dtype == torch.float32
    np.testing.assert_array_equal(values.numpy(), expected)


def test_bias_per_channel_and_64_bits() -> None:
    bias = torch.tensor([1.0, -2.0, 3e4])
    scale = torch.tensor([2.0**-40, 2.0**-20, 2.0**-30], dtype=torch.float64)
    assert saturated_biases(bias, scale, 32) == 2
    assert quantize_bias(bias, scale, 32).tolist() == [2.0**-9, -2.0, 2.0]
    assert saturated_biases(bias, scale, 64) == 0
    assert torch.equal(quantize_bias(bias, scale, 64), bias)
