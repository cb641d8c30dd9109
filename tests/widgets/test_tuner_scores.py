"""What the range tuner measures, without a page: the score and the layer's error of an edit, also of several tensors at once."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from studies import fresh_study, gesture, kept, nothing_runs, press, small_study
from tuners import BATCHES, TOP1, card, executed, rows_of, tuner

from qkit import FLOAT, PlanError
from qkit.execution.layer_errors import few_inputs, layer_sample
from qkit.execution.prefix import Effect
from qkit.execution.statistics import mean_interval
from qkit.style import decibels
from qkit.widgets import Tuner

# what it does to the network


def same(found: Effect | None, expected: Effect) -> None:
    assert found is not None
    assert found.tap == expected.tap
    assert (found.local, found.layer, found.output) == pytest.approx((expected.local, expected.layer, expected.output))
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.slow
def test_the_effect_is_that_of_the_plan_wherever_the_edits_are() -> None:
    made = tuner("average")
    made.wait()
    same(made.effect, fresh_study().effect("average", small_study().plan, batches=BATCHES))
    for tensor, lo, hi in (("average", -0.2, 0.2), ("stem", 0.0, 0.3), ("side", -0.1, 0.1), ("classify.weight", -0.02, 0.02)):
        made.tensor = tensor
        made.set_range(lo, hi)
        made.wait()
        assert made.error == ""
        same(made.effect, fresh_study().effect(tensor, made.plan, batches=BATCHES))
    made.undo()
    made.wait()
    same(made.effect, fresh_study().effect("classify.weight", made.plan, batches=BATCHES))


def test_the_score_stands_there_from_the_start_against_float_and_the_plan_as_opened() -> None:
    made = tuner("depthwise")
    assert made.measuring
    made.wait()
    assert not made.measuring
    base = fresh_study().effect("depthwise", small_study().plan, batches=BATCHES)
    exact = fresh_study().evaluate({"float": FLOAT}, batches=BATCHES, progress=False)["float"]
    opened = mean_interval(base.scores)
    assert made.score["now"] == TOP1.score(opened.value)
    assert made.score["interval"] == f"[{TOP1.interval(opened.low, opened.high)}]"
    assert card(made)["float"][0] == TOP1.score(exact.value)
    assert card(made)["as opened"] == [TOP1.score(opened.value), ""]
    assert re.search(rf"\b{8 * BATCHES}\b", made.score["note"])
    made.set_range(0.0, 0.01)
    assert made.measuring
    assert made.score["now"] == "", "the score of another range is not shown for this one's"
    made.wait()
    assert made.effect is not None
    assert made.score["now"] == TOP1.score(made.effect.scores.mean())
    loss = 100 * (base.scores.mean() - made.effect.scores.mean())
    assert loss > 0
    assert card(made)["as opened"][1].startswith(f"−{loss:.2f}")
    assert card(made)["float"][1].startswith(f"−{100 * (exact.value - made.effect.scores.mean()):.2f}")
    rows = {name: values for name, *values in made.measured_rows}
    assert rows["network's output"] == [f"{decibels(e.output)} dB" for e in (made.effect, base, base)]
    assert rows["layer, accumulated"] == [f"{decibels(e.layer)} dB" for e in (made.effect, base, base)]


def test_a_score_says_what_it_waits_for() -> None:
    made = tuner("depthwise")
    made.wait()
    with nothing_runs():
        made.set_range(0.0, 0.5)
        end = time.monotonic() + 10
        while "waits for" not in made.doing and time.monotonic() < end:
            made.worker._drain()
        assert "other work" in made.doing
    made.wait()
    assert made.doing == ""


def test_the_last_of_several_edits_is_measured() -> None:
    made = tuner("depthwise")
    with nothing_runs():
        for hi in (1.0, 0.5, 0.01):
            made.set_range(0.0, hi)
    made.wait()
    same(made.effect, fresh_study().effect("depthwise", made.plan, batches=BATCHES))
    assert made.score["now"] == TOP1.score(made.effect.scores.mean())


@pytest.mark.parametrize("how", ["cancelled", "failed"])
def test_nothing_is_said_to_be_measured_when_it_no_longer_is(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tuner("depthwise", fresh_study())
    with nothing_runs():
        made.set_range(0.0, 0.5)
        assert made.measuring
        if how == "cancelled":
            press(made, "cancel")
            made.wait()
        else:
            monkeypatch.setattr(made._origin, "effect", lambda *_, **__: 1 / 0)
    made.wait()
    assert ("ZeroDivisionError" in made.error) == (how == "failed")
    assert not made.measuring


def test_the_range_before_stands_beside_the_current_one() -> None:
    made = tuner("depthwise")
    base = made.plan
    assert all(len(row) == 2 for row in made.figure_rows)
    assert made.ghost == {}
    made.set_range(0.0, 1.0)
    first = made.plan
    assert made.figure_rows == rows_of(first, "depthwise", base)
    made.set_range(0.0, 0.5)
    made.wait()
    assert made.figure_rows == rows_of(made.plan, "depthwise", first)
    assert all(len(row) == 3 for row in made.figure_rows)
    assert made.ghost["hi"] == pytest.approx(1.0)
    (reply,) = gesture(made, "drag", "hi", 0.25)
    assert [row[2] for row in reply["figures"]] == [row[1] for row in rows_of(made.plan, "depthwise")], "the one that is left"
    made.wait()
    made.set_range(0.0, 0.25)
    made.wait()
    assert list(card(made)) == ["float", "as opened", "before"]
    made.undo()
    assert made.ghost["hi"] == pytest.approx(0.25), "undone, the other one is the one before"
    made.reset()
    made.wait()
    assert list(card(made)) == ["float", "as opened", "before"]


def test_a_grid_of_another_kind_is_not_compared_with() -> None:
    made = tuner("side.weight")
    made.set_rule(per_channel=True)
    assert made.error == ""
    assert made.channel == 0
    assert made.ghost == {}
    assert all(len(row) == 2 for row in made.figure_rows)


def test_the_output_of_the_layer_is_shown_while_a_handle_moves() -> None:
    made = tuner("side.weight")
    rows = {name: values for name, *values in gesture(made, "drag", "hi", 0.01)[0]["figures"]}
    expected = small_study().plan.with_range("side.weight", -0.01, 0.01)
    sample = layer_sample(small_study().graph, few_inputs(small_study().graph, small_study().evaluation), "side.weight")
    for errors, at in ((sample.errors(expected), 0), (sample.errors(small_study().plan), 1)):
        assert rows["layer's output"][at] == f"{decibels(errors.total)} dB"
        assert rows["worst channel"][at] == f"{decibels(errors.worst)} dB #{errors.worst_channel}"
        assert rows["median channel"][at] == f"{decibels(errors.median)} dB"
        assert rows["channels at 0"][at] == f"{errors.lost} of 4"
    np.testing.assert_array_equal(np.frombuffer(made.ratios, np.float32), made.output.by_channel.astype(np.float32))


# several tensors at once


CONVOLUTIONS = ("stem.weight", "project.weight", "side.weight")


@pytest.mark.parametrize("which", ["weights: conv", list(CONVOLUTIONS), ["s*.weight", "project.weight"]])
def test_several_tensors_take_a_method_together_and_one_undo_takes_it_back(which: Any) -> None:
    made = kept(small_study().tune(which, batches=BATCHES))
    assert made.tensors == CONVOLUTIONS
    graph, plan = small_study().graph, small_study().plan
    inputs = few_inputs(graph, small_study().evaluation)
    suffered = {name: layer_sample(graph, inputs, name).errors(plan.only([name])).total for name in CONVOLUTIONS}
    assert made.tensor == min(suffered, key=suffered.__getitem__), "the one that costs its layer's output most is shown"
    press(made, "percentile", "99")
    press(made, "choose", "percentile")
    assert made.error == ""
    expected = small_study().with_calibration(weight_method="percentile", percentile=99.0).plan
    assert set(small_study().plan.diff(made.plan)) == set(CONVOLUTIONS)
    assert all(made.plan.params(name) == expected.params(name) for name in CONVOLUTIONS)
    assert executed(made, small_study()).plan == made.plan
    assert "percentile=99.0" in made.code
    assert "with_range" not in made.code
    assert ("'weights: conv'" in made.code) == (which == "weights: conv"), "by the words that were used"
    made.wait()
    assert made.effect is not None
    assert made.effect.scores.tolist() == small_study().evaluator.known(made.plan, BATCHES).tolist()  # type: ignore[union-attr]
    press(made, "undo")
    assert made.plan == small_study().plan
    assert not made.can["undo"]


def test_a_handle_scales_the_ranges_of_all() -> None:
    made = tuner("weights: conv")
    before = made.plan
    gesture(made, "release", "hi", 0.5 * made.grid_drawn["hi"])
    assert made.error == ""
    for name in CONVOLUTIONS:
        assert float(made.plan[name].params.hi) == pytest.approx(0.5 * float(before[name].params.hi), rel=1e-5)
    made.set_rule(bits=5)
    assert {made.plan[name].spec.bits for name in CONVOLUTIONS} == {5}
    made.set_rule(per_channel=True)
    assert {made.plan[name].params.axis for name in CONVOLUTIONS} == {0}
    assert executed(made, small_study()).plan == made.plan
    made.tensor = "side.weight"
    assert made.tensors == CONVOLUTIONS, "another of them is looked at"
    press(made, "select", "side")
    assert made.tensors == ("side",)
    assert made.group == []


def test_names_of_several_that_mean_nothing_are_said() -> None:
    with pytest.raises(PlanError, match="weights: conv"):
        Tuner(small_study(), "*.bias")
    made = tuner()
    press(made, "select", "weights: norm")
    assert "weights: conv" in made.error
    assert made.tensors == ("depthwise",)
