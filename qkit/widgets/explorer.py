"""The layer explorer: every layer's error and loss, and behind each layer the tensor at fault, its weights and feature maps."""

from __future__ import annotations

import html
from functools import partial
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from qkit.errors import QkitError
from qkit.execution.capture import Capture, TapCapture
from qkit.execution.faults import local_parts, noisiest_tap, tensor_at_fault
from qkit.execution.gradient import GradientRanking
from qkit.execution.sensitivity import Sensitivity
from qkit.figures.plots import depth
from qkit.quant.plan import Plan
from qkit.style import BAD, MUTED
from qkit.widgets.graph_view import GraphView
from qkit.widgets.layer_chart import LayerTable
from qkit.widgets.layer_detail import WeightView, layer_words, split_words
from qkit.widgets.layer_figures import show_figures, show_structure
from qkit.widgets.layer_losses import Losses, known_losses, losses_of
from qkit.widgets.map_view import FeatureMaps
from qkit.widgets.panel import button, row, shown
from qkit.widgets.tuner import Tuner
from qkit.widgets.tuning import TuningPanel
from qkit.widgets.work import Worker

if TYPE_CHECKING:
    from qkit.study import Study

_VIEWS = ("range", "weights per channel", "feature maps", "graph")
_CAPTURING = "capturing"
_ESTIMATING, _MEASURING = "estimating each layer's loss", "measuring each layer alone"


