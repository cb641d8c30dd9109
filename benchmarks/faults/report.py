"""Tables of the figures: on the terminal, as markdown and as JSON, with the picture and the list of failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.faults import picture
from benchmarks.faults.score import (
    Share,
    baseline_figures,
    by_kind,
    confusion,
    costs,
    failures,
    figures,
    read,
)
from benchmarks.faults.truth import NOT_COVERED

TARGETS = {
    "verdict": "98 %",
    "cause top-1": "90 %",
    "layer top-1": "85 %",
    "false alarms on controls": "0",
    "remedies hold": "95 %",
    "faults with effect": "85 %",
}
Rows = list[list[str]]
_COLUMNS = ("verdict", "cause", "layer top-1", "layer top-3", "alarms")


def report(out: Path, into: Path, split: str = "all", only: Sequence[str] = ()) -> None:
    """Print the tables, and write ``table.md``, ``scores.json``, ``failures.md`` and ``confusion.png`` into a folder."""
    records = read(out, split, only)
    if not records:
        raise SystemExit(f"{out} has no case of that kind: run some first.")
    found, rows, kinds = figures(records), baseline_figures(records), by_kind(records)
    tables: list[tuple[str, list[str], Rows]] = [
        (
            f"Diagnosis, {len(records)} cases",
            ["figure", "measured (95 % interval)", "target"],
            [[name, str(value), TARGETS.get(name, "")] for name, value in found.items()]
            + [[name, f"{value:.4g}", ""] for name, value in costs(records).items()],
        ),
        (
            "Beside simpler rules, on the same cases",
            ["rule", *_COLUMNS[:-1], "alarms on controls"],
            [[name, *(_cell(row.get(column)) for column in _COLUMNS)] for name, row in rows.items()],
        ),
        (
            "First cause by kind",
            ["kind", "precision", "recall"],
            [[kind, str(precision), str(recall)] for kind, (precision, recall) in kinds.items()],
        ),
    ]
    wrong = failures(records)
    console = Console(width=170)
    for title, head, body in tables:
        table = Table(*head, title=title)
        for row in body:
            table.add_row(*row)
        console.print(table)
    into.mkdir(parents=True, exist_ok=True)
    note = f"Not covered: {', '.join(NOT_COVERED)} (see engine.md)."
    (into / "table.md").write_text("\n\n".join(markdown(*table) for table in tables) + f"\n\n{note}\n", encoding="utf-8")
    listed = [[row["id"], ", ".join(row["wrong"]), row["truth"], row["said"]] for row in wrong]
    text = markdown(f"Failures: {len(wrong)}", ["case", "wrong", "truth", "said"], listed)
    (into / "failures.md").write_text(text + "\n", encoding="utf-8")
    data = {
        "cases": len(records),
        "figures": {name: value.to_dict() for name, value in found.items()},
        "costs": costs(records),
        "rules": {name: {c: None if s is None else s.to_dict() for c, s in row.items()} for name, row in rows.items()},
        "kinds": {kind: {"precision": p.to_dict(), "recall": r.to_dict()} for kind, (p, r) in kinds.items()},
        "confusion": [[truth, said, count] for (truth, said), count in confusion(records).items()],
        "failures": wrong,
    }
    (into / "scores.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if data["confusion"]:
        picture.save(confusion(records), into / "confusion.png")
    console.print(f"{note}\nwritten to {into}: table.md, scores.json, failures.md ({len(wrong)}), confusion.png")


def _cell(value: Share | None) -> str:
    return "–" if value is None else str(value)


def markdown(title: str, head: list[str], body: Rows) -> str:
    """A titled table."""
    lines = [f"**{title}**", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in body)])
