"""What the first tensors lose together, against one whole evaluation after the other with plans put together by hand."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from test_depth import margin, setting

from qkit import QkitError, Study
from qkit.execution.evaluator import Evaluator
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.together import explained
from qkit.quant.plan import FLOAT, Plan

ORDER = ["side.weight", "stem", "depthwise.weight", "depthwise"]


def by_hand(names: set[str], mode: str) -> np.ndarray:
    graph, plan, batches = setting()
    grids = {name: grid for name, grid in plan.grids.items() if (name in names) == (mode == "only")}
    part = Plan(grids, plan.bias_bits, "by hand")
    return np.concatenate([margin(run_lanes(graph, [Lane("a", part)], (x,))["a"], y).double().numpy() for x, y in batches])


@pytest.mark.parametrize("mode", ["only", "except"])
def test_together_and_alone_are_measured(mode: Any) -> None:
    graph, plan, batches = setting()
    found = explained(Evaluator(graph, batches, margin), plan, ranking=ORDER, mode=mode, progress=False)
    assert found.tensors == tuple(ORDER)
    exact, whole = by_hand(set(plan.grids), "except"), by_hand(set(plan.grids), "only")
    table = found.table()
    total = 0.0
    for k, tensor in enumerate(ORDER, 1):
        together, alone = by_hand(set(ORDER[:k]), mode), by_hand({tensor}, mode)
        assert np.array_equal(found.together[k - 1], together)
        assert np.array_equal(found.alone[k - 1], alone)
        effect, own = ((exact - s if mode == "only" else s - whole).mean() for s in (together, alone))
        total += own
        row = table.loc[tensor]
        assert row["together"] == pytest.approx(effect)
        assert row["alone"] == pytest.approx(own)
        assert row["sum"] == pytest.approx(total)
        assert row["interaction"] == pytest.approx(effect - total, abs=1e-12)
        assert row["interaction low"] <= row["interaction"] <= row["interaction high"]
        assert row["share"] == pytest.approx(effect / (exact - whole).mean())
        assert row["rest"] == pytest.approx((exact - whole).mean() - effect, abs=1e-12)
    assert table["interaction"].iloc[0] == 0.0


@pytest.mark.parametrize("mode", ["only", "except"])
def test_all_tensors_explain_all(mode: Any) -> None:
    graph, plan, batches = setting()
    found = explained(Evaluator(graph, batches, margin), plan, first=1000, mode=mode, progress=False)
    assert set(found.tensors) == set(plan.grids)
    assert found.table()["share"].iloc[-1] == pytest.approx(1.0)
    assert found.rest(len(found.tensors)).value == 0.0


def test_rankings() -> None:
    _, plan, batches = setting()
    study = Study(mixed(), batches, batches, metric=margin, scheme="int8-per-tensor").with_plan(plan)
    measured = study.together(3, ranking="measured", progress=False)
    losses = {tensor: (by_hand(set(plan.grids), "except") - by_hand({tensor}, "only")).mean() for tensor in plan.grids}
    assert list(measured.tensors) == sorted(losses, key=lambda tensor: -losses[tensor])[:3]
    spared = study.together(3, ranking="measured", mode="except", progress=False)
    gains = {tensor: (by_hand({tensor}, "except") - by_hand(set(plan.grids), "only")).mean() for tensor in plan.grids}
    assert list(spared.tensors) == sorted(gains, key=lambda tensor: -gains[tensor])[:3]
    gradient = study.together(3, progress=False)
    assert list(gradient.tensors) == study.sensitivity("gradient", progress=False).order[:3]


def mixed() -> Any:
    from small_networks import mixed_network

    return mixed_network()


def test_the_picture_and_the_plain_data_have_the_numbers() -> None:
    graph, plan, batches = setting()
    found = explained(Evaluator(graph, batches, margin), plan, ranking=ORDER, progress=False)
    lines = {line.get_label().partition(",")[0]: line.get_ydata() for line in found.plot().figure.axes[0].get_lines()}
    np.testing.assert_allclose(lines["together"], found.table()["together"])
    np.testing.assert_allclose(lines["sum of each alone"], found.table()["sum"])
    data = json.loads(json.dumps(found.to_dict()))
    assert [row["tensor"] for row in data["tensors"]] == ORDER
    assert "<table" in found._repr_html_()


def test_what_cannot_be_is_an_error() -> None:
    graph, plan, batches = setting()
    evaluator = Evaluator(graph, batches, margin)
    for options, said in (
        ({"mode": "without"}, "'without'"),
        ({"first": 0}, "first="),
        ({"ranking": "size"}, "'size'"),
        ({"ranking": ["stem", "stam"]}, "'stam'"),
        ({"ranking": ["stem", "stem"]}, "twice"),
        ({"ranking": []}, "ranking="),
    ):
        with pytest.raises(QkitError, match=said):
            explained(evaluator, plan, progress=False, **options)  # type: ignore[arg-type]
    with pytest.raises(QkitError, match="nothing"):
        explained(evaluator, FLOAT, progress=False)
