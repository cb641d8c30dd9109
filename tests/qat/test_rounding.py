"""Fake quantization in training against torch's own operators: values and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import rounded_by_torch
from torch import Tensor
from torch.nn import functional as F

from qkit.graph.table import UNBOUNDED
from qkit.qat.straight_through import grid_of, power_of_two, round_learned, round_to_grid
from qkit.quant.grids import QuantParams, QuantSpec, fake_quantize

BITS = st.sampled_from([2, 4, 8, 16])
SPECS = st.builds(
    QuantSpec,
    bits=BITS,
    symmetric=st.booleans(),
    signed=st.sampled_from([True, None]),
    power_of_two=st.booleans(),
    narrow=st.booleans(),
)


def tensor(seed: int, shape: tuple[int, ...] = (3, 4, 5, 6), scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def numbers(params: QuantParams, ndim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and bounds less the zero point, shaped to broadcast."""
    found = params.scale, (params.qmin - params.zero_point).float(), (params.qmax - params.zero_point).float()
    if params.axis is None:
        return found
    shape = [1] * ndim
    shape[params.axis] = -1
    scale, low, high = (x.view(shape) for x in found)
    return scale, low, high


def with_gradient(function, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    (found,) = torch.autograd.grad(y, x, grad)
    return y.detach(), found


@settings(deadline=None, max_examples=60)
@given(SPECS, st.integers(0, 10_000), st.floats(0.05, 1.5), st.sampled_from([1e-6, 1.0, 1e4]), st.booleans())
def test_values_and_gradients_are_those_of_torch_per_tensor(
    spec: QuantSpec, seed: int, covered: float, scale: float, one_sided: bool
) -> None:
    x = tensor(seed, scale=scale)
    x = x.abs() if one_sided else x
    p = spec.params(covered * float(x.min().clamp(max=0)), covered * float(x.max()))
    grad = tensor(seed + 1)
    ours = with_gradient(lambda v: round_to_grid(v, *numbers(p, 4)), x, grad)
    truth = with_gradient(lambda v: rounded_by_torch(v, p), x, grad)
    assert torch.equal(ours[0], truth[0])
    assert torch.equal(ours[1], truth[1])
    assert torch.equal(ours[0], fake_quantize(x, p))


@settings(deadline=None, max_examples=40)
@given(SPECS, st.integers(0, 10_000), st.floats(0.05, 1.5), st.integers(0, 3))
def test_values_and_gradients_are_those_of_torch_per_channel(spec: QuantSpec, seed: int, covered: float, axis: int) -> None:
    x = tensor(seed)
    rows = x.movedim(axis, 0).flatten(1)
    p = spec.params(covered * rows.amin(1).clamp(max=0), covered * rows.amax(1), axis=axis)
    grad = tensor(seed + 1)
    ours = with_gradient(lambda v: round_to_grid(v, *numbers(p, 4)), x, grad)
    truth = with_gradient(lambda v: rounded_by_torch(v, p), x, grad)
    assert torch.equal(ours[0], truth[0])
    assert torch.equal(ours[1], truth[1])


ACTIVATIONS = {"relu": (F.relu, (0.0, math.inf)), "relu6": (F.relu6, (0.0, 6.0)), "hardtanh": (F.hardtanh, (-1.0, 1.0))}


@settings(deadline=None, max_examples=40)
@given(SPECS, st.integers(0, 10_000), st.floats(0.05, 1.5), st.sampled_from(list(ACTIVATIONS)), st.booleans())
def test_a_fused_activation_is_torchs_activation_and_then_its_rounding(
    spec: QuantSpec, seed: int, covered: float, name: str, on_the_device: bool
) -> None:
    function, act = ACTIVATIONS[name]
    x = tensor(seed, scale=3.0)
    x[0, 0] = 0.0  # joins of two rectified tensors are full of zeros
    y = function(x)
    p = spec.params(covered * float(y.min()), covered * float(y.max()))
    grad = tensor(seed + 1)
    scale, low, high = numbers(p, 4)
    if on_the_device:  # as one-element tensors, which is how grids are kept off the host elsewhere than on the CPU
        scale, low, high = (v.view(1, 1, 1, 1) for v in (scale, low, high))
    ours = with_gradient(lambda v: round_to_grid(v, scale, low, high, act), x, grad)
    truth = with_gradient(lambda v: rounded_by_torch(function(v), p), x, grad)
    assert torch.equal(ours[0], truth[0])
    assert torch.equal(ours[1], truth[1])


@pytest.mark.parametrize("act", [UNBOUNDED, (0.0, math.inf), (0.0, 6.0)])
def test_rounding_keeps_its_input_and_needs_no_gradient(act: tuple[float, float]) -> None:
    x = tensor(3)
    before = x.clone()
    p = QuantSpec(symmetric=False).params(-1.0, 1.0)
    assert not round_to_grid(x, *numbers(p, 4), act).requires_grad
    assert torch.equal(x, before)


def learnable(x: Tensor, p: QuantParams, grad: Tensor, gain: float) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Value, and gradients of input and scale, by the kit and by torch's learnable operator."""
    scale, x = p.scale.clone().requires_grad_(), x.clone().requires_grad_()
    _, low, high = numbers(p, x.ndim)
    y = round_learned(x, scale, low, high, torch.tensor(gain))
    s = p.scale.clone().view(1).requires_grad_()
    # a zero point shifts the codes; torch adds it before it rounds, which moves ties, so that the codes are shifted beforehand
    z = torch.zeros(1, requires_grad=True)
    t = torch._fake_quantize_learnable_per_tensor_affine(x, s, z, int(low), int(high), gain)
    return (y, *torch.autograd.grad(y, (x, scale), grad)), (t, *torch.autograd.grad(t, (x, s), grad))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 1.2), st.sampled_from([4, 8]), st.booleans(), st.floats(1e-4, 1.0))
