"""The report's tables as headers and cells in words, for pages and for text alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qkit.report.contents.data import WIDE, Report
from qkit.report.text.terms import FEW_BARS, FURTHER_BARS, MOST_BARS
from qkit.style import NOTHING, decibels, is_missing, number, share, units_of


@dataclass(frozen=True)
class Cell:
    """What a cell reads as, and the value that it sorts by (None for missing and for words)."""

    text: str
    value: float | None = None
    name: bool = False


@dataclass(frozen=True)
class Column:
    """A column's head, the lane that it belongs to, whether paper can spare it, and whether it holds words."""

    head: str
    group: str = ""
    minor: bool = False
    words: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows of cells."""

    columns: tuple[Column, ...]
    rows: list[list[Cell]] = field(default_factory=list)


def _cell(value: Any, show: Callable[[Any], str]) -> Cell:
    return Cell(show(value), None if is_missing(value) else float(value))


def scores(report: Report) -> Table:
    """Score and loss by lane, with intervals."""
    units = units_of(report.metric)
    loss = f"loss ({units.points})" if units.points else "loss"
    heads = ("lane", "score", "95 % interval", loss, "paired 95 % interval")
    table = Table(tuple(Column(head, words=head == "lane") for head in heads))
    for lane, row in report.scores.iterrows():
        cells = [
            Cell(str(lane), name=True),
            _cell(row["score"], units.score),
            Cell(units.interval(row["low"], row["high"])),
        ]
        if lane == "float":
            cells += [Cell(NOTHING), Cell(NOTHING)]
        else:
            cells += [_cell(row["loss"], units.loss), Cell(units.interval(row["loss low"], row["loss high"], loss=True))]
        table.rows.append(cells)
    return table


#: What a tap is called elsewhere, with the words in front of it.
_NAMES = {"node": "In the ONNX file", "target": "At the target"}

_LANE_FIGURES: tuple[tuple[str, str, Callable[[Any], str], bool], ...] = (
    ("local sqnr", "local SQNR", decibels, False),
    ("sqnr", "SQNR", decibels, False),
    ("clipped", "clipped", share, False),
    ("used", "used", share, False),
    ("scale", "scale", number, False),
    ("zero point", "zero point", lambda v: NOTHING if is_missing(v) else number(int(v)), True),
    ("cosine", "cosine", lambda v: number(v, 5), True),
    ("mean error", "mean error", number, True),
    ("max error", "max error", number, True),
    ("rounding", "rounding", number, True),
    ("clipping", "clipping", number, True),
)


def layers(report: Report, *, lanes: Sequence[str] | None = None, minor: bool = True) -> Table:
    """The table of layers: a row per tap; `minor` includes the figures that are wanted rarely, and all of the wider lanes."""
    lanes = list(reversed(report.lanes)) if lanes is None else lanes
    shown = [
        (lane, *figure)
        for lane in lanes
        for figure in _LANE_FIGURES
        if minor or not (figure[3] or (lane != report.narrow and "sqnr" not in figure[0]))
    ]
    units = units_of(report.metric)
    swept = report.sensitivity
    columns = [Column("#"), Column("layer", words=True), Column("kind", words=True), Column("shape", words=True)]
    if swept is not None:
        columns.append(Column(f"loss alone ({units.points})" if units.points else "loss alone"))
    columns += [Column(head, lane, is_minor or lane != report.narrow) for lane, _, head, _, is_minor in shown]
    if minor:
        columns += [Column(head, "float", True) for head in ("min", "max", "rms")] + [Column("MACs", "", True)]
    called = [key for key in _NAMES if any(key in names for names in report.names.values())]
    columns += [Column(_NAMES[key], words=True, minor=key == "node") for key in called]
    table = Table(tuple(columns))
    for i, name in enumerate(report.layers.index):
        row = report.layers.loc[name]
        cells = [Cell(str(i), float(i)), Cell(str(name), name=True), Cell(str(row["tap", "kind"])), _shape(row["tap", "shape"])]
        if swept is not None:
            cells.append(_cell(swept["loss"].get(name), units.loss))
        cells += [_cell(row[lane, figure], show) for lane, figure, _, show, _ in shown]
        if minor:
            cells += [_cell(row["float", figure], number) for figure in ("min", "max", "rms")]
            cells.append(_cell(int(row["tap", "macs"]), number))
        cells += [Cell(report.names.get(str(name), {}).get(key, NOTHING)) for key in called]
        table.rows.append(cells)
    return table


def _shape(shape: str) -> Cell:
    return Cell(shape.replace("x", "×") or "scalar")


def causes(report: Report) -> list[dict[str, str]]:
    """The diagnosis' causes as words: what, where, why, what to do, and what it gains."""
    units = units_of(report.metric)

    def shown(figure: dict[str, float] | None) -> str:
        return "not measured" if figure is None else units.amount(figure["value"], figure["low"], figure["high"])

    found = [] if report.diagnosis is None else report.diagnosis["causes"]
    rows = []
    for cause in found:
        facts = {"gain in the whole network": shown(cause["gain"])}
        if cause["alone"] is not None:
            facts["loses quantized alone"] = shown(cause["alone"])
            facts["of which the remedy recovers"] = shown(cause["alone_gain"])
        rows.append(
            {
                "kind": cause["kind"],
                "layer": cause["layer"] or "the whole network",
                "evidence": cause["evidence"][:1].upper() + cause["evidence"][1:],
                "remedy": cause["remedy"]["text"],
                "facts": "; ".join(f"{name}: {figure}" for name, figure in facts.items()),
            }
        )
    return rows


