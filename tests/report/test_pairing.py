"""Intervals of differences between two runs: against the literature's figures, the kit's own paired interval, and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qkit.execution.statistics import Interval, mean_interval, paired_interval
from qkit.report.comparing.pairing import growth_of_loss, independent_difference


def wilson(hits: int, n: int) -> Interval:
    low, high = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    return Interval(hits / n, low, high, n)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10
        ((56, 70), (48, 80), 0.0524, 0.3339),
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((5, 56), (0, 29), -0.0381, 0.1926),
        ((10, 10), (0, 10), 0.6075, 1.0),
    ],
)
def test_independent_difference_has_newcombes_figures(first, second, low, high):
    found = independent_difference(wilson(*first), wilson(*second))
    assert found.value == pytest.approx(first[0] / first[1] - second[0] / second[1])
    assert (found.low, found.high) == (pytest.approx(low, abs=1.5e-4), pytest.approx(high, abs=1.5e-4))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=2, max_size=60))
def test_growth_is_the_paired_interval_where_float_is_the_same(rows):
    floats, old, new = np.array(rows, dtype=float).T
    found, expected = growth_of_loss(floats, old, floats, new), paired_interval(old, new)
    # the paired interval of two lanes ends at -1 and 1, this one at -2 and 2
    ends = max(found.low, -1.0), min(found.high, 1.0)
    assert (found.value, *ends) == pytest.approx((expected.value, expected.low, expected.high))


@given(st.lists(st.tuples(*[st.floats(-5, 5)] * 4), min_size=3, max_size=40))
def test_growth_of_other_scores_is_students(rows):
    scores = np.array(rows).T
    if np.isin(scores, (0.0, 1.0)).all():
        return
    growth = (scores[2] - scores[3]) - (scores[0] - scores[1])
    found = growth_of_loss(*scores)
    half = stats.t.ppf(0.975, len(growth) - 1) * stats.sem(growth)
    assert (found.value, found.low, found.high) == pytest.approx(
        (growth.mean(), growth.mean() - half, growth.mean() + half), abs=1e-9
    )


def test_growth_does_not_collapse_and_keeps_its_bounds():
    n = 20
    still = growth_of_loss(*[np.ones(n)] * 4)
    assert still.value == 0.0
    assert still.low < -0.01 < 0.01 < still.high
    worst = growth_of_loss(np.zeros(n), np.ones(n), np.ones(n), np.zeros(n))
    assert worst.value == 2.0
    assert worst.high <= 2.0


@pytest.mark.parametrize("n", [60, 400])
def test_growth_covers_the_truth(n):
    """Of 600 draws about 95 of 100 intervals hold the true growth, with all four lanes depending on one another."""
    random = np.random.default_rng(0)
    hits, draws = 0, 600
    truth = 0.10 * _new_float() - 0.03 * 0.95
    for _ in range(draws):
        hard = random.random(n)
        old_float, new_float = hard < 0.95, hard + 0.03 * random.standard_normal(n) < 0.93
        old_lane, new_lane = old_float & (random.random(n) < 0.97), new_float & (random.random(n) < 0.90)
        found = growth_of_loss(*(lane.astype(float) for lane in (old_float, old_lane, new_float, new_lane)))
        hits += found.low <= truth <= found.high
    assert 0.925 <= hits / draws <= 0.99


def _new_float() -> float:
    """The share that the new float lane gets right: E[P(noise < 0.93 - hard)] over hard uniform on 0 to 1."""
    grid = (np.arange(200_000) + 0.5) / 200_000
    return float(stats.norm.cdf((0.93 - grid) / 0.03).mean())


def test_unbounded_intervals_stay_unbounded():
    found = independent_difference(Interval(1.0, -math.inf, math.inf, 1), mean_interval(np.array([0.0, 1.0])))
    assert (found.value, found.low, found.high) == (0.5, -math.inf, math.inf)
