"""Figures from the records of engines: what was right, with Wilson's intervals; offline, from the JSON lines alone."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.faults.engine.baselines import LOWEST, RULES
from benchmarks.faults.engine.plants import FORMS, KINDS
from benchmarks.faults.score import Record, Share, share
from benchmarks.faults.truth import BOTH, INCONCLUSIVE, NO_DEGRADATION, NOT_QUANTIZATION

#: A fault that costs this much has to change the verdict; one that costs nothing must not. In between neither is asked for.
COSTLY = 0.05
#: The simulation's own loss from which on "both" is right too.
DEGRADED = 0.01
MISMATCH, ALIGNMENT = "engine-mismatch", "trace-alignment"
_SAID = {(form.kind, form.name): form.said for form in FORMS}


def faults(records: Sequence[Record]) -> list[Record]:
    """Cases with a fault that changes some value; where the run failed nobody knows, and it counts."""
    return [r for r in records if r["group"] == "fault" and not placeless(r) and r.get("truth", {}).get("moved", 1.0) > 0.0]


def placeless(record: Record) -> bool:
    """Whether the network has no place for the form."""
    return str(record.get("error", "")).startswith("NoSite")


def invisible(records: Sequence[Record]) -> list[Record]:
    """Cases whose fault changes no value at all on these images: nothing is there to be found."""
    return [r for r in records if r["group"] == "fault" and r.get("truth", {}).get("moved", 1.0) == 0.0]


def named(record: Record, kind: str = MISMATCH) -> dict[str, Any] | None:
    """The first cause or finding of that kind."""
    said = record.get("said", {})
    listed = [*said.get("causes", []), *said.get("findings", [])]
    return next((cause for cause in listed if cause["kind"] == kind), None)


def tap_right(record: Record) -> bool:
    """Whether the first layer that leaves the simulation is the planted one."""
    cause = named(record)
    return cause is not None and cause["tap"] == record["truth"]["tap"]


def kind_right(record: Record) -> bool:
    """Whether the fault that is named is the planted one, at its layer."""
    cause = named(record)
    return cause is not None and tap_right(record) and any(w in cause["evidence"] for w in _SAID[record["kind"], record["form"]])


def cost(record: Record) -> float:
    """What the fault costs, as a fraction of the images."""
    return float(record.get("truth", {}).get("cost", 0.0))


def verdict_right(record: Record) -> bool:
    """Whether the verdict goes with what the fault costs."""
    said = record.get("said", {}).get("verdict")
    scores = record["truth"]["scores"]
    degraded = scores["float"] - min(scores["int8"], scores["int16"]) > DEGRADED
    if cost(record) >= COSTLY:
        return said == NOT_QUANTIZATION or (degraded and said == BOTH)
    return degraded or said in (NO_DEGRADATION, INCONCLUSIVE)


def alarm(record: Record) -> bool:
    """Whether an engine with nothing wrong is said to be wrong; a run that failed counts."""
    said = record.get("said")
    if said is None:
        return True
    return bool(named(record) or named(record, ALIGNMENT)) or not verdict_right(record)


def trace_right(record: Record) -> bool:
    """Whether a trace that does not belong is said not to, and a right one is compared without a word."""
    if record["kind"] == "right":
        return "said" in record and not named(record) and not named(record, ALIGNMENT)
    return named(record, ALIGNMENT) is not None


def figures(records: Sequence[Record]) -> dict[str, Share]:
    """All figures by name."""
    shown = faults(records)
    costly, free = [r for r in shown if cost(r) >= COSTLY], [r for r in shown if "truth" in r and cost(r) <= 0.0]
    controls = [r for r in records if r["group"] == "control"]
    found = {
        "engine-mismatch named": share(shown, lambda r: named(r) is not None),
        "first layer": share(shown, tap_right),
        "fault named, at its layer": share(shown, kind_right),
        "first layer, faults that cost 5 points and more": share(costly, tap_right),
        "first layer, faults that cost less": share([r for r in shown if r not in costly], tap_right),
        "verdict, faults that cost 5 points and more": share(costly, verdict_right),
        "verdict, faults that cost nothing": share(free, verdict_right),
        "false alarms on controls": share(controls, alarm),
    }
    for kind in dict.fromkeys(r["kind"] for r in records if r["group"] == "trace"):
        found[f"traces, {kind}"] = share([r for r in records if r["group"] == "trace" and r["kind"] == kind], trace_right)
    return found | {"errors": share(records, lambda r: "error" in r and not placeless(r))}


def by_kind(records: Sequence[Record]) -> dict[str, dict[str, Share]]:
    """The three figures of faults, by kind planted."""
    shown = faults(records)
    rows = {}
    for kind in KINDS:
        mine = [r for r in shown if r["kind"] == kind]
        tests = {"named": lambda r: named(r) is not None, "first layer": tap_right, "fault": kind_right}
        rows[kind] = {name: share(mine, test) for name, test in tests.items()}
    return rows


def rules(records: Sequence[Record]) -> dict[str, dict[str, Share]]:
    """The kit beside simpler rules: first layer right, and alarms on controls."""
    shown, controls = faults(records), [r for r in records if r["group"] == "control"]
    rows = {"qkit": {"first layer": share(shown, tap_right), "alarms": share(controls, alarm)}}
    for rule in (*RULES, LOWEST):
        rows[rule] = {"first layer": share(shown, lambda r, rule=rule: _by(r, rule) == r.get("truth", {}).get("tap", ""))}  # type: ignore[misc]
        if rule != LOWEST:  # it names a tap always
            rows[rule]["alarms"] = share(controls, lambda r, rule=rule: _by(r, rule) is not None)  # type: ignore[misc]
    return rows


def _by(record: Record, rule: str) -> str | None:
    found: str | None = record.get("baselines", {}).get(rule)
    return found


def costs(records: Sequence[Record]) -> dict[str, float]:
    """Processor seconds."""
    done = [r["seconds"]["processor"] for r in records if "seconds" in r]
    return {"median processor seconds of a case": statistics.median(done), "processor minutes in all": sum(done) / 60}


def failures(records: Sequence[Record]) -> list[dict[str, str]]:
    """What went wrong, a case a row."""
    rows = []
    for r in records:
        wrong = _wrong(r)
        if wrong:
            rows.append({"case": r["id"], "wrong": ", ".join(wrong), "truth": _truth(r), "said": _words(r)})
    return rows


def _wrong(r: Record) -> list[str]:
    if placeless(r):
        return []
    if "error" in r:
        return ["error"]
    if r["group"] == "trace":
        return [] if trace_right(r) else ["trace"]
    if r["group"] == "control":
        return ["alarm"] if alarm(r) else []
    if r["truth"]["moved"] == 0.0:
        return ["alarm"] if named(r) else []
    wrong = [] if tap_right(r) else ["layer" if named(r) else "not named"]
    wrong += [] if kind_right(r) or wrong else ["fault"]
    judged = cost(r) >= COSTLY or cost(r) <= 0.0
    return wrong + (["verdict"] if judged and not verdict_right(r) else [])


def _truth(r: Record) -> str:
    if "tap" not in r.get("truth", {}):
        return str(r["kind"])
    truth = r["truth"]
    scores = ", ".join(f"{name} {100 * value:.1f}" for name, value in truth["scores"].items() if name != "simulated")
    share = f", {truth['moved']:.2%} of its values moved, {truth['far']:.2%} by more than a step" if truth["tap"] else ""
    return f"{truth['tap'] or 'nothing'}{share} ({scores})"


def _words(r: Record) -> str:
    if "said" not in r:
        return str(r.get("error"))
    cause = named(r) or named(r, ALIGNMENT)
    return f"{r['said']['verdict']}; {'nothing' if cause is None else cause['evidence']}"
