"""What few samples tell: paired tests against scipy, and losses expected of many samples against many samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from qkit.execution.statistics import (
    CHANCE,
    Samples,
    adjusted,
    expected_scores,
    gain,
    mean_interval,
    paired_interval,
    surprise,
)


def drawn(random: np.random.Generator, n: int, noise: float, shift: float = 0.0) -> tuple[Samples, Samples]:
    """Float's margins, and a lane's that are disturbed; both as samples of labelled class scores."""
    margins = random.normal(2.0, 1.5, n)
    moved = margins + noise * random.standard_normal(n) - shift
    return decided(margins), decided(moved)


def decided(margins: np.ndarray) -> Samples:
    """Labelled class scores of these margins."""
    return Samples((margins > 0).astype(float), margins, np.ones(len(margins)))


def test_equal_lanes_differ_by_exactly_nothing() -> None:
    exact, _ = drawn(np.random.default_rng(0), 60, 0.1)
    found = gain(exact, exact, exact)
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)
    one = paired_interval(exact.values, exact.values)
    assert (one.value, one.low, one.high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(("ups", "downs"), [(0, 5), (0, 6), (3, 9), (10, 12), (0, 60)])
def test_changed_decisions_are_judged_by_mcnemars_exact_test(ups: int, downs: int) -> None:
    first = np.concatenate([np.ones(ups), np.zeros(downs), np.ones(40)])
    second = np.concatenate([np.zeros(ups), np.ones(downs), np.ones(40)])
    assert paired_interval(first, second).p == pytest.approx(stats.binomtest(ups, ups + downs, 0.5).pvalue)


@pytest.mark.parametrize("n", [12, 45, 300])
def test_other_scores_are_judged_by_wilcoxons_test(n: int) -> None:
    random = np.random.default_rng(n)
    first = random.normal(size=n)
    second = first - random.normal(0.3, 1.0, n)
    assert paired_interval(first, second).p == pytest.approx(stats.wilcoxon(first - second).pvalue)


def test_sixty_right_and_none_right_is_no_doubt() -> None:
    """Counts alone, without margins: float 60 of 60, 8 bits 0 of 60."""
    right, wrong = Samples(np.ones(60)), Samples(np.zeros(60))
    assert gain(right, wrong, right).above(0.01)


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.4])
def test_few_samples_let_expect_what_many_lose(noise: float) -> None:
    """The mean of many estimates on 48 samples is the loss of 200,000, and each is nearer to it than a count is."""
    random = np.random.default_rng(1)
    exact, lane = drawn(random, 200_000, noise)
    true = float((exact.values - lane.values).mean())
    estimates, counts = [], []
    for _ in range(400):
        few, other = drawn(random, 48, noise)
        estimates.append(float((few.values - expected_scores(few, other)).mean()))
        counts.append(float((few.values - other.values).mean()))
    assert np.mean(estimates) == pytest.approx(true, abs=0.0015 + 0.1 * true)
    assert np.std(estimates) < np.std(counts)


def test_the_expected_loss_lies_in_its_interval() -> None:
    random = np.random.default_rng(2)
    exact, lane = drawn(random, 200_000, 0.5, shift=0.3)
    true = float((exact.values - lane.values).mean())
    held = []
    for _ in range(300):
        few, other = drawn(random, 96, 0.5, shift=0.3)
        found = gain(few, other, few)
        held.append(found.low <= true <= found.high)
    assert np.mean(held) > 0.9


def test_many_changed_decisions_are_counted() -> None:
    random = np.random.default_rng(3)
    exact, lane = drawn(random, 100, 3.0)
    assert int((exact.values != lane.values).sum()) >= 10
    assert np.array_equal(expected_scores(exact, lane), lane.values)


def test_without_labels_a_change_costs_what_float_believed() -> None:
    n = 100
    margins = np.full(n, 1.0)
    lane = Samples(np.r_[np.zeros(50), np.ones(50)], np.r_[np.full(50, -1.0), np.full(50, 1.0)], np.full(n, 0.02))
    exact = Samples(np.ones(n), margins, np.full(n, 0.02))
    found = gain(exact, lane, exact)
    assert found.value == pytest.approx(0.5 * 0.02)
    assert paired_interval(exact.values, lane.values).value == 0.5


def test_looks_at_growing_data_are_paid_for() -> None:
    """Equal lanes, looked at ten times: seldom is one found to lose."""
    random = np.random.default_rng(4)
    wrong = 0
    for _ in range(300):
        scores = random.normal(size=1000)
        other = scores + random.normal(size=1000)
        for look in range(1, 11):
            k = 100 * look
            wrong_now = gain(Samples(scores[:k]), Samples(other[:k]), Samples(scores[:k]), looks=look + 1).sure(0.01)
            if wrong_now:
                wrong += 1
                break
    assert wrong <= 15


@pytest.mark.parametrize("p", [{"a": 0.01, "b": 0.04, "c": 0.03}, {"a": 0.5}, {}, {"a": 0.2, "b": 0.9, "c": 0.0001, "d": 0.02}])
def test_holm_by_its_definition(p: dict[str, float]) -> None:
    """Holm 1979: ordered p-values times the number of those not yet rejected, made monotone."""
    found = adjusted(p)
    ranked = sorted(p.values())
    for name, value in p.items():
        k = ranked.index(value)
        assert found[name] == pytest.approx(max(min((len(p) - i) * ranked[i], 1.0) for i in range(k + 1)))


def test_an_interval_of_a_score_compares_nothing() -> None:
    assert mean_interval(np.array([1.0, 0.0, 1.0])).p is None


def test_what_ruins_a_third_and_helps_the_others_a_little_is_no_chance() -> None:
    """Ranks alone see as many signs either way; the decisions are 16 to none (McNemar: 2 · 0.5^16)."""
    random = np.random.default_rng(4)
    after = random.uniform(2.0, 6.0, 48)
    before = after + random.uniform(0.01, 0.4, 48)
    before[:16] = -random.uniform(0.01, 0.2, 16)
    found = gain(decided(after), decided(before), decided(after))
    ranks = stats.wilcoxon(surprise(before) - surprise(after)).pvalue
    assert found.value == pytest.approx(16 / 48)
    assert found.p == pytest.approx(min(1.0, 2 * min(ranks, stats.binomtest(16, 16).pvalue)))
    assert found.above(0.01)


def test_equal_lanes_are_seldom_found_to_differ() -> None:
    """Noise without direction on decisions that are near: of 400 pairs about 1 in 100 may pass, both tests together."""
    random = np.random.default_rng(9)
    passed = 0
    for _ in range(400):
        exact = random.normal(0.5, 1.0, 96)
        first, second = exact + random.normal(0, 0.6, 96), exact + random.normal(0, 0.6, 96)
        passed += gain(decided(first), decided(second), decided(exact)).p < CHANCE
    assert passed <= 10
