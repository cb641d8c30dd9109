"""Errors of a lane's tensor against the float lane's, summed per channel while the tensor is being quantized.

On the CPU the compiled loops of `qkit.quant.kernels` quantize and sum in one pass, on a GPU those of `qkit.quant.gpu_kernels`,
whose figures stay on the device until the batch is through; everywhere else, and on the CPU for grids per channel, the same sums
come from torch operators in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError
from qkit.execution.lanes import finish_value, on_gpu
from qkit.execution.products import Sums
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED, Bounds
from qkit.quant.compiled import kernels, kernels_for
from qkit.quant.grids import QuantParams, fake_quantize_
from qkit.quant.memory import blocks, by_channel, channels_innermost, rows


@dataclass(eq=False)
class ErrorSums:
    """Sums per channel, each float64 (C,), over any number of batches.

    Attributes
    ----------
    count
        Elements per channel.
    squared, product, absolute
        Sum of the squared error, of float value times error, of the absolute error.
    peak
        Greatest absolute error.
    clipped, clipping, own
        Number of elements that the tap's own grid clips, their squared distance to the grid's end, and the squared error
        of the grid on all elements: what this lane's last rounding did, as against what it inherited.
    least, greatest
        Extremes of the lane's values.
    local, grid
        Sum of the squared error of this layer's quantization alone, on float inputs; and of that what the tap's own grid does to
        the float values. The rest is the weight's and the bias's.
    """

    count: float = 0.0
    squared: np.ndarray = field(default_factory=lambda: np.zeros(1))
    product: np.ndarray = field(default_factory=lambda: np.zeros(1))
    absolute: np.ndarray = field(default_factory=lambda: np.zeros(1))
    peak: np.ndarray = field(default_factory=lambda: np.zeros(1))
    clipped: np.ndarray = field(default_factory=lambda: np.zeros(1))
    clipping: np.ndarray = field(default_factory=lambda: np.zeros(1))
    own: np.ndarray = field(default_factory=lambda: np.zeros(1))
    least: np.ndarray = field(default_factory=lambda: np.full(1, math.inf))
    greatest: np.ndarray = field(default_factory=lambda: np.full(1, -math.inf))
    local: np.ndarray = field(default_factory=lambda: np.zeros(1))
    grid: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def add(self, figures: np.ndarray, count: float) -> None:
        """Add one batch's `measure`."""
        self.count += count
        names = ("squared", "product", "absolute", "clipping", "clipped", "own")
        for name, values in zip(names, figures[:6], strict=True):
            setattr(self, name, getattr(self, name) + values)
        self.peak = np.maximum(self.peak, figures[6])
        self.least = np.minimum(self.least, figures[7])
        self.greatest = np.maximum(self.greatest, figures[8])

    def add_local(self, figures: np.ndarray) -> None:
        """Add one batch's `local_errors`."""
        self.local, self.grid = self.local + figures[0], self.grid + figures[1]


@dataclass(eq=False)
class FloatSums:
    """The float lane's side, per channel: sum of squares, extremes; float64 (C,)."""

    count: float = 0.0
    squared: np.ndarray = field(default_factory=lambda: np.zeros(1))
    least: np.ndarray = field(default_factory=lambda: np.full(1, math.inf))
    greatest: np.ndarray = field(default_factory=lambda: np.full(1, -math.inf))

    def add(self, figures: np.ndarray, count: float) -> None:
        """Add one batch's `describe`."""
        squared, least, greatest = figures
        self.count += count
        self.squared = self.squared + squared
        self.least = np.minimum(self.least, least)
        self.greatest = np.maximum(self.greatest, greatest)


#: Figures of a tensor, float64 (K, C); on the device of a tensor that fused kernels measured, until `on_host` fetches them.
Figures = np.ndarray | Tensor


def on_host(figures: Sequence[Figures]) -> list[np.ndarray]:
    """The same as arrays; those on a device come in one copy."""
    away = [f for f in figures if isinstance(f, Tensor)]
    fetched = _fetched(torch.cat([f.reshape(-1) for f in away])).numpy() if away else np.empty(0)
    found, at = [], 0
    for f in figures:
        if isinstance(f, Tensor):
            found.append(fetched[at : at + f.numel()].reshape(f.shape))
            at += f.numel()
        else:
            found.append(f)
    return found


