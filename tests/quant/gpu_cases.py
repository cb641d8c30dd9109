"""The fused kernels of a GPU: on one where there is one, else by Triton's interpreter, which `test_gpu_kernels` starts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor

import qkit.execution.lanes
import qkit.execution.observing
import qkit.execution.products
import qkit.execution.tensor_errors
import qkit.quant.histogram
from qkit.execution.capture import Capture, capture
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.execution.tensor_errors import describe, local_errors, measure, on_host
from qkit.graph import build
from qkit.graph.operation import Operation
from qkit.quant import gpu_kernels
from qkit.quant.calibration import make_plan
from qkit.quant.estimators import Observation
from qkit.quant.grids import QuantParams, QuantSpec, as_integers, fake_quantize
from qkit.quant.histogram import Histogram
from qkit.quant.schemes import scheme_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Channels that fill tiles, that do not, one, and an odd number; channels innermost, and not.
SHAPES = [((2, 24, 9, 7), 1), ((3, 3, 8, 8), 1), ((5, 10), 1), ((1, 130, 3, 3), 1), ((2, 7, 16), 2), ((7,), 0), ((), 0)]
ACTS = [(-math.inf, math.inf), (0.0, 6.0)]
GRIDS = [QuantSpec(8, symmetric=False), QuantSpec(16, symmetric=True), QuantSpec(8, symmetric=True, power_of_two=True)]


@pytest.fixture
def through_kernels(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Switches the kit's use of the kernels on or off, also for tensors on the CPU, where they are interpreted."""
    modules = [
        qkit.execution.lanes, qkit.execution.observing, qkit.execution.products, qkit.execution.tensor_errors, qkit.quant.histogram
    ]  # fmt: skip

    def switch(on: bool) -> None:
        for module in modules:
            monkeypatch.setattr(module, "kernels_for", lambda _device: gpu_kernels if on else None)

    return switch


def tensors(shape: tuple[int, ...], act: tuple[float, float]) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(len(shape))
    f = 3.0 * torch.randn(shape, generator=draw)
    y = f + 0.05 * torch.randn(shape, generator=draw)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return y.contiguous(memory_format=layout), f.clamp(*act).contiguous(memory_format=layout)


def operation(act: tuple[float, float], axis: int) -> Operation:
    return Operation(0, "layer", "conv", "layer", (), call=lambda *values: values[0], act=act, channel_axis=axis)


def kept(x: Tensor) -> Tensor:
    return x.clone(memory_format=torch.preserve_format).to(DEVICE)


@pytest.mark.parametrize(("shape", "axis"), SHAPES, ids=str)
@pytest.mark.parametrize("act", ACTS, ids=str)
@pytest.mark.parametrize("spec", GRIDS, ids=str)
def test_values_bit_for_bit_and_sums(shape: Any, axis: int, act: Any, spec: QuantSpec, through_kernels: Any) -> None:
    y, f = tensors(shape, act)
    params, op = spec.params(-4.0, 5.0), operation(act, axis)
    through_kernels(False)
    value, sums = measure(op, kept(y).cpu(), f, params)
    local = local_errors(op, kept(y).cpu(), f, params, weighted=True)
    _, described = describe(op, kept(y).cpu())
    through_kernels(True)
    found, figures = measure(op, kept(y), f.to(DEVICE), params)
    assert torch.equal(found.cpu(), value)
    others = [local_errors(op, kept(y), f.to(DEVICE), params, weighted=True), describe(op, kept(y))[1]]
    scale = np.abs(f.double().numpy()).max()
    for mine, theirs in zip(on_host([figures, *others]), [sums, local, described], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-6 * scale)
    again = on_host([measure(op, kept(y), f.to(DEVICE), params)[1]])[0]
    np.testing.assert_array_equal(again, on_host([figures])[0])


