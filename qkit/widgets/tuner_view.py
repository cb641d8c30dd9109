"""What the tuner shows: the drawing, its figures and controls as the current plan has them, and a picture and a table of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from qkit.errors import QkitError
from qkit.execution.editing import Figures, figures, rule_of, suggestions
from qkit.execution.edits import History
from qkit.execution.layer_errors import ChannelErrors, LayerSample, few_inputs, layer_sample
from qkit.figures.entries import describe_grid, describe_histogram
from qkit.figures.tensors import histogram as draw_histogram
from qkit.quant.grids import QuantParams
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid, Plan
from qkit.widgets import tuner_page as page
from qkit.widgets.counted import Counted, channel_extremes
from qkit.widgets.live import Live
from qkit.widgets.measured import Measured
from qkit.widgets.numbers import figure_rows
from qkit.widgets.tuner_page import TunerPage, channel_of, grid_drawn

if TYPE_CHECKING:
    from qkit.study import Study


class TunerView(Live, TunerPage):
    """The state of a tuner, and how it shows; `Tuner` changes it."""

    most_rows = 20
    history: History

    def _start(self, study: Study) -> None:
        """Before the widget is made."""
        self._given = study
        self.history = History((study.plan,))
        self._counted, self._measured = Counted(), Measured()
        self._sample: tuple[str, LayerSample] | None = None
        self._old: tuple[Plan, str, ChannelErrors] | None = None
        self._inputs = few_inputs(study.graph, study.evaluation)
        self._previous: Plan | None = None
        self._wanted: dict[str, object] | None = None  # the rule that channels are being counted for
        self._begin()

    def _release(self) -> None:
        super()._release()
        self._counted.clear()
        self.history = replace(self.history, edits=())  # they hold the study; their code has been written
        self._sample, self._old, self._inputs = None, None, ()
        for part in (self, self.layout):
            part.unobserve_all()
        TunerPage.close(self)
        self.layout.close()

    def __del__(self) -> None:
        """Nothing is left to do: ipywidgets holds on to it until it is closed."""

    # what it holds

    @property
    def plan(self) -> Plan:
        """The plan as edited."""
        return self.history.plan

    @property
    def grid(self) -> Grid:
        """The shown tensor's grid in the edited plan."""
        return self.plan[self.tensor]

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
    def output(self) -> ChannelErrors:
        """What the output of the shown tensor's layer suffers, channel by channel, on a few samples."""
        return self._layer().errors(self.plan)

    @property
    def channel(self) -> int | None:
        """The channel whose range the handles move; None for a grid per tensor."""
        return None if self.grid.params.axis is None else int(self.selected)

    def _count(self) -> None:
        """The channels of the tensor have to be counted before it can be drawn."""
        raise NotImplementedError

    # what is drawn

    def _redrawn(self) -> None:
        """Everything anew: another tensor, rule, channel or view."""
        if not self._ready(self.grid.params):
            self._count()
            return
        params = self._shown(self.grid.params)
        channel = "" if self.channel is None else f", channel {self.channel}"
        with self.hold_sync():
            self.axis = f"{self.tensor}{channel}: float value"
            for name, value in page.bars(self._histogram(), params, zoomed=self.zoomed).items():
                setattr(self, name, value)
            self._mark()
            self._present()

    def _mark(self) -> None:
        """The ranges of the methods on the axis."""
        found = suggestions(self._origin, self.tensor, self.grid.spec, self.percentile)
        self.methods = page.method_choices(found)
        rows = page.marks(found, self.selected)
        self.marks, self.mark_rows = rows, max(len(rows), 1)

    def _present(self) -> None:
        """Grid, figures and buttons as the current plan has them."""
        params, before = self._shown(self.grid.params), self._before()
        errors = self.output
        self.grid_drawn = grid_drawn(params)
        self.stride = float(params.scale)
        self.ghost = {} if before is None else grid_drawn(self._shown(before[self.tensor].params))
        self.figure_rows = self._rows(self.grid.params, errors, before)
        low, high = channel_extremes(self._origin, self.tensor)
        several = len(low) > 1
        self.ranges = page.strip_ranges(low, high, self.grid.params) if several else b""
        fits = errors.channels == len(low)
        self.ratios = errors.by_channel.astype(np.float32).tobytes() if several and fits else b""
        self.strip_title = f"{self.tensor}: output channels" if self.grid.weight else f"{self.tensor}: channels"
        history = self.history
        self.can = {"undo": history.can_undo, "redo": history.can_redo, "reset": self.plan != history.base}
        self.code = history.code()
        self._show_rule()
        self._show_effect()

    def _show_rule(self) -> None:
        """The controls as the grid has it, or is about to have it."""
        if self.closed:
            return
        spec = self.grid.spec if self._wanted is None else rule_of(self.grid, **self._wanted)
        per_channel = self.grid.params.axis is not None or self._wanted is not None
        self.rule = page.rule_shown(spec, self._shown(self.grid.params), per_channel=per_channel, method=self.grid.method)

    def _rows(self, params: QuantParams, output: ChannelErrors | None, before: Plan | None) -> list[list[str]]:
        """Figures for the table: of the chosen channel where every channel has a grid."""
        now = figures([self._histogram()], self._shown(params))
        if before is None or before[self.tensor].params.axis != params.axis:
            return figure_rows(now, output=output)
        old = figures([self._histogram()], self._shown(before[self.tensor].params))
        return figure_rows(now, old, output=output, output_before=self._errors_of(before))

    def _before(self) -> Plan | None:
        """The plan before the last change, to compare with; None where the tensor's grid is of another kind there."""
        if self._previous is None or self._previous == self.plan or self.tensor not in self._previous.grids:
            return None
        return self._previous if self._previous[self.tensor].params.axis == self.grid.params.axis else None

    # tensors

    def _layer(self) -> LayerSample:
        if self._sample is None or self._sample[0] != self.tensor:
            self._sample = self.tensor, layer_sample(self._origin.graph, self._inputs, self.tensor)
        return self._sample[1]

    def _errors_of(self, plan: Plan) -> ChannelErrors:
        """What a plan that was there before does to the layer: the same again and again while a handle moves."""
        if self._old is None or self._old[0] is not plan or self._old[1] != self.tensor:
            self._old = plan, self.tensor, self._layer().errors(plan)
        return self._old[2]

    def _ready(self, params: QuantParams) -> bool:
        return params.axis is None or self._counted.has(self._origin, self.tensor)

    def _histograms(self, params: QuantParams) -> list[Histogram]:
        return self._counted.of(self._origin, self.tensor, params)

    def _histogram(self) -> Histogram:
        """Of the tensor, or of the chosen channel."""
        return self._histograms(self.grid.params)[self.channel or 0]

    def _shown(self, params: QuantParams) -> QuantParams:
        """The grid of the tensor, or of the chosen channel."""
        return channel_of(params, int(self.selected))

    # what it says

    def _say_error(self, words: str) -> None:
        self.error_words = words

    def _say_notice(self, words: str) -> None:
        self.notice_words = words

    def _say_progress(self, text: str, share: float | None) -> None:
        self.doing, self.share_done = text, share or 0.0

    @property
    def error(self) -> str:
        """The error that is shown, as HTML; "" for none."""
        return str(self.error_words)

    @property
    def notice(self) -> str:
        """What is said beside errors, as HTML; "" for nothing."""
        return str(self.notice_words)

    # where there is no front end

    def draw(self, figure: Figure) -> None:
        """The histogram with its grid, as in reports, under the score."""
        ax = figure.add_subplot()
        if not self._ready(self.grid.params):
            ax.text(0.5, 0.5, "the channels are being counted", ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            return
        histogram, params = self._histogram(), self._shown(self.grid.params)
        entry = {"histogram": describe_histogram(histogram, params), "grid": describe_grid(Grid(self.grid.spec, params, ""))}
        draw_histogram(entry, ax=ax)
        ax.set_xlabel(self.axis)
        ax.set_ylabel("elements (log)")
        if words := self._score_words():
            ax.set_title(f"{self.score['metric']} {words}", loc="left", fontsize=9)

    def _score_words(self) -> str:
        """The measured score beside those that it is compared with; "" while it is not measured."""
        score = self.score
        if not score["now"]:
            return ""
        others = "; ".join(f"{name} {words.split(' [')[0]}" for name, words, _ in score["lines"])
        return f"{score['now']} {score['interval']} ({others})"

    def summary(self) -> pd.DataFrame:
        """The range, its figures, and what was measured of it."""
        grid = self.grid.params
        rows = {}
        if self._ready(grid):
            rows = {name: value for name, value, *_ in figure_rows(self.figures, output=self.output)}
        rows |= {f"{name} (measured)": words for name, words, *_ in self.measured_rows if words}
        if words := self._score_words():
            rows[self.score["metric"]] = words
        ends = {"from": float(grid.lo.min()), "to": float(grid.hi.max()), "bits": grid.bits}
        return pd.DataFrame({self.tensor: {**{k: f"{v:.6g}" for k, v in ends.items()}, **rows}})

    def brief(self) -> str:
        """The tensor, its range, and how often it was edited."""
        low, high = float(self.grid.params.lo.min()), float(self.grid.params.hi.max())
        others = f" and {len(self.group) - 1} more" if self.group else ""
        return f"{self.tensor}{others}: {low:.6g} to {high:.6g}, {self.history.at} edits"
