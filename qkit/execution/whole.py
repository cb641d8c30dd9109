"""Scores of a whole set of samples, such as detection's mAP, which no mean over samples gives: intervals by resampling.

Every sample leaves a *record* (what was detected in an image). The score is a function of all records, each with a weight: how
often the sample is there. So one function gives the score, the scores without one sample each, and those of resampled sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from scipy import stats

from qkit.errors import DataError
from qkit.execution.statistics import CONFIDENCE, Interval, Samples, mean_interval, paired_interval

#: Of the weights of N samples, float64 (B, N), the scores of B sets, float64 (B,); NaN where a set has none.
Weighing = Callable[[np.ndarray], np.ndarray]
#: Of the records of N samples, what weighs them.
WholeScore = Callable[[Sequence[Any]], Weighing]

#: Resampled sets. Of the standard error of so many, the standard error is 3.5 % (Efron and Tibshirani 1993: 200 do).
RESAMPLES = 400
#: Weights in one call, in bytes.
_ROOM = 1 << 26


@lru_cache(maxsize=4)
def resampled(n: int) -> np.ndarray:
    """How often each of `n` samples is in `RESAMPLES` sets of as many, drawn with replacement, float64 (B, N).

    The same for every lane, so that differences of lanes are those of pairs.
    """
    drawn: np.ndarray = np.random.default_rng(0).multinomial(n, np.full(n, 1.0 / n), size=RESAMPLES)
    return drawn.astype(np.float64)


class WholeSamples(Samples):
    """Samples whose score is one of all together.

    `values` are the jackknife's pseudo-values, shifted so that their mean is the score itself: what each sample adds to it. They
    are for what needs a figure a sample. Intervals come from resampled sets (the bootstrap).

    Parameters
    ----------
    records
        What each sample left.
    score
        Makes a score of them.
    name
        Of the score, for errors.
    """

    def __init__(self, records: Sequence[Any], score: WholeScore, name: str) -> None:
        for key, value in {"records": tuple(records), "score": score, "name": name}.items():
            object.__setattr__(self, key, value)
        for key in ("margins", "stakes", "classes", "labels", "ratios"):
            object.__setattr__(self, key, None)

    records: tuple[Any, ...]
    score: WholeScore
    name: str

    def __len__(self) -> int:
        return len(self.records)

    def __repr__(self) -> str:
        return f"WholeSamples({self.name} of {len(self)} samples)"

    def join(self, parts: Sequence[Samples]) -> Samples:
        """The samples of several batches, of which this is the first."""
        if len(parts) == 1:
            return self
        return WholeSamples([record for part in parts for record in part.records], self.score, self.name)  # type: ignore[attr-defined]

    @cached_property
    def _weighing(self) -> Weighing:
        return self.score(self.records)

    @cached_property
    def value(self) -> float:
        """The score of all samples.

        Raises
        ------
        DataError
            If there is none.
        """
        found = float(self._weighing(np.ones((1, len(self))))[0])
        if not math.isfinite(found):
            raise DataError(
                f"{self.name} of these {len(self)} samples is {found}: do their targets hold anything to find? Take more of "
                "the data (batches=), or look at how targets are read."
            )
        return found

    @cached_property
    def _without(self) -> np.ndarray:
        """The score without each sample, float64 (N,); NaN where there is none then."""
        n = len(self)
        found = np.empty(n)
        rows = max(_ROOM // (8 * n), 1)
        for at in range(0, n, rows):
            weights = np.ones((min(rows, n - at), n))
            weights[np.arange(len(weights)), at + np.arange(len(weights))] = 0.0
            found[at : at + rows] = self._weighing(weights)
        return found

    @cached_property
    def values(self) -> np.ndarray:
        """What each sample adds: ``score + (N - 1) (mean of the scores without one - score without this one)``."""
        n, without = len(self), self._without if len(self) > 1 else np.full(1, np.nan)
        without = np.where(np.isnan(without), self.value, without)
        return np.asarray(self.value + (n - 1) * (without.mean() - without))

    @cached_property
    def replicates(self) -> np.ndarray:
        """The score of every resampled set, float64 (B,); NaN where there is none."""
        return np.asarray(self._weighing(resampled(len(self))))

    def interval(self, confidence: float = CONFIDENCE) -> Interval:
        """The score, with Student's interval of the standard error over resampled sets.

        Scores of few samples may be flattered: mAP takes the greatest precision at any greater recall, and chance makes that
        greater by about ``1 / sqrt(N)``. The jackknife for a bias of that order, ``2 (N - 1) (mean of the scores without one -
        score)``, tells how much; the end of the interval on that side goes so far beyond. Differences of lanes are free of it.
        """
        found = self._interval(self.value, self.replicates, confidence)
        if found is None:
            return mean_interval(self.values, confidence)
        if not math.isfinite(found.low):
            return found
        flattered = 2.0 * (len(self) - 1) * float(self._without.mean() - self.value)
        return replace(found, low=found.low - max(flattered, 0.0), high=found.high + max(-flattered, 0.0))

    def minus(self, other: Samples, confidence: float = CONFIDENCE) -> Interval:
        """The difference of two scores of the same samples, resampled in pairs, and how likely chance makes such a one.

        The p-value is Student's, and never below that of all samples having changed in one direction: 2 to the power of 1 - N.
        """
        if not isinstance(other, WholeSamples) or len(other) != len(self):
            raise DataError(f"a paired comparison needs the same samples in both lanes, not {len(self)} and {len(other)}.")
        if other is self:
            return Interval(0.0, 0.0, 0.0, len(self), 1.0)
        found = self._interval(self.value - other.value, self.replicates - other.replicates, confidence, tested=True)
        return paired_interval(self.values, other.values, confidence, ranks=False) if found is None else found

    def _interval(self, value: float, replicates: np.ndarray, confidence: float, *, tested: bool = False) -> Interval | None:
        """None where all resampled sets score the same, of which no spread can be told."""
        n = len(self)
        known = replicates[np.isfinite(replicates)]
        if n < 2 or np.isnan(self._without).any() or len(known) < 2:
            return Interval(value, -math.inf, math.inf, n, 1.0 if tested else None)
        error = float(known.std(ddof=1))
        if error < 1e-12:
            return None
        half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * error
        p = max(2.0 * float(stats.t.sf(abs(value) / error, n - 1)), 2.0 ** (1 - n)) if tested else None
        return Interval(value, value - half, value + half, n, p)
