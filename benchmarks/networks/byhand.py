"""Norms folded by hand, without a line of the kit: what the kit's own folding is held against.

Hooks tell which norm reads what which layer wrote, torch's own `fuse_conv_bn_weights` and its siblings give the weights, and the
network's output tells whether the fold was right: a norm is only folded where the output stays as it is.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from benchmarks.networks.weights import norms_of

#: A fold leaves the output alone if it changes it by less, relative to its greatest magnitude.
UNCHANGED = 1e-7

_Convolution = nn.modules.conv._ConvNd
_Transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, eq=False)
class Folded:
    """A network after its norms were folded by hand.

    Attributes
    ----------
    model
        A copy; folded norms are gone from it, their activations are left.
    layers
        The layer that each folded norm went into, by the norm's path.
    standing
        Paths of the norms that are left: nothing in front of them takes them.
    """

    model: nn.Module
    layers: Mapping[str, str]
    standing: tuple[str, ...]


@torch.no_grad()
def fold(model: nn.Module, x: Tensor) -> Folded:
    """Fold every norm that directly follows a convolution, a transposed one or a linear layer.

    Parameters
    ----------
    model
        In eval mode; left as it is.
    x
        One batch, on which the outputs before and after are compared.
    """
    plain = copy.deepcopy(model).eval()
    norms = norms_of(plain)
    pairs = _pairs(plain, norms, x)
    if not _harmless(plain, pairs, x):
        # some layer has other readers than its norm: find out which, one by one
        pairs = {norm: layer for norm, layer in pairs.items() if _harmless(plain, {norm: layer}, x)}
    for norm, layer in pairs.items():
        _fold_one(plain, norm, layer)
    return Folded(plain, pairs, tuple(path for path in norms if path not in pairs))


def _harmless(model: nn.Module, pairs: Mapping[str, str], x: Tensor) -> bool:
    """Whether folding these leaves the output alone; in float64, so that no sum in another order looks like a change."""
    before, x = copy.deepcopy(model).double(), x.double()
    after = copy.deepcopy(before)
    for norm, layer in pairs.items():
        _fold_one(after, norm, layer)
    return _deviation(_tensors(after(x)), _tensors(before(x))) <= UNCHANGED


@dataclass
class _Written:
    """What layers wrote, by where it lies in memory; the tensors are kept, so that nothing else comes to lie there."""

    tensors: dict[int, tuple[str, Tensor, int]]

    def add(self, path: str, tensor: Tensor) -> None:
        self.tensors[tensor.data_ptr()] = (path, tensor, tensor._version)

    def layer(self, x: Tensor) -> str | None:
        """The layer that wrote this tensor, seen in whatever shape, with its channels where a norm looks for them."""
        path, written, version = self.tensors.get(x.data_ptr(), (None, x, -1))
        whole = written.numel() == x.numel() and written._version == version
        return path if whole and (written is x or (x.dim() == 2 and written.shape[-1] == x.shape[-1])) else None


def _pairs(model: nn.Module, norms: Mapping[str, nn.Module], x: Tensor) -> dict[str, str]:
    """The layer in front of each norm that has one to itself, by the norm's path."""
    written = _Written({})
    found: dict[str, list[str | None]] = {}
    calls: Counter[str] = Counter()

    def wrote(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            written.add(path, output)
            calls[path] += 1

        return hook

    def reads(path: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            found.setdefault(path, []).append(written.layer(inputs[0]))

        return hook

    handles = []
    for path, module in model.named_modules():
        if isinstance(module, (_Convolution, nn.Linear)):
            handles.append(module.register_forward_hook(wrote(path)))
        if path in norms:
            handles.append(module.register_forward_pre_hook(reads(path)))
    try:
        model(x)
    finally:
        for handle in handles:
            handle.remove()
    readers = Counter(layer for layers in found.values() for layer in layers)
    return {
        norm: layers[0]
        for norm, layers in found.items()
        if len(layers) == 1 and layers[0] is not None and readers[layers[0]] == 1 and calls[layers[0]] == 1
    }


def _fold_one(model: nn.Module, norm_path: str, layer_path: str) -> None:
    """Put the norm into the layer's weight and bias, in place, and leave only the norm's activation."""
    norm: Any = model.get_submodule(norm_path)
    layer: Any = model.get_submodule(layer_path)
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    weight = torch.ones_like(norm.running_var) if weight is None else weight
    bias = torch.zeros_like(norm.running_mean) if bias is None else bias
    numbers = (norm.running_mean, norm.running_var, float(getattr(norm, "eps", 1e-5)), weight, bias)
    if isinstance(layer, _Transposed) and layer.groups > 1:
        new_weight, new_bias = _grouped_transposed(layer, *numbers)
    elif isinstance(layer, _Convolution):
        new_weight, new_bias = fuse_conv_bn_weights(layer.weight, layer.bias, *numbers, isinstance(layer, _Transposed))
    else:
        new_weight, new_bias = fuse_linear_bn_weights(layer.weight, layer.bias, *numbers)
    layer.weight, layer.bias = nn.Parameter(new_weight), nn.Parameter(new_bias)
    parent, _, name = norm_path.rpartition(".")
    setattr(model.get_submodule(parent), name, _rest(norm))


def _grouped_transposed(layer: Any, mean: Tensor, var: Tensor, eps: float, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """torch has no fold for these: the weight is (inputs, outputs of a group, …), and each group has outputs of its own."""
    scale = (var + eps).rsqrt() * weight
    old: Tensor = layer.weight
    by_group = old.reshape(layer.groups, old.shape[0] // layer.groups, *old.shape[1:])
    per_output = scale.reshape(layer.groups, 1, old.shape[1], *[1] * (old.dim() - 2))
    old_bias = torch.zeros_like(mean) if layer.bias is None else layer.bias
    return (by_group * per_output).reshape(old.shape), (old_bias - mean) * scale + bias


def _rest(norm: nn.Module) -> nn.Module:
    """What a norm does besides: timm's norms hold a dropout and an activation."""
    parts = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if isinstance(part, nn.Module)]
    return nn.Sequential(*parts) if parts else nn.Identity()


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _deviation(output: list[Tensor], reference: list[Tensor]) -> float:
    peak = max((float(tensor.abs().max()) for tensor in reference if tensor.numel()), default=0.0)
    apart = max((float((a - b).abs().max()) for a, b in zip(output, reference, strict=True) if b.numel()), default=0.0)
    return apart / max(peak, 1e-30)
