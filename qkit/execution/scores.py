"""Scores of several lanes on the same samples: measured, compared in pairs, and what they let one expect of many samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qkit.errors import QkitError
from qkit.execution.metrics import NAMED, Metric, tolerance_of
from qkit.execution.statistics import Interval, Samples, gain, mean_interval, paired_interval
from qkit.style import PLAIN, Units

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture


@dataclass(frozen=True, eq=False)
class Scores:
    """What lanes scored, a sample a row.

    Attributes
    ----------
    metric
        Name of the score.
    lanes
        By lane, float64 (N,).
    samples
        The same with margins, where the metric decides between classes.
    measured
        The metric itself; None where only its name is known.
    """

    metric: str
    lanes: Mapping[str, np.ndarray]
    samples: Mapping[str, Samples] = field(default_factory=dict)
    measured: Metric | None = None

    @staticmethod
    def of(metric: Metric, samples: Mapping[str, Samples]) -> Scores:
        """Scores by a metric."""
        return Scores(metric.name, {name: found.values for name, found in samples.items()}, dict(samples), metric)

    @property
    def units(self) -> Units:
        """How scores and losses are shown."""
        known = NAMED.get(self.metric) if self.measured is None else self.measured
        return PLAIN if known is None else known.units

    def tolerance(self) -> float:
        """The loss that still counts as close, in the metric's unit; see `tolerance_of`."""
        known = self.measured or NAMED.get(self.metric) or Metric(lambda outputs, _: outputs, self.metric)
        return tolerance_of(known, self._of("float"))

    def __getitem__(self, lane: str) -> Interval:
        """The lane's mean score with its interval."""
        return mean_interval(self._of(lane))

    def loss(self, lane: str, against: str = "float") -> Interval:
        """How much the lane lost against another on these samples, with the paired interval; positive is worse."""
        return paired_interval(self._of(against), self._of(lane))

    def expected_loss(self, lane: str, against: str = "float", *, looks: int = 1) -> Interval:
        """What the lane is expected to lose on many such samples; see `qkit.execution.statistics.gain`."""
        first, second = self._of(against), self._of(lane)
        if "float" not in self.samples:
            return gain(Samples(first), Samples(second), Samples(self._of("float")), looks=looks)
        return gain(self.samples[against], self.samples[lane], self.samples["float"], looks=looks)

    def _of(self, lane: str) -> np.ndarray:
        if lane not in self.lanes:
            raise QkitError(f"lane {lane!r} was not evaluated; there are {', '.join(self.lanes)}.")
        return self.lanes[lane]

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(next(iter(self.lanes.values())))

    @property
    def most_common(self) -> tuple[int, int] | None:
        """The most frequent label and how often it is there; None where there are no labels."""
        labels = self.samples["float"].labels if "float" in self.samples else None
        if labels is None:
            return None
        values, counts = np.unique(labels, return_counts=True)
        return int(values[counts.argmax()]), int(counts.max())

    def flips(self, lane: str, against: str = "float") -> pd.DataFrame:
        """Samples of which the lane chose another class than the other lane: a row per sample, by its number in the data.

        Columns: ``label`` (without targets, float's class), ``from``, ``to``, and ``change``: "lost", "gained" or "other" (wrong
        before and after). `Study.flips` shows their images too.

        Raises
        ------
        QkitError
            If the metric does not decide between classes.
        """
        self._of(lane), self._of(against)
        first, second = self.samples.get(against), self.samples.get(lane)
        if first is None or second is None or first.classes is None or second.classes is None or first.labels is None:
            raise QkitError(
                f"{self.metric} does not decide between classes, so no decision changes: there are flips of top1 and agreement."
            )
        at = np.flatnonzero(first.classes != second.classes)
        label, old, new = first.labels[at], first.classes[at], second.classes[at]
        change = np.where(old == label, "lost", np.where(new == label, "gained", "other"))
        return pd.DataFrame({"label": label, "from": old, "to": new, "change": change}, index=pd.Index(at, name="sample"))

    def by_class(self, lane: str) -> pd.DataFrame:
        """A row per label: samples, score of float and of the lane, and what is lost with its interval; most lost first.

        Raises
        ------
        QkitError
            If the metric does not decide between classes.
        """
        exact, other = self.samples.get("float"), self.samples.get(lane)
        if exact is None or other is None or exact.labels is None:
            raise QkitError(f"{self.metric} does not decide between classes: a loss per class there is of top1 and agreement.")
        rows = {}
        for label in np.unique(exact.labels):
            mine = exact.labels == label
            loss = paired_interval(exact.values[mine], other.values[mine])
            rows[int(label)] = {
                "samples": int(mine.sum()), "float": float(exact.values[mine].mean()), lane: float(other.values[mine].mean()),
                "loss": loss.value, "loss low": loss.low, "loss high": loss.high,
            }  # fmt: skip
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")
        return frame.sort_values("loss", ascending=False, kind="stable")

    def table(self) -> pd.DataFrame:
        """A row per lane: score, interval, loss against float, interval."""
        rows = {}
        for lane in self.lanes:
            score = self[lane]
            rows[lane] = {"score": score.value, "low": score.low, "high": score.high}
            if "float" in self.lanes:
                loss = self.loss(lane)
                rows[lane] |= {"loss": loss.value, "loss low": loss.low, "loss high": loss.high}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("lane")

    def plot(self) -> Picture:
        """Every lane's score with its interval, as a picture."""
        from qkit.figures.drawing import picture
        from qkit.figures.plots import bar_height, intervals

        rows = {lane: self[lane] for lane in self.lanes}
        what = f"{self.metric} on {self.n} samples{self.units.after}"
        words = f"{self.metric} of {', '.join(self.lanes)}"
        return picture(intervals, rows, units=self.units, what=what, words=words, scores=True, height=bar_height(len(rows)))

    def to_dict(self) -> dict[str, Any]:
        """Intervals by lane, as plain numbers."""
        return {
            "metric": self.metric,
            "samples": self.n,
            "lanes": {
                lane: {"score": self[lane].to_dict(), "loss": self.loss(lane).to_dict() if "float" in self.lanes else None}
                for lane in self.lanes
            },
        }

    def __repr__(self) -> str:
        return f"Scores({self.metric} on {self.n} samples: " + ", ".join(f"{lane} {self[lane]}" for lane in self.lanes) + ")"

    def _repr_html_(self) -> str:
        return str(self.table().to_html(float_format="{:.4f}".format))
