"""Rescale a network's channels: the same function in float, a worse one on a grid of one scale per tensor.

Between two layers with only a ReLU in between, the first layer's output channel i can be multiplied by any
s_i > 0 and the second layer's input channel i divided by it, since ``relu(s * x) = s * relu(x)``. Nagel et
al. 2019 ("Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.1) choose s so
that the channels' ranges become equal. This module reads that in reverse: it draws s at random, so that the
channels' ranges become as unequal as they are in published MobileNetV2 checkpoints (their figure 2), which
training for minutes on an easy task brings about only here and there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from qkit.errors import QkitError


def rescale_channels(model: nn.Module, spread: float, seed: int = 0) -> int:
    """Rescale, in place, the channels inside every inverted residual of a MobileNetV2.

    Both connections of a block are rescaled, expansion to depthwise and depthwise to projection, each by its
    own factors, log-uniform between ``1 / sqrt(spread)`` and ``sqrt(spread)``. The factors go into the weight
    and bias of the first layer's batch norm, so training it further stays possible.

    Parameters
    ----------
    model
        With ReLU (not ReLU6, whose upper bound does not scale along) between the convolutions; best in
        evaluation mode.
    spread
        Ratio of the largest to the smallest factor possible, at least 1.
    seed
        Of the factors; the global random generator is not touched.

    Returns
    -------
    int
        How many connections were rescaled.

    Raises
    ------
    QkitError
        If `spread` is below 1, or if the model has no inverted residual with ReLU.
    """
    if not spread >= 1:
        raise QkitError(f"The spread of the channel factors has to be at least 1, not {spread}.")
    pairs = [pair for module in model.modules() for pair in _connections(module)]
    if not pairs:
        raise QkitError(
            f"{type(model).__name__} has no inverted residual with batch norm and ReLU between convolutions, "
            "so there is nothing to rescale: give a MobileNetV2 such as mobilenet_v2_lite."
        )
    random = torch.Generator().manual_seed(seed)
    for norm, conv in pairs:
        exponents = torch.rand(norm.num_features, generator=random, dtype=torch.float64) - 0.5
        rescale_pair(norm, conv, torch.exp(exponents * math.log(spread)))
    return len(pairs)


@torch.no_grad()
def rescale_pair(norm: nn.BatchNorm2d, conv: nn.Conv2d, factors: Tensor) -> None:
    """Multiply `norm`'s output channels by `factors` and divide `conv`'s input channels by them.

    `factors` are positive, of shape ``(C,)``. `conv` is a depthwise convolution or one with a single group;
    between the two there is a ReLU or nothing.
    """
    factors = factors.to(norm.weight)
    norm.weight.mul_(factors)
    norm.bias.mul_(factors)
    # a depthwise weight is (C, 1, h, w): its input channel i is the first axis
    depthwise = conv.groups == conv.in_channels
    conv.weight.div_(factors.view(-1, 1, 1, 1) if depthwise else factors.view(1, -1, 1, 1))


def _connections(module: nn.Module) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """The (batch norm, next convolution) pairs of an inverted residual; none for any other module."""
    body = getattr(module, "conv", None)
    if type(module).__name__ != "InvertedResidual" or not isinstance(body, nn.Sequential):
        return []
    layers = [layer for layer in body.modules() if not isinstance(layer, nn.Sequential)]
    triples = zip(layers, layers[1:], layers[2:], strict=False)
    return [
        (norm, conv)
        for norm, relu, conv in triples
        if isinstance(norm, nn.BatchNorm2d) and type(relu) is nn.ReLU and isinstance(conv, nn.Conv2d)
    ]
