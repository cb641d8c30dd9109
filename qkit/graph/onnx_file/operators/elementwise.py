"""Arithmetic, comparisons and elementary functions, element by element."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.file_loading import element_type
from qkit.graph.onnx_file.values import Planned, TorchCall, Value, as_at_run_time

Function = Callable[..., Tensor]


def unary(function: Function) -> Callable[[Call], TorchCall]:
    """The operation that is a torch function of its one input."""

    def plan(call: Call) -> TorchCall:
        return call.torch(function, call.value(0))

    return plan


def binary(function: Function, reflected: Function | None = None) -> Callable[[Call], TorchCall]:
    """The operation that is a torch function of two inputs.

    A constant of one element becomes a Python number, as in a network that is written with torch; `reflected` takes it where
    it is on the left.
    """

    def plan(call: Call) -> TorchCall:
        a, b = call.value(0), call.value(1)
        if not (a.known and b.known):
            if (number := as_number(b, a)) is not None:
                return call.torch(function, a, other=number)
            if reflected is not None and (number := as_number(a, b)) is not None:
                return call.torch(reflected, b, other=number)
        return call.torch(function, a, b)

    return plan


def as_number(value: Value, beside: Value) -> int | float | None:
    """The number that a constant of one element is, where it does not change the shape or type of what is beside it."""
    tensor = value.at(0)
    if not value.constant or tensor.numel() != 1 or tensor.ndim > beside.at(0).ndim or tensor.dtype == torch.bool:
        return None
    if as_at_run_time(tensor).dtype != as_at_run_time(beside.at(0)).dtype:
        return None
    return as_at_run_time(tensor).item()


def subtracted_from(x: Tensor, *, other: float) -> Tensor:
    """``other - x``."""
    return other - x


def divide(x: Tensor, other: Tensor | float) -> Tensor:
    """Division; of integers, without the rest."""
    return torch.div(x, other) if x.is_floating_point() else torch.div(x, other, rounding_mode="trunc")


def divided(x: Tensor, *, other: float) -> Tensor:
    """``other / x``."""
    return other / x if x.is_floating_point() else torch.div(torch.full_like(x, int(other)), x, rounding_mode="trunc")


def power(call: Call) -> TorchCall:
    a, b = call.value(0), call.value(1)
    tensor = b.at(0)
    if b.constant and tensor.numel() == 1 and tensor.ndim <= a.at(0).ndim and not a.known:
        return call.torch(raised, a, exponent=tensor.item())
    return call.torch(raised_by_tensor, a, b)


def raised(x: Tensor, *, exponent: float) -> Tensor:
    """The power by a number, of the base's type."""
    return (
        torch.pow(x, exponent)
        if x.is_floating_point() or isinstance(exponent, int)
        else torch.pow(x.float(), exponent).to(x.dtype)
    )


def raised_by_tensor(x: Tensor, exponent: Tensor) -> Tensor:
    """The power by a tensor, of the base's type."""
    made = torch.pow(x, exponent)
    return made if made.dtype == x.dtype else made.to(x.dtype)


def modulo(call: Call) -> TorchCall:
    return call.torch(torch.fmod if call.attribute("fmod", 0) else torch.remainder, call.value(0), call.value(1))


def variadic(function: Function) -> Callable[[Call], Planned]:
    """The operation that is a torch function of two inputs, over any number of them."""

    def plan(call: Call) -> Planned:
        if len(call.inputs) == 1:
            return (call.value(0),)
        if len(call.inputs) == 2:
            return binary(function)(call) if function is torch.add else call.torch(function, call.value(0), call.value(1))
        return call.torch(over_all, *call.inputs, function=function)

    return plan


def over_all(*tensors: Tensor, function: Function) -> Tensor:
    """The function of the first two, of that and the third, and so on."""
    return functools.reduce(function, tensors)


def mean(call: Call) -> Planned:
    return (call.value(0),) if len(call.inputs) == 1 else call.torch(mean_of_all, *call.inputs)


def mean_of_all(*tensors: Tensor) -> Tensor:
    """The mean, element by element."""
    return functools.reduce(torch.add, tensors) / len(tensors)


def clip(call: Call) -> Planned:
    bounds: list[Value | float | None] = [call.attribute("min"), call.attribute("max")]
    if call.opset >= 11:
        bounds = [call.get(1), call.get(2)]
    numbers = [
        bound.at(0).item() if isinstance(bound, Value) and bound.constant else bound if not isinstance(bound, Value) else math.nan
        for bound in bounds
    ]
    if any(isinstance(number, float) and math.isnan(number) for number in numbers):
        low, high = (bound if isinstance(bound, Value) else None for bound in bounds)
        return call.torch(torch.clamp, call.value(0), low, high)
    largest = float(torch.finfo(torch.float32).max)
    low_number = None if numbers[0] is None or numbers[0] <= -largest else numbers[0]
    high_number = None if numbers[1] is None or numbers[1] >= largest else numbers[1]
    if low_number is None and high_number is None:
        return (call.value(0),)
    return call.torch(torch.clamp, call.value(0), min=low_number, max=high_number)


def where(call: Call) -> TorchCall:
    return call.torch(torch.where, *(call.value(index) for index in range(3)))


def cast(call: Call) -> Planned:
    to = call.needed("to") if call.operator == "Cast" else None
    if to is None:
        return call.torch(cast_like, call.value(0), call.value(1))
    dtype = element_type(to, f"the result of {call.label}")
    value = call.value(0)
    if value.known:
        if value.at(0).dtype == dtype:
            return (value,)
        if value.constant and value.at(0).is_floating_point() and dtype.is_floating_point:
            return (value.variant(("cast", dtype), lambda x: x.to(dtype)),)
        return call.torch(to_type, value, dtype=dtype)
    dtype = torch.float32 if dtype.is_floating_point else dtype
    return (value,) if value.at(0).dtype == dtype else call.torch(to_type, value, dtype=dtype)


def to_type(x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """The tensor in another type."""
    return x.to(dtype)


def cast_like(x: Tensor, other: Tensor) -> Tensor:
    """The tensor in the type of another."""
    return x.to(other.dtype)


def is_infinite(call: Call) -> TorchCall:
    call.only(detect_negative=1, detect_positive=1)
    return call.torch(torch.isinf, call.value(0))


COMPARISONS: dict[str, Any] = {
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
}

UNARY: dict[str, Any] = {
    "Abs": torch.abs,
    "Acos": torch.acos,
    "Acosh": torch.acosh,
    "Asin": torch.asin,
    "Asinh": torch.asinh,
    "Atan": torch.atan,
    "Atanh": torch.atanh,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cosh": torch.cosh,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Round": torch.round,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Sinh": torch.sinh,
    "Sqrt": torch.sqrt,
    "Tan": torch.tan,
}

TABLE: dict[str, Callable[[Call], Planned]] = {
    **{name: unary(function) for name, function in UNARY.items()},
    **{name: binary(function) for name, function in COMPARISONS.items()},
    "Add": binary(torch.add, torch.add),
    "Sub": binary(torch.sub, subtracted_from),
    "Mul": binary(torch.mul, torch.mul),
    "Div": binary(divide, divided),
    "And": binary(torch.logical_and),
    "Or": binary(torch.logical_or),
    "Xor": binary(torch.logical_xor),
    "Pow": power,
    "Mod": modulo,
    "Min": variadic(torch.minimum),
    "Max": variadic(torch.maximum),
    "Sum": variadic(torch.add),
    "Mean": mean,
    "Clip": clip,
    "Where": where,
    "Cast": cast,
    "CastLike": cast,
    "IsInf": is_infinite,
}
