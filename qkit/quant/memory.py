"""Views of a tensor: flat, as rows with the channel innermost, or with a row for every channel."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from torch import Tensor

#: Positions in a row: long enough to vectorize, short enough that a row and its sums stay in the first-level cache.
ROW = 2048
#: Stretches that are worth a call of their own, and positions of a row that are worth a loop.
_BLOCKS, _LEAST = 1024, 64


def dense(x: Tensor) -> Tensor:
    """`x` flat, in the order of its memory; shares memory unless `x` has gaps."""
    x = x.detach()
    if x.is_contiguous():
        return x.view(-1)
    last = x.movedim(1, -1) if x.ndim > 2 else x
    return last.view(-1) if last.is_contiguous() else x.contiguous().view(-1)


def without_gaps(x: Tensor) -> Tensor:
    """`x` itself if `dense` can share its memory, else a contiguous copy."""
    if x.is_contiguous() or (x.ndim > 2 and x.movedim(1, -1).is_contiguous()):
        return x
    return x.contiguous()


def channels_innermost(x: Tensor, axis: int) -> Tensor:
    """`x` with `axis` innermost in memory (the shape stays); copies only where it is not so already."""
    if x.ndim == 0:
        return x
    moved = x.movedim(axis, -1)
    return x if moved.is_contiguous() else moved.contiguous().movedim(-1, axis)


def by_channel(x: Tensor, axis: int) -> Tensor:
    """`x` as (C, everything else), its channels along `axis`; a tensor of one dimension or none has one number a channel."""
    return x.movedim(axis, 0).flatten(1) if x.ndim > 1 else x.reshape(-1, 1)


def rows(x: Tensor, axis: int) -> tuple[np.ndarray, int]:
    """Memory of a CPU tensor whose `axis` is innermost, as (R, P) rows of whole pixels, and the number of channels.

    Position p of a row belongs to channel ``p % channels``.
    """
    if x.ndim == 0:
        return x.reshape(1, 1).numpy(), 1
    channels = max(int(x.shape[axis]), 1)
    flat = x.movedim(axis, -1).reshape(-1, channels)
    pixels = flat.shape[0]
    group = _pixels_a_row(pixels, channels)
    return flat.view(pixels // group, group * channels).numpy(), channels


def blocks(x: Tensor, axis: int) -> np.ndarray | None:
    """Memory of a CPU tensor whose channels lie apart, each a long stretch, as (outer × channels, R, P); None where they do not.

    Such are the products of an attention, whose channels are its heads: rows of their channels would be a copy of all.
    """
    if x.ndim < 3 or not x.is_contiguous() or x.movedim(axis, -1).is_contiguous():
        return None
    at = axis % x.ndim
    count, size = math.prod(x.shape[: at + 1]), math.prod(x.shape[at + 1 :])
    group = _pixels_a_row(size, 1) if size else 0
    if count > _BLOCKS or size < ROW or group < _LEAST:
        return None
    return x.detach().view(count, size // group, group).numpy()


@lru_cache(maxsize=4096)
def _pixels_a_row(pixels: int, channels: int) -> int:
    return next(k for k in range(max(ROW // channels, 1), 0, -1) if pixels % k == 0)
