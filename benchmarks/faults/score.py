"""Figures from the records: what was right, with Wilson's intervals; offline, from the JSON lines alone."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.faults.truth import INCONCLUSIVE, KINDS, NO_DEGRADATION, OTHER_KINDS

Record = dict[str, Any]
#: Standard normal quantile of 95 % two-sided confidence.
Z = 1.959963984540054
#: Share of a claimed gain that has to be there on images which the diagnosis never saw.
HALF = 0.5
#: A baseline that names the layer with the largest isolated drop raises an alarm where that drop exceeds this.
DROP = 0.01
NONE, ERROR, CONTROL = "none", "error", "(sound)"
UNQUANTIZED = "unquantized-layer"


@dataclass(frozen=True)
class Share:
    """Hits out of a number of cases, with Wilson's 95 % interval."""

    hits: int
    of: int

    @property
    def value(self) -> float:
        """As a fraction; NaN of nothing."""
        return self.hits / self.of if self.of else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's."""
        if not self.of:
            return 0.0, 1.0
        p, n, z2 = self.value, self.of, Z * Z
        centre = (p + z2 / (2 * n)) / (1 + z2 / n)
        half = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
        return max(centre - half, 0.0), min(centre + half, 1.0)

    def __str__(self) -> str:
        if not self.of:
            return "–"
        low, high = self.interval
        return f"{100 * self.value:.1f} % ({self.hits} of {self.of}; {100 * low:.1f} to {100 * high:.1f})"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"hits": self.hits, "of": self.of, "value": None if not self.of else self.value, "interval": list(self.interval)}


