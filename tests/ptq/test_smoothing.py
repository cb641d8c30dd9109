"""Scales between norms and linear layers: exact in float, by the paper's formula, in the model as in the graph."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.localize import subjects
from qkit.engines.onnx import export
from qkit.errors import GraphError, PlanError, QkitError
from qkit.graph import build, run_float
from qkit.graph.smoothing import readers_of, smoothed
from qkit.ptq import smooth
from qkit.ptq.smoothing import divided, factors_of, norms

CHANNELS = 16


class Block(nn.Module):
    """Two norms in front of linear layers, one of them read by two, and one in front of an addition too."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(CHANNELS)
        self.query, self.key = nn.Linear(CHANNELS, CHANNELS), nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.norm2 = nn.RMSNorm(CHANNELS)
        self.fc = nn.Linear(CHANNELS, 8)
        self.norm3 = nn.LayerNorm(8)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        n, length, channels = x.shape
        y = self.norm1(x)
        x = x + self.query(y.reshape(n, 2, length // 2, channels).permute(0, 2, 1, 3)).permute(0, 2, 1, 3).reshape(n, length, -1)
        x = x + self.key(y)
        z = self.norm3(self.fc(torch.roll(self.norm2(x), 1, dims=1)))
        return (z + self.last(z)).mean(1)


def block(seed: int = 0) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(seed)
    model = Block().eval()
    for norm in (model.norm1, model.norm2):
        norm.weight.data.uniform_(0.5, 1.5)
        norm.weight.data[[3, 7]] *= 60.0
    for layer in (model.query, model.key, model.fc):
        layer.weight.data[:, [3, 7]] /= 60.0
    return model, torch.randn(32, 6, CHANNELS)


def study_of(model: nn.Module, x: Tensor, **more: object) -> qkit.Study:
    targets = model(x).argmax(1).detach()
    batches = [(x[i : i + 16], targets[i : i + 16]) for i in range(0, len(x), 16)]
    study = qkit.Study(model, batches, batches, metric="top1", **more)
    study.calibrate("minmax", progress=False)
    return study


def test_readers_are_linear_layers_behind_what_moves_tokens_alone() -> None:
    model, x = block()
    graph = build(model, (x,))
    found, skipped = norms(model, graph)
    assert {tap: [op.name for op in readers] for tap, readers in found.items()} == {"norm1": ["query", "key"], "norm2": ["fc"]}
    assert set(skipped) == {"norm3"}


def test_factors_are_those_of_the_paper() -> None:
    model, x = block()
    study = study_of(model, x)
    seen = study.observe(progress=False)["norm1"]
    with torch.no_grad():
        reach = model.norm1(x).abs().amax((0, 1)).double()
        columns = torch.cat((model.query.weight, model.key.weight)).abs().amax(0).double()
    for alpha in (0.0, 0.5, 0.8, 1.0):
        expected = reach**alpha / columns ** (1.0 - alpha)
        expected /= expected.log().mean().exp()
        np.testing.assert_allclose(factors_of(study.graph, "norm1", seen, alpha), expected.numpy(), rtol=1e-5)


def test_the_model_stays_the_same_in_float_and_its_channels_become_even() -> None:
    model, x = block()
    before = copy.deepcopy(model.state_dict())
    study = study_of(model, x)
    found = smooth(model, study.graph, study.observe(progress=False))
    assert set(found.factors) == {"norm1", "norm2"}
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), model(x), rtol=1e-4, atol=1e-5)
        peaks = [m.norm1(x).abs().amax((0, 1)) for m in (model, found.model)]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert peaks[0].max() / peaks[0].median() > 20
    assert peaks[1].max() / peaks[1].median() < 4


