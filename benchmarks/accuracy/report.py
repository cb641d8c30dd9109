"""The tables: ``table.md`` and ``scores.json``, and the summary on the terminal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.accuracy import published
from benchmarks.accuracy.cells import FLOAT, SCHEMES
from benchmarks.accuracy.rows import TARGETS, Records, Row, Table
from benchmarks.accuracy.store import versions
from qkit.execution.statistics import Interval
from qkit.ptq import STEPS

_SUMMARY = ("plain", "ptc", "mixed", "qat", "ptc + qat", "torchao", "torchao qat")


def write(records: Records, folder: Path, setting: str) -> str:
    """Write both files and return the Markdown."""
    table = Table(records)
    rows, rivals, steps = table.rows(), table.rivals(), table.steps()
    parts = [
        f"Setting: {setting}. Top-1 in percent; losses in points against float on the same images, with 95 % intervals.",
        _section("What is lost", _summary(table)),
        _section("Every row", _all(rows)),
        _section("Steps of calibration, one after the other", _steps(steps, "gain")),
        _section("Each step alone", _steps(steps, "alone")),
        _section("Beside torchao's PT2E flow", _rivals(rivals)),
        _section("As published, on ImageNet; not measured here", published.table()),
    ]
    several = versions(list(records.values()))
    if several:
        listed = "; ".join(f"{treatment}: {', '.join(seen)}" for treatment, seen in several.items())
        parts.append(f"Cells of one treatment come from several versions of the code ({listed}).")
    errors = [r for r in records.values() if "error" in r]
    if errors:
        parts.append("Failed cells: " + "; ".join(f"{r['id']}: {r['error']}" for r in errors))
    text = "\n\n".join(part for part in parts if part) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text, encoding="utf-8")
    data = {
        "setting": setting,
        "targets": TARGETS,
        "rows": [row.to_dict() for row in rows],
        "steps": [_plain(entry) for entry in steps],
        "torchao": [_plain(entry) for entry in rivals],
        "errors": {r["id"]: r["error"] for r in errors},
    }
    (folder / "scores.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return text


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value.to_dict() if isinstance(value, Interval) else value for key, value in entry.items()}


def _section(title: str, body: str) -> str:
    return f"**{title}**\n\n{body}" if body else ""


def _summary(table: Table) -> str:
    """A line per network and scheme: the loss of each treatment, with what was aimed at."""
    body = []
    for network in table.networks:
        for scheme in (s for s in SCHEMES if s != FLOAT):
            rows = {t: table.row(network, scheme, t) for t in _SUMMARY}
            if any(rows.values()):
                body.append([network, scheme, *(_loss(rows[t], TARGETS.get(t)) for t in _SUMMARY)])
    head = ["network", "scheme", *_SUMMARY]
    head = [f"{name} (target {100 * TARGETS[name]:g})" if name in TARGETS else name for name in head]
    return markdown(head, body)


def _loss(row: Row | None, target: float | None) -> str:
    if row is None:
        return ""
    text = f"{100 * row.loss.value:.2f}"
    if row.treatment == "mixed":
        text += f", {_share(row):.0%} in 16 bits"
    return text if target is None or row.loss.value <= target + 1e-12 else f"**{text}, missed**"


def _share(row: Row) -> float:
    return float(sum(more["share"] for more in row.more) / len(row.more))


def _all(rows: Sequence[Row]) -> str:
    head = [
        "network",
        "scheme",
        "treatment",
        "float",
        "score",
        "loss (95 %)",
        "seeds, least to most",
        "seconds of a core",
        "target",
    ]
    body = []
    for row in rows:
        if row.scheme == FLOAT:
            continue
        met = "" if row.met is None else f"{'met' if row.met else 'missed'} (≤ {100 * TARGETS[row.treatment]:g})"
        body.append(
            [
                row.network,
                row.scheme,
                row.treatment,
                f"{100 * row.exact:.2f}",
                f"{100 * row.score:.2f}",
                _interval(row.loss),
                f"{100 * min(row.losses):.2f} to {100 * max(row.losses):.2f} ({len(row.losses)})",
                f"{row.seconds:.0f}",
                met,
            ]
        )
    return markdown(head, body)


def _steps(steps: Sequence[dict[str, Any]], what: str) -> str:
    """A line per network and scheme, a column per step: gain in points, and how often it stayed."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for entry in steps:
        if what == "gain":
            cell = "–" if not entry["tried"] else f"{100 * entry['gain']:+.2f}, kept {entry['kept']} of {entry['seeds']}"
        else:
            cell = "" if entry["alone"] is None else f"{100 * entry['alone'].value:+.2f}"
        found.setdefault((entry["network"], entry["scheme"]), {})[entry["step"]] = cell
    body = [[*key, *(cells.get(step, "") for step in STEPS)] for key, cells in found.items() if any(cells.values())]
    return markdown(["network", "scheme", *STEPS], body)


def _rivals(rivals: Sequence[dict[str, Any]]) -> str:
    body = [
        [e["network"], e["scheme"], f"{e['qkit']} − {e['torchao']}", _interval(e["gain"], "+"), _standing(e["gain"])]
        for e in rivals
    ]
    return markdown(["network", "scheme", "what", "qkit scores more by (95 %)", ""], body)


def _standing(gain: Interval) -> str:
    if gain.low > 0.0:
        return "better"
    return "worse" if gain.high < 0.0 else "no difference shown"


def _interval(value: Interval, sign: str = "") -> str:
    return f"{100 * value.value:{sign}.2f} ({100 * value.low:.2f} to {100 * value.high:.2f})"


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table; nothing where there are no rows."""
    if not body:
        return ""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in body)])
