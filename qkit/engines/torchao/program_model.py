"""The model with a plan's weights written into it: folded, on their grids with the chosen codes, and corrected biases.

Observers can only round to nearest, and know of no correction. In this model there is nothing left to choose: its weights are on
their grids already, so that whoever quantizes it on those grids gets the plan's codes.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qkit.errors import GraphError, PlanError
from qkit.execution.lanes import lane_bias, lane_weight
from qkit.graph import Graph, assemble, table
from qkit.graph.operation import Operation
from qkit.graph.weighted import ungrouped
from qkit.quant.plan import Plan


class ScaleAndShift(nn.Module):
    """What is left of a batch norm that no layer in front of it can take up."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.register_buffer("offset", offset)

    def forward(self, x: Tensor) -> Tensor:
        """Channels of `x`, scaled and moved."""
        shape = (1, -1, *([1] * (x.ndim - 2)))
        return x * self.scale.view(shape) + self.offset.view(shape)


def written(model: nn.Module, inputs: tuple[Any, ...], graph: Graph, plan: Plan) -> nn.Module:
    """A copy of the model in evaluation mode with the plan's weights and biases in it; module paths stay.

    Raises
    ------
    PlanError
        If a layer that is called repeatedly would need several biases.
    """
    copied = assemble(model, inputs, device=graph.device, leaf_modules=graph.leaf_modules).model
    plain = replace(plan, bias_bits=None)
    weighted = [op for op in graph.operations if op.weight is not None]
    for first in {op.weight: op for op in reversed(weighted)}.values():
        calls = [op for op in weighted if op.weight == first.weight]
        bias, rounded = (lane_bias(graph, first, p) for p in (plain, plan))
        for op in calls:
            if not _equal(bias, lane_bias(graph, op, plain)):
                raise PlanError(
                    f"{op.layer} is called repeatedly, and the plan needs another bias for {op.name} than for {first.name}: "
                    "give each call a module of its own."
                )
        # calls on inputs of different scales round one bias differently: then it is left to whoever quantizes
        same = all(_equal(rounded, lane_bias(graph, op, plan)) for op in calls)
        _write(copied, first, lane_weight(graph, plan, first.weight or ""), rounded if same else bias)
    return copied


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def _write(model: nn.Module, op: Operation, weight: Tensor, bias: Tensor | None) -> None:
    weight, bias = weight.detach().clone().contiguous(), None if bias is None else bias.detach().clone()
    if op.computed or op.folded not in {(), ("batch",)}:
        raise PlanError(
            f"{op.name} has a weight that its forward computes, or scales behind it: the plan's weight cannot be written into "
            "the model. Fold the forward's arithmetic into the weight first."
        )
    if op.groups > 1:
        weight = ungrouped(weight, op.groups)
    if ":" in op.name:
        _replace(model, op.weight or "", weight)
        if bias is not None and op.bias is None:
            raise PlanError(f"{op.name} is a function call without bias: its corrected bias has no place in the model.")
        if bias is not None:
            _replace(model, op.bias or "", bias)
    elif op.kind == "batchnorm":
        model.set_submodule(op.layer, ScaleAndShift(weight, torch.zeros_like(weight) if bias is None else bias))
    else:
        module = model.get_submodule(op.layer)
        module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
        module.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))
        if op.norm is not None:
            _without_norm(model, op)


def _without_norm(model: nn.Module, op: Operation) -> None:
    """Leave out the batch norm that is in the weight; one with more in its forward than that gets numbers that change nothing."""
    norm: Any = model.get_submodule(op.norm or "")
    if table.module_operation(type(norm)) == "batch_norm":
        model.set_submodule(op.norm or "", nn.Identity())
        return
    numbers = {"running_mean": 0.0, "running_var": 1.0 - float(getattr(norm, "eps", 0.0)), "weight": 1.0, "bias": 0.0}
    if not all(isinstance(getattr(norm, name, torch.empty(0)), (Tensor, type(None))) for name in numbers) or not hasattr(
        norm, "eps"
    ):
        raise PlanError(f"{op.norm}: the batch norm folded into {op.name} cannot be taken out of the model.")
    with torch.no_grad():
        for name, number in numbers.items():
            if getattr(norm, name, None) is not None:
                getattr(norm, name).fill_(number)


def _replace(model: nn.Module, path: str, value: Tensor) -> None:
    """The parameter or buffer of that path gets the value; the model is a copy of our own."""
    holder: Any = model
    *parents, last = path.split(".")
    for part in parents:
        holder = getattr(holder, part)
    with torch.no_grad():
        getattr(holder, last).copy_(value)


def exported(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The model as an exported program's module; the batch size is left open where the network allows it.

    Raises
    ------
    GraphError
        If torch cannot export the model.
    """
    pairs = tuple(torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and len(x) == 1 else x for x in inputs)
    sizes = tuple({0: torch.export.Dim("batch")} if isinstance(x, Tensor) and x.ndim else None for x in pairs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(model, pairs, dynamic_shapes=sizes).module()
        except Exception as error:
            first = error
        try:
            return torch.export.export(model, inputs).module()
        except Exception:
            reason = next((line for line in str(first).splitlines() if line.strip()), type(first).__name__)
            raise GraphError(f"{type(model).__name__} cannot be exported by torch.export: {reason}") from first
