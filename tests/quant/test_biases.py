"""Biases that exceed their integers: scales that make them fit, where that costs nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import qkit
from qkit.execution.plan_checks import saturations
from qkit.quant.biases import coarser_scales
from qkit.quant.plan import FLOAT
from qkit.quant.schemes import PRESETS


def nearly_dead(gain: float) -> tuple[nn.Module, list[torch.Tensor]]:
    """A filter whose weights are next to nothing beside its bias, between sound ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
        images = [torch.randn(8, 3, 6, 6) for _ in range(3)]
    with torch.no_grad():
        model[0].weight[2] *= gain
        model[0].bias[2] = 1.5
    return model, images


@pytest.mark.parametrize("scheme", ["int8", "int8-symmetric", "int8-per-channel-power-of-two"])
def test_a_nearly_dead_filters_scale_makes_its_bias_fit(scheme: str) -> None:
    model, images = nearly_dead(1e-9)
    study = qkit.Study(model, images, metric="closeness", scheme=scheme)
    study.calibrate("minmax", progress=False)
    assert saturations(study.graph, study.plan) == {}
    grid = study.plan["0.weight"]
    source = float(study.plan["input"].params.scale)
    codes = study.graph.biases["0.bias"].double() / (source * grid.params.scale.double())
    assert float(codes.abs().max()) <= 2.0**31 - 1
    others = [c for c in range(6) if c != 2]
    alone = grid.spec.params(*(study.graph.weights["0.weight"].flatten(1).aminmax(dim=1)), axis=0)
    assert torch.equal(grid.params.scale[others], alone.scale[others]), "sound filters keep their scales"
    loss = study.evaluate({"float": FLOAT, "int8": study.plan}, progress=False).loss("int8")
    assert loss.value < 1e-3


def test_scales_that_cost_something_are_not_raised_by_planning() -> None:
    """With 12 bits for the biases all channels' scales would have to be far coarser."""
    model, images = nearly_dead(1.0)
    from dataclasses import replace

    study = qkit.Study(model, images, metric="closeness", scheme=replace(PRESETS["int8"], bias_bits=10))
    study.calibrate("minmax", progress=False)
    assert saturations(study.graph, study.plan)
    seen = study.observe(progress=False)
    assert coarser_scales(study.graph, study.plan.grids, 10, seen) == {}
    forced = coarser_scales(study.graph, study.plan.grids, 10, seen, free=False)
    assert set(forced) & {"0.weight", "2.weight"}
    fixed = study.plan.with_grids(forced)
    assert saturations(study.graph, fixed) == {}


def test_nothing_changes_where_biases_fit() -> None:
    model, images = nearly_dead(1.0)
    study = qkit.Study(model, images, metric="closeness", scheme="int8")
    study.calibrate("minmax", progress=False)
    assert coarser_scales(study.graph, study.plan.grids, 32, study.observe(progress=False), free=False) == {}
    assert coarser_scales(study.graph, study.plan.grids, None, study.observe(progress=False), free=False) == {}


def test_the_file_that_is_exported_keeps_the_score(tmp_path) -> None:
    """ONNX Runtime's own kernels on the exported grids, whose biases no longer saturate."""
    pytest.importorskip("onnxruntime")
    from qkit.engines.compare import score
    from qkit.engines.onnx import runtime

    model, images = nearly_dead(1e-9)
    study = qkit.Study(model, images, metric="closeness", scheme="int8")
    study.calibrate("minmax", progress=False)
    study.export(tmp_path / "net.onnx")
    found = score(study, runtime.lane(tmp_path / "net.onnx", graph=study.graph, precise=True), progress=False)
    name = next(lane for lane in found.lanes if lane not in ("float", "simulated"))
    assert abs(found.loss(name).value) < 1e-3
    assert np.abs(found.lanes[name] - found.lanes["simulated"]).max() < 1e-3