def read(path: Path, split: str = "all", only: Sequence[str] = ()) -> list[Record]:
    """The records of a file; the last one of an id counts, and lines cut short by an interrupt are passed over."""
    found: dict[str, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[record["id"]] = record
    return [
        r
        for r in found.values()
        if split in ("all", r["split"]) and (not only or any(o in r["id"] or o in r["kinds"] for o in only))
    ]


def verdict(record: Record) -> str:
    """What the diagnosis said, or "error"."""
    return str(record["said"]["verdict"]) if "said" in record else ERROR


def named(record: Record) -> str:
    """Kind of the first cause, or of an unquantized layer that was found where nothing degrades; "none", or "error"."""
    if "said" not in record:
        return ERROR
    if record["said"]["causes"]:
        return str(record["said"]["causes"][0]["kind"])
    kinds = [finding["kind"] for finding in record["said"]["findings"]]
    return UNQUANTIZED if UNQUANTIZED in kinds else NONE


def effective(record: Record) -> bool:
    """Whether the fault changes the score; a control, whether it is sound. Where building failed nobody knows: yes."""
    return bool(record.get("truth", {}).get("effective", True))


def verdict_right(record: Record) -> bool:
    """Whether the verdict is one of those that are true."""
    return "truth" in record and verdict(record) in record["truth"]["verdicts"]


def _faults(record: Record) -> list[dict[str, Any]]:
    return list(record.get("truth", {}).get("faults", []))


def _accepted(fault: dict[str, Any]) -> set[str]:
    return {fault["kind"], *fault["synonyms"]}


def cause_right(record: Record) -> bool:
    """Whether the first cause is the planted one; for an unquantized layer, whether it was found at its place."""
    faults = _faults(record)
    if not faults or "said" not in record:
        return False
    if faults[0]["kind"] == UNQUANTIZED:
        seen = [*record["said"]["findings"], *record["said"]["causes"]]
        return any(f["kind"] == UNQUANTIZED and _at(f, faults[0]) for f in seen)
    return bool(record["said"]["causes"]) and record["said"]["causes"][0]["kind"] in _accepted(faults[0])


def _at(cause: dict[str, Any], fault: dict[str, Any]) -> bool:
    return cause["layer"] in fault["layers"] or cause["tensor"] in fault["layers"]


def layer_right(record: Record, within: int) -> bool:
    """Whether one of the first causes is at the planted layer."""
    causes = record["said"]["causes"][:within] if "said" in record else []
    return any(_at(cause, _faults(record)[0]) for cause in causes)


def has_layer(record: Record) -> bool:
    """Whether a layer is scored: the fault has one, and shows in the score."""
    faults = _faults(record)
    return bool(faults) and bool(faults[0]["layers"]) and faults[0]["kind"] != UNQUANTIZED


def alarm(record: Record) -> bool:
    """Whether a sound case is said to be unsound."""
    return verdict(record) not in (NO_DEGRADATION, INCONCLUSIVE) or bool(record.get("said", {}).get("causes"))


def holds(remedy: dict[str, Any], *, strict: bool = False) -> bool:
    """Whether a gain is there on the held-out images: above 0, and at least half of what was claimed.

    Not strict: or the intervals of both overlap.
    """
    claimed, held = remedy["claimed"], remedy["held"]
    if held["value"] <= 0:
        return False
    if held["value"] >= HALF * claimed["value"]:
        return True
    return not strict and held["low"] <= claimed["high"] and claimed["low"] <= held["high"]


def share(records: Iterable[Any], right: Callable[[Any], bool]) -> Share:
    """How many are right."""
    answers = [right(record) for record in records]
    return Share(sum(answers), len(answers))


@dataclass(frozen=True)
class Groups:
    """The records by what they can show."""

    shown: list[Record]  # single faults that change the score
    idle: list[Record]  # single faults that do not
    unquantized: list[Record]  # layers left in float, which costs nothing
    two: list[Record]
    two_partly: list[Record]  # two faults of which one does not show
    controls: list[Record]
    unsound: list[Record]  # controls that lose score, and so are none

    @classmethod
    def of(cls, records: Iterable[Record]) -> Groups:
        """Sort the records."""
        groups = cls([], [], [], [], [], [], [])
        for r in records:
            if r["group"] == "control":
                (groups.controls if effective(r) else groups.unsound).append(r)
            elif r["group"] == "two":
                (groups.two if effective(r) else groups.two_partly).append(r)
            elif r["kinds"] == [UNQUANTIZED]:
                groups.unquantized.append(r)
            else:
                (groups.shown if effective(r) else groups.idle).append(r)
        return groups


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """All figures of the diagnosis; see `baseline_figures` for the others."""
    g = Groups.of(records)
    judged = [*g.shown, *g.unquantized, *g.two, *g.controls]
    layered = [r for r in g.shown if has_layer(r)]
    remedies = [m for r in (*g.shown, *g.two) for m in r.get("remedies", [])]
    top = [m for r in (*g.shown, *g.two) for m in r.get("remedies", []) if m["name"].startswith("0:")]
    best = [m for m in remedies if m["name"] == "best"]
    return {
        "verdict": share(judged, verdict_right),
        "verdict, single faults": share(g.shown, verdict_right),
        "verdict, controls": share(g.controls, verdict_right),
        "verdict, two faults": share(g.two, verdict_right),
        "verdict, faults without effect": share([*g.idle, *g.two_partly], verdict_right),
        "cause top-1": share(g.shown, cause_right),
        "unquantized layer found": share(g.unquantized, cause_right),
        "layer top-1": share(layered, lambda r: layer_right(r, 1)),
        "layer top-3": share(layered, lambda r: layer_right(r, 3)),
        "false alarms on controls": share(g.controls, alarm),
        "inconclusive on controls": share(g.controls, lambda r: verdict(r) == INCONCLUSIVE),
        "alarms on faults without effect": share(g.idle, alarm),
        "two faults, both named": share(g.two, both_named),
        "two faults, the other one first": share(g.two, other_first),
        "remedies hold": share(remedies, holds),
        "remedies hold, strict": share(remedies, lambda m: holds(m, strict=True)),
        "first remedy holds": share(top, holds),
        "best plan holds": share(best, holds),
        "faults with effect": Share(len(g.shown), len(g.shown) + len(g.idle)),
        "two faults with effect": Share(len(g.two), len(g.two) + len(g.two_partly)),
        "sound controls": Share(len(g.controls), len(g.controls) + len(g.unsound)),
        "errors": share(records, lambda r: "said" not in r),
    }


def both_named(record: Record) -> bool:
    """Whether each of two faults is among the causes."""
    said = {cause["kind"] for cause in record.get("said", {}).get("causes", [])}
    faults = _faults(record)
    return bool(faults) and all(_accepted(fault) & said for fault in faults)


def other_first(record: Record) -> bool:
    """Whether the first cause is the fault that is not quantization."""
    other = [fault for fault in _faults(record) if fault["kind"] in OTHER_KINDS]
    return bool(other) and named(record) in _accepted(other[0])


def by_kind(records: Sequence[Record]) -> dict[str, tuple[Share, Share]]:
    """Precision and recall of the first cause by kind, over single faults with effect, unquantized layers and controls."""
    g = Groups.of(records)
    cases = [*g.shown, *g.unquantized, *g.controls]
    return {
        kind: (
            share([r for r in cases if named(r) == kind], lambda r: r["group"] != "control" and cause_right(r)),
            share([r for r in cases if r["kinds"] == [kind]], cause_right),
        )
        for kind in KINDS
    }


def confusion(records: Sequence[Record]) -> dict[tuple[str, str], int]:
    """Counts of (planted kind, first cause), over the same cases as `by_kind`."""
    g = Groups.of(records)
    cases = [*g.shown, *g.unquantized, *g.controls]
    return dict(Counter((CONTROL if r["group"] == "control" else r["kinds"][0], named(r)) for r in cases))


def costs(records: Sequence[Record]) -> dict[str, float]:
    """Medians: seconds of the diagnosis and of a whole case, evaluations."""
    said = [r for r in records if "said" in r]
    if not said:
        return {}
    return {
        "median seconds of the diagnosis": statistics.median(r["seconds"]["diagnosis"] for r in said),
        "median seconds of a case": statistics.median(r["seconds"]["all"] for r in said),
        "median evaluations": statistics.median(r["said"]["evaluations"] for r in said),
    }


def baseline_figures(records: Sequence[Record]) -> dict[str, dict[str, Share | None]]:
    """Rows of the comparison; None or missing where a rule says nothing.

    A layer counts if the baseline names it, whatever the kind; a baseline that gives no answer on a case is wrong there.
    """
    g = Groups.of(records)
    judged = [*g.shown, *g.unquantized, *g.two, *g.controls]
    layered = [r for r in g.shown if has_layer(r)]
    mine = figures(records)
    rows: dict[str, dict[str, Share | None]] = {
        "qkit": {
            "verdict": mine["verdict"],
            "cause": mine["cause top-1"],
            "layer top-1": mine["layer top-1"],
            "layer top-3": mine["layer top-3"],
            "alarms": mine["false alarms on controls"],
        }
    }
    rows["int16 close, int8 not"] = {
        "verdict": share(judged, lambda r: _said(r, "fork").get("verdict") in r.get("truth", {}).get("verdicts", [])),
        "alarms": share(g.controls, lambda r: _said(r, "fork").get("verdict") not in (None, NO_DEGRADATION)),
    }
    for name, key, fires in (
        ("lowest SQNR", "sqnr", None),
        ("lowest SQNR of the layer alone", "local sqnr", None),
        ("largest isolated drop", "isolated", lambda r: _said(r, "isolated").get("losses", [0.0])[0] > DROP),
        ("outlier ratio above 3.5", "outliers", lambda r: _said(r, "outliers").get("fired", 0) > 0),
    ):
        rows[name] = {
            "layer top-1": share(layered, lambda r, k=key: _hit(r, k, 1)),  # type: ignore[misc]
            "layer top-3": share(layered, lambda r, k=key: _hit(r, k, 3)),  # type: ignore[misc]
            "alarms": None if fires is None else share(g.controls, fires),
        }
    return rows


def _said(record: Record, baseline: str) -> Any:
    return record.get("baselines", {}).get(baseline) or {}


def _hit(record: Record, baseline: str, within: int) -> bool:
    answer = _said(record, baseline)
    layers = answer.get("layers", []) if isinstance(answer, dict) else answer
    return any(set(names) & set(_faults(record)[0]["layers"]) for names in layers[:within])


def failures(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What went wrong, a case a row: id, what is wrong, truth, and what was said."""
    g = Groups.of(records)
    rows = []
    checks: list[tuple[list[Record], list[tuple[str, Callable[[Record], bool]]]]] = [
        (g.shown, [("verdict", verdict_right), ("cause", cause_right),
                   ("layer", lambda r: not has_layer(r) or layer_right(r, 1))]),
        (g.unquantized, [("verdict", verdict_right), ("cause", cause_right)]),
        (g.two, [("verdict", verdict_right), ("both", both_named)]),
        ([*g.idle, *g.two_partly], [("verdict", verdict_right)]),
        (g.controls, [("alarm", lambda r: not alarm(r))]),
    ]  # fmt: skip
    for members, tests in checks:
        for r in members:
            wrong = [name for name, right in tests if not right(r)]
            wrong += [f"remedy {m['name']}" for m in r.get("remedies", []) if not holds(m)]
            if wrong:
                rows.append({"id": r["id"], "wrong": wrong, "truth": _truth_in_words(r), "said": _said_in_words(r)})
    return rows


def _truth_in_words(record: Record) -> str:
    faults = "; ".join(f"{f['kind']} at {f['site'] or 'all'} × {f['factor']:.3g}" for f in _faults(record))
    lanes = record.get("truth", {}).get("scores", {}).get("now", {})
    scores = ", ".join(f"{lane} {100 * score:.1f}" for lane, score in lanes.items())
    return f"{'/'.join(record.get('truth', {}).get('verdicts', []))}: {faults or 'sound'} ({scores})"


def _said_in_words(record: Record) -> str:
    if "said" not in record:
        return str(record.get("error", ERROR))
    causes = "; ".join(f"{c['kind']} at {c['layer']}" for c in record["said"]["causes"][:3])
    return f"{record['said']['verdict']}: {causes or NONE}"
