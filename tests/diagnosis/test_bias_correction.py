"""Bias correction: the shift that rounding adds to mean outputs, against what the lanes show."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.diagnosis.causes.biases import mean_shift
from qkit.execution.lanes import Lane, run_lanes


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_mean_shift_is_that_of_the_outputs(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 16, 3, groups=groups)
    x = torch.randn(4, 8, 9, 9) + torch.arange(8.0)[:, None, None]
    weight = layer.weight.detach()
    rounded = torch.floor(weight / 0.05) * 0.05
    # without padding, and with inputs constant per channel, the shift is exact
    flat = x.mean((0, 2, 3), keepdim=True).expand_as(x).contiguous()
    error = nn.functional.conv2d(flat, rounded - weight, groups=groups)
    shift = mean_shift(weight, rounded, flat.mean((0, 2, 3)))
    assert shift is not None
    torch.testing.assert_close(shift.float(), error.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()


def outputs(study: qkit.Study, plan: qkit.Plan, x: Tensor) -> Tensor:
    result: Tensor = run_lanes(study.graph, [Lane("lane", plan)], (x,))["lane"]
    return result


def test_corrections_shift_the_biases_of_quantized_layers_only() -> None:
    from dataclasses import replace

    x = torch.rand(8, 3, 12, 12)
    study = qkit.Study(network(), [x], scheme="int8-per-tensor")
    plan = study.calibrate("minmax", progress=False).weights_only()
    shift = (0.5, -0.25, 0.125, 0.0)
    corrected = replace(plan, corrections={"2": shift})
    assert corrected != plan
    assert hash(corrected) != hash(plan)
    difference = outputs(study, corrected, x) - outputs(study, plan, x)
    torch.testing.assert_close(difference.mean((0, 2, 3)), torch.tensor(shift), rtol=0, atol=1e-5)
    spared = replace(corrected.without(["2.weight"]))
    assert torch.equal(outputs(study, spared, x), outputs(study, plan.without(["2.weight"]), x))
    again = qkit.Plan.from_dict(json.loads(json.dumps(corrected.to_dict())))
    assert again == corrected
    with pytest.raises(qkit.PlanError, match=r"^2\b.*\b1\b.*\b4\b"):
        outputs(study, replace(plan, corrections={"2": (1.0,)}), x)
    broken = {**corrected.to_dict(), "corrections": {"2": ["much"]}}
    with pytest.raises(qkit.PlanError, match=r"corrections/2\b.*much"):
        qkit.Plan.from_dict(broken)
