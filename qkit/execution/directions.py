"""Vectors at a network's output whose squared products with what moves it add up to what a loss rises by.

Small moves x of a sample's class scores raise the cross-entropy, with labels drawn from the scores themselves, by
``1/2 x^T (diag(p) - p p^T) x``: p is what the network believes, and the matrix is the covariance of a label drawn from it. So the
vectors have to add up to this matrix, exactly or on average.

- Of the likeliest classes they are columns of its Cholesky factor, which are known in closed form: what is left of the
  covariance once a class is taken out is that of a label drawn from the others.
- One random vector has the covariance that is left, ``sqrt(q) e - q (sqrt(q) . e) / sum(q)`` of a normal e, where q are the
  beliefs in the other classes.

A sample that is torn between two classes is so described by its first vector alone, and nothing but its sign is left to chance.
Signs are drawn, so that what one sample or output adds does not add up with what another one does where the two meet.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qkit.execution.measures import beliefs

__all__ = ["class_vectors", "shared_out", "square_vectors", "uncertainty"]

_LEAST = 1e-300


def class_vectors(scores: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """At most `count` vectors of the scores' shape (N, C, …) that add up to the covariance of a drawn label, see above.

    Dense scores have a label at every position, of which the loss is the mean; their vectors are random ones.
    """
    p = beliefs(scores)
    if p.ndim > 2:
        root = p.sqrt()
        each = (count * p[0, 0].numel()) ** 0.5
        noises = [_noise(p, generator) for _ in range(count)]
        return [((root * e - p * (root * e).sum(1, keepdim=True)) / each).to(scores.dtype) for e in noises]
    found: list[Tensor] = []
    left = p
    last = p.shape[1] - 1
    for _ in range(count - 1 if count < last else last):
        at = left.argmax(1, keepdim=True)
        own, others = left.gather(1, at), left.scatter(1, at, 0.0)
        rest = others.sum(1, keepdim=True)
        both = (own + rest).clamp_min(_LEAST)
        column = -others * (own / (both * rest.clamp_min(_LEAST))).sqrt()
        found.append(column.scatter(1, at, (own * rest / both).sqrt()))
        left = others
    if len(found) < last:
        root = left.sqrt() * _noise(p, generator)
        found.append(root - left * root.sum(1, keepdim=True) / left.sum(1, keepdim=True).clamp_min(_LEAST))
    return [(_noise(p[:, :1], generator).sign() * vector).to(scores.dtype) for vector in found]


def square_vectors(y: Tensor, count: int, generator: torch.Generator) -> list[Tensor]:
    """So many random vectors for half the squared error, as its mean over a sample's elements, over the variance of `y`."""
    spread = y.double().var(correction=0) if y.numel() > 1 else y.double().square().mean()
    each = (spread.clamp_min(1e-30) * y[0].numel() * count).sqrt()
    return [(_noise(y, generator) / each).to(y.dtype) for _ in range(count)]


def _noise(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)


def uncertainty(scores: Tensor) -> np.ndarray:
    """The chance that two labels drawn from a sample's scores differ, ``1 - sum(p^2)``, float64 (N,); of dense ones the mean."""
    p = beliefs(scores)
    # p (1 - p) and not 1 - p p, which is nothing but rounding for a network that is sure
    return np.asarray((p * (1.0 - p)).sum(1).reshape(len(p), -1).mean(1).cpu())


def shared_out(weights: Sequence[float], count: int) -> list[int]:
    """`count` draws a part on average, at least one each, so that the variances ``weight^2 / draws`` add up to the least.

    Neyman's allocation (1934), in whole draws.
    """
    draws = [1] * len(weights)
    for _ in range((count - 1) * len(weights)):
        gains = [w * w / (d * (d + 1)) for w, d in zip(weights, draws, strict=True)]
        draws[int(np.argmax(gains))] += 1
    return draws
