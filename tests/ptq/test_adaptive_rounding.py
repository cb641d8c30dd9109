"""Adaptive rounding, against every choice of rounding there is."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from qkit.execution.lanes import Lane, lane_weight, run_lanes
from qkit.execution.loading import batches
from qkit.execution.observing import observe
from qkit.graph import build
from qkit.ptq.rounding import adapt_rounding
from qkit.quant.calibration import make_plan
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import Plan
from qkit.quant.schemes import Scheme


def setting(model: nn.Module, x: Tensor, bits: int = 4, *, per_channel: bool = True):
    graph = build(model, x)
    weight = QuantSpec(bits=bits, symmetric=True, signed=True, per_channel=per_channel, narrow=True)
    scheme = Scheme("weights", weight, None)
    return graph, make_plan(graph, observe(graph, [x], progress=False), scheme), list(batches([x]))


def correlated(n: int, features: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 3, generator=generator) @ torch.randn(3, features, generator=generator) + 0.5 * torch.randn(
        n, features, generator=generator
    )


def error_of(graph, plan: Plan, x: Tensor) -> Tensor:
    """Squared error of every output, summed over the samples, float64."""
    out = run_lanes(graph, [Lane("float"), Lane("lane", plan)], (x,))
    return (out["lane"].double() - out["float"].double()).square().sum(0)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_what_trying_every_rounding_finds(seed: int, per_channel: bool) -> None:
    torch.manual_seed(seed)
    model, x = nn.Sequential(nn.Linear(8, 5)), correlated(64, 8, seed)
    graph, plan, cal = setting(model, x, per_channel=per_channel)
    adapted, (layer,) = adapt_rounding(graph, plan, cal, progress=False)
    grid = plan["0.weight"].params
    scale = grid.scale.double().expand(5) if grid.axis is None else grid.scale.double()
    weight = model[0].weight.detach().double()
    best = []
    for row in range(5):
        floor = torch.floor(weight[row] / scale[row])
        choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)), dtype=torch.float64)
        codes = (floor + choices).clamp(grid.qmin, grid.qmax)
        errors = (x.double() @ (codes * scale[row] - weight[row]).T).square().sum(0)
        best.append(float(errors.min()))
    nearest, found = error_of(graph, plan, x), error_of(graph, adapted, x)
    # a few rows end beside the best choice: the relaxed problem has more than one minimum
    assert float(found.sum()) < 3.0 * sum(best)
    assert float(found.sum()) < 0.6 * float(nearest.sum())
    assert layer.adaptive == pytest.approx(
        float(found.sum()) / float((x.double() @ weight.T + model[0].bias.detach().double()).square().sum()), rel=1e-3
    )
    assert layer.moved == pytest.approx(
        float(
            (adapted.codes("0.weight").tensor != torch.round(weight / scale[:, None]).clamp(grid.qmin, grid.qmax)).double().mean()
        )
    )


def test_codes_are_the_two_neighbours_and_on_the_grid() -> None:
    torch.manual_seed(2)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=4)), torch.randn(8, 3, 8, 8)
    graph, plan, cal = setting(model, x, bits=3)
    adapted, layers = adapt_rounding(graph, plan, cal, progress=False)
    assert [layer.layer for layer in layers] == ["0", "2"]
    for layer in layers:
        assert layer.adaptive <= layer.nearest
        name = f"{layer.layer}.weight"
        params, codes = adapted[name].params, adapted.codes(name).tensor
        assert params == plan[name].params
        assert adapted[name].method.endswith("adaptive rounding")
        assert params.qmin <= int(codes.min()) <= int(codes.max()) <= params.qmax
        steps = graph.weights[name] / params.scale.view(-1, 1, 1, 1)
        assert float((codes - steps).abs().max()) <= 1.0 + 1e-5
        assert torch.allclose(lane_weight(graph, adapted, name), codes * params.scale.view(-1, 1, 1, 1))
    assert float(error_of(graph, adapted, x).sum()) < float(error_of(graph, plan, x).sum())


def test_the_activation_is_part_of_the_error() -> None:
    # channel 0 is clamped to zero whatever its weights round to: nothing is gained there, and nothing is claimed
    torch.manual_seed(4)
    layer = nn.Linear(6, 2)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([-1e3, 0.0]))
    x = correlated(64, 6)
    graph, plan, cal = setting(nn.Sequential(layer, nn.ReLU()), x, bits=3)
    adapted, (result,) = adapt_rounding(graph, plan, cal, progress=False)
    assert float(error_of(graph, plan, x)[0]) == 0.0
    assert result.adaptive < result.nearest
    assert float(error_of(graph, adapted, x)[1]) < float(error_of(graph, plan, x)[1])


def test_wide_grids_and_shared_weights_are_left_alone_and_nothing_is_drawn() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(self.shared(x).relu()))

    torch.manual_seed(0)
    x = correlated(32, 6)
    graph, plan, cal = setting(Twice(), x)
    state = torch.get_rng_state()
    first, layers = adapt_rounding(graph, plan, cal, progress=False)
    again, _ = adapt_rounding(graph, plan, cal, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert [layer.layer for layer in layers] == ["head"]
    graph, wide, cal = setting(Twice(), x, bits=16)
    assert adapt_rounding(graph, wide, cal, progress=False) == (wide, [])


def test_wide_layers_go_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    x = correlated(64, 24)
    graph, plan, cal = setting(nn.Sequential(nn.Linear(24, 6)), x, bits=3)
    whole, (at_once,) = adapt_rounding(graph, plan, cal, progress=False)
    monkeypatch.setattr("qkit.ptq.rounding._WIDEST", 10)
    parts, (in_parts,) = adapt_rounding(graph, plan, cal, progress=False)
    assert parts != whole
    assert in_parts.adaptive < 0.7 * in_parts.nearest
    assert in_parts.adaptive < 1.5 * at_once.adaptive