@pytest.mark.parametrize(("shape", "axis"), SHAPES[:5], ids=str)
def test_scale_bias_and_a_grid_per_channel(shape: Any, axis: int) -> None:
    y, _ = tensors(shape, ACTS[0])
    channels = shape[axis]
    draw = torch.Generator().manual_seed(1)
    step, bias = torch.rand(channels, generator=draw) + 0.1, torch.randn(channels, generator=draw)
    by_channel = [1] * len(shape)
    by_channel[axis] = -1
    wanted = (y * step.view(by_channel) + bias.view(by_channel)).clamp(0.0, 6.0)
    found, _ = gpu_kernels.finish(kept(y), axis, step=step.to(DEVICE), bias=bias.to(DEVICE), act=(0.0, 6.0))
    assert torch.equal(found.cpu(), wanted)
    rows = wanted.movedim(axis, 0).flatten(1)
    params = QuantSpec(8, symmetric=False, per_channel=True).params(0.7 * rows.amin(1), 0.7 * rows.amax(1), axis=axis)
    found, _ = gpu_kernels.finish(kept(wanted), axis, params=params)
    assert torch.equal(found.cpu(), fake_quantize(wanted, params))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_seen(value: float, through_kernels: Any) -> None:
    through_kernels(True)
    for place in (0, 137, 2 * 24 * 9 * 7 - 1):
        y, _ = tensors((2, 24, 9, 7), ACTS[0])
        flat = y.permute(0, 2, 3, 1).flatten()
        flat[place] = value
        y = flat.view(2, 9, 7, 24).permute(0, 3, 1, 2)
        figures = on_host([describe(operation(ACTS[0], 1), kept(y))[1]])[0]
        assert not qkit.execution.tensor_errors.finite(figures)
    assert bool(gpu_kernels.finish(kept(y), 1, act=(0.0, 6.0))[0].isnan().any()) == math.isnan(value)


def test_codes_of_values_on_a_grid() -> None:
    y, _ = tensors((2, 24, 9, 7), ACTS[0])
    params = QuantSpec(8, symmetric=False).params(-4.0, 5.0)
    value = fake_quantize(y, params)
    found = gpu_kernels.codes(value.to(DEVICE), params).cpu()
    assert torch.equal(found, as_integers(value, params))
    assert torch.equal(found * params.scale, value)


def counts(x: Tensor) -> Tensor:
    out = torch.empty((2, 1 << 16), dtype=torch.int64, device=DEVICE)
    gpu_kernels.count(x.to(DEVICE), out)
    return out.cpu()


@pytest.mark.parametrize("of", ["wide", "relu", "constant", "negative zeros", "few"])
def test_counts_are_exact(of: str, through_kernels: Any) -> None:
    through_kernels(False)
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(50_000, generator=draw) * torch.exp(4.0 * torch.randn(50_000, generator=draw))
    x = {"wide": x, "relu": x.relu(), "constant": torch.full_like(x, 1.5), "negative zeros": -torch.zeros(999), "few": x[:3]}[of]
    wanted = Histogram.of(x)
    for _ in range(2):  # the tables are empty again
        found = counts(x)
        order = np.argsort(wanted.keys)
        assert found[0].nonzero()[:, 0].tolist() == wanted.keys[order].tolist()
        assert found[0][found[0] > 0].tolist() == wanted.counts[order].tolist()
        assert found[1][found[0] > 0].tolist() == wanted.lows[order].tolist()


def whole(device: str) -> tuple[dict[str, Observation], Capture, dict[str, Tensor]]:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    graph = build(mixed_network(), x, device=device)
    loader = [x.to(device), 2.0 * x.to(device)]
    seen = observe(graph, loader, progress=False)
    plans = {k: make_plan(graph, seen, scheme_of(k)) for k in ("int8", "int16", "int8-per-tensor")}
    captured = capture(graph, loader, plans, limit=None, progress=False)
    lanes = [Lane("float"), *(Lane(k, plan) for k, plan in plans.items())]
    return dict(seen), captured, {k: v.cpu() for k, v in run_lanes(graph, lanes, (loader[0],)).items()}


def test_the_whole_way_gives_what_the_cpu_gives(through_kernels: Any) -> None:
    through_kernels(False)
    seen, captured, outputs = whole("cpu")
    through_kernels(True)
    seen_there, captured_there, outputs_there = whole(DEVICE)
    for name, observation in seen.items():
        there = seen_there[name]
        assert there.histogram.total == observation.histogram.total
        np.testing.assert_allclose(there.batch_max, observation.batch_max, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(there.channel_min, observation.channel_min, rtol=1e-4, atol=1e-5)
    table, table_there = captured.table(), captured_there.table()
    for lane in ("int8", "int16", "int8-per-tensor"):
        # sums in another order put a value here and there on the next code
        np.testing.assert_allclose(table_there[lane, "sqnr"], table[lane, "sqnr"], atol=0.3)
        np.testing.assert_allclose(table_there[lane, "local sqnr"], table[lane, "local sqnr"], atol=0.3)
        steps = float(captured.plans[lane]["classify"].params.scale)
        assert float((outputs_there[lane] - outputs[lane]).abs().max()) <= 2.01 * steps


def test_params_per_channel_are_kept_on_the_device_once() -> None:
    params = QuantParams(torch.ones(3), torch.zeros(3, dtype=torch.int32), -128, 127, axis=1)
    assert gpu_kernels._grid(params, torch.device(DEVICE)) is gpu_kernels._grid(params, torch.device(DEVICE))
