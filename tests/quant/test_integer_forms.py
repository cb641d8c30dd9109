"""Integer forms against Python's own integers and float64, and the compiled loops against the plain ones."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from qkit.errors import PlanError
from qkit.quant.arithmetic import FLOAT_INSIDE, FULL_INTEGER, Arithmetic
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.integer import joins, norms, pointwise
from qkit.quant.integer.rescaling import divide, multiplier, rescale, root
from qkit.quant.integer.softmax import exponentials, softmax

MILLION = 1_000_000


def whole(*numbers: int) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


def grid(lo: float, hi: float, bits: int = 8) -> QuantParams:
    return QuantSpec(bits=bits, symmetric=False).params(lo, hi)


# rescaling


@given(st.floats(1e-9, 1e6), st.integers(-(2**30), 2**30), st.integers(8, 31))
def test_a_multiplier_is_the_nearest_and_shifting_rounds_to_nearest(factor: float, x: int, bits: int) -> None:
    m = multiplier(factor, abs(x), bits)
    assert m.error <= 2.0**-bits
    exact = Fraction(m.mantissa) * Fraction(2) ** -m.shift * x
    assert int(rescale(whole(x), m)) == math.floor(exact + Fraction(1, 2))


def test_multipliers_are_narrower_where_products_would_overflow() -> None:
    m = multiplier(0.3, 2.0**45)
    assert m.mantissa < 2**17
    assert int(rescale(whole(2**45), m)) == pytest.approx(0.3 * 2**45, rel=2.0**-17)
    assert int(rescale(whole(7), multiplier(0.0))) == 0
    assert int(rescale(whole(3), multiplier(-0.5))) == -1  # -1.5, ties upwards
    assert int(rescale(whole(2**40), multiplier(2.0**-70))) == 0


@given(st.integers(-(2**50), 2**50), st.integers(1, 2**40))
def test_division_rounds_to_nearest(x: int, y: int) -> None:
    assert int(divide(whole(x), y)) == math.floor(Fraction(x, y) + Fraction(1, 2))


@given(st.integers(0, 2**61))
def test_roots_are_exact(x: int) -> None:
    assert int(root(whole(x))) == math.isqrt(x)


def test_roots_next_to_squares_are_exact() -> None:
    bases = [1, 2, 3, 94_906_265, 94_906_266, 2**30 - 1, 2**30, 1_518_500_249]
    near = [b * b + d for b in bases for d in (-1, 0, 1)]
    assert root(whole(*near)).tolist() == [math.isqrt(x) for x in near]


# functions of one number

FUNCTIONS = {
    "silu": (F.silu, -8.0, 8.0),
    "gelu": (F.gelu, -6.0, 6.0),
    "hardswish": (F.hardswish, -6.0, 6.0),
    "sigmoid": (torch.sigmoid, -10.0, 10.0),
    "tanh": (torch.tanh, -5.0, 5.0),
    "exp": (torch.exp, -12.0, 2.0),
    "softplus": (F.softplus, -8.0, 8.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("bits", [4, 8])
def test_a_table_of_every_code_holds_the_nearest(name: str, bits: int) -> None:
    function, lo, hi = FUNCTIONS[name]
    source = grid(lo, hi, bits)
    x = torch.arange(source.qmin, source.qmax + 1)
    y = function((x - source.zero_point).double() * source.scale.double())
    target = grid(float(y.min()), float(y.max()), bits)
    made = pointwise.table(function, source, target)
    exact = y / target.scale.double()
    ends = target.qmin - int(target.zero_point), target.qmax - int(target.zero_point)
    assert torch.equal(made(x - source.qmin).double(), exact.round().clamp(*ends))
    assert pointwise.deviation(function, source, target, made) == 0.0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_between_nodes_the_stated_bound_holds(name: str) -> None:
    function, lo, hi = FUNCTIONS[name]
    source = grid(lo, hi, 16)
    x = torch.linspace(lo, hi, 100_001, dtype=torch.float64)
    y = function(x)
    target = grid(float(y.min()), float(y.max()), 16)
    made = pointwise.table(function, source, target)
    assert made.nodes.numel() <= 514
    assert (int(source.zero_point) - source.qmin + made.ahead) % 128 == 0
    # h² max|f''| / 8 by differences of float64, in steps of the output; a kink counts with its jump
    h = 128 * float(source.scale)
    second = (function(x + h) - 2 * y + function(x - h)).abs().max() / h**2
    bound = float(h**2 * second / 8 / target.scale)
    assert pointwise.deviation(function, source, target, made) <= bound + 1.5


def test_a_kink_at_zero_costs_nothing() -> None:
    source, target = grid(-5.0, 3.0, 16), grid(0.0, 5.0, 16)
    made = pointwise.table(torch.abs, source, target)
    assert pointwise.deviation(torch.abs, source, target, made) <= 1.0


def test_what_is_no_number_becomes_the_least_code_and_infinity_the_end() -> None:
    source, target = grid(0.0, 4.0), grid(-2.0, 2.0)
    made = pointwise.table(lambda x: x / x, source, target)
    assert int(made(whole(0))) == target.qmin - int(target.zero_point)
    made = pointwise.table(torch.reciprocal, source, target)
    assert int(made(whole(0))) == target.qmax - int(target.zero_point)


# softmax

#: By how much the form's exponential misses, relative to it.
FORMS = {"table": 0.0, "polynomial": 3.5e-3, "shift": 0.0615}


def _missed(form: str, x: torch.Tensor) -> torch.Tensor:
    """As the module states it for ``exp(-x)``; the rounding of fixed point apart."""
    grown = torch.exp2(0.0052 * x) if form == "shift" else torch.ones_like(x)
    return (1.0 + FORMS[form]) * grown - 1.0


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("step", "reach", "inside"), [(0.05, 255, 16), (0.3, 255, 16), (3e-4, 65535, 24)])
def test_exponentials_are_as_near_as_stated(form: str, step: float, reach: int, inside: int) -> None:
    distance = torch.arange(reach + 1)
    found = exponentials(distance, step, form, inside, reach).double()  # type: ignore[arg-type]
    exact = torch.exp(-step * distance.double())
    unit = 2.0 ** -(inside - 1)
    found = found / (float(found[0]) if form != "table" else 1 / unit)
    error = (found - exact).abs()
    assert bool((error <= exact * _missed(form, step * distance.double()) + 2.5 * unit).all())


@pytest.mark.parametrize("form", FORMS)
def test_softmax_of_a_million_values_against_float64(form: str) -> None:
    torch.manual_seed(0)
    step = 0.08
    codes = torch.randint(-128, 128, (MILLION // 200, 200))
    found = softmax(codes, step, -1, form).double() * 2.0**-30  # type: ignore[arg-type]
    exact = torch.softmax(codes.double() * step, -1)
    # weights miss by so much, and their sum too; rounding is one unit of 2**-15 in each
    missed = float(_missed(form, torch.tensor(step * 255.0)))
    assert bool(((found - exact).abs() <= 2 * missed * exact + 4 * 2.0**-15).all())
    assert bool(((found.sum(-1) - 1.0).abs() <= 200 * 2.0**-30).all())


def test_what_is_hidden_has_no_share_and_a_row_without_anything_is_zero() -> None:
    codes = torch.randint(-128, 128, (4, 6))
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, 2:], hidden[1] = True, True
    found = softmax(codes, 0.1, -1, "table", hidden=hidden)
    assert not found[0, 2:].any()
    assert not found[1].any()
    exact = torch.softmax((codes[0, :2] * 0.1).double(), -1)
    assert torch.allclose(found[0, :2].double() * 2.0**-30, exact, atol=1e-4)
    assert torch.equal(found[2:], softmax(codes[2:], 0.1, -1, "table"))


# norms


def _bound(exact: torch.Tensor, variance: torch.Tensor, unit: float, inside: int) -> torch.Tensor:
    """As the module states it."""
    v = variance / unit**2
    return exact.abs() * (1 / (2 * v) + 2.0**-8 / v.sqrt()) + 1 / (2 * v.sqrt()) + 2.0 ** -(inside - 4 + 1)


@pytest.mark.parametrize(("bits", "inside"), [(8, 16), (16, 24)])
@pytest.mark.parametrize("spread", [0.02, 0.3])
@pytest.mark.parametrize("centred", [True, False])
def test_norms_of_a_million_values_against_float64(bits: int, inside: int, spread: float, centred: bool) -> None:
    torch.manual_seed(1)
    reach, step = 2**bits - 1, 0.04 / 2 ** (bits - 8)
    codes = (torch.randn(MILLION // 192, 192) * spread * reach / 2 + 0.1 * reach).round().clamp(-reach, reach).long()
    found = norms.standardized(codes, (-1,), step, reach, eps=1e-5, centred=centred, inside=inside)
    x = codes.double() * step
    mean = x.mean(-1, keepdim=True) if centred else 0.0
    variance = (x - mean).square().mean(-1, keepdim=True) + 1e-5
    exact = (x - mean) / variance.sqrt()
    unit = step * 2.0 ** -norms.fraction_bits(reach, 192)
    assert bool(((found.data.double() * found.unit - exact).abs() <= _bound(exact, variance, unit, inside)).all())
    assert float(found.data.abs().max()) <= found.greatest


@pytest.mark.parametrize("order", [1.0, 2.0, math.inf])
@pytest.mark.parametrize("bits", [8, 16])
def test_normalizing_against_float64(order: float, bits: int) -> None:
    torch.manual_seed(2)
    reach = 2**bits - 1
    codes = torch.randint(-reach, reach + 1, (500, 64))
    codes[0] = 0
    found = norms.normalized(codes, (-1,), 0.01, reach, order=order, least=1e-12)
    exact = F.normalize(codes.double() * 0.01, p=order, dim=-1)
    assert torch.allclose(found.data.double() * found.unit, exact, atol=2.0**-13, rtol=2.0**-12)


def test_responses_against_float64() -> None:
    torch.manual_seed(3)
    codes = torch.randint(-255, 256, (4, 8, 8, 16))
    found = norms.responses(codes, (1, 2), (-1,), 0.02, 255, eps=1e-6)
    norm = torch.linalg.vector_norm(codes.double() * 0.02, dim=(1, 2), keepdim=True)
    assert torch.allclose(found.data.double() * found.unit, norm / (norm.mean(-1, keepdim=True) + 1e-6), atol=2.0**-12)


def test_a_constant_row_is_nothing_but_its_bias() -> None:
    codes = torch.full((2, 8), 37)
    found = norms.standardized(codes, (-1,), 0.1, 255, eps=0.0)
    assert not found.data.any()
    bias = torch.linspace(-1, 1, 8)
    shifted = norms.affine(found, torch.full((8,), 2.0), bias)
    assert torch.allclose(shifted.data.double() * shifted.unit, bias.double().expand(2, 8), atol=1e-6)


# sums


@given(st.floats(1e-3, 10.0), st.floats(1e-3, 10.0), st.floats(1e-3, 10.0), st.sampled_from([8, 16]))
def test_sums_are_next_to_the_exact_ones(a: float, b: float, scale: float, bits: int) -> None:
    reach = 2**bits - 1
    first, second = torch.arange(-reach, reach + 1, max(reach // 100, 1)), torch.arange(reach, -reach - 1, -max(reach // 100, 1))
    found = joins.added([(first, a, reach), (second, -b, reach)], scale).double()
    exact = (first.double() * a - second.double() * b) / scale
    parts = (first.double() * a).abs() + (second.double() * b).abs()
    bound = 0.5 + 2 * max(a, b) / 2 ** (20 if bits == 8 else 15) / scale + parts / scale * 2.0**-29
    assert bool(((found - exact).abs() <= bound).all())


@given(st.integers(-(2**40), 2**40), st.integers(8, 40))
def test_sums_wrap_like_two_s_complement(x: int, bits: int) -> None:
    found = int(joins.wrapped(whole(x), bits))
    assert -(2 ** (bits - 1)) <= found < 2 ** (bits - 1)
    assert (found - x) % 2**bits == 0
    assert int(joins.wrapped(whole(x), None)) == x


# the switches


def test_switches_are_checked_and_say_what_there_is() -> None:
    with pytest.raises(PlanError, match="polynomial"):
        Arithmetic(softmax="cubic")  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="10 to 24"):
        Arithmetic(inside=32)
    assert FLOAT_INSIDE.in_float
    assert not FULL_INTEGER.in_float
    assert FULL_INTEGER.at_bits(16).inside == 24
    assert FULL_INTEGER.at_bits(8) == FULL_INTEGER
    assert "softmax" in repr(FULL_INTEGER)
