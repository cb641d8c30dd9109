"""Compiled loops of the hot path on the CPU: quantize, measure and count in one pass over a tensor.

Torch's own operators would each pass over memory once; a pass that quantizes and takes eight sums would need some twenty
of them. Here numba compiles one loop, which walks rows of a few thousand elements so that everything between two loads
stays in the first-level cache. The arithmetic is that of `qkit.quant.grids`, bit for bit (see the tests).

The loops are serial and release the interpreter lock; :func:`parallel` splits rows over as many threads as torch uses.
numba's own threading layers are avoided on purpose: the portable one aborts the process when two Python threads (a
notebook's cell and a widget's callback) enter it at once.

Arrays are two-dimensional, (R, P): R rows of P positions. Sums are kept per position and folded to channels by the
caller, which is what lets the inner loop vectorize without reordering anybody's floating-point sums into one register.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.extending import intrinsic

#: Below this many elements a thread costs more than it saves.
SERIAL = 1 << 16
#: Rows of sums kept in float32 before they are added to float64.
_FLUSH = 64
_NONE, _ONE = np.float32(0.0), np.float32(1.0)


@intrinsic
def _rint(typingctx: Any, x: Any) -> Any:
    """Round to nearest, ties to even, as one vector instruction (np.rint would call the C library per element)."""
    signature = numba.types.float32(numba.types.float32)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        rint = builder.module.declare_intrinsic("llvm.nearbyint", [ir.FloatType()])
        return builder.call(rint, [args[0]])

    return signature, codegen


# No "reassoc": the compiler may take NaN for impossible, which lets minima and maxima vectorize, but never reorder. That the
# input is finite is checked beforehand, by a sum of squares that has no such leave.
_strict = numba.njit(nogil=True, cache=True, error_model="numpy")
_jit = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "nnan"})


class _Apart(CompilerBase):
    """Compiles a function under the promise that its array arguments do not overlap: without that, a loop over so many
    arrays is checked for overlaps at run time or not vectorized at all.
    """

    def define_pipelines(self):
        self.state.flags.noalias = True
        return [DefaultPassBuilder.define_nopython_pipeline(self.state)]


_jit_apart = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"nsz", "nnan"}, pipeline_class=_Apart)


@_jit
def _quantize_flat(y, inverse, scale, low, high, act_low, act_high):
    for i in range(y.size):
        v = min(max(y[i], act_low), act_high)
        y[i] = min(max(_rint(v * inverse), low), high) * scale


@_jit
def _quantize_rows(y, out, inverse, scale, low, high):
    for r in range(y.shape[0]):
        row, target = y[r], out[r]
        inv, step, lo, hi = inverse[r], scale[r], low[r], high[r]
        for i in range(row.size):
            target[i] = min(max(_rint(row[i] * inv), lo), hi) * step


@_strict
def _add_square(total, x):
    for p in range(x.size):
        total[p] += x[p] * x[p]


@_jit
def _extremes(least, greatest, x):
    for p in range(x.size):
        v = x[p]
        least[p] = min(least[p], v)
        greatest[p] = max(greatest[p], v)


@_jit
def _flush(sums, partial, count):
    for k in range(count):
        total, part = sums[k], partial[k]
        for p in range(part.size):
            total[p] += part[p]
            part[p] = np.float32(0.0)


# Rows of `sums`, (8, P) float64: squared error, float times error, absolute error, squared excess of clipped elements,
# number of clipped, squared own error; of `peaks`, (3, P) float32: greatest absolute error, least and greatest value.
SQUARED, PRODUCT, ABSOLUTE, EXCESS, CLIPPED, OWN = range(6)
PEAK, LEAST, GREATEST = range(3)


@_jit
def _on_grid(v, inverse, scale, low, high, act_low, act_high):
    """The value on the grid, its error, and the error again if the grid clips the value, else 0."""
    v = min(max(v, act_low), act_high)
    t = _rint(v * inverse)
    q = min(max(t, low), high)
    x = q * scale
    return x, x - v, x - v if t != q else np.float32(0.0)


# Two rows at a time: the sums are loaded and stored half as often, which is most of what these loops do.
@_jit_apart
def _measure_two(
    y, z, f, g, squared, product, absolute, excess, clipped, own, peak, least, greatest,
    inverse, scale, low, high, act_low, act_high,
):  # fmt: skip
    for p in range(y.size):
        x, d, c = _on_grid(y[p], inverse, scale, low, high, act_low, act_high)
        w, b, k = _on_grid(z[p], inverse, scale, low, high, act_low, act_high)
        y[p], z[p] = x, w
        e, h = x - f[p], w - g[p]
        squared[p] += e * e + h * h
        product[p] += f[p] * e + g[p] * h
        absolute[p] += abs(e) + abs(h)
        excess[p] += c * c + k * k
        clipped[p] += (_ONE if c != _NONE else _NONE) + (_ONE if k != _NONE else _NONE)
        own[p] += d * d + b * b
        peak[p] = max(peak[p], abs(e), abs(h))
        least[p] = min(least[p], x, w)
        greatest[p] = max(greatest[p], x, w)


@_jit_apart
def _measure_one(
    y, f, squared, product, absolute, excess, clipped, own, peak, least, greatest,
    inverse, scale, low, high, act_low, act_high,
):  # fmt: skip
    for p in range(y.size):
        x, d, c = _on_grid(y[p], inverse, scale, low, high, act_low, act_high)
        y[p] = x
        e = x - f[p]
        squared[p] += e * e
        product[p] += f[p] * e
        absolute[p] += abs(e)
        excess[p] += c * c
        clipped[p] += _ONE if c != _NONE else _NONE
        own[p] += d * d
        peak[p] = max(peak[p], abs(e))
        least[p] = min(least[p], x)
        greatest[p] = max(greatest[p], x)


@_jit
def _measure(y, f, inverse, scale, low, high, act_low, act_high, sums, peaks, partial):
    partial[:] = np.float32(0.0)
    squared, product, absolute, excess, clipped, own = partial[0], partial[1], partial[2], partial[3], partial[4], partial[5]
    peak, least, greatest = peaks[0], peaks[1], peaks[2]
    for r in range(0, y.shape[0] - 1, 2):
        _measure_two(
            y[r], y[r + 1], f[r], f[r + 1], squared, product, absolute, excess, clipped, own, peak, least, greatest,
            inverse, scale, low, high, act_low, act_high,
        )  # fmt: skip
        if r % _FLUSH == _FLUSH - 2:
            _flush(sums, partial, 6)
    if y.shape[0] % 2:
        _measure_one(
            y[-1], f[-1], squared, product, absolute, excess, clipped, own, peak, least, greatest,
            inverse, scale, low, high, act_low, act_high,
        )  # fmt: skip
    _flush(sums, partial, 6)


@_jit_apart
def _local_two(y, z, f, g, squared, inverse, scale, low, high, act_low, act_high):
    for p in range(y.size):
        e = _on_grid(y[p], inverse, scale, low, high, act_low, act_high)[0] - f[p]
        h = _on_grid(z[p], inverse, scale, low, high, act_low, act_high)[0] - g[p]
        squared[p] += e * e + h * h


@_jit_apart
def _local_one(y, f, squared, inverse, scale, low, high, act_low, act_high):
    for p in range(y.size):
        e = _on_grid(y[p], inverse, scale, low, high, act_low, act_high)[0] - f[p]
        squared[p] += e * e


@_jit
def _local(y, f, inverse, scale, low, high, act_low, act_high, sums, partial):
    partial[:] = np.float32(0.0)
    for r in range(0, y.shape[0] - 1, 2):
        _local_two(y[r], y[r + 1], f[r], f[r + 1], partial[0], inverse, scale, low, high, act_low, act_high)
        if r % _FLUSH == _FLUSH - 2:
            _flush(sums, partial, 1)
    if y.shape[0] % 2:
        _local_one(y[-1], f[-1], partial[0], inverse, scale, low, high, act_low, act_high)
    _flush(sums, partial, 1)


@_jit
def _describe(f, sums, peaks, scratch):
    partial = scratch
    partial[:] = np.float32(0.0)
    for r in range(f.shape[0]):
        _add_square(partial[0], f[r])
        _extremes(peaks[0], peaks[1], f[r])
        if r % _FLUSH == _FLUSH - 1:
            _flush(sums, partial, 1)
    _flush(sums, partial, 1)


@numba.njit(nogil=True, cache=True)
def _count(bits, table):
    # the upper 24 bits of an entry count, the lower 40 add up the float's lower 16 bits; two tables, so that equal
    # neighbours (zeros after a ReLU) do not wait for each other's store
    one = np.int64(1) << 40
    quarter = bits.size // 4
    for i in range(quarter):
        a, b, c, d = bits[4 * i], bits[4 * i + 1], bits[4 * i + 2], bits[4 * i + 3]
        table[0, a >> 16] += one | np.int64(a & np.uint32(0xFFFF))
        table[1, b >> 16] += one | np.int64(b & np.uint32(0xFFFF))
        table[0, c >> 16] += one | np.int64(c & np.uint32(0xFFFF))
        table[1, d >> 16] += one | np.int64(d & np.uint32(0xFFFF))
    for i in range(4 * quarter, bits.size):
        a = bits[i]
        table[0, a >> 16] += one | np.int64(a & np.uint32(0xFFFF))


@numba.njit(nogil=True, cache=True)
def _drain(tables, first, last, keys, counts, lows, used):
    """Append the bins first..last-1 that the tables hold to keys, counts and lows from index `used` on, and clear them."""
    mask = (np.int64(1) << 40) - 1
    for k in range(first, last):
        count, low = np.int64(0), np.int64(0)
        for t in range(tables.shape[0]):
            v = tables[t, k]
            count += v >> 40
            low += v & mask
            tables[t, k] = 0
        if count != 0:
            keys[used], counts[used], lows[used] = k, count, low
            used += 1
    return used


@_jit
def _rows_extremes(f, peaks):
    for r in range(f.shape[0]):
        _extremes(peaks[0], peaks[1], f[r])


#: Most elements that one table counts between two drains: a 24-bit count cannot overflow then.
_COUNT_LIMIT = 1 << 23
#: Elements that two loops in turn find in the second-level cache. (Compiled into one function, neither would vectorize.)
_BLOCK = 1 << 16
_BINS = 1 << 16
_SIGN = _BINS >> 1

#: Tables that are not in use, all zero, by number of threads.
_free_tables: dict[int, list[np.ndarray]] = {}


@lru_cache(maxsize=4)
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="qkit")


def parallel(work: Callable[[int, int], Any], rows: int, elements: int) -> list[Any]:
    """Call ``work(start, stop)`` over `rows`, split over torch's number of threads if there is enough to do."""
    threads = torch.get_num_threads()
    if elements < SERIAL or threads == 1 or rows < 2:
        return [work(0, rows)]
    cuts = np.linspace(0, rows, min(threads, rows) + 1).astype(int)
    return list(_pool(threads).map(work, cuts[:-1], cuts[1:]))


