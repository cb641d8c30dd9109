"""The range tuner: a tensor's histogram and integer grid, two handles, and what every position of them costs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import pandas as pd
import torch
import traitlets
from matplotlib.figure import Figure

from qkit.errors import PlanError, QkitError
from qkit.execution.editing import (
    Figures,
    History,
    figures,
    moved_end,
    rule_of,
    suggestions,
)
from qkit.execution.loading import batches as batches_of
from qkit.execution.metrics import metric_label
from qkit.execution.observing import observe_channels
from qkit.execution.prefix import Effect
from qkit.execution.statistics import Interval, mean_interval, paired_interval
from qkit.figures.entries import describe_grid, describe_histogram
from qkit.figures.tensors import histogram as draw_histogram
from qkit.quant.estimators import METHODS
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid, Plan
from qkit.style import decibels
from qkit.widgets.canvas import answer
from qkit.widgets.code import CodeBox
from qkit.widgets.numbers import change_words, facts, figure_rows, score_words
from qkit.widgets.panel import Panel, button, row, shown
from qkit.widgets.range import RangePlot
from qkit.widgets.strip import ChannelStrip
from qkit.widgets.work import STATE

if TYPE_CHECKING:
    from qkit.study import Study

#: Bars of the histogram as it is drawn.
BARS = 400
#: Evaluation samples that a score after every release is measured on, unless told otherwise.
SAMPLES = 256
_MEASURING = '<span class="qkit-note">measuring …</span>'
_SCORING, _COUNTING = "scoring the new range", "counting per channel"
_HINT = (
    "<span class=\"qkit-note\">Figures follow a handle while it moves; when it is let go, the layer's error, the output's and "
    "the score are measured. Arrow keys move a handle by a step.</span>"
)


class Tuner(Panel):
    """Tune the range of a tap or weight of a study's plan.

    The study stays as it is; `plan` is the edited one, and `study` a new study with it.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    tensor
        Tap or weight name; by default the activation whose own range costs most.
    batches
        Evaluation batches that a score is measured on after each release; by default those that hold about 256 samples.

    Raises
    ------
    PlanError
        If the plan has no grid for the tensor.
    """

    tensor = traitlets.Unicode()
    #: How often the plan has changed.
    edits = traitlets.Int(0)

    def __init__(self, study: Study, tensor: str | None = None, *, batches: int | None = None) -> None:
        if tensor is not None:
            study.plan[tensor]  # says what is near, if it is not there
        if not study.plan.grids:
            raise PlanError("the study's plan quantizes nothing, so there is no range to tune: choose a scheme with grids.")
        self._given = study
        self.history = History((study.plan,))
        self._channels: dict[str, list[Histogram]] = {}
        self._effects: dict[tuple[str, Plan], Effect] = {}
        self._previous: Plan | None = None
        self.batches = batches_for(study, SAMPLES) if batches is None else batches
        first = _noisiest(study) if tensor is None else tensor
        self._wanted: QuantSpec | None = None  # the rule that channels are being counted for
        self._build(list(study.plan.grids))
        super().__init__(
            row(self._tensors, self._counts, self._zoom),
            self.plot,
            self.strip,
            row(self._bits, self._rule, self._granularity, self._power, self._low, self._high),
            row(ipywidgets.Label("ranges by"), *self._methods.values(), self._percentile),
            row(self._undo, self._redo, self._reset, self._compare, self._show_code),
            self._code,
            self._measured,
        )
        self.observe(lambda _: self._opened(), "tensor")
        self.tensor = first

    def _release(self) -> None:
        super()._release()
        self._channels.clear()

    def _build(self, names: list[str]) -> None:
        narrow = ipywidgets.Layout(width="100px")
        self.plot = RangePlot()
        self.plot.on_msg(self._gesture)
        self.strip = ChannelStrip()
        self.strip.layout.display = "none"
        self.strip.observe(self._picked, "selected")
        self._tensors = ipywidgets.Dropdown(
            options=names, description="tensor", layout=ipywidgets.Layout(width="min(420px, 100%)")
        )
        ipywidgets.link((self, "tensor"), (self._tensors, "value"), (lambda t: t or names[0], lambda t: t))
        self._counts = _toggle(["log", "linear"], "counts", ("Logarithmic axis of counts", "Linear axis of counts"))
        self._zoom = _toggle(
            ["all values", "the range"], "show", ("Everything that was observed", "The range and a tenth around")
        )
        snug = {"description_width": "initial"}
        self._bits = ipywidgets.BoundedIntText(8, min=2, max=16, description="bits", layout=narrow, style=snug)
        self._rule = ipywidgets.Dropdown(
            options=["affine", "symmetric"], description="grid", layout=ipywidgets.Layout(width="150px"), style=snug
        )
        ticked = ipywidgets.Layout(width="120px")
        self._granularity = ipywidgets.Checkbox(description="per channel", indent=False, layout=ticked)
        self._power = ipywidgets.Checkbox(description="power of two", indent=False, layout=ticked)
        wide = ipywidgets.Layout(width="170px")
        self._low = ipywidgets.FloatText(description="from", continuous_update=False, layout=wide, style=snug)
        self._high = ipywidgets.FloatText(description="to", continuous_update=False, layout=wide, style=snug)
        self._methods = {method: button(method, f"The range by {method}") for method in METHODS}
        for method, knob in self._methods.items():
            knob.on_click(lambda _, m=method: self._pressed(partial(self.choose, m)))
        self._percentile = ipywidgets.BoundedFloatText(
            99.99, min=50.01, max=100.0, step=0.01, description="percentile", layout=wide, style=snug
        )
        self._undo = button("undo", "The plan before (not the page's undo)", icon="undo")
        self._redo = button("redo", "The plan that was undone", icon="repeat")
        self._reset = button("reset", "The plan that the study came with; can be undone", icon="refresh")
        self._undo.on_click(lambda _: self._pressed(self.undo))
        self._redo.on_click(lambda _: self._pressed(self.redo))
        self._reset.on_click(lambda _: self._pressed(self.reset))
        self._compare = ipywidgets.ToggleButton(
            description="compare",
            tooltip="Show the plan before beside this one",
            icon="columns",
            layout=ipywidgets.Layout(width="auto"),
        )
        self._show_code = ipywidgets.ToggleButton(
            description="copy as code", tooltip="Python that makes this plan", icon="code", layout=ipywidgets.Layout(width="auto")
        )
        self._code = CodeBox()
        self._measured = ipywidgets.HTML()
        for control in (self._bits, self._rule, self._granularity, self._power):
            control.observe(lambda change: None if self._quiet else self._ruled(change), "value")
        for field in (self._low, self._high):
            field.observe(lambda change: None if self._quiet else self._typed(change), "value")
        self._percentile.observe(lambda _: self._pressed(self._mark), "value")
        self._counts.observe(lambda _: self._pressed(self._redrawn), "value")
        self._zoom.observe(lambda _: self._pressed(self._redrawn), "value")
        self._compare.observe(lambda _: self._pressed(self._compared), "value")
        self._show_code.observe(lambda _: self._pressed(self._present), "value")

    @traitlets.validate("tensor")
    def _known(self, proposal: Any) -> str:
        self._check_open()
        self.plan[proposal["value"]]
        return str(proposal["value"])

    # what it holds

    @property
    def plan(self) -> Plan:
        """The plan as edited."""
        return self.history.plan

    @property
    def study(self) -> Study:
        """A study with the edited plan."""
        return self._origin.with_plan(self.plan)

    @property
    def grid(self) -> Grid:
        """The tensor's grid in the edited plan."""
        return self.plan[self.tensor]

    @property
    def code(self) -> str:
        """Python that makes the edited plan from ``study``."""
        return self.history.code()

    @property
    def figures(self) -> Figures:
        """Figures of the current range, all channels together.

        Raises
        ------
        QkitError
            While the channels of an activation are still being counted, see `wait`.
        """
        if not self._ready(self.grid.params):
            raise QkitError(f"the channels of {self.tensor} are being counted: tuner.wait() until they are.")
        return figures(self._histograms(self.grid.params), self.grid.params)

    @property
    def effect(self) -> Effect | None:
        """What the current plan does to layer, output and score; None until it is measured."""
        return self._effects.get((self.tensor, self.plan))

    @property
    def channel(self) -> int | None:
        """The channel whose range the handles move; None for a grid per tensor."""
        return None if self.grid.params.axis is None else int(self.strip.selected)

    # what one can do with it

    def set_range(self, lo: float, hi: float) -> None:
        """Give the tensor, or the chosen channel, that range."""
        self._take(self._ranged(lo, hi))

    def set_rule(self, **changes: object) -> None:
        """Change the rule of the tensor's grid: ``bits``, ``symmetric``, ``per_channel``, ``power_of_two``; the range stays."""
        params = self.grid.params
        per_channel = bool(changes.get("per_channel", params.axis is not None or self._wanted is not None))
        spec = rule_of(self.grid, **{**changes, "per_channel": per_channel})
        self._wanted = None
        low, high = params.lo, params.hi
        if self.grid.spec.symmetric and bool((low < 0).all()):
            low = -high  # the one code more below 0 is the rule's, not the range's: else it would grow with every change of bits
        if per_channel == (params.axis is not None):
            self._take(self.plan.with_range(self.tensor, low, high, spec=spec))
        elif per_channel:
            if self._axis() is None:
                raise PlanError(f"{self.tensor} has no channel axis: its grid is per tensor.")
            self._wanted = spec
            self._need_channels(self._per_channel)
        else:
            self._take(self.plan.with_range(self.tensor, low.min(), high.max(), spec=spec))

    def choose(self, method: str) -> None:
        """The range that a calibration method chooses.

        Raises
        ------
        PlanError
            If the method is not defined for this rule.
        """
        found = suggestions(self._origin, self.tensor, self.grid.spec, self._percentile.value)
        if method not in found:
            raise PlanError(f"{method} is not defined for the grid of {self.tensor}; there are {', '.join(found)}.")
        self._take(self.plan.with_grid(self.tensor, found[method]))

    def undo(self) -> None:
        """The plan before."""
        self._go(self.history.undone())

    def redo(self) -> None:
        """The plan that was undone."""
        self._go(self.history.redone())

    def reset(self) -> None:
        """The plan that the study came with."""
        self._take(self.history.base)

    def take(self, plan: Plan) -> None:
        """Another plan as the current one, as one step that can be undone."""
        self._take(plan)

    # from the front end

    @shown
    def _ruled(self, _: Any) -> None:
        try:
            self.set_rule(
                bits=self._bits.value,
                symmetric=self._rule.value == "symmetric",
                per_channel=self._granularity.value,
                power_of_two=self._power.value,
            )
        finally:
            self._show_rule()

    @shown
    def _typed(self, change: Any) -> None:
        # the other end as it is, not as its field rounds it
        end, params = "lo" if change["owner"] is self._low else "hi", self._shown(self.grid.params)
        value = float(change["new"])
        low, high = (value, float(params.hi)) if end == "lo" else (float(params.lo), value)
        if low <= 0.0 <= high:
            low, high = self._moved(end, value, params)
        try:
            self.set_range(low, high)
        finally:
            self._show_rule()

    @shown
    def _picked(self, _: Any) -> None:
        if self.grid.params.axis is not None and self._ready(self.grid.params):
            self._redrawn()

    @shown
    def _gesture(self, _: Any, message: dict[str, Any], __: Any) -> None:
        event, end, value = message.get("event"), message.get("end"), message.get("value")
        if not isinstance(message.get("seq"), int):
            message = {**message, "seq": 0}
        if event not in ("drag", "release") or end not in ("lo", "hi") or not isinstance(value, (int, float)):
            answer(self.plot, {"event": "refused", "seq": message["seq"]})
            raise QkitError(f"the page sent a gesture that is none: {message!r}; load the page again.")
        if not self._ready(self.grid.params):
            answer(self.plot, {"event": "refused", "seq": message["seq"]})
            raise QkitError(f"the channels of {self.tensor} are being counted: wait until their ranges are there.")
        shown_now = self._shown(self.grid.params)
        lo, hi = self._moved(end, float(value), shown_now)
        plan = self._ranged(lo, hi)
        params = plan[self.tensor].params
        reply = {"event": "figures", "seq": message["seq"], "released": event == "release"}
        answer(self.plot, {**reply, "grid": _drawn(self._shown(params)), "figures": self._rows(params)})
        if event == "release":
            self._take(plan)
        elif self.worker.what == _SCORING:
            self.worker.cancel()  # the score of a range that is being left would only hold the next one up

    def _moved(self, end: str, value: float, params: QuantParams) -> tuple[float, float]:
        histogram = self._histogram()
        least = 2.0**-12 * (max(abs(histogram.min), abs(histogram.max)) or 1.0)
        return moved_end(self.grid.spec, end, value, float(params.lo), float(params.hi), least=least)

    # the state

    def _ranged(self, lo: float, hi: float) -> Plan:
        params = self.grid.params
        if params.axis is None:
            return self.plan.with_range(self.tensor, lo, hi)
        low, high = params.lo.clone(), params.hi.clone()
        low[self.strip.selected], high[self.strip.selected] = lo, hi
        return self.plan.with_range(self.tensor, low, high)

    def _take(self, plan: Plan) -> None:
        self._go(self.history.then(plan))

    def _go(self, history: History) -> None:
        with STATE:
            self._check_open()
            before, self.history = self.history, history
            if history.plan is not before.plan:
                self._previous = before.plan
                self._redrawn()
                self.edits += 1
                self.changed()
            self._measure_edited()

    def _opened(self) -> None:
        self._wanted = None
        self._previous = None
        self.strip.selected = 0
        self._measured.value = _HINT
        self._redrawn()

    def _redrawn(self) -> None:
        """Everything anew: another tensor, rule, channel or view."""
        if not self._ready(self.grid.params):
            self._need_channels(self._counted)
            return
        params = self._shown(self.grid.params)
        histogram = self._histogram()
        lo, hi = float(params.lo), float(params.hi)
        around = 0.1 * (hi - lo) or 1.0
        view = (min(lo, histogram.min), max(hi, histogram.max)) if self._zoom.value == "all values" else (lo, hi)
        if self._zoom.value == "all values":
            around = 0.03 * (view[1] - view[0]) or 1.0
        left, right = view[0] - around, view[1] + around
        counts, _ = histogram.linear(BARS, left, right)
        channel = "" if self.channel is None else f", channel {self.channel}"
        with self.plot.hold_sync():
            self.plot.counts = counts.astype(np.float32).tobytes()
            self.plot.view = [left, right]
            self.plot.log = self._counts.value == "log"
            self.plot.extremes = [min(histogram.min, 0.0), max(histogram.max, 0.0)]
            self.plot.axis = f"{self.tensor}{channel}: float value"
        self._mark()
        self._present()

    def _mark(self) -> None:
        """The ranges of the methods on the axis."""
        found = suggestions(self._origin, self.tensor, self.grid.spec, self._percentile.value)
        for method, knob in self._methods.items():
            knob.disabled = method not in found
            knob.tooltip = f"The range by {method}" if method in found else f"{method} is not defined for this grid"
        marks: list[dict[str, Any]] = []
        for method, grid in found.items():
            params = self._shown(grid.params)
            ends = {"lo": float(params.lo), "hi": float(params.hi)}
            same = next((mark for mark in marks if (mark["lo"], mark["hi"]) == (ends["lo"], ends["hi"])), None)
            if same is not None:
                same["label"] += f", {method}"
            else:
                marks.append({"label": method, "row": len(marks), **ends})
        self.plot.marks, self.plot.mark_rows = marks, max(len(marks), 1)

    def _present(self) -> None:
        """Grid, figures and buttons as the current plan has them."""
        params = self._shown(self.grid.params)
        previous = self._before()
        with self.plot.hold_sync():
            self.plot.grid = _drawn(params)
            self.plot.stride = float(params.scale)
            self.plot.figures = self._rows(self.grid.params)
            self.plot.ghost = {} if previous is None else _drawn(self._shown(previous))
        self.strip.layout.display = "none" if self.channel is None else ""
        if self.channel is not None:
            self.strip.show_grids(self._histograms(self.grid.params), self.grid.params)
        self._undo.disabled, self._redo.disabled = not self.history.can_undo, not self.history.can_redo
        self._reset.disabled = self.plan == self.history.base
        self._code.layout.display = "" if self._show_code.value else "none"
        self._code.code = self.code
        self._show_rule()

    def _show_rule(self) -> None:
        """The controls as the grid has it, without taking that for the user's hand."""
        spec, params = self._wanted or self.grid.spec, self._shown(self.grid.params)
        with self._quietly():
            self._bits.value, self._power.value = spec.bits, spec.power_of_two
            self._rule.value = "symmetric" if spec.symmetric else "affine"
            self._granularity.value = self.grid.params.axis is not None or self._wanted is not None
            self._low.value, self._high.value = (float(f"{float(end):.6g}") for end in (params.lo, params.hi))

    def _compared(self) -> None:
        self._present()
        self._show_effect()

    def _rows(self, params: QuantParams) -> list[list[str]]:
        """Figures for the table: of the chosen channel where every channel has a grid."""
        previous = self._before()
        return figure_rows(self._figures(params), None if previous is None else self._figures(previous))

    def _figures(self, params: QuantParams) -> Figures:
        return figures([self._histogram()], self._shown(params))

    def _before(self) -> QuantParams | None:
        """The grid before the last change, to compare with; None where it is of another kind."""
        if not self._compare.value or self._previous is None:
            return None
        params = self._previous[self.tensor].params
        return params if params.axis == self.grid.params.axis else None

    # histograms

    @property
    def _weight(self) -> bool:
        return self.grid.weight

    def _axis(self) -> int | None:
        op = self._origin.graph.operation(self.tensor)
        return op.weight_axis if self._weight else op.channel_axis

    def _ready(self, params: QuantParams) -> bool:
        return params.axis is None or self._weight or self.tensor in self._channels

    def _histograms(self, params: QuantParams) -> list[Histogram]:
        if self.tensor not in self._channels and self._weight:
            weight, axis = self._origin.graph.weights[self.tensor], self._axis()
            self._channels[self.tensor] = Histogram.of_channels(weight, axis)
        if params.axis is not None:
            return self._channels[self.tensor]
        if self._weight:
            return [Histogram.merge(self._channels[self.tensor])]
        return [self._origin.observe(progress=False)[self.tensor].histogram]

    def _histogram(self) -> Histogram:
        """Of the tensor, or of the chosen channel."""
        return self._histograms(self.grid.params)[self.channel or 0]

    def _shown(self, params: QuantParams) -> QuantParams:
        """The grid of the tensor, or of the chosen channel."""
        if params.axis is None:
            return params
        chosen = int(self.strip.selected)
        return QuantParams(params.scale[chosen].clone(), params.zero_point[chosen].clone(), params.qmin, params.qmax)

    def _counted(self) -> None:
        self._redrawn()
        self._measure_edited()

    def _measure_edited(self) -> None:
        if self.history.at or self.history.can_redo:
            self._measure()

    def _need_channels(self, then: Any) -> None:
        """Count per channel first, which takes a pass over the calibration data, once a tensor."""
        if self._weight or self.tensor in self._channels:
            self._histograms(self.grid.params)
            then()
            return
        name, study = self.tensor, self._origin

        def keep(found: list[Histogram]) -> None:
            self._channels[name] = found
            self.clear_error()
            if self.tensor == name:
                then()
            else:
                self._measure_edited()

        self.work(_COUNTING, partial(observe_channels, study.graph, study.calibration, name), keep)

    def _per_channel(self) -> None:
        spec, self._wanted = self._wanted, None
        if spec is None:
            return
        seen = self._channels[self.tensor]
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in ([h.min for h in seen], [h.max for h in seen]))
        self._take(self.plan.with_range(self.tensor, low, high, spec=spec, axis=self._axis()))

    # what it does to the network

    def stopped(self, what: str) -> None:
        """Cancelled, by hand or because the handle moves on: of a score that needs no notice."""
        if what == _SCORING:
            self._without_result()
            return
        super().stopped(what)
        self._wanted = None
        self._show_rule()

    def _without_result(self) -> None:
        if self._measured.value == _MEASURING:
            self._measured.value = _HINT

    def _measure(self) -> None:
        plan, origin, tensor, limit = self.plan, self._origin, self.tensor, self.batches
        todo = [p for p in dict.fromkeys((self.history.base, plan)) if (tensor, p) not in self._effects]
        if not todo:
            self._show_effect()
            return
        if self.worker.what == _COUNTING:
            return  # what is being counted for is measured when it is done

        def run() -> dict[tuple[str, Plan], Effect]:
            return {(tensor, p): origin.effect(tensor, p, batches=limit) for p in todo}

        def keep(found: dict[tuple[str, Plan], Effect]) -> None:
            self._effects |= found
            self._show_effect()

        self._measured.value = _MEASURING
        self.work(_SCORING, run, keep)

    def _show_effect(self) -> None:
        now, base = self.effect, self._effects.get((self.tensor, self.history.base))
        if now is None or base is None:
            return
        before = None if self._previous is None else self._effects.get((self.tensor, self._previous))
        shown_effects = {
            "now": now,
            **({"before": before} if before is not None and self._compare.value else {}),
            "as opened": base,
        }
        metric, units = metric_label(self._origin.metric_name), self._origin.metric.units
        rows = [
            ["layer alone (SQNR)", *(f"{decibels(e.local)} dB" for e in shown_effects.values())],
            ["layer, accumulated", *(f"{decibels(e.layer)} dB" for e in shown_effects.values())],
            ["output", *(f"{decibels(e.output)} dB" for e in shown_effects.values())],
            [metric, *(score_words(mean_interval(e.scores), units) for e in shown_effects.values())],
        ]
        change: Interval = paired_interval(now.scores, base.scores)
        text = f"Against the plan as opened: {change_words(change, units)}, paired, on {change.n} evaluation samples."
        self._measured.value = facts(rows, ["", *shown_effects]) + f'<div class="qkit-note">{text}</div>'

    # where there is no front end

    def draw(self, figure: Figure) -> None:
        """The histogram with its grid, as in reports."""
        if not self._ready(self.grid.params):
            ax = figure.add_subplot()
            ax.text(0.5, 0.5, "the channels are being counted", ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            return
        histogram, params = self._histogram(), self._shown(self.grid.params)
        entry = {"histogram": describe_histogram(histogram, params), "grid": describe_grid(Grid(self.grid.spec, params, ""))}
        ax = draw_histogram(entry, ax=figure.add_subplot())
        ax.set_xlabel(self.plot.axis)
        ax.set_ylabel("elements (log)")

    def summary(self) -> pd.DataFrame:
        """The figures of the range."""
        grid = self.grid.params
        rows = {name: value for name, value, *_ in figure_rows(self.figures)} if self._ready(grid) else {}
        ends = {"from": float(grid.lo.min()), "to": float(grid.hi.max()), "bits": grid.bits}
        return pd.DataFrame({self.tensor: {**{k: f"{v:.6g}" for k, v in ends.items()}, **rows}})

    def brief(self) -> str:
        """The tensor, its range, and how often it was edited."""
        low, high = float(self.grid.params.lo.min()), float(self.grid.params.hi.max())
        return f"{self.tensor}: {low:.6g} to {high:.6g}, {self.history.at} edits"


def _toggle(options: list[str], description: str, tooltips: tuple[str, ...]) -> ipywidgets.ToggleButtons:
    return ipywidgets.ToggleButtons(
        options=options, description=description, tooltips=tooltips, style={"button_width": "auto", "description_width": "auto"}
    )


def _drawn(params: QuantParams) -> dict[str, Any]:
    """A per-tensor grid as the page needs it; the zero point shifts codes, not positions."""
    ends = {"lo": float(params.lo), "hi": float(params.hi)}
    return {**ends, "scale": float(params.scale), "codes": params.qmax - params.qmin + 1}


def batches_for(study: Study, samples: int) -> int | None:
    """Batches of the evaluation data that hold about so many samples; None for all."""
    first = next(iter(batches_of(study.evaluation)))
    return max(1, -(-samples // first.size))


def _noisiest(study: Study) -> str:
    """The activation whose own range has the least signal to noise ratio on the calibration data, else the first tensor."""
    seen = study.observe(progress=False)
    ratios = {
        name: seen[name].histogram.error(grid.params).sqnr
        for name, grid in study.plan.grids.items()
        if not grid.weight and grid.params.axis is None and name in seen
    }
    return min(ratios, key=ratios.__getitem__) if ratios else next(iter(study.plan.grids))
