"""Channels whose weights are all zero hand on their bias: no lane may lose it to a step that no weight asked for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qkit import Study


@pytest.mark.parametrize("weight_method", ["minmax", "mse"])
def test_bias_of_a_channel_of_zeros_keeps_its_precision(weight_method):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        model[0].weight[:4] = 0.0
        model[0].bias.uniform_(0.1, 1.0)
    images = torch.randn(8, 3, 12, 12) * 3
    study = Study(model, [images], metric=lambda outputs, targets: outputs.flatten(1).sum(1), scheme="int8")
    study.calibrate("minmax", weight_method=weight_method, progress=False)
    with torch.no_grad():
        exact = model[0](images).relu()[:, :4]
    for lane in ("int8", "int16"):
        plan = study.lane(lane)
        values = study.capture(lanes=(lane,), progress=False)["0"][lane].values[:, :4]
        widest = float(model[0].weight.detach().abs().max()) / (2 ** (int(lane[3:]) - 1) - 1)
        bias_step = float(plan["input"].params.scale) * widest
        allowed = 0.501 * (bias_step + float(plan["0"].params.scale)) + 1e-6
        assert (values - exact).abs().max() <= allowed, lane
