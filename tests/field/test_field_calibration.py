"""What people reported about calibration: batches, blank and single images, images that were not prepared, ranges without zero."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import qkit

Batches = list[tuple[Tensor, Tensor]]


def split(x: Tensor, y: Tensor, size: int) -> Batches:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="module")
def digits() -> tuple[Batches, Batches]:
    """Scikit-learn's digits from 0 to 1, (N, 1, 8, 8): training and test batches."""
    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return split(x[:1000], y[:1000], 100), split(x[1000:1700], y[1000:1700], 100)


@pytest.fixture(scope="module")
def trained(digits: tuple[Batches, Batches]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12),
        nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(192, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(5):
        for x, y in digits[0]:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def top1(model: nn.Module, data: Batches) -> float:
    hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in data)
    return hits / sum(len(y) for _, y in data)


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse", "entropy"])
def test_ranges_do_not_depend_on_the_batch_size(method: str, trained: nn.Module, digits: tuple[Batches, Batches]) -> None:
    x, y = digits[0][0]
    plans = []
    for size in (1, 10, 100):
        study = qkit.Study(trained, split(x, y, size), digits[1][:1], metric="top1")
        plans.append(study.calibrate(method, progress=False))
    for tap in ("input", "0", "3", "8"):
        ends = [(float(plan[tap].params.lo), float(plan[tap].params.hi)) for plan in plans]
        assert ends[1] == pytest.approx(ends[0], rel=1e-5, abs=1e-6)
        assert ends[2] == pytest.approx(ends[0], rel=1e-5, abs=1e-6)


def test_every_range_holds_zero() -> None:
    """Values from 1 to 3: zero has a code all the same, since padding is filled with it."""
    torch.manual_seed(0)
    x = 1.0 + 2.0 * torch.rand(8, 2, 6, 6)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 1.0, 3.0
    study = qkit.Study(nn.Sequential(nn.Conv2d(2, 4, 3, padding=1)).eval(), [x], metric="closeness")
    grid = study.calibrate("minmax", progress=False)["input"].params
    assert float(grid.scale) == pytest.approx(3.0 / 255.0, rel=1e-6)
    assert float(qkit.fake_quantize(torch.zeros(1), grid)) == 0.0
    assert float(grid.lo) == 0.0


@pytest.mark.parametrize("method", ["minmax", "mse", "entropy", "percentile"])
@pytest.mark.parametrize("value", [0.0, 0.7])
def test_blank_images_give_grids_that_can_be_used(method: str, value: float) -> None:
    """One value everywhere: no division by nothing, and that value is kept."""
    torch.manual_seed(0)
    x = torch.full((4, 1, 6, 6), value)
    study = qkit.Study(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()).eval(), [x], metric="closeness")
    plan = study.calibrate(method, progress=False)
    for grid in (plan["input"].params, plan["0"].params):
        assert torch.isfinite(torch.as_tensor(grid.scale)).all()
        assert (torch.as_tensor(grid.scale) > 0).all()
    kept = qkit.fake_quantize(x, plan["input"].params)
    assert float((kept - x).abs().max()) <= max(0.01 * value, 1e-12)
    assert torch.isfinite(study.capture(batches=1)["0"].int8.values).all()


def test_blank_images_are_named(trained: nn.Module, digits: tuple[Batches, Batches]) -> None:
    blank = [(torch.zeros_like(x), y) for x, y in digits[0][:2]]
    study = qkit.Study(trained, blank, digits[1], metric="top1", expected=top1(trained, digits[1]))
    study.calibrate("minmax", progress=False)
    assert study.evaluate(("int8",), progress=False)["int8"].value < top1(trained, digits[1]) - 0.05
    found = study.diagnose(batches=3, check_export=False, progress=False)
    assert (found.verdict.name, found.causes[0].kind, found.causes[0].layer) == (
        "not-quantization",
        "calibration-mismatch",
        "input",
    )
    fixed = study.apply(found.causes[0].remedy)
    assert fixed.evaluate(("int8",), progress=False)["int8"].value == pytest.approx(top1(trained, digits[1]), abs=0.02)


PREPARED = {
    "0 to 255": lambda x: 255.0 * x,
    "random": lambda x: torch.randn(x.shape, generator=torch.Generator().manual_seed(1)) * 8.0,
    "-1 to 1": lambda x: 2.0 * x - 1.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", PREPARED)
def test_calibration_images_that_were_not_prepared_are_named(
    kind: str, trained: nn.Module, digits: tuple[Batches, Batches]
) -> None:
    wrong = [(PREPARED[kind](x), y) for x, y in digits[0][:3]]
    study = qkit.Study(trained, wrong, digits[1], metric="top1")
    study.calibrate("minmax", progress=False)
    found = study.diagnose(batches=3, check_export=False, progress=False)
    named = [c for c in (*found.causes, *found.findings) if c.kind == "calibration-mismatch"]
    assert [c.layer for c in named] == ["input"]
    if kind == "0 to 255":
        assert found.verdict.name == "not-quantization"
        assert found.causes[0].kind == "calibration-mismatch"
        fixed = study.apply(found.causes[0].remedy)
        assert fixed.evaluate(("int8",), progress=False)["int8"].value == pytest.approx(top1(trained, digits[1]), abs=0.02)


@pytest.mark.parametrize("factor", [255.0, 1 / 255.0])
def test_evaluation_images_in_another_unit_are_named(factor: float, trained: nn.Module, digits: tuple[Batches, Batches]) -> None:
    """Calibration as in training, evaluation from 0 to 255 (or 255 times too dark): no bit width brings the score back."""
    wrong = [(factor * x, y) for x, y in digits[1]]
    study = qkit.Study(trained, digits[0], wrong, metric="top1", expected=top1(trained, digits[1]))
    study.calibrate("minmax", progress=False)
    found = study.diagnose(batches=3, check_export=False, progress=False)
    assert found.verdict.name == "not-quantization"
    assert (found.causes[0].kind, found.causes[0].layer) == ("preprocessing", "input")


def test_one_calibration_image_clips_and_the_range_is_named(trained: nn.Module, digits: tuple[Batches, Batches]) -> None:
    """The image is a faint one: every range of the network is too narrow for the others."""
    x, y = digits[0][0]
    study = qkit.Study(trained, [(0.25 * x[:1], y[:1])], digits[1], metric="top1", expected=top1(trained, digits[1]))
    plan = study.calibrate("minmax", progress=False)
    assert float(plan["input"].params.hi) == pytest.approx(0.25 * float(x[0].max()), rel=1e-5)
    found = study.diagnose(batches=3, check_export=False, progress=False)
    assert (found.verdict.name, found.causes[0].kind) == ("not-quantization", "calibration-mismatch")
    assert found.causes[0].gain is not None
    assert found.causes[0].gain.low > 0.2
    fixed = study.apply(found.causes[0].remedy)
    assert fixed.evaluate(("int8",), progress=False)["int8"].value == pytest.approx(top1(trained, digits[1]), abs=0.02)


def test_a_channel_of_zeros_has_a_scale_and_gives_its_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[1] = 0.0
        model[0].bias[1] = 0.5
    x = torch.rand(8, 2, 6, 6)
    study = qkit.Study(model, [x], metric="closeness", scheme="int8")
    plan = study.calibrate("minmax", progress=False)
    scale = plan["0.weight"].params.scale
    assert torch.isfinite(scale).all()
    assert (scale > 0).all()
    got = study.capture(batches=1)["0"].int8.values[:, 1]
    assert float((got - 0.5).abs().max()) <= 0.5001 * float(plan["0"].params.scale)