def _fetched(x: Tensor) -> Tensor:
    """The tensor on the host, by way of memory that the device writes to by itself, which is many times as fast."""
    if x.device.type != "cuda":
        return x.cpu()
    place = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    place.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return place


def _loops(y: Tensor, params: QuantParams | None) -> ModuleType | None:
    """The compiled loops, where they do this."""
    return kernels() if y.device.type == "cpu" and params is not None and params.axis is None else None


def _plain(y: Tensor | Sums) -> TypeGuard[Tensor]:
    """Whether there are no fused kernels for what an operation gave."""
    return not isinstance(y, Sums) and kernels_for(y.device) is None


def _fused(op: Operation, y: Tensor | Sums, params: QuantParams | None, **wanted: Any) -> tuple[Tensor, Tensor]:
    """The value and its figures by a GPU's fused kernels."""
    value, figures = on_gpu(op, y, params, **wanted)
    assert figures is not None
    return value, figures


def _by_block(loops: ModuleType, apart: np.ndarray, work: Callable[[int], Any]) -> list[Any]:
    """``work(i)`` of every block: in threads where the blocks are too small to be split themselves."""
    count, size = apart.shape[0], apart[0].size
    if size >= loops.SERIAL:
        return [work(i) for i in range(count)]
    strips = loops.parallel(lambda start, stop: [work(i) for i in range(start, stop)], count, apart.size)
    return [found for strip in strips for found in strip]


def _over_outer(found: np.ndarray, channels: int) -> np.ndarray:
    """What was found of every block as (outer, C, ...)."""
    return found.reshape(-1, channels, *found.shape[1:])


def measure(op: Operation, y: Tensor | Sums, reference: Tensor, params: QuantParams | None) -> tuple[Tensor, Figures]:
    """Activation and grid of the operation's fresh result, in place where its memory allows, with its errors against `reference`.

    Returns
    -------
    value
        Clamped and fake-quantized (only clamped if `params` is None).
    figures
        (9, C): squared error, float times error, absolute, squared excess of clipped elements, number clipped, own error
        squared, greatest absolute error, least and greatest value.
    """
    axis, act = op.channel_axis, op.act
    if not _plain(y):
        return _fused(op, y, params, figures="measure", reference=reference)
    if (loops := _loops(y, params)) is not None:
        assert params is not None
        apart, others = blocks(y, axis), blocks(reference, axis)
        if apart is not None and others is not None:
            each = _by_block(loops, apart, lambda i: loops.measure(apart[i], others[i], params.scalars, act))
            totals = _over_outer(np.stack([s.sum(1) for s, _ in each]), y.shape[axis]).sum(0).T
            peaks = np.stack([(p[0].max(), p[1].min(), p[2].max()) for _, p in each])
            ends = _over_outer(peaks, y.shape[axis])
            return y, np.concatenate([totals, [ends[..., 0].max(0), ends[..., 1].min(0), ends[..., 2].max(0)]])
        y = channels_innermost(y, axis)
        array, channels = rows(y, axis)
        other, _ = rows(channels_innermost(reference, axis), axis)
        sums, peaks = loops.measure(array, other, params.scalars, act)
        folded = peaks.reshape(3, -1, channels)
        extremes = np.stack([folded[0].max(0), folded[1].min(0), folded[2].max(0)])
        return y, np.concatenate([sums.reshape(6, -1, channels).sum(1), extremes])
    if act != UNBOUNDED:
        y = y.clamp_(*act)
    value = y if params is None else fake_quantize_(y.clone(), params)
    error = _channels(value - reference, axis)
    own = _channels(value - y, axis)
    beyond = torch.zeros_like(own, dtype=torch.bool)
    if params is not None:
        scale = params.scale.to(y.device)
        zero = params.zero_point.to(y.device)
        if params.axis is not None:
            scale, zero = scale[:, None], zero[:, None]
        steps = torch.round(_channels(y, axis, torch.float32) * (1.0 / scale)) + zero
        beyond = (steps < params.qmin) | (steps > params.qmax)
    excess = torch.where(beyond, own, 0.0)
    summed = [error.square(), _channels(reference, axis) * error, error.abs(), excess.square(), beyond.double(), own.square()]
    flat = _channels(value, axis)
    return value, torch.stack([*(f.sum(1) for f in summed), error.abs().amax(1), flat.amin(1), flat.amax(1)]).cpu().numpy()


