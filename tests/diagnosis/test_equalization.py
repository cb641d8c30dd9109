"""Equalization as grids gives the codes of the equalized network itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import qkit
from qkit.diagnosis.equalized_grids import equalized, next_layer
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import build


def network(*, depthwise: bool) -> nn.Sequential:
    torch.manual_seed(0)
    second = nn.Conv2d(8, 8, 3, padding=1, groups=8) if depthwise else nn.Conv2d(8, 6, 3, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), second)
    with torch.no_grad():
        model[0].weight[2] *= 50.0  # type: ignore[operator,index]
    return model.eval()


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize("by", ["weights", "activations"])
def test_codes_are_those_of_the_rescaled_network(depthwise: bool, by: str) -> None:
    model = network(depthwise=depthwise)
    x = torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    study = qkit.Study(
        model, [x], scheme=qkit.Scheme("t", *(qkit.PRESETS["int8-per-tensor"].spec("", weight=w) for w in (True, False)), None)
    )
    plan = study.calibrate("minmax", progress=False)
    seen = study.observe()["0"]
    grids = equalized(study.graph, study.graph.operation("0"), plan.grids, seen.channel_min, seen.channel_max, by)
    assert set(grids) == {"0.weight", "0", "2.weight"}
    # the network equalized for real, with one step per tensor
    factor = grids["0"].params.scale.double() / grids["0"].params.scale.double().max()
    scaled = network(depthwise=depthwise)
    with torch.no_grad():
        scaled[0].weight /= factor[:, None, None, None].float()  # type: ignore[operator]
        scaled[0].bias /= factor.float()  # type: ignore[operator]
        scaled[2].weight *= (factor[:, None, None, None] if depthwise else factor[None, :, None, None]).float()  # type: ignore[operator]
        assert torch.allclose(scaled(x), model(x), atol=1e-4)
    graph = build(scaled, x)
    flat = plan
    for name, top in (("0.weight", None), ("2.weight", None), ("0", None)):
        params = grids[name].params
        times = factor if name != "2.weight" else 1.0 / factor
        scale = (params.scale.double() / times).float()
        assert torch.allclose(scale, scale[0], rtol=1e-5), top
        one = qkit.QuantParams(scale[0], params.zero_point[0], params.qmin, params.qmax)
        flat = flat.with_grid(name, qkit.quant.plan.Grid(grids[name].spec, one, "manual", grids[name].weight))
    edited = plan
    for name, grid in grids.items():
        edited = edited.with_grid(name, grid)
    a = run_lanes(study.graph, [Lane("a", edited)], (x,))["a"]
    b = run_lanes(graph, [Lane("b", flat)], (x,))["b"]
    step = float(plan["2"].params.scale)
    differs = np.asarray((a - b).abs() > 0.5 * step)
    assert differs.mean() < 1e-3, "but for rounding ties"
    float_out = model(x).detach()
    before = run_lanes(study.graph, [Lane("c", plan.without(["2"]))], (x,))["c"]
    after = run_lanes(study.graph, [Lane("d", edited.without(["2"]))], (x,))["d"]
    assert (after - float_out).square().mean() < (before - float_out).square().mean()


def test_equalization_does_not_apply_across_additions_or_bounded_activations() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.a(x)
            return self.b(y) + y

    x = torch.randn(2, 3, 4, 4)
    graph = build(Residual().eval(), x)
    assert next_layer(graph, graph.operation("a")) is None
    bounded = build(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU6(), nn.Conv2d(3, 3, 1)).eval(), x)
    assert next_layer(bounded, bounded.operation("0")) is None
    plain = build(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 3, 1)).eval(), x)
    found = next_layer(plain, plain.operation("0"))
    assert found is not None
    assert found.name == "3"