def test_learned_steps_round_as_torchs_learnable_operator(
    seed: int, covered: float, bits: int, symmetric: bool, gain: float
) -> None:
    x = tensor(seed, (6, 5, 7))
    p = QuantSpec(bits=bits, symmetric=symmetric).params(covered * float(x.min()), covered * float(x.max()))
    grad = tensor(seed + 1, (6, 5, 7))
    ours, truth = learnable(x, p, grad, gain)
    assert torch.equal(ours[0], truth[0])
    assert torch.equal(ours[1], truth[1])
    # a sum in another order differs by no more than float32 rounds off its terms, which reach the range's ends
    ends = max(abs(p.qmin - int(p.zero_point)), abs(p.qmax - int(p.zero_point)))
    rounded_off = x.numel() * 2.0**-23 * gain * ends * float(grad.abs().sum())
    assert abs(float(ours[2]) - float(truth[2])) <= rounded_off


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 1.2), st.sampled_from([4, 8]), st.booleans(), st.integers(0, 13))
def test_learned_steps_have_the_gradient_of_torchs_learnable_operator(
    seed: int, covered: float, bits: int, symmetric: bool, halvings: int
) -> None:
    """On numbers whose sums float32 holds exactly, in any order: elements are 16ths of a step that is a power of two."""
    x = tensor(seed, (6, 5, 7))
    spec = QuantSpec(bits=bits, symmetric=symmetric, power_of_two=True)
    p = spec.params(covered * float(x.min()), covered * float(x.max()))
    x, grad = torch.round(x / p.scale * 16) / 16 * p.scale, torch.round(tensor(seed + 1, (6, 5, 7)) * 4) / 4
    ours, truth = learnable(x, p, grad, 2.0**-halvings)
    assert all(torch.equal(a, b.view(a.shape)) for a, b in zip(ours, truth, strict=True))


def test_learned_steps_per_channel() -> None:
    x, grad = tensor(1, (4, 3, 5)), tensor(2, (4, 3, 5))
    p = QuantSpec(bits=4).params(x.movedim(1, 0).flatten(1).amin(1) / 2, x.movedim(1, 0).flatten(1).amax(1) / 2, axis=1)
    scale, low, high = numbers(p, 3)
    scale = scale.clone().requires_grad_()
    (found,) = torch.autograd.grad(round_learned(x, scale, low, high, torch.tensor(1.0)), scale, grad)
    for channel in range(3):
        one = p.scale[channel].clone().requires_grad_()
        part = round_learned(x[:, channel], one, low.view(-1)[channel], high.view(-1)[channel], torch.tensor(1.0))
        (truth,) = torch.autograd.grad(part, one, grad[:, channel])
        torch.testing.assert_close(found[0, channel, 0], truth)


@pytest.mark.parametrize("hi", [3.0, 5.0, 8.0])
@pytest.mark.parametrize("name", ["relu", "relu6", "hardtanh"])
def test_learned_step_with_an_activation(name: str, hi: float) -> None:
    function, act = ACTIVATIONS[name]
    x, grad = tensor(1, scale=4.0), tensor(2)
    p = QuantSpec(symmetric=False).params(-0.5, hi)
    _, low, high = numbers(p, 4)
    found = []
    for bounds, before in ((act, lambda v: v), (UNBOUNDED, function)):
        v, scale = x.clone().requires_grad_(), p.scale.clone().requires_grad_()
        y = round_learned(before(v), scale, low, high, torch.tensor(0.1), bounds)
        found.append((y, *torch.autograd.grad(y, (v, scale), grad)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=0.0)


@settings(deadline=None, max_examples=100)
@given(SPECS, st.lists(st.tuples(st.floats(-1e6, 1e6), st.floats(0, 1e6)), min_size=1, max_size=5), st.booleans())
def test_grids_are_those_of_the_kit(spec: QuantSpec, ranges: list[tuple[float, float]], per_tensor: bool) -> None:
    pairs = [(lo, lo + width) for lo, width in (ranges[:1] if per_tensor else ranges)]
    lo, hi = (torch.tensor(bound, dtype=torch.float64) for bound in zip(*pairs, strict=True))
    if per_tensor:
        lo, hi = lo[0], hi[0]
    p = spec.params(lo, hi, axis=None if per_tensor else 0)
    scale, zero_point = grid_of(spec, lo, hi, p.qmin, p.qmax)
    assert torch.equal(scale, p.scale)
    assert torch.equal(zero_point, p.zero_point)


def test_powers_of_two() -> None:
    step = torch.tensor([0.25, 0.26, 3.0, 1e-5], requires_grad=True)
    rounded = power_of_two(step)
    assert rounded.tolist() == [0.25, 0.5, 4.0, 2.0**-16]
    assert torch.autograd.grad(rounded.sum(), step)[0].tolist() == [1.0, 1.0, 1.0, 1.0]
