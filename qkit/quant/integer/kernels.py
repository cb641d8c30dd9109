"""Compiled loops of the integer forms on the CPU, in one pass each; equal to the other modules of this folder number by number.

They take values that lie on grids, float32, and give values on the output's grid before its ends, float32. `inverse` is the
reciprocal of the input's scale, so that ``rint(x * inverse)`` is the code less its zero point; ``mantissa`` and ``shift`` are a
`Multiplier`'s.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from qkit.quant.integer.rescaling import FAR, Multiplier
from qkit.quant.kernels import _rint, parallel

_NOTHING = np.float32(np.nan)
_jit = numba.njit(nogil=True, cache=True, error_model="numpy")


@_jit
def _scaled(x, mantissa, shift):
    """`rescaling.rescale`, held within what a grid is given."""
    if shift > 62:
        return np.int64(0)
    if shift > 0:
        found = (x * mantissa + (np.int64(1) << (shift - 1))) >> shift
    else:
        product = x * mantissa
        limit = np.int64(FAR)
        found = min(max(product, -limit), limit) << min(-shift, 31)
    return min(max(found, np.int64(-FAR)), np.int64(FAR))


@_jit
def _quotient(x, y):
    """`rescaling.divide`: the float64 quotient is off by one at most."""
    above, below = 2 * x + y, 2 * y
    found = np.int64(np.floor(np.float64(above) / np.float64(below)))
    rest = above - found * below
    return found + (rest >= below) - (rest < 0)


@_jit
def _root(x):
    found = np.int64(np.sqrt(np.float64(x)))
    found -= found * found > x
    found += (found + 1) * (found + 1) <= x
    return found


@_jit
def _look_up(x, inverse, offset, results, out):
    last = np.float32(results.size - 1)
    for i in range(x.size):
        at = _rint(x[i] * inverse) + offset
        # what is no number lies on no grid: it stays what it is
        out[i] = results[np.int32(at)] if np.float32(0.0) <= at <= last else _NOTHING


@_jit
def _interpolate(x, inverse, offset, nodes, shift, least, greatest, scale, out):
    last, half = (np.int64(1) << shift) - 1, np.int64(1) << (shift - 1)
    for i in range(x.size):
        index = np.int64(_rint(x[i] * inverse)) + offset
        at = min(max(index >> shift, np.int64(0)), np.int64(nodes.size - 2))
        base = nodes[at]
        found = base + (((nodes[at + 1] - base) * (index & last) + half) >> shift)
        out[i] = np.float32(min(max(found, least), greatest)) * scale


@_jit
def _rescale(x, mantissa, shift, scale, out):
    for i in range(x.size):
        out[i] = np.float32(_scaled(np.int64(x[i]), mantissa, shift)) * scale


@_jit
def _multiply(x, y, inverse_x, inverse_y, mantissa, shift, scale, out):
    for i in range(x.size):
        product = np.int64(_rint(x[i] * inverse_x)) * np.int64(_rint(y[i] * inverse_y))
        out[i] = np.float32(_scaled(product, mantissa, shift)) * scale


@_jit
def _add(x, y, inverse_x, inverse_y, left, mantissa_x, shift_x, mantissa_y, shift_y, mantissa, shift, scale, out):
    half_x, half_y = np.int64(1) << (shift_x - 1), np.int64(1) << (shift_y - 1)
    for i in range(x.size):
        a = ((np.int64(_rint(x[i] * inverse_x)) << left) * mantissa_x + half_x) >> shift_x
        b = ((np.int64(_rint(y[i] * inverse_y)) << left) * mantissa_y + half_y) >> shift_y
        out[i] = np.float32(_scaled(a + b, mantissa, shift)) * scale


@_jit
def _softmax(x, inverse, cut, high, low, bits, mantissa, shift, scale, out):
    rows, n = x.shape
    weights = np.empty(n, np.int64)
    half = np.int64(1) << (bits - 1)
    for r in range(rows):
        row, target = x[r], out[r]
        top = row[0]
        for i in range(n):
            top = max(top, row[i])
        greatest = np.int64(_rint(top * inverse))
        total = np.int64(0)
        for i in range(n):
            distance = max(min(greatest - np.int64(_rint(row[i] * inverse)), cut), 0)
            found = high[distance] if low.size == 0 else (high[distance >> 8] * low[distance & 255] + half) >> bits
            weights[i] = found
            total += found
        total = max(total, np.int64(1))
        for i in range(n):
            target[i] = np.float32(_scaled(_quotient(weights[i] << 30, total), mantissa, shift)) * scale


@_jit
def _standardize(x, inverse, f, centred, eps, added, lift, weight, bias, mantissa, shift, scale, out):
    rows, n = x.shape
    d = np.empty(n, np.int64)
    for r in range(rows):
        row, target = x[r], out[r]
        total = np.int64(0)
        for i in range(n):
            d[i] = np.int64(_rint(row[i] * inverse)) << f
            total += d[i]
        mean = _quotient(total, np.int64(n)) if centred else np.int64(0)
        total = np.int64(0)
        for i in range(n):
            d[i] -= mean
            total += d[i] * d[i]
        below = _root(max(_quotient(total, np.int64(n)) + eps, np.int64(1)) << 16) + added
        for i in range(n):
            y = _quotient(d[i] << lift, below)
            if weight.size:
                y = y * weight[i] + bias[i]
            target[i] = np.float32(_scaled(y, mantissa, shift)) * scale


def _over(loop: Any, arrays: tuple[np.ndarray, ...], out: np.ndarray, *rest: Any) -> None:
    parallel(lambda a, b: loop(*(x[a:b] for x in arrays), *rest, out[a:b]), out.shape[0], out.size)


def look_up(x: np.ndarray, inverse: float, offset: int, results: np.ndarray, out: np.ndarray) -> None:
    """`pointwise.Table` of every code, whose values are `results`; flat."""
    _over(_look_up, (x,), out, np.float32(inverse), np.float32(offset), results)


def interpolate(
    x: np.ndarray,
    inverse: float,
    offset: int,
    nodes: np.ndarray,
    shift: int,
    ends: tuple[int, int],
    scale: float,
    out: np.ndarray,
) -> None:
    """`pointwise.Table` between nodes; flat."""
    _over(_interpolate, (x,), out, np.float32(inverse), offset, nodes, shift, *ends, np.float32(scale))


def rescale(x: np.ndarray, by: Multiplier, scale: float, out: np.ndarray) -> None:
    """Whole float32 numbers, multiplied and put on a grid; flat."""
    _over(_rescale, (x,), out, by.mantissa, by.shift, np.float32(scale))


def multiply(x: np.ndarray, y: np.ndarray, inverses: tuple[float, float], by: Multiplier, scale: float, out: np.ndarray) -> None:
    """Products of elements; flat."""
    a, b = map(np.float32, inverses)
    _over(_multiply, (x, y), out, a, b, by.mantissa, by.shift, np.float32(scale))


def add(
    x: np.ndarray, y: np.ndarray, inverses: tuple[float, float], left: int, by: tuple[Multiplier, Multiplier, Multiplier],
    scale: float, out: np.ndarray,
) -> None:  # fmt: skip
    """`joins.added` of two, whose own multipliers shift to the right; flat."""
    a, b = map(np.float32, inverses)
    numbers = [n for m in by for n in (m.mantissa, m.shift)]
    _over(_add, (x, y), out, a, b, left, *numbers, np.float32(scale))


def softmax(
    x: np.ndarray, inverse: float, cut: int, tables: tuple[np.ndarray, np.ndarray], bits: int, by: Multiplier, scale: float,
    out: np.ndarray,
) -> None:  # fmt: skip
    """`softmax.softmax` by tables along rows, (R, n); the second table is empty where the first has every distance."""
    _over(_softmax, (x,), out, np.float32(inverse), cut, *tables, bits, by.mantissa, by.shift, np.float32(scale))


def standardize(
    x: np.ndarray, inverse: float, f: int, centred: bool, eps: int, added: int, lift: int, weight: np.ndarray, bias: np.ndarray,
    by: Multiplier, scale: float, out: np.ndarray,
) -> None:  # fmt: skip
    """`norms.standardized` along rows, (R, n), and `norms.affine`; `weight` is empty where there is none, then `bias` is too."""
    rest = (f, centred, eps, added, lift, weight, bias, by.mantissa, by.shift, np.float32(scale))
    _over(_standardize, (x,), out, np.float32(inverse), *rest)
