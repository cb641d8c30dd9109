"""The range tuner without a page: gestures, controls, channels, methods, what an edit costs, and the code for it."""

from __future__ import annotations

import html
import re
import time
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import READS
from studies import fresh_study, gesture, images, kept, nothing_runs, press, small_study
from torch import nn

import qkit
from qkit import FLOAT, PlanError, Study
from qkit.execution.editing import figures
from qkit.execution.layer_errors import few_inputs, layer_sample
from qkit.execution.metrics import NAMED
from qkit.execution.observing import observe_channels
from qkit.execution.prefix import Effect
from qkit.execution.statistics import mean_interval
from qkit.quant.estimators import METHODS
from qkit.style import decibels
from qkit.widgets import Tuner
from qkit.widgets.numbers import figure_rows
from qkit.widgets.tuner import batches_for

BATCHES = 2

TOP1 = NAMED["top1"].units


def tuner(tensor: str | None = "depthwise", study: Study | None = None) -> Tuner:
    return kept(Tuner(small_study() if study is None else study, tensor, batches=BATCHES))


def ends(made: Tuner) -> tuple[float, float]:
    params = made.grid.params
    return float(params.lo.min()), float(params.hi.max())


def rows_of(plan: qkit.Plan, tensor: str, before: qkit.Plan | None = None) -> list[list[str]]:
    """The table of figures of a tap, from the histogram and from the layer itself."""
    sample = layer_sample(small_study().graph, few_inputs(small_study().graph, small_study().evaluation), tensor)
    now, old = (None if p is None else figures([histogram(tensor)], p[tensor].params) for p in (plan, before))
    assert now is not None
    return figure_rows(now, old, output=sample.errors(plan), output_before=None if before is None else sample.errors(before))


def typed(made: Tuner) -> tuple[float, float]:
    """The ends in the fields."""
    return float(made.rule["lo"]), float(made.rule["hi"])


def card(made: Tuner) -> dict[str, list[str]]:
    """The lines of the score: what it is compared with, that one's score, the change."""
    return {name: rest for name, *rest in made.score["lines"]}


def histogram(tensor: str) -> Any:
    return small_study().observe(progress=False)[tensor].histogram


def step_of(made: Tuner) -> float:
    return float(made.grid.params.scale.max())


def executed(made: Tuner, study: Study) -> Study:
    names: dict[str, Any] = {"study": study}
    exec(made.code, names)
    return names["tuned"]


def per_channel_study() -> Study:
    """Its tap "stem" has a range for each channel: 1, 2 … 8."""
    spec = qkit.QuantSpec(symmetric=False, per_channel=True)
    study = small_study()
    return study.with_plan(study.plan.with_range("stem", torch.zeros(8), torch.arange(1.0, 9.0), spec=spec, axis=1))


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


# the rule


def test_the_controls_set_the_rule() -> None:
    made = tuner("average")
    lo, hi = ends(made)
    press(made, "rule", {"bits": 4})
    assert made.grid.spec.bits == 4
    assert made.grid_drawn["codes"] == 16
    assert made.plan == small_study().plan.with_range("average", lo, hi, spec=qkit.QuantSpec(4, symmetric=False))
    assert ends(made) == pytest.approx((lo, hi), abs=step_of(made))
    press(made, "rule", {"symmetric": True})
    assert made.grid.spec.symmetric
    assert int(made.grid.params.zero_point) == 0
    press(made, "rule", {"power_of_two": True})
    assert made.grid.spec.power_of_two
    assert float(np.log2(step_of(made))).is_integer()
    press(made, "rule", {"per_channel": True})
    made.wait()
    assert made.grid.params.axis == 1
    assert made.grid.spec == qkit.QuantSpec(4, symmetric=True, per_channel=True, power_of_two=True)
    press(made, "rule", {"per_channel": False})
    assert made.grid.params.axis is None
    assert [made.rule[name] for name in ("bits", "symmetric", "power_of_two", "per_channel")] == [4, True, True, False]
    assert made.error == ""


def test_set_rule_keeps_the_range_and_the_other_rules() -> None:
    made = tuner("side.weight")
    made.set_rule(bits=5)
    assert ends(made) == pytest.approx(ends(tuner("side.weight")), rel=1e-6)
    assert made.grid.spec == qkit.QuantSpec(5, symmetric=True, signed=True, narrow=True)
    made.set_rule(symmetric=False, bits=8)
    assert made.grid.spec == qkit.QuantSpec(8, symmetric=False, signed=True)
    assert (made.rule["symmetric"], made.rule["bits"]) == (False, 8)
    with pytest.raises(PlanError, match=r"bits=17\b.*\b2\b.*\b16\b"):
        made.set_rule(bits=17)


def test_a_width_that_is_tried_and_taken_back_leaves_a_symmetric_range_as_it_was() -> None:
    made = tuner("side", small_study("int8-symmetric"))
    before = ends(made)
    for bits in (4, 8, 4, 8):
        press(made, "rule", {"bits": bits})
    assert ends(made) == pytest.approx(before, rel=0.01)


