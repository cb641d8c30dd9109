"""Costs from gradients: against a dense computation in float64, and against what is measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.func import functional_call, jacrev

import qkit
from qkit import QkitError, zoo
from qkit.execution.gradient import rank_by_gradient
from qkit.execution.lanes import lane_weight


def small(outputs: int = 3) -> tuple[nn.Module, list[torch.Tensor]]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, groups=4, padding=1),
            nn.Flatten(),
            nn.Linear(144, outputs),
        )
        images = [torch.randn(12, 2, 6, 6) for _ in range(2)]
    return model.eval(), images


def test_a_weights_cost_is_its_error_in_the_fisher_matrix() -> None:
    """``1/2 D^T J^T (diag(p) - p p^T) J D``, with the whole Jacobian, a sample at a time, in float64."""
    model, images = small()
    study = qkit.Study(model, images, metric="agreement", scheme="int8-per-tensor")
    study.calibrate(progress=False)
    many = rank_by_gradient(study.graph, [torch.cat(images)] * 60, study.plan, study.metric, progress=False)
    wide = model.double()
    parameters = dict(wide.named_parameters())
    for name in ("0.weight", "2.weight", "4.weight"):
        error = (lane_weight(study.graph, study.plan, name) - study.graph.weights[name]).double()
        exact = []
        for x in torch.cat(images).double():

            def logits(w: torch.Tensor, x: torch.Tensor = x, name: str = name) -> torch.Tensor:
                return functional_call(wide, {**parameters, name: w}, (x[None],))[0]

            moved = torch.einsum("o...,...->o", jacrev(logits)(parameters[name]), error)
            p = logits(parameters[name]).softmax(0)
            exact.append(0.5 * float(((p * moved.square()).sum() - (p * moved).sum().square()).detach()))
        found = many.costs[name].reshape(60, -1).mean(0)
        assert found.mean() == pytest.approx(np.mean(exact), rel=0.1)
        assert spearmanr(found, exact).statistic > 0.95
    model.float()


def test_an_activations_cost_is_its_error_too() -> None:
    """The last tensor's own rounding, whose Jacobian is the identity."""
    model, images = small()
    study = qkit.Study(model, images, metric="agreement", scheme="int8-per-tensor")
    study.calibrate(progress=False)
    many = rank_by_gradient(study.graph, [torch.cat(images)] * 60, study.plan, study.metric, progress=False)
    with torch.no_grad():
        y = model(torch.cat(images)).double()
    rounded = qkit.fake_quantize(y.float(), study.plan.params("4")).double()
    p, error = y.softmax(1), rounded - y
    exact = 0.5 * ((p * error.square()).sum(1) - (p * error).sum(1).square())
    assert many.costs["4"].mean() == pytest.approx(float(exact.mean()), rel=0.1)


def test_other_outputs_have_squared_error() -> None:
    """Of a linear network the cost is the error itself, over the outputs' variance."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)).eval()
        images = [torch.randn(16, 2, 6, 6) for _ in range(3)]
    study = qkit.Study(model, images, metric="closeness", scheme="int4-weights")
    study.calibrate(progress=False)
    many = rank_by_gradient(study.graph, images * 40, study.plan, study.metric, progress=False)
    with torch.no_grad():
        y = torch.cat([model(x) for x in images]).double()
        moved = torch.cat(
            [study.graph.operation("0").call(x, lane_weight(study.graph, study.plan, "0.weight"), model[0].bias) for x in images]
        )
    exact = 0.5 * float((moved.double() - y).square().mean() / y.var(correction=0))
    assert many.costs["0.weight"].mean() == pytest.approx(exact, rel=0.1)
    assert many.loss == "squared error"


def divergence(outputs: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
    """Of the lane's classes from float's, in nats: what cross-entropy rises by where labels are drawn from float's outputs."""
    p, q = (y.double().log_softmax(1) for y in (exact, outputs))
    return (p.exp() * (p - q)).sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_hostile", "mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small"])
def test_the_ranking_is_that_of_what_is_measured(name: str) -> None:
    """Every weight and activation quantized alone: rank correlation with the measured rise of cross-entropy."""
    case = zoo.load(name)
    images = list(case.evaluation)[:2]
    measure = qkit.Metric(divergence, "divergence", "nats", "lower", against="float")
    study = qkit.Study(case.model, case.calibration, images, metric=measure, scheme="int8-per-tensor")
    study.calibrate(progress=False)
    ranking = study.with_metric("top1").sensitivity("gradient", progress=False)
    plan = study.plan
    plans = {"float": qkit.FLOAT, **{tensor: plan.only([tensor]) for tensor in plan.grids}}
    scores = study.evaluate(plans, progress=False)
    both = np.array([[float(cost.mean()), scores.loss(tensor).value] for tensor, cost in ranking.costs.items()])
    assert len(both) == len(plan.grids)
    weights = np.array([tensor in study.graph.weights for tensor in ranking.costs])
    for chosen in (weights, ~weights):  # of vgg_small ten each
        assert spearmanr(both[chosen, 0], both[chosen, 1]).statistic > 0.9
    assert spearmanr(both[:, 0], both[:, 1]).statistic > 0.95


