"""Causes that attention, norms and GELU have: planted in a trained transformer, found by experiment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qkit import QuantSpec, Study, zoo
from qkit.diagnosis.causes import activation_reach, attention, grid_rules
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.localize import subjects
from qkit.diagnosis.survival import check_exports, installed
from qkit.quant.schemes import PRESETS

IMAGES = 192


def first_images(case: zoo.Case, count: int = IMAGES) -> list[Any]:
    x, y = (torch.cat(parts) for parts in zip(*case.evaluation, strict=True))
    return list(zip(x[:count].split(64), y[:count].split(64), strict=True))


def deit(scheme: Any = "int8", change: Any = None) -> Study:
    case = zoo.load("deit_small")
    if change is not None:
        with torch.no_grad():
            change(case.model)
    study = Study(case.model, case.calibration, first_images(case), scheme=scheme)
    study.calibrate("mse", progress=False)
    return study


def widen(model: nn.Module, path: str = "blocks.1.norm1", reader: str = "blocks.1.attn.qkv", factor: float = 256.0) -> None:
    norm, linear = model.get_submodule(path), model.get_submodule(reader)
    for part in (norm.weight, norm.bias):
        part[[5, 20, 41]] *= factor
    linear.weight[:, [5, 20, 41]] /= factor


@pytest.mark.slow
def test_outlier_channels_of_a_norm_are_found_and_smoothed() -> None:
    study = deit(change=widen)
    found = study.diagnose(check_export=False, progress=False)
    assert found.verdict.name == "quantization"
    cause = found.causes[0]
    assert (cause.kind, cause.tensor, cause.remedy.kind) == ("activation-channel-imbalance", "blocks.1.norm1", "smooth-scales")
    assert set(cause.remedy.factors) == {"blocks.1.norm1"}
    factors = np.array(cause.remedy.factors["blocks.1.norm1"])
    assert factors[[5, 20, 41]].min() > 20 * np.median(factors)
    cured = study.apply(cause.remedy)
    assert cured.score(cured.plan).value >= study.score(study.plan).value + 0.5 * cause.gain.value  # type: ignore[union-attr]
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


def test_scales_of_a_norm_recover_what_its_outlier_channels_cost() -> None:
    study = deit(change=widen)
    (found,) = (
        c
        for c in activation_reach.candidates(subject_of(study, "blocks.1.norm1"))
        if (c.kind, c.remedy.kind) == ("activation-channel-imbalance", "smooth-scales")
    )
    plan = found.remedy.plan(study.plan)
    scores = study.evaluate({"float": study.lane("float"), "now": study.plan, "smoothed": plan}, progress=False)
    assert scores.loss("now").value > 0.03
    assert abs(scores.loss("smoothed").value) <= 0.01
    cured = study.apply(found.remedy)
    assert cured.score(cured.plan).value == pytest.approx(scores["smoothed"].value, abs=1.5 / IMAGES)
    # the float network is the same
    (images, _), *_ = study.evaluation
    with torch.no_grad():
        torch.testing.assert_close(cured.model(images), study.model(images), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs ONNX Runtime")
def test_scales_of_a_norm_survive_the_export() -> None:
    study = deit(change=widen)
    remedy = subject_of(study, "blocks.1.norm1").smoothing()
    (outcome,) = check_exports(study, {"smoothing": remedy.plan(study.plan)}, tolerance=0.01)
    assert outcome.survives
    assert outcome.samples >= 64


def subject_of(study: Study, tensor: str) -> Any:
    return subjects(Bench(study, progress=False), study.plan)[tensor]


def test_a_grid_without_negative_codes_is_told_from_one_that_needs_none() -> None:
    unsigned = QuantSpec(symmetric=True, signed=False)
    scheme = replace(PRESETS["int8"], overrides={"blocks.1.mlp.act": unsigned, "blocks.1.attn:softmax": unsigned})
    study = deit(scheme)
    (found,) = grid_rules.candidates(subject_of(study, "blocks.1.mlp.act"))
    assert (found.kind, found.remedy.kind) == ("range-too-narrow", "affine-activation")
    assert "GELU" in found.evidence
    grid = found.remedy.grids["blocks.1.mlp.act"]
    assert float(grid.params.lo) < -0.1
    assert not grid_rules.candidates(subject_of(study, "blocks.1.attn:softmax"))


class Masked(nn.Module):
    """One attention whose logits have a mask added, as people write it."""

    def __init__(self, low: float) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(16, 48), nn.Linear(16, 5)
        self.register_buffer("mask", torch.full((8, 8), low).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        logits = q @ k.transpose(-2, -1) + self.mask
        return self.head((logits.softmax(-1) @ v)[:, -2:].mean(1))


def masked(low: float) -> Study:
    torch.manual_seed(0)
    model = Masked(low).eval()
    model.qkv.weight.data *= 2.0
    x = torch.randn(64, 8, 16)
    batches = [(x, model(x).argmax(1).detach())]
    study = Study(model, batches, batches, metric="top1")
    study.calibrate("minmax", progress=False)
    return study


@pytest.mark.parametrize("low", [-100.0, -1e4, -1e9])
def test_masked_logits_are_clipped_where_they_still_get_nothing(low: float) -> None:
    study = masked(low)
    tap = next(op for op in study.graph.operations if op.kind == "add").name
    (found,) = attention.candidates(subject_of(study, tap))
    assert (found.kind, found.remedy.kind, found.layer) == ("activation-outlier", "clip-activation", ":add")
    grid = found.remedy.grids[tap].params
    seen = study.observe(progress=False)
    product = next(op for op in study.graph.operations if op.kind == "matmul").name
    assert float(grid.lo) < seen[product].histogram.min - 5.0
    assert float(grid.scale) < 0.5 * float(study.plan[tap].params.scale)
    # nothing that was masked is seen, and what is seen is nearer to float
    noise = {}
    for name, plan in {"before": study.plan, "after": found.remedy.plan(study.plan)}.items():
        only = plan.only([tap])
        softmax = next(op.name for op in study.graph.operations if op.kind == "activation")
        capture = study.capture({"float": study.lane("float"), "lane": only}, keep=[softmax], batches=1, progress=False)
        exact, value = capture[softmax].float.values, capture[softmax].lane.values
        noise[name] = float((exact - value).square().mean())
        assert float(value.triu(1).max()) < 1 / 256
    assert noise["after"] < 0.25 * noise["before"]


def test_a_mask_that_fits_the_grid_and_an_ordinary_addition_propose_nothing() -> None:
    study = masked(-12.0)
    tap = next(op for op in study.graph.operations if op.kind == "add").name
    assert not attention.candidates(subject_of(study, tap))
    other = deit()
    assert not any(attention.candidates(subject) for subject in subjects(Bench(other, progress=False), other.plan).values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deit_small", "swin_small", "mobilevit_small"])
def test_int8_is_within_a_point_or_the_diagnosis_brings_it_there(name: str) -> None:
    case = zoo.load(name)
    study = Study(case.model, case.calibration, case.evaluation, expected=case.expected)
    study.calibrate("mse", progress=False)
    scores = study.evaluate(("float", "int16", "int8"), progress=False)
    assert abs(scores.loss("int16").value) <= 0.005
    if scores.loss("int8").value > 0.01:
        found = study.diagnose(check_export=False, progress=False)
        assert found.causes
        assert found.best_loss is not None
        assert found.best_loss.value <= 0.01