def test_a_rule_is_taken_where_it_gives_the_same_grid_too() -> None:
    study = small_study()
    made = tuner("side", study.with_plan(study.plan.with_range("side", -1.28, 1.27)))
    assert int(made.grid.params.zero_point) == 0
    press(made, "rule", {"symmetric": True})
    assert made.error == ""
    assert made.rule["symmetric"]
    assert made.grid.spec.symmetric
    gesture(made, "release", "hi", 1.0)
    assert ends(made)[0] == pytest.approx(-1.0, abs=0.01), "the next edit follows the rule"


def test_power_of_two_can_be_switched_off_again() -> None:
    made = tuner("depthwise")
    press(made, "rule", {"power_of_two": True})
    assert made.grid.spec.power_of_two
    press(made, "rule", {"power_of_two": False})
    assert made.error == ""
    assert not made.grid.spec.power_of_two
    assert not made.rule["power_of_two"]


def test_a_transposed_weight_in_groups_has_a_grid_for_each_output_channel() -> None:
    layers = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(1156, 5)
    )
    study = Study(layers.eval(), images(), scheme="int8")
    study.calibrate(progress=False)
    made = tuner("2.weight", study)
    assert made.grid.params.scale.shape == (4,)
    assert made.rule["per_channel"]
    made.set_range(-0.125, 0.125)
    assert executed(made, study).plan == made.plan
    made.set_rule(bits=4)
    assert made.grid.params.bits == 4


# channels


def test_a_tap_per_channel_is_tuned_channel_by_channel() -> None:
    study = small_study()
    made = tuner("stem")
    assert made.channel is None
    assert np.frombuffer(made.ranges, np.float32).shape == (5 * 8,), "all channels show, though one grid is for all of them"
    made.set_rule(per_channel=True)
    assert made.channel is None, "counting takes a pass"
    made.wait()
    seen = study.observe(progress=False)["stem"]
    params = made.grid.params
    assert (params.axis, made.channel) == (1, 0)
    np.testing.assert_allclose(params.hi.numpy(), seen.channel_max, atol=step_of(made))
    np.testing.assert_array_equal(params.lo.numpy(), 0.0)
    counted = observe_channels(study.graph, study.calibration, "stem", progress=False)
    assert made.figures == figures(counted, params)
    strip = np.frombuffer(made.ranges, np.float32).reshape(5, -1)
    np.testing.assert_array_equal(strip[0], seen.channel_min)
    np.testing.assert_array_equal(strip[1], seen.channel_max)
    for row, part in zip(strip[2:], (params.lo, params.hi, params.scale), strict=True):
        np.testing.assert_array_equal(row, part.numpy().astype(np.float32))
    made.selected = 3
    assert made.channel == 3
    assert "channel 3" in made.axis
    assert made.grid_drawn["hi"] == float(params.hi[3])
    assert np.frombuffer(made.counts, np.float32).sum() == pytest.approx(counted[3].total, rel=1e-5)
    assert dict(row[:2] for row in made.figure_rows)["SQNR of this range"] == dict(figure_rows(figures([counted[3]], qkit.QuantParams(
        params.scale[3], params.zero_point[3], params.qmin, params.qmax
    ))))["SQNR of this range"]  # fmt: skip
    (reply,) = gesture(made, "release", "hi", 0.5)
    after = made.grid.params
    assert float(after.hi[3]) == pytest.approx(0.5)
    assert reply["grid"]["hi"] == float(after.hi[3])
    others = [channel for channel in range(8) if channel != 3]
    assert torch.equal(after.scale[others], params.scale[others])
    assert torch.equal(after.zero_point[others], params.zero_point[others])
    assert np.frombuffer(made.ranges, np.float32).reshape(5, -1)[3, 3] == np.float32(after.hi[3])
    made.undo()
    assert made.grid.params == params
    made.set_rule(per_channel=False)
    assert made.grid.params.axis is None
    assert float(made.grid.params.hi) == pytest.approx(float(params.hi.max()))


def test_a_weight_per_channel_is_tuned_channel_by_channel() -> None:
    study = small_study("int8")
    made = tuner("side.weight", study)
    weight = study.graph.weights["side.weight"]
    assert made.channel == 0
    made.selected = 2
    params = made.grid.params
    made.set_range(-0.1, 0.1)
    after = made.grid.params
    assert float(after.hi[2]) == pytest.approx(0.1)
    assert torch.equal(after.scale[[0, 1, 3]], params.scale[[0, 1, 3]])
    strip = np.frombuffer(made.ranges, np.float32).reshape(5, -1)
    np.testing.assert_array_equal(strip[1], weight.flatten(1).amax(1).numpy())
    made.set_rule(per_channel=False)
    assert made.grid.params.axis is None
    assert made.grid.params.bits == 8
    made.tensor = "stem.weight"
    assert made.channel == 0, "another tensor starts at its first channel"


