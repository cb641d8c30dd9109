"""Factors between a norm and the linear layers behind it.

Dividing channel j of a norm's output by s_j and multiplying what the linear layers behind it make of that channel by s_j changes
no float result: ``(x / s) @ (s * W) = x @ W``. The division is part of the norm's own weight and bias, so it costs nothing (Xiao
et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", section 4.1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkit.errors import GraphError
from qkit.graph.calls import described
from qkit.graph.graph import Graph
from qkit.graph.operation import Operation


def readers_of(graph: Graph, op: Operation) -> tuple[Operation, ...]:
    """The linear layers behind a norm with a weight over its last axis; () where anything else reads what it gives, too.

    Between them may lie what moves whole tokens: reshapes, permutations, rolls, slices that leave the last axis as it is.
    """
    if op.kind != "norm" or not op.shape or norm_constants(op) is None:
        return ()
    channels = op.shape[-1]
    values: dict[int, Any] = {op.index: torch.arange(channels, dtype=torch.float32).expand(op.shape).contiguous()}
    found = []
    for reader in graph.operations[op.index + 1 :]:
        if not any(i in values for i in reader.inputs):
            continue
        if reader.kind == "linear" and reader.weight is not None:
            weight = graph.weights[reader.weight]
            if weight.shape[1] != channels or sum(other.weight == reader.weight for other in graph.operations) > 1:
                return ()
            found.append(reader)
        elif reader.kind == "keep":
            try:
                moved = reader.call(*(values[i] if i in values else _value(graph, i) for i in reader.inputs))
            except (RuntimeError, TypeError, ValueError, IndexError):
                return ()
            if not isinstance(moved, Tensor) or not _whole(moved, channels):
                return ()
            values[reader.index] = moved
        elif reader.kind != "meta":
            return ()
    return tuple(found)


def function_of(op: Operation) -> str:
    """Short name of the function that the operation calls, such as "softmax"."""
    return described(op.call, len(op.inputs))[0]


def norm_constants(op: Operation) -> tuple[Tensor, ...] | None:
    """Weight and perhaps bias of a norm over its last axis, as its call has them; None where it has none, or others."""
    constants = getattr(op.call, "constants", ())
    if not constants or function_of(op) not in ("layer_norm", "rms_norm"):
        return None
    if any(not isinstance(c, Tensor) or tuple(c.shape) != (op.shape[-1],) for c in constants):
        return None
    return tuple(constants)


def smoothed(graph: Graph, factors: Mapping[str, Sequence[float]]) -> Graph:
    """The graph in which the output of each of these norms is divided by factors, one a channel; its readers make up for it.

    Raises
    ------
    GraphError
        If something else than linear layers reads such an output, or the factors are not one a channel.
    """
    operations, weights = list(graph.operations), dict(graph.weights)
    for tap, values in factors.items():
        op = graph.operation(tap)
        readers, constants = readers_of(graph, op), norm_constants(op)
        if not readers or constants is None:
            raise GraphError(f"{tap} is not a norm that linear layers alone read: no factors can go between them.")
        by = torch.tensor(values, dtype=torch.float64, device=graph.device)
        if tuple(by.shape) != (op.shape[-1],) or not bool((by > 0).all()):
            raise GraphError(f"{tap} has {op.shape[-1]} channels: it needs one factor above 0 for each, found {len(by)}.")
        call: Any = op.call
        divided = tuple((c.double() / by).to(c.dtype) for c in constants)
        operations[op.index] = replace(op, call=replace(call, constants=divided))
        for reader in readers:
            name = reader.weight or ""
            weights[name] = (weights[name].double() * by).to(weights[name].dtype)
    return replace(graph, operations=tuple(operations), weights=weights)


def _whole(moved: Tensor, channels: int) -> bool:
    """Whether every token along the last axis still has all channels in their order."""
    if moved.ndim < 1 or moved.shape[-1] != channels:
        return False
    return bool((moved == torch.arange(channels, dtype=moved.dtype)).all())


def _value(graph: Graph, index: int) -> Any:
    """Something of the shape of an operation's value; of a shape or a size itself, its value."""
    op = graph.operations[index]
    return torch.zeros(op.shape) if op.shape else op.call(*(_value(graph, i) for i in op.inputs))
