"""Blocks of several modules, known by what they compute and not by where they come from."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from qkit.errors import GraphError
from qkit.graph.fronts.tracing import trace
from qkit.graph.table import short_name
from qkit.surgery.rule import Outcome, Refused, Replacement

_GATES = frozenset({"sigmoid", "hardsigmoid"})
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Linear)
#: A gate has two layers with weights, one more where the pooled tensor is projected.
_MOST_WEIGHTED = 4


def squeeze_excitation(module: nn.Module) -> Outcome:
    """A module that scales its input by a gate computed from its pooled self becomes the identity."""
    return Replacement(nn.Identity(), "Identity", exact=False) if is_squeeze_excitation(module) else None


def is_squeeze_excitation(module: nn.Module) -> bool:
    """Whether the module returns its input times a sigmoid of layers of its input's global mean."""
    weighted = sum(isinstance(m, _WEIGHTED) for m in module.modules())
    if isinstance(module, _WEIGHTED) or not 1 <= weighted <= _MOST_WEIGHTED:
        return False
    try:
        traced = trace(module)
    except GraphError:
        return False
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder" and n.users]
    result = next(n for n in traced.graph.nodes if n.op == "output").args[0]
    if len(placeholders) != 1 or not isinstance(result, fx.Node):
        return False
    return any(
        other is placeholders[0] and is_gate(gate, placeholders[0], traced) for other, gate in _factors(result)
    )  # fmt: skip


def _factors(node: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
    """Both orders of a product's two operands; none if it is no product of two tensors."""
    if node.target not in (operator.mul, operator.imul, torch.mul, "mul", "mul_") or len(node.all_input_nodes) != 2:
        return []
    a, b = node.all_input_nodes
    return [(a, b), (b, a)]


def is_gate(node: fx.Node, source: fx.Node, traced: fx.GraphModule) -> bool:
    """Whether the node is a sigmoid of what pools alone let through from `source`, with weights on the way."""
    while _name(node, traced) in {"expandas", "expand", "view", "reshape", "unsqueeze"}:
        node = node.all_input_nodes[0]
    if _name(node, traced) not in _GATES:
        return False
    queue, pooled, weighted = list(node.all_input_nodes), False, False
    seen: set[fx.Node] = set()
    while queue:
        at = queue.pop()
        if at is source:
            if not seen or not pooled:
                return False
            continue
        if at in seen or at.op == "get_attr":
            continue
        seen.add(at)
        if _is_shape(at):
            continue
        weighted |= isinstance(_module(at, traced), _WEIGHTED) or _name(at, traced) in {"linear", "conv2d", "conv1d"}
        if _is_global_pool(at, traced):
            if source not in at.all_input_nodes:
                return False
            pooled = True
            continue
        if at.op == "placeholder" or source in at.all_input_nodes:
            return False  # it reads the tensor itself, not its mean
        queue += at.all_input_nodes
    return pooled and weighted


def _is_shape(node: fx.Node) -> bool:
    return _plain(node.target) in {"size", "getattr", "getitem"} and node.op != "call_module"


def _is_global_pool(node: fx.Node, traced: fx.GraphModule) -> bool:
    module = _module(node, traced)
    if isinstance(module, nn.AdaptiveAvgPool2d):
        return all(n == 1 for n in _numbers(module.output_size))
    name = _name(node, traced)
    if name == "adaptiveavgpool2d":
        size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
        return all(n == 1 for n in _numbers(size))
    return name == "mean" and node.op != "call_module"


def _numbers(size: Any) -> tuple[Any, ...]:
    return tuple(size) if isinstance(size, Sequence) else (size,)


def _module(node: fx.Node, traced: fx.GraphModule) -> nn.Module | None:
    return traced.get_submodule(str(node.target)) if node.op == "call_module" else None


def _name(node: fx.Node, traced: fx.GraphModule) -> str:
    module = _module(node, traced)
    return type(module).__name__.lower() if module is not None else _plain(node.target)


def _plain(target: Any) -> str:
    return short_name(target).replace("_", "").lower()


def convnext_block(module: nn.Module) -> Outcome:
    """Depthwise convolution, layer norm, two linear layers over the last axis: the same in convolutions and a batch norm.

    The weights are kept; the batch norm takes the layer norm's scale and shift and learns its statistics in training.
    """
    if not isinstance(module, nn.Sequential) or len(module) != 7:
        return None
    conv, there, norm, wide, act, narrow, back = module
    fits = (
        isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels == conv.out_channels
        and isinstance(norm, nn.LayerNorm) and isinstance(wide, nn.Linear) and isinstance(narrow, nn.Linear)
        and _dims(there) == (0, 2, 3, 1) and _dims(back) == (0, 3, 1, 2) and not any(True for _ in act.parameters())
    )  # fmt: skip
    if not fits:
        return None
    made = nn.Sequential(conv, batch_norm_like(norm), pointwise(wide), act, pointwise(narrow))  # type: ignore[arg-type]
    return Replacement(made, "depthwise Conv2d, BatchNorm2d, 1×1 Conv2d, activation, 1×1 Conv2d", exact=False)


def layer_norm_2d(module: nn.Module) -> Outcome:
    """A layer norm over the channels of images, as ConvNeXt has between its stages: a batch norm."""
    if not isinstance(module, nn.LayerNorm) or type(module).forward is nn.LayerNorm.forward:
        return None
    if "2d" not in type(module).__name__ or len(module.normalized_shape) != 1:
        return Refused("it is a layer norm of its own kind; replace it by hand if its input is (N, C, H, W)")
    return Replacement(batch_norm_like(module), "BatchNorm2d", exact=False)


def _dims(module: nn.Module) -> tuple[int, ...] | None:
    dims = getattr(module, "dims", None)
    return tuple(dims) if type(module).__name__ == "Permute" and isinstance(dims, Sequence) else None


def batch_norm_like(norm: nn.LayerNorm) -> nn.BatchNorm2d:
    """A batch norm of the layer norm's scale and shift, its statistics not learnt yet."""
    affine = norm.weight is not None
    made = nn.BatchNorm2d(norm.normalized_shape[0], eps=norm.eps, affine=affine)
    if affine:
        made = made.to(norm.weight.device, norm.weight.dtype)
        made.weight = norm.weight
        if norm.bias is not None:
            made.bias = norm.bias
    return made


def pointwise(linear: nn.Linear) -> nn.Conv2d:
    """The linear layer over channels as a convolution of 1×1."""
    made = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, device="meta")
    made.weight = nn.Parameter(linear.weight.detach()[:, :, None, None].clone(), requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        made.bias = linear.bias
    return made
