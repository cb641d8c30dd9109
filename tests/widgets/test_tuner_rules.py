"""The range tuner's rules without a page: bits and symmetry, a range for each channel, the ranges that methods choose."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from studies import fresh_study, gesture, images, nothing_runs, press, small_study
from torch import nn
from tuners import ends, executed, per_channel_study, step_of, tuner

import qkit
from qkit import PlanError, Study
from qkit.execution.editing import figures
from qkit.execution.observing import observe_channels
from qkit.quant.estimators import METHODS
from qkit.widgets.numbers import figure_rows

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
    assert dict(row[:2] for row in made.figure_rows)["rounding, clipping"] == dict(figure_rows(figures([counted[3]], qkit.QuantParams(
        params.scale[3], params.zero_point[3], params.qmin, params.qmax
    ))))["rounding, clipping"]  # fmt: skip
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
