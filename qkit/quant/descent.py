"""A quadratic function of numbers that have two values each, brought down by changing one at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from qkit.quant.compiled import kernels

#: Rounds over all numbers at most; on layers of networks a few do.
ROUNDS = 100


def descend(products: Tensor, crossed: Tensor, start: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Where ``d G d' + 2 c d'`` falls no further by changing a single number of a row d.

    Parameters
    ----------
    products
        G, float64 (groups, K, K), symmetric.
    crossed, start, first, second
        c, where to begin, and the two values that each number can have, float64 (groups, rows, K) each.
    """
    other = torch.where(start == first, second, first)
    steps, slopes = other - start, start @ products + crossed
    loops = kernels() if start.device.type == "cpu" else None
    if loops is not None:
        changed = loops.descend(products.numpy(), steps.numpy(), slopes.numpy(), ROUNDS)
        return torch.where(torch.from_numpy(changed), other, start)
    changed = torch.zeros_like(start, dtype=torch.bool)
    curves = products.diagonal(dim1=1, dim2=2)
    for _ in range(ROUNDS):
        any_changed = torch.zeros((), dtype=torch.bool, device=start.device)
        for k in range(start.shape[-1]):
            step = steps[..., k]
            helps = step * (2.0 * slopes[..., k] + curves[:, None, k] * step) < 0.0
            slopes += (step * helps)[..., None] * products[:, None, k]
            steps[..., k] = torch.where(helps, -step, step)
            changed[..., k] ^= helps
            any_changed |= helps.any()
        if not any_changed:
            break
    return torch.where(changed, other, start)
