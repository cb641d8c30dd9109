"""Norms with fixed statistics fold into the layer in front of them, in whatever clothes they come.

A batch norm in evaluation mode multiplies every channel by a number and adds another; so do a frozen norm's ``x * scale + bias``,
a layer scale, and the bias that somebody adds by hand. Where the layer's output is read by nothing else, an engine computes with
the product (Jacob et al. 2018, section 3.2). What cannot fold is a scale and an offset per channel of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qkit.graph.normal_form.form import NormalForm, name_of, operands, shape_of, sole_reader
from qkit.graph.table import KINDS, WEIGHTED, bound_arguments, weighted_arguments

_aten = torch.ops.aten
_SCALES = frozenset({"mul", "div"})
_SHIFTS = frozenset({"add", "sub"})


@dataclass(frozen=True)
class Norm:
    """A norm's numbers, per channel.

    Attributes
    ----------
    mean, variance, weight, bias, eps
        Of a batch norm; `weight` and `bias` None where it has none.
    scale, shift
        Of a product or a sum that was written by hand, where the others are None.
    """

    mean: Tensor | None = None
    variance: Tensor | None = None
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0
    scale: Tensor | None = None
    shift: Tensor | None = None

    def fold(self, weight: Tensor, bias: Tensor | None, axis: int, *, linear: bool = False) -> tuple[Tensor, Tensor | None]:
        """Weight and bias with the norm folded in, in the order of torch's own arithmetic (`torch.nn.utils.fusion`)."""
        along = [-1 if d == axis else 1 for d in range(weight.ndim)]
        if self.mean is None or self.variance is None:
            if self.scale is not None:
                weight = weight * self.scale.reshape(along)
                bias = None if bias is None else bias * self.scale
            if self.shift is not None:
                bias = self.shift if bias is None else bias + self.shift
            return weight, bias
        root = torch.rsqrt(self.variance + self.eps)
        gamma = torch.ones_like(self.mean) if self.weight is None else self.weight
        beta = torch.zeros_like(self.mean) if self.bias is None else self.bias
        shift = torch.zeros_like(self.mean) if bias is None else bias
        scale = gamma * root
        if linear:
            return weight * scale.reshape(along), (shift - self.mean) * scale + beta
        return weight * scale.reshape(along), (shift - self.mean) * root * gamma + beta

    def alone(self) -> tuple[Tensor, Tensor]:
        """Scale and offset per channel."""
        if self.mean is None or self.variance is None:
            known = self.shift if self.scale is None else self.scale
            assert known is not None
            scale = torch.ones_like(known) if self.scale is None else self.scale
            return scale, torch.zeros_like(known) if self.shift is None else self.shift
        scale = torch.rsqrt(self.variance + self.eps)
        offset = -self.mean * scale
        if self.weight is not None:
            offset, scale = offset * self.weight, scale * self.weight
        return scale, offset if self.bias is None else offset + self.bias


def together(norms: Sequence[Norm]) -> tuple[Tensor, Tensor]:
    """Scale and offset per channel of norms one behind the other."""
    scale, offset = norms[0].alone()
    for norm in norms[1:]:
        factor, shift = norm.alone()
        scale, offset = scale * factor, offset * factor + shift
    return scale, offset


@dataclass(frozen=True)
class Recipe:
    """A norm by where its numbers are, for whoever computes them anew.

    Attributes
    ----------
    how
        "batch" for a batch norm, "frozen" for one whose statistics no training changes; "scale", "inverse" (a division), "shift",
        "minus" or "from" (``c - x``) for one constant.
    sources
        Mean, variance, weight and bias of a batch norm or a frozen one, or the one constant; None where there is none.
    eps, momentum
        Of a batch norm or a frozen one.
    channels
        Number of channels.
    """

    how: str
    sources: tuple[Any, ...]
    channels: int
    eps: float = 0.0
    momentum: float | None = None

    def norm(self, values: Sequence[Any]) -> Norm:
        """The norm, from the values of its sources."""
        if self.how in {"batch", "frozen"}:
            mean, variance, weight, bias = values
            return Norm(mean, variance, weight, bias, self.eps)
        number = torch.as_tensor(values[0], dtype=torch.float32).reshape(-1)
        number = number.expand(self.channels) if number.numel() == 1 else number
        if self.how == "scale":
            return Norm(scale=number)
        if self.how == "inverse":
            return Norm(scale=1.0 / number)
        if self.how == "from":
            return Norm(scale=-torch.ones_like(number), shift=number)
        return Norm(shift=number if self.how == "shift" else -number)


