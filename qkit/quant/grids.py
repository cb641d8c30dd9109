"""Integer grids, and the only torch code that rounds to them.

A grid maps an integer code ``q`` to the real value ``(q - zero_point) * scale`` (Jacob et al. 2018, "Quantization and
Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", eq. 1). A :class:`QuantSpec` is the rule for
choosing a grid, a :class:`QuantParams` the grid in numbers.

Rounding. A value is multiplied by the reciprocal of the scale, rounded to the nearest integer with ties to even, and
clamped; scale and reciprocal are float32 numbers. That is what torch's fake-quantize operators compute, and the tests
hold this module to them bit for bit. At 16 bits the float32 product can land on the other side of a tie than exact
arithmetic would, by one step and for few elements in ten thousand; the tests count those against float64.

`qkit.quant.kernels` repeats this arithmetic in fused, compiled loops for the executor, and is tested to be bit-identical.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import DataError, PlanError

#: Smallest scale: the least normal float32, so that its reciprocal is finite and no arithmetic is denormal.
MIN_SCALE = 2.0**-126
#: Ranges end here at the latest: every value of every grid is then finite in float32, and no reciprocal is denormal.
MAX_BOUND = 2.0**126

_CODE_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.uint16)


@dataclass(frozen=True)
class QuantSpec:
    """The rule of an integer grid.

    Parameters
    ----------
    bits
        Width, 2 to 16.
    symmetric
        Zero point 0 and a range symmetric around it; otherwise affine, with the range widened to contain 0 so that zero
        padding and ReLU stay exact.
    signed
        ``True``: codes from ``-2**(bits-1)``; ``False``: codes from 0; ``None``: signed, but unsigned where a symmetric
        grid's tensor has no negative value, so that half of the grid is not wasted after a ReLU.
    per_channel
        One scale per channel (the weight's output channel) instead of one for the tensor.
    power_of_two
        Scales are powers of two, rounded up: ``2**ceil(log2(scale))``.
    narrow
        Leave out the most negative code (-127..127), as weights usually do.
    """

    bits: int = 8
    symmetric: bool = True
    signed: bool | None = None
    per_channel: bool = False
    power_of_two: bool = False
    narrow: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.bits, int) and 2 <= self.bits <= 16):
            raise PlanError(f"QuantSpec(bits={self.bits!r}): qkit's grids are 2 to 16 bits wide.")

    def code_range(self, *, one_sided: bool = False) -> tuple[int, int]:
        """Least and greatest code; `one_sided` says that the tensor has no negative value."""
        unsigned = self.signed is False or (self.signed is None and self.symmetric and one_sided)
        if unsigned:
            return 0, 2**self.bits - 1
        half = 2 ** (self.bits - 1)
        return (-half + 1 if self.narrow else -half), half - 1

    def params(self, lo: Tensor | float, hi: Tensor | float, *, axis: int | None = None) -> QuantParams:
        """The grid for the range ``[lo, hi]``.

        Parameters
        ----------
        lo, hi
            Scalars, or tensors of shape (C,) for a per-channel grid. The range is widened to contain 0; a range of zero
            width gets the scale 1; bounds beyond 2**126 are cut to it.
        axis
            The channel axis that (C,) ranges run along.

        Raises
        ------
        PlanError
            If a bound is not finite, ``lo > hi``, or the axis is missing.
        """
        low = torch.as_tensor(lo, dtype=torch.float64).cpu()
        high = torch.as_tensor(hi, dtype=torch.float64).cpu()
        if low.shape != high.shape or low.ndim > 1:
            raise PlanError(
                f"a range needs two numbers or two (C,) vectors, not shapes {tuple(low.shape)} and {tuple(high.shape)}."
            )
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise PlanError(f"the range [{_brief(low)}, {_brief(high)}] is not finite: give finite bounds.")
        if bool((low > high).any()):
            raise PlanError(f"the range [{_brief(low)}, {_brief(high)}] is empty: its lower bound exceeds its upper bound.")
        if (low.ndim == 1) != (axis is not None):
            raise PlanError("a range per channel needs its channel axis, a range per tensor has none.")
        low, high = low.clamp(-MAX_BOUND, 0.0), high.clamp(0.0, MAX_BOUND)
        qmin, qmax = self.code_range(one_sided=bool((low >= 0).all()))
        if self.symmetric:
            # an unsigned grid of a tensor with negative values clips them: the caller asked for signed=False
            scale = high / qmax if qmin == 0 else torch.maximum(high / qmax, low / min(qmin, -1))
        else:
            scale = (high - low) / (qmax - qmin)
        scale = torch.where(scale > 0, scale, torch.where(high > low, MIN_SCALE, 1.0))
        scale = scale.clamp(min=MIN_SCALE)
        if self.power_of_two:
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        scale = scale.to(torch.float32)
        if self.symmetric:
            zero_point = torch.zeros(scale.shape, dtype=torch.int32)
        else:
            zero_point = (qmin - torch.round(low / scale.double())).clamp(qmin, qmax).to(torch.int32)
        return QuantParams(scale=scale, zero_point=zero_point, qmin=qmin, qmax=qmax, axis=axis)


def _brief(value: Tensor) -> str:
    if value.ndim == 0:
        return f"{float(value):g}"
    return f"{float(value.min()):g}..{float(value.max()):g} over {value.numel()} channels"


@dataclass(frozen=True, eq=False)
class QuantParams:
    """An integer grid in numbers; compares and hashes by content.

    Attributes
    ----------
    scale
        float32 on the CPU, shape () or (C,); the step in the tensor's own units.
    zero_point
        int32, the same shape; the code of 0.
    qmin, qmax
        Least and greatest code.
    axis
        Channel axis for shape (C,), else None.
    """

    scale: Tensor
    zero_point: Tensor
    qmin: int
    qmax: int
    axis: int | None = None

    def __post_init__(self) -> None:
        if self.scale.shape != self.zero_point.shape or self.scale.ndim > 1 or (self.scale.ndim == 1) != (self.axis is not None):
            raise PlanError("QuantParams: scale and zero point need equal shapes, () per tensor or (C,) with an axis.")
        if not bool(torch.isfinite(self.scale).all() and (self.scale >= MIN_SCALE).all()):
            raise PlanError("QuantParams: every scale has to be finite and greater than 0, at least 2**-126.")
        if not -(2**15) <= self.qmin < self.qmax < 2**16 or self.qmax - self.qmin >= 2**16:
            raise PlanError(f"QuantParams: codes {self.qmin}..{self.qmax} are no integer grid of 2 to 16 bits.")
        if not bool(((self.zero_point >= self.qmin) & (self.zero_point <= self.qmax)).all()):
            raise PlanError(f"QuantParams: a zero point lies outside the codes {self.qmin}..{self.qmax}.")

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """The content as a hashable tuple."""
        return (
            self.qmin,
            self.qmax,
            self.axis,
            self.scale.numpy().tobytes(),
            self.zero_point.numpy().tobytes(),
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, QuantParams) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def per_channel(self) -> bool:
        """Whether there is one scale per channel."""
        return self.axis is not None

    @property
    def bits(self) -> int:
        """Width that holds every code."""
        return math.ceil(math.log2(self.qmax - self.qmin + 1))

    @functools.cached_property
    def reach(self) -> int:
        """Greatest magnitude of a code less its zero point."""
        return max(int(self.zero_point.max()) - self.qmin, self.qmax - int(self.zero_point.min()))

    @property
    def dtype(self) -> torch.dtype:
        """The smallest torch integer type that holds the codes: int8, uint8, int16 or uint16."""
        return next(d for d in _CODE_DTYPES if torch.iinfo(d).min <= self.qmin and self.qmax <= torch.iinfo(d).max)

    @property
    def lo(self) -> Tensor:
        """The least value on the grid, shape of `scale`, float64."""
        return (self.qmin - self.zero_point).double() * self.scale.double()

    @property
    def hi(self) -> Tensor:
        """The greatest value on the grid, shape of `scale`, float64."""
        return (self.qmax - self.zero_point).double() * self.scale.double()

    @functools.cached_property
    def scalars(self) -> tuple[float, float, float, float]:
        """Per-tensor grids: (reciprocal, scale, least, greatest code less the zero point), as float32 values."""
        reciprocal = torch.ones((), dtype=torch.float32) / self.scale
        zero = int(self.zero_point)
        return float(reciprocal), float(self.scale), float(self.qmin - zero), float(self.qmax - zero)

    @functools.cached_property
    def vectors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Per-channel grids: what `scalars` is per tensor, each float32 (C,)."""
        reciprocal = (1.0 / self.scale).numpy()
        low, high = ((code - self.zero_point).float().numpy() for code in (self.qmin, self.qmax))
        return reciprocal, self.scale.numpy(), low, high

    def __repr__(self) -> str:
        scale = f"{float(self.scale):.6g}" if self.axis is None else f"{_brief(self.scale)}, axis {self.axis}"
        zero = int(self.zero_point) if self.axis is None else "per channel"
        return f"QuantParams(scale {scale}, zero point {zero}, codes {self.qmin}..{self.qmax})"


def require_finite(x: Tensor, name: str) -> None:
    """Raise `DataError` naming the tensor if it holds NaN or infinity, which rounding would turn into ordinary numbers."""
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        bad = int((~torch.isfinite(x)).sum())
        raise DataError(
            f"{name}: {bad} of {x.numel()} elements are NaN or infinite; quantizing would hide them. "
            "Find where they arise (weights, input scaling, a division) before asking about quantization."
        )


def _broadcast(params: QuantParams, x: Tensor) -> tuple[Tensor, Tensor]:
    scale, zero = params.scale.to(x.device), params.zero_point.to(x.device)
    if params.axis is None:
        return scale, zero
    if not -x.ndim <= params.axis < x.ndim or x.shape[params.axis] != scale.numel():
        raise PlanError(
            f"a grid of {scale.numel()} channels on axis {params.axis} does not fit a tensor of shape {tuple(x.shape)}."
        )
    shape = [1] * x.ndim
    shape[params.axis] = -1
    return scale.view(shape), zero.view(shape)


def quantize(x: Tensor, params: QuantParams, *, name: str = "tensor") -> Tensor:
    """Codes of `x`: the same shape, dtype ``params.dtype``.

    Raises
    ------
    DataError
        If `x` is not float32 or not finite; `name` is the tensor's name in the message.
    """
    _require_float32(x, name)
    require_finite(x, name)
    scale, zero = _broadcast(params, x)
    steps = torch.round(x * (1.0 / scale)).clamp_(-(2.0**30), 2.0**30)  # beyond int32 the clamp below decides anyway
    return (steps.to(torch.int32) + zero).clamp_(params.qmin, params.qmax).to(params.dtype)


def dequantize(codes: Tensor, params: QuantParams) -> Tensor:
    """Values of integer `codes`, float32, the same shape."""
    scale, zero = _broadcast(params, codes)
    return (codes.to(torch.int32) - zero).to(torch.float32) * scale


def as_integers(values: Tensor, params: QuantParams) -> Tensor:
    """Codes less the zero point, as whole float32 numbers, of float32 values that lie on the grid; the same shape."""
    scale, _ = _broadcast(params, values)
    return (values * (1.0 / scale)).round_()


def fake_quantize(x: Tensor, params: QuantParams, *, name: str = "tensor") -> Tensor:
    """``dequantize(quantize(x))`` in a new float32 tensor; refuses non-finite input by `name`."""
    require_finite(x, name)
    _require_float32(x, name)
    return fake_quantize_(x.clone(), params)


def fake_quantize_(x: Tensor, params: QuantParams) -> Tensor:
    """`fake_quantize` in place and unchecked, for float32 tensors on any device."""
    if params.axis is None:
        reciprocal, step, low, high = params.scalars
        return x.mul_(reciprocal).round_().clamp_(low, high).mul_(step)
    scale, zero = _broadcast(params, x)
    x.mul_(1.0 / scale).round_()
    torch.clamp(x, min=(params.qmin - zero).to(x.dtype), max=(params.qmax - zero).to(x.dtype), out=x)
    return x.mul_(scale)


def quantize_bias(bias: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Bias on the accumulator's grid: ``round(b / (s_input * s_weight))`` in a signed integer of `bits`, as float32 values.

    Computed in float64, where integers up to 2**53 are exact; what the width cannot hold saturates.
    """
    step = scale.to(bias.device).double()
    limit = 2.0 ** (bits - 1)
    return (bias.double() / step).round_().clamp_(-limit, limit - 1).mul_(step).to(bias.dtype)


def saturated_biases(bias: Tensor, scale: Tensor, bits: int) -> int:
    """How many entries `quantize_bias` saturates."""
    codes = torch.round(bias.double() / scale.to(bias.device).double())
    limit = 2.0 ** (bits - 1)
    return int(((codes < -limit) | (codes > limit - 1)).sum())


def wrap_around(y: Tensor, scale: Tensor, bits: int, axis: int | None) -> Tensor:
    """Sums as a two's complement accumulator of `bits` at that scale holds them: what it cannot hold wraps around.

    Only the end of a sum is looked at, which is exact: overflows on the way cancel in arithmetic modulo ``2**bits``.

    Parameters
    ----------
    y
        Sums as real numbers, float32; returned as they are where none overflows.
    scale
        Of the accumulator, () or along `axis` of `y`.
    """
    step = scale.to(y.device).double()
    if axis is not None:
        shape = [1] * y.ndim
        shape[axis] = -1
        step = step.view(shape)
    turns = ((y.double() / step).round_() + 2.0 ** (bits - 1)).div_(2.0**bits).floor_()
    if y.device.type == "cpu" and not bool(turns.any()):
        return y
    return (y.double() - turns.mul_(2.0**bits) * step).to(y.dtype)


def _require_float32(x: Tensor, name: str) -> None:
    if x.dtype != torch.float32:
        raise DataError(f"{name} is {x.dtype}; qkit quantizes torch.float32. Convert it with .float() first.")
