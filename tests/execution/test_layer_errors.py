"""Errors of a layer's output by channel: against the layer itself, and in the order that whole measurements have."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor, nn
from torch.nn import functional as F

from qkit import DataError, Study, fake_quantize, zoo
from qkit.execution.layer_errors import ChannelErrors, few_inputs, grid_errors, layer_errors, layer_sample
from qkit.quant.plan import Plan


def images(count: int = 6) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(5))


@cache
def studied() -> Study:
    study = Study(mixed_network(), [images()], scheme="int8-per-tensor")
    study.calibrate("mse", progress=False)
    return study


def alone(study: Study, name: str) -> ChannelErrors:
    """What one grid does alone."""
    return layer_sample(study.graph, few_inputs(study.graph, study.evaluation), name).errors(study.plan.only([name]))


def decibels(exact: Tensor, other: Tensor) -> np.ndarray:
    """By channel, in float64."""
    signal, noise = (x.double().transpose(0, 1).flatten(1).square().sum(1) for x in (exact, other - exact))
    return (10 * torch.log10(signal / noise)).numpy()


def test_a_weights_errors_are_those_of_its_convolution() -> None:
    study = studied()
    graph, plan = study.graph, study.plan.with_range("stem.weight", -0.1, 0.1)
    weight, bias = graph.weights["stem.weight"], graph.biases[graph.operation("stem").bias or ""]
    params = plan["stem.weight"].params
    (stem,) = [module for name, module in mixed_network().named_modules() if name == "stem"]
    assert isinstance(stem, nn.Conv2d)

    def out(w: Tensor) -> Tensor:
        return F.conv2d(images(), w, bias, stem.stride, stem.padding).clamp(*graph.operation("stem").act)

    expected = decibels(out(weight), out(fake_quantize(weight, params)))
    sample = layer_sample(graph, (images(),), "stem.weight")
    found = sample.errors(plan.only(["stem.weight"]))
    np.testing.assert_allclose(found.by_channel, expected, atol=0.01)
    assert found.worst == pytest.approx(expected.min(), abs=0.01)
    assert found.worst_channel == expected.argmin()
    assert found.median == pytest.approx(np.sort(expected)[(len(expected) - 1) // 2], abs=0.01)
    assert found.lost == 0
    with_tap = sample.errors(plan.only(["stem.weight", "stem"]))
    assert (with_tap.noise > 0).all()
    assert sample.errors(Plan()).noise.sum() == 0.0


def test_an_activations_errors_are_those_of_its_grid() -> None:
    study = studied()
    exact = layer_sample(study.graph, (images(),), "depthwise").exact
    expected = decibels(exact, fake_quantize(exact, study.plan["depthwise"].params))
    found = alone(study, "depthwise")
    np.testing.assert_allclose(found.by_channel, expected, atol=0.01)
    assert found.lost is None


def test_channels_that_round_to_zero_are_counted() -> None:
    layer = nn.Conv2d(3, 5, 3)
    with torch.no_grad():
        layer.weight[0] = 0.0
        layer.weight[1] *= 1e-6
        layer.weight[2, :, 1:] *= 1e-6
        layer.weight[3] *= 1e4
    study = Study(nn.Sequential(layer).eval(), [images()], scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    found = alone(study, "0.weight")
    codes = fake_quantize(layer.weight.detach(), study.plan["0.weight"].params)
    lost = [bool((row == 0).all()) for row in codes]
    assert lost == [True, True, True, False, True]
    assert found.lost == 3, "one of them is 0 in float too"
    assert found.channels == 5
    per_channel = study.with_scheme("int8")
    assert alone(per_channel, "0.weight").lost == 0


def test_channels_without_signal_are_nobodys_worst() -> None:
    errors = ChannelErrors(np.array([0.0, 0.0, 4.0, 9.0, 1.0]), np.array([0.0, 1.0, 4.0, 0.9, 0.0]), 2)
    assert math.isnan(errors.by_channel[0])
    assert errors.worst == 0.0
    assert errors.worst_channel == 2
    assert errors.median == pytest.approx(10.0)
    silent = ChannelErrors(np.zeros(2), np.zeros(2))
    assert math.isnan(silent.worst)
    assert math.isnan(silent.median)
    assert silent.worst_channel is None


def test_every_grid_alone_in_one_pass_is_each_by_itself() -> None:
    study = studied()
    other = study.plan.with_range("side.weight", -0.05, 0.05).without(["average"])
    inputs = few_inputs(study.graph, study.evaluation)
    first, second = grid_errors(study.graph, inputs, [study.plan, other])
    assert list(first) == list(study.plan.grids)
    assert "average" not in second
    for name in ("input", "stem", "side.weight", "classify.weight", "average"):
        np.testing.assert_allclose(first[name].noise, alone(study, name).noise, rtol=1e-6)
    assert second["side.weight"].worst < first["side.weight"].worst
    np.testing.assert_array_equal(second["stem"].noise, first["stem"].noise)
    parts = layer_errors(study.graph, inputs, "side", study.plan)
    np.testing.assert_array_equal(parts["weight"].noise, first["side.weight"].noise)
    np.testing.assert_array_equal(parts["activation"].noise, first["side"].noise)
    assert parts["both"].total < min(parts["weight"].total, parts["activation"].total) + 0.5
    assert set(layer_errors(study.graph, inputs, "average", study.plan)) == {"activation", "both"}


def test_a_large_layer_is_cut() -> None:
    model = nn.Sequential(nn.Conv2d(3, 64, 7, padding=3), nn.ReLU(), nn.Conv2d(64, 32, 5, padding=2))
    x = torch.randn(8, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    study = Study(model.eval(), [x], scheme="int8")
    study.calibrate("minmax", progress=False)
    sample = layer_sample(study.graph, few_inputs(study.graph, study.evaluation), "2.weight")
    shape = tuple(sample.values[0].shape)
    assert shape[:2] == (1, 64)
    assert 16 <= shape[2] < 96
    whole = study.effect("2.weight", batches=1)
    assert sample.errors(study.plan).total == pytest.approx(whole.local, abs=1.5)


def test_data_without_a_batch_are_refused() -> None:
    with pytest.raises(DataError, match="batch"):
        few_inputs(studied().graph, [])


@cache
def hostile() -> Study:
    case = zoo.load("mobilenet_v2_hostile")
    study = Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
    study.calibrate(progress=False)
    return study


@pytest.mark.slow
@pytest.mark.parametrize(
    "tensor",
    ["features.3.conv.1.0.weight", "features.5.conv.1.0.weight", "features.1.conv.1.weight", "classifier.1.weight",
     "features.4.conv.1.0"],
)  # fmt: skip
def test_live_figures_order_ranges_as_the_whole_measurement_does(tensor: str) -> None:
    study = hostile()
    sample = layer_sample(study.graph, few_inputs(study.graph, study.evaluation), tensor)
    params = study.plan[tensor].params
    live, measured = [], []
    for factor in (1.0, 0.7, 0.5, 0.3, 35.0 / 198.5, 0.1, 0.05, 0.02):
        plan = study.plan.with_range(tensor, float(params.lo) * factor, float(params.hi) * factor)
        live.append(sample.errors(plan).total)
        measured.append(study.effect(tensor, plan, batches=4).local)
    # ranges whose measurements are less than half a decibel apart are alike
    for a in range(len(live)):
        for b in range(a):
            if abs(measured[a] - measured[b]) > 0.5:
                assert (live[a] > live[b]) == (measured[a] > measured[b])


def test_the_weight_of_which_the_summed_error_misled() -> None:
    """Narrower, its own error grows from 33 dB to 3, and its layer's output recovers from 1 dB to 17."""
    study, tensor = hostile(), "features.3.conv.1.0.weight"
    narrow = study.plan.with_range(tensor, -35.0, 35.0)
    sample = layer_sample(study.graph, few_inputs(study.graph, study.evaluation), tensor)
    before, after = sample.errors(study.plan), sample.errors(narrow)
    found = [study.effect(tensor, plan, batches=1) for plan in (study.plan, narrow)]
    assert found[1].local > found[0].local + 10
    assert found[1].scores.mean() > found[0].scores.mean() + 0.1
    assert after.total > before.total + 10
    assert after.median > before.median + 10
    assert after.total == pytest.approx(found[1].local, abs=1.0)
    assert before.lost is not None
    assert before.lost > 10
    assert after.lost == 0