def recipe_of(node: fx.Node, constants: Mapping[fx.Node, Any], axis: int = 1) -> Recipe | None:
    """How to get the numbers of a batch norm with fixed statistics, or of a product or sum with constants along `axis`."""
    if name_of(node) == "batch_norm":
        return None if axis != 1 else _batch_norm(node, constants)
    if name_of(node) not in _SCALES | _SHIFTS or len(operands(node)) != 2 or not _plain(node):
        return None
    x, other = operands(node)
    if other in constants or isinstance(other, (int, float)):
        first = True
    elif x in constants or isinstance(x, (int, float)):
        x, other, first = other, x, False
    else:
        return None
    if not isinstance(x, fx.Node) or x in constants or shape_of(x) != shape_of(node):
        return None
    if not _per_channel(constants.get(other, other), shape_of(node), axis):
        return None
    name = short_name_of(node)
    if name == "rsub":
        name, first = "sub", not first
    how = {"mul": "scale", "div": "inverse" if first else "", "add": "shift", "sub": "minus" if first else "from"}[name]
    return Recipe(how, (other,), shape_of(node)[axis]) if how else None


def norm_of(node: fx.Node, constants: Mapping[fx.Node, Any], axis: int = 1) -> Norm | None:
    """The numbers of what `recipe_of` finds."""
    recipe = recipe_of(node, constants, axis)
    return None if recipe is None else _made(recipe, constants)


def short_name_of(node: fx.Node) -> str:
    """Name of the operation; ``rsub`` where the operands are the other way round."""
    return "rsub" if isinstance(node.target, torch._ops.OpOverload) and "rsub" in str(node.target) else name_of(node)


def _plain(node: fx.Node) -> bool:
    return not any(value not in (None, 1) for value in node.kwargs.values())


def _batch_norm(node: fx.Node, constants: Mapping[fx.Node, Any]) -> Recipe | None:
    given = bound_arguments(node)
    parts = tuple(given.get(key) for key in ("running_mean", "running_var", "weight", "bias"))
    if given.get("training") or any(p is not None and p not in constants for p in parts) or parts[0] is None or parts[1] is None:
        return None
    how = "frozen" if node.meta.get("frozen") else "batch"
    return Recipe(how, parts, shape_of(node)[1], float(given["eps"]), given.get("momentum"))


