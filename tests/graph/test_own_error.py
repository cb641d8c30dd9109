"""A graph is not blamed for what the model's own float32 arithmetic leaves open."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qkit
from qkit.graph import DEVIATION, assembly, build


class Cancelling(nn.Module):
    """A norm takes away again what a bias added, a million times as much as the rest: folded, nothing is lost on the way."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        with torch.no_grad():
            self.conv.bias.fill_(size)
            self.norm.running_mean.fill_(size)

    def forward(self, x):
        return self.last(torch.relu(self.norm(self.conv(x))))


class Noisy(Cancelling):
    """Does not repeat itself either."""

    def forward(self, x):
        return super().forward(x) + torch.rand_like(x[:, :1, :1, :1])


@pytest.fixture
def ways(monkeypatch):
    """The ways in that were tried."""
    tried = []
    for name in ("_at_a_prime", "_as_it_is", "_through_fx"):
        real = getattr(assembly, name)
        monkeypatch.setattr(assembly, name, lambda source, real=real, name=name: (tried.append(name), real(source))[1])
    return tried


def images():
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_rounding_of_the_models_own_is_told_from_another_function(ways):
    model = Cancelling(1e6).eval()
    graph = build(model, images())
    exact = model.double()(images().double())
    model.float()
    with torch.no_grad():
        own = float((model(images()).double() - exact).abs().max() / exact.abs().max())
    assert graph.deviation > DEVIATION
    assert graph.own_error == pytest.approx(own, rel=1e-3)
    assert graph.unexplained == 0.0
    assert ways == ["_at_a_prime"], "no further way in is tried"


def test_a_study_says_so_and_blames_nobody(caplog):
    study = qkit.Study(Cancelling(1e6), [images()], metric="agreement")
    assert any("float64" in remark for remark in study.remarks)
    assert not any("distrust" in remark for remark in study.remarks)
    assert "graph-transform" not in [cause.kind for cause in study.diagnose(progress=False).causes]


def test_a_small_deviation_costs_no_pass_in_float64(monkeypatch):
    monkeypatch.setattr(assembly, "_own_error", lambda *_: pytest.fail("not asked for"))
    graph = build(Cancelling(1.0).eval(), images())
    assert graph.deviation <= DEVIATION
    assert graph.own_error == 0.0


def test_noise_is_no_rounding():
    graph = build(Noisy(1.0).eval(), images())
    assert graph.deviation > DEVIATION
    assert graph.unexplained == graph.deviation
