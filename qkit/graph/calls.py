"""How an operation calls its function: which values and constants go where, and under which names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate, map_arg

from qkit.graph import table


@dataclass(frozen=True)
class Place:
    """Where a value goes in a call's arguments: the number of the operand."""

    at: int


@dataclass(frozen=True, eq=False)
class Bound:
    """``call(*values)`` of a function: the values, and the constants after them, go where a `Place` stands for each."""

    function: Callable[..., Any]
    args: Any
    kwargs: Any
    constants: tuple[Any, ...]

    def __call__(self, *values: Any) -> Any:
        known = (*values, *self.constants)

        def put(x: Any) -> Any:
            return known[x.at] if isinstance(x, Place) else x

        return self.function(*map_aggregate(self.args, put), **map_aggregate(self.kwargs, put))


def caller(
    function: Callable[..., Any], args: Any, kwargs: Any, sources: list[fx.Node], bound: Mapping[fx.Node, Any]
) -> Callable[..., Any]:
    """``call(*values)`` that puts the values of `sources` where the nodes stand in `args` and `kwargs`, and the bound ones."""
    if not kwargs and len(args) == len(sources) and all(a is s for a, s in zip(args, sources, strict=True)):
        return function
    places: dict[Any, Any] = {node: Place(at) for at, node in enumerate((*sources, *bound))}
    return Bound(function, map_arg(args, places.__getitem__), map_arg(kwargs, places.__getitem__), tuple(bound.values()))


def fresh_copy(x: Any) -> Any:
    """The value itself in memory of its own."""
    return x.clone() if isinstance(x, Tensor) else x


def described(call: Callable[..., Any], operands: int) -> tuple[str, dict[str, Any]]:
    """A call's function by the name that `qkit.graph.table` has for it, and its arguments by name.

    A `Place` stands for each operand, constants stand as they are. No arguments where the function's signature is not known.
    """
    function, args, kwargs = call, tuple(Place(i) for i in range(operands)), {}
    if isinstance(call, Bound):

        def put(x: Any) -> Any:
            return call.constants[x.at - operands] if isinstance(x, Place) and x.at >= operands else x

        function, args, kwargs = call.function, map_aggregate(call.args, put), map_aggregate(call.kwargs, put)
    if isinstance(function, table.Operator):
        operator: Any = table.operator(function.name)
        schema = operator._schema.arguments
        given = {a.name: a.default_value for a in schema if a.has_default_value()}
        return table.short_name(operator), {**given, **dict(zip([a.name for a in schema], args, strict=False)), **kwargs}
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return table.short_name(function), {}
    bound.apply_defaults()
    return table.short_name(function), dict(bound.arguments)


def number(x: Any) -> float | None:
    """A plain number, also where it is a tensor without axes; None for anything else."""
    if isinstance(x, Tensor) and x.ndim == 0:
        return float(x)
    return float(x) if isinstance(x, (int, float)) and not isinstance(x, bool) else None


def is_tensor(x: Any) -> bool:
    """Whether an argument is a tensor of more than one number, given as it stands."""
    return isinstance(x, torch.Tensor) and x.numel() > 1
