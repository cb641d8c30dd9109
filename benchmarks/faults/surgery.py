"""Edits of convolution and batch norm that keep the float function, or change it by a known channel alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.faults.networks import Network, Unit
from benchmarks.faults.truth import NoSite


def norm_of(network: Network, unit: Unit) -> nn.BatchNorm2d:
    """The unit's batch norm."""
    norm = network.modules[unit.norm]
    assert isinstance(norm, nn.BatchNorm2d)
    return norm


def conv_of(network: Network, unit: Unit) -> nn.Conv2d:
    """The unit's convolution."""
    conv = network.modules[unit.conv]
    assert isinstance(conv, nn.Conv2d)
    return conv


def slope(norm: nn.BatchNorm2d) -> Tensor:
    """What the norm multiplies each channel by, (C,)."""
    return norm.weight.data / torch.sqrt(norm.running_var + norm.eps)  # type: ignore[operator]


def folded(network: Network, unit: Unit) -> Tensor:
    """The convolution's weight with the norm folded in, (C, ...); a new tensor."""
    return conv_of(network, unit).weight.data * slope(norm_of(network, unit)).view(-1, 1, 1, 1)


def set_folded(network: Network, unit: Unit, weight: Tensor) -> None:
    """Make the folded weight this, by the convolution's weight alone."""
    conv_of(network, unit).weight.data = weight / slope(norm_of(network, unit)).view(-1, 1, 1, 1)


def columns(network: Network, unit: Unit, channel: int) -> list[Tensor]:
    """Views of all weights that multiply the unit's channel."""
    if not unit.readers:
        raise NoSite(f"{unit.conv}: what reads it cannot be compensated")
    return [reader.columns(network.model, channel) for reader in unit.readers]


def scale_channels(network: Network, unit: Unit, channels: Sequence[int], factor: float | Tensor) -> None:
    """Channels × factor behind the norm, the weights that read them ÷ factor: the same function.

    Exact for positive factors, since all between (ReLU, pools) is homogeneous.
    """
    norm = norm_of(network, unit)
    factors = torch.as_tensor(factor).expand(len(channels))
    for channel, by in zip(channels, factors.tolist(), strict=True):
        norm.weight.data[channel] *= by
        norm.bias.data[channel] *= by
        for part in columns(network, unit, channel):
            part.div_(by)


def silence(network: Network, unit: Unit, channels: Sequence[int]) -> None:
    """Keep these channels below the ReLU on every image, and blank the weights that read them."""
    if not unit.relu:
        raise NoSite(f"{unit.conv} has no ReLU to silence a channel with")
    norm = norm_of(network, unit)
    (pre,) = network.values([unit.pre])
    for channel in channels:
        norm.bias.data[channel] -= 3.0 * float(pre[:, channel].max().clamp(min=0.0)) + 3.0 * float(pre[:, channel].std()) + 1e-3
        for part in columns(network, unit, channel):
            part.zero_()


def importance(network: Network, unit: Unit) -> Tensor:
    """How much each channel of the unit moves what reads it, (C,): its rms times the norm of the weights on it."""
    (value,) = network.values([unit.end])
    rms = value.square().mean((0, 2, 3)).sqrt()
    gains = torch.zeros_like(rms)
    for channel in range(len(rms)):
        gains[channel] = sum(_gain(network, reader.path, reader.depthwise, reader.columns(network.model, channel), channel)
                             for reader in unit.readers or ())  # fmt: skip
    return rms * gains


def _gain(network: Network, path: str, depthwise: bool, part: Tensor, channel: int) -> float:
    gain = float(part.norm())
    if not depthwise or path not in network.units:
        return gain
    reader = network.unit(path)
    gain *= float(slope(norm_of(network, reader))[channel].abs())
    return gain * sum(float(p.norm()) for p in columns(network, reader, channel)) if reader.readers else gain


def least_important(network: Network, unit: Unit, count: int) -> list[int]:
    """The channels that matter least, least first."""
    return importance(network, unit).argsort()[:count].tolist()


def most_important(network: Network, unit: Unit, count: int) -> list[int]:
    """The channels that matter most, most first."""
    return importance(network, unit).argsort(descending=True)[:count].tolist()
