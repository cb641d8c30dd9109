"""Norms in integers: wide sums, an integer root, one division.

Codes less their zero point ``c`` with the scale ``s`` get ``f`` more fractional bits (7 up to 8 bits of grid, 3 above, fewer
where sums would leave 64 bits), in units of ``s 2**-f``:

* mean ``m = round(2**f sum(c) / n)``; centred ``d = 2**f c - m``; off by at most half a unit,
* variance ``v = round(sum(d²) / n) + round(eps / unit²)`` in 64 bits, at least 1,
* root ``r = floor(sqrt(2**16 v))``, eight more fractional bits (Newton's iteration of I-BERT, section 3.5, ends at this number),
* ``y = round(2**(h + 8) d / r)`` with ``h = inside - 4`` fractional bits: a 16-bit number holds -8 to 8.

With the standard deviation ``σ`` in units, ``|y - exact| <= |exact| (1 / (2 v) + 2**-8 / σ) + 1 / (2 σ) + 2**-(h + 1)``: the
rounding of variance, root, mean and quotient. Weights have 16 bits, biases are added in 64, on the product's own grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from qkit.quant.integer.rescaling import divide, root

#: Fractional bits of a root.
_ROOT = 8
#: Greatest magnitude of a weight's code.
_WEIGHT = 2**15 - 1
#: Sums stay below this power of two.
_ROOM = 62


@dataclass(frozen=True)
class Fixed:
    """Numbers in fixed point.

    Attributes
    ----------
    data
        int64.
    unit
        What 1 stands for.
    greatest
        Bound of their magnitudes.
    """

    data: Tensor
    unit: float
    greatest: float


def fraction_bits(reach: int, count: int) -> int:
    """How many more bits than the codes have sums are computed with, over `count` codes of that magnitude."""
    return max(min(7 if reach < 1 << 9 else 3, (_ROOM - 2 - (reach * reach * count).bit_length()) // 2), 0)


@dataclass(frozen=True)
class Widths:
    """The numbers that a norm computes with.

    Attributes
    ----------
    fraction
        More bits than the codes have.
    eps, added
        What is added to the variance and to the root, in their own units.
    lift
        By how many bits the dividend is shifted to the left.
    unit, greatest
        Of the result.
    """

    fraction: int
    eps: int
    added: int
    lift: int
    unit: float
    greatest: float


def widths(step: float, reach: int, count: int, eps: float, added: float, inside: int) -> Widths:
    """Those for `count` codes of that magnitude and scale."""
    fraction = fraction_bits(reach, count)
    unit = math.ldexp(step, -fraction)
    h = inside - 4
    above = math.ldexp(math.sqrt(max(count, 2)), h + 1)
    return Widths(
        fraction, round(eps / unit**2), round(added / math.ldexp(unit, -_ROOT)), h + _ROOT, math.ldexp(1.0, -h), above
    )  # fmt: skip


def standardized(
    c: Tensor, dims: tuple[int, ...], step: float, reach: int, *, eps: float, centred: bool = True, correction: int = 0,
    added: float = 0.0, inside: int = 16,
) -> Fixed:  # fmt: skip
    """``(x - mean) / (sqrt(variance + eps) + added)`` over `dims`, or ``x / sqrt(mean(x²) + eps)`` where it is not centred.

    Parameters
    ----------
    c
        int64, codes less the zero point.
    step, reach
        Their scale and greatest magnitude.
    """
    count = _count(c, dims)
    by = widths(step, reach, count, eps, added, inside)
    d = c << by.fraction
    if centred:
        d = d - divide(d.sum(dims, keepdim=True), count)
    variance = divide(d.square().sum(dims, keepdim=True), max(count - correction, 1)) + by.eps
    below = root(variance.clamp_(min=1) << 2 * _ROOT) + by.added
    return Fixed(divide(d << by.lift, below), by.unit, by.greatest)


def normalized(
    c: Tensor, dims: tuple[int, ...], step: float, reach: int, *, order: float = 2.0, least: float = 0.0, added: float = 0.0,
    inside: int = 16,
) -> Fixed:  # fmt: skip
    """``x / (max(norm, least) + added)`` over `dims`, for the norms of order 1, 2 and infinity."""
    norm, bits = _norm(c, dims, reach, order)
    unit = math.ldexp(step, -bits)
    below = norm.clamp(min=max(round(least / unit), 1)) + round(added / unit)
    h = inside - 2
    return Fixed(divide(c << (h + bits), below), math.ldexp(1.0, -h), math.ldexp(1.0, h + 1))


def responses(
    c: Tensor, spatial: tuple[int, ...], channel: tuple[int, ...], step: float, reach: int, *, eps: float, inside: int = 16
) -> Fixed:  # fmt: skip
    """``norm / (mean(norm) + eps)``, the norms over `spatial` and their mean over `channel` (Woo et al. 2023)."""
    norm, bits = _norm(c, spatial, reach, 2.0)
    count = _count(norm, channel)
    below = divide(norm.sum(channel, keepdim=True), count) + max(round(eps / math.ldexp(step, -bits)), 1)
    h = inside - 4
    return Fixed(divide(norm << h, below), math.ldexp(1.0, -h), math.ldexp(float(count), h))


def _norm(c: Tensor, dims: tuple[int, ...], reach: int, order: float) -> tuple[Tensor, int]:
    """Norms of the codes over `dims`, and how many fractional bits they have."""
    if order == 1.0:
        return c.abs().sum(dims, keepdim=True) << _ROOT, _ROOT
    if order == math.inf:
        return c.abs().amax(dims, keepdim=True) << _ROOT, _ROOT
    bits = min(2 * _ROOT, (_ROOM - (reach * reach * _count(c, dims)).bit_length()) // 2)
    return root(c.square().sum(dims, keepdim=True) << 2 * bits), bits


def _count(c: Tensor, dims: tuple[int, ...]) -> int:
    return math.prod(c.shape[d] for d in dims)


def affine(y: Fixed, weight: Tensor | None, bias: Tensor | None) -> Fixed:
    """``y * weight + bias``: the weight, which broadcasts, on a symmetric 16-bit grid, the bias on the product's."""
    weights, biases, unit, greatest = coefficients(y.unit, y.greatest, weight, bias)
    data = y.data if weights is None else y.data * weights
    return Fixed(data if biases is None else data + biases, unit, greatest)


def coefficients(
    unit: float, greatest: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, Tensor | None, float, float]:
    """Codes of weight and bias, int64, for numbers of that unit and bound; unit and bound of what comes of them."""
    weights = biases = None
    if weight is not None:
        peak = max(float(weight.detach().abs().max()), 1e-30)
        weights = (weight.double() * (_WEIGHT / peak)).round_().long()
        unit, greatest = unit * peak / _WEIGHT, greatest * _WEIGHT
    if bias is not None:
        biases = (bias.double() / unit).round_().long()
        greatest += float(biases.abs().max()) if biases.numel() else 0.0
    return weights, biases, unit, greatest
