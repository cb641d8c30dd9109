"""The layer explorer: every layer's error in all lanes, and behind each layer its range, weights and feature maps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from qkit.errors import QkitError
from qkit.execution.capture import Capture, TapCapture
from qkit.figures.plots import depth
from qkit.quant.memory import by_channel
from qkit.quant.plan import Plan
from qkit.style import MUTED, NOTHING, decibels, is_missing, number, share
from qkit.widgets.graph_view import GraphView
from qkit.widgets.layer_chart import Column, LayerTable, Line
from qkit.widgets.map_view import FeatureMaps
from qkit.widgets.numbers import facts
from qkit.widgets.panel import Panel, button, row, shown
from qkit.widgets.strip import ChannelStrip
from qkit.widgets.tuner import Tuner

if TYPE_CHECKING:
    from qkit.study import Study

_VIEWS = ("range", "weights per channel", "feature maps", "graph")
_CAPTURING = "capturing"
_ROLES = ("wide", "narrow", "other")
_SHAPES = ("circle", "square", "diamond")


class Explorer(Panel):
    """Look at a network layer by layer.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    capture
        What to show; by default float, 16 bits and the study's own lane are captured in the background.
    batches
        Evaluation batches to capture.
    """

    selected = traitlets.Unicode()

    def __init__(self, study: Study, *, capture: Capture | None = None, batches: int = 1) -> None:
        self._given, self._base, self._batches = study, study.plan, batches
        self._found: Capture | None = None
        self._captured: Plan | None = None
        self._measuring = False
        self.table = LayerTable()
        self._view = ipywidgets.ToggleButtons(options=_VIEWS, style={"button_width": "auto"})
        self._again = button("measure the edited plan", "Capture again, with the ranges as tuned", icon="refresh")
        self._again.on_click(lambda _: self._remeasure())
        self._note = ipywidgets.HTML()
        self._detail = ipywidgets.VBox()
        self._about, self._words = ipywidgets.HTML(), ipywidgets.HTML()
        self.strip = ChannelStrip()
        self._weight_facts = ipywidgets.HTML()
        self._tune_weight = button("tune this weight", "Open the weight in the range tuner", icon="sliders")
        self._tune_weight.on_click(lambda _: self._weight_tuned())
        self._weights = ipywidgets.VBox([self._weight_facts, self.strip, row(self._tune_weight)])
        self.maps = FeatureMaps(self.show_error)
        self._tuner: Tuner | None = None
        self._graph: GraphView | None = None
        super().__init__(self.table, row(self._view, self._again), self._note, self._about, self._detail)
        ipywidgets.link((self, "selected"), (self.table, "selected"))
        self.observe(lambda _: self._chosen(), "selected")
        self._view.observe(lambda _: self._chosen(), "value")
        for trait in ("sort_by", "descending", "filter", "chart"):
            self.table.observe(lambda _: self.changed(), trait)
        self._detail.layout.min_height = "60px"
        self._edited()
        if capture is None:
            self._structure()
            self.measure()
        else:
            self._show(capture, None)

    def _release(self) -> None:
        super()._release()
        self._found = None

    @property
    def capture(self) -> Capture | None:
        """What is shown; None until it is captured."""
        self._check_open()
        return self._found

    @property
    def tuner(self) -> Tuner:
        """The range tuner, which holds the edited plan."""
        if self._tuner is None:
            self._tuner = Tuner(self._origin, self._tunable(self.selected))
            self._tuner.observe(lambda _: self._edited(), "edits")
        return self._tuner

    @property
    def plan(self) -> Plan:
        """The plan as edited."""
        if self._tuner is not None:
            return self._tuner.plan
        return self._base if self.closed else self._origin.plan

    @property
    def study(self) -> Study:
        """A study with the edited plan."""
        return self._origin if self._tuner is None else self._tuner.study

    def measure(self) -> None:
        """Capture the current plan in the background."""
        self._measuring = True
        study, plan, count = self.study, self.plan, self._batches
        self.work(_CAPTURING, lambda: study.capture(batches=count, progress=False), lambda found: self._show(found, plan))

    def wait(self, timeout: float = 600.0) -> None:
        """Block until the work in the background is done, the graph's too."""
        super().wait(timeout)
        if self._graph is not None:
            self._graph.wait(timeout)

    def _without_result(self) -> None:
        if self._measuring:
            self._measuring = False
            if self.capture is not None:
                self._chosen()

    def select(self, layer: str) -> None:
        """Choose a layer by its tap's name.

        Raises
        ------
        GraphError, QkitError
            If there is no such layer, or it has no figures.
        """
        name = self._origin.graph.operation(layer).name
        if name not in [entry["name"] for entry in self.table.rows]:
            raise QkitError(f"{layer} was not captured: no batch reached it.")
        self.selected = name

    # the table

    def _structure(self) -> None:
        """What is known before anything is measured."""
        graph = self._origin.graph
        operations = [graph.operation(name) for name in graph.taps]
        columns = [Column("layer", words=True), Column("kind", words=True), Column("shape", words=True)]
        self.table.show(columns, {s.name: (s.name, s.kind, _shape(s.shape)) for s in operations}, {})
        self._note.value = '<span class="qkit-note">The figures come with the capture.</span>'

    def _show(self, capture: Capture, plan: Plan | None) -> None:
        self._found, self._captured, self._measuring = capture, plan, False
        table = capture.table()
        lanes = [lane for lane in capture.lanes if lane != "float"]
        figures = [
            ("sqnr", "", "SQNR", "SQNR (dB), higher is better", decibels, False),
            ("local sqnr", " local", "", "", decibels, False),
            ("mean error", " mean error", "mean error", "mean absolute error, in the tensor's units", number, True),
            ("max error", " max error", "greatest error", "greatest absolute error, in the tensor's units", number, True),
            ("clipped", " clipped", "clipped", "share of elements beyond the grid", share, True),
            ("used", " used", "used", "share of the grid between the extremes", _part, False),
        ]
        columns = [
            Column("layer", words=True),
            Column("kind", words=True),
            Column("shape", words=True),
            Column("MACs", number, down=True, tip="multiply-accumulates of one sample"),
            Column("rms", partial(number, digits=3), down=True, tip="root mean square of the float values"),
        ]
        keys: list[tuple[str, str]] = [("tap", "macs"), ("float", "rms")]
        for figure, head, _, _, show, down in figures:
            for lane in lanes:
                tip = {"sqnr": f"{lane} against float, accumulated up to here", "local sqnr": f"this layer alone in {lane}"}
                columns.append(Column(lane + (head or " SQNR"), show, down=down, tip=tip.get(figure, "")))
                keys.append((lane, figure))
        rows = {
            str(name): (
                name,
                table.loc[name, ("tap", "kind")],
                table.loc[name, ("tap", "shape")].replace("x", "×"),
                *(table.loc[name, key] for key in keys),
            )
            for name in table.index
        }
        charts: dict[tuple[str, str], list[Line]] = {}
        for figure, head, name, unit, _, _ in figures:
            if name:
                charts[name, unit] = [line for i, lane in enumerate(lanes) for line in _lines(lane, figure, head or " SQNR", i)]
        self.table.show(
            columns,
            rows,
            charts,
            limit=f"{lanes[-1]} local" if lanes else "",
            logarithmic=("mean error", "greatest error", "clipped"),
        )
        self._note.value = (
            f'<span class="qkit-note">{capture.samples} evaluation samples. SQNR: accumulated up to the layer; local: its own '
            "quantization on float inputs.</span>"
        )
        self._edited()
        if self.selected in rows:
            self._chosen()
        else:
            finite = table[lanes[-1], "local sqnr"] if lanes else pd.Series(dtype=float)
            finite = finite[finite < np.inf]
            self.selected = str(finite.idxmin() if len(finite) else table.index[0])
        self.changed()

    def _edited(self) -> None:
        stale = self.capture is not None and self.plan != (self._captured or self._origin.plan)
        self._again.layout.display = "" if stale else "none"

    @shown
    def _remeasure(self) -> None:
        self.measure()

    # the chosen layer

    @shown
    def _chosen(self) -> None:
        if not self.selected:
            return
        op = self._origin.graph.operation(self.selected)
        self._about.value = facts(
            [
                ["layer", op.name],
                ["kind", f"{op.kind}, {_shape(op.shape)}"],
                *([["note", op.note]] if op.note else []),
            ]
        )
        show = {
            "range": self._show_range, "weights per channel": self._show_weights, "feature maps": self._show_maps,
            "graph": self._show_graph,
        }  # fmt: skip
        show[self._view.value]()

    def _show_range(self) -> None:
        name = self._tunable(self.selected)
        if name is None:
            self._say("This layer's output has no grid of its own: it shares its input's, or stays in float.")
            return
        if self.tuner.tensor != name:
            self.tuner.tensor = name
        self._detail.children = [self.tuner]

    def _tunable(self, name: str) -> str | None:
        return name if name in self._origin.plan.grids else None

    def _show_weights(self) -> None:
        op = self._origin.graph.operation(self.selected)
        if op.weight is None:
            self._say("This layer has no weight.")
            return
        weight = self._origin.graph.weights[op.weight]
        flat = by_channel(weight, op.weight_axis or 0)
        low, high = (bound.double().cpu().numpy() for bound in flat.aminmax(dim=1))
        params = self.plan.params(op.weight)
        self.strip.title = f"{op.weight}: output channels"
        self.strip.selected = 0
        self.strip.show(low, high, params)
        peaks = np.maximum(np.abs(low), np.abs(high))
        used = peaks[peaks > 0]
        spread = number(float(used.max() / used.min()), 3) if len(used) else NOTHING
        grid = (
            "stays in float"
            if params is None
            else f"{params.bits} bits, {'one step per channel' if params.per_channel else 'one step for all'}"
        )
        rows = [
            ["weight", f"{op.weight}, {_shape(weight.shape, first=0)}"],
            ["grid", grid],
            ["widest by narrowest channel", spread],
        ]
        if params is not None:
            lost = int(((peaks <= params.scale.double().numpy() / 2) & (peaks > 0)).sum())
            rows.append(["channels that round to 0 as a whole", f"{lost} of {len(peaks)}"])
        self._weight_facts.value = facts(rows)
        self._tune_weight.disabled = params is None
        self._detail.children = [self._weights]

    @shown
    def _weight_tuned(self) -> None:
        op = self._origin.graph.operation(self.selected)
        if op.weight is not None:
            self._view.value = "range"
            self.tuner.tensor = op.weight
            self._detail.children = [self.tuner]

    def _show_maps(self) -> None:
        if self.capture is None or self.worker.what == _CAPTURING:
            self._say("The feature maps come with the capture.")
            return
        capture, name = self.capture, self.selected
        axis = self._origin.graph.operation(name).channel_axis

        def keep(tap: TapCapture) -> None:
            if self.selected == name and self._view.value == "feature maps":
                self.maps.show(tap, axis)
                self._detail.children = [self.maps]

        self.work("computing feature maps", lambda: capture[name], keep)

    def _show_graph(self) -> None:
        if self.capture is None:
            self._say("The graph's colours come with the capture.")
            return
        if self._graph is None:
            self._graph = GraphView(self._origin, capture=self.capture)
            self._graph.observe(self._graph_chosen, "selected")
            self._graph.on_open(self._graph_opened)
        elif self.capture not in self._graph.values.captures.values():
            self._graph.take(self.capture)
        self._graph.select(self.selected)
        self._detail.children = [self._graph]

    @shown
    def _graph_chosen(self, change: Any) -> None:
        if change.new in {entry["name"] for entry in self.table.rows}:
            self.selected = change.new

    @shown
    def _graph_opened(self, name: str, action: str) -> None:
        self.select(name)
        self._view.value = {"range": "range", "weight": "weights per channel", "maps": "feature maps"}[action]

    def _say(self, text: str) -> None:
        self._words.value = f'<span class="qkit-note">{text}</span>'
        self._detail.children = [self._words]

    # where there is no front end

    def draw(self, figure: Figure) -> None:
        """Accumulated and local SQNR along the depth."""
        ax = figure.add_subplot()
        if self.capture is None:
            ax.text(0.5, 0.5, "not captured yet", ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            return
        depth(self.capture, ax=ax)
        names = list(self.capture.table().index)
        if self.selected in names:
            ax.axvline(names.index(self.selected), color=MUTED, lw=0.8, ls=":")

    def summary(self) -> pd.DataFrame:
        """The table of layers as it reads."""
        return self.table.frame()

    def brief(self) -> str:
        """How many layers it shows, and how many samples their figures are of."""
        what = "not captured yet" if self.capture is None else f"{self.capture.samples} samples"
        return f"{len(self.table.rows)} layers, {what}"


def _lines(lane: str, figure: str, head: str, i: int) -> list[Line]:
    role, shape = _ROLES[i % 3], _SHAPES[i % 3]
    lines = [Line(lane + head, role, shape)]
    if figure == "sqnr":
        lines = [
            Line(lane + head, role, shape, label=f"{lane}, accumulated"),
            Line(f"{lane} local", role, "triangle", True, f"{lane}, local"),
        ]
    return lines


def _shape(shape: Any, *, first: int = 1) -> str:
    return "×".join(map(str, tuple(shape)[first:])) or "1"


def _part(value: Any) -> str:
    return NOTHING if is_missing(value) else f"{100 * value:.0f} %"
