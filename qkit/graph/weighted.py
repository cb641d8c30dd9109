"""Convolutions and linear layers taken apart: a function of an input, a weight and a bias."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from qkit.graph import table
from qkit.graph.normal_form.form import name_of

_OPERANDS = ("input", "weight", "bias")


@dataclass(frozen=True, eq=False)
class Weighted:
    """A weighted call taken apart.

    Attributes
    ----------
    kind
        "conv", "conv-transpose" or "linear".
    function
        ``function(x, weight, bias)`` with weights as the graph holds them: output channels along one axis.
    weight, bias
        As the call has them, before norms.
    groups
        Of a transposed convolution whose weight is kept with its output channels along axis 0, else 1.
    axis
        Of the output channels in the graph's weight.
    """

    kind: str
    function: Callable[..., Any]
    weight: fx.Node
    bias: fx.Node | None
    groups: int
    axis: int


def weighted(node: fx.Node, constants: Mapping[fx.Node, Any]) -> Weighted | None:
    """The parts of a call that multiplies its input by a constant weight, None for every other."""
    kind = table.KINDS.get(name_of(node))
    if kind not in table.WEIGHTED or node in constants:
        return None
    given = table.weighted_arguments(node)
    weight, bias, source = given.get("weight"), given.get("bias"), given.get("input")
    fixed = weight in constants and (bias is None or bias in constants)
    if weight is None or not fixed or not isinstance(source, fx.Node):
        return None
    if given.get("transposed"):
        kind = "conv-transpose"
    groups = int(given.get("groups", 1)) if kind == "conv-transpose" else 1
    settings = {key: value for key, value in given.items() if key not in _OPERANDS}
    if any(isinstance(value, fx.Node) for value in node.all_input_nodes if value not in {source, weight, bias}):
        return None
    function = WeightedCall(table.portable(node.target), settings, groups)
    return Weighted(kind, function, weight, bias, groups, 1 if kind == "conv-transpose" and groups == 1 else 0)


@dataclass(frozen=True, eq=False)
class WeightedCall:
    """``call(x, weight, bias)`` of an operation with its other arguments; a grouped transposed weight is turned back first."""

    target: Callable[..., Any]
    settings: Mapping[str, Any]
    groups: int = 1

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Any:
        weight = weight if self.groups == 1 else ungrouped(weight, self.groups)
        return self.target(x, weight, bias, **self.settings)


def grouped(weight: Tensor, groups: int) -> Tensor:
    """(inputs, outputs / groups, ...) of a transposed convolution as (outputs, inputs / groups, ...)."""
    per_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return per_group.transpose(1, 2).reshape(-1, per_group.shape[1], *weight.shape[2:])


def ungrouped(weight: Tensor, groups: int) -> Tensor:
    """The inverse of `grouped`."""
    per_group = weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])
    return per_group.transpose(1, 2).reshape(-1, per_group.shape[1], *weight.shape[2:])
