"""What cannot be right is said: data, metrics and scores that would pass for a result."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import qkit
from qkit import DataError, QkitError
from qkit.diagnosis.verdict import judge
from qkit.execution import loading


def network(outputs: int = 5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, outputs)).eval()


def images(batches: int = 3, size: int = 16, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    model = network()
    found = []
    for _ in range(batches):
        x = torch.randn(size, 3, 8, 8, generator=draw) + 4.0 * torch.randn(size, 3, 1, 1, generator=draw)
        with torch.no_grad():
            found.append((x, model(x).argmax(1)))
    return found


def study(evaluation: Any, **options: Any) -> qkit.Study:
    made = qkit.Study(network(), images(), evaluation, **options)
    made.calibrate(progress=False)
    return made


class Moving:
    """A loader that gives other images in every pass."""

    def __init__(self) -> None:
        self.passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        return iter(images(seed=self.passes))


class Endless:
    def __iter__(self) -> Iterator[Any]:
        return itertools.cycle(images(1))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_images_that_are_no_numbers_have_no_score(bad: float) -> None:
    """Before, a NaN image was right wherever the label was 0."""
    data = images()
    data[1][0][3, 0, 0, 0] = bad
    with pytest.raises(DataError, match=r"\b1 of 16\b.*\b1\b.*NaN"):
        study(data).evaluate(progress=False)


def test_another_order_in_the_second_pass_is_refused() -> None:
    made = study(Moving(), metric="top1")
    made.evaluate(("float",), progress=False)
    with pytest.raises(DataError, match="shuffling"):
        made.evaluate(("int8",), progress=False)


def test_the_same_samples_in_another_order_are_other_batches() -> None:
    x, y = images(1)[0]
    first, second = (loading.fingerprint(loading.Batch((value,), y)) for value in (x, x.flip(0)))
    assert first != second
    assert first == loading.fingerprint(loading.Batch((x.clone(),), y.clone()))


def test_a_loader_without_an_end_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_ENDLESS", 20)
    made = study(Endless())
    with pytest.raises(DataError, match=r"\b20\b.*batches="):
        made.evaluate(progress=False)
    assert made.evaluate(batches=2, progress=False).n == 32


def test_a_float_score_no_better_than_one_class_is_remarked_on() -> None:
    wrong = [(x, (y + 1) % 5) for x, y in images()]
    remarks = study(wrong, metric="top1").verdict(progress=False).remarks
    assert any("class" in remark for remark in remarks)
    assert study(images(), metric="top1").verdict(progress=False).remarks == ()


def test_a_metric_that_does_not_look_is_remarked_on() -> None:
    made = study(images(), metric=lambda outputs, targets: torch.full((len(targets),), 0.5))
    assert any("same for every sample" in remark for remark in made.verdict(progress=False).remarks)


def test_an_expected_percentage_is_refused_at_once() -> None:
    with pytest.raises(QkitError, match=r"expected=97.*0\.97"):
        study(images(), expected=97)


@pytest.mark.parametrize("tolerance", [0.0, -0.1, float("nan")])
def test_a_tolerance_of_nothing_is_refused(tolerance: float) -> None:
    made = study(images(), metric="top1")
    with pytest.raises(QkitError, match="tolerance="):
        made.verdict(tolerance=tolerance, progress=False)
    with pytest.raises(QkitError, match="tolerance="):
        judge(made.evaluate(progress=False), tolerance=tolerance)


def test_evaluation_ends_when_it_is_sure_and_goes_on_where_asked() -> None:
    data = images(batches=12)
    made = study(data, metric="top1")
    ruined = made.with_plan(made.plan.with_range("0", 0.0, 1e-3))
    verdict = ruined.verdict(progress=False)
    assert verdict.name == "quantization" or verdict.name == "not-quantization"
    assert verdict.stopped is not None
    assert 48 <= verdict.stopped < 192
    assert verdict.narrow is not None
    assert verdict.narrow.n == verdict.stopped
    forced = ruined.verdict(batches=12, progress=False)
    assert forced.stopped is None
    assert forced.narrow is not None
    assert forced.narrow.n == 192


def test_data_that_come_class_by_class_are_taken_whole() -> None:
    pairs = images(batches=12)
    x, y = torch.cat([a for a, _ in pairs]), torch.cat([b for _, b in pairs])
    order = y.argsort()
    made = study(list(zip(x[order].split(16), y[order].split(16), strict=True)), metric="top1")
    ruined = made.with_plan(made.plan.with_range("0", 0.0, 1e-3))
    verdict = ruined.verdict(progress=False)
    assert verdict.stopped is None
    assert verdict.narrow is not None
    assert verdict.narrow.n == 192


def test_flips_and_losses_by_class() -> None:
    made = study(images(batches=4), metric="top1")
    ruined = made.with_plan(made.plan.with_range("0", 0.0, 1e-3))
    scores = ruined.evaluate(("float", "int8"), progress=False)
    flips = scores.flips("int8")
    assert len(flips) == round((1.0 - scores["int8"].value) * 64)
    assert set(flips["change"]) <= {"lost", "gained", "other"}
    assert (flips["from"] != flips["to"]).all()
    by_class = scores.by_class("int8")
    assert by_class["samples"].sum() == 64
    assert float((by_class["samples"] * by_class["loss"]).sum()) == pytest.approx(64 * scores.loss("int8").value)
    with pytest.raises(QkitError, match="closeness"):
        study([x for x, _ in images()], metric="closeness").evaluate(progress=False).flips("int8")
