"""The range tuner without a page: gestures, ranges and their history, the code for them, the tensor and its picture."""

from __future__ import annotations

import html
import re
from typing import Any

import numpy as np
import pytest
from small_networks import READS
from studies import fresh_study, gesture, press, small_study
from tuners import ends, executed, histogram, rows_of, step_of, tuner, typed

import qkit
from qkit import FLOAT, PlanError
from qkit.execution.editing import figures
from qkit.widgets import Tuner
from qkit.widgets.tuner import batches_for

# gestures


def test_a_drag_answers_and_a_release_edits() -> None:
    made = tuner()
    made.wait()
    before = made.plan
    (reply,) = gesture(made, "drag", "hi", 1.0, seq=7)
    expected = before.with_range("depthwise", 0.0, 1.0)
    params = expected["depthwise"].params
    found = figures([histogram("depthwise")], params)
    assert (reply["event"], reply["seq"], reply["released"]) == ("figures", 7, False)
    assert reply["figures"] == rows_of(expected, "depthwise", before)
    assert reply["grid"] == {"lo": 0.0, "hi": float(params.hi), "scale": float(params.scale), "codes": 256}
    assert made.plan is before
    assert not made.history.can_undo
    assert not made.worker.busy, "nothing is scored while the handle is held"
    assert made.grid_drawn["hi"] == float(before["depthwise"].params.hi)
    (reply,) = gesture(made, "release", "hi", 1.0, seq=8)
    assert (reply["seq"], reply["released"]) == (8, True)
    assert reply["figures"] == rows_of(expected, "depthwise", before)
    assert made.plan == expected
    assert made.figures == found
    assert made.grid_drawn == reply["grid"]
    assert made.figure_rows == reply["figures"]
    assert made.ghost["hi"] == float(before["depthwise"].params.hi), "the range that was left"
    assert made.history.can_undo
    assert made.error == ""


def test_the_lower_end_of_an_affine_grid_moves_alone() -> None:
    made = tuner("side")
    _, hi = ends(made)
    gesture(made, "release", "lo", -0.25)
    assert made.plan == small_study().plan.with_range("side", -0.25, hi)


def test_a_range_always_holds_zero() -> None:
    made = tuner("side")
    lo, hi = ends(made)
    (reply,) = gesture(made, "drag", "lo", 0.5)
    assert reply["grid"]["lo"] == 0.0
    assert reply["grid"]["hi"] == pytest.approx(hi)
    (reply,) = gesture(made, "drag", "hi", -0.5)
    assert reply["grid"]["hi"] == 0.0
    assert reply["grid"]["lo"] == pytest.approx(lo)


def test_both_ends_of_a_symmetric_grid_move() -> None:
    made = tuner("side.weight")
    for end, value in (("hi", 0.1), ("lo", -0.05)):
        (reply,) = gesture(made, "release", end, value)
        assert reply["grid"]["hi"] == pytest.approx(abs(value))
        assert reply["grid"]["lo"] == pytest.approx(-abs(value))


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"event": "drag"},
        {"event": "drag", "end": "hi"},
        {"event": "drag", "end": "hi", "value": "1"},
        {"event": "drop", "end": "hi", "value": 1.0},
        {"event": "release", "end": "middle", "value": 1.0},
        {"event": "release", "end": ["hi"], "value": 1.0},
    ],
)
def test_a_malformed_gesture_is_said_in_place(message: dict[str, Any]) -> None:
    made = tuner()
    made._received(made, message, [])
    assert re.search(rf"\bgesture\b.*{re.escape(html.escape(repr(message)[1:-1]))}", made.error)
    assert made.plan == small_study().plan
    gesture(made, "drag", "hi", 1.0)
    assert made.error == ""


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_end_that_is_no_number_is_said_in_place(value: float) -> None:
    made = tuner()
    assert [reply["event"] for reply in gesture(made, "release", "hi", value)] == ["refused"]
    assert "finite" in made.error
    assert made.plan == small_study().plan


@pytest.mark.parametrize("scheme", ["int8-per-tensor", "int8-symmetric", "int8-power-of-two", "int8"])
@pytest.mark.parametrize("tensor", ["input", "depthwise", "side", "side.weight"])
@pytest.mark.parametrize("end", ["lo", "hi"])
def test_a_handle_that_is_let_go_where_it_was_changes_nothing(scheme: str, tensor: str, end: str) -> None:
    made = tuner(tensor, small_study(scheme))
    gesture(made, "release", end, made.grid_drawn[end])
    assert made.error == ""
    assert made.plan == small_study(scheme).plan