class Explorer(TuningPanel):
    """Look at a network layer by layer.

    It opens the tensor at fault: of the layer that costs most (before that is known, of the one with the lowest local SQNR) the
    weight or the activation, whichever makes more of its local error.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    capture
        What to show; by default float, 16 bits and the study's own lane are captured in the background.
    batches
        Evaluation batches to capture, and to estimate each layer's loss on.
    sensitivity
        Each layer's loss: a sweep "only", or a ranking by gradients. By default what has been measured, else it is estimated
        from gradients in the background.

    Raises
    ------
    QkitError
        If the sensitivity is a sweep "except", which has no loss of a layer.
    """

    selected = traitlets.Unicode()

    def __init__(
        self,
        study: Study,
        *,
        capture: Capture | None = None,
        batches: int = 1,
        sensitivity: Sensitivity | GradientRanking | None = None,
    ) -> None:
        if isinstance(sensitivity, Sensitivity) and sensitivity.mode != "only":
            raise QkitError("a sweep 'except' tells what sparing a layer recovers, not its loss: give one of mode 'only'.")
        self._hold(study)
        self._batches = batches
        self._found: Capture | None = None
        self._captured: Plan | None = None
        self.losses: Losses | None = None if sensitivity is None else losses_of(sensitivity, study.graph)
        self._measuring = self._setting = False
        self._parts: dict[Any, Any] = {}
        self._opened = self._layer = ""
        self._by_hand = False
        self._reports: dict[str, tuple[str, float | None]] = {}
        self._ranker = Worker(partial(self._reported, "loss"), self._not_ranked, lambda _: self._not_ranked(None))
        self._graph: GraphView | None = None
        self._build()
        super().__init__(self._panes)
        # what is waited for is said above what waits for it
        frame, panes, *below = self.trait_values()["children"]
        self.children = [
            frame,
            row(self._again, self._alone, self._working),
            panes,
            *(each for each in below if each is not self._working),
        ]
        self.add_class("qkit-explorer")
        ipywidgets.link((self, "selected"), (self.table, "selected"))
        self.observe(lambda _: self._chosen(), "selected")
        self._view.observe(lambda _: self._chosen(), "value")
        self._tensor.observe(lambda _: self._tensor_chosen(), "value")
        for trait in ("sort_by", "descending", "filter", "chart", "unfolded"):
            self.table.observe(lambda _: self.changed(), trait)
        self._edited()
        if capture is None:
            show_structure(self.table, study.graph)
            self._note.value = '<span class="qkit-note">The figures come with the capture.</span>'
            self.measure()
        else:
            self._show(capture, None)

    def _build(self) -> None:
        self.table = LayerTable()
        self._view = ipywidgets.ToggleButtons(options=_VIEWS, style={"button_width": "auto"})
        self._tensor = ipywidgets.ToggleButtons(options=[], style={"button_width": "auto"})
        self._again = button("measure the edited plan", "Capture again, with the ranges as tuned", icon="refresh")
        self._again.on_click(lambda _: self._pressed(self.measure))
        self._alone = button("measure each layer alone", "Score the network with one layer quantized, for every layer")
        self._alone.layout.display = "none"
        self._alone.on_click(lambda _: self._pressed(self.measure_losses))
        self._note, self._about, self._words = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.HTML()
        self._weights = WeightView()
        self.strip, self._weight_facts, self._tune_weight = self._weights.strip, self._weights.facts, self._weights.tune
        self._tune_weight.on_click(lambda _: self._weight_tuned())
        self.maps = FeatureMaps(self.show_error)
        self._detail = ipywidgets.VBox()
        self._detail.layout.min_height = "60px"
        switches = row(self._view, self._tensor)
        switches.add_class("qkit-switches")
        left, right = ipywidgets.VBox([self.table, self._note]), ipywidgets.VBox([self._about, switches, self._detail])
        self._panes = ipywidgets.Box([left, right])
        self._panes.add_class("qkit-panes")

    def _release(self) -> None:
        self._ranker.close()
        super()._release()
        self._found = None

    @property
    def capture(self) -> Capture | None:
        """What is shown; None until it is captured."""
        self._check_open()
        return self._found

    def _new_tuner(self) -> Tuner:
        tuner = Tuner(self._origin, self._tensor.value)
        tuner.observe(lambda _: self._edited(), "edits")
        return tuner

    # work in the background

    def measure(self) -> None:
        """Capture the current plan in the background."""
        self._measuring = True
        study, plan, count = self.study, self.plan, self._batches
        self.work(_CAPTURING, lambda: study.capture(batches=count, progress=False), lambda found: self._show(found, plan))

    def measure_losses(self) -> None:
        """Score every layer quantized alone, in the background, on all evaluation data.

        Raises
        ------
        QkitError
            If nothing is captured yet, or float alone is.
        """
        plan, study = self._narrow(), self.study
        if plan is None:
            raise QkitError("there is no lane whose layers could be measured: capture one beside float.")
        self._ranker.start(_MEASURING, lambda: study.sensitivity("only", lane=plan, progress=False), self._ranked)

    def wait(self, timeout: float = 600.0) -> None:
        """Block until the work in the background is done, as in a script or a notebook that is run as a whole."""
        super().wait(timeout)
        self._ranker.wait(timeout)
        for inner in (self._graph, self._tuner):
            if inner is not None:
                inner.wait(timeout)

    def cancel(self) -> None:
        """Stop what runs in the background."""
        super().cancel()
        self._ranker.cancel()

    def _progress(self, what: str, share: float | None) -> None:
        self._reported("", what, share)

    def _reported(self, who: str, what: str, share: float | None) -> None:
        """One line for two workers: what is captured, else what the losses do."""
        self._reports[who] = what, share
        super()._progress(*next((each for _, each in sorted(self._reports.items()) if each[0]), ("", None)))

    def _without_result(self) -> None:
        if self._measuring:
            self._measuring = False
            if self.capture is not None:
                self._chosen()

    def _narrow(self) -> Plan | None:
        """The plan of the last lane that was captured."""
        return None if self._found is None else next(reversed(self._found.plans.values()), None)

    def _rank(self) -> None:
        """Each layer's loss: what has been measured, else an estimate in the background."""
        plan, study, count = self._narrow(), self.study, self._batches
        if plan is None or not plan.grids:
            return
        known = known_losses(study, plan)
        if known is not None:
            self._take(known)
            return
        self._ranker.start(
            _ESTIMATING, lambda: study.sensitivity("gradient", lane=plan, batches=count, progress=False), self._ranked
        )

    def _ranked(self, found: Sensitivity | GradientRanking) -> None:
        self._take(losses_of(found, self._origin.graph))

    def _take(self, losses: Losses) -> None:
        self.losses = losses
        self._fill()
        self._open_worst()
        self._chosen()
        self.changed()

    def _not_ranked(self, error: Exception | None) -> None:
        """There is no loss: the rest is shown without it."""
        if error is not None and not isinstance(error, QkitError):
            self.show_error(error)
        why = "stopped" if error is None else str(error)
        self._noted(f"No loss was estimated ({why}): measure each layer alone.")

    # the table

    def select(self, layer: str) -> None:
        """Choose a layer by its tap's name, or one of its tensors.

        Raises
        ------
        GraphError, QkitError
            If there is no such layer, or it has no figures.
        """
        op = self._origin.graph.operation(layer)
        if op.name not in [entry["name"] for entry in self.table.rows]:
            raise QkitError(f"{layer} was not captured: no batch reached it.")
        self.selected = op.name
        if layer == op.weight and layer in [name for _, name in self._tensor.options]:
            self._tensor.value = layer

    def _show(self, capture: Capture, plan: Plan | None) -> None:
        again = self._found is not None
        self._found, self._captured, self._measuring = capture, plan, False
        given = self.losses if not again else None
        self.losses = given
        self._fill()
        self._edited()
        before = self.selected
        self._open_worst()
        if self.selected == before:
            self._chosen()
        if given is None:
            self._rank()
        self.changed()

    def _fill(self) -> None:
        """The table and the note under it, of the capture and the losses as they are."""
        assert self._found is not None
        show_figures(self.table, self._found, self.losses)
        self._parts = local_parts(self._found).to_dict("index") if self._found.plans else {}
        self._alone.layout.display = "" if self._narrow() is not None and not (self.losses and self.losses.measured) else "none"
        self._noted("" if self.losses is None else self.losses.said)

    def _noted(self, about: str) -> None:
        assert self._found is not None
        self._note.value = (
            f'<span class="qkit-note">{self._found.samples} evaluation samples. SQNR: accumulated up to the layer; local: its '
            f"own quantization on float inputs. {html.escape(about)}</span>"
        )

    def _open_worst(self) -> None:
        """The layer that costs most, or else the noisiest one; what somebody has chosen stays."""
        names = [entry["name"] for entry in self.table.rows]
        if self._found is None or (self.selected in names and self.selected != self._opened):
            return
        worst = None if self.losses is None else self.losses.dearest
        if worst is None and self._found.plans:
            worst = noisiest_tap(self._found)
        self._opened = worst if worst is not None and worst in names else names[0]
        self.selected = self._opened

    def _edited(self) -> None:
        stale = self.capture is not None and self.plan != (self._captured or self._origin.plan)
        self._again.layout.display = "" if stale else "none"

    # the chosen layer

    @shown
    def _chosen(self) -> None:
        if not self.selected:
            return
        op = self._origin.graph.operation(self.selected)
        fault = self._fault(op.name)
        said = [layer_words(op, self.losses)]
        if self._found is not None and self._found.plans and op.name in self._found.floats:
            lane = next(reversed(self._found.plans))
            worst = "" if fault is None else "weight" if fault == op.weight else "activation"
            said.append(split_words(self._parts[op.name], lane, worst))
        self._about.value = "".join(said)
        tensors = {"weight": op.weight, "activation": op.name}
        options = [(word, name) for word, name in tensors.items() if name is not None and name in self._origin.plan.grids]
        self._setting = True
        if op.name != self._layer or list(self._tensor.options) != options:
            self._layer = op.name
            self._tensor.options = options
            self._by_hand = False
        if not self._by_hand and options:
            self._tensor.value = fault if fault in dict(options).values() else options[-1][1]
        self._setting = False
        self._tensor.layout.display = "" if self._view.value == "range" and len(options) > 1 else "none"
        show = {
            "range": self._show_range, "weights per channel": self._show_weights, "feature maps": self._show_maps,
            "graph": self._show_graph,
        }  # fmt: skip
        show[self._view.value]()

    def _fault(self, layer: str) -> str | None:
        """The layer's tensor that makes most of its error; None as long as nothing is captured."""
        if self._found is None or not self._found.plans or layer not in self._found.floats:
            return None
        return tensor_at_fault(self._found, layer)

    @shown
    def _tensor_chosen(self) -> None:
        if not self._setting:
            self._by_hand = True
            self._show_range()

    def _show_range(self) -> None:
        name = self._tensor.value
        if name is None:
            self._say("This layer's output has no grid of its own: it shares its input's, or stays in float.")
            return
        if self.tuner.tensor != name:
            self.tuner.tensor = name
        self._detail.children = [self.tuner]

    def _show_weights(self) -> None:
        op = self._origin.graph.operation(self.selected)
        if op.weight is None:
            self._say("This layer has no weight.")
            return
        self._weights.show(self._origin.graph, op, self.plan)
        self._detail.children = [self._weights]

    @shown
    def _weight_tuned(self) -> None:
        op = self._origin.graph.operation(self.selected)
        if op.weight is not None:
            self._view.value = "range"
            self._tensor.value = op.weight

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
        """Accumulated and local SQNR along the depth, over what each layer costs."""
        if self.capture is None:
            ax = figure.add_subplot()
            ax.text(0.5, 0.5, "not captured yet", ha="center", va="center", transform=ax.transAxes)
            ax.set_axis_off()
            return
        names = list(self.capture.table().index)
        losses = self.losses
        ax, *rest = figure.subplots(
            1 + (losses is not None), sharex=True, squeeze=False, height_ratios=(3, 1)[: 1 + bool(losses)]
        )[:, 0]
        depth(self.capture, ax=ax)
        for below in rest:
            assert losses is not None
            below.bar(range(len(names)), [max(losses.by_layer.get(name, 0.0), 0.0) for name in names], 0.8, color=BAD, lw=0)
            below.set_ylabel("loss")
            below.tick_params("x", rotation=90, labelsize=6.5)
        if self.selected in names:
            for each in (ax, *rest):
                each.axvline(names.index(self.selected), color=MUTED, lw=0.8, ls=":")

    def summary(self) -> pd.DataFrame:
        """The table of layers as it reads."""
        return self.table.frame()

    def brief(self) -> str:
        """How many layers it shows, and how many samples their figures are of."""
        what = "not captured yet" if self.capture is None else f"{self.capture.samples} samples"
        return f"{len(self.table.rows)} layers, {what}"
