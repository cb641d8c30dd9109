"""Scores of several lanes on the same samples: measured, compared in pairs, and what they let one expect of many samples."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qkit.errors import QkitError
from qkit.execution.metrics import NAMED, Metric, metric_label, tolerance_of
from qkit.execution.statistics import Interval, Samples, gain, mean_interval, paired_interval
from qkit.style import PLAIN, Units, decibels

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
        """The lane's score with its interval; float's own, where it is what lanes are measured against, is no estimate."""
        values = self._of(lane)
        if lane == "float" and self.measured is not None and self.measured.against == "float" and len(values):
            own = float(values.mean())
            return Interval(own, own, own, len(values))
        return self.samples[lane].interval() if lane in self.samples else mean_interval(values)

    def loss(self, lane: str, against: str = "float") -> Interval:
        """How much the lane lost against another on these samples, with the paired interval; positive is worse."""
        first, second = self._of(against), self._of(lane)
        if lane in self.samples and against in self.samples:
            return self.samples[against].minus(self.samples[lane])
        return paired_interval(first, second)

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

    def by_output(self, lane: str) -> pd.DataFrame:
        """How close the lane's outputs are to float's: a row per output, signal to noise in dB with its interval.

        The signal is the variance of float's output, the noise the mean squared error: 20 dB are an error of a tenth of the
        spread, infinity is none.

        Raises
        ------
        QkitError
            If the score is not closeness.
        """
        self._of(lane)
        found = self.samples.get(lane)
        if found is None or found.ratios is None:
            raise QkitError(f"dB by output are of the metric 'closeness', not of {self.metric}: study.with_metric('closeness').")
        rows = {}
        for name, ratios in zip(found.outputs, found.ratios.T, strict=True):
            if not (np.isfinite(ratios).all() and ratios.any()):
                rows[name] = dict.fromkeys(("dB", "low", "high"), -math.inf if ratios.any() else math.inf)
                continue
            mean = mean_interval(ratios)
            ends = {"dB": mean.value, "low": mean.high, "high": mean.low}
            rows[name] = {key: _in_decibels(end) for key, end in ends.items()}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("output")

    def confident(self, lane: str) -> Interval:
        """The lane's score on the half of the images of which float is surest: its margin is its median or more.

        Most decisions that change are close ones in float already, and cost little; one that changes here is a fault.

        Raises
        ------
        QkitError
            If the metric does not decide between classes.
        """
        values, exact = self._of(lane), self.samples.get("float")
        if exact is None or exact.margins is None:
            raise QkitError(f"{self.metric} does not decide between classes, so float is sure of none: ask of top1 or agreement.")
        sureness = np.abs(exact.margins)
        return mean_interval(values[sureness >= np.median(sureness)])

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the figures has to know: that agreement is no accuracy, and what closeness is in dB by output."""
        lanes = [lane for lane in self.lanes if lane != "float"]
        exact = self.samples.get("float")
        if self.metric == "agreement" and exact is not None and exact.margins is not None and lanes:
            sure = ", ".join(f"{lane} {self.units.score(self.confident(lane).value)}" for lane in lanes)
            return (
                f"Agreement is not accuracy: most decisions that change are close ones. On the half of the images of which float "
                f"is surest the agreement is: {sure}.",
            )
        known = [lane for lane in lanes if lane in self.samples and self.samples[lane].ratios is not None]
        if not known:
            return ()
        told = []
        for lane in known:
            found = self.by_output(lane)["dB"]
            names = [f"output {name} " if str(name).isdigit() else f"{name} " for name in found.index]
            each = zip(names if len(names) > 1 else [""], found, strict=True)
            told.append(f"{lane} has {', '.join(f'{name}{decibels(value)} dB' for name, value in each)}")
        return (f"Signal to noise against float's outputs: {'; '.join(told)}.",)

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
        what = f"{metric_label(self.metric)} on {self.n} samples{self.units.after}"
        words = f"{self.metric} of {', '.join(self.lanes)}"
        return picture(intervals, rows, units=self.units, what=what, words=words, scores=True, height=bar_height(len(rows)))

    def to_dict(self) -> dict[str, Any]:
        """Intervals by lane, as plain numbers."""
        return {
            "metric": self.metric,
            "samples": self.n,
            "notes": list(self.notes),
            "lanes": {
                lane: {"score": self[lane].to_dict(), "loss": self.loss(lane).to_dict() if "float" in self.lanes else None}
                for lane in self.lanes
            },
        }

    def __repr__(self) -> str:
        lanes = ", ".join(f"{lane} {self._shown(lane)}" for lane in self.lanes)
        return " ".join([f"Scores({metric_label(self.metric)} on {self.n} samples: {lanes})", *self.notes])

    def _repr_html_(self) -> str:
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        frame = self.table()
        if self.units.lower:
            frame[["score", "low", "high"]] = -frame[["score", "high", "low"]].to_numpy()
        return str(frame.to_html(float_format="{:.4f}".format)) + notes

    def _shown(self, lane: str) -> Interval:
        """A score as a person reads it: what is better when lower is kept with its sign changed."""
        found = self[lane]
        return replace(found, value=-found.value, low=-found.high, high=-found.low) if self.units.lower else found


def _in_decibels(ratio: float) -> float:
    """A ratio of noise to signal; infinity where there is no noise."""
    return -10.0 * math.log10(ratio) if ratio > 0.0 else math.inf