Bounds = tuple[float, float]
Scalars = tuple[float, float, float, float]


def _f32(values: tuple[float, ...]) -> tuple[np.float32, ...]:
    return tuple(np.float32(v) for v in values)


def quantize_flat(y: np.ndarray, scalars: Scalars, act: Bounds) -> None:
    """Clamp to the activation's bounds and fake-quantize a flat float32 array in place."""
    args = (*_f32(scalars), *_f32(act))
    inverse, scale, low, high, act_low, act_high = args
    parallel(lambda a, b: _quantize_flat(y[a:b], inverse, scale, low, high, act_low, act_high), y.size, y.size)


def quantize_rows(
    y: np.ndarray, out: np.ndarray, inverse: np.ndarray, scale: np.ndarray, low: np.ndarray, high: np.ndarray
) -> None:
    """Fake-quantize (R, K) into `out`, with one float32 grid a row."""
    parallel(lambda a, b: _quantize_rows(y[a:b], out[a:b], inverse[a:b], scale[a:b], low[a:b], high[a:b]), y.shape[0], y.size)


def measure(y: np.ndarray, f: np.ndarray, scalars: Scalars, act: Bounds) -> tuple[np.ndarray, np.ndarray]:
    """Clamp and fake-quantize `y` (R, P) in place and take its sums against the reference `f` (R, P).

    Returns
    -------
    sums
        (6, P) float64, rows SQUARED, PRODUCT, ABSOLUTE, EXCESS, CLIPPED, OWN.
    peaks
        (3, P) float32, rows PEAK, LEAST, GREATEST.
    """
    args = (*_f32(scalars), *_f32(act))
    width = y.shape[1]

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros((6, width))
        peaks = np.zeros((3, width), np.float32)
        peaks[LEAST], peaks[GREATEST] = np.inf, -np.inf
        _measure(y[start:stop], f[start:stop], *args, sums, peaks, np.empty((6, width), np.float32))
        return sums, peaks

    parts = parallel(work, y.shape[0], y.size)
    if len(parts) == 1:
        return parts[0]
    peaks = np.stack([p[1] for p in parts])
    sums = np.sum([p[0] for p in parts], axis=0)
    return sums, np.stack([peaks[:, PEAK].max(0), peaks[:, LEAST].min(0), peaks[:, GREATEST].max(0)])


