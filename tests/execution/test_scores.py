"""What is said beside scores: agreement is not accuracy, closeness in dB by output; and bad input of the named metrics."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qkit
from qkit import DataError, QkitError, Scores
from qkit.commands.printing import score_table
from qkit.execution.metrics import NAMED, metric_of, score_batch
from qkit.execution.statistics import Samples, mean_interval


def classes(seed: int, noise: float = 0.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    scores = torch.randn(400, 6, generator=draw)
    return scores + noise * torch.randn(400, 6, generator=torch.Generator().manual_seed(seed))


def scored(metric: str, reference: Any, **lanes: Any) -> Scores:
    measured = metric_of(metric)
    size = len(reference) if isinstance(reference, torch.Tensor) else 40
    return Scores.of(
        measured, {name: score_batch(measured, y, None, reference, size) for name, y in {"float": reference, **lanes}.items()}
    )


def test_agreement_on_confident_images_is_that_of_the_half_with_the_greatest_margins() -> None:
    exact, lane = classes(0), classes(1, 0.4)
    scores = scored("agreement", exact, int8=lane)
    best = exact.topk(2, dim=1).values
    margins = best[:, 0] - best[:, 1]
    sure = margins >= margins.double().quantile(0.5)
    expected = (lane.argmax(1) == exact.argmax(1))[sure].double()
    assert scores.confident("int8") == mean_interval(expected.numpy())
    assert scores.confident("int8").value > scores["int8"].value + 0.05, "close decisions change first"
    assert scores.confident("float").value == 1.0


def test_agreement_is_said_to_be_no_accuracy_wherever_it_is_shown() -> None:
    scores = scored("agreement", classes(0), int8=classes(1, 0.4))
    share = f"{100 * scores.confident('int8').value:.2f} %"
    table = score_table(scores)
    shown = [repr(scores), scores._repr_html_(), " ".join(scores.notes), f"{table.title} {table.caption}"]
    assert all("not accuracy" in text and share in text for text in shown)
    assert scores.to_dict()["notes"] == list(scores.notes)
    assert scored("closeness", classes(0), int8=classes(1, 0.4)).units.percent
    assert Scores("top1", {"float": np.ones(3), "int8": np.ones(3)}).notes == ()


def test_a_verdict_by_agreement_says_so_with_that_on_confident_images() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5)).eval()
    study = qkit.Study(model, [torch.randn(24, 3, 8, 8) for _ in range(2)])
    study.calibrate(progress=False)
    sure = study.evaluate(progress=False).confident("int8")
    remarks = study.verdict(progress=False).remarks
    assert any("not accuracy" in remark and f"{100 * sure.value:.2f} %" in remark for remark in remarks)


def test_confidence_needs_decisions() -> None:
    with pytest.raises(QkitError, match="closeness"):
        scored("closeness", classes(0), int8=classes(1, 0.4)).confident("int8")


@pytest.mark.parametrize(
    ("arrange", "names"),
    [
        (lambda a, b: {"boxes": a, "depth": b}, ("boxes", "depth")),
        (lambda a, b: (a, b), ("0", "1")),
        (lambda a, b: {"head": {"boxes": a}, "maps": [b]}, ("head.boxes", "maps[0]")),
    ],
)
def test_decibels_by_output(arrange: Callable[..., Any], names: tuple[str, str]) -> None:
    draw = torch.Generator().manual_seed(2)
    first, second = torch.randn(40, 7, generator=draw), 5.0 + 0.1 * torch.randn(40, 3, 4, generator=draw)
    off = first + 0.1 * torch.randn(40, 7, generator=draw), second + 0.001 * torch.randn(40, 3, 4, generator=draw)
    scores = scored("closeness", arrange(first, second), int8=arrange(*off))
    table = scores.by_output("int8")
    assert tuple(table.index) == names
    for name, exact, lane in zip(names, (first, second), off, strict=True):
        noise = (lane - exact).double().square().mean()
        assert table.loc[name, "dB"] == pytest.approx(10 * math.log10(exact.double().var(correction=0) / noise), abs=1e-6)
        assert table.loc[name, "low"] < table.loc[name, "dB"] < table.loc[name, "high"]
        assert name in " ".join(scores.notes)
    assert (scores.by_output("float") == math.inf).all(axis=None)
    assert (scores["float"].low, scores["float"].value, scores["float"].high) == (1.0, 1.0, 1.0), "by definition"
    assert scores["int8"].value < 0.995, "the score is that of the worst output"


def test_outputs_that_are_no_numbers_are_as_far_as_can_be() -> None:
    exact = {"a": torch.randn(40, 3), "b": torch.randn(40, 3)}
    scores = scored("closeness", exact, int8={"a": exact["a"], "b": exact["b"] * math.nan})
    assert list(scores.by_output("int8")["dB"]) == [math.inf, -math.inf]


def test_decibels_are_of_closeness() -> None:
    scores = scored("agreement", classes(0), int8=classes(1))
    with pytest.raises(QkitError, match="'closeness'"):
        scores.by_output("int8")
    with pytest.raises(QkitError, match="int4"):
        scores.by_output("int4")


def test_ratios_join_with_their_names() -> None:
    exact = {"a": torch.randn(40, 3), "b": torch.randn(40, 3)}
    part = scored("closeness", exact, int8={k: v + 0.1 for k, v in exact.items()}).samples["int8"]
    joined = Samples.joined([part, part])
    assert joined.outputs == ("a", "b")
    assert joined.ratios is not None
    assert joined.ratios.shape == (80, 2)


def test_what_is_better_when_lower_is_shown_with_its_own_sign() -> None:
    labels = classes(0).argmax(1)
    metric = NAMED["cross-entropy"]
    samples = score_batch(metric, classes(0), labels, None, 400)
    scores = Scores.of(metric, {"float": samples, "int8": samples})
    truth = torch.nn.functional.cross_entropy(classes(0), labels).item()
    assert f"float {truth:.4f} [" in repr(scores)
    assert f"<td>{truth:.4f}</td>" in scores._repr_html_()


IMAGES = torch.rand(4, 3, 16, 16)


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "said"),
    [
        ("ssim", torch.rand(4, 5), torch.rand(4, 5), r"\(4, 5\)"),
        ("characters", torch.rand(4, 9, 6), ["abc"] * 4, "map characters"),
        ("characters", torch.rand(4, 9, 6), [[1, 2], [3], [1], [2]], "pad"),
        ("characters", torch.rand(4, 9, 6), torch.full((4, 3), 99), r"\b99\b"),
        ("mean-iou", torch.rand(4, 3, 8, 8), torch.zeros(4, 4, 4).long(), r"\(4, 8, 8\)"),
        ("mean-iou", torch.rand(4, 3, 8, 8), torch.full((4, 8, 8), 7), "outside"),
        ("psnr", IMAGES, IMAGES[:, :, ::2], r"\(4, 3, 8, 16\)"),
        ("cosine", (IMAGES, IMAGES), (IMAGES, IMAGES), "output="),
        ("absolute-error", IMAGES, IMAGES * math.nan, "4 of 4"),
        (lambda _o, _t: None, IMAGES, IMAGES, "NoneType"),
        (qkit.Metric(lambda _o, _t: [1], "m", whole=lambda _: lambda w: w[:, 0]), IMAGES, IMAGES, r"\b1 records\b.*\b4\b"),
    ],
)
def test_what_a_metric_cannot_take_is_said(metric: Any, outputs: Any, targets: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        score_batch(metric_of(metric), outputs, targets, None, 4)


@pytest.mark.parametrize("options", [{"better": "smaller"}, {"against": "labels"}])
def test_words_that_a_metric_does_not_know(options: Any) -> None:
    with pytest.raises(QkitError, match=next(iter(options.values()))):
        qkit.Metric(lambda outputs, _: outputs, "mine", **options)


def test_psnr_against_float_has_no_tolerance_of_its_own() -> None:
    scores = scored("psnr", IMAGES.repeat(10, 1, 1, 1), int8=IMAGES.repeat(10, 1, 1, 1) + 0.01)
    with pytest.raises(QkitError, match=r"tolerance=.*'closeness'"):
        scores.tolerance()


def test_own_scores_of_a_whole_set() -> None:
    """A correlation over all samples; better when lower as well."""
    draw = np.random.default_rng(0)
    x = draw.normal(size=60)
    y = x + 0.5 * draw.normal(size=60)

    def correlation(records: Any) -> Any:
        a, b = np.array(records).T

        def weigh(weights: np.ndarray) -> np.ndarray:
            return np.array(
                [np.cov(a, b, aweights=w)[0, 1] / np.sqrt(np.cov(a, aweights=w) * np.cov(b, aweights=w)) for w in weights]
            )

        return weigh

    for better, sign in (("higher", 1.0), ("lower", -1.0)):
        metric = qkit.Metric(lambda o, t: list(zip(o, t, strict=True)), "correlation", better=better, whole=correlation)  # type: ignore[arg-type]
        found = score_batch(metric, x, y, None, 60)
        truth = sign * np.corrcoef(x, y)[0, 1]
        assert found.interval().value == pytest.approx(truth)
        assert found.values.mean() == pytest.approx(truth)
        assert found.values.std(ddof=1) / math.sqrt(60) == pytest.approx((1 - truth**2) / math.sqrt(60), rel=0.35), "by Fisher"


def test_with_expected_takes_shares_alone() -> None:
    study = qkit.Study(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval(), [torch.randn(8, 3, 2, 2)], metric="agreement")
    with pytest.raises(QkitError, match=r"expected=97.*0\.97"):
        study.with_expected(97)
