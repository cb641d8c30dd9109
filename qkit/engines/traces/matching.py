"""Correlations: how alike two signatures are, free of scale and offset, and which goes with which."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

#: A signal whose spread is below this share of its magnitude is constant.
_FLAT = 1e-6
_TINY = 1e-30
#: Elements that each channel needs, for its channels to be told apart.
_PER_CHANNEL = 16


def normalised(x: np.ndarray) -> np.ndarray | None:
    """`x` flat, without its mean and of length 1; None where it is constant, tiny, or not finite: nothing can be told from it."""
    flat = np.asarray(x, np.float64).reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        peak = float(np.abs(flat).max()) if flat.size else 0.0
        if not np.isfinite(peak) or peak < _TINY:
            return None
        centered = flat - flat.mean()
        length = float(np.sqrt(centered @ centered))
    if not np.isfinite(length) or length / np.sqrt(flat.size) <= _FLAT * peak:
        return None
    return np.asarray(centered / length)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Pearson's; NaN where either is constant or tiny."""
    a, b = normalised(x), normalised(y)
    return float("nan") if a is None or b is None else float(a @ b)


def chance(elements: int, frames: int) -> float:
    """A correlation that unrelated tensors of so many elements a frame may well reach; neighbours in a map are alike, so that few
    elements count as independent.
    """
    return float(min(3.0 / np.sqrt(max(elements * frames / 9.0, 1.0)), 0.95))


def lead(best: float, second: float) -> float:
    """Confidence in a match: how much of what the second best leaves unexplained the best explains, 0 to 1."""
    second = max(second, 0.0)
    if not np.isfinite(best) or best <= second:
        return 0.0
    return float(min((best - second) / max(1.0 - second, 1e-12), 1.0))


def frame_correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(frames of x, samples of y): how alike they are in what sets a frame apart from the others."""
    a, b = (m - m.mean(0) for m in (np.asarray(x, np.float64), np.asarray(y, np.float64)))
    lengths = [np.sqrt((m * m).sum(1, keepdims=True)) for m in (a, b)]
    peak = max(float(np.abs(y).max()), _TINY) if np.isfinite(y).all() else _TINY
    if not all(np.isfinite(n).all() for n in lengths) or float(lengths[1].max()) <= _FLAT * peak:
        return np.zeros((len(a), len(b)))
    a, b = (m / np.maximum(n, _TINY) for m, n in zip((a, b), lengths, strict=True))
    return np.asarray(a @ b.T)


def frame_order(matrix: np.ndarray) -> tuple[list[int], float]:
    """The sample that each frame belongs to, and the confidence that it is another order than the given one (0 where it is not).

    Frames that a sample fits no better than the one in their place stay there.
    """
    rows, columns = linear_sum_assignment(-matrix)
    order = [int(c) for _, c in sorted(zip(rows, columns, strict=True))]
    moved = [i for i, j in enumerate(order) if i != j]
    if not moved:
        return order, 0.0
    found = float(np.mean([matrix[i, order[i]] for i in moved]))
    given = float(np.mean([matrix[i, i] for i in moved]))
    if found < 0.4 or found - given < 0.2:
        return list(range(len(order))), 0.0
    return order, lead(found, given)


def channel_order(x: np.ndarray, y: np.ndarray, channels: int) -> tuple[list[int], float] | None:
    """For each channel of y, the channel of x that holds it, and the correlation on elements that did not choose it.

    None where there are too few elements to tell channels apart.
    """
    a, b = (m.reshape(len(m), channels, -1).swapaxes(0, 1) for m in (x, y))
    if len(x) == 1:
        # a single frame: its places take the frames' part
        a, b = (m.swapaxes(1, 2) for m in (a, b))
    if channels < 2 or a[0].size < _PER_CHANNEL or a.shape[1] < 2:
        return None
    even, odd = slice(0, None, 2), slice(1, None, 2)
    left, right = (_rows(m[:, even].reshape(channels, -1)) for m in (a, b))
    score = right @ left.T
    # among channels that are alike (dead ones), the one in its place
    rows, columns = linear_sum_assignment(-(score + 1e-9 * np.eye(channels)))
    order = [int(c) for _, c in sorted(zip(rows, columns, strict=True))]
    return order, correlation(a[order][:, odd], b[:, odd])


def _rows(m: np.ndarray) -> np.ndarray:
    centered = m - m.mean(1, keepdims=True)
    peak = np.abs(m).max(1, keepdims=True)
    length = np.sqrt((centered * centered).sum(1, keepdims=True))
    flat = length <= _FLAT * np.maximum(peak, _TINY) * np.sqrt(m.shape[1])
    # channels without a signal of their own go by their level, a little
    return np.where(flat, 0.0, centered / np.maximum(length, _TINY))
