"""The table of the networks, in Markdown, and their rows as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from benchmarks.networks.measure import Row

#: What a network should reach: the share of multiply-accumulates by kind, and the rest for all of them.
MACS = {"convolutional": 0.99, "hybrid": 0.97, "transformer": 0.97}
DEVIATION, WITHIN = 1e-4, 0.999

_HEADER = (
    "network", "front", "integer MACs", "elements", "deviation", "norms", "standing", "codes as by hand", "engine within 1",
    "cost", "build s", "float operations",
)  # fmt: skip


def write(rows: Iterable[Row], folder: Path) -> None:
    """Write ``table.md`` and ``networks.json`` into the folder."""
    listed = sorted(rows, key=lambda row: row.name)
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*summary(listed), "", *_tables(listed)]) + "\n"
    (folder / "table.md").write_text(text, encoding="utf-8")
    data = [row.to_dict() for row in listed]
    (folder / "networks.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def summary(rows: Sequence[Row]) -> list[str]:
    """A line a package: how many were made, and how many of those reach each target."""
    lines = [
        "| | networks | made | integer MACs | deviation | codes as by hand | engine within one step | cost ≤ 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for package in [*dict.fromkeys(row.name.split("/")[0] for row in rows), "all"]:
        own = [row for row in rows if package in (row.name.split("/")[0], "all")]
        made = [row for row in own if row.made]
        figures = [
            _count(made, lambda r: r.macs_share, lambda r: (r.macs_share or 0) >= MACS[r.kind]),
            _count(made, lambda r: r.deviation, equal),
            _count(made, lambda r: r.compared, lambda r: not r.far and not r.unmatched),
            _count(made, lambda r: r.engine_within, lambda r: (r.engine_within or 0) >= WITHIN),
            _count(made, lambda r: r.cost, lambda r: (r.cost or 0) <= 1),
        ]
        lines.append(f"| {package} | {len(own)} | {len(made)} | {' | '.join(figures)} |")
    return lines


def line(row: Row) -> str:
    """One network in one line, for the terminal."""
    if not row.made:
        return f"{row.name}: refused: {row.refused}"
    cells = dict(zip(_HEADER, _cells(row), strict=True))
    cells.pop("network")
    troubles = "; ".join(f"{stage}: {text}" for stage, text in row.troubles.items())
    listed = ", ".join(f"{name} {value}" for name, value in cells.items() if value)
    return f"{row.name}: {listed}{f' TROUBLE {troubles}' if troubles else ''} ({row.seconds:.0f} s)"


def equal(row: Row) -> bool:
    """Whether the graph computes what the network does: to 1e-4, or as far as the network agrees with itself in float64."""
    return (row.deviation or 0.0) <= max(DEVIATION, 2 * (row.own_error or 0.0))


def missed(row: Row) -> list[str]:
    """Names of the targets that a network misses; one that is refused misses all of them."""
    if not row.made:
        return ["made"]
    misses = []
    if (row.macs_share or 0) < MACS[row.kind]:
        misses.append("integer MACs")
    if not equal(row):
        misses.append("deviation")
    if row.far or row.unmatched:
        misses.append("codes as by hand")
    if row.engine_within is not None and row.engine_within < WITHIN:
        misses.append("engine")
    if row.cost is not None and row.cost > 1:
        misses.append("cost")
    return [*misses, *row.troubles]


def _count(rows: Sequence[Row], known: Callable[[Row], object], good: Callable[[Row], bool]) -> str:
    asked = [row for row in rows if known(row) is not None]
    return f"{sum(map(good, asked))} of {len(asked)}" if asked else "–"


def _tables(rows: Sequence[Row]) -> list[str]:
    lines: list[str] = []
    for package in dict.fromkeys(row.name.split("/")[0] for row in rows):
        own = [row for row in rows if row.name.split("/")[0] == package]
        lines += [f"## {package}", "", f"| {' | '.join(_HEADER)} |", "|---" * len(_HEADER) + "|"]
        lines += [f"| {' | '.join(_cells(row))} |" for row in own if row.made]
        refused = [f"- `{row.name}`: {row.refused}" for row in own if not row.made]
        troubles = [f"- `{row.name}`, {stage}: {text}" for row in own for stage, text in row.troubles.items()]
        lines += ["", *(["Refused:", "", *refused, ""] if refused else [])]
        lines += ["Trouble on the way:", "", *troubles, ""] if troubles else []
    return lines


def _cells(row: Row) -> list[str]:
    floats = ", ".join(f"{name} × {count}" if count > 1 else name for name, count in list(row.floats.items())[:6])
    more = len(row.floats) - 6
    return [
        row.name.split("/", 1)[1],
        row.front or "",
        _percent(row.macs_share),
        _percent(row.elements_share),
        _deviation(row),
        "" if row.norms is None else str(row.norms),
        "" if not row.standing else str(row.standing),
        _by_hand(row),
        "" if row.engine_within is None else f"{row.engine_within:.3%}",
        "" if row.cost is None else f"{row.cost:.2f}",
        "" if row.build_s is None else f"{row.build_s:.2f}",
        (floats + (f" and {more} more" if more > 0 else "")).replace("|", "/"),
    ]


def _deviation(row: Row) -> str:
    if row.deviation is None:
        return ""
    own = f" (own {row.own_error:.0e})" if row.own_error is not None and row.deviation > DEVIATION else ""
    return f"{row.deviation:.0e}{own}"


def _by_hand(row: Row) -> str:
    if row.compared is None:
        return "" if row.folded_by_hand is None else "no norm follows a layer"
    if row.unmatched:
        return f"{len(row.unmatched)} weights unmatched"
    apart = f", {row.apart} by one" if row.apart else ""
    far = f", **{row.far} by more**" if row.far else ""
    return ("all" if not row.apart and not row.far else f"all of {row.compared}") + apart + far


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}" if share < 0.9995 else "100 %"
