"""What people reported about heads: boxes and scores in one tensor, regression, units, softmax, one class for everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit

SIDE = 640.0


class Detector(nn.Module):
    """Boxes in pixels and scores from 0 to 1 as channels of one tensor, or each for itself."""

    def __init__(self, *, joined: bool, unit: float = SIDE) -> None:
        super().__init__()
        self.joined, self.unit = joined, unit
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(16, 4, 1), nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.body(x)
        boxes, scores = self.unit * torch.sigmoid(self.boxes(x)), torch.sigmoid(self.scores(x))
        return torch.cat([boxes, scores], 1) if self.joined else (boxes, scores)


def detector(**options: object) -> Detector:
    torch.manual_seed(0)
    model = Detector(**options).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        model.boxes.weight *= 10.0  # boxes all over the image
    return model


@pytest.fixture(scope="module")
def images() -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(8, 3, 12, 12, generator=draw) for _ in range(4)]


def score_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Negated mean error of the scores of each sample."""
    return -(outputs[:, 4:] - targets).abs().flatten(1).mean(1)


def test_scores_beside_boxes_in_pixels_vanish_and_the_join_is_named(images: list[Tensor]) -> None:
    model = detector(joined=True)
    with torch.no_grad():
        draw = torch.Generator().manual_seed(2)
        data = [(x, model(x)[:, 4:] + 0.1 * torch.randn(8, 3, 12, 12, generator=draw)) for x in images]
    study = qkit.Study(model, data, data, metric=qkit.Metric(score_error, "score error", unit=""), scheme="int8")
    plan = study.calibrate("minmax", progress=False)
    (join,) = (op.name for op in study.graph.operations if op.kind == "concat")
    step = float(plan[join].params.scale)
    assert step > 2.0, "640 pixels in 255 steps: a step is more than any score"
    got = study.capture(batches=1)[join].int8.values[:, 4:]
    assert not got.any(), "every score rounds to 0"
    scores = study.evaluate(progress=False)
    truth = -torch.cat([y.abs() for _, y in data]).mean()
    assert scores["int8"].value == pytest.approx(float(truth), rel=1e-4)
    found = study.diagnose(check_export=False, progress=False)
    assert found.verdict.name == "quantization"
    assert (found.causes[0].kind, found.causes[0].tensor, found.causes[0].remedy.kind) == ("mismatched-join", join, "split-join")


@pytest.mark.parametrize("options", [{"joined": False}, {"joined": True, "unit": 1.0}], ids=["two outputs", "boxes from 0 to 1"])
def test_scores_of_their_own_or_beside_boxes_from_0_to_1_stay(options: dict[str, object], images: list[Tensor]) -> None:
    model = detector(**options)
    study = qkit.Study(model, images, images, scheme="int8")
    study.calibrate("minmax", progress=False)
    found = study.diagnose(check_export=False, progress=False)
    assert found.verdict.name == "no-degradation"
    assert not [c for c in found.causes if c.kind == "mismatched-join"]
    captured = study.capture(batches=1)
    tap = next(t for t in reversed(captured.taps) if t != "output")
    pair = captured[tap]
    scores = slice(4, None) if options["joined"] else slice(None)
    assert float((pair.int8.values[:, scores] - pair.float.values[:, scores]).abs().max()) < 0.05