def local_errors(op: Operation, y: Tensor | Sums, reference: Tensor, params: QuantParams | None, *, weighted: bool) -> Figures:
    """Squared errors per channel, (2, C): of the operation's result, put on the grid; and of the float values put there.

    What becomes of `y` itself is undefined; the float values stay as they are.

    Parameters
    ----------
    weighted
        Whether there is more than the grid, so that the two differ.
    """
    axis, act = op.channel_axis, op.act
    if not _plain(y):
        return _fused(op, y, params, figures="local", reference=reference, keep=False)[1]
    squared = _local_error(y, reference, params, act, axis)
    if not weighted:
        return np.stack([squared, squared])
    if params is None:
        return np.stack([squared, np.zeros_like(squared)])
    copied = reference if _loops(reference, params) is not None else reference.clone()
    return np.stack([squared, _local_error(copied, reference, params, act, axis)])


def _local_error(y: Tensor, reference: Tensor, params: QuantParams | None, act: Bounds, axis: int) -> np.ndarray:
    if (loops := _loops(y, params)) is not None:
        assert params is not None
        apart, others = blocks(y, axis), blocks(reference, axis)
        if apart is not None and others is not None:
            each = _by_block(loops, apart, lambda i: loops.local_error(apart[i], others[i], params.scalars, act).sum())
            summed: np.ndarray = _over_outer(np.array(each), y.shape[axis]).sum(0)
            return summed
        array, channels = rows(channels_innermost(y, axis), axis)
        other, _ = rows(channels_innermost(reference, axis), axis)
        local: np.ndarray = loops.local_error(array, other, params.scalars, act).reshape(-1, channels).sum(0)
        return local
    if act != UNBOUNDED:
        y = y.clamp_(*act)
    value = y if params is None else fake_quantize_(y, params)
    return _channels(value - reference, axis).square().sum(1).cpu().numpy()


def describe(op: Operation, y: Tensor | Sums) -> tuple[Tensor, Figures]:
    """The operation's float value, activation done in place, with figures (3, C): sum of squares, least and greatest value."""
    if not _plain(y):
        return _fused(op, y, None, figures="describe")
    value = finish_value(op, y, None, (), None)
    axis = op.channel_axis
    if (loops := kernels()) is not None and value.device.type == "cpu":
        apart = blocks(value, axis)
        if apart is not None:
            each = _by_block(loops, apart, lambda i: loops.describe(apart[i]))
            parts = _over_outer(np.stack([(s.sum(), low.min(), high.max()) for s, low, high in each]), value.shape[axis])
            return value, np.stack([parts[..., 0].sum(0), parts[..., 1].min(0), parts[..., 2].max(0)])
        array, channels = rows(channels_innermost(value, axis), axis)
        squared, least, greatest = loops.describe(array)
        folded = squared.reshape(-1, channels).sum(0), least.reshape(-1, channels).min(0), greatest.reshape(-1, channels).max(0)
        return value, np.stack(folded)
    flat = _channels(value, axis)
    return value, torch.stack([flat.square().sum(1), flat.amin(1), flat.amax(1)]).cpu().numpy()


def finite(described: np.ndarray) -> bool:
    """Whether a float value, by `describe`, holds no NaN (which its squares show) and no infinity."""
    squared, least, greatest = described
    return not np.isnan(squared).any() and bool(np.isfinite(least).all() and np.isfinite(greatest).all())


def refuse_non_finite(op: Operation, described: np.ndarray) -> None:
    """Raise `DataError` naming the operation where its float value, by `describe`, holds NaN or infinity."""
    if not finite(described):
        raise DataError(f"{op.name}: the float lane holds NaN or infinity. Look at this layer's weights and inputs first.")


def no_errors(described: np.ndarray) -> np.ndarray:
    """What `measure` would give of a value that is the float lane's own, from `describe`."""
    none = np.zeros((7, described.shape[1]))
    return np.concatenate([none, described[1:]])


def _channels(x: Tensor, axis: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(C, everything else), float64 so that errors 90 dB down keep their digits."""
    return by_channel(x, axis).to(dtype)