def weights(report: Report) -> Table:
    """The table of weights; without rows where the network has none."""
    lanes = [lane for lane in reversed(report.lanes) if (lane, "sqnr") in report.weights]
    columns = [Column("weight", words=True), Column("min", "float"), Column("max", "float"), Column("channel spread", "float")]
    columns += [Column(head, lane) for lane in lanes for head in ("SQNR", "scale")]
    table = Table(tuple(columns))
    for name in report.weights.index:
        row = report.weights.loc[name]
        cells = [Cell(str(name), name=True)]
        cells += [_cell(row["float", figure], number) for figure in ("min", "max", "channel spread")]
        cells += [
            _cell(row[lane, figure], show) for lane in lanes for figure, show in (("sqnr", decibels), ("scale", number))
        ]  # fmt: skip
        table.rows.append(cells)
    return table


def sensitivity(report: Report, most: int | None = None) -> Table:
    """Loss of every layer alone, the greatest first; without rows where it was not measured."""
    units = units_of(report.metric)
    loss = f"loss alone ({units.points})" if units.points else "loss alone"
    table = Table((Column("layer", words=True), Column("kind", words=True), Column(loss), Column("95 % interval")))
    if report.sensitivity is not None:
        for name, row in report.sensitivity.head(most or len(report.sensitivity)).iterrows():
            interval = units.interval(row["loss low"], row["loss high"], loss=True)
            kind = Cell(str(row["kind"]))
            table.rows.append([Cell(str(name), name=True), kind, _cell(row["loss"], units.loss), Cell(interval)])
    return table


def bars_shown(report: Report) -> int:
    """How many layers the sensitivity chart shows: those that lose more than chance, and a few to compare.

    All where the layers are few; 0 where there are many and none loses more than chance.
    """
    if report.sensitivity is None or len(report.sensitivity) <= FEW_BARS:
        return 0 if report.sensitivity is None else len(report.sensitivity)
    sure = (report.sensitivity["loss low"] > 0).to_numpy().nonzero()[0]
    return min(int(sure.max()) + 1 + FURTHER_BARS, MOST_BARS, len(report.sensitivity)) if len(sure) else 0