def test_an_end_that_is_dragged_to_zero_does_not_widen_the_range() -> None:
    made = tuner("depthwise")
    (reply,) = gesture(made, "drag", "hi", 0.0)
    assert reply["grid"]["hi"] - reply["grid"]["lo"] <= ends(made)[1]


# ranges and history


def test_set_range_undo_redo_reset() -> None:
    made = tuner()
    base = made.plan
    assert list(made.can.values()) == [False, False, False]
    made.set_range(0.0, 1.0)
    first = made.plan
    assert first == base.with_range("depthwise", 0.0, 1.0)
    made.set_range(0.0, 0.5)
    second = made.plan
    assert list(made.can.values()) == [True, False, True]
    made.undo()
    assert made.plan == first
    assert made.grid_drawn["hi"] == pytest.approx(1.0)
    assert typed(made)[1] == pytest.approx(made.grid_drawn["hi"], rel=1e-5)
    press(made, "undo")
    assert made.plan == base
    assert list(made.can.values()) == [False, True, False]
    press(made, "redo")
    made.redo()
    assert made.plan == second
    made.redo()
    assert made.plan == second
    made.reset()
    assert made.plan == base
    made.undo()
    assert made.plan == second, "a reset can be undone"
    press(made, "reset")
    assert made.plan == base
    assert made.error == ""


def test_a_plan_can_be_taken_as_one_step() -> None:
    made = tuner("stem")
    base = made.plan
    other = base.with_range("stem", 0.0, 1.0).with_range("side", -1.0, 1.0)
    made.take(other)
    assert made.plan is other
    assert made.grid_drawn["hi"] == float(other["stem"].params.hi)
    made.undo()
    assert made.plan is base


def test_typing_sets_the_range_and_an_impossible_one_goes_back() -> None:
    made = tuner("side")
    shown = typed(made)
    assert shown == pytest.approx(ends(made), rel=1e-5)
    press(made, "typed", str(shown[1] + 1.0), end="lo")
    assert re.search(r"\bside\b.*\bempty\b", made.error)
    assert typed(made) == shown
    assert made.plan == small_study().plan
    press(made, "typed", "1e400", end="hi")
    assert "finite" in made.error
    assert typed(made) == shown
    assert made.plan == small_study().plan
    lo, _ = ends(made)
    press(made, "typed", str(0.5), end="hi")
    assert made.error == ""
    assert made.plan == small_study().plan.with_range("side", lo, 0.5), "the other end stays, to its last digit"
    assert typed(made) == pytest.approx(ends(made), rel=1e-5)
    with pytest.raises(PlanError, match=r"side.*empty"):
        made.set_range(1.0, 0.5)


def test_the_study_is_untouched() -> None:
    study = fresh_study()
    plan, copied = study.plan, qkit.Plan.from_dict(study.plan.to_dict())
    made = tuner("stem", study)
    made.set_range(0.0, 1.0)
    made.tensor = "side.weight"
    made.set_rule(bits=4)
    made.wait()
    assert study.plan is plan
    assert plan == copied
    assert made.study is not study
    assert made.study.plan == made.plan
    changed = set(plan.diff(made.plan))
    assert changed == {"stem", "side.weight"}


# the code


def test_the_code_makes_the_plan() -> None:
    made = tuner("stem")
    assert executed(made, small_study()).plan == small_study().plan
    made.set_range(0.0, 1.0 / 3.0)
    made.set_rule(bits=5)
    made.tensor = "side"
    made.set_rule(symmetric=True, power_of_two=True)
    made.tensor = "depthwise"
    made.set_rule(per_channel=True)
    made.wait()
    made.selected = 5
    made.set_range(0.0, 0.7)
    made.tensor = "side.weight"
    made.choose("minmax")
    made.set_range(-0.2, 0.2)
    made.tensor = "classify.weight"
    made.set_rule(per_channel=True)
    made.set_range(-0.01, 0.01)
    made.wait()
    assert made.error == ""
    tuned = executed(made, small_study())
    assert tuned.plan == made.plan
    assert {name: grid.spec for name, grid in tuned.plan.grids.items()} == {n: g.spec for n, g in made.plan.grids.items()}
    assert set(small_study().plan.diff(made.plan)) == {"stem", "side", "depthwise", "side.weight", "classify.weight"}


