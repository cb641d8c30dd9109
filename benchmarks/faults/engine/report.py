"""Tables of the figures of engines: on the terminal, as markdown with every failure, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.faults.engine import score
from benchmarks.faults.report import Rows, markdown
from benchmarks.faults.score import read


def report(out: Path, into: Path, split: str, only: Sequence[str] = ()) -> None:
    """Print the tables, and write ``engine.md`` and ``engine.json`` into a folder."""
    records = [r for r in read(out, split) if not only or any(o in r["id"] for o in only)]
    if not records:
        raise SystemExit(f"{out} has no case of that kind: run some first.")
    found, kinds, rules, costs = score.figures(records), score.by_kind(records), score.rules(records), score.costs(records)
    wrong, hidden = score.failures(records), score.invisible(records)
    none = [r for r in records if score.placeless(r)]
    tables: list[tuple[str, list[str], Rows]] = [
        (
            f"Engines, {len(records)} cases of the {split} split",
            ["figure", "measured (95 % interval)"],
            [[name, str(value)] for name, value in found.items()] + [[name, f"{value:.3g}"] for name, value in costs.items()],
        ),
        (
            "Beside simpler rules, on the same cases",
            ["rule", "first layer", "alarms on controls"],
            [[name, str(row["first layer"]), str(row.get("alarms", "–"))] for name, row in rules.items()],
        ),
        (
            "By kind of fault",
            ["kind", "engine-mismatch named", "first layer", "fault named, at its layer"],
            [[kind, *(str(value) for value in row.values())] for kind, row in kinds.items()],
        ),
        (f"Failures: {len(wrong)}", ["case", "wrong", "truth", "said"], [list(row.values()) for row in wrong]),
    ]
    console = Console(width=170)
    for title, head, body in tables:
        table = Table(*head, title=title)
        for row in body:
            table.add_row(*row)
        console.print(table)
    note = (
        f"{len(hidden)} faults change no value on these images and count nowhere: {_listed(hidden)}. "
        f"{len(none)} cases have no place in their network: {_listed(none)}."
    )
    into.mkdir(parents=True, exist_ok=True)
    (into / "engine.md").write_text("\n\n".join(markdown(*table) for table in tables) + f"\n\n{note}\n", encoding="utf-8")
    data = {
        "split": split,
        "cases": len(records),
        "figures": {name: value.to_dict() for name, value in found.items()},
        "costs": costs,
        "rules": {name: {column: value.to_dict() for column, value in row.items()} for name, row in rules.items()},
        "kinds": {kind: {column: value.to_dict() for column, value in row.items()} for kind, row in kinds.items()},
        "failures": wrong,
        "no value changed": [r["id"] for r in hidden],
        "no place": [r["id"] for r in none],
    }
    (into / "engine.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    console.print(f"{note}\nwritten to {into}: engine.md, engine.json")


def _listed(records: Sequence[score.Record]) -> str:
    return "; ".join(r["id"] for r in records) or "none"
