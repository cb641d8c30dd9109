"""The search against brute force over all subsets, and its answer against plans scored one by one."""

from __future__ import annotations

import itertools
import json
import logging
import re
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from small_networks import fake_quantized, mixed_network, quantized_bias
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
import qkit.mixed.fewest as finding
from qkit.errors import QkitError
from qkit.execution.evaluator import Budget, Evaluator, OutOfBudgetError, relative_errors
from qkit.figures.front import draw
from qkit.mixed import Mixed, search
from qkit.mixed.fewest import Trials
from qkit.mixed.settings import Network, network
from qkit.progress import listening
from qkit.quant.schemes import PRESETS
from qkit.study import Study


class Chain(nn.Module):
    """Three convolutions, one of them depthwise with channels far apart, and a classifier: six layers."""

    def __init__(self, bad: int) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 12, 1)
        self.d = nn.Linear(12, 5)
        with torch.no_grad():
            layer = (self.a, self.b, self.c)[bad]
            layer.weight[0] *= 300.0
            follow = (self.b, self.c, self.d)[bad]
            if bad == 0:
                follow.weight[0] /= 300.0
            else:
                follow.weight[:, 0] /= 300.0

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c(F.relu(self.b(F.relu(self.a(x))))))
        return self.d(x.mean((2, 3)))


def likeness(outputs: Tensor, targets: Tensor) -> Tensor:
    """Continuous: how near the outputs come to those of the float network, which are the targets."""
    return 1.0 - (outputs - targets).square().sum(1) / targets.square().sum(1)


@cache
def chain(bad: int, seed: int = 0, scheme: str = "int8-per-tensor") -> Study:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Chain(bad).eval()
        x = torch.randn(48, 3, 8, 8)
    with torch.no_grad():
        y = model(x)
    parts = list(zip(x.split(16), y.split(16), strict=True))
    return Study(model, parts[:2], parts[2:], metric=likeness, scheme=scheme)


def subset_plan(study: Study, taps: tuple[str, ...]) -> qkit.Plan:
    """The plan with these layers in 16 bits, put together by hand."""
    wide = study.lane("int16")
    names = [n for tap in taps for n in (tap, f"{tap}.weight") if n in study.plan.grids]
    grids = {name: wide.grids[name] if name in names else grid for name, grid in study.plan.grids.items()}
    return qkit.Plan(grids, 64 if taps else study.plan.bias_bits, "by hand")


def brute_force(study: Study, loader: Any, target: float, costs: dict[str, int]) -> int:
    """Least cost of all subsets that reach the target, each scored in an evaluation of its own."""
    best = sum(costs.values())
    other = Study(study.model, study.calibration, loader, metric=study.metric, scheme=study.scheme)
    plans = {taps: subset_plan(study, taps) for n in range(len(costs) + 1) for taps in itertools.combinations(costs, n)}
    for start in range(0, len(plans), 32):
        part = dict(itertools.islice(plans.items(), start, start + 32))
        scores = other.evaluate({"/".join(taps): plan for taps, plan in part.items()}, progress=False)
        for taps in part:
            if scores.lanes["/".join(taps)].mean() >= target:
                best = min(best, sum(costs[tap] for tap in taps))
    return best


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("tolerance", [0.0001, 0.001, 0.01])
def test_the_optimum_of_all_subsets_is_found(bad: int, tolerance: float) -> None:
    study = chain(bad)
    mixed = search(study, tolerance=tolerance, caution=0.0, progress=False)
    assert list(mixed.costs) == list(study.graph.taps)
    best = brute_force(study, study.calibration, mixed.selection_target, dict(mixed.costs))
    own = sum(mixed.costs[name] for name in mixed.layers)
    assert mixed.reached_in_search
    assert best <= own <= 1.02 * best
    assert mixed.scored < 2 ** len(mixed.costs)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
@pytest.mark.parametrize("scheme", ["int8-per-tensor", "int8-power-of-two"])
def test_the_optimum_is_found_or_nearly_so_for_many_networks(seed: int, scheme: str) -> None:
    for bad, tolerance in itertools.product(range(3), (0.0002, 0.002, 0.02)):
        study = chain(bad, seed, scheme)
        mixed = search(study, tolerance=tolerance, caution=0.0, progress=False)
        best = brute_force(study, study.calibration, mixed.selection_target, dict(mixed.costs))
        own = sum(mixed.costs[name] for name in mixed.layers)
        assert best <= own <= 1.1 * best