def test_samples_keep_their_places_and_the_seed_hardly_matters() -> None:
    """Samples go through in parts that are sorted by how sure they are, of a batch as of single ones."""
    case = zoo.load("vgg_small")
    x = next(iter(case.evaluation))[0][:28]
    study = qkit.Study(case.model, case.calibration, [x], metric="agreement", scheme="int8-per-tensor")
    study.calibrate(progress=False)

    def ranked(batches: list[torch.Tensor], seed: int = 0) -> np.ndarray:
        found = rank_by_gradient(study.graph, batches, study.plan, study.metric, seed=seed, progress=False)
        return np.stack(list(found.costs.values()))

    whole, other, single = ranked([x]), ranked([x], 1), ranked([x[i : i + 1] for i in range(28)])
    assert spearmanr(whole.mean(1), other.mean(1)).statistic > 0.95
    assert spearmanr(whole.mean(1), single.mean(1)).statistic > 0.95
    # over all tensors a sample has about the same, whichever part it goes in
    assert spearmanr(whole.sum(0), single.sum(0)).statistic > 0.7


def test_a_map_of_classes_is_ranked_by_cross_entropy() -> None:
    """``1/2 sum of D^T (diag(p) - p p^T) D / positions`` of the last tensor's own rounding."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)).eval()
        x = 3.0 * torch.randn(12, 2, 5, 5)
    study = qkit.Study(model, [x], metric="agreement", scheme="int4-weights")
    plan = study.with_scheme("int8-per-tensor").plan
    many = rank_by_gradient(study.graph, [x] * 60, plan, study.metric, progress=False)
    with torch.no_grad():
        y = model(x).double()
    error = qkit.fake_quantize(y.float(), plan.params("0")).double() - y
    p = y.softmax(1)
    exact = 0.5 * ((p * error.square()).sum(1) - (p * error).sum(1).square()).mean((1, 2))
    assert many.costs["0"].mean() == pytest.approx(float(exact.mean()), rel=0.1)
    assert many.loss == "cross-entropy"


def test_layers_and_data_are_those_asked_for() -> None:
    model, images = small()
    study = qkit.Study(model, images, metric="agreement", scheme="int8")
    study.calibrate(progress=False)
    found = study.sensitivity("gradient", layers=["0"], batches=1, progress=False)
    assert set(found.costs) == {"0", "0.weight"}
    assert all(len(cost) == 12 for cost in found.costs.values())
    again = study.sensitivity("gradient", layers=["0"], batches=1, progress=False)
    assert np.array_equal(found.costs["0"], again.costs["0"]), "the same vectors every time"
    assert list(found.table().index) == found.order
    assert float(found.table()["share"].sum()) == pytest.approx(1.0)
    assert "<table" in found._repr_html_()
    assert set(found.to_dict()) == {"loss", "tensors"}


def test_a_network_without_gradients_says_so() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x).flatten(1).argmax(1, keepdim=True).float()

    images = [torch.randn(4, 2, 3, 3)]
    study = qkit.Study(Counting().eval(), images, metric="closeness", scheme="int8")
    study.calibrate(progress=False)
    with pytest.raises(QkitError, match=r"gradient.*'only'"):
        study.sensitivity("gradient", progress=False)


def test_windows_of_a_sample_are_its_own() -> None:
    """A network that cuts its images into windows along the first dimension costs what the same one without windows does."""

    class Windows(nn.Module):
        def __init__(self, *, cut: bool) -> None:
            super().__init__()
            self.cut = cut
            self.first, self.last = nn.Linear(6, 6), nn.Linear(24, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x.reshape(-1, 2, 6) if self.cut else x)
            return self.last(y.reshape(-1, 24))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Windows(cut=True).eval(), torch.randn(20, 4, 6)
        plain = Windows(cut=False).eval()
        plain.load_state_dict(model.state_dict())
    found = []
    for network in (model, plain):
        study = qkit.Study(network, [x], metric="agreement", scheme="int8-per-tensor")
        study.calibrate(progress=False)
        found.append(study.sensitivity("gradient", progress=False).costs)
    for tensor in ("first", "first.weight", "last", "last.weight"):
        np.testing.assert_allclose(found[0][tensor], found[1][tensor], rtol=1e-3, atol=1e-12)
