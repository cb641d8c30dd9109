"""Scores and their intervals: formulas of the papers, scipy, scikit-learn, and coverage by simulation."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import accuracy_score, top_k_accuracy_score

from qkit import DataError, QkitError, Scores
from qkit.execution.measures import agreement, top1, top5
from qkit.execution.metrics import NAMED, AnyMetric, metric_of, score_batch
from qkit.execution.statistics import mean_interval, paired_interval

Z = 1.959963984540054


def batch(metric: AnyMetric, outputs: object, targets: object, reference: object, size: int) -> np.ndarray:
    return score_batch(metric_of(metric), outputs, targets, reference, size).values


def outputs(n: int = 200, classes: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    return torch.randn(n, classes, generator=random), torch.randint(0, classes, (n,), generator=random)


def test_top1_and_top5_against_scikit_learn() -> None:
    scores, targets = outputs()
    assert top1(scores, targets).mean() == pytest.approx(accuracy_score(targets, scores.argmax(1)))
    assert top5(scores, targets).mean() == pytest.approx(top_k_accuracy_score(targets, scores, k=5))
    assert top5(scores[:, :3], targets % 3).mean() == 1.0, "of three classes all are among the best five"


def test_dense_outputs_score_their_share_of_positions() -> None:
    scores = torch.randn(4, 3, 5, 6)
    targets = torch.randint(0, 3, (4, 5, 6))
    expected = [(scores[i].argmax(0) == targets[i]).double().mean() for i in range(4)]
    torch.testing.assert_close(top1(scores, targets), torch.stack(expected))
    torch.testing.assert_close(agreement(scores, scores.clone()), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (95, 100), (1, 1), (731, 741)])
def test_wilsons_interval(hits: int, n: int) -> None:
    """Wilson 1927: the roots of (p - x)**2 = z**2 x (1 - x) / n."""
    p = hits / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    found = mean_interval(np.array([1.0] * hits + [0.0] * (n - hits)))
    assert found.value == pytest.approx(p)
    assert found.low == pytest.approx(centre - half, abs=1e-12)
    assert found.high == pytest.approx(centre + half, abs=1e-12)
    assert found.n == n


def test_students_interval_for_other_scores() -> None:
    scores = np.random.default_rng(0).gamma(2.0, size=40)
    found = mean_interval(scores)
    expected = stats.ttest_1samp(scores, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    other = scores + np.random.default_rng(1).normal(size=40)
    found = paired_interval(scores, other)
    expected = stats.ttest_rel(scores, other).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert mean_interval(np.array([0.3])).high == math.inf


@pytest.mark.parametrize("counts", [(40, 7, 2, 11), (100, 0, 0, 0), (0, 30, 0, 0), (5, 1, 9, 5)])
def test_paired_proportions(counts: tuple[int, int, int, int]) -> None:
    """Bonett and Price 2012, equation 6: p12 = (f12 + 1)/(n + 2), p21 likewise; difference +- z sqrt(variance)."""
    both, first_only, second_only, neither = counts
    n = sum(counts)
    first = np.array([1.0] * both + [1.0] * first_only + [0.0] * second_only + [0.0] * neither)
    second = np.array([1.0] * both + [0.0] * first_only + [1.0] * second_only + [0.0] * neither)
    p12, p21 = (first_only + 1) / (n + 2), (second_only + 1) / (n + 2)
    half = Z * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    found = paired_interval(first, second)
    assert found.value == pytest.approx((first_only - second_only) / n)
    assert found.low == pytest.approx(max(p12 - p21 - half, -1.0))
    assert found.high == pytest.approx(min(p12 - p21 + half, 1.0))
    back = paired_interval(second, first)
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.slow
@pytest.mark.parametrize(("p", "n"), [(0.5, 50), (0.9, 100), (0.985, 741)])
def test_a_score_lies_in_its_interval_as_often_as_it_says(p: float, n: int) -> None:
    hits = np.random.default_rng(7).binomial(n, p, 3000)
    covered = []
    for h in hits:
        found = mean_interval(np.repeat([1.0, 0.0], [h, n - h]))
        covered.append(found.low <= p <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.995, "conservative where few samples differ, never far below 95 %"


@pytest.mark.parametrize("cells", [(0.9, 0.05, 0.02, 0.03), (0.97, 0.01, 0.01, 0.01), (0.5, 0.3, 0.1, 0.1)])
def test_a_difference_lies_in_its_interval_as_often_as_it_says(cells: tuple[float, ...]) -> None:
    n = 300
    first = np.array([1.0, 1.0, 0.0, 0.0])
    second = np.array([1.0, 0.0, 1.0, 0.0])
    covered = []
    for counts in np.random.default_rng(9).multinomial(n, cells, 3000):
        found = paired_interval(np.repeat(first, counts), np.repeat(second, counts))
        covered.append(found.low <= cells[1] - cells[2] <= found.high)
    assert 0.93 <= np.mean(covered) <= 0.995, "conservative where few samples differ, never far below 95 %"


def test_scores_of_lanes_on_the_same_samples() -> None:
    a, b = np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])
    scores = Scores("top1", {"float": a, "int8": b})
    assert scores.n == 4
    assert scores["float"].value == 0.75
    assert scores.loss("int8").value == 0.5
    assert scores.loss("float", against="int8").value == -0.5
    table = scores.table()
    assert list(table.index) == ["float", "int8"]
    assert table.loc["int8", "loss"] == 0.5
    assert json.loads(json.dumps(scores.to_dict(), allow_nan=False))["lanes"]["int8"]["loss"]["value"] == 0.5
    assert re.match(r"Scores\(top1\b.*\b4\b.*\bfloat 0\.7500 \[", repr(scores))
    assert "<table" in scores._repr_html_()
    with pytest.raises(QkitError, match=r"'int4'.*float, int8"):
        scores["int4"]


def test_metrics_that_do_not_fit() -> None:
    scores, targets = outputs(6)
    with pytest.raises(QkitError, match=f"'top3'.*{', '.join(NAMED)}"):
        batch("top3", scores, targets, None, 6)
    with pytest.raises(DataError, match=r"'top1'.*targets"):
        batch("top1", scores, None, None, 6)
    with pytest.raises(DataError, match=r"shape \(\).*\b6\b"):
        batch(lambda o, t: (o.argmax(1) == t).float().mean(), scores, targets, None, 6)
    with pytest.raises(DataError, match=r"NaN.*\b1\b.*\b6\b"):
        batch(lambda _o, _t: torch.tensor([1.0, math.nan, 1, 1, 1, 1]), scores, targets, None, 6)
    with pytest.raises(DataError, match=r"class\b.*\b6\b.*float32 \(6,\)"):
        batch("top1", scores, torch.randn(6), None, 6)
    with pytest.raises(DataError, match=r"\(6, 2, 3\).*targets.*\(6,\)"):
        batch("top1", torch.randn(6, 4, 2, 3), torch.zeros(6).long(), None, 6)
    with pytest.raises(QkitError, match=r"dict.*\bclasses\b.*'closeness'"):
        batch("top1", {"boxes": scores, "scores": scores}, targets, None, 6)
    assert np.array_equal(batch("top1", {"logits": scores, "loss": scores.mean()}, targets, None, 6),
                          batch("top1", scores, targets, None, 6))  # fmt: skip
    with pytest.raises(DataError, match=r"\b3\b.*\b4\b"):
        paired_interval(np.zeros(3), np.zeros(4))
    with pytest.raises(DataError, match="scores"):
        mean_interval(np.zeros(0))


def test_the_named_metrics_are_shares() -> None:
    assert all(NAMED[name].units.percent for name in ("top1", "top5", "agreement"))
    assert [name for name, metric in NAMED.items() if metric.among is not None] == ["top1", "top5", "agreement"]
