"""Rounding that gradients pass straight through.

Forward is `qkit.quant.grids`' arithmetic: times the reciprocal of the step, round half to even, clamp, times the step. Backward
takes the rounding for the identity and the clamping for what it is (Jacob et al. 2018, section 3): the gradient passes where the
code lies on the grid. A fused activation clamps in the same pass, its gradient that of ReLU or Hardtanh. Both equal torch's own
``fake_quantize_*`` operators behind the activation, bit for bit, at a fraction of their cost.

With learned steps the step has a gradient too (Esser et al. 2020, "Learned Step Size Quantization", eq. 3): the rounding error
in steps where the code lies on the grid, the grid's end where it does not.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from qkit.graph.table import UNBOUNDED, Bounds
from qkit.quant.grids import MAX_BOUND, MIN_SCALE, QuantSpec

#: A number, or a tensor that broadcasts to the rounded one.
Number = Tensor | float


def grid_of(spec: QuantSpec, lo: Tensor, hi: Tensor, qmin: int, qmax: int) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) for ranges ``[lo, hi]``, as `QuantSpec.params` has them, on the tensors' device.

    The codes are given: a grid that began unsigned stays so.
    """
    low, high = lo.double().clamp(-MAX_BOUND, 0.0), hi.double().clamp(0.0, MAX_BOUND)
    if not spec.symmetric:
        scale = (high - low) / (qmax - qmin)
    elif qmin == 0:
        scale = high / qmax
    else:
        scale = torch.maximum(high / qmax, low / min(qmin, -1))
    scale = torch.where(scale > 0, scale, torch.where(high > low, MIN_SCALE, 1.0)).clamp(min=MIN_SCALE)
    if spec.power_of_two:
        scale = torch.exp2(torch.ceil(torch.log2(scale)))
    scale = scale.to(torch.float32)
    if spec.symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    zero_point = (qmin - torch.round(low / scale.double())).clamp(qmin, qmax)
    return scale, zero_point.to(torch.int32)


def power_of_two(step: Tensor) -> Tensor:
    """The least power of two that is not below `step`; its gradient passes straight through."""
    rounded = torch.exp2(torch.ceil(torch.log2(step.detach())))
    return step + (rounded - step.detach()) if step.requires_grad else rounded


def straight_through(x: Tensor, value: Tensor) -> Tensor:
    """`value`, with the gradient of `x`."""
    return x + (value - x.detach()) if x.requires_grad else value


def round_to_grid(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, act: Bounds = UNBOUNDED) -> Tensor:
    """`x` clamped to `act` and put on the grid, straight through.

    Parameters
    ----------
    scale, low, high
        Step, least and greatest code less the zero point, float32, () or shaped to broadcast.
    """
    return _Round.apply(x, *_numbers(scale, low, high, act), act)  # type: ignore[no-untyped-call, no-any-return]


def round_learned(x: Tensor, scale: Tensor, low: Tensor, high: Tensor, gain: Tensor, act: Bounds = UNBOUNDED) -> Tensor:
    """`round_to_grid` with a gradient for `scale`, times `gain`."""
    numbers = _numbers(scale.detach(), low, high, act)
    return _RoundLearned.apply(x, scale, gain, numbers, act)  # type: ignore[no-untyped-call, no-any-return]


def _numbers(scale: Tensor, low: Tensor, high: Tensor, act: Bounds) -> list[Number]:
    """Reciprocal, scale, the grid's ends, and its ends behind the activation; plain numbers on the CPU, which is faster there."""
    inverse = 1.0 / scale
    first, last = low, high
    if act[0] > -math.inf:  # rounding is monotonic: clamping codes is clamping values
        first = torch.maximum(torch.minimum(torch.round(act[0] * inverse), high), low)
    if act[1] < math.inf:
        last = torch.maximum(torch.minimum(torch.round(act[1] * inverse), high), low)
    numbers = [inverse, scale, low, high, first, last]
    return [float(number) for number in numbers] if scale.ndim == 0 and scale.device.type == "cpu" else list(numbers)


def _passes(x: Tensor, codes: Tensor, low: Number, high: Number, act: Bounds) -> Tensor:
    """Where the gradient passes: between the activation's bounds, and where the code, not yet clamped, lies on the grid.

    0 is on every grid, so that a value above 0 cannot fall below its codes.
    """
    passes = codes <= high if act[1] > 0 else x < act[1]
    if 0 < act[1] < math.inf:
        passes.logical_and_(x < act[1])
    if act[0] > -math.inf:
        passes.logical_and_(x > act[0])
    if act[0] < 0:
        passes.logical_and_(codes >= low)
    return passes


class _Round(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, inverse: Number, scale: Number, low: Number, high: Number, first: Number, last: Number, act: Bounds
    ) -> Tensor:
        codes = (x * inverse).round_()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(_passes(x, codes, low, high, act))
        return torch.clamp(codes, first, last, out=codes).mul_(scale)  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (passes,) = ctx.saved_tensors
        return torch.where(passes, grads[0], 0.0), None, None, None, None, None, None, None


class _RoundLearned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, gain: Tensor, numbers: list[Number], act: Bounds) -> Tensor:
        inverse, step, low, high, first, last = numbers
        codes = (x * inverse).round_()
        passes = _passes(x, codes, low, high, act)
        y = torch.clamp(codes, first, last, out=codes).mul_(step)  # type: ignore[arg-type]
        ctx.save_for_backward(x, y, passes, scale, gain)
        # a value that the activation clamps to a bound within the grid has that bound's rounding error
        ctx.bounds = [(bound, _inside(bound * inverse, low, high)) for bound in act if math.isfinite(bound) and bound != 0.0]
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, y, passes, scale, gain = ctx.saved_tensors
        (grad,) = grads
        # in steps: the error of rounding where the gradient passes, the grid's end elsewhere
        by_step = torch.where(passes, x, 0.0).neg_().add_(y).mul_(grad)
        for bound, inside in ctx.bounds:
            beyond = x >= bound if bound > 0 else x <= bound
            by_step -= torch.where(beyond & inside, bound * grad, 0.0)
        summed = [dim for dim in range(x.ndim) if scale.ndim == 0 or scale.shape[dim] == 1]
        by_step = by_step.sum(summed, keepdim=scale.ndim > 0) if summed else by_step
        return torch.where(passes, grad, 0.0), by_step / scale * gain, None, None, None


def _inside(steps: Number, low: Number, high: Number) -> Tensor | bool:
    """Whether what lies so many steps from 0 has a code."""
    if isinstance(steps, Tensor):
        codes = torch.round(steps)
        return (codes >= low) & (codes <= high)
    assert not isinstance(low, Tensor)
    assert not isinstance(high, Tensor)
    return low <= round(steps) <= high
