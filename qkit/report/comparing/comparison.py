"""Two reports against each other: what a change of model, data or plan did to scores, layers, grids and causes.

Both reports are files or objects that may be months apart, so nothing is measured again. Where both were scored on the very
same images (the fingerprints of their evaluation data agree, and both carry the scores sample by sample), changes are judged
on pairs. Elsewhere the two runs are independent samples, and the interval of a difference follows from the two intervals.
What was not the same in both runs is listed, and said first where it touches the comparison.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from qkit.errors import QkitError
from qkit.execution.statistics import Interval
from qkit.listing import few
from qkit.report.comparing.changes import (
    Difference,
    GridChange,
    LayerChange,
    grid_changes,
    layer_changes,
    settings_differences,
    single_causes,
)
from qkit.report.comparing.pairing import difference_of_means, growth_of_loss, independent_difference
from qkit.report.contents.data import Report
from qkit.style import Units, plain

#: Layers and grids that the sentences name.
_MOST_NAMED = 5
#: Rows of the tables in markdown and on a page; `to_dict` has all.
_MOST_ROWS = 20


@dataclass(frozen=True)
class LaneChange:
    """One lane in both reports.

    Attributes
    ----------
    lane
        Its name; "int8 → int4" where the reports judge different lanes.
    old, new
        Scores.
    change
        New less old, positive is better.
    old_loss, new_loss
        Against float, each paired within its own report; None for float.
    growth
        New loss less old loss, positive is worse; None for float.
    """

    lane: str
    old: Interval
    new: Interval
    change: Interval
    old_loss: Interval | None
    new_loss: Interval | None
    growth: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        figures = {name: getattr(self, name) for name in ("old", "new", "change", "old_loss", "new_loss", "growth")}
        return {"lane": self.lane} | {name: None if f is None else plain(f.to_dict()) for name, f in figures.items()}


@dataclass(frozen=True)
class Comparison:
    """What changed from one report to another; made by :func:`compare`.

    Attributes
    ----------
    old, new
        Titles and dates.
    metric, percent
        Name of the new report's score, and whether it is a share of 1.
    lanes
        Float, 16 bits, and the lane that the reports judge, which comes last.
    paired
        Whether both were scored on the same images, sample by sample; `how` says it in a sentence.
    verdicts
        Old and new.
    layers
        Taps by the change of their own error (local SQNR) in the judged lane, the greatest first; unchanged ones left out.
    appeared, gone
        Taps that only the new or only the old network has.
    grids
        Tensors whose grids differ, by the change of their range, the greatest first.
    causes_new, causes_gone
        Kind and layer; None where a report has no diagnosis.
    differences
        What was not the same in both runs.
    tolerance
        Change of a score that counts as none.
    unreadable
        Why the losses cannot be compared; empty where they can.
    """

    old: str
    new: str
    metric: str
    percent: bool
    lanes: tuple[LaneChange, ...]
    paired: bool
    how: str
    verdicts: tuple[str, str]
    layers: tuple[LayerChange, ...]
    appeared: tuple[str, ...]
    gone: tuple[str, ...]
    grids: tuple[GridChange, ...]
    causes_new: tuple[tuple[str, str], ...] | None
    causes_gone: tuple[tuple[str, str], ...] | None
    differences: tuple[Difference, ...]
    tolerance: float
    unreadable: str = ""

    @property
    def judged(self) -> LaneChange:
        """The lane whose loss is guarded: int8, or what the studies had in its place."""
        return self.lanes[-1]

    @property
    def alike(self) -> bool:
        """Whether nothing differs that touches the comparison."""
        return not any(d.matters for d in self.differences)

    def exceeds(self, max_loss: float) -> bool:
        """Whether the judged lane's loss against float grew by more than `max_loss`, or cannot be read.

        Parameters
        ----------
        max_loss
            In units of the score: 0.01 is one point of accuracy. The growth's value counts, not its interval.

        Raises
        ------
        QkitError
            If `max_loss` is negative or no number.
        """
        if not (math.isfinite(max_loss) and max_loss >= 0):
            raise QkitError(f"max_loss={max_loss}: the growth of the loss that is allowed is 0 or more, 0.01 for one point.")
        growth = self.judged.growth
        # a hair, so that one of a hundred images is not more than 0.01
        return bool(self.unreadable) or growth is None or not growth.value <= max_loss + 1e-9

    def table(self) -> pd.DataFrame:
        """A row per lane: scores and losses of both, their changes with 95 % intervals, in units of the score."""
        rows = {}
        for lane in self.lanes:
            row = {"old": lane.old.value, "new": lane.new.value, **_ends("change", lane.change)}
            row |= {"old loss": _value(lane.old_loss), "new loss": _value(lane.new_loss), **_ends("growth", lane.growth)}
            rows[lane.lane] = row
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("lane")

    def lines(self) -> list[str]:
        """The answer as sentences, what is not like for like first."""
        units = Units(percent=self.percent)
        old, new = self.verdicts
        found = [f"Old: {self.old}. New: {self.new}."]
        if self.unreadable:
            found.append(f"The losses cannot be compared: {self.unreadable}")
        if not self.alike:
            found.append("Not like for like:")
            found += [f"  {difference}" for difference in self.differences if difference.matters]
        found.append(f"Verdict: {old} before and now." if old == new else f"Verdict: {old} → {new}.")
        found.append(self.how)
        for lane in self.lanes:
            text = f"{lane.lane}: {units.score(lane.old.value)} → {units.score(lane.new.value)}"
            text += f", {_signed(units, lane.change)}: {CHANGES[judged(lane.change, self.tolerance)]}"
            if lane.growth is not None:
                text += f"; its loss against float went from {_loss(units, lane.old_loss)} to {_loss(units, lane.new_loss)}"
                text += f", {_signed(units, lane.growth)}"
            found.append(text + ".")
        found += self._causes()
        found += self._named()
        same = [d for d in self.differences if not d.matters]
        if same:
            found.append("Also different: " + "; ".join(map(str, same)) + ".")
        return found

    def _causes(self) -> list[str]:
        if self.causes_new is None or self.causes_gone is None:
            return ["Causes are not compared: not both reports have a diagnosis."]
        found = []
        for what, listed in (("Causes that came", self.causes_new), ("Causes that went", self.causes_gone)):
            if listed:
                found.append(f"{what}: " + "; ".join(f"{kind} at {layer or 'the whole network'}" for kind, layer in listed) + ".")
        return found or ["The causes are the same."]

    def _named(self) -> list[str]:
        lane, found = self.judged.lane, []
        if self.layers:
            shown = "; ".join(map(str, self.layers[:_MOST_NAMED]))
            count = f"{len(self.layers)} layer{'' if len(self.layers) == 1 else 's'}"
            found.append(f"The error of {count} changed in {lane}. Local SQNR, the greatest change first: {shown}.")
        else:
            found.append(f"No layer's error changed in {lane}.")
        for what, taps in (("Only in the new network", self.appeared), ("Only in the old network", self.gone)):
            if taps:
                found.append(f"{what}: {few(taps, _MOST_NAMED)}.")
        if self.grids:
            shown = few((grid.tensor for grid in self.grids), _MOST_NAMED)
            found.append(f"{len(self.grids)} grid{'' if len(self.grids) == 1 else 's'} changed: {shown}.")
        else:
            found.append("No grid changed.")
        return found

    def to_markdown(self) -> str:
        """Sentences and tables for a pull request or an issue."""
        from qkit.report.text.markdown import code, rows, text

        units = Units(percent=self.percent)
        parts = ["# What changed between two reports", "\n".join(f"- {text(line)}" for line in self.lines())]
        heads = ["lane", "old", "new", "change", "old loss", "new loss", "growth of the loss"]
        cells = []
        for lane in self.lanes:
            loss = ["–", "–", "–"]
            if lane.growth is not None:
                loss = [_loss(units, lane.old_loss), _loss(units, lane.new_loss), _signed(units, lane.growth)]
            score = [units.score(lane.old.value), units.score(lane.new.value), _signed(units, lane.change)]
            cells.append([code(lane.lane), *map(text, (*score, *loss))])
        parts.append(rows(heads, cells))
        if self.layers:
            parts.append("## Layers" + _of(len(self.layers)))
            heads = ["layer", "local SQNR, old", "new", "SQNR, old", "new"]
            parts.append(rows(heads, [[code(c.tap), *map(text, c.figures())] for c in self.layers[:_MOST_ROWS]]))
        if self.grids:
            parts.append("## Grids" + _of(len(self.grids)))
            named = [[code(c.tensor), text(c.old), text(c.new)] for c in self.grids[:_MOST_ROWS]]
            parts.append(rows(["tensor", "old", "new"], named))
        if self.differences:
            parts.append("## What was not the same")
            listed = [[text(d.what), text(d.old), text(d.new), text(d.why)] for d in self.differences]
            parts.append(rows(["what", "old", "new", "what it does"], listed))
        return "\n\n".join(parts) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; infinities as "inf" and "-inf", missing figures as None."""
        return {
            "old": self.old,
            "new": self.new,
            "metric": self.metric,
            "percent": self.percent,
            "verdicts": list(self.verdicts),
            "paired": self.paired,
            "how": self.how,
            "alike": self.alike,
            "unreadable": self.unreadable,
            "tolerance": self.tolerance,
            "lanes": [lane.to_dict() for lane in self.lanes],
            "layers": [layer.to_dict() for layer in self.layers],
            "appeared": list(self.appeared),
            "gone": list(self.gone),
            "grids": [grid.to_dict() for grid in self.grids],
            "causes_new": _listed(self.causes_new),
            "causes_gone": _listed(self.causes_gone),
            "differences": [difference.to_dict() for difference in self.differences],
        }

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        units, growth = Units(percent=self.percent), self.judged.growth
        grown = "cannot be compared" if self.unreadable or growth is None else f"changed by {_signed(units, growth)}"
        return f"Comparison({self.verdicts[0]} → {self.verdicts[1]}; the loss of {self.judged.lane} {grown})"

    def _repr_html_(self) -> str:
        said = "".join(f"<p>{html.escape(line)}</p>" for line in self.lines())
        return said + str(self.table().to_html(float_format="{:.4f}".format, na_rep="–"))


