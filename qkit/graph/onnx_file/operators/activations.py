"""Activation functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call, as_weight
from qkit.graph.onnx_file.values import Planned, TorchCall

SELU_ALPHA, SELU_GAMMA = 1.6732632423543772, 1.0507009873554805


def plain(function: Callable[..., Tensor], **attributes: tuple[str, float]) -> Callable[[Call], TorchCall]:
    """The activation that is a torch function; `attributes` are the function's arguments: ONNX's name and its default."""

    def plan(call: Call) -> TorchCall:
        settings: dict[str, Any] = {mine: call.attribute(name, default) for mine, (name, default) in attributes.items()}
        return call.torch(function, call.value(0), **settings)

    return plan


def hard_sigmoid(call: Call) -> TorchCall:
    alpha, beta = call.attribute("alpha", 0.2), call.attribute("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return call.torch(F.hardsigmoid, call.value(0))
    return call.torch(clamped_line, call.value(0), alpha=alpha, beta=beta)


def clamped_line(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    """``alpha * x + beta`` between 0 and 1."""
    return torch.clamp(x * alpha + beta, 0, 1)


def selu(call: Call) -> TorchCall:
    alpha, gamma = call.attribute("alpha", SELU_ALPHA), call.attribute("gamma", SELU_GAMMA)
    if math.isclose(alpha, SELU_ALPHA, rel_tol=1e-6) and math.isclose(gamma, SELU_GAMMA, rel_tol=1e-6):
        return call.torch(F.selu, call.value(0))
    return call.torch(scaled_elu, call.value(0), alpha=alpha, gamma=gamma)


def scaled_elu(x: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """SELU with constants of one's own."""
    return F.elu(x, alpha) * gamma


def prelu(call: Call) -> TorchCall:
    x, slope = call.value(0), call.value(1)
    shape = tuple(slope.at(0).shape)
    rank = call.rank(0)
    full = (1,) * (rank - len(shape)) + shape
    channels = call.shape(0)[1] if rank > 1 else 1
    per_channel = rank > 1 and full == tuple(channels if axis == 1 else 1 for axis in range(rank))
    if slope.constant and (slope.at(0).numel() == 1 or per_channel):
        flat = slope if len(shape) == 1 else slope.variant("flat", lambda w: w.reshape(-1))
        return call.torch(F.prelu, x, as_weight(flat))
    return call.torch(leak, x, slope)


def leak(x: Tensor, slope: Tensor) -> Tensor:
    """PReLU with a slope that is broadcast."""
    return torch.where(x < 0, x * slope, x)


def shrink(x: Tensor, *, bias: float, bound: float) -> Tensor:
    """Towards zero by `bias`, and zero within `bound`."""
    return torch.where(x < -bound, x + bias, torch.where(x > bound, x - bias, torch.zeros_like(x)))


def thresholded_relu(call: Call) -> TorchCall:
    return call.torch(F.threshold, call.value(0), threshold=call.attribute("alpha", 1.0), value=0.0)


def gelu(call: Call) -> TorchCall:
    return call.torch(F.gelu, call.value(0), approximate=call.attribute("approximate", "none"))


def dropout(call: Call) -> Planned:
    if call.has(2) and bool(call.array(2, "training_mode").item()):
        raise call.refuse("training_mode is true: export the network in eval mode.")
    call.only_first_output()
    return (call.value(0),)


TABLE: dict[str, Callable[[Call], Planned]] = {
    "Relu": plain(torch.relu),
    "LeakyRelu": plain(F.leaky_relu, negative_slope=("alpha", 0.01)),
    "Elu": plain(F.elu, alpha=("alpha", 1.0)),
    "Celu": plain(F.celu, alpha=("alpha", 1.0)),
    "ThresholdedRelu": thresholded_relu,
    "Sigmoid": plain(torch.sigmoid),
    "Tanh": plain(torch.tanh),
    "Softplus": plain(F.softplus),
    "Softsign": plain(F.softsign),
    "HardSwish": plain(F.hardswish),
    "Mish": plain(F.mish),
    "Shrink": plain(shrink, bias=("bias", 0.0), bound=("lambd", 0.5)),
    "HardSigmoid": hard_sigmoid,
    "Selu": selu,
    "PRelu": prelu,
    "Gelu": gelu,
    "Dropout": dropout,
}
