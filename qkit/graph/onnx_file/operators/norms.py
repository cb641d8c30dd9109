"""Normalizations and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call, as_weight
from qkit.graph.onnx_file.values import TorchCall, Value


def batch_norm(call: Call) -> TorchCall:
    call.only(training_mode=0, spatial=1)
    if call.opset < 14 and call.written > 1:
        # in those opsets the outputs say it, whether they are read or not
        raise call.refuse(
            "it has the outputs of training, and takes its statistics from the batch: export the network in eval mode."
        )
    call.only_first_output()
    for index in range(1, 5):
        if not call.value(index).constant:
            raise call.refuse(f"its input {call.value(index).name!r} is not a constant: export the network in eval mode.")
    x, scale, bias = (call.value(index) for index in range(3))
    # exporters store equal tensors once: statistics stay buffers where they are some layer's weights too
    statistics = [call.value(index).variant("statistics", torch.clone) for index in (3, 4)]
    return call.torch(
        F.batch_norm, x, *statistics, as_weight(scale), as_weight(bias), training=False, eps=call.attribute("epsilon", 1e-5)
    )


def instance_norm(call: Call) -> TorchCall:
    return call.torch(normalize_instances, call.value(0), call.weight(1), call.weight(2), eps=call.attribute("epsilon", 1e-5))


def normalize_instances(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float) -> Tensor:
    """`F.instance_norm` with the operands in ONNX's order."""
    return F.instance_norm(x, weight=weight, bias=bias, eps=eps)


def layer_norm(call: Call) -> TorchCall:
    call.only_first_output()
    x, scale, bias = call.value(0), call.value(1), call.get(2)
    axis = call.axis(0, call.attribute("axis", -1))
    shape = tuple(call.static(0, i) for i in range(axis, call.rank(0)))
    eps = call.attribute("epsilon", 1e-5)
    if all(v is None or (v.constant and v.at(0).numel() in {1, torch.Size(shape).numel()}) for v in (scale, bias)):
        weights = [None if v is None else as_weight(_shaped(v, shape)) for v in (scale, bias)]
        return call.torch(normalize_layers, x, *weights, shape=shape, eps=eps)
    return call.torch(normalize_and_scale, x, scale, bias, shape=shape, eps=eps)


def _shaped(value: Value, shape: tuple[int, ...]) -> Value:
    if tuple(value.at(0).shape) == shape:
        return value
    return value.variant(("shaped", shape), lambda x: (x.reshape(shape) if x.numel() > 1 else x.expand(shape)).contiguous())


def normalize_layers(x: Tensor, weight: Tensor | None, bias: Tensor | None, *, shape: Sequence[int], eps: float) -> Tensor:
    """`F.layer_norm` with the operands first."""
    return F.layer_norm(x, shape, weight, bias, eps)


def normalize_and_scale(x: Tensor, weight: Tensor, bias: Tensor | None, *, shape: Sequence[int], eps: float) -> Tensor:
    """Layer norm with a scale that is broadcast."""
    scaled = F.layer_norm(x, shape, None, None, eps) * weight
    return scaled if bias is None else scaled + bias


def group_norm(call: Call) -> TorchCall:
    groups = call.needed("num_groups")
    channels = call.static(0, 1)
    weights = []
    for index in (1, 2):
        value = call.value(index)
        if value.at(0).numel() == groups != channels:
            # before opset 21 there was one scale a group
            if not value.constant:
                raise call.refuse(f"its {value.name!r} has one number a group and is not a constant. Export at opset 21.")
            value = value.variant(("channels", channels), lambda x: x.repeat_interleave(channels // groups))
        weights.append(as_weight(value))
    return call.torch(normalize_groups, call.value(0), *weights, groups=groups, eps=call.attribute("epsilon", 1e-5))


def normalize_groups(x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float) -> Tensor:
    """`F.group_norm` with the operands first."""
    return F.group_norm(x, groups, weight, bias, eps)


def mean_variance_norm(call: Call) -> TorchCall:
    axes = tuple(call.axis(0, axis) for axis in call.attribute("axes", [0, 2, 3]))
    for axis in axes:
        call.static(0, axis)
    return call.torch(normalize_over, call.value(0), axes=axes)


def normalize_over(x: Tensor, *, axes: tuple[int, ...]) -> Tensor:
    """Zero mean and unit variance over these axes."""
    centered = x - x.mean(axes, keepdim=True)
    deviation = (centered * centered).mean(axes, keepdim=True).sqrt()
    return centered / (deviation + 1e-9)


def local_response_norm(call: Call) -> TorchCall:
    size = call.needed("size")
    if size % 2 == 0:
        raise call.refuse(f"size={size} is even, and only odd sizes are supported.")
    settings = {"size": size, "alpha": call.attribute("alpha", 1e-4), "beta": call.attribute("beta", 0.75)}
    return call.torch(F.local_response_norm, call.value(0), k=call.attribute("bias", 1.0), **settings)


def lp_norm(call: Call) -> TorchCall:
    axis, order = call.axis(0, call.attribute("axis", -1)), call.attribute("p", 2)
    return call.torch(divide_by_norm, call.value(0), axis=axis, order=order)


def divide_by_norm(x: Tensor, *, axis: int, order: int) -> Tensor:
    """The input by its norm along an axis; zero where the norm is."""
    norm = x.abs().sum(axis, keepdim=True) if order == 1 else (x * x).sum(axis, keepdim=True).sqrt()
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


def _softmax(call: Call, function: Any) -> TorchCall:
    if call.opset >= 13:
        return call.torch(function, call.value(0), dim=call.axis(0, call.attribute("axis", -1)))
    axis = call.axis(0, call.attribute("axis", 1))
    sizes = call.shape(0)
    if all(size == 1 for size in sizes[axis + 1 :]):
        return call.torch(function, call.value(0), dim=axis)
    return call.torch(
        softmax_of_the_rest, call.value(0), axis=axis, shape=tuple(sizes[axis:]), logarithm=function is torch.log_softmax
    )


def softmax_of_the_rest(x: Tensor, *, axis: int, shape: Sequence[int], logarithm: bool) -> Tensor:
    """Softmax before opset 13: over all dimensions from `axis` on together."""
    flat = x.flatten(axis)
    made = torch.log_softmax(flat, -1) if logarithm else torch.softmax(flat, -1)
    return torch.unflatten(made, -1, tuple(shape))


def softmax(call: Call) -> TorchCall:
    return _softmax(call, torch.softmax)


def log_softmax(call: Call) -> TorchCall:
    return _softmax(call, torch.log_softmax)


TABLE = {
    "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "GroupNormalization": group_norm,
    "MeanVarianceNormalization": mean_variance_norm,
    "LRN": local_response_norm,
    "LpNormalization": lp_norm,
    "Softmax": softmax,
    "LogSoftmax": log_softmax,
}