def compare(old: Report | str | Path, new: Report | str | Path, *, tolerance: float | None = None) -> Comparison:
    """What changed from one report to another.

    Parameters
    ----------
    old, new
        Reports, or JSON files that `qkit.report.write` has written.
    tolerance
        Change of a score that counts as none, in units of the score (0.01 is one point of accuracy); the new report's by default.

    Raises
    ------
    QkitError
        If a file is no readable report, or the tolerance is out of range.
    """
    from qkit.report.reading import read

    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise QkitError(f"tolerance={tolerance}: the change of a score that counts as none is a number above 0, such as 0.01.")
    old, new = (report if isinstance(report, Report) else read(report) for report in (old, new))
    tolerance = new.metric["tolerance"] if tolerance is None else tolerance
    why_not = _unpaired(old, new)
    lanes = _lanes(old, new, paired=not why_not)
    how = "Scores are compared sample by sample: both reports were scored on the same images."
    if why_not:
        how = f"Scores are compared as those of independent samples, with wider intervals: {UNPAIRED[why_not]}."
    taps = [set(map(str, report.layers.index)) for report in (old, new)]
    causes_new, causes_gone = single_causes(old, new)
    return Comparison(
        old=_name(old),
        new=_name(new),
        metric=new.metric["name"],
        percent=new.metric["percent"],
        lanes=lanes,
        paired=not why_not,
        how=how,
        verdicts=(old.verdict["verdict"], new.verdict["verdict"]),
        layers=layer_changes(old, new),
        appeared=tuple(str(tap) for tap in new.layers.index if str(tap) not in taps[0]),
        gone=tuple(str(tap) for tap in old.layers.index if str(tap) not in taps[1]),
        grids=grid_changes(old, new),
        causes_new=causes_new,
        causes_gone=causes_gone,
        differences=settings_differences(old, new),
        tolerance=tolerance,
        unreadable=_unreadable(old, new, lanes[-1]),
    )


