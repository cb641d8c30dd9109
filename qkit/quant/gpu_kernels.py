"""Fused kernels of the hot path on a GPU, in Triton: one read of a tensor for its scale, bias, activation, grid, and all sums.

What a chain of torch's operators reads and writes some twenty times is read once here. The arithmetic is that of
`qkit.quant.grids`, bit for bit, and nothing comes back to the host: figures stay on the device until somebody wants them.

Sums are repeatable from run to run: every program adds up a fixed share of the tensor, at most `_TERMS` float32 terms by
element of its tile and then the tile as a tree, and a second kernel adds up the programs' shares in float64, in a fixed
order. (Atomic additions of floats would come in another order every time; those of counts, which are integers, may.)

A tensor is taken as its memory is, (pixels, channels) with the channel innermost; see `qkit.quant.memory`.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.compiler import CompiledKernel

from qkit.graph.table import UNBOUNDED, Bounds
from qkit.progress import uninterrupted
from qkit.quant.grids import QuantParams
from qkit.quant.memory import channels_innermost

#: What is summed: nothing; the float lane's own figures; a lane's errors; the errors of one layer alone.
Figures = Literal["none", "describe", "measure", "local"]
_MODES: dict[Figures, int] = {"none": 0, "describe": 1, "measure": 2, "local": 3}
#: Rows of figures that are sums, and rows that are greatest values.
_SUMS: dict[Figures, int] = {"none": 0, "describe": 1, "measure": 6, "local": 2}
_PEAKS: dict[Figures, int] = {"none": 0, "describe": 2, "measure": 3, "local": 0}
#: The row of least values, which are greatest ones with the sign turned until the end.
_LEAST: dict[Figures, int] = {"describe": 1, "measure": 7}

#: Elements of a tile, and warps that hold it.
_TILE = 1024
_WARPS = 4
#: Most float32 terms that are added up before float64.
_TERMS = 128
#: Programs that keep a large GPU busy; fewer terms a program where a tensor is small.
_PROGRAMS = 1024
#: To this and back a float32 below 2**22 is rounded to the nearest whole number, ties to even.
_ROUNDING = tl.constexpr(12582912.0)


@triton.jit
def _clamp(x, low, high):
    """As torch's: NaN stays NaN."""
    return tl.minimum(tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL), high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _on_grid(v, inverse, scale, low, high):
    """The value on the grid, and whether the grid clips it."""
    # what lies beyond by a step or more is clipped as if it lay beyond by one, so that the addition rounds right
    t = _clamp(v * inverse, low - 1.0, high + 1.0)
    t = (t + _ROUNDING) - _ROUNDING
    q = _clamp(t, low, high)
    return q * scale, t != q