def local_error(y: np.ndarray, f: np.ndarray, scalars: Scalars, act: Bounds) -> np.ndarray:
    """Squared error per position, (P,) float64, of `y` clamped and fake-quantized, against `f`; `y` is left alone."""
    args = (*_f32(scalars), *_f32(act))

    def work(start: int, stop: int) -> np.ndarray:
        sums = np.zeros((1, y.shape[1]))
        _local(y[start:stop], f[start:stop], *args, sums, np.empty((1, y.shape[1]), np.float32))
        return sums[0]

    parts = parallel(work, y.shape[0], y.size)
    total: np.ndarray = parts[0] if len(parts) == 1 else np.sum(parts, axis=0)
    return total


def describe(f: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of squares (float64), least and greatest value per position of (R, P)."""

    def work(start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        sums = np.zeros((1, f.shape[1]))
        peaks = np.empty((2, f.shape[1]), np.float32)
        peaks[0], peaks[1] = np.inf, -np.inf
        _describe(f[start:stop], sums, peaks, np.empty((1, f.shape[1]), np.float32))
        return sums[0], peaks

    parts = parallel(work, f.shape[0], f.size)
    if len(parts) == 1:
        ((squared, (least, greatest)),) = parts
        return squared, least, greatest
    peaks = np.stack([p[1] for p in parts])
    return np.sum([p[0] for p in parts], axis=0), peaks[:, 0].min(0), peaks[:, 1].max(0)


@dataclass(frozen=True)
class Counted:
    """Bins in use (the upper 16 bits of their floats, ascending), counts, sums of the lower 16 bits; extremes per position."""

    keys: np.ndarray
    counts: np.ndarray
    lows: np.ndarray
    least: np.ndarray
    greatest: np.ndarray


def observe(f: np.ndarray) -> list[Counted]:
    """Histogram by the upper 16 bits, and extremes per position, of float32 (R, P); in parts if there are very many rows."""
    width = f.shape[1]
    if width > _COUNT_LIMIT:
        strips = [observe(np.ascontiguousarray(f[:, at : at + _COUNT_LIMIT])) for at in range(0, width, _COUNT_LIMIT)]
        least = np.concatenate([np.min([part.least for part in strip], axis=0) for strip in strips])
        greatest = np.concatenate([np.max([part.greatest for part in strip], axis=0) for strip in strips])
        return [replace(part, least=least, greatest=greatest) for strip in strips for part in strip]
    threads = torch.get_num_threads()
    most = threads * (_COUNT_LIMIT // max(width, 1))
    return [_observe(f[start : start + most], threads) for start in range(0, f.shape[0], most)]


def _observe(f: np.ndarray, threads: int) -> Counted:
    bits = f.view(np.uint32)
    step = max(1, _BLOCK // max(f.shape[1], 1))
    free = _free_tables.setdefault(threads, [])
    try:
        tables = free.pop()
    except IndexError:  # asked first, another thread could take the last one in between
        tables = np.zeros((2 * threads, _BINS), np.int64)
    spare = iter(range(threads))

    def work(start: int, stop: int) -> np.ndarray:
        table = tables[2 * (mine := next(spare)) : 2 * mine + 2]
        peaks = np.empty((2, f.shape[1]), np.float32)
        peaks[0], peaks[1] = np.inf, -np.inf
        for first in range(start, stop, step):
            block = slice(first, min(first + step, stop))
            _rows_extremes(f[block], peaks)
            _count(bits[block].reshape(-1), table)
        return peaks

    parts = np.stack(parallel(work, f.shape[0], f.size))
    least, greatest = parts[:, 0].min(0), parts[:, 1].max(0)
    keys, counts, lows = np.empty(_BINS, np.int64), np.empty(_BINS, np.int64), np.empty(_BINS, np.int64)
    # bins ascend with the magnitude: none beyond the extremes' is in use, unless there are NaN, which extremes do not show
    ends = [int(np.abs(np.float32(bound)).view(np.uint32) >> 16) for bound in (greatest.max(initial=0), least.min(initial=0))]
    used = _drain(tables, 0, ends[0] + 1, keys, counts, lows, 0)
    used = _drain(tables, _SIGN, _SIGN + ends[1] + 1, keys, counts, lows, used)
    if counts[:used].sum() != f.size:
        extra = _drain(tables, 0, _BINS, keys[used:], counts[used:], lows[used:], 0)
        order = np.argsort(keys[: used + extra])
        used += extra
        keys[:used], counts[:used], lows[:used] = keys[order], counts[order], lows[order]
    free.append(tables)
    return Counted(keys[:used].copy(), counts[:used].copy(), lows[:used].copy(), least, greatest)


@numba.njit(nogil=True, cache=True, error_model="numpy")
def histogram_error(mean, half, count, scale, low, high):
    """Expected squared (rounding, clipping) error, summed over bins; see `qkit.quant.histogram.Histogram.error`.

    A bin is uniform over mean ± half and holds `count` elements; the grid has the codes low..high (less the zero point).
    """
    rounding = 0.0
    clipping = 0.0
    bottom, top = low * scale, high * scale
    for i in range(mean.size):
        m, h, n = mean[i], half[i], count[i]
        a, b = m - h, m + h
        if b <= bottom - 0.5 * scale:
            clipping += n * ((m - bottom) ** 2 + h * h / 3.0)
            continue
        if a >= top + 0.5 * scale:
            clipping += n * ((m - top) ** 2 + h * h / 3.0)
            continue
        first = min(max(np.rint(a / scale), low), high)
        last = min(max(np.rint(b / scale), low), high)
        if first == last and a >= bottom - 0.5 * scale and b <= top + 0.5 * scale:
            # one code for the whole bin: exact, and free of the cancellation that the integral below would have
            rounding += n * ((m - first * scale) ** 2 + h * h / 3.0)
            continue
        density = n / (b - a)
        cut_a, cut_b = max(a, bottom - 0.5 * scale), min(b, top + 0.5 * scale)
        if a < cut_a:
            clipping += density * ((cut_a - bottom) ** 3 - (a - bottom) ** 3) / 3.0
        if b > cut_b:
            clipping += density * ((b - top) ** 3 - (cut_b - top) ** 3) / 3.0
        ra, rb = cut_a - first * scale, cut_b - last * scale
        rounding += density * ((last - first) * scale**3 / 12.0 + (rb**3 - ra**3) / 3.0)
    return rounding, clipping


@numba.njit(nogil=True, cache=True, error_model="numpy")
def _descend(products, per, steps, slopes, changed, first, last, rounds):
    for row in range(first, last):
        table = products[row // per]
        step, slope, done = steps[row], slopes[row], changed[row]
        for _ in range(rounds):
            moved = 0
            for k in range(step.size):
                t = step[k]
                if t * (2.0 * slope[k] + table[k, k] * t) < 0.0:
                    moved += 1
                    done[k] = not done[k]
                    step[k] = -t
                    for j in range(step.size):
                        slope[j] += t * table[k, j]
            if moved == 0:
                break


def descend(products: np.ndarray, steps: np.ndarray, slopes: np.ndarray, rounds: int) -> np.ndarray:
    """Which numbers `qkit.quant.descent.descend` changes, bool; the arrays are as there, and are used up."""
    changed = np.zeros(steps.shape, np.bool_)
    size = steps.shape[-1]
    flat = [np.ascontiguousarray(a).reshape(-1, size) for a in (steps, slopes)]
    found = changed.reshape(-1, size)
    products = np.ascontiguousarray(products)

    def work(first: int, last: int) -> None:
        _descend(products, steps.shape[1], *flat, found, first, last, rounds)

    parallel(work, len(found), size * found.size)
    return changed
