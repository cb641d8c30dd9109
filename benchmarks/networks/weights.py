"""Random weights with sane statistics: what an untrained network needs before anything is measured on it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

#: A parameter that is one constant of at most this size switches its branch off: layer scales, gains of skip connections.
_OFF = 1e-3
#: Values of the noise that statistics are taken on, roughly: 4 to 16 images.
_PIXELS = 600_000
#: No channel's variance counts as less than this share of its layer's mean.
_FAINT = 0.1
#: Share of a norm's weights that are negative.
NEGATIVE = 0.1


def noise(shape: tuple[int, ...], images: int, seed: int = 0) -> Tensor:
    """Return a batch of smooth noise, (images, *shape): white noise and, twice as strong, noise of an eighth of its resolution.

    White noise alone has nothing that a random convolutional network would not average away within a few layers.
    """
    generator = torch.Generator().manual_seed(seed)
    fine = torch.randn((images, *shape), generator=generator)
    small = (images, *shape[:-2], max(1, shape[-2] // 8), max(1, shape[-1] // 8))
    coarse = torch.randn(small, generator=generator).flatten(1, -3)
    wide = nn.functional.interpolate(coarse, size=shape[-2:], mode="bilinear", align_corners=False)
    return 0.45 * fine + 0.9 * wide.reshape(fine.shape)


@torch.no_grad()
def settle(module: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Make random weights behave like trained ones, in place: nothing explodes, dies or is switched off.

    - Norms' weights are drawn around 1, a tenth of them negative, and their biases around 0, so that folding them changes
      something.
    - Every norm gets as running statistics the mean and variance of its own input, in one pass over noise in eval mode; this
      needs no training mode, so it reaches frozen norms as well as `SyncBatchNorm`, and dropout stays off.
    - Parameters that switch a branch off (layer scales of 1e-6, gains of 0) are drawn around 0.1; biases around 0.

    Parameters
    ----------
    module
        Changed in place, left in eval mode.
    shape
        The shape of one image.
    seed
        Of all that is drawn, and of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        _draw(name, parameter, generator)
    norms = norms_of(module)
    for norm in norms.values():
        _draw_norm(norm, generator)
    handles = [norm.register_forward_pre_hook(_take_statistics) for norm in norms.values()]
    try:
        module.eval()(noise(shape, max(4, min(16, _PIXELS // math.prod(shape))), seed))
    finally:
        for handle in handles:
            handle.remove()
    return module


def norms_of(module: nn.Module) -> dict[str, nn.Module]:
    """The norms with fixed statistics, by path: whatever holds a running mean and a running variance."""
    return {
        path: part
        for path, part in module.named_modules()
        if isinstance(getattr(part, "running_mean", None), Tensor) and isinstance(getattr(part, "running_var", None), Tensor)
    }


def _draw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    constant = parameter.numel() > 0 and bool((parameter == parameter.flatten()[0]).all())
    if not constant or abs(float(parameter.flatten()[0])) > _OFF:
        return
    around = 0.0 if name.rpartition(".")[2] == "bias" else 0.1
    parameter.copy_(around + 0.02 * torch.randn(parameter.shape, generator=generator))


def _draw_norm(norm: nn.Module, generator: torch.Generator) -> None:
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if isinstance(weight, Tensor):
        signs = 1 - 2 * (torch.rand(weight.shape, generator=generator) < NEGATIVE).float()
        weight.copy_(signs * (1 + 0.3 * torch.randn(weight.shape, generator=generator)).clamp_min(0.1))
    if isinstance(bias, Tensor):
        bias.copy_(0.2 * torch.randn(bias.shape, generator=generator))


def _take_statistics(norm: Any, inputs: tuple[Any, ...]) -> None:
    x: Tensor = inputs[0]
    others = [axis for axis in range(x.dim()) if axis != 1]
    norm.running_mean.copy_(x.mean(others))
    variance = x.var(others, unbiased=False)
    # a nearly dead channel would be blown up, and with it whatever an image has that this noise has not
    norm.running_var.copy_(variance.clamp_min(max(_FAINT * float(variance.mean()), 1e-6)))
