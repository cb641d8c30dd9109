"""Differences between two runs, with 95 % intervals: on pairs of samples, or from two independent intervals."""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

from qkit.execution.statistics import CONFIDENCE, Interval, paired_interval


def difference_of_means(first: np.ndarray, second: np.ndarray) -> Interval:
    """Mean of ``first - second`` over the same samples, float64 (N,)."""
    return paired_interval(first, second)


def growth_of_loss(
    old_float: np.ndarray, old_lane: np.ndarray, new_float: np.ndarray, new_lane: np.ndarray
) -> Interval:  # fmt: skip
    """Mean of ``(new_float - new_lane) - (old_float - old_lane)`` over the same samples, float64 (N,) each.

    For 0/1 scores these differences are whole numbers from -2 to 2, and the interval is the adjusted Wald interval of Bonett
    and Price (2012) with their two added samples, one of +1 and one of -1: where both float lanes agree it is that interval
    itself, and it does not collapse where no sample differs. Student's for other scores.
    """
    growth = (new_float - new_lane) - (old_float - old_lane)
    n = len(growth)
    if not all(np.isin(scores, (0.0, 1.0)).all() for scores in (old_float, old_lane, new_float, new_lane)):
        return paired_interval(growth, np.zeros(n))
    centre = float(growth.sum()) / (n + 2.0)
    spread = (float((growth**2).sum()) + 2.0) / (n + 2.0) - centre**2
    half = float(stats.norm.ppf(0.5 + CONFIDENCE / 2)) * math.sqrt(max(spread, 0.0) / (n + 2.0))
    return Interval(float(growth.mean()), max(centre - half, -2.0), min(centre + half, 2.0), n)


def independent_difference(first: Interval, second: Interval) -> Interval:
    """``first - second`` of two independent samples, from their own intervals.

    Newcombe (1998, "Interval estimation for the difference between independent proportions", method 10), which holds for any two
    intervals: each end takes the distances to those ends of the two that make it worse.
    """
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return Interval(value, value - below, value + above, min(first.n, second.n))