def depth_data() -> tuple[nn.Module, list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """A network that has learnt a distance in metres, with a channel out of proportion, which 8 bits per tensor lose."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(600, 3, 12, 12, generator=draw)
    y = F.avg_pool2d(40 * x.mean(1, keepdim=True) + 3 * x[:, :1], 3, 1, 1)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 1, 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(8):
        for i in range(0, 400, 40):
            optimizer.zero_grad()
            F.l1_loss(model(x[i : i + 40]), y[i : i + 40]).backward()
            optimizer.step()
    with torch.no_grad():
        model[0].weight[3] *= 400
        model[0].bias[3] *= 400
        model[2].weight[:, 3] /= 400
    return (
        model.eval(),
        list(zip(x[:200].split(40), y[:200].split(40), strict=True)),
        list(zip(x[400:].split(40), y[400:].split(40), strict=True)),
    )


def test_the_verdict_does_not_hang_on_the_unit_of_the_error() -> None:
    model, fit, test = depth_data()
    seen = {}
    for unit, factor in (("m", 1.0), ("mm", 1e3), ("km", 1e-3)):

        def negated(outputs: Tensor, targets: Tensor, factor: float = factor) -> Tensor:
            return -factor * (outputs - targets).abs().flatten(1).mean(1)

        study = qkit.Study(model, fit, test, metric=negated, scheme="int8-per-tensor")
        study.calibrate("minmax", progress=False)
        found = study.verdict(progress=False)
        seen[unit] = found.name
        with torch.no_grad():
            truth = -factor * float(torch.cat([(model(x) - y).abs().flatten(1).mean(1) for x, y in test]).mean())
        assert study.evaluate(("float",), progress=False)["float"].value == pytest.approx(truth, rel=1e-4)
    assert seen == dict.fromkeys(("m", "mm", "km"), "quantization")


def test_regression_is_not_scored_as_classification() -> None:
    """Distances as targets: top-1 is refused, and without a metric it is closeness to float."""
    model, fit, test = depth_data()
    assert qkit.Study(model, fit, test).metric_name == "closeness"
    study = qkit.Study(model, fit, test, metric="top1")
    with pytest.raises(qkit.QkitError):
        study.evaluate(progress=False)


def test_one_number_per_image_is_regression_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)).eval()
    x = torch.rand(16, 1, 8, 8)
    for y in (torch.rand(16), torch.rand(16, 1), torch.randint(0, 5, (16,))):
        study = qkit.Study(model, [(x, y)], [(x, y)])
        assert study.metric_name == "closeness"


def test_softmax_of_large_logits_is_finite_and_does_not_wrap() -> None:
    """Logits of hundreds: exponentials overflow float32 where the greatest is not subtracted; 1 must be the top code."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(1)).eval()
    with torch.no_grad():
        model[1].weight *= 400
    x = torch.randn(64, 1, 8, 8)
    for scheme in ("int8", "int8-symmetric", "int8-full-integer"):
        study = qkit.Study(model, [x], [x], scheme=scheme)
        plan = study.calibrate("minmax", progress=False)
        pair = study.capture(batches=1)["2"]
        grid = plan["2"].params
        logits = study.capture(batches=1)["1"].int8.values.double()
        assert logits.abs().max() > 100
        truth = torch.softmax(logits, 1)
        assert torch.isfinite(pair.int8.values).all()
        assert float((pair.int8.values - truth).abs().max()) <= 2.0 * float(grid.scale)
        sure = truth.amax(1) > 0.999
        assert sure.any()
        top = pair.int8.codes.amax(1)[sure]
        assert (top >= int(grid.qmax) - 1).all()


def test_one_answer_for_everything_is_said_and_its_layer_named() -> None:
    """A range a thousand times too wide in the middle: all images get the same class."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 5)
    ).eval()
    x = torch.randn(200, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    data = list(zip(x.split(50), y.split(50), strict=True))
    study = qkit.Study(model, data, data, metric="top1", scheme="int8")
    plan = study.calibrate("minmax", progress=False)
    broken = study.with_plan(plan.with_range("2", 0.0, 1000.0 * float(plan["2"].params.hi)))
    flips = broken.evaluate(progress=False)
    share = float((y == y.mode().values).double().mean())
    by_hand = broken.capture(batches=4)["5"].int8.codes.argmax(1)
    assert len(by_hand.unique()) == 1
    assert flips["int8"].value == pytest.approx(float((y == by_hand[0]).double().mean()))
    assert flips["int8"].value <= share
    found = broken.diagnose(check_export=False, progress=False)
    assert (found.causes[0].kind, found.causes[0].tensor) == ("range-too-wide", "2")
