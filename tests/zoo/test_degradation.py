"""What the data card says of the bundled networks in fixed point."""

from __future__ import annotations

import pytest

from qkit import FLOAT, Scores, Study
from qkit.zoo import load


def scores(name: str, method: str) -> Scores:
    case = load(name)
    study = Study(case.model, case.calibration, case.evaluation, scheme="int8-per-tensor", expected=case.expected)
    plan = study.calibrate(method, progress=False)
    plans = {"float": FLOAT, "int16": study.lane("int16"), "per tensor": plan, "per channel": study.with_scheme("int8").plan}
    return study.evaluate(plans, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mse", "minmax"])
def test_the_hostile_network_loses_points_per_tensor_and_none_in_16_bits(method: str) -> None:
    found = scores("mobilenet_v2_hostile", method)
    assert found.loss("per tensor").low > 0.05
    assert abs(found.loss("int16").value) <= 0.005
    assert abs(found.loss("per channel").value) <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small"])
def test_the_others_quantize_well(name: str) -> None:
    found = scores(name, "mse")
    for lane in ("int16", "per tensor", "per channel"):
        assert abs(found.loss(lane).value) <= 0.005