@triton.jit(do_not_specialize=["pixels", "width", "rounds"])
def _tap(
    sums, reference, out, parts, step, bias, grid, bounds, pixels, width, rounds,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MODE: tl.constexpr, FLAGS: tl.constexpr,
):  # fmt: skip
    HAS_STEP: tl.constexpr = FLAGS & 1
    HAS_BIAS: tl.constexpr = FLAGS & 2
    HAS_ACT: tl.constexpr = FLAGS & 4
    HAS_GRID: tl.constexpr = FLAGS & 8
    BY_CHANNEL: tl.constexpr = FLAGS & 16
    KEEP: tl.constexpr = FLAGS & 32
    # the number of channels is handed over divided, so that the compiler knows what it is a multiple of
    channels = width * ALIGN
    blocks = tl.cdiv(channels, COLUMNS)
    block = tl.program_id(0) % blocks
    share = tl.program_id(0) // blocks
    c = block * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    factor = tl.load(step + c, mask=inside, other=1.0)[None, :] if HAS_STEP else 1.0
    shift = tl.load(bias + c, mask=inside, other=0.0)[None, :] if HAS_BIAS else 0.0
    if HAS_ACT:
        act_low, act_high = tl.load(bounds), tl.load(bounds + 1)
    if HAS_GRID and not BY_CHANNEL:
        inverse, scale, low, high = tl.load(grid), tl.load(grid + 1), tl.load(grid + 2), tl.load(grid + 3)
    if BY_CHANNEL:
        inverse = tl.load(grid + c, mask=inside, other=1.0)[None, :]
        scale = tl.load(grid + channels + c, mask=inside, other=1.0)[None, :]
        low = tl.load(grid + 2 * channels + c, mask=inside, other=0.0)[None, :]
        high = tl.load(grid + 3 * channels + c, mask=inside, other=0.0)[None, :]
    if MODE > 0:
        a = tl.zeros((ROWS, COLUMNS), tl.float32)
    if MODE == 1:
        least = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
        greatest = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    if MODE == 2:
        b = tl.zeros((ROWS, COLUMNS), tl.float32)
        d = tl.zeros((ROWS, COLUMNS), tl.float32)
        x2 = tl.zeros((ROWS, COLUMNS), tl.float32)
        n = tl.zeros((ROWS, COLUMNS), tl.float32)
        o = tl.zeros((ROWS, COLUMNS), tl.float32)
        peak = tl.zeros((ROWS, COLUMNS), tl.float32)
        least = tl.full((ROWS, COLUMNS), float("inf"), tl.float32)
        greatest = tl.full((ROWS, COLUMNS), float("-inf"), tl.float32)
    if MODE == 3:
        b = tl.zeros((ROWS, COLUMNS), tl.float32)
    start = share.to(tl.int64) * rounds * ROWS
    for i in range(rounds):
        pixel = start + i * ROWS + tl.arange(0, ROWS)
        there = (pixel < pixels)[:, None] & inside[None, :]
        at = pixel[:, None] * channels + c[None, :]
        v = tl.load(sums + at, mask=there, other=0.0)
        if HAS_STEP:
            v = v * factor
        if HAS_BIAS:
            v = v + shift
        if HAS_ACT:
            v = _clamp(v, act_low, act_high)
        x = v
        if HAS_GRID:
            x, beyond = _on_grid(v, inverse, scale, low, high)
        if KEEP:
            tl.store(out + at, x, mask=there)
        if MODE == 1:
            a += tl.where(there, x * x, 0.0)
            least = tl.minimum(least, tl.where(there, x, float("inf")))
            greatest = tl.maximum(greatest, tl.where(there, x, float("-inf")))
        if MODE == 2:
            f = tl.load(reference + at, mask=there, other=0.0)
            e = tl.where(there, x - f, 0.0)
            a += e * e
            b += f * e
            d += tl.abs(e)
            own = tl.where(there, x - v, 0.0)
            o += own * own
            if HAS_GRID:
                clipped = there & beyond
                x2 += tl.where(clipped, own * own, 0.0)
                n += tl.where(clipped, 1.0, 0.0)
            peak = tl.maximum(peak, tl.abs(e))
            least = tl.minimum(least, tl.where(there, x, float("inf")))
            greatest = tl.maximum(greatest, tl.where(there, x, float("-inf")))
        if MODE == 3:
            f = tl.load(reference + at, mask=there, other=0.0)
            e = tl.where(there, x - f, 0.0)
            a += e * e
            if HAS_GRID:
                g, _ = _on_grid(f, inverse, scale, low, high)
                h = tl.where(there, g - f, 0.0)
                b += h * h
    # figures of a program: rows of sums, then rows of greatest values (the least one with its sign turned)
    if MODE == 1:
        to = parts + share.to(tl.int64) * 3 * channels + c
        tl.store(to, tl.sum(a, 0).to(tl.float64), mask=inside)
        tl.store(to + channels, tl.max(-least, 0).to(tl.float64), mask=inside)
        tl.store(to + 2 * channels, tl.max(greatest, 0).to(tl.float64), mask=inside)
    if MODE == 2:
        to = parts + share.to(tl.int64) * 9 * channels + c
        tl.store(to, tl.sum(a, 0).to(tl.float64), mask=inside)
        tl.store(to + channels, tl.sum(b, 0).to(tl.float64), mask=inside)
        tl.store(to + 2 * channels, tl.sum(d, 0).to(tl.float64), mask=inside)
        tl.store(to + 3 * channels, tl.sum(x2, 0).to(tl.float64), mask=inside)
        tl.store(to + 4 * channels, tl.sum(n, 0).to(tl.float64), mask=inside)
        tl.store(to + 5 * channels, tl.sum(o, 0).to(tl.float64), mask=inside)
        tl.store(to + 6 * channels, tl.max(peak, 0).to(tl.float64), mask=inside)
        tl.store(to + 7 * channels, tl.max(-least, 0).to(tl.float64), mask=inside)
        tl.store(to + 8 * channels, tl.max(greatest, 0).to(tl.float64), mask=inside)
    if MODE == 3:
        to = parts + share.to(tl.int64) * 2 * channels + c
        tl.store(to, tl.sum(a, 0).to(tl.float64), mask=inside)
        tl.store(to + channels, tl.sum(b, 0).to(tl.float64), mask=inside)


