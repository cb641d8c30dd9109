"""Convolutions and linear layers in training, batch norm folded in.

An engine computes with weights into which batch norm is folded, so it is those that have to be rounded. In training, batch norm
normalizes with the batch's own statistics, which differ from batch to batch; rounding weights that were scaled by them would make
the noise of rounding jump with every batch. So the weight is scaled by gamma / sqrt(running variance) and rounded, as it will be
at inference, and the outputs are those of batch norm on the batch (Jacob et al. 2018, section 3.2; Krishnamoorthi 2018, section
3.2.3), in one of two ways:

- The rounded weight is scaled back and takes the weight's place, and batch norm follows as in float training. That is cheap, and
  the statistics are those of the rounded weight.
- Where rounding leaves little of a channel (a step shared with channels hundreds of times larger), these would be statistics of
  noise: the variance of a channel rounded to zero is zero, and the next scale infinite. There the weight stays in float, and so
  do its statistics, and what rounding does at inference is added behind: ``norm(conv(x, w)) + conv(x, round(s w) - s w)``.

Once a batch norm is in evaluation mode, in training when it is frozen, its running statistics are folded in by the very
arithmetic of `qkit.graph`, so that the weights' codes are those of the kit's lanes bit for bit. Biases are on the accumulator's
grid then; with the batch's statistics there is no bias yet that could be rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.graph.normal_form.fixed_norms import Norm, Recipe, together
from qkit.graph.table import module_operation
from qkit.graph.weighted import grouped
from qkit.qat.quantizers import TapQuantizer, WeightQuantizer
from qkit.qat.straight_through import straight_through
from qkit.quant.grids import quantize_bias, wrap_around

#: Scales of batch norm nearer to zero than this have no weight that could be scaled back.
_TINY = 1e-12
#: Share of a channel's energy from which on its rounding error is too much for the rounded weight's statistics.
_NOISY = 0.01


@dataclass(frozen=True)
class Layer:
    """What a weighted step is made of but for its numbers, which other instructions give.

    Attributes
    ----------
    kind
        "conv", "conv-transpose", "linear" or "batchnorm" (a norm that stands alone).
    function
        ``function(x, weight, bias)``.
    norm
        Path of the batch norm that is folded in, or stands alone; None where there is none.
    norms
        How to make the norms of their numbers, in order.
    axis, groups
        Of the output channels in the weight, and of a grouped transposed convolution; see `qkit.graph.weighted.grouped`.
    rounds
        Name of the weight's grid, None where it stays float.
    source
        Name of the input's grid where the bias or the accumulator goes by it, else None.
    bias_bits, accumulator_bits
        As in `Plan`; None where they do not apply.
    channel_axis
        Of the output.
    """

    kind: str
    function: Callable[..., Any]
    norm: str | None = None
    norms: tuple[Recipe, ...] = ()
    axis: int = 0
    groups: int = 1
    rounds: str | None = None
    source: str | None = None
    bias_bits: int | None = None
    accumulator_bits: int | None = None
    channel_axis: int = 1


@dataclass(frozen=True)
class Numbers:
    """A layer's parameters as they are now: unfolded weight and bias, and for each norm its numbers (see `Recipe.sources`)."""

    weight: Tensor | None
    bias: Tensor | None
    norms: Sequence[Sequence[Any]] = ()


def fetch(model: nn.Module, path: str | None) -> Any:
    """The attribute of that path, None for None."""
    value: Any = model
    if path is None:
        return None
    for part in path.split("."):
        value = getattr(value, part)
    return value


def folded(layer: Layer, numbers: Numbers) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with all norms folded in, their running statistics among them: the kit's own arithmetic."""
    norms = [recipe.norm(values) for recipe, values in zip(layer.norms, numbers.norms, strict=True)]
    if layer.kind == "batchnorm":
        return together(norms)
    return _with_norms(layer, _rows(layer, numbers.weight), numbers.bias, norms)


