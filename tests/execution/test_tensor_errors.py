"""Error sums: the compiled loops, torch's operators, and float64 arithmetic say the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from small_networks import rounded_by_torch
from torch import Tensor

from qkit.errors import DataError
from qkit.execution import tensor_errors as module
from qkit.execution.tensor_errors import describe, local_errors, measure, refuse_non_finite
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.sqnr import sqnr

SHAPES = [((), 0), ((5,), 0), ((7, 3), 1), ((2, 5, 4), 2), ((2, 5, 4), 1), ((3, 6, 5, 4), 1), ((2, 3, 4, 5, 2), 1)]
# channels that lie apart, as the heads of an attention do: short stretches, and one that is worth threads of its own
SHAPES += [((2, 3, 64, 49), 1), ((3, 2, 2053, 2), 1), ((1, 2, 300, 300), 1)]
ACTS = [(-math.inf, math.inf), (0.0, math.inf), (0.0, 1.5), (-1.0, 1.0)]


def tensors(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(len(shape))
    f = torch.randn(shape, generator=random)
    return f + 0.05 * torch.randn(shape, generator=random), f


def grid(bits: int = 8) -> QuantParams:
    return QuantSpec(bits, symmetric=False).params(torch.tensor(-0.7), torch.tensor(1.9))


def operation(act: tuple[float, float], axis: int) -> Operation:
    return Operation(0, "layer", "conv", "layer", (), call=lambda *values: values[0], act=act, channel_axis=axis)


def naive(y: Tensor, f: Tensor, p: QuantParams, act: tuple[float, float], axis: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
    v = y.clamp(*act)
    q = rounded_by_torch(v, p)
    codes = torch.round(v * (1 / p.scale)) + p.zero_point
    beyond = ((codes < p.qmin) | (codes > p.qmax)).double()

    def channels(x: Tensor) -> np.ndarray:
        x = x.double()
        return (x.view(1, 1) if x.ndim == 0 else x.movedim(axis, 0).reshape(x.shape[axis], -1)).numpy()

    e, own = channels(q) - channels(f), channels(q) - channels(v)
    figures = [e**2, channels(f) * e, abs(e), own**2 * channels(beyond), channels(beyond), own**2]
    return (
        q,
        np.stack([x.sum(1) for x in figures]),
        np.stack([abs(e).max(1), channels(q).min(1), channels(q).max(1)]),
    )


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("fast", [True, False])
def test_sums(shape: tuple[int, ...], axis: int, act: tuple[float, float], fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fast:
        monkeypatch.setattr(module, "kernels", lambda: None)
    y, f = tensors(shape)
    p = grid()
    expected, sums, peaks = naive(y, f, p, act, axis)
    op = operation(act, axis)
    value, found = measure(op, y.clone(), f, p)
    assert value.shape == y.shape
    assert torch.equal(value, expected)
    np.testing.assert_allclose(found[:6], sums, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[6:], peaks, rtol=1e-6, atol=1e-7)
    on_the_grid = naive(f, f, p, act, axis)[1][0]
    local = local_errors(op, y.clone(), f, p, weighted=True)
    np.testing.assert_allclose(local, np.stack([sums[0], on_the_grid]), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(local_errors(op, y.clone(), f, p, weighted=False), local[[0, 0]])


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_layouts(layout: torch.memory_format) -> None:
    y, f = tensors((3, 6, 5, 4))
    expected, sums, _ = naive(y, f, grid(), ACTS[1], 1)
    y, f = y.contiguous(memory_format=layout), f.contiguous(memory_format=layout)
    value, found = measure(operation(ACTS[1], 1), y, f, grid())
    assert torch.equal(value, expected)
    np.testing.assert_allclose(found[:6], sums, rtol=1e-5, atol=1e-7)


def test_a_grid_per_channel_and_none() -> None:
    y, f = tensors((4, 3, 5, 5))
    spec = QuantSpec(8, symmetric=True, per_channel=True)
    p = spec.params(torch.tensor([-1.0, -0.5, -2.0]), torch.tensor([1.0, 0.4, 1.0]), axis=1)
    value, sums = measure(operation(ACTS[0], 1), y.clone(), f, p)
    expected = rounded_by_torch(y, p)
    assert torch.equal(value, expected)
    np.testing.assert_allclose(sums[0], (expected - f).double().square().sum((0, 2, 3)), rtol=1e-6)
    value, sums = measure(operation(ACTS[1], 1), y.clone(), f, None)
    assert torch.equal(value, y.clamp(min=0))
    assert not sums[3:6].any()
    local = local_errors(operation(ACTS[1], 1), y.clone(), f, None, weighted=True)
    np.testing.assert_allclose(local, np.stack([sums[0], np.zeros(3)]), rtol=1e-12)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_describe(shape: tuple[int, ...], axis: int) -> None:
    _, f = tensors(shape)
    flat = (f.view(1, 1) if f.ndim == 0 else f.movedim(axis, 0).reshape(f.shape[axis], -1)).double().numpy()
    value, (squared, least, greatest) = describe(operation(ACTS[0], axis), f)
    assert torch.equal(value, f)
    np.testing.assert_allclose(squared, (flat**2).sum(1), rtol=1e-6)
    np.testing.assert_array_equal(least, flat.min(1).astype(np.float32))
    np.testing.assert_array_equal(greatest, flat.max(1).astype(np.float32))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(3,), (4, 33), (2, 17, 9, 9), (8, 64, 40, 40)])
def test_describe_shows_what_is_not_finite_wherever_it_is(bad: float, shape: tuple[int, ...]) -> None:
    axis = 1 if len(shape) > 1 else 0
    count = math.prod(shape)
    for place in {0, 1, count // 2, count - 2, count - 1}:
        x = torch.randn(shape)
        x.view(-1)[place] = bad
        _, found = describe(operation(ACTS[0], axis), x)
        assert not np.isfinite(found[0]).all(), place
        with pytest.raises(DataError, match="layer"):
            refuse_non_finite(operation(ACTS[0], axis), found)


def test_decibels() -> None:
    assert sqnr(100.0, 1.0) == 20.0
    assert sqnr(1.0, 0.0) == math.inf
    assert sqnr(0.0, 1.0) == -math.inf
    assert sqnr(0.0, 0.0) == math.inf
    np.testing.assert_allclose(sqnr(np.array([1.0, 1e3]), np.array([1e-3, 0.0])), [30.0, math.inf])