def facts(report: Report, entry: dict[str, Any]) -> list[tuple[str, str]]:
    """What is known of one of the worst layers, as pairs of a term and its figures."""
    units = units_of(report.metric)
    row = report.layers.loc[entry["tap"]]
    found = [(words, report.names.get(entry["tap"], {}).get(key, "")) for key, words in _NAMES.items()]
    found = [(words, name) for words, name in found if name]
    found.append(("Operation", f"{row['tap', 'kind']}, output {_shape(row['tap', 'shape']).text} per sample"))
    if report.sensitivity is not None and entry["tap"] in report.sensitivity.index:
        alone = report.sensitivity.loc[entry["tap"]]
        found.append(("Loss alone", units.amount(alone["loss"], alone["loss low"], alone["loss high"])))
    for lane in (report.narrow, WIDE):
        here = row[lane]
        found.append(
            (f"SQNR in {lane}", f"local {decibels(here['local sqnr'])} dB, accumulated {decibels(here['sqnr'])} dB")
        )  # fmt: skip
    found += _grid_facts(row[report.narrow], entry)
    least, greatest = number(row["float", "min"]), number(row["float", "max"])
    text = f"{least} to {greatest} on the evaluation data"
    if entry["histogram"]:
        seen = entry["histogram"]
        text += f", {number(seen['min'])} to {number(seen['max'])} on the calibration data"
    found.append(("Float values", text))
    return found + _weight_facts(entry["weight"])


def _grid_facts(here: Any, entry: dict[str, Any]) -> list[tuple[str, str]]:
    grid = entry["grid"]
    if grid is None:
        return [("Output's grid", "none: it stays float")]
    zero = "zero points per channel" if grid["per_channel"] else f"zero point {grid['zero_point']}".replace("-", "−")
    ends = f"{number(grid['lo'])} to {number(grid['hi'])}"
    found = [
        ("Output's grid", f"scale {number(grid['scale'])}, {zero}, {ends} in {grid['bits']} bits, range by {grid['method']}"),
        ("Range used", f"{share(here['used'])} by what comes there in this lane; {share(here['clipped'])} of it is clipped"),
    ]
    rounding, clipping = float(here["rounding"]), float(here["clipping"])
    if rounding + clipping > 0:
        part = clipping / (rounding + clipping)
        found.append(("Output grid's own error", f"{share(1 - part)} rounding, {share(part)} clipping"))
    if entry["grid_error"]:
        error = entry["grid_error"]
        beside = "; the local SQNR adds weight and bias" if entry["weight"] else ""
        found.append(("Output grid alone", f"{decibels(error['sqnr'])} dB on the calibration data{beside}"))
    return found


def _weight_facts(weight: dict[str, Any] | None) -> list[tuple[str, str]]:
    if weight is None:
        return [("Weight", "none")]
    peaks = [peak for peak in weight["peaks"] if peak > 0]
    text = f"{weight['name']}, {weight['shape'].replace('x', '×')}"
    if peaks:
        text += f"; channels' max |w| from {number(peaks[-1])} to {number(peaks[0])}, {number(peaks[0] / peaks[-1], 3)} to 1"
    found = [("Weight", text)]
    grid = weight["grid"]
    if grid is not None:
        scale = f"scale {number(grid['scale'])} for all channels"
        if grid["per_channel"]:
            scale = f"a scale per channel, {number(grid['least_scale'])} to {number(grid['scale'])}"
        lost = weight["vanished"]
        gone = "no channel rounds to 0 as a whole"
        if lost:
            gone = f"{lost} of {len(weight['peaks'])} channels round to 0 as a whole"
        found.append(("Weight's grid", f"{scale} in {grid['bits']} bits; {gone}"))
    return found


def rules(report: Report, entry: dict[str, Any]) -> str:
    """Why the layer is among the worst, in words."""
    words = {
        "alone loss": "it loses score when it alone is quantized, and the interval of that loss excludes none",
        "local sqnr": f"its local SQNR in {report.narrow} is among the lowest",
    }
    return "; ".join(words[rule] for rule in entry["rules"])