def test_the_planted_layer_is_the_one_and_cheaper_than_any_end() -> None:
    mixed = search(chain(1), tolerance=0.002, caution=0.0, progress=False)
    assert "b" in mixed.layers
    assert mixed.reached
    growing = [s for s in mixed.baselines if s.name not in {"none", "all"} and s.reached]
    assert growing
    assert all(mixed.share < s.share for s in growing)
    assert mixed.best_baseline is min(growing, key=lambda s: s.share)


def test_shares_count_multiply_accumulates_and_elements() -> None:
    mixed = search(chain(1), tolerance=0.01, progress=False)
    assert dict(mixed.costs) == {
        "input": 3 * 8 * 8,
        "a": 8 * 3 * 9 * 36,
        "b": 8 * 9 * 16,
        "c": 12 * 8 * 16,
        ":mean": 12,
        "d": 60,
    }
    total = sum(mixed.costs.values())
    for setting in (mixed.found, *mixed.front, *mixed.baselines):
        assert setting.share == pytest.approx(sum(mixed.costs[name] for name in setting.layers) / total)


def test_settings_are_scored_as_plans_alone_are() -> None:
    study = chain(0)
    mixed = search(study, tolerance=0.001, progress=False)
    assert mixed.plan == subset_plan(study, mixed.layers)
    for setting in (mixed.found, *mixed.front, *mixed.baselines):
        scores = study.evaluate({"it": subset_plan(study, setting.layers), "float": qkit.FLOAT}, progress=False)
        assert setting.evaluation.value == pytest.approx(scores["it"].value, abs=1e-12)
        assert setting.loss.low == pytest.approx(scores.loss("it").low, abs=1e-12)
    assert study.with_plan(mixed.plan).score() == mixed.found.evaluation


def test_a_mixed_plan_equals_plain_torch() -> None:
    study = chain(1)
    plan = search(study, tolerance=0.001, progress=False).plan
    model, (x, _) = study.model, next(iter(study.evaluation))
    quantized = fake_quantized(x, plan, "input")
    with torch.no_grad():
        for name, source, call in (("a", "input", F.conv2d), ("b", "a", F.conv2d), ("c", "b", F.conv2d)):
            layer = getattr(model, name)
            weight, bias = fake_quantized(layer.weight, plan, f"{name}.weight"), quantized_bias(layer.bias, plan, source, name)
            quantized = fake_quantized(F.relu(call(quantized, weight, bias, groups=layer.groups)), plan, name)
        pooled = fake_quantized(quantized.mean((2, 3)), plan, ":mean")
        bias = quantized_bias(model.d.bias, plan, ":mean", "d")  # type: ignore[union-attr,arg-type]
        want = fake_quantized(F.linear(pooled, fake_quantized(model.d.weight, plan, "d.weight"), bias), plan, "d")  # type: ignore[union-attr,arg-type]
    got = qkit.execution.lanes.run_lanes(study.graph, [qkit.execution.lanes.Lane("it", plan)], (x,))["it"]
    step = float(plan["d"].params.scale)
    assert float((got - want).abs().max()) <= 2 * step


def test_front_and_baselines_are_what_they_say() -> None:
    mixed = search(chain(2), tolerance=0.0005, progress=False)
    names = [s.name for s in mixed.baselines]
    assert names[:5] == ["none", "all", "first", "last", "first and last"]
    none, everything = mixed.baselines[:2]
    assert (none.share, everything.share) == (0.0, 1.0)
    assert mixed.baselines[2].layers == ("input", "a")
    assert mixed.baselines[3].layers == ("d",)
    shares = [s.share for s in mixed.front]
    assert shares == sorted(set(shares))
    for name, setting in zip(names[5:], mixed.baselines[5:], strict=True):
        assert setting.selection >= mixed.selection_target
        assert name.rsplit(" ", 1)[1].isdigit()


def test_nothing_is_in_sixteen_bits_where_eight_reach_the_target(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "qkit.mixed"):
        mixed = search(chain(1), target=-5.0, progress=False)
    assert mixed.layers == ()
    assert mixed.share == 0.0
    assert mixed.reached
    assert mixed.plan == chain(1).plan
    assert "6 layers" in caplog.text


def test_a_target_that_sixteen_bits_miss_is_said_to_be_no_matter_of_width(caplog: pytest.LogCaptureFixture) -> None:
    mixed = search(chain(1), target=1.5, progress=False)
    assert not mixed.reached
    assert not mixed.reached_in_search
    assert mixed.found.layers == tuple(mixed.costs)
    assert any("width" in remark for remark in mixed.remarks)
    assert "width" in repr(mixed)
    assert "width" in caplog.text


