"""Batch norm in training: the fake-quantized layer against plain float training where rounding vanishes, and where it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from small_networks import rounded_by_torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.qat import QatModule, wrap
from qkit.quant.plan import FLOAT
from qkit.quant.schemes import PRESETS, Scheme

#: Activations stay float; weights have 16 bits a channel, an error of some 1e-5 of the largest.
FINE = Scheme("fine weights", PRESETS["int16"].weight, None)
COARSE = Scheme("coarse weights", replace(PRESETS["int8-per-tensor"].weight, bits=3), None)


class Net(nn.Module):
    """A layer, its norm, and a way for the batch to have other statistics than the running ones."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: Net(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)), (6, 3, 8, 8)),
    "no bias, plain norm": (lambda: Net(nn.Conv2d(3, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False)), (6, 3, 8, 8)),
    "depthwise, cumulative": (lambda: Net(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6, momentum=None)), (6, 3, 8, 8)),
    "one dimension": (lambda: Net(nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)), (6, 3, 12)),
    "three dimensions": (lambda: Net(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (4, 2, 4, 5, 4)),
    "transposed": (lambda: Net(nn.ConvTranspose2d(3, 5, 3, bias=False), nn.BatchNorm2d(5)), (6, 3, 8, 8)),
    "linear": (lambda: Net(nn.Linear(7, 5), nn.BatchNorm1d(5)), (9, 7)),
    "norm alone": (lambda: Net(nn.Identity(), nn.BatchNorm2d(3)), (6, 3, 8, 8)),
}


@torch.no_grad()
def unusual(model: nn.Module) -> nn.Module:
    """Running statistics and parameters of the norm far from the defaults."""
    norm = model.norm
    norm.running_mean.normal_(0.0, 0.5)
    norm.running_var.uniform_(0.3, 3.0)
    if norm.affine:
        norm.weight.normal_()
        norm.bias.normal_()
    return model