@triton.jit(do_not_specialize=["shares", "channels", "sums", "turned"])
def _fold(parts, out, shares, channels, sums, turned, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Figures of all programs as those of the tensor: rows before `sums` are added up, of the others the greatest is taken, and
    its sign is turned back in the row `turned`.
    """
    row = tl.program_id(0)
    rows = tl.num_programs(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = c < channels
    if row < sums:
        total = tl.zeros((ROWS, COLUMNS), tl.float64)
        for i in range(0, shares, ROWS):
            at = i + tl.arange(0, ROWS)
            there = (at < shares)[:, None] & inside[None, :]
            total += tl.load(parts + (at[:, None] * rows + row) * channels + c[None, :], mask=there, other=0.0)
        tl.store(out + row * channels + c, tl.sum(total, 0), mask=inside)
    else:
        best = tl.full((ROWS, COLUMNS), float("-inf"), tl.float64)
        for i in range(0, shares, ROWS):
            at = i + tl.arange(0, ROWS)
            there = (at < shares)[:, None] & inside[None, :]
            part = tl.load(parts + (at[:, None] * rows + row) * channels + c[None, :], mask=there, other=float("-inf"))
            best = tl.maximum(best, part)
        found = tl.max(best, 0)
        tl.store(out + row * channels + c, tl.where(row == turned, -found, found), mask=inside)


@triton.jit(do_not_specialize=["count"])
def _codes(x, out, grid, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < count
    t = tl.load(x + at, mask=there, other=0.0) * tl.load(grid)
    tl.store(out + at, (t + _ROUNDING) - _ROUNDING, mask=there)


#: The upper 24 bits of a table's entry count, the lower 40 add up the floats' lower 16 bits.
_ENTRY = 40
_KEYS = 1 << 16
#: Most elements that one table counts: a 24-bit count cannot overflow then.
_COUNT_LIMIT = 1 << 23
#: A key times this, modulo 2**16, is its place in a table, and a place times that is its key. A tensor's values lie in a few
#: hundred neighbouring bins; spread over the table they are not in each other's way (four times as fast).
_SPREAD = 40503
_BACK = pow(_SPREAD, -1, _KEYS)
#: Tables that take turns, so that a value which many elements have is not waited for.
_REPLICAS = 32


@triton.jit(do_not_specialize=["count", "rounds", "replicas"])
def _count(x, tables, count, rounds, replicas, BLOCK: tl.constexpr, ENTRY: tl.constexpr, SPREAD: tl.constexpr):
    program = tl.program_id(0)
    table = tables + (program % replicas).to(tl.int64) * 65536
    start = program.to(tl.int64) * rounds * BLOCK
    zeros = tl.zeros((BLOCK,), tl.int32)
    for i in range(rounds):
        at = start + i * BLOCK + tl.arange(0, BLOCK)
        there = at < count
        bits = tl.load(x + at, mask=there, other=0)
        key = ((bits >> 16) * SPREAD) & 0xFFFF
        # zeros, half of the elements behind a ReLU, would wait for each other
        nothing = bits == 0
        zeros += (there & nothing).to(tl.int32)
        one = tl.full((BLOCK,), 1, tl.int64) << ENTRY
        tl.atomic_add(table + key, one + (bits & 0xFFFF).to(tl.int64), mask=there & (bits != 0), sem="relaxed")
    found = tl.sum(zeros, 0).to(tl.int64)
    tl.atomic_add(table, found << ENTRY, mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["replicas"])
def _drain(tables, out, replicas, ROWS: tl.constexpr, BLOCK: tl.constexpr, ENTRY: tl.constexpr, BACK: tl.constexpr):
    """Counts, and sums of the lower bits, of all tables together; the tables are empty then."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = (place * BACK) & 0xFFFF
    counts = tl.zeros((ROWS, BLOCK), tl.int64)
    lows = tl.zeros((ROWS, BLOCK), tl.int64)
    mask = (tl.full((ROWS, BLOCK), 1, tl.int64) << ENTRY) - 1
    # several tables at a time: one after the other, their loads would wait for each other
    for i in range(0, replicas, ROWS):
        table = i + tl.arange(0, ROWS)
        at = tables + table[:, None] * 65536 + place[None, :]
        there = (table < replicas)[:, None] & (place < 65536)[None, :]
        entry = tl.load(at, mask=there, other=0)
        counts += (entry >> ENTRY) & 0xFFFFFF
        lows += entry & mask
        tl.store(at, tl.zeros((ROWS, BLOCK), tl.int64), mask=there)
    tl.store(out + key, tl.sum(counts, 0))
    tl.store(out + 65536 + key, tl.sum(lows, 0))


def _columns(channels: int) -> int:
    """Channels of a tile: the most of a few widths that leave hardly any of it empty."""
    return next((w for w in (128, 32, 8) if -(-channels // w) * w <= 1.15 * channels), 8 if channels > 4 else 4)


def finish(
    sums: Tensor,
    axis: int,
    *,
    step: Tensor | None = None,
    bias: Tensor | None = None,
    act: Bounds = UNBOUNDED,
    params: QuantParams | None = None,
    figures: Figures = "none",
    reference: Tensor | None = None,
    keep: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Scale, bias, activation and grid of a tensor in one pass, in place where its memory allows, with its figures.

    Parameters
    ----------
    sums
        float32, on a GPU; its channels along `axis`.
    step, bias
        float32 (C,) on the same device: what the sums are multiplied with, and what is added then.
    params
        Grid per tensor, or per channel along `axis`.
    figures
        What to sum; "measure" and "local" against `reference`, of the same shape.
    keep
        Whether the value is written; what `sums` holds is undefined otherwise.

    Returns
    -------
    value
        The finished tensor.
    figures
        float64 (K, C) on the device: for "describe" the sum of squares, the least value and the greatest; for "measure" squared,
        float times error, absolute, squared excess of clipped elements, number clipped, own error squared, greatest absolute
        error, least value and greatest; for "local" the squared error, and that of the reference on the grid.
    """
    value = channels_innermost(sums, axis)
    channels = int(value.shape[axis]) if value.ndim > 1 else max(value.numel(), 1)
    pixels = value.numel() // channels
    mode = _MODES[figures]
    columns = _columns(channels)
    blocks = -(-channels // columns)
    rows = _TILE // columns
    tiles = -(-pixels // rows)
    rounds = max(min(_TERMS, tiles * blocks // _PROGRAMS), 1)
    shares = -(-tiles // rounds)
    count = _SUMS[figures] + _PEAKS[figures]
    device = value.device
    other = value if reference is None else channels_innermost(reference, axis)
    parts = torch.empty((shares, count, channels), dtype=torch.float64, device=device) if count else value
    align = 8 if channels % 8 == 0 else 1
    flags = (
        (step is not None) | (bias is not None) << 1 | (act != UNBOUNDED) << 2 | (params is not None) << 3
        | (params is not None and params.axis is not None) << 4 | keep << 5
    )  # fmt: skip
    tensors = (
        value, other, value, parts, value if step is None else step, value if bias is None else bias,
        value if params is None else _grid(params, device), value if act == UNBOUNDED else _bounds(act, device),
    )  # fmt: skip
    _launch(_tap, (blocks * shares, 1, 1), tensors, (pixels, channels // align, rounds), (align, rows, columns, mode, flags))
    if not count:
        return value, None
    out = torch.empty((count, channels), dtype=torch.float64, device=device)
    least = _LEAST.get(figures, -1)
    _launch(_fold, (count, -(-channels // 32), 1), (parts, out), (shares, channels, _SUMS[figures], least), (32, 32))
    return value, out


#: Kernels that Triton has compiled, by what they were compiled for.
_compiled: dict[Any, Any] = {}


def _launch(
    kernel: Any, grid: tuple[int, int, int], tensors: tuple[Tensor, ...], numbers: tuple[int, ...], constants: tuple[int, ...]
) -> None:
    """Launch a kernel. Finding out for which arguments it is compiled takes Triton longer than small tensors take; so that is
    done once for all tensors that are laid out alike.
    """
    aligned = all(t.data_ptr() % 16 == 0 for t in tensors) and max(numbers) < 1 << 31
    key = kernel, constants, tensors[0].device, tensors[0].dtype
    known = _compiled.get(key) if aligned else None
    if known is not None:
        try:
            known[grid](*tensors, *numbers, *constants)
            return
        except TypeError:
            # a Triton whose compiled kernels are called otherwise
            aligned = False
    found = kernel[grid](*tensors, *numbers, *constants, num_warps=_WARPS, enable_fp_fusion=False)
    if aligned and isinstance(found, CompiledKernel):
        _compiled[key] = found


# more than any network's grids: recorded work reads these tensors where they are
@functools.lru_cache(maxsize=1 << 16)
def _grid(params: QuantParams, device: torch.device) -> Tensor:
    """Reciprocal, scale, least and greatest code less the zero point, float32 (4,) or (4, C)."""
    if params.axis is None:
        return torch.tensor(params.scalars, dtype=torch.float32, device=device)
    return torch.stack([torch.from_numpy(v) for v in params.vectors]).to(device)


@functools.lru_cache(maxsize=256)
def _bounds(act: Bounds, device: torch.device) -> Tensor:
    return torch.tensor(act, dtype=torch.float32, device=device)


def codes(x: Tensor, params: QuantParams) -> Tensor:
    """Codes less the zero point, as whole float32 numbers, of values that lie on that grid per tensor; in the same layout."""
    out = torch.empty_like(x)
    count = x.numel()
    _launch(_codes, (-(-count // 2048), 1, 1), (x, out, _grid(params, x.device)), (count,), (2048,))
    return out


def count(x: Tensor, out: Tensor) -> None:
    """Count a dense float32 tensor's elements in the bins of the float32 format (see `qkit.quant.histogram`).

    Parameters
    ----------
    out
        int64 (2, 65536): counts, and sums of the floats' lower 16 bits.
    """
    elements, block = x.numel(), 1024
    replicas = max(min(_REPLICAS, elements >> 15), 4, -(-elements // _COUNT_LIMIT))
    tables = _tables(x.device, -(-replicas // _REPLICAS))
    programs = -(-min(-(-elements // block), 4096) // replicas) * replicas
    rounds = -(-elements // (block * programs))
    with uninterrupted():  # what was counted and not drained would be counted to the next tensor
        _count[(programs,)](
            x.view(torch.int32), tables, elements, rounds, replicas, BLOCK=block, ENTRY=_ENTRY, SPREAD=_SPREAD, num_warps=4
        )
        _drain[(_KEYS // 128,)](tables, out, replicas, ROWS=8, BLOCK=128, ENTRY=_ENTRY, BACK=_BACK, num_warps=4)


@functools.lru_cache(maxsize=8)
def _tables(device: torch.device, times: int) -> Tensor:
    """Tables that are empty between two calls; used one after the other on the device's own stream."""
    return torch.zeros((times * _REPLICAS, _KEYS), dtype=torch.int64, device=device)