def test_the_budget_bounds_the_search() -> None:
    for budget in (2, 5, 9, 14):
        mixed = search(chain(0), tolerance=0.0005, budget=budget, progress=False)
        assert mixed.scored <= budget
        assert mixed.reached_in_search
        assert any(f"budget of {budget} sets" in remark for remark in mixed.remarks)


def test_an_interrupt_goes_up_and_the_search_goes_on_from_there() -> None:
    study = chain.__wrapped__(0)
    scored = []

    def listener(what: str, done: int, total: int | None) -> None:
        if what == "one layer narrow" and not scored:
            raise KeyboardInterrupt

    with listening(listener), pytest.raises(KeyboardInterrupt):
        search(study, tolerance=0.0005)
    with listening(lambda what, done, total: scored.append(what)):
        found = search(study, tolerance=0.0005)
    assert found.to_dict() == search(chain(0), tolerance=0.0005, progress=False).to_dict()
    assert "all and none in 16 bits" not in scored, "what was finished is not run again"


def test_selection_data_without_targets_and_the_evaluation_data() -> None:
    model = mixed_network()
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(24, 3, 16, 16, generator=draw)
    with torch.no_grad():
        y = model(x).argmax(1)
    study = Study(model, [x[:8], x[8:16]], [(x[16:], y[16:])], metric="top1")
    mixed = search(study, progress=False)
    assert mixed.selection_metric == "agreement"
    assert mixed.metric == "top1"
    assert mixed.float_selection == 1.0
    assert any("no targets" in remark for remark in mixed.remarks)
    flattered = search(study, select="evaluation", progress=False)
    assert any("flattered" in remark for remark in flattered.remarks)
    assert flattered.found.selection == flattered.found.evaluation.value
    alone = search(Study(model, [(x, y)]), progress=False)
    assert any("flattered" in remark for remark in alone.remarks)


def test_the_study_comes_back_as_it_was() -> None:
    study = chain(1)
    plan, state = study.plan, torch.get_rng_state()
    search(study, tolerance=0.001, progress=False)
    assert study.plan is plan
    assert torch.equal(torch.get_rng_state(), state)
    first, second = (search(study, tolerance=0.001, progress=False).to_dict() for _ in range(2))
    assert first == second