def _per_channel(value: Any, shape: tuple[int, ...], axis: int) -> bool:
    """Whether the constant is a number, or one for every channel."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return bool(shape)
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.ndim > len(shape) or not shape:
        return False
    full = (1,) * (len(shape) - value.ndim) + tuple(value.shape)
    return value.numel() == 1 or full == tuple(shape[axis] if d == axis % len(shape) else 1 for d in range(len(shape)))


@dataclass(frozen=True)
class Fold:
    """Norms that fold into a weighted call, in order, with their nodes, and the last node that is part of the layer then.

    `apart` are calls that only move elements and lie between the layer and a norm: they stay, and read the folded layer.
    """

    norms: tuple[Norm, ...]
    recipes: tuple[Recipe, ...]
    nodes: tuple[fx.Node, ...]
    final: fx.Node
    apart: tuple[fx.Node, ...] = ()


def folds_of(form: NormalForm, constants: Mapping[fx.Node, Any]) -> dict[fx.Node, Fold]:
    """What folds into each weighted call with a constant weight."""
    shared: dict[Any, dict[fx.Node, Fold]] = {}
    for node in form.calls:
        if KINDS.get(name_of(node)) in WEIGHTED and weighted_arguments(node).get("weight") in constants and node not in constants:
            shared.setdefault(weighted_arguments(node)["weight"], {})[node] = _fold(node, constants)
    found = {}
    for folds in shared.values():
        # a weight that several calls share would be several weights once norms are in it that differ
        same = {(fold.recipes, weighted_arguments(node).get("bias"), bool(fold.apart)) for node, fold in folds.items()}
        if len(folds) == 1 or len(same) == 1:
            found.update({node: fold for node, fold in folds.items() if fold.norms})
    return found


def _fold(node: fx.Node, constants: Mapping[fx.Node, Any]) -> Fold:
    axis = len(shape_of(node)) - 1 if KINDS[name_of(node)] == "linear" else _channel(node)
    recipes: list[Recipe] = []
    nodes: list[fx.Node] = []
    final = node
    apart: list[fx.Node] = []
    waiting: list[fx.Node] = []
    current = node
    while True:
        reader = sole_reader(current)
        if reader is None or (operands(reader)[0] is not current and current not in operands(reader)):
            break
        frozen = frozen_norm(reader, constants, axis)
        recipe = recipe_of(reader, constants, axis) if frozen is None else frozen[0]
        if recipe is not None and (not waiting or recipe.how not in {"shift", "minus"}):
            recipes.append(recipe)
            nodes += [reader] if frozen is None else [reader, frozen[1]]
            apart += waiting
            waiting = []
            final = current = nodes[-1]
            continue
        moved = moved_axis(reader, axis) if len(reader.all_input_nodes) == 1 else None
        if moved is None:
            break
        if KINDS.get(name_of(reader)) != "drop":
            waiting.append(reader)
        axis, current = moved, reader
    norms = tuple(_made(recipe, constants) for recipe in recipes)
    return Fold(norms, tuple(recipes), tuple(nodes), final if not apart else node, tuple(apart))


def frozen_norm(node: fx.Node, constants: Mapping[fx.Node, Any], axis: int) -> tuple[Recipe, fx.Node] | None:
    """``x * scale + shift``, scale ``weight * rsqrt(variance + eps)``, shift ``bias - mean * scale``; and the sum's node.

    That is how frozen batch norms are written (torchvision's ``FrozenBatchNorm2d``); told apart from any other scale and offset,
    it folds by the very arithmetic of a batch norm.
    """
    behind = sole_reader(node)
    if name_of(node) != "mul" or behind is None or name_of(behind) != "add" or recipe_of(node, constants, axis) is None:
        return None
    if recipe_of(behind, constants, axis) is None:
        return None
    scale = next((a for a in operands(node) if a in constants), None)
    shift = next((a for a in operands(behind) if a in constants), None)
    whole, offset = _through_views(scale), _through_views(shift)
    if not _calls(whole, "mul") or not _calls(offset, "sub"):
        return None
    beta, moved = operands(offset)[:2]
    root = next((a for a in operands(whole) if _calls(_through_views(a), "rsqrt")), None)
    if root is None or not _calls(_through_views(moved), "mul"):
        return None
    gamma = next((a for a in operands(whole) if a is not root), None)
    parts = operands(_through_views(moved))
    mean = next((a for a in parts if _through_views(a) is not whole), None)
    added = _through_views(operands(_through_views(root))[0])
    if mean is None or all(_through_views(a) is not whole for a in parts) or not _calls(added, "add"):
        return None
    variance, eps = operands(added)[:2]
    sources = [_through_views(a) for a in (mean, variance, gamma, beta)]
    channels = shape_of(node)[axis]
    if not isinstance(eps, float) or any(a not in constants or constants[a].numel() != channels for a in sources):
        return None
    return Recipe("frozen", tuple(sources), channels, eps), behind


def _calls(node: Any, name: str) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and name_of(node) == name


def _through_views(node: Any) -> Any:
    while any(_calls(node, name) for name in ("reshape", "view", "unsqueeze", "to", "clone")):
        node = operands(node)[0]
    return node


def _made(recipe: Recipe, constants: Mapping[fx.Node, Any]) -> Norm:
    values = [constants[s] if isinstance(s, fx.Node) else s for s in recipe.sources]
    return recipe.norm([v.reshape(-1) if isinstance(v, Tensor) else v for v in values])


def _channel(node: fx.Node) -> int:
    weight = weighted_arguments(node)["weight"]
    return len(shape_of(node)) - (len(shape_of(weight)) - 2) - 1


def moved_axis(node: fx.Node, axis: int) -> int | None:
    """Where an axis of the input is in the output of a call that only moves elements; None where it is split, merged or lost."""
    name = name_of(node)
    if not operands(node) or not isinstance(operands(node)[0], fx.Node):
        return None
    before, after = shape_of(operands(node)[0]), shape_of(node)
    if not before or not after:
        return None
    if KINDS.get(name) == "drop" or name in {"contiguous", "clone", "to"}:
        return axis if before == after else None
    if name == "permute":
        order = [int(d) % len(before) for d in operands(node)[1]]
        return order.index(axis)
    if name in {"transpose", "swapaxes", "swapdims"}:
        a, b = (int(d) % len(before) for d in operands(node)[1:3])
        return b if axis == a else a if axis == b else axis
    if name in {"view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "reshape_as", "view_as"}:
        return reshaped_axis(before, after, axis)
    return None


def reshaped_axis(before: tuple[int, ...], after: tuple[int, ...], axis: int) -> int | None:
    """The axis of the new shape that runs over the same elements as `axis` of the old one, None where there is none."""
    ahead = math.prod(before[:axis])
    for i, size in enumerate(after):
        if size == before[axis] and math.prod(after[:i]) == ahead and (size != 1 or i == axis):
            return i
    return None
