"""The calibration panel: method, percentile, batches and granularity, what each choice does to the ranges and to the score."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qkit.errors import PlanError
from qkit.execution.editing import figures
from qkit.execution.layer_errors import ChannelErrors, few_inputs, grid_errors
from qkit.execution.loading import batches as batches_of
from qkit.execution.metrics import metric_label
from qkit.execution.scores import Scores
from qkit.execution.tensors import tensor_classes
from qkit.quant.estimators import METHODS, Observation, check_method
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid, Plan
from qkit.quant.schemes import Scheme
from qkit.style import NARROW_COLOUR, OTHER, decibels, number, share
from qkit.widgets.layer_chart import Column, LayerTable, Line
from qkit.widgets.numbers import change_words, facts, score_words
from qkit.widgets.panel import Panel, button, row, shown
from qkit.widgets.tuner import SAMPLES, batches_for

if TYPE_CHECKING:
    from qkit.study import Study

_SAME = "as above"
_SCHEME = "as the scheme"
_WORST = "SQNR of the output channel that suffers most from this range alone, on a few samples, in dB"
_MEDIAN = "SQNR of the median output channel under this range alone, on a few samples, in dB"
_GRAINS = ("per tensor", "per channel")


def _channels(errors: ChannelErrors | None) -> tuple[float, float, int | None]:
    """Worst and median channel, and channels that round to 0; nothing of a tensor that no batch reached."""
    return (math.nan, math.nan, None) if errors is None else (errors.worst, errors.median, errors.lost)


class CalibrationPanel(Panel):
    """Choose how ranges are estimated, and compare with the plan that the study came with.

    The study stays as it is; `plan` and `study` are the chosen ones.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    batches
        Evaluation batches to score on; by default those that hold about 256 samples.
    """

    def __init__(self, study: Study, *, batches: int | None = None) -> None:
        self._given = self._chosen = study
        self.batches = batches_for(study, SAMPLES) if batches is None else batches
        self._base = study.plan
        self._edited = study.with_calibration().plan != self._base
        self._weights: dict[str, list[Histogram]] = {}
        self._inputs = few_inputs(study.graph, study.evaluation)
        self._suffering: dict[Plan, Mapping[str, ChannelErrors]] = {}
        self.scores: Scores | None = None
        self.comparison: pd.DataFrame | None = None
        # the tensors that their layers suffer most from stand on top
        self.table = LayerTable(noun="tensor", sort_by="worst channel", descending=False)
        self._build(study)
        super().__init__(
            row(self._method, self._weight_method, self._percentile, self._count),
            self._by_class,
            row(self._score, self._compare, self._reset),
            self._said,
            self._compared,
            row(self._part),
            self.table,
        )
        self._show()

    def _release(self) -> None:
        super()._release()
        self._plan = self._chosen.plan
        del self._chosen
        self._weights.clear()
        self._inputs = ()
        self._suffering.clear()

    def _build(self, study: Study) -> None:
        wide = ipywidgets.Layout(width="230px")
        settings = study.methods or {"method": "mse", "weight_method": "minmax", "percentile": 99.99}
        self._method = ipywidgets.Dropdown(options=METHODS, value=settings["method"], description="activations", layout=wide)
        self._weight_method = ipywidgets.Dropdown(
            options=METHODS, value=settings["weight_method"], description="weights", layout=wide
        )
        self._percentile = ipywidgets.BoundedFloatText(
            settings["percentile"],
            min=50.01,
            max=100.0,
            step=0.01,
            description="percentile",
            layout=wide,
            continuous_update=False,
        )
        #: Batches of the calibration data, 0 where the loader does not tell.
        self.total = total = batches_of(study.calibration).__length_hint__()
        self._count = ipywidgets.BoundedIntText(
            total,
            min=min(total, 1),
            max=total or 10**6,
            description=f"batches of {total}" if total else "batches (0: all)",
            layout=wide,
            continuous_update=False,
            style={"description_width": "initial"},
        )
        self.classes = tensor_classes(study.graph, study.plan)
        self.class_controls: dict[str, tuple[ipywidgets.Dropdown, ipywidgets.Dropdown]] = {}
        lines = []
        for name, tensors in self.classes.items():
            method = ipywidgets.Dropdown(options=[_SAME, *METHODS], layout=ipywidgets.Layout(width="160px"))
            grain = ipywidgets.Dropdown(options=[_SCHEME, *_GRAINS], layout=ipywidgets.Layout(width="140px"))
            self.class_controls[name] = method, grain
            label = ipywidgets.Label(f"{name} ({len(tensors)})", layout=ipywidgets.Layout(width="220px"))
            lines.append(row(label, method, grain))
        self._by_class = ipywidgets.Accordion([ipywidgets.VBox(lines)], titles=("method and granularity by kind of tensor",))
        self._score = button("score", "Score of these ranges on the evaluation data, against the plan as opened", icon="bullseye")
        self._compare = button("compare methods", "Every method on the same data, with its score", icon="list")
        self._reset = button("reset", "The choices that the study came with", icon="refresh")
        self._said, self._compared = ipywidgets.HTML(), ipywidgets.HTML()
        self._part = ipywidgets.ToggleButtons(
            options=[("all tensors", ""), ("weights", "weights:"), ("activations", "activations:")],
            style={"button_width": "auto"},
        )
        self._part.observe(lambda change: setattr(self.table, "filter", change.new), "value")
        self._score.on_click(lambda _: self._pressed(self.score))
        self._compare.on_click(lambda _: self._pressed(self.compare))
        self._reset.on_click(lambda _: self._pressed(self.reset))
        self._first = self._taken = {control: control.value for control in self._controls()}
        for control in self._first:
            control.observe(lambda change: None if self._quiet else self._changed_by_hand(change), "value")

    def _controls(self) -> list[Any]:
        pairs = [control for pair in self.class_controls.values() for control in pair]
        return [self._method, self._weight_method, self._percentile, self._count, *pairs]

    @property
    def plan(self) -> Plan:
        """The plan as chosen."""
        return self._plan if self.closed else self._chosen.plan

    @property
    def study(self) -> Study:
        """A study calibrated as chosen."""
        self._check_open()
        return self._chosen

    # what one can do with it

    def choose(
        self,
        *,
        method: str | None = None,
        weight_method: str | None = None,
        percentile: float | None = None,
        batches: int | None = None,
        classes: Mapping[str, tuple[str | None, str | None]] | None = None,
    ) -> None:
        """Set controls from code; the ranges follow in the background, see `wait`.

        Parameters
        ----------
        classes
            By name of a class of tensors: method and granularity ("per tensor", "per channel"), None for the general ones.

        Raises
        ------
        PlanError
            If there is no such class.
        """
        given = (
            (self._method, method),
            (self._weight_method, weight_method),
            (self._percentile, percentile),
            (self._count, batches),
        )
        if batches is not None and self.total and not 1 <= batches <= self.total:
            raise PlanError(f"there are 1 to {self.total} calibration batches to choose from, not {batches}.")
        for how in (method, weight_method, *(how for how, _ in (classes or {}).values())):
            if how is not None:
                check_method(how)
        for name, (_, grain) in (classes or {}).items():
            if name not in self.class_controls:
                raise PlanError(f"there is no class {name!r}; the classes are {', '.join(self.class_controls)}.")
            if grain not in (None, *_GRAINS):
                raise PlanError(f"the granularity of {name} is one of {', '.join(_GRAINS)}, not {grain!r}.")
        with self._quietly():
            for control, value in given:
                if value is not None:
                    control.value = value
            for name, (how, grain) in (classes or {}).items():
                self.class_controls[name][0].value = how or _SAME
                self.class_controls[name][1].value = grain or _SCHEME
        self._recalibrate()

    def score(self) -> None:
        """Score the chosen plan and the one as opened, in the background."""
        plans = {"as opened": self._base, "chosen": self.plan}
        limit, study = self.batches, self._origin
        self.work("scoring", lambda: study.evaluate(plans, batches=limit, progress=False), self._scored)

    def compare(self) -> None:
        """A row for each method, on the same data: least and median SQNR of the ranges, clipped share, score."""
        seen, scheme, limit = self._seen(), self._scheme(), self.batches
        settings, origin = self._settings(), self._origin
        weights = {name: how for name, how in settings["methods"].items() if self._base[name].weight}

        def run() -> tuple[dict[str, Plan], Scores]:
            observed = seen()
            plans: dict[str, Plan] = {}
            for method in METHODS:
                chosen = {**settings, "method": method, "methods": weights}
                plans[method] = origin.with_calibration(scheme=scheme, observed=observed, **chosen).plan
            return plans, origin.evaluate({"as opened": self._base, **plans}, batches=limit, progress=False)

        self.work("comparing methods", run, self._show_comparison)

    def reset(self) -> None:
        """The choices that the study came with."""
        self._set(self._first)
        self.worker.abandon()
        self._take(self._origin)

    # the choices

    def _without_result(self) -> None:
        self._set(self._taken)

    def _set(self, values: Mapping[Any, Any]) -> None:
        with self._quietly():
            for control, value in values.items():
                control.value = value

    @shown
    def _changed_by_hand(self, _: Any) -> None:
        self._recalibrate()

    def _settings(self) -> dict[str, Any]:
        special = dict(self._origin.methods.get("methods") or {})
        for name, (method, _) in self.class_controls.items():
            if method.value != _SAME:
                special |= dict.fromkeys(self.classes[name], method.value)
        return {
            "method": self._method.value,
            "weight_method": self._weight_method.value,
            "percentile": self._percentile.value,
            "methods": special,
        }

    def _scheme(self) -> Scheme:
        scheme = self._origin.scheme
        overrides = dict(scheme.overrides)
        for name, (_, grain) in self.class_controls.items():
            for tensor in self.classes[name] if grain.value != _SCHEME else ():
                spec = scheme.spec(tensor, weight=name.startswith("weights"))
                if spec is not None:
                    overrides[tensor] = replace(spec, per_channel=grain.value == "per channel")
        return scheme if overrides == dict(scheme.overrides) else replace(scheme, overrides=overrides)

    def _seen(self) -> Callable[[], Mapping[str, Observation]]:
        """What makes the observations of so many batches, or hands out those that there are."""
        count, origin = self._count.value, self._origin

        def observed() -> Mapping[str, Observation]:
            if count == self.total:
                return origin.observe(progress=False)
            return origin.evaluator.observe(batches=count, progress=False)

        return observed

    def _recalibrate(self) -> None:
        seen, scheme, settings, origin = self._seen(), self._scheme(), self._settings(), self._origin

        def run() -> Study:
            chosen = origin.with_calibration(scheme=scheme, observed=seen(), **settings)
            self._suffer(chosen.plan)  # here and not on the page's thread
            return chosen

        self.work("choosing ranges", run, self._take)

    def _take(self, study: Study) -> None:
        self._chosen, self.scores = study, None
        self._taken = {control: control.value for control in self._first}
        self._said.value = ""
        self._show()
        self.changed()

    # what they do

    def _histograms(self, name: str, grid: Grid) -> list[Histogram] | None:
        """Of the whole calibration data, whatever the number of batches that the ranges come from; None per channel of a tap."""
        if not grid.weight:
            return None if grid.params.axis is not None else [self._origin.observe(progress=False)[name].histogram]
        if name not in self._weights:
            graph = self._origin.graph
            self._weights[name] = Histogram.of_channels(graph.weights[name], graph.operation(name).weight_axis)
        return self._weights[name] if grid.params.axis is not None else [Histogram.merge(self._weights[name])]

    def _figures(self, name: str, plan: Plan) -> tuple[float, float, float, float]:
        """Ends, SQNR and clipped share of a tensor's range; NaN where channels of a tap were not counted apart."""
        grid = plan[name]
        lo, hi = float(grid.params.lo.min()), float(grid.params.hi.max())
        histograms = self._histograms(name, grid)
        if histograms is None:
            return lo, hi, float("nan"), float("nan")
        found = figures(histograms, grid.params)
        return lo, hi, found.sqnr, found.clipped

    def _suffer(self, plan: Plan) -> Mapping[str, ChannelErrors]:
        """What every grid of a plan does alone to its layer's output, channel by channel."""
        if plan not in self._suffering:
            (self._suffering[plan],) = grid_errors(self._origin.graph, self._inputs, [plan])
        return self._suffering[plan]

    def _show(self) -> None:
        brief = partial(number, digits=4)
        columns = [
            Column("tensor", words=True),
            Column("worst channel", decibels, tip=_WORST),
            Column("worst channel, before", decibels, tip=_WORST),
            Column("median channel", decibels, tip=_MEDIAN),
            Column("median channel, before", decibels, tip=_MEDIAN),
            Column("channels at 0", number, down=True, tip="output channels of a weight that round to 0 as a whole"),
            Column("class", words=True),
            Column("from, before", brief),
            Column("to, before", brief),
            Column("from", brief),
            Column("to", brief),
            Column("width, new by old", partial(number, digits=3), tip="1 where the range is the same"),
            Column("SQNR, before", decibels, tip="of this range's own values on the calibration data, in dB"),
            Column("SQNR", decibels, tip="of this range's own values on the calibration data, in dB"),
            Column("clipped, before", share, down=True),
            Column("clipped", share, down=True),
        ]
        rows = {}
        old, new = self._suffer(self._base), self._suffer(self.plan)
        kinds = {tensor: name for name, tensors in self.classes.items() for tensor in tensors}
        for name in self._base.grids:
            before, now = self._figures(name, self._base), self._figures(name, self.plan)
            width = (now[1] - now[0]) / max(before[1] - before[0], 1e-300)
            channels = [_channels(new.get(name)), _channels(old.get(name))]
            worst, median = ([each[k] for each in channels] for k in (0, 1))
            ends = (*before[:2], *now[:2])
            rows[name] = (
                name, *worst, *median, channels[0][2], kinds[name], *ends, width, before[2], now[2], before[3], now[3],
            )  # fmt: skip
        charts = {
            ("output's channels", "SQNR of the output (dB)"): [
                Line("worst channel, before", "other", "diamond", dash=True),
                Line("worst channel", "narrow", "circle"),
                Line("median channel", "wide", "triangle"),
            ],
            ("SQNR of the range", "SQNR of the range (dB)"): [
                Line("SQNR, before", "other", "diamond", dash=True),
                Line("SQNR", "narrow", "circle"),
            ],
            ("width, new by old", "width of the range, new by old"): [Line("width, new by old", "wide", "circle")],
            ("clipped", "share clipped"): [
                Line("clipped, before", "other", "diamond", dash=True),
                Line("clipped", "narrow", "circle"),
            ],
        }
        self.table.show(columns, rows, charts, limit="worst channel", logarithmic=("width, new by old", "clipped"))
        changed = len(self._base.diff(self.plan))
        lost = " Edits by hand and remedies that it had are not in this one." if changed and self._edited else ""
        self._note(f"{changed} of {len(rows)} ranges differ from the plan as opened.{lost}")

    def _note(self, text: str) -> None:
        self._said.value = f'<span class="qkit-note">{text}</span>'

    def _scored(self, scores: Scores) -> None:
        self.scores = scores
        units = scores.units
        rows = [[name, score_words(scores[name], units)] for name in scores.lanes]
        gain = scores.loss("as opened", against="chosen")
        text = f"Change: {change_words(gain, units)}, paired, on {gain.n} evaluation samples."
        text = " ".join([text, *map(html.escape, scores.notes)])
        self._said.value = facts(rows) + f'<span class="qkit-note">{text}</span>'

    def _show_comparison(self, found: tuple[dict[str, Plan], Scores]) -> None:
        plans, scores = found
        metric, units = metric_label(scores.metric), scores.units
        lines, records = [], {}
        for method, plan in plans.items():
            each = [self._figures(name, plan) for name in plan.grids if not plan[name].weight]
            ratios = np.array([f[2] for f in each])
            clipped = np.array([f[3] for f in each])
            gain, score = scores.loss("as opened", against=method), scores[method]
            finite = ratios[np.isfinite(ratios)]
            least, median = (float(f(finite)) if len(finite) else float("nan") for f in (np.min, np.median))
            most = float(np.nanmax(clipped)) if np.isfinite(clipped).any() else float("nan")
            lines.append(
                [method, decibels(least), decibels(median), share(most), score_words(score, units), change_words(gain, units)]
            )
            records[method] = {
                "least SQNR": least,
                "median SQNR": median,
                "most clipped": most,
                "score": score.value,
                "change": gain.value,
            }
        self.comparison = pd.DataFrame.from_dict(records, orient="index").rename_axis("method")
        heads = ["activations by", "least SQNR (dB)", "median SQNR (dB)", "most clipped", metric, "against the plan as opened"]
        note = f'<span class="qkit-note">{scores[method].n} evaluation samples; the gain is paired.</span>'
        self._compared.value = facts(lines, heads) + note

    # where there is no front end

    def draw(self, figure: Figure) -> None:
        """What the worst channel suffers from every tensor's range, before and now."""
        ax = figure.add_subplot()
        names = list(self._base.grids)
        x = np.arange(1, len(names) + 1)
        for plan, label, colour, style in ((self._base, "before", OTHER, "d--"), (self.plan, "now", NARROW_COLOUR, "o-")):
            errors = self._suffer(plan)
            y = [v if np.isfinite(v) else np.nan for v in (_channels(errors.get(name))[0] for name in names)]
            ax.plot(x, y, style, color=colour, ms=3.5, lw=1.0, label=label)
        ax.set_xlabel("tensor, in the order of execution")
        ax.set_ylabel("SQNR of the worst channel (dB)")
        ax.grid(axis="y")
        ax.legend(ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))

    def summary(self) -> pd.DataFrame:
        """The table of ranges as it reads."""
        return self.table.frame()

    def brief(self) -> str:
        """The method, and how many ranges it changes."""
        return f"{self._method.value}, {len(self._base.diff(self.plan))} of {len(self._base.grids)} ranges changed"