def test_the_graph_with_factors_is_that_of_the_model_with_them() -> None:
    model, x = block()
    graph = build(model, (x,))
    factors = {
        tap: tuple(torch.rand(CHANNELS, generator=torch.Generator().manual_seed(1)).add(0.2).tolist())
        for tap in ("norm1", "norm2")
    }
    other, deviation = divided(model, graph, factors)
    assert deviation < 1e-5
    there, here = build(other, (x,)), smoothed(graph, factors)
    assert all(torch.equal(there.weights[name], here.weights[name]) for name in there.weights)
    torch.testing.assert_close(run_float(there, (x,)), run_float(here, (x,)), rtol=0, atol=0)


@pytest.mark.parametrize("change", ["frozen", "shared", "no weight", "called twice"])
def test_norms_that_cannot_take_scales_are_left(change: str) -> None:
    model, x = block()
    if change == "frozen":
        model.norm1.weight.requires_grad_(False)
    elif change == "shared":
        model.norm1.weight = model.norm2.weight
    elif change == "no weight":
        model.norm1 = nn.LayerNorm(CHANNELS, elementwise_affine=False)
    else:
        model.key = model.query
    graph = build(model, (x,))
    found, skipped = norms(model, graph)
    assert "norm1" in skipped
    assert "norm1" not in found
    with pytest.raises(GraphError, match="norm1"):
        divided(model, graph, {"norm1": (1.0,) * CHANNELS})


def test_a_norm_whose_weight_is_not_the_parameter_itself_is_left() -> None:
    class Offset(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.rms_norm(x, self.normalized_shape, self.weight + 1.0, self.eps)

    torch.manual_seed(0)
    model = nn.Sequential(Offset(8), nn.Linear(8, 4)).eval()
    graph = build(model, (torch.randn(4, 8),))
    assert norms(model, graph)[0] == {}


def test_bad_calls_are_refused() -> None:
    model, x = block()
    study = study_of(model, x)
    with pytest.raises(GraphError, match=r"alpha=1\.5"):
        smooth(model, study.graph, study.observe(progress=False), alpha=1.5)
    with pytest.raises(GraphError, match="16 channels"):
        divided(model, study.graph, {"norm1": (1.0, 2.0)})
    with pytest.raises(GraphError, match="norm3"):
        smoothed(study.graph, {"norm3": (1.0,) * 8})
    assert readers_of(study.graph, study.graph.operation("norm3")) == ()


def test_a_plan_with_factors_scores_as_the_study_of_the_smoothed_model(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model, x = block()
    study = study_of(model, x)
    subject = subjects(Bench(study, progress=False), study.plan)["norm1"]
    remedy = subject.smoothing()
    assert remedy is not None
    assert remedy.kind == "smooth-scales"
    plan = remedy.plan(study.plan)
    applied = study.apply(remedy)
    assert applied.model is not model
    assert not applied.plan.factors
    outcome = study.evaluate({"now": study.plan, "smoothed": plan}, progress=False)
    assert outcome["smoothed"].value == applied.score(applied.plan).value == study.score(plan).value
    plan.save(tmp_path / "plan.json")
    assert qkit.Plan.load(tmp_path / "plan.json") == plan
    assert plan != study.plan
    with pytest.raises(PlanError, match=r"norm1.*study\.with_plan"):
        study.capture({"smoothed": plan}, progress=False)
    with pytest.raises(QkitError, match=r"norm1.*study\.with_plan"):
        export(study, plan, tmp_path / "net.onnx")


def test_calibration_has_it_as_a_step_that_stays_where_it_helps() -> None:
    model, x = block()
    study = study_of(model, x)
    done = study.ptc(["smoothing"], progress=False)
    assert done.treatment is not None
    (effect,) = done.treatment.effects
    assert (effect.step, effect.kept) == ("smoothing", True)
    assert effect.error < 0.25 * effect.before
    with torch.no_grad():
        torch.testing.assert_close(done.model(x), model(x), rtol=1e-4, atol=1e-5)
    assert done.treatment.remarks == ()


def test_a_network_without_norms_hears_nothing_of_the_step() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(32, 8)
    done = study_of(model, x).ptc(["smoothing"], progress=False)
    assert done.treatment is not None
    assert done.treatment.effects == ()
    assert done.treatment.remarks == ()
