"""Multiply-accumulates of what has no weight of its own: products of two tensors, recurrent layers, computed weights."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from qkit.graph import table
from qkit.graph.fronts.opaque import OpaqueCall
from qkit.graph.normal_form.form import name_of, operands, outlines, shape_of

#: Where a recurrent operation has its parameters.
_PARAMETERS = {"lstm": 2, "gru": 2, "rnn_tanh": 2, "rnn_relu": 2}
_CELLS = frozenset({"lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"})


def macs_of_products(node: fx.Node, batch: int) -> int:
    """Multiply-accumulates a sample of products of two tensors, recurrent layers, and layers whose weight is computed."""
    if isinstance(node.target, OpaqueCall):
        return node.target.macs
    name = name_of(node)
    inputs = [o for a in operands(node) for o in _shapes(a)]
    value = node.meta.get("value")
    results = outlines(value)
    if not results or not inputs:
        return 0
    if name in {"matmul", "bmm", "mm", "mv", "dot", "baddbmm", "addmm"}:
        left = inputs[-2] if name in {"baddbmm", "addmm"} else inputs[0]
        return math.prod(results[0].shape) * left[-1] // batch
    if name == "einsum":
        return _sums(operands(node)[0], inputs) // batch
    if name in _PARAMETERS:
        steps = math.prod(inputs[0][:-1])
        return sum(math.prod(shape) for shape in _shapes(operands(node)[_PARAMETERS[name]]) if len(shape) == 2) * steps // batch
    if name in _CELLS:
        given = table.bound_arguments(node)
        return sum(math.prod(shape_of(given[key])) for key in ("w_ih", "w_hh")) * math.prod(inputs[0][:-1]) // batch
    if name == "bilinear":
        return math.prod(results[0].shape) * inputs[0][-1] * inputs[1][-1] // batch
    if table.KINDS.get(name) in table.WEIGHTED:
        given = table.weighted_arguments(node)
        turned = table.KINDS[name] == "conv-transpose" or given.get("transposed")
        places = math.prod(inputs[0]) if turned else math.prod(results[0].shape)
        return places * math.prod(shape_of(given["weight"])[1:]) // batch
    return 0


def _sums(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """Products that an einsum adds up: as many as there are values of all its indices."""
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.replace(" ", "").split("->")[0].split(","), shapes, strict=False):
        ahead, dots, behind = letters.partition("...")
        between = len(shape) - len(ahead) - len(behind)
        names = [*ahead, *(f"{i}" for i in range(between, 0, -1) if dots), *behind]
        for name, size in zip(names, shape, strict=True):
            sizes[name] = max(size, sizes.get(name, 1))
    return math.prod(sizes.values())


def _shapes(value: Any) -> list[tuple[int, ...]]:
    if isinstance(value, fx.Node):
        return [shape_of(value)] if shape_of(value) else []
    return [shape for part in value for shape in _shapes(part)] if isinstance(value, (tuple, list)) else []
