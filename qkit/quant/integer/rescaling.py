"""A real factor as a multiplier and a shift (Jacob et al. 2018, section 2.2), and the divisions and roots of integers.

Everything takes and gives int64 tensors of any shape on any device. Rounding is to the nearest integer, ties upwards: adding half
and shifting, as engines do in one instruction.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Bits of a multiplier, at most.
MULTIPLIER_BITS = 31
#: Bound of what is given to a grid, in codes: beyond the end of every grid, and exact in float32.
FAR = 1 << 22
#: Products of numbers and multipliers stay below this power of two.
_ROOM = 62


@dataclass(frozen=True)
class Multiplier:
    """``factor`` as ``mantissa * 2**-shift``.

    Attributes
    ----------
    factor
        The real number that is meant.
    mantissa
        Integer; its highest bit is set.
    shift
        To the right; below 0 to the left.
    """

    factor: float
    mantissa: int
    shift: int

    @property
    def error(self) -> float:
        """By how much it misses the factor, relative to it."""
        return abs(math.ldexp(self.mantissa, -self.shift) / self.factor - 1.0) if self.factor else 0.0


def multiplier(factor: float, greatest: float = 1.0, bits: int = MULTIPLIER_BITS) -> Multiplier:
    """The multiplier of `bits` next to a factor, narrower where numbers up to `greatest` would overflow 64 bits with it.

    The relative error is at most ``2**-bits``.
    """
    if not factor:
        return Multiplier(0.0, 0, 0)
    width = max(2, min(bits, _ROOM - max(math.ceil(math.log2(max(greatest, 1.0))), 0)))
    fraction, exponent = math.frexp(abs(factor))
    mantissa, shift = round(math.ldexp(fraction, width)), width - exponent
    return Multiplier(factor, mantissa if factor > 0 else -mantissa, shift)


def rescale(x: Tensor, by: Multiplier) -> Tensor:
    """``round(x * factor)``, int64; what a shift to the left cannot hold is held at 2**62."""
    if by.shift <= 0:
        limit = (1 << _ROOM) >> -by.shift if -by.shift < _ROOM else 0
        product = x * by.mantissa
        return product.clamp(-limit, limit) << min(-by.shift, _ROOM)
    if by.shift > _ROOM:
        return torch.zeros_like(x)
    return (x * by.mantissa + (1 << (by.shift - 1))) >> by.shift


def divide(x: Tensor, y: Tensor | int) -> Tensor:
    """``round(x / y)`` for y > 0, ties upwards; ``2 |x| + y`` has to stay below 2**63."""
    return torch.div(2 * x + y, 2 * y, rounding_mode="floor")


def root(x: Tensor) -> Tensor:
    """``floor(sqrt(x))`` for 0 <= x < 2**62, exactly."""
    guess = x.double().sqrt_().long()
    guess -= (guess * guess > x).long()
    guess += ((guess + 1) * (guess + 1) <= x).long()
    return guess