def _rows(layer: Layer, weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight if layer.groups == 1 else grouped(weight, layer.groups)


def _with_norms(layer: Layer, weight: Tensor, bias: Tensor | None, norms: Sequence[Norm]) -> tuple[Tensor, Tensor | None]:
    for norm in norms:
        weight, bias = norm.fold(weight, bias, layer.axis, linear=layer.kind == "linear")
    return weight, bias


def run_layer(
    layer: Layer, model: nn.Module, x: Tensor, numbers: Numbers, quantizer: WeightQuantizer | None, source: TapQuantizer | None
) -> Tensor:
    """The layer's output before its activation: the float network's, with weight and bias on their grids."""
    batch = next((i for i, recipe in enumerate(layer.norms) if recipe.how == "batch"), None)
    if batch is not None and fetch(model, layer.norm).training:
        if layer.kind == "batchnorm":
            return _norm_alone(layer, model, x, numbers, quantizer)
        return _normalized(layer, model, x, numbers, quantizer, batch)
    weight, bias = folded(layer, numbers)
    if quantizer is None:
        return layer.function(x, weight, bias)  # type: ignore[no-any-return]
    weight, scale = quantizer.rounded(weight)
    step = None if source is None else source.grid()[0].detach().double() * scale.detach().double()
    if bias is not None and step is not None and layer.bias_bits is not None:
        bias = straight_through(bias, quantize_bias(bias.detach(), step, layer.bias_bits))
    y: Tensor = layer.function(x, weight, bias)
    if step is not None and layer.accumulator_bits is not None:
        axis = None if step.ndim == 0 else layer.channel_axis
        y = straight_through(y, wrap_around(y.detach(), step, layer.accumulator_bits, axis))
    return y


def _along(rank: int, axis: int) -> list[int]:
    """The shape in which numbers per channel broadcast to a tensor of that rank."""
    return [-1 if dim == axis % rank else 1 for dim in range(rank)]


def _on_the_batch(layer: Layer, model: nn.Module, y: Tensor, recipe: Recipe, values: Sequence[Any], axis: int) -> Tensor:
    """Batch norm with the batch's statistics along `axis`; the running ones follow it."""
    norm = fetch(model, layer.norm)
    if type(norm) is nn.SyncBatchNorm and axis == 1:
        return norm(y)  # type: ignore[no-any-return]
    mean, variance, gamma, beta = values
    momentum = recipe.momentum
    if module_operation(type(norm)) == "batch_norm" and isinstance(norm.num_batches_tracked, Tensor):
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            momentum = 1.0 / float(norm.num_batches_tracked)
    moved = y if axis == 1 else y.movedim(axis, 1)
    result = F.batch_norm(moved, mean, variance, gamma, beta, True, 0.1 if momentum is None else momentum, recipe.eps)
    return result if axis == 1 else result.movedim(1, axis)


def _normalized(
    layer: Layer, model: nn.Module, x: Tensor, numbers: Numbers, quantizer: WeightQuantizer | None, batch: int
) -> Tensor:
    """Batch norm on the batch's statistics behind a weight that is rounded as the running ones scale it."""
    norms = [recipe.norm(values) for recipe, values in zip(layer.norms, numbers.norms, strict=True)]
    weight, bias = _with_norms(layer, _rows(layer, numbers.weight), numbers.bias, norms[:batch])
    behind = norms[batch + 1 :]

    def finish(y: Tensor) -> Tensor:
        y = _on_the_batch(layer, model, y, layer.norms[batch], numbers.norms[batch], layer.channel_axis)
        for norm in behind:
            scale, shift = norm.scale, norm.shift
            if norm.mean is not None:
                scale, shift = norm.alone()
            shape = _along(y.ndim, layer.channel_axis)
            y = y if scale is None else y * scale.view(shape)
            y = y if shift is None else y + shift.view(shape)
        return y

    if quantizer is None:
        return finish(layer.function(x, weight, bias))
    with torch.no_grad():
        scale = torch.ones(weight.shape[layer.axis], device=weight.device)
        for norm in norms[batch:]:
            scale = scale * (norm.alone()[0] if norm.mean is not None else 1.0 if norm.scale is None else norm.scale)
        scale = scale.reshape(_along(weight.ndim, layer.axis))
        lost = scale.abs() < _TINY
        divisor = torch.where(lost, 1.0, scale)
    scaled = weight * scale
    rounded = quantizer(scaled)
    if _little_is_left(rounded.detach(), scaled.detach(), layer.axis):
        error = rounded - scaled
        if quantizer.covers_all:
            error = error.detach()  # every weight is on the grid, and the gradient of round(w) - w is zero
        return finish(layer.function(x, weight, bias)) + layer.function(x, error, None)  # type: ignore[no-any-return]
    return finish(layer.function(x, torch.where(lost, weight, rounded / divisor), bias))


def _little_is_left(rounded: Tensor, weight: Tensor, axis: int) -> bool:
    """Whether the rounding error has more than `_NOISY` of some channel's energy."""
    others = [dim for dim in range(weight.ndim) if dim != axis]
    error = (rounded - weight).square().sum(others)
    return bool((error > _NOISY * weight.square().sum(others)).any())


def _norm_alone(layer: Layer, model: nn.Module, x: Tensor, numbers: Numbers, quantizer: WeightQuantizer | None) -> Tensor:
    """A batch norm without a convolution: its scale is rounded as a weight, its output goes by the batch's statistics."""
    y = _on_the_batch(layer, model, x, layer.norms[0], numbers.norms[0], 1)
    if quantizer is None:
        return y
    with torch.no_grad():
        scale, _ = layer.norms[0].norm(numbers.norms[0]).alone()
        lost = scale.abs() < _TINY
        divisor = torch.where(lost, 1.0, scale)
    share = torch.where(lost, 1.0, quantizer(scale) / divisor).view(_along(x.ndim, 1))
    beta: Tensor | None = numbers.norms[0][3]
    if beta is None:
        return y * share
    return (y - beta.view(share.shape)) * share + beta.view(share.shape)
