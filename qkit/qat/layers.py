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

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qkit import operations as ops
from qkit.numerics import quantize_bias, wrap_around
from qkit.qat.quantizers import TapQuantizer, WeightQuantizer
from qkit.qat.rounding import straight_through

#: Scales of batch norm nearer to zero than this have no weight that could be scaled back.
_TINY = 1e-12
#: Share of a channel's energy from which on its rounding error is too much for the rounded weight's statistics.
_NOISY = 0.01


@dataclass(frozen=True)
class Layer:
    """What a weighted step is made of, by name; modules are looked up as it runs, so that copies and replicas run their own.

    Attributes
    ----------
    kind
        "conv", "conv-transpose", "linear" or "batchnorm" (one that stands alone).
    module
        Path of the module, None for a functional call.
    weight, bias
        Paths of weight and bias of a functional call.
    function, settings
        The functional call, and its arguments but for input, weight and bias.
    norm
        Path of the batch norm that is folded in, or stands alone.
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
    module: str | None
    norm: str | None = None
    weight: str | None = None
    bias: str | None = None
    function: Callable[..., Any] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: str | None = None
    source: str | None = None
    bias_bits: int | None = None
    accumulator_bits: int | None = None
    channel_axis: int = 1


def fetch(model: nn.Module, path: str | None) -> Any:
    """The attribute of that path, None for None."""
    value: Any = model
    if path is None:
        return None
    for part in path.split("."):
        value = getattr(value, part)
    return value


def parts(layer: Layer, model: nn.Module) -> tuple[Callable[..., Any], Tensor, Tensor | None, Any]:
    """``call(x, weight, bias)``, the unfolded weight and bias, and the batch norm, None if there is none."""
    norm = fetch(model, layer.norm)
    if layer.kind == "batchnorm":
        return _scale_and_shift, norm.weight, norm.bias, norm
    if layer.module is None:
        assert layer.function is not None
        function, settings = layer.function, layer.settings
        return (lambda x, w, b: function(x, w, b, **settings)), fetch(model, layer.weight), fetch(model, layer.bias), None
    module = model.get_submodule(layer.module)
    return ops.weighted_call(module), module.weight, module.bias, norm  # type: ignore[return-value]


def folded(layer: Layer, weight: Tensor, bias: Tensor | None, norm: Any) -> tuple[Tensor, Tensor | None]:
    """Weight and bias with the running statistics folded in: torch's and the kit's arithmetic, in their order."""
    if norm is None:
        return weight, bias
    gamma = torch.ones_like(norm.running_mean) if norm.weight is None else norm.weight
    beta = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias
    root = torch.rsqrt(norm.running_var + norm.eps)
    if layer.kind == "batchnorm":
        offset = -norm.running_mean * root
        return (root, offset) if norm.weight is None else (root * gamma, offset * gamma + beta)
    shift = torch.zeros_like(norm.running_mean) if bias is None else bias
    if layer.kind == "linear":
        scale = gamma * root
        return weight * scale.unsqueeze(-1), (shift - norm.running_mean) * scale + beta
    return weight * (gamma * root).reshape(_along(layer, weight)), (shift - norm.running_mean) * root * gamma + beta


def run_layer(
    layer: Layer, model: nn.Module, x: Tensor, quantizer: WeightQuantizer | None, source: TapQuantizer | None
) -> Tensor:
    """The layer's output before its activation: the float module's, with weight and bias on their grids."""
    call, weight, bias, norm = parts(layer, model)
    if norm is not None and norm.training:
        if quantizer is None:
            return norm(x if layer.kind == "batchnorm" else call(x, weight, bias))  # type: ignore[no-any-return]
        if layer.kind == "batchnorm":
            return _norm_alone(x, norm, quantizer)
        return _normalized(layer, call, x, weight, bias, norm, quantizer)
    weight, bias = folded(layer, weight, bias, norm)
    if quantizer is None:
        return call(x, weight, bias)  # type: ignore[no-any-return]
    weight, scale = quantizer.rounded(weight)
    step = None if source is None else source.grid()[0].detach().double() * scale.detach().double()
    if bias is not None and step is not None and layer.bias_bits is not None:
        bias = straight_through(bias, quantize_bias(bias.detach(), step, layer.bias_bits))
    y: Tensor = call(x, weight, bias)
    if step is not None and layer.accumulator_bits is not None:
        axis = None if step.ndim == 0 else layer.channel_axis
        y = straight_through(y, wrap_around(y.detach(), step, layer.accumulator_bits, axis))
    return y


def _along(layer: Layer, weight: Tensor) -> list[int]:
    """The shape in which numbers per output channel broadcast to the weight."""
    axis = 1 if layer.kind == "conv-transpose" else 0
    return [-1 if dim == axis else 1 for dim in range(weight.ndim)]


def _normalized(
    layer: Layer, call: Callable[..., Any], x: Tensor, weight: Tensor, bias: Tensor | None, norm: Any, quantizer: WeightQuantizer
) -> Tensor:
    """Batch norm on the batch's statistics behind a weight that is rounded as the running ones scale it."""
    with torch.no_grad():
        root = torch.rsqrt(norm.running_var + norm.eps)
        scale = (root if norm.weight is None else norm.weight * root).reshape(_along(layer, weight))
        lost = scale.abs() < _TINY
        divisor = torch.where(lost, 1.0, scale)
    scaled = weight * scale
    rounded = quantizer(scaled)
    if _little_is_left(rounded.detach(), scaled.detach(), 1 if layer.kind == "conv-transpose" else 0):
        error = rounded - scaled
        if quantizer.covers_all:
            error = error.detach()  # every weight is on the grid, and the gradient of round(w) - w is zero
        return norm(call(x, weight, bias)) + call(x, error, None)  # type: ignore[no-any-return]
    return norm(call(x, torch.where(lost, weight, rounded / divisor), bias))  # type: ignore[no-any-return]


def _little_is_left(rounded: Tensor, weight: Tensor, axis: int) -> bool:
    """Whether the rounding error has more than `_NOISY` of some channel's energy."""
    others = [dim for dim in range(weight.ndim) if dim != axis]
    error = (rounded - weight).square().sum(others)
    return bool((error > _NOISY * weight.square().sum(others)).any())


def _norm_alone(x: Tensor, norm: Any, quantizer: WeightQuantizer) -> Tensor:
    """A batch norm without a convolution: its scale is rounded as a weight, its output goes by the batch's statistics."""
    with torch.no_grad():
        root = torch.rsqrt(norm.running_var + norm.eps)
        scale = root if norm.weight is None else norm.weight * root
        lost = scale.abs() < _TINY
        divisor = torch.where(lost, 1.0, scale)
    share = torch.where(lost, 1.0, quantizer(scale) / divisor).view(1, -1, *([1] * (x.ndim - 2)))
    y: Tensor = norm(x)
    if norm.bias is None:
        return y * share
    beta: Tensor = norm.bias.view(share.shape)
    return (y - beta) * share + beta


def _scale_and_shift(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    shape = (1, -1, *([1] * (x.ndim - 2)))
    scaled: Tensor = x * weight.view(shape)
    return scaled if bias is None else scaled + bias.view(shape)