def test_a_weight_is_tuned_against_its_own_values() -> None:
    study = small_study()
    made = tuner("side.weight")
    weight = study.graph.weights["side.weight"]
    assert np.frombuffer(made.counts, np.float32).sum() == pytest.approx(weight.numel())
    assert made.extremes == [float(weight.min()), float(weight.max())]
    reach = float(weight.abs().max())
    made.set_range(-0.5 * reach, 0.5 * reach)
    params = made.grid.params
    clipped = float((weight.abs() > params.hi + 0.5 * params.scale).double().mean())
    assert made.figures.clipped == pytest.approx(clipped, abs=0.01)
    made.wait()
    assert made.effect is not None
    assert made.effect.tap == "side"


def test_a_channel_that_is_not_there_is_said_in_place() -> None:
    made = tuner("side.weight", small_study("int8"))
    made.selected = 99
    assert "99" in made.error
    made.selected = 1
    assert made.error == ""
    assert made.grid_drawn["hi"] == float(made.grid.params.hi[1])


def test_channels_are_counted_although_the_plan_is_edited_meanwhile() -> None:
    made = tuner("stem")
    made.take(per_channel_study().plan)
    made.wait()
    assert made.error == ""
    assert made.figures.steps == 256
    assert made.grid_drawn["hi"] == pytest.approx(1.0)
    assert made.effect is not None


@pytest.mark.parametrize("meanwhile", ["drag", "edit"])
def test_what_is_done_while_channels_are_counted_does_not_lose_the_request(meanwhile: str) -> None:
    made = tuner("stem")
    with nothing_runs():
        made.set_rule(per_channel=True)
        if meanwhile == "drag":
            gesture(made, "drag", "hi", 2.0)
        else:
            made.set_range(0.0, 2.0)
    made.wait()
    assert made.grid.params.axis == 1 or made.error, "it is done, or said not to be"


def test_a_rule_that_is_changed_while_channels_are_counted_is_kept() -> None:
    made = tuner("stem")
    with nothing_runs():
        press(made, "rule", {"per_channel": True})
        press(made, "rule", {"bits": 4})
    made.wait()
    assert made.grid.params.axis == 1
    assert made.grid.spec.bits == 4


def test_another_tensor_that_is_edited_while_channels_are_counted_is_measured() -> None:
    made = tuner("stem")
    with nothing_runs():
        made.set_rule(per_channel=True)
        made.tensor = "side"
        made.set_range(-0.1, 0.1)
    made.wait()
    assert made.error == ""
    assert made.effect is not None


def test_a_tap_whose_channels_are_not_counted_yet_can_be_looked_at_and_dragged() -> None:
    made = tuner("stem", per_channel_study())
    with nothing_runs():
        made.tensor = "side"
        made.tensor = "stem"
        gesture(made, "drag", "hi", 1.0)
        assert "Traceback" not in made.error, "a KeyError helps nobody"
        assert repr(made).startswith("Tuner(stem")
        assert made.summary().loc["bits", "stem"] == "8"
    made.wait()
    assert made.error == ""
    assert made.figures.steps == 256


# methods


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_what_calibration_by_it_gives(method: str) -> None:
    calibrated = fresh_study(method=method, weight_method=method).plan
    for tensor in ("side", "depthwise", "side.weight"):
        made = tuner(tensor)
        made.choose(method)
        assert made.plan.params(tensor) == calibrated.params(tensor)
        assert made.grid.spec == calibrated[tensor].spec
        marked = [mark for mark in made.marks if method in mark["label"].split(", ")]
        assert [(mark["lo"], mark["hi"]) for mark in marked] == [ends(made)]


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_a_method_gives_every_channel_of_a_weight_its_range(method: str) -> None:
    made = tuner("side.weight", small_study("int8"))
    press(made, "choose", method)
    assert made.error == ""
    assert made.plan.params("side.weight") == fresh_study("int8", weight_method=method).plan.params("side.weight")


def test_methods_that_are_not_defined_cannot_be_chosen() -> None:
    made = tuner("side.weight", small_study("int8"))

    def defined() -> list[str]:
        assert [each["name"] for each in made.methods] == list(METHODS)
        return [each["name"] for each in made.methods if each["defined"]]

    assert defined() == ["minmax", "mse"]
    with pytest.raises(PlanError, match=r"^entropy\b.*\bside\.weight\b.*\bminmax, mse\b"):
        made.choose("entropy")
    press(made, "choose", "entropy")
    assert re.search(r"\bentropy\b.*\bside\.weight\b.*\bminmax, mse\b", made.error)
    made.tensor = "side"
    assert defined() == list(METHODS)
    made.set_rule(bits=9)
    assert set(METHODS) - set(defined()) == {"entropy"}


def test_a_percentile_that_is_none_is_refused() -> None:
    made = tuner()
    for text in ("50", "100.01", "nan", "many"):
        press(made, "percentile", text)
        assert text.removesuffix(".01") in made.error
        assert made.percentile == 99.99


def test_the_percentile_is_that_of_the_field() -> None:
    made = tuner("side")
    old = next(mark for mark in made.marks if "percentile" in mark["label"])
    press(made, "percentile", "95")
    new = next(mark for mark in made.marks if "percentile" in mark["label"])
    assert new["hi"] < old["hi"]
    made.choose("percentile")
    expected = fresh_study()
    assert made.grid == expected.calibrate("percentile", percentile=95.0, progress=False)["side"]


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
    assert made.tensor == "stem.weight"
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
