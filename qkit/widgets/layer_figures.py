"""A capture as the table and charts of layers: the columns, their order, and what folds away."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd

from qkit.execution.capture import Capture
from qkit.execution.faults import local_parts
from qkit.graph import Graph
from qkit.style import NOTHING, decibels, is_missing, number, share
from qkit.widgets.layer_chart import Column, LayerTable, Line
from qkit.widgets.layer_losses import Losses

_ROLES = ("wide", "narrow", "other")
_SHAPES = ("circle", "square", "diamond")
#: The lane that tells whether it is rounding at all; beside another one it is folded away.
_CONTROL = "int16"
#: Figures of a lane: key in the capture's table, head behind the lane's name, name and axis of their chart ("" for none).
_FIGURES = (
    ("sqnr", " SQNR", "SQNR", "SQNR (dB), higher is better"),
    ("local sqnr", " local", "", ""),
    ("clipped", " clipped", "clipped", "share of elements beyond the grid"),
    ("used", " used", "used", "share of the grid between the extremes"),
    ("mean error", " mean error", "mean error", "mean absolute error, in the tensor's units"),
    ("max error", " max error", "greatest error", "greatest absolute error, in the tensor's units"),
)
#: The charts in the order in which they are offered.
_CHARTS = ("sqnr", "mean error", "max error", "clipped", "used")


def show_structure(table: LayerTable, graph: Graph) -> None:
    """What is known before anything is measured: layers, kinds, shapes."""
    operations = [graph.operation(name) for name in graph.taps]
    columns = [Column("layer", words=True), Column("kind", words=True), Column("shape", words=True)]
    table.show(columns, {s.name: (s.name, s.kind, shape_words(s.shape)) for s in operations}, {})


def show_figures(table: LayerTable, capture: Capture, losses: Losses | None) -> None:
    """A capture's figures in the table, with each layer's loss where it is known."""
    found = capture.table()
    lanes = [lane for lane in capture.lanes if lane != "float"]
    folded = [lane for lane in lanes[:-1] if lane == _CONTROL]
    columns, values = [Column("layer", words=True)], [list(found.index)]
    if lanes:
        columns.append(_loss_column(losses))
        values.append([None if losses is None else losses.by_layer.get(name) for name in found.index])
    for lane in [*(lane for lane in lanes if lane not in folded), *folded]:
        for column, part in _lane_columns(capture, found, lane, fold=lane in folded):
            columns.append(column)
            values.append(part)
    columns += [Column("kind", words=True), Column("shape", words=True)]
    columns.append(Column("MACs", number, down=True, tip="multiply-accumulates of one sample"))
    columns.append(Column("rms", partial(number, digits=3), down=True, tip="root mean square of the float values"))
    values += [list(found["tap", "kind"]), [text.replace("x", "×") for text in found["tap", "shape"]]]
    values += [list(found["tap", "macs"]), list(found["float", "rms"])]
    rows = dict(zip(map(str, found.index), zip(*values, strict=True), strict=True))
    charts: dict[tuple[str, str], list[Line]] = {}
    for figure, head, name, unit in sorted((f for f in _FIGURES if f[2]), key=lambda f: _CHARTS.index(f[0])):
        charts[name, unit] = [line for i, lane in enumerate(lanes) for line in _lines(lane, figure, head, i)]
    table.show(
        columns,
        rows,
        charts,
        limit=f"{lanes[-1]} local" if lanes else "",
        logarithmic=("mean error", "greatest error", "clipped"),
        bars=("loss", losses.unit) if losses is not None else ("", ""),
        folds=", ".join(folded),
    )


def _loss_column(losses: Losses | None) -> Column:
    show = number if losses is None else losses.show
    tip = "what each layer costs by itself" if losses is None else losses.said
    return Column("loss", show, down=True, bar=True, tip=tip)


def _lane_columns(capture: Capture, found: pd.DataFrame, lane: str, *, fold: bool) -> list[tuple[Column, list[Any]]]:
    """The columns of a lane with their values."""
    shows = {"sqnr": decibels, "local sqnr": decibels, "clipped": share, "used": _part}
    tips = {"sqnr": f"{lane} against float, accumulated up to here", "local sqnr": f"this layer alone in {lane}"}
    made = []
    for figure, head, _, _ in _FIGURES:
        show, down = shows.get(figure, number), figure in ("clipped", "mean error", "max error")
        column = Column(lane + head, show, down=down, tip=tips.get(figure, ""), fold=fold)
        made.append((column, list(found[lane, figure])))
        if figure == "local sqnr":
            parts = local_parts(capture, lane)
            for tensor in ("weight", "activation"):
                tip = f"this layer alone in {lane}, only its {tensor} on its grid"
                made.append((Column(f"{lane} local, {tensor}", decibels, tip=tip, fold=fold), list(parts[tensor])))
    return made


def _lines(lane: str, figure: str, head: str, i: int) -> list[Line]:
    role, shape = _ROLES[i % 3], _SHAPES[i % 3]
    lines = [Line(lane + head, role, shape)]
    if figure == "sqnr":
        lines = [
            Line(lane + head, role, shape, label=f"{lane}, accumulated"),
            Line(f"{lane} local", role, "triangle", True, f"{lane}, local"),
        ]
    return lines


def shape_words(shape: Any, *, first: int = 1) -> str:
    """A shape as it is read, without its first dimensions."""
    return "×".join(map(str, tuple(shape)[first:])) or "1"


def _part(value: Any) -> str:
    return NOTHING if is_missing(value) else f"{100 * value:.0f} %"
