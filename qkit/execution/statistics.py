"""Means with intervals, paired comparisons of lanes, and what few samples let one expect of many.

All lanes see the same samples, so their difference is judged on the pairs: its interval is far narrower than the two scores' own
intervals suggest, and tests on pairs tell a difference from chance on some fifty samples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from qkit.errors import DataError

__all__ = [
    "CHANCE",
    "CONFIDENCE",
    "Interval",
    "Samples",
    "adjusted",
    "expected_scores",
    "gain",
    "mean_interval",
    "paired_interval",
]

_Key = TypeVar("_Key", bound=Hashable)

CONFIDENCE = 0.95
#: A difference is more than chance if equal lanes would differ like that less often than this.
CHANCE = 0.01
#: From so many changed decisions on, counting them says more than margins do.
_COUNTED = 10
#: Share of the samples on either side whose disturbances a margin is put to, and the least and greatest number of them.
_NEIGHBOURS, _FEWEST, _MOST = 0.1, 2, 50


@dataclass(frozen=True)
class Interval:
    """A figure with its confidence interval, over `n` samples.

    Attributes
    ----------
    value, low, high
        The mean and the ends of its interval.
    n
        Samples.
    p
        Of a difference: how often two equal lanes would differ at least like that (two-sided); None where nothing was compared.
    by_margins
        Whether the margins of all decisions are behind it, and not those alone that changed; see `expected_scores`.
    """

    value: float
    low: float
    high: float
    n: int
    p: float | None = None
    by_margins: bool = False

    @property
    def clear(self) -> bool:
        """Whether a difference is above zero, and that is no chance."""
        return self.above(0.0)

    def above(self, tolerance: float) -> bool:
        """Whether a difference is greater than the tolerance, and that it is above zero is no chance.

        Either its interval says so, or the paired test does and the difference is one and a half times the tolerance: of few
        samples the interval is wide where the test has long decided.
        """
        if not self.value > tolerance or (self.p is not None and self.p >= CHANCE):
            return False
        return self.low > 0.0 or (self.p is not None and self.value > 1.5 * tolerance > 0.0)

    def sure(self, tolerance: float) -> bool:
        """Whether a difference is more than zero, and that is no chance: by its interval, or as `above` tells it of few
        samples.
        """
        return self.clear or self.above(tolerance)

    def within(self, tolerance: float) -> bool:
        """Whether a difference is no more than the tolerance: its interval ends below twice that.

        By margins, below three times where the value itself is at most half of it. That was chosen on the bundled networks: of
        656 lanes that lose three points and more it took three for close on 48 samples, none on 96, two on 192.
        """
        if self.value > tolerance:
            return False
        few = self.by_margins and self.value <= tolerance / 2.0
        return self.high <= (3.0 if few else 2.0) * tolerance

    def __format__(self, spec: str) -> str:
        spec = spec or ".4f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def to_dict(self) -> dict[str, float]:
        """As plain numbers."""
        found: dict[str, float] = {"value": self.value, "low": self.low, "high": self.high, "n": self.n}
        return found if self.p is None else {**found, "p": self.p}


def _is_binary(scores: np.ndarray) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def mean_interval(scores: np.ndarray, confidence: float = CONFIDENCE) -> Interval:
    """Mean of per-sample scores: Wilson's interval for 0/1 scores, Student's for others."""
    n = len(scores)
    if n == 0:
        raise DataError("there are no scores: the evaluation loader gave no sample.")
    value = float(scores.mean())
    if _is_binary(scores):
        low, high = stats.binomtest(int(scores.sum()), n).proportion_ci(confidence, method="wilson")
        return Interval(value, float(low), float(high), n)
    return _student(scores, confidence)


def paired_interval(first: np.ndarray, second: np.ndarray, confidence: float = CONFIDENCE, *, ranks: bool = True) -> Interval:
    """Mean of ``first - second`` over the same samples, and how likely chance alone makes such a difference.

    For 0/1 scores the adjusted Wald interval of Bonett and Price (2012, "Adjusted Wald Confidence Interval for a
    Difference of Binomial Proportions Based on Paired Data"), which does not collapse to zero width where samples differ in
    neither direction, with McNemar's exact test; for other scores Student's interval and Wilcoxon's signed-rank test. Scores that
    are the same array, as a lane's and its own, differ by exactly 0.

    Without `ranks` the test is Student's: of the pseudo-values of a score of the whole set (`qkit.execution.whole`) mean and
    spread mean something, and ranks nothing.
    """
    if first.shape != second.shape or len(first) == 0:
        raise DataError(f"a paired comparison needs the same samples in both lanes, not {len(first)} and {len(second)}.")
    n = len(first)
    if first is second:
        return Interval(0.0, 0.0, 0.0, n, 1.0)
    difference = first - second
    if _is_binary(first) and _is_binary(second):
        value = float(difference.mean())
        ups, downs = int((difference > 0).sum()), int((difference < 0).sum())
        gained, lost = (ups + 1.0) / (n + 2.0), (downs + 1.0) / (n + 2.0)
        z = float(stats.norm.ppf(0.5 + confidence / 2))
        centre = gained - lost
        half = z * math.sqrt(max(gained + lost - centre**2, 0.0) / (n + 2.0))
        return Interval(value, max(centre - half, -1.0), min(centre + half, 1.0), n, _mcnemar(ups, downs))
    found = _student(difference, confidence)
    return replace(found, p=_wilcoxon(difference) if ranks else _student_p(difference))


def _student(values: np.ndarray, confidence: float) -> Interval:
    n, value = len(values), float(values.mean())
    if n < 2:
        return Interval(value, -math.inf, math.inf, n)
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / math.sqrt(n))
    return Interval(value, value - half, value + half, n)


def _mcnemar(ups: int, downs: int) -> float:
    """Exact two-sided p-value of so many changes either way (McNemar 1947, by the binomial distribution)."""
    return float(stats.binomtest(ups, ups + downs, 0.5).pvalue) if ups + downs else 1.0


def _student_p(difference: np.ndarray) -> float:
    """Two-sided p-value of Student's test, never below that of all samples having changed in one direction."""
    n, spread = len(difference), float(difference.std(ddof=1)) if len(difference) > 1 else 0.0
    mean = abs(float(difference.mean()))
    if n < 2 or spread == 0.0:
        return 1.0 if n < 2 or mean == 0.0 else 2.0 ** (1 - n)
    return max(2.0 * float(stats.t.sf(mean * math.sqrt(n) / spread, n - 1)), 2.0 ** (1 - n))


def _wilcoxon(difference: np.ndarray) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test, zeros left out; exact for few samples."""
    moved = difference[difference != 0.0]
    if not len(moved):
        return 1.0
    few = len(moved) <= 50 and len(np.unique(np.abs(moved))) == len(moved)
    return float(stats.wilcoxon(moved, method="exact" if few else "asymptotic").pvalue)


# -------------------------------------------------------------------- samples and their margins


@dataclass(frozen=True, eq=False)
class Samples:
    """What a lane scored, a sample a row, with what tells how near each decision is to another one.

    Attributes
    ----------
    values
        Scores, float64 (N,); higher is better.
    margins
        Of class scores: that of the right class (without labels, of float's) less the greatest other one, float64 (N,);
        None for other metrics. A sample is decided as it should be where its margin is above 0.
    stakes
        What a decision that changes costs, float64 (N,): 1 with labels; without, how much more the float lane believes in its
        own class than in the lane's (in the runner-up, where that is the same).
    classes, labels
        The class that the lane chose, and the right one (without labels, float's), int64 (N,).
    ratios, outputs
        Of closeness to float: squared error over variance by output, float64 (N, K), and the names of the K outputs.
    """

    values: np.ndarray
    margins: np.ndarray | None = None
    stakes: np.ndarray | None = None
    classes: np.ndarray | None = None
    labels: np.ndarray | None = None
    ratios: np.ndarray | None = None
    outputs: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.values)

    @staticmethod
    def joined(parts: Sequence[Samples]) -> Samples:
        """The samples of several batches."""
        return parts[0].join(parts)

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The score with its interval."""
        return mean_interval(self.values, confidence)

    def minus(self, other: Samples, confidence: float = CONFIDENCE) -> Interval:
        """How much more these score than others of the same samples, in pairs; see `paired_interval`."""
        return paired_interval(self.values, other.values, confidence)

    def join(self, parts: Sequence[Samples]) -> Samples:
        """The samples of several batches, of which this is the first."""

        def all_of(name: str) -> Any:
            rows = [getattr(part, name) for part in parts]
            return None if any(row is None for row in rows) else np.concatenate(rows)

        arrays = {item.name: all_of(item.name) for item in fields(Samples) if item.name != "outputs"}
        return Samples(**arrays, outputs=parts[0].outputs)


def expected_scores(exact: Samples, lane: Samples) -> np.ndarray:
    """What a lane would score on many such samples, as values a sample whose mean is the estimate, float64 (N,).

    On few samples hardly a decision changes, and counting says little; but how near the float lane's decisions are to changing,
    and how far the lane moves them, is known for every sample. So each float margin is put to the disturbances of the samples
    with margins like its own (a tenth of the samples to either side, by rank), and counts with the share of them that turn it.
    What is returned holds each sample's part in both roles, so that the usual interval of the mean is that of the estimate (its
    influence function). From ten changed decisions on the scores themselves are returned, as where there are no margins.

    Without labels a changed decision costs what the float lane believed in it more than in the new one.
    """
    if exact.margins is None or lane.margins is None or lane.values is exact.values:
        return lane.values
    stakes = exact.stakes if exact.stakes is not None else np.ones(len(exact))
    turned = (exact.margins > 0.0) != (lane.margins > 0.0)
    reach = min(max(_FEWEST, int(_NEIGHBOURS * len(exact))), _MOST)
    if int(turned.sum()) >= _COUNTED or len(exact) <= 2 * reach + 1:
        own = stakes if lane.stakes is None else lane.stakes
        return np.where(exact.margins > 0.0, np.where(lane.margins > 0.0, 1.0, 1.0 - own), np.where(lane.margins > 0.0, own, 0.0))
    return _put_to_neighbours(exact.margins, lane.margins - exact.margins, stakes, reach)


def _put_to_neighbours(margins: np.ndarray, moved: np.ndarray, stakes: np.ndarray, reach: int) -> np.ndarray:
    n, width = len(margins), 2 * reach + 1
    order = np.argsort(margins, kind="stable")
    start = np.clip(np.arange(n) - reach, 0, n - width)
    neighbours = start[:, None] + np.arange(width)
    float_margins, disturbances, cost = margins[order], moved[order], stakes[order]
    right = float_margins > 0.0
    still = float_margins[:, None] + disturbances[neighbours] > 0.0
    scored = np.where(right[:, None], 1.0 - cost[:, None] * ~still, cost[:, None] * still)
    own = scored.mean(1)
    # what a sample's disturbance does to others' margins, less what any would
    lent = np.zeros(n)
    np.add.at(lent, neighbours.ravel(), ((scored - own[:, None]) / width).ravel())
    found = np.empty(n)
    found[order] = own + lent
    return found


def surprise(margins: np.ndarray) -> np.ndarray:
    """Cross-entropy of the right class against the greatest other one, in nats, float64 (N,): ``log(1 + exp(-margin))``."""
    return np.asarray(np.logaddexp(0.0, -margins))


def gain(after: Samples, before: Samples, exact: Samples, *, looks: int = 1) -> Interval:
    """What one lane is expected to score more than another on many such samples, paired; `exact` are the float lane's.

    The value and its interval are those of `expected_scores`; where there are margins, whether it is chance is told by
    Wilcoxon's signed-rank test on the samples' cross-entropies, which every disturbance moves. From ten changed decisions on
    McNemar's test of these is asked too, and the smaller of both p-values counts twice (Bonferroni): what ruins a third of the
    samples and makes all others a little surer has no sign that the ranks agree on.

    Who looks at growing data again and again finds something in the end. The k-th look has ``1 / (k (k + 1))`` of the usual
    chance of being wrong, so that all looks together have no more than one alone.
    """
    if after is before:
        return Interval(0.0, 0.0, 0.0, len(after), 1.0)
    trials = 1 if looks == 1 else looks * (looks + 1)
    confidence = 1.0 - (1.0 - CONFIDENCE) / trials
    if after.margins is None or before.margins is None:
        found = after.minus(before, confidence)
    else:
        first, second = expected_scores(exact, after), expected_scores(exact, before)
        found = replace(_student(first - second, confidence), by_margins=True)
        p = _wilcoxon(surprise(before.margins) - surprise(after.margins))
        right, was_right = after.margins > 0.0, before.margins > 0.0
        gained, lost = int((right & ~was_right).sum()), int((was_right & ~right).sum())
        if gained + lost >= _COUNTED:
            p = min(1.0, 2.0 * min(p, _mcnemar(gained, lost)))
        found = replace(found, p=p)
    return replace(found, p=None if found.p is None else min(trials * found.p, 1.0))


def adjusted(p: Mapping[_Key, float]) -> dict[_Key, float]:
    """p-values of a family of trials as if each were the only one, by Holm's step-down method (1979), by name."""
    ranked = sorted(p, key=p.__getitem__)
    found: dict[_Key, float] = {}
    most = 0.0
    for at, name in enumerate(ranked):
        most = max(most, min((len(ranked) - at) * p[name], 1.0))
        found[name] = most
    return found
