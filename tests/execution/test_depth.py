"""Curves equal one whole evaluation after the other, each with a plan that was put together by hand."""

from __future__ import annotations

import json
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import READS, mixed_network
from torch import Tensor

import qkit.execution.evaluator
from qkit import QkitError, Study
from qkit.execution.depth import CURVES, along_depth
from qkit.execution.evaluator import Evaluator
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.graph import Graph, build
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import PRESETS

SIZES = (4, 3)


def margin(outputs: Tensor, targets: Any) -> Tensor:
    return outputs.gather(1, torch.as_tensor(targets)[:, None])[:, 0] - outputs.mean(1)


@cache
def setting() -> tuple[Graph, Plan, list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(3)
    x, y = torch.randn(sum(SIZES), 3, 16, 16, generator=draw), torch.randint(0, 5, (sum(SIZES),), generator=draw)
    batches = list(zip(x.split(SIZES), y.split(SIZES), strict=True))
    graph = build(mixed_network(), x[:2])
    return graph, make_plan(graph, observe(graph, batches, progress=False), PRESETS["int8-per-tensor"]), batches


def by_hand(curve: str, taps: tuple[str, ...]) -> tuple[np.ndarray, float]:
    """Scores and the output's error with these layers' grids alone."""
    graph, plan, batches = setting()
    names = {name for tap in taps for name in (tap, f"{tap}.weight")}
    kinds = {"weights": (True,), "activations": (False,), "both": (True, False)}[curve]
    first = Plan({n: g for n, g in plan.grids.items() if n in names and g.weight in kinds}, plan.bias_bits, "by hand")
    scores, ratios = [], []
    for x, y in batches:
        found = run_lanes(graph, [Lane("float"), Lane("a", first)], (x,))
        scores.append(margin(found["a"], y).double().numpy())
        exact, other = found["float"].double(), found["a"].double()
        ratios.append(((other - exact).square().sum(1) / exact.square().sum(1)).numpy())
    return np.concatenate(scores), float(np.concatenate(ratios).mean())


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_every_point_is_a_plan_of_the_first_layers(budget: int) -> None:
    graph, plan, batches = setting()
    found = along_depth(Evaluator(graph, batches, margin), plan, memory_budget=budget, progress=False)
    taps = tuple(READS)
    assert found.operations == taps
    assert found.counts == tuple(range(1, len(taps) + 1))
    assert tuple(found.scores) == CURVES
    for curve in CURVES:
        for at in range(len(taps)):
            scores, error = by_hand(curve, taps[: at + 1])
            assert np.array_equal(found.scores[curve][at], scores), (curve, at)
            assert found.errors[curve][at] == pytest.approx(error, rel=1e-9, abs=1e-15)
    table = found.table()
    assert list(table.index) == list(taps)
    exact = np.concatenate([margin(run_lanes(graph, [Lane("a", FLOAT)], (x,))["a"], y).double().numpy() for x, y in batches])
    np.testing.assert_allclose(table["both", "loss"], (exact - found.scores["both"]).mean(1))
    assert (table["both", "loss low"] <= table["both", "loss"]).all()
    np.testing.assert_allclose(10 ** (-table["both", "sqnr"] / 10), found.errors["both"])


def test_points_are_spread_and_end_at_the_last() -> None:
    graph, plan, batches = setting()
    evaluator = Evaluator(graph, batches, margin)
    found = along_depth(evaluator, plan, points=3, batches=1, progress=False)
    n = len(READS)
    assert found.counts[-1] == n
    assert len(found.counts) == 3
    assert max(np.diff((0, *found.counts))) - min(np.diff((0, *found.counts))) <= 1
    assert len(found.base) == SIZES[0]
    assert along_depth(evaluator, plan, points=1, progress=False).counts == (n,)
    whole = json.loads(json.dumps(found.to_dict()))
    assert [len(rows) for rows in whole["curves"].values()] == [3, 3, 3]
    assert "<table" in found._repr_html_()


def test_an_interrupt_goes_up_and_the_next_call_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, batches = setting()
    evaluator = Evaluator(graph, batches, margin)
    calls: list[int] = []

    def counting(*arguments: Any, stop: int = 0, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == stop:
            raise KeyboardInterrupt
        return run_lanes(*arguments, **options)

    monkeypatch.setattr(qkit.execution.evaluator, "run_lanes", partial(counting, stop=4))
    with pytest.raises(KeyboardInterrupt):
        along_depth(evaluator, plan, points=4, progress=False)
    found = along_depth(evaluator, plan, points=4, progress=False)
    interrupted = len(calls)
    calls.clear()
    monkeypatch.setattr(qkit.execution.evaluator, "run_lanes", counting)
    fresh = along_depth(Evaluator(graph, batches, margin), plan, points=4, progress=False)
    assert interrupted == len(calls) + 1, "what was finished is not run again"
    for curve in CURVES:
        assert np.array_equal(found.scores[curve], fresh.scores[curve])


def test_what_cannot_be_is_an_error() -> None:
    graph, plan, batches = setting()
    evaluator = Evaluator(graph, batches, margin)
    for points in (0, -1, 2.5, True):
        with pytest.raises(QkitError, match="points="):
            along_depth(evaluator, plan, points=points, progress=False)  # type: ignore[arg-type]
    with pytest.raises(QkitError, match="nothing"):
        along_depth(evaluator, FLOAT, progress=False)
    with pytest.raises(QkitError, match="'bias'"):
        along_depth(evaluator, plan, points=1, progress=False).loss("bias", 0)


def test_the_picture_has_the_losses() -> None:
    _, plan, batches = setting()
    study = Study(mixed_network(), batches, batches, metric=margin, scheme="int8-per-tensor").with_plan(plan)
    found = study.depth(points=4, progress=False)
    above, below = found.plot().figure.axes
    table = found.table()
    for curve in CURVES:
        (line,) = [line for line in above.get_lines() if line.get_label() == curve]
        np.testing.assert_allclose(line.get_ydata(), table[curve, "loss"])
        (line,) = [line for line in below.get_lines() if line.get_label() == curve]
        np.testing.assert_allclose(line.get_ydata(), table[curve, "sqnr"].replace(np.inf, np.nan))
