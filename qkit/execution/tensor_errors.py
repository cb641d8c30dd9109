"""Errors of a lane's tensor against the float lane's, summed per channel while the tensor is being quantized.

On the CPU the compiled loops of `qkit.quant.kernels` quantize and sum in one pass; everywhere else, and for grids per channel,
the same sums come from torch operators in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from qkit.graph.table import UNBOUNDED, Bounds
from qkit.quant.compiled import kernels
from qkit.quant.grids import QuantParams, fake_quantize_
from qkit.quant.memory import by_channel, channels_innermost, rows


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

    def add(self, sums: np.ndarray, peaks: np.ndarray, count: float) -> None:
        """Add one batch's `measure`."""
        self.count += count
        names = ("squared", "product", "absolute", "clipping", "clipped", "own")
        for name, values in zip(names, sums, strict=True):
            setattr(self, name, getattr(self, name) + values)
        self.peak = np.maximum(self.peak, peaks[0])
        self.least = np.minimum(self.least, peaks[1])
        self.greatest = np.maximum(self.greatest, peaks[2])


@dataclass(eq=False)
class FloatSums:
    """The float lane's side, per channel: sum of squares, extremes; float64 (C,)."""

    count: float = 0.0
    squared: np.ndarray = field(default_factory=lambda: np.zeros(1))
    least: np.ndarray = field(default_factory=lambda: np.full(1, math.inf))
    greatest: np.ndarray = field(default_factory=lambda: np.full(1, -math.inf))

    def add(self, squared: np.ndarray, least: np.ndarray, greatest: np.ndarray, count: float) -> None:
        """Add one batch's `describe`."""
        self.count += count
        self.squared = self.squared + squared
        self.least = np.minimum(self.least, least)
        self.greatest = np.maximum(self.greatest, greatest)


def _loops(y: Tensor, params: QuantParams | None) -> ModuleType | None:
    """The compiled loops, where they do this."""
    return kernels() if y.device.type == "cpu" and params is not None and params.axis is None else None


def measure(
    y: Tensor, reference: Tensor, params: QuantParams | None, act: Bounds, axis: int
) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Put `y` on the grid, in place where its memory allows, and sum its errors against `reference`.

    Returns
    -------
    value
        `y` clamped to `act` and fake-quantized (only clamped if `params` is None).
    sums
        (6, C): squared, float times error, absolute, squared excess of clipped elements, number clipped, own error squared.
    peaks
        (3, C): greatest absolute error, least and greatest value.
    """
    if (loops := _loops(y, params)) is not None:
        assert params is not None
        y = channels_innermost(y, axis)
        array, channels = rows(y, axis)
        other, _ = rows(channels_innermost(reference, axis), axis)
        sums, peaks = loops.measure(array, other, params.scalars, act)
        folded = peaks.reshape(3, -1, channels)
        peaks = np.stack([folded[0].max(0), folded[1].min(0), folded[2].max(0)])
        return y, sums.reshape(6, -1, channels).sum(1), peaks
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
    figures = [error.square(), _channels(reference, axis) * error, error.abs(), excess.square(), beyond.double(), own.square()]
    flat = _channels(value, axis)
    peaks = torch.stack([error.abs().amax(1), flat.amin(1), flat.amax(1)]).cpu().numpy()
    return value, torch.stack([f.sum(1) for f in figures]).cpu().numpy(), peaks


def local_error(y: Tensor, reference: Tensor, params: QuantParams | None, act: Bounds, axis: int) -> np.ndarray:
    """Squared error per channel, float64 (C,), of `y` put on the grid; what becomes of `y` itself is undefined."""
    if (loops := _loops(y, params)) is not None:
        assert params is not None
        array, channels = rows(channels_innermost(y, axis), axis)
        other, _ = rows(channels_innermost(reference, axis), axis)
        local: np.ndarray = loops.local_error(array, other, params.scalars, act).reshape(-1, channels).sum(0)
        return local
    if act != UNBOUNDED:
        y = y.clamp_(*act)
    value = y if params is None else fake_quantize_(y, params)
    return _channels(value - reference, axis).square().sum(1).cpu().numpy()


def grid_error(reference: Tensor, params: QuantParams | None, act: Bounds, axis: int) -> np.ndarray:
    """Squared error per channel, float64 (C,), of float values put on the grid; 0 without one. The values stay as they are."""
    if params is None:
        return np.zeros(1)
    copied = reference if _loops(reference, params) is not None else reference.clone()
    return local_error(copied, reference, params, act, axis)


def describe(value: Tensor, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sum of squares, least and greatest value per channel, (C,)."""
    loops = kernels() if value.device.type == "cpu" else None
    if loops is not None:
        array, channels = rows(channels_innermost(value, axis), axis)
        squared, least, greatest = loops.describe(array)
        return squared.reshape(-1, channels).sum(0), least.reshape(-1, channels).min(0), greatest.reshape(-1, channels).max(0)
    flat = _channels(value, axis)
    return flat.square().sum(1).cpu().numpy(), flat.amin(1).cpu().numpy(), flat.amax(1).cpu().numpy()


def _channels(x: Tensor, axis: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(C, everything else), float64 so that errors 90 dB down keep their digits."""
    return by_channel(x, axis).to(dtype)