# the tensor and its picture


def test_the_noisiest_activation_is_opened_unless_another_is_named() -> None:
    study = small_study()
    seen = study.observe(progress=False)
    ratios = {tap: seen[tap].histogram.error(study.plan[tap].params).sqnr for tap in READS}
    assert tuner(None).tensor == min(ratios, key=ratios.__getitem__)
    weights = study.with_plan(study.plan.weights_only())
    assert tuner(None, weights).tensor == "stem.weight"


def test_an_unknown_tensor_is_refused_with_what_is_near() -> None:
    with pytest.raises(PlanError, match=r"'depth'.*\bdepthwise\b"):
        Tuner(small_study(), "depth")
    with pytest.raises(PlanError, match=r"grid.*'side'"):
        Tuner(small_study().with_plan(small_study().plan.without(["side"])), "side")


def test_a_tensor_that_is_not_there_leaves_the_tuner_where_it_is() -> None:
    made = tuner("stem")
    with pytest.raises(Exception, match=r"nowhere"):
        made.tensor = "nowhere"
    assert made.tensor == "stem"
    assert repr(made).startswith("Tuner(stem")


def test_a_plan_without_grids_is_refused() -> None:
    with pytest.raises(PlanError, match=r"plan.*scheme"):
        Tuner(small_study().with_plan(FLOAT))
    with pytest.raises(PlanError, match=r"grid.*'stem'"):
        Tuner(small_study().with_plan(FLOAT), "stem")


def test_switching_the_tensor_keeps_the_edits() -> None:
    made = tuner("input")
    assert made.names == list(small_study().plan.grids)
    assert made.axis.startswith("input"), "the first of the list is drawn too"
    made.set_range(-1.0, 1.0)
    made.wait()
    edited = made.plan
    press(made, "select", "side.weight")
    assert made.tensor == "side.weight"
    assert made.plan is edited
    assert made.axis.startswith("side.weight")
    assert made.score["now"], "the score is that of the plan, whatever tensor is looked at"
    assert made.measured_rows == [], "what was measured of the other tensor is not shown here"
    made.set_range(-0.1, 0.1)
    assert set(small_study().plan.diff(made.plan)) == {"input", "side.weight"}
    made.tensor = "input"
    assert made.tensors == ("input",)
    assert typed(made) == pytest.approx((-1.0, 1.0), abs=0.01)


def test_the_histogram_is_the_tensors() -> None:
    made = tuner("side")
    seen = histogram("side")
    assert np.frombuffer(made.counts, np.float32).sum() == pytest.approx(seen.total, rel=1e-5)
    assert made.view[0] < min(seen.min, ends(made)[0])
    assert made.view[1] > max(seen.max, ends(made)[1])
    assert made.extremes == [seen.min, seen.max]
    assert made.stride == step_of(made)
    made.set_range(-0.1, 0.1)
    press(made, "zoomed", True)
    assert made.view == pytest.approx([-0.12, 0.12], abs=2 * step_of(made))
    inside = np.frombuffer(made.counts, np.float32).sum()
    assert 0 < inside < 0.5 * seen.total
    assert made.logarithmic
    press(made, "logarithmic", False)
    assert not made.logarithmic


def test_the_summary_has_range_and_figures() -> None:
    made = tuner("side")
    made.set_range(-0.5, 0.5)
    column = made.summary()["side"]
    lo, hi = ends(made)
    assert (column["from"], column["to"], column["bits"]) == (f"{lo:.6g}", f"{hi:.6g}", "8")
    made.wait()
    column = made.summary()["side"]
    assert all(column[name] == shown for name, shown, _ in made.figure_rows)
    assert column["top1"].startswith(made.score["now"]), "picture, table and score go together"
    assert column["network's output (measured)"] == made.measured_rows[1][1]


def test_scores_are_on_about_256_samples_unless_told_otherwise() -> None:
    assert batches_for(small_study(), 256) == 32
    assert batches_for(small_study(), 9) == 2
    assert Tuner(small_study(), "stem").batches == 32