#: What a change of a score is, by a word each.
CHANGES: Mapping[str, str] = {
    "unreadable": "not to be compared",
    "better": "better",
    "worse": "worse",
    "unclear": "too uncertain to tell",
    "same": "the same within the tolerance",
    "perhaps-same": "within the tolerance, but too uncertain to tell",
}

#: Why samples do not make pairs, by a word each.
UNPAIRED: Mapping[str, str] = {
    "other-metric": "the metrics differ",
    "unknown-images": "not both reports say which images they were scored on",
    "other-images": "they were scored on different images",
    "no-samples": "not both reports carry the scores of every sample",
    "other-number": "the numbers of samples differ",
}


def judged(change: Interval, tolerance: float) -> str:
    """A change of a score as a word of `CHANGES`: better, worse, the same, or not to be told from its interval."""
    if math.isnan(change.value):
        return "unreadable"
    if abs(change.value) > tolerance:
        if change.low <= 0.0 <= change.high:
            return "unclear"
        return "better" if change.value > 0 else "worse"
    sure = -2 * tolerance <= change.low and change.high <= 2 * tolerance
    return "same" if sure else "perhaps-same"


def _unpaired(old: Report, new: Report) -> str:
    """Why the samples do not make pairs, as a word of `UNPAIRED`; empty where they do."""
    if old.metric["name"] != new.metric["name"]:
        return "other-metric"
    prints = [report.data["evaluation"]["fingerprint"] for report in (old, new)]
    if None in prints:
        return "unknown-images"
    if prints[0] != prints[1]:
        return "other-images"
    if old.per_sample is None or new.per_sample is None:
        return "no-samples"
    if len({len(scores) for report in (old, new) for scores in (report.per_sample or {}).values()}) != 1:
        return "other-number"
    return ""