def step(model: nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Output, gradients and buffers of one training step, by the names in the float model."""
    model.train()
    y = model(x)
    y.backward(grad)
    plain = model.model if isinstance(model, QatModule) else model
    gradients = {name: p.grad for name, p in plain.named_parameters()}
    return y.detach(), gradients, dict(plain.named_buffers())


def wrapped(model: nn.Module, x: Tensor, scheme: Scheme | str, **options) -> QatModule:
    return wrap(model, x, total_epochs=10, scheme=scheme, **options)


@pytest.mark.parametrize("plan", [FLOAT, None], ids=["off", "16 bits"])
@pytest.mark.parametrize("name", LAYERS)
def test_without_rounding_a_step_is_float_trainings(name: str, plan) -> None:
    make, shape = LAYERS[name]
    model = unusual(make())
    x = torch.randn(shape) * 1.7 + 0.4
    module = wrap(model, x, total_epochs=10, plan=plan) if plan is not None else wrapped(model, x, FINE)
    reference = copy.deepcopy(model)
    grad = torch.randn_like(reference.eval()(x))
    ours, theirs = step(module, x, grad), step(reference, x, grad)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if plan is not None else {"rtol": 1e-3, "atol": 2e-3}
    torch.testing.assert_close(ours[0], theirs[0], **tolerance)
    assert set(ours[1]) == set(theirs[1])
    for key, gradient in theirs[1].items():
        if key == "layer.bias":  # norm takes the mean out: what is left is the rounding of float sums
            assert float(ours[1][key].abs().max()) < 1e-4
            continue
        torch.testing.assert_close(ours[1][key], gradient, rtol=1e-3, atol=2e-3 * float(gradient.abs().max()))
    for key, buffer in theirs[2].items():
        torch.testing.assert_close(ours[2][key], buffer, **tolerance)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "norm alone"])
def test_noise_of_rounding_does_not_depend_on_the_batch(name: str) -> None:
    """The weight is rounded as it is at inference, whatever the batch: on one whose statistics are the running ones, training
    gives what evaluation gives."""
    make, shape = LAYERS[name]
    model = unusual(make())
    x = torch.randn(shape)
    with torch.no_grad():  # make the running statistics those of the batch
        z = model.layer(x)
        dims = [d for d in range(z.ndim) if d != 1]
        model.norm.running_mean.copy_(z.mean(dims))
        model.norm.running_var.copy_(z.var(dims, unbiased=False))
    module = wrapped(model, x, COARSE)
    evaluated = module.eval()(x)
    off = float((evaluated - model.eval()(x)).detach().abs().max())
    assert off > 0.01, "three bits per tensor have to be seen"
    trained = module.train()(x)
    assert float((trained - evaluated).detach().abs().max()) < 1e-4 * max(off, 1.0)


def test_a_channel_rounded_to_zero_keeps_its_statistics() -> None:
    """Its rounded weights have no variance: to normalize by that would blow it up without end."""
    model = unusual(Net(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1e-4, 1.0, 1.0, 1.0]))
    x = torch.randn(6, 3, 8, 8)
    module = wrapped(model, x, "int8-per-tensor")
    for _ in range(300):
        module.epoch = 0
        module.train()(x)
    norm = module.model.norm
    x_rounded = module._quantizer("input")(x)
    with torch.no_grad():
        mean, var = (f(model.layer(x_rounded), dim=(0, 2, 3)) for f in (torch.mean, torch.var))
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-3, atol=1e-9)
    assert float(module.quantizers["grid/layer/weight"].scale) / 2 > float(
        (model.layer.weight[0].detach() * 1e-4 * var[0].rsqrt()).abs().max()
    )


def test_a_channel_whose_scale_is_zero_trains_on() -> None:
    model = unusual(Net(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    with torch.no_grad():
        model.norm.weight[1] = 0.0
    x = torch.randn(6, 3, 8, 8)
    for scheme in (FINE, COARSE):
        module, reference = wrapped(model, x, scheme), copy.deepcopy(model)
        grad = torch.randn(6, 4, 6, 6)
        _, ours, _ = step(module, x, grad)
        _, theirs, _ = step(reference, x, grad)
        assert all(torch.isfinite(g).all() for g in ours.values())
        torch.testing.assert_close(ours["norm.weight"][1], theirs["norm.weight"][1], rtol=0.05, atol=0.05)


def test_frozen_norms_use_the_running_statistics_and_leave_them() -> None:
    model = unusual(Net(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)))
    x = torch.randn(6, 3, 8, 8) * 3.0
    module = wrapped(model, x, FINE, freeze_norms_at=0)
    reference = copy.deepcopy(model)
    grad = torch.randn(6, 5, 6, 6)
    y, gradients, buffers = step(module, x, grad)
    reference.train()
    reference.norm.eval()
    z = reference(x)
    z.backward(grad)
    torch.testing.assert_close(y, z, rtol=1e-3, atol=2e-3)
    for name, p in reference.named_parameters():
        torch.testing.assert_close(gradients[name], p.grad, rtol=1e-3, atol=1e-3 * float(p.grad.abs().max()))
    assert all(torch.equal(buffers[name], b) for name, b in model.named_buffers())


def test_biases_are_on_the_accumulators_grid() -> None:
    model = unusual(Net(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)))
    x = torch.randn(6, 3, 8, 8)
    scheme = replace(PRESETS["int8-per-tensor"], name="narrow bias", bias_bits=10, activation=PRESETS["int8"].activation)
    module = wrapped(model, x, scheme)
    module.train()(x)
    module.eval()
    plan = module.plan()
    with torch.no_grad():
        y = F.conv2d(torch.zeros(1, 3, 8, 8), *_folded(module))
        bias = y[0, :, 0, 0].double()
        step_size = plan["input"].params.scale.double() * plan["layer.weight"].params.scale.double()
        rounded = (torch.round(bias / step_size).clamp(-512, 511) * step_size).float()
        expected = rounded_by_torch(rounded, plan["layer"].params)
        assert torch.equal(module(torch.zeros(1, 3, 8, 8))[0, :, 0, 0], expected)


def _folded(module: QatModule) -> tuple[Tensor, Tensor]:
    layer, norm = module.model.layer, module.model.norm
    root = torch.rsqrt(norm.running_var + norm.eps)
    weight = layer.weight * (norm.weight * root).view(-1, 1, 1, 1)
    return weight, (layer.bias - norm.running_mean) * root * norm.weight + norm.bias
