"""Reductions over axes, and what looks for places of extremes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.values import Planned, TorchCall

Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _axes(call: Call) -> tuple[int, ...] | None:
    """The axes, from the attribute or the input; None where nothing is to reduce."""
    axes = call.numbers(1, "axes") if call.has(1) else list(call.attribute("axes", []))
    if not axes and call.attribute("noop_with_empty_axes", 0):
        return None
    return tuple(sorted({call.axis(0, axis) for axis in axes})) or tuple(range(call.rank(0)))


def reduction(function: Reduction, *, alone: Callable[[Tensor], Tensor] | None = None) -> Callable[[Call], Planned]:
    """The operation that reduces over axes; `alone` is what it does to elements where no axis is reduced."""

    def plan(call: Call) -> Planned:
        axes = _axes(call)
        if axes is None:
            return (call.value(0),) if alone is None else call.torch(alone, call.value(0))
        return call.torch(reduced, call.value(0), axes=axes, keep=bool(call.attribute("keepdims", 1)), function=function)

    return plan


def reduced(x: Tensor, *, axes: tuple[int, ...], keep: bool, function: Reduction) -> Tensor:
    """The function over the axes."""
    return function(x, axes, keep) if axes else x


def total(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Sum, of the input's type."""
    return torch.sum(x, axes, keepdim=keep, dtype=x.dtype)


def mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Mean; of integers, without the rest."""
    if x.is_floating_point():
        return torch.mean(x, axes, keepdim=keep)
    count = 1
    for axis in axes:
        count *= x.shape[axis]
    return torch.div(total(x, axes, keep), count, rounding_mode="trunc").to(x.dtype)


def largest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Maximum."""
    return torch.amax(x, axes, keepdim=keep)


def smallest(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Minimum."""
    return torch.amin(x, axes, keepdim=keep)


def product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Product: torch takes one axis at a time."""
    for axis in sorted(axes, reverse=True):
        x = torch.prod(x, axis, keepdim=keep, dtype=x.dtype)
    return x


def absolute(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Sum of absolute values."""
    return total(torch.abs(x), axes, keep)


def squares(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Sum of squares."""
    return total(x * x, axes, keep)


def euclidean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Square root of the sum of squares."""
    return torch.sqrt(squares(x, axes, keep))


def log_sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Logarithm of the sum."""
    return torch.log(total(x, axes, keep))


def log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    """Logarithm of the sum of exponentials."""
    return torch.logsumexp(x, axes, keepdim=keep)


def extreme(function: Callable[..., Tensor]) -> Callable[[Call], TorchCall]:
    """The operation that gives the place of an extreme along an axis."""

    def plan(call: Call) -> TorchCall:
        settings = {"axis": call.axis(0, call.attribute("axis", 0)), "keep": bool(call.attribute("keepdims", 1))}
        last = bool(call.attribute("select_last_index", 0))
        return call.torch(place_of, call.value(0), function=function, last=last, **settings)

    return plan


def place_of(x: Tensor, *, axis: int, keep: bool, function: Callable[..., Tensor], last: bool) -> Tensor:
    """Where the extreme is: the first place of several, or the last."""
    if not last:
        return function(x, axis, keepdim=keep)
    return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)


def top_k(call: Call) -> TorchCall:
    count = call.attribute("k") if call.opset < 10 else call.numbers(1, "k")[0]
    axis = call.axis(0, call.attribute("axis", -1))
    settings = {"largest": bool(call.attribute("largest", 1)), "sorted": bool(call.attribute("sorted", 1))}
    return call.torch(torch.topk, call.value(0), k=count, dim=axis, **settings)


def cumulative_sum(call: Call) -> TorchCall:
    axis = call.axis(0, call.numbers(1, "axis")[0])
    settings = {"exclusive": bool(call.attribute("exclusive", 0)), "reverse": bool(call.attribute("reverse", 0))}
    return call.torch(running_sum, call.value(0), axis=axis, **settings)


def running_sum(x: Tensor, *, axis: int, exclusive: bool, reverse: bool) -> Tensor:
    """The sum of all elements up to each one, from the other end if `reverse`, without itself if `exclusive`."""
    turned = x.flip(axis) if reverse else x
    summed = torch.cumsum(turned, axis, dtype=x.dtype)
    summed = summed - turned if exclusive else summed
    return summed.flip(axis) if reverse else summed


TABLE: dict[str, Callable[[Call], Planned]] = {
    "ReduceMean": reduction(mean),
    "ReduceSum": reduction(total),
    "ReduceMax": reduction(largest),
    "ReduceMin": reduction(smallest),
    "ReduceProd": reduction(product),
    "ReduceL1": reduction(absolute, alone=torch.abs),
    "ReduceL2": reduction(euclidean, alone=torch.abs),
    "ReduceSumSquare": reduction(squares, alone=torch.square),
    "ReduceLogSum": reduction(log_sum, alone=torch.log),
    "ReduceLogSumExp": reduction(log_sum_exp),
    "ArgMax": extreme(torch.argmax),
    "ArgMin": extreme(torch.argmin),
    "TopK": top_k,
    "CumSum": cumulative_sum,
}