def _lanes(old: Report, new: Report, *, paired: bool) -> tuple[LaneChange, ...]:
    pairs = [("float", "float")]
    pairs += [(lane, lane) for lane in old.lanes if lane in new.lanes and lane not in (old.narrow, new.narrow)]
    pairs.append((old.narrow, new.narrow))
    found = []
    for before, after in pairs:
        a, b = _interval(old, before, ""), _interval(new, after, "")
        change = independent_difference(b, a)
        loss: tuple[Interval | None, Interval | None] = None, None
        grown: Interval | None = None
        if before != "float":
            losses = _interval(old, before, "loss"), _interval(new, after, "loss")
            loss, grown = losses, independent_difference(losses[1], losses[0])
        if paired:
            assert old.per_sample is not None
            assert new.per_sample is not None
            scores = old.per_sample["float"], old.per_sample[before], new.per_sample["float"], new.per_sample[after]
            change = difference_of_means(scores[3], scores[1])
            grown = None if before == "float" else growth_of_loss(*scores)
        found.append(LaneChange(before if before == after else f"{before} → {after}", a, b, change, *loss, grown))
    return tuple(found)


def _interval(report: Report, lane: str, figure: str) -> Interval:
    names = (figure, f"{figure} low", f"{figure} high") if figure else ("score", "low", "high")
    value, low, high = (float(report.scores[name][lane]) for name in names)
    return Interval(value, low, high, report.metric["samples"])


def _unreadable(old: Report, new: Report, lane: LaneChange) -> str:
    names = old.metric["name"], new.metric["name"]
    if names[0] != names[1]:
        return f"the old report scores {names[0]}, the new one {names[1]}."
    for which, loss in (("old", lane.old_loss), ("new", lane.new_loss)):
        if loss is None or not np.isfinite(loss.value):
            return f"the {which} report's loss is no number."
    return ""


def _name(report: Report) -> str:
    return f"{report.title} ({report.environment['date']})"


def _value(interval: Interval | None) -> float:
    return math.nan if interval is None else interval.value


def _ends(name: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {name: math.nan, f"{name} low": math.nan, f"{name} high": math.nan}
    return {name: interval.value, f"{name} low": interval.low, f"{name} high": interval.high}


def _signed(units: Units, change: Interval) -> str:
    unit = f" {units.points}" if units.points else ""
    return f"{units.loss(change.value, sign=True)}{unit} [{units.loss(change.low)}, {units.loss(change.high)}]"


def _loss(units: Units, loss: Interval | None) -> str:
    return "–" if loss is None else units.amount(loss.value, loss.low, loss.high)


def _of(count: int) -> str:
    return f" (the {_MOST_ROWS} greatest changes of {count})" if count > _MOST_ROWS else ""


def _listed(causes: tuple[tuple[str, str], ...] | None) -> list[dict[str, str]] | None:
    return None if causes is None else [{"kind": kind, "layer": layer} for kind, layer in causes]
