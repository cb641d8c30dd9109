"""Sweeps equal the naive loop: one evaluation from the input for every layer, each with a plan of its own."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import READS, mixed_network, plain_run
from torch import Tensor, nn

import qkit.execution.evaluator
from qkit.errors import DataError, QkitError
from qkit.execution.evaluator import Evaluator
from qkit.execution.lanes import Lane, run_lanes, run_to
from qkit.execution.observing import observe
from qkit.execution.sensitivity import Sensitivity, known_sweep, sweep
from qkit.graph import Graph, build
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import PRESETS
from qkit.study import Study

SIZES = (4, 4, 3)


def margin(outputs: Tensor, targets: Any) -> Tensor:
    """A continuous score, so that a difference anywhere shows: the target's logit less the mean."""
    return outputs.gather(1, torch.as_tensor(targets)[:, None])[:, 0] - outputs.mean(1)


@cache
def setting() -> tuple[Graph, Plan, list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(sum(SIZES), 3, 16, 16, generator=draw), torch.randint(0, 5, (sum(SIZES),), generator=draw)
    batches = list(zip(x.split(SIZES), y.split(SIZES), strict=True))
    graph = build(mixed_network(), x[:2])
    plan = make_plan(graph, observe(graph, batches, progress=False), PRESETS["int8-per-tensor"])
    return graph, plan, batches


def separate_plan(plan: Plan, tap: str, mode: str) -> Plan:
    """The plan with the grids of one layer alone, or of all others, put together by hand."""
    own = {tap, f"{tap}.weight"}
    return Plan({name: g for name, g in plan.grids.items() if (name in own) == (mode == "only")}, plan.bias_bits, "separate")


def naive(mode: str, taps: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores by tap and of the base: one whole evaluation after the other."""
    graph, plan, batches = setting()

    def scores(plan: Plan) -> np.ndarray:
        return np.concatenate([margin(run_lanes(graph, [Lane("a", plan)], (x,))["a"], y).double().numpy() for x, y in batches])

    return np.stack([scores(separate_plan(plan, tap, mode)) for tap in taps]), scores(FLOAT if mode == "only" else plan)


@pytest.mark.parametrize("mode", ["only", "except"])
@pytest.mark.parametrize("budget", [1, 150_000, 1 << 30])
def test_sweep_equals_the_naive_loop(mode: Any, budget: int) -> None:
    graph, plan, batches = setting()
    result = sweep(Evaluator(graph, batches, margin), plan, mode, memory_budget=budget, progress=False)
    scores, base = naive(mode, tuple(READS))
    assert tuple(s.name for s in result.layers) == tuple(READS)
    assert np.array_equal(result.scores, scores)
    assert np.array_equal(result.base, base)
    assert (np.abs(scores - base).max(1) > 0).all(), "every layer matters here"


@pytest.mark.parametrize("mode", ["only", "except"])
def test_sweep_equals_plain_torch(mode: Any) -> None:
    graph, plan, batches = setting()
    result = sweep(Evaluator(graph, batches, margin), plan, mode, progress=False)
    model, (x, y) = mixed_network(), (torch.cat(parts) for parts in zip(*batches, strict=True))
    step = float(plan.grids["classify"].params.scale)
    for tap, scores in zip(READS, result.scores, strict=True):
        plain = margin(plain_run(model, x, separate_plan(plan, tap, mode))["classify"], y)
        # one code at a tie moves an output by about a step at the most, float outputs hardly at all
        close = 2 * step if (mode == "except") or tap == "classify" else 0.1 * step
        np.testing.assert_allclose(scores, plain.double(), atol=close, err_msg=tap)


@pytest.mark.parametrize("mode", ["only", "except"])
def test_a_lane_costs_the_steps_from_its_layer_on(mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, batches = setting()
    executed: Counter[str] = Counter()
    monkeypatch.setattr(qkit.execution.evaluator, "run_lanes", lambda *a, **k: run_lanes(*a, **k, executed=executed))
    monkeypatch.setattr(qkit.execution.evaluator, "run_to", lambda *a, **k: run_to(*a, **k, executed=executed))
    sweep(Evaluator(graph, batches[:1], margin), plan, mode, progress=False)
    expected = Counter(s.name for s in graph.operations)
    for op in graph.operations:
        if not op.quantized:
            continue
        reached = {op.index}
        for later in graph.operations[op.index + 1 :]:
            bias = mode == "except" and later.bias and graph.operations[later.inputs[0]].tap == op.name
            if reached.intersection(later.inputs) or bias:
                reached.add(later.index)
        expected += Counter(graph.operations[i].name for i in reached)
    assert executed == expected
    # groups compute the base's way to where they start once, never again from the input
    executed.clear()
    sweep(Evaluator(graph, batches[:1], margin), plan, mode, memory_budget=1, progress=False)
    assert executed["input"] <= expected["input"] + 1
    assert sum(executed.values()) <= sum(expected.values()) + 3 * len(graph.operations)


class Reusing(nn.Module):
    """One convolution in two places: its weight quantized changes both."""

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(6):
            x = self.base(x).relu()
        return self.last(x.mean((2, 3)))


@pytest.mark.parametrize("mode", ["only", "except"])
@pytest.mark.parametrize("layers", [None, ("base#4",), ("last", "base#6", "base#2")], ids=str)
def test_a_weight_that_was_used_before_its_layer(mode: Any, layers: tuple[str, ...] | None) -> None:
    x, y = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 2, 3, 4])
    graph = build(Reusing(), x)
    plan = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int8-per-tensor"])
    result = sweep(Evaluator(graph, [(x, y)], margin), plan, mode, layers=layers, memory_budget=1, progress=False)
    assert [s.name for s in result.layers] == [tap for tap in graph.taps if layers is None or tap in layers]
    for op, scores in zip(result.layers, result.scores, strict=True):
        own = {op.name, op.weight}
        separate = plan.where(lambda name, _, own=own: (name in own) == (mode == "only"))
        assert np.array_equal(scores, margin(run_lanes(graph, [Lane("a", separate)], (x,))["a"], y).double()), op.name


def test_inputs_that_are_read_late() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(6))

        def forward(self, x: Tensor, late: Tensor) -> Tensor:
            for part in self.parts:
                x = part(x)
            return (x + self.parts[0](late)).mean((2, 3))

    inputs, y = (torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4)), torch.tensor([0, 1, 2, 0])
    graph = build(Late(), inputs)
    plan = make_plan(graph, observe(graph, [(inputs, y)], progress=False), PRESETS["int8"])
    result = sweep(Evaluator(graph, [(inputs, y)], margin), plan, "only", memory_budget=1, progress=False)
    for op, scores in zip(result.layers, result.scores, strict=True):
        separate = plan.where(lambda name, _, own=(op.name, op.weight): name in own)
        assert np.array_equal(scores, margin(run_lanes(graph, [Lane("a", separate)], inputs)["a"], y).double()), op.name


def test_some_layers_by_tap_or_weight_name() -> None:
    graph, plan, batches = setting()
    result = sweep(Evaluator(graph, batches, margin), plan, "only", layers=["side.weight", "stem"], progress=False)
    assert [s.name for s in result.layers] == ["stem", "side"]
    assert np.array_equal(result.scores, naive("only", ("stem", "side"))[0])


def test_limit_takes_the_first_batches() -> None:
    graph, plan, batches = setting()
    result = sweep(Evaluator(graph, batches, margin), plan, "except", batches=2, progress=False)
    scores, base = naive("except", tuple(READS))
    assert np.array_equal(result.scores, scores[:, :8])
    assert np.array_equal(result.base, base[:8])


@pytest.mark.parametrize("mode", ["only", "except"])
def test_agreement_is_with_the_float_lane(mode: Any) -> None:
    graph, plan, batches = setting()
    plan = plan.with_range("stem", 0.0, 0.8)
    inputs = [x for x, _ in batches]
    result = sweep(Evaluator(graph, inputs, "agreement"), plan, mode, progress=False)
    x = torch.cat(inputs)
    classes = mixed_network()(x).argmax(1)
    for tap, scores in zip(READS, result.scores, strict=True):
        lane = run_lanes(graph, [Lane("a", separate_plan(plan, tap, mode))], (x,))["a"]
        assert np.array_equal(scores, (lane.argmax(1) == classes).double()), tap
    whole = (run_lanes(graph, [Lane("a", plan)], (x,))["a"].argmax(1) == classes).double()
    assert np.array_equal(result.base, np.ones(11) if mode == "only" else whole)
    assert not result.scores.all()


def test_errors() -> None:
    graph, plan, batches = setting()
    with pytest.raises(QkitError, match=r"'only'.*'except'.*'without'"):
        sweep(Evaluator(graph, batches, margin), plan, "without", progress=False)  # type: ignore[arg-type]
    with pytest.raises(QkitError, match="'stam'"):
        sweep(Evaluator(graph, batches, margin), plan, "only", layers=["stam"], progress=False)
    with pytest.raises(QkitError, match=r"grid\b.*\bside\b"):
        sweep(Evaluator(graph, batches, margin), plan.without(["side", "side.weight"]), "only", layers=["side"], progress=False)
    with pytest.raises(QkitError, match=r"sweep.*\bplan\b"):
        sweep(Evaluator(graph, batches, margin), FLOAT, "only", progress=False)
    with pytest.raises(QkitError, match=r"sweep.*layers="):
        sweep(Evaluator(graph, batches, margin), plan, "only", layers=[], progress=False)
    with pytest.raises(DataError, match=r"evaluation.*batch"):
        sweep(Evaluator(graph, [], margin), plan, "only", progress=False)
    with pytest.raises(DataError, match=r"'top1'.*targets"):
        sweep(Evaluator(graph, [x for x, _ in batches], "top1"), plan, "only", progress=False)
    with pytest.raises(DataError, match=r"NaN.*\b4\b.*\b4\b"):
        sweep(Evaluator(graph, batches, lambda o, t: o[:, 0] * torch.nan), plan, "only", progress=False)


def test_effects_are_losses_and_gains() -> None:
    graph, _, _ = setting()
    layers = (graph.operation("stem"), graph.operation("side"))
    base = np.array([1.0, 2.0, 3.0, 4.0])
    scores = np.stack([base - 0.5, base - np.array([0.0, 0.0, 2.0, 2.0])])
    only = Sensitivity("only", "margin", layers, scores, base)
    assert [only.effect(i).value for i in range(2)] == [0.5, 1.0]
    assert list(only.table().index) == ["side", "stem"]
    assert list(only.table()["loss"]) == [1.0, 0.5]
    spared = Sensitivity("except", "margin", layers, scores, base)
    assert [spared.effect(i).value for i in range(2)] == [-0.5, -1.0]
    assert list(spared.table().index) == ["stem", "side"]
    # Student's interval of the differences 0, 0, 2, 2: mean 1, standard deviation 1.1547, t(0.975, 3) = 3.1824
    assert only.effect(1).high - 1.0 == pytest.approx(3.182446 * 1.154701 / 2, rel=1e-5)
    plain = json.loads(json.dumps(only.to_dict()))
    assert plain["layers"]["side"]["effect"]["value"] == 1.0
    assert plain["base"]["value"] == 2.5
    assert re.match(r"Sensitivity\(2\b.*margin.*\b4\b.*\b2\.5", repr(only))
    assert repr(only) != repr(spared)
    assert "side" in only._repr_html_()


def test_a_sweep_is_known_once_all_of_it_has_been_measured() -> None:
    _, _, batches = setting()
    study = Study(mixed_network(), batches, batches, metric=margin, scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    assert known_sweep(study.evaluator, study.plan, "only") is None
    study.sensitivity("only", layers=["stem"], progress=False)
    assert known_sweep(study.evaluator, study.plan, "only") is None, "one layer is not all"
    swept = study.sensitivity("only", progress=False)
    found = known_sweep(study.evaluator, study.plan, "only")
    assert found is not None
    assert found.layers == swept.layers
    assert np.array_equal(found.scores, swept.scores)
    assert np.array_equal(found.base, swept.base)
    assert known_sweep(study.evaluator, study.plan, "except") is None


def test_study_sweeps_a_lane_or_a_plan() -> None:
    graph, plan, batches = setting()
    study = Study(mixed_network(), batches, batches, metric=margin, scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    by_name = study.sensitivity("only", progress=False)
    assert np.array_equal(by_name.scores, naive("only", tuple(READS))[0])
    edited = study.plan.without(["input"])
    result = study.sensitivity("except", lane=edited, layers=["classify"], batches=1, progress=False)
    assert result.scores.shape == (1, 4)
    spared = margin(
        run_lanes(graph, [Lane("a", plan.without(["input", "classify", "classify.weight"]))], (batches[0][0],))["a"],
        batches[0][1],
    )
    assert np.array_equal(result.scores[0], spared.double())
