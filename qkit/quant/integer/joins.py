"""Sums, products and averages of codes, brought to the output's grid by multipliers and shifts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qkit.quant.integer.rescaling import MULTIPLIER_BITS, Multiplier, multiplier, rescale


def wrapped(sums: Tensor, bits: int | None) -> Tensor:
    """Sums as a two's complement accumulator of `bits` holds them, int64; None for one without end."""
    if bits is None or bits >= 64:
        return sums
    half = 1 << (bits - 1)
    return ((sums + half) & ((1 << bits) - 1)) - half


def added(parts: Sequence[tuple[Tensor, float, int]], scale: float, bits: int = MULTIPLIER_BITS) -> Tensor:
    """The sum of several tensors on their own grids, as codes less the zero point, int64, before the grid's ends.

    As in TensorFlow Lite's integer kernels: the operands are shifted to the left by 20 bits (15 where they have more than 8),
    brought to twice the greatest of their scales, added, and brought to the output's. Off by half a step of the output, half a
    shifted unit for each operand, and ``2**-30`` of what the operands amount to.

    Parameters
    ----------
    parts
        Codes less the zero point, their scale (below 0 to subtract) and their greatest magnitude.
    """
    left, each, last = addition([(step, reach) for _, step, reach in parts], scale, bits)
    total = torch.zeros((), dtype=torch.int64, device=parts[0][0].device)
    for (codes, _, _), by in zip(parts, each, strict=True):
        total = total + rescale(codes << left, by)
    return rescale(total, last)


def addition(
    parts: Sequence[tuple[float, int]], scale: float, bits: int = MULTIPLIER_BITS
) -> tuple[int, list[Multiplier], Multiplier]:
    """Of an addition: the shift to the left, each operand's multiplier, and the sum's, for operands' scales and magnitudes."""
    left = 20 if all(reach < 1 << 9 for _, reach in parts) else 15
    common = 2.0 * max(abs(step) for step, _ in parts)
    each = [multiplier(step / common, reach << left, bits) for step, reach in parts]
    greatest = sum(reach for _, reach in parts) << left
    return left, each, multiplier(common / (1 << left) / scale, greatest, bits)