def test_arguments_are_checked() -> None:
    study = chain(1)
    for options, message in (
        ({"select": "training"}, r"^select .*'training'"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"caution": -1.0}, "caution=-1.0"),
        ({"budget": 1}, "budget=1"),
    ):
        with pytest.raises(QkitError, match=message):
            search(study, progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(QkitError, match=r"\b16 bits\b"):
        search(study.with_scheme("int16"), progress=False)


def test_layers_that_are_in_sixteen_bits_already_count_and_are_no_choice() -> None:
    study = chain(1).with_scheme("int8-weights-int16-activations")
    net = network(study.graph, study.plan, study.lane("int16"))
    assert [net.layers[i].name for i in sorted(net.choices)] == ["a", "b", "c", "d"]
    mixed = search(study, target=-5.0, progress=False)
    assert mixed.share == pytest.approx((192 + 12) / sum(mixed.costs.values()))


class Twice(nn.Module):
    """One convolution in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.conv(x))).mean((2, 3))


def test_steps_that_share_a_weight_are_one_layer() -> None:
    study = Study(Twice(), [torch.randn(4, 3, 6, 6)])
    net = network(study.graph, study.plan, study.lane("int16"))
    layer = next(layer for layer in net.layers if layer.weighted)
    assert layer.taps == ("conv", "conv#2")
    assert set(layer.grids) == {"conv.weight", "conv", "conv#2"}
    assert layer.cost == 2 * 9 * 9 * 36


def test_biases_corrections_and_accumulators_follow_the_width() -> None:
    study = chain(1)
    base = qkit.Plan(study.plan.grids, 32, "base", {"b": (0.5,) * 8, "c": (0.5,) * 12}, 32)
    wide = qkit.Plan(study.lane("int16").grids, 64, "wide", {}, 48)
    net = network(study.graph, base, wide)
    at = {layer.name: i for i, layer in enumerate(net.layers)}
    made = net.plan([at["b"]])
    assert (made.bias_bits, made.accumulator_bits) == (64, 48)
    assert set(made.corrections) == {"c"}
    assert net.plan([]) is base
    assert made["b"].spec.bits == made["b.weight"].spec.bits == 16
    assert made["a"].spec.bits == 8


def test_wider_biases_alone_are_remarked() -> None:
    study = chain(1)
    scheme = qkit.Scheme("narrow", PRESETS["int8"].weight, PRESETS["int8"].activation, bias_bits=3)
    mixed = search(study.with_scheme(scheme), tolerance=0.001, progress=False)
    assert any("bias_bits" in remark for remark in mixed.remarks)


def test_trials_score_each_set_once_and_stop_at_the_budget() -> None:
    study = chain(1)
    net: Network = network(study.graph, study.plan, study.lane("int16"))
    trials = Trials(net, Evaluator(study.graph, study.evaluation, likeness), None, Budget(3), progress=False)
    trials.run([frozenset(), frozenset([0])], frozenset(), "x")
    trials.run([frozenset(), frozenset([0])], frozenset(), "x")
    assert trials.spent == 2
    with pytest.raises(OutOfBudgetError):
        trials.run([frozenset([1]), frozenset([2])], frozenset(), "x")
    assert set(trials.known) == {frozenset(), frozenset([0]), frozenset([1])}


def test_relative_errors_are_float64_arithmetic() -> None:
    a, b = torch.randn(5, 7), torch.randn(5, 7)
    want = ((a.double() - b.double()) ** 2).sum(1) / (b.double() ** 2).sum(1)
    np.testing.assert_allclose(relative_errors(a, b, 5), want.numpy(), rtol=1e-12)
    whole = relative_errors(a.sum(0), b.sum(0), 5)
    assert whole.shape == (5,)
    assert len(set(whole.tolist())) == 1


def test_caution_asks_for_more() -> None:
    scores = {}
    for caution in (0.0, 1.0, 3.0):
        mixed = search(chain(0), tolerance=0.001, caution=caution, progress=False)
        scores[caution] = mixed.found.selection
    assert scores[0.0] <= scores[1.0] <= scores[3.0]


def test_result_in_all_forms() -> None:
    mixed = search(chain(1), tolerance=0.001, progress=False)
    assert isinstance(mixed, Mixed)
    table = mixed.table()
    assert list(table.index[:3]) == ["found", "none", "all"]
    assert table.loc["found", "share"] == mixed.share
    data = json.loads(json.dumps(mixed.to_dict()))
    assert data["found"]["layers"] == list(mixed.layers)
    assert data["reached"] == mixed.reached
    assert mixed.layers[0] in mixed._repr_html_()
    assert f"{mixed.share:.1%}" in repr(mixed)
    assert "0x" not in repr(mixed)


def test_the_picture_has_units_and_all_points() -> None:
    mixed = search(chain(1), tolerance=0.001, progress=False)
    ax = draw(mixed, ax=Figure().add_subplot())
    assert re.search(r"multiply-accumulates.*\b16 bits\b.*%$", ax.get_xlabel())
    assert "likeness" in ax.get_ylabel()
    assert "%" not in ax.get_ylabel()
    labels = [text.get_text() for text in ax.get_legend().get_texts()]  # type: ignore[union-attr]
    assert labels == ["float", "target", "front", "baselines", "found"]
    picture = mixed.plot()
    assert picture.figure.axes[0].get_ylabel() == ax.get_ylabel()
    assert picture.png().startswith(b"\x89PNG")
    assert not plt.get_fignums()


@cache
def hostile(scheme: str) -> Study:
    from qkit import zoo

    case = zoo.load("mobilenet_v2_hostile")
    return Study(case.model, calibration=case.calibration, evaluation=case.evaluation, metric="top1", scheme=scheme)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "most"), [("int8-per-tensor", 0.15), ("int8-power-of-two", 0.2)])
def test_the_hostile_network_needs_a_fraction_of_what_heuristics_do(scheme: str, most: float) -> None:
    mixed = search(hostile(scheme), progress=False)
    assert mixed.reached
    assert mixed.share < most
    assert "%" in mixed.plot().figure.axes[0].get_ylabel()
    best = mixed.best_baseline
    assert best is None or mixed.share < 0.5 * best.share
    assert not any(s.reached for s in mixed.baselines if s.name in {"none", "first", "last", "first and last"})


@pytest.mark.slow
def test_the_hostile_network_in_brief() -> None:
    mixed = search(hostile("int8-per-tensor"), batches=1, budget=160, progress=False)
    assert mixed.reached_in_search
    assert mixed.share < 0.3
    assert finding.CAUTION == 1.0


@pytest.mark.parametrize("bad", [0, 1, 2])
@pytest.mark.parametrize("budget", [2, 3, 6])
def test_a_small_budget_is_no_worse_than_the_baselines(bad: int, budget: int) -> None:
    """With two sets, none and all layers in 16 bits, a search has found nothing, and a baseline may have."""
    mixed = search(chain(bad), tolerance=0.001, budget=budget, progress=False)
    reaching = [setting for setting in mixed.baselines if setting.selection >= mixed.selection_target]
    assert reaching
    assert mixed.found.share <= min(setting.share for setting in reaching)
