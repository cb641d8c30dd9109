"""Softmax in integers: an exponential of the distance to the greatest, a wide sum, a division.

Codes ``q`` of logits with one scale give ``d = max(q) - q``, not negative, and the exponential ``e = exp(-scale * d)`` in a
number of bits that is given as `inside`. Three forms of it:

* "table": ``2**bits`` entries up to 12 bits; above, the product of two tables, ``exp(-256 s a) exp(-s b)`` for ``d = 256 a + b``.
  Off by at most 1 and 2 units of ``2**-(inside - 1)``.
* "polynomial": ``d * scale = z ln 2 + p``, and ``exp(-p) = 0.3585 (1.353 - p)² + 0.344``, shifted by ``z`` (Kim et al. 2021,
  "I-BERT: Integer-only BERT Quantization", section 3.4.2). Off by at most 3.5e-3 of the value, 2.1e-3 of exp(0).
* "shift": ``x log2 e = x + x/2 - x/16``, and ``2**-r = 1 - r/2`` for the fraction ``r`` (Li and Gu 2023, "I-ViT: Integer-only
  Quantization for Efficient Vision Transformer Inference", section 3.3). Too great by up to 6.15 % by the line, and by the
  factor ``2**(0.0052 x)``.

The probability is ``e / sum(e)`` by a division of integers, rounded once on the way to the output's grid.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from qkit.quant.arithmetic import Softmax
from qkit.quant.integer.rescaling import divide, multiplier, rescale

#: Fractional bits of a probability before it is put on a grid.
PROBABILITY_BITS = 30
#: Distances up to this many bits have a table of every one.
_WHOLE_TABLE = 12
_SECOND = 8
#: I-BERT's polynomial ``a (x + b)² + c`` of exp on (-ln 2, 0].
_A, _B, _C = 0.3585, 1.353, 0.344


def exponentials(distance: Tensor, step: float, form: Softmax, inside: int = 16, greatest: int = 1 << 40) -> Tensor:
    """``exp(-step * distance)`` in units that all have in common, int64; of distance 0 about ``2**(inside - 1)``.

    Parameters
    ----------
    distance
        int64, not negative.
    step
        The logits' scale, greater than 0.
    greatest
        Bound of the distances.
    """
    bits, cut = inside - 1, furthest(step, inside, greatest)
    distance = distance.clamp(0, cut)
    if form == "table":
        return _by_table(distance, step, bits, cut)
    x = rescale(distance, multiplier(step * (1 << bits), cut))
    return _by_polynomial(x, bits) if form == "polynomial" else _by_shifts(x, bits)


def furthest(step: float, inside: int, greatest: int) -> int:
    """The distance from which on nothing is left of the exponential; at most `greatest`."""
    return min(greatest, math.ceil((inside + 3) / step))


def tables(step: float, bits: int, furthest: int, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """The exponential in units of ``2**-bits`` for every distance, or by the distance's upper bits and by its lowest eight."""
    if furthest >> _WHOLE_TABLE:
        high = _table((furthest >> _SECOND) + 1, step * (1 << _SECOND), bits, device)
        return high, _table(1 << _SECOND, step, bits, device)
    return _table(furthest + 1, step, bits, device), None


def _by_table(distance: Tensor, step: float, bits: int, furthest: int) -> Tensor:
    high, low = tables(step, bits, furthest, distance.device)
    if low is None:
        return high[distance]
    product = high[distance >> _SECOND] * low[distance & ((1 << _SECOND) - 1)]
    return (product + (1 << (bits - 1))) >> bits


@lru_cache(maxsize=512)
def _table(count: int, step: float, bits: int, device: torch.device) -> Tensor:
    entries = torch.exp(-step * torch.arange(count, dtype=torch.float64)) * (1 << bits)
    return entries.round_().long().to(device)


def _by_polynomial(x: Tensor, bits: int) -> Tensor:
    one = 1 << bits
    ln2, b, c = round(math.log(2.0) * one), round(_B * one), round(_C / _A * one * one)
    z = torch.div(x, ln2, rounding_mode="floor")
    p = x - z * ln2
    # in units of a / 2**(2 bits), brought down to `bits` of them
    return ((b - p).square_() + c) >> (z + bits).clamp_(max=62)


def _by_shifts(x: Tensor, bits: int) -> Tensor:
    x = x + (x >> 1) - (x >> 4)
    z, fraction = x >> bits, x & ((1 << bits) - 1)
    return ((1 << bits) - (fraction >> 1)) >> z.clamp_(max=62)


def softmax(
    codes: Tensor, step: float, dim: int, form: Softmax, inside: int = 16, hidden: Tensor | None = None, greatest: int = 1 << 40
) -> Tensor:
    """Probabilities along `dim` in units of ``2**-30``, int64, the shape of `codes`.

    Parameters
    ----------
    codes
        int64, of logits with one scale; a common offset does not matter.
    step
        Their scale.
    hidden
        True, broadcast over `codes`, where nothing is to be seen: probability 0, also where a whole row is hidden.
    greatest
        Bound of the codes' differences.
    """
    if hidden is not None:
        codes = codes.masked_fill(hidden, torch.iinfo(torch.int64).min >> 2)
    top = codes.amax(dim, keepdim=True)
    distance = top - codes
    if hidden is not None:
        distance = distance.masked_fill(hidden, 0)
    weights = exponentials(distance, step, form, inside, greatest)
    if hidden is not None:
        weights = weights.masked_fill(hidden, 0)
    total = weights.sum(dim, keepdim=True)
    return divide(weights << PROBABILITY_BITS, total.clamp_(min=1))
