"""Layers along the network's depth, as chart and table; what the explorer and the calibration panel fill."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import traitlets

from qkit.style import plain
from qkit.widgets.canvas import Canvas, es_module


@dataclass(frozen=True)
class Column:
    """A column: its head, how its values read, whether it holds words, and whether the greatest are of interest first.

    With `bar` a bar lies behind the figure, as long as its part of the greatest; with `fold` it is shown on demand only.
    """

    head: str
    show: Callable[[Any], str] = str
    words: bool = False
    down: bool = False
    tip: str = ""
    bar: bool = False
    fold: bool = False


@dataclass(frozen=True)
class Line:
    """One line of a chart: the head of its column, the role of its colour, and how it is told apart without colour."""

    column: str
    role: str
    shape: str = "circle"
    dash: bool = False
    label: str = ""


class LayerTable(Canvas):
    """Rows by layer; reports what is chosen, sorted and filtered."""

    _esm = es_module("layers")
    columns: Any = traitlets.List([]).tag(sync=True)
    rows: Any = traitlets.List([]).tag(sync=True)
    charts: Any = traitlets.List([]).tag(sync=True)
    chart = traitlets.Int(0).tag(sync=True)
    selected = traitlets.Unicode("").tag(sync=True)
    sort_by = traitlets.Unicode("").tag(sync=True)
    descending = traitlets.Bool(False).tag(sync=True)
    filter = traitlets.Unicode("").tag(sync=True)
    limit = traitlets.Float(None, allow_none=True).tag(sync=True)
    limit_column = traitlets.Int(-1).tag(sync=True)
    noun = traitlets.Unicode("layer").tag(sync=True)
    #: column drawn as bars below the lines, and the label of their axis; -1 for none
    bars = traitlets.Int(-1).tag(sync=True)
    bars_unit = traitlets.Unicode("").tag(sync=True)
    #: what the columns that fold are of, and whether they are shown
    folds = traitlets.Unicode("").tag(sync=True)
    unfolded = traitlets.Bool(False).tag(sync=True)

    def show(
        self,
        columns: Sequence[Column],
        rows: Mapping[str, Sequence[Any]],
        charts: Mapping[tuple[str, str], Sequence[Line]],
        *,
        limit: str = "",
        logarithmic: Sequence[str] = (),
        bars: tuple[str, str] = ("", ""),
        folds: str = "",
    ) -> None:
        """Fill it.

        Parameters
        ----------
        rows
            Values by layer, one for each column.
        charts
            Lines by (name of the chart, label of its axis).
        limit
            Head of the column that "up to" filters by; "" for none.
        logarithmic
            Names of charts with a logarithmic axis.
        bars
            Head of the column that is drawn as bars below the lines, and the label of their axis.
        folds
            What the columns that fold are of, for the box that shows them.
        """
        heads = [column.head for column in columns]

        def line(part: Line) -> dict[str, Any]:
            return {
                "column": heads.index(part.column),
                "role": part.role,
                "shape": part.shape,
                "dash": part.dash,
                "label": part.label or part.column,
            }

        with self.hold_sync():
            self.columns = [
                {"head": c.head, "words": c.words, "down": c.down, "tip": c.tip, "bar": c.bar, "fold": c.fold} for c in columns
            ]
            self.rows = [
                {
                    "name": name,
                    "texts": [c.show(v) for c, v in zip(columns, values, strict=True)],
                    "values": [None if c.words else plain(v) for c, v in zip(columns, values, strict=True)],
                }
                for name, values in rows.items()
            ]
            self.charts = [
                {"name": name, "unit": unit, "log": name in logarithmic, "lines": [line(part) for part in lines]}
                for (name, unit), lines in charts.items()
            ]
            self.limit_column = heads.index(limit) if limit else -1
            self.bars, self.bars_unit = (heads.index(bars[0]) if bars[0] else -1), bars[1]
            self.folds = folds

    def frame(self) -> pd.DataFrame:
        """The table as it reads, in the order of execution."""
        texts = [row["texts"] for row in self.rows]
        return pd.DataFrame(texts, columns=[column["head"] for column in self.columns]).set_index(self.columns[0]["head"])
