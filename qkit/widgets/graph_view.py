"""The picture of the network: its operations and blocks, coloured by what quantization does to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import pandas as pd
import traitlets
from matplotlib.figure import Figure

from qkit import files
from qkit.errors import QkitError
from qkit.execution.capture import Capture, TapCapture
from qkit.execution.gradient import GradientRanking
from qkit.execution.sensitivity import Sensitivity
from qkit.figures.network import drawing
from qkit.figures.network.filling import network_of
from qkit.figures.network.layout import Layout, layout
from qkit.figures.network.overlay import overlay
from qkit.figures.network.quantities import Painted, known, paint, paint_difference, paint_pair, quantities
from qkit.quant.plan import Plan
from qkit.style import number
from qkit.widgets.graph_canvas import GraphCanvas
from qkit.widgets.graph_details import block_facts, node_facts, value_pictures
from qkit.widgets.graph_values import WORK, GraphValues, lanes_of
from qkit.widgets.map_view import FeatureMaps
from qkit.widgets.panel import shown
from qkit.widgets.tuning import TuningPanel
from qkit.widgets.work import Worker

if TYPE_CHECKING:
    from qkit.study import Study

#: What can be opened, by action.
ACTIONS = {"range": "tune range", "weight": "tune weight", "maps": "feature maps"}


class GraphView(TuningPanel):
    """Look at the network as a picture.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    lanes
        Names, or plans by name, to colour by and to compare: 16 bits and the study's own lane by default.
    capture
        Errors that are there already, with the lanes that it has; by default they are captured in the background.
    sensitivity, ranking
        What `study.sensitivity` gave for the study's own lane, where it has been measured.
    figure
        What to colour by at first: "propagated", "local", "loss", "gradient", "macs" or "bits".
    batches
        Evaluation batches to capture.

    Raises
    ------
    QkitError
        If there is no such figure or lane.
    """

    selected = traitlets.Unicode()

    def __init__(
        self,
        study: Study,
        *,
        lanes: Sequence[str] | Mapping[str, Plan] | None = None,
        capture: Capture | None = None,
        sensitivity: Sensitivity | None = None,
        ranking: GradientRanking | None = None,
        figure: str = "propagated",
        batches: int | None = 1,
    ) -> None:
        self._hold(study)
        self.network = network_of(study.graph)
        self.quantities = quantities(study.metric.units)
        known(figure, self.quantities)
        names, plans = lanes_of(study, lanes, capture)
        self.values = GraphValues(study, self.network, names, plans, batches)
        self._own = study.narrow if study.narrow in names else names[-1]
        self._keep(capture, sensitivity, ranking)
        self._opened = self.network.first_view()
        self._places: Layout = layout(self.network, self._opened)
        self._openers: list[Callable[[str, str], Any]] = []
        self._maps: FeatureMaps | None = None
        self.canvas = GraphCanvas(figure=figure, lane=self._own)
        self.canvas.show_network(self.network)
        self.canvas.show_choices(self.quantities, names)
        self._detail = ipywidgets.VBox()
        super().__init__(self.canvas, self._detail)
        self._drawer = Worker(lambda *_: None, self.show_error)
        ipywidgets.link((self, "selected"), (self.canvas, "selected"))
        self.canvas.on_msg(self._asked)
        for trait in ("figure", "lane", "other", "beside"):
            self.canvas.observe(self._recoloured, trait)
        self.observe(self._chosen, "selected")
        self._laid_out()
        if self.canvas.missing and figure in WORK and figure != "loss":
            self.measure()

    def _release(self) -> None:
        super()._release()
        self._drawer.close()
        self.values.release()
        self._openers = []

    # what it holds

    @property
    def opened(self) -> frozenset[str]:
        """Keys of the blocks that are open."""
        return self._opened

    def add_lane(self, name: str, plan: Plan) -> None:
        """Another plan to colour by and to compare with, such as the plan as edited.

        Raises
        ------
        QkitError
            If there is a lane of that name already.
        """
        self._check_open()
        if name in self.values.lanes or name == "float":
            raise QkitError(f"there is a lane {name!r} already: choose another name.")
        self.values.lanes.append(name)
        self.values.plans[name] = plan
        self.canvas.lanes = list(self.values.lanes)

    # opening, closing, choosing

    def unfold(self, *blocks: str) -> None:
        """Open blocks, named by their module's path, with those around them; all where none is named."""
        for key in blocks:
            self._check_block(key)
        around = {outer for key in blocks for outer in self.network.around(key)}
        self._reopen(self._opened | around | set(blocks) if blocks else frozenset(self.network.blocks))

    def fold(self, *blocks: str) -> None:
        """Close blocks; all where none is named."""
        for key in blocks:
            self._check_block(key)
        self._reopen(self._opened - set(blocks) if blocks else frozenset())

    def select(self, layer: str) -> None:
        """Choose an operation by its tap's name, a weight, or a block; what is around it opens.

        Raises
        ------
        GraphError, QkitError
            If there is none.
        """
        if layer not in self.network.blocks and layer not in self.network.number:
            layer = self._origin.graph.operation(layer).name
        self._reopen(self._opened | set(self.network.around(layer)))
        self.selected = layer

    def _check_block(self, key: str) -> None:
        if key not in self.network.blocks:
            near = [name for name in self.network.blocks if key in name or name in key][:5] or list(self.network.blocks)[:5]
            raise QkitError(f"there is no block {key!r}; there are {', '.join(near) or 'none'}.")

    def _reopen(self, opened: frozenset[str] | set[str]) -> None:
        if frozenset(opened) != self._opened:
            self._places = layout(self.network, frozenset(opened))
            self._lay_out()
            # last: another thread that sees the blocks open finds their boxes
            self._opened = frozenset(opened)
            self.changed()

    def _lay_out(self) -> None:
        with self.canvas.hold_sync():
            self.canvas.show_layout(self._places)
            self._colour()

    def _laid_out(self) -> None:
        self._lay_out()
        self.changed()

    # colours

    @property
    def painted(self) -> Painted:
        """Colours and texts of the boxes as shown; of two lanes side by side, those of the first."""
        return self._painted()[0]

    def _painted(self) -> tuple[Painted, ...]:
        canvas = self.canvas
        quantity = self.quantities[canvas.figure]
        first = self.values.get(quantity.key, canvas.lane)
        if not canvas.other or not quantity.by_lane:
            return (paint(self._places, self.network, quantity, first),)
        second = self.values.get(quantity.key, canvas.other)
        both = first, second, (canvas.lane, canvas.other)
        if canvas.beside:
            return paint_pair(self._places, self.network, quantity, *both)
        return (paint_difference(self._places, self.network, quantity, *both),)

    def _shown_lanes(self) -> list[str]:
        return [lane for lane in dict.fromkeys((self.canvas.lane, self.canvas.other)) if lane]

    def _colour(self) -> None:
        missing = self.values.missing(self.canvas.figure, self._shown_lanes())
        self.canvas.missing = ", ".join(missing)
        self.canvas.show_colours(*self._painted())

    @shown
    def _recoloured(self, change: Any) -> None:
        allowed: dict[str, Sequence[str]] = {
            "figure": tuple(self.quantities), "lane": self.values.lanes, "other": ["", *self.values.lanes],
        }  # fmt: skip
        if change.name in allowed and change.new not in allowed[change.name]:
            setattr(self.canvas, change.name, change.old)
            raise QkitError(f"{change.name}={change.new!r}: choose one of {', '.join(map(repr, allowed[change.name]))}.")
        with self.canvas.hold_sync():
            self._colour()
        self.changed()

    def colour(self, figure: str, lane: str | None = None, *, against: str = "", beside: bool | None = None) -> None:
        """Colour by a figure of a lane, or by its difference from another lane.

        Parameters
        ----------
        against
            The lane to compare with; "" for none.
        beside
            Show both in each box instead of the difference.

        Raises
        ------
        QkitError
            If there is no such figure or lane.
        """
        self._check_open()
        known(figure, self.quantities)
        for name in (lane, against):
            if name and name not in self.values.lanes:
                raise QkitError(f"there is no lane {name!r} here; there are {', '.join(self.values.lanes)}: see add_lane().")
        with self.canvas.hold_sync():
            self.canvas.figure, self.canvas.other = figure, against
            self.canvas.lane = lane or self.canvas.lane
            self.canvas.beside = self.canvas.beside if beside is None else beside

    # measuring

    def measure(self) -> None:
        """Measure what is missing to colour by the chosen figure, in the background."""
        quantity = self.canvas.figure
        lanes = self.values.missing(quantity, self._shown_lanes())
        if not lanes:
            return
        if quantity in ("propagated", "local") and not self.values.captures:
            lanes = [*self.values.lanes]  # one pass gives all of them
        self.work(WORK.get(quantity, "planning"), self.values.measuring(quantity, lanes), self._measured)

    def take(
        self,
        capture: Capture | None = None,
        *,
        sensitivity: Sensitivity | None = None,
        ranking: GradientRanking | None = None,
    ) -> None:
        """Show what was measured elsewhere: a capture, or what `study.sensitivity` gave for the study's own lane."""
        self._check_open()
        self._keep(capture, sensitivity, ranking)
        self._laid_out()
        self._show_chosen()

    def _keep(self, capture: Capture | None, sensitivity: Sensitivity | None, ranking: GradientRanking | None) -> None:
        if capture is not None:
            self.values.take_capture(capture)
        if sensitivity is not None:
            self.values.take_sensitivity(self._own, sensitivity)
        if ranking is not None:
            self.values.take_ranking(self._own, ranking)

    def _measured(self, keep: Callable[[], None]) -> None:
        keep()
        self._laid_out()
        self._show_chosen()

    def _progress(self, what: str, share: float | None) -> None:
        # said where one looks, in the picture; not a second time below it
        with self.canvas.hold_sync():
            self.canvas.doing, self.canvas.done = what, share
        if not what:
            self.changed()

    def cancel(self) -> None:
        """Stop what runs in the background."""
        self.worker.cancel()

    def wait(self, timeout: float = 600.0) -> None:
        """Block until the work in the background is done."""
        super().wait(timeout)
        self._drawer.wait(timeout)

    # what the page asks for

    @shown
    def _asked(self, _: Any, message: dict[str, Any], __: Any) -> None:
        event, key = message.get("event"), message.get("key", "")
        if event == "toggle" and key in self.network.blocks:
            self._reopen(self._opened ^ {key})
        elif event == "reveal" and (key in self.network.number or key in self.network.blocks):
            self.select(key)
        elif event == "level":
            self._reopen({"all": frozenset(self.network.blocks), "none": frozenset()}.get(key, self.network.first_view()))
        elif event == "measure":
            self.measure()
        elif event == "cancel":
            self.cancel()
        elif event == "open" and key in self.network.number:
            self.look(key, message.get("action") or "")
        else:
            raise QkitError(f"the page asked for something that is not here: {message!r}; load the page again.")

    # the chosen box

    def on_open(self, function: Callable[[str, str], Any]) -> None:
        """Call ``function(name, action)`` where an operation is opened, instead of showing it below the picture.

        `action` is "range", "weight" or "maps".
        """
        self._openers.append(function)

    def actions(self, name: str) -> list[str]:
        """What an operation can be opened in."""
        node = self.network.nodes[self.network.number[name]]
        grids = self._origin.plan.grids
        return [
            action
            for action, there in (
                ("range", name in grids), ("weight", bool(node.weight) and node.weight in grids),
                ("maps", node.quantized and self._capture_of(name) is not None),
            )
            if there
        ]  # fmt: skip

    def look(self, name: str, action: str = "") -> None:
        """Open an operation in the range tuner ("range", "weight") or its feature maps ("maps"); the first that it has.

        Raises
        ------
        QkitError
            If it cannot be opened so.
        """
        there = self.actions(name)
        action = action or next(iter(there), "")
        if action not in there:
            raise QkitError(
                f"{name} cannot be opened as {action!r}; there is {', '.join(there)}."
                if there
                else f"{name} has no grid of its own: it shares its input's, or stays in float. There is nothing to open."
            )
        if self._openers:
            for function in self._openers:
                function(name, action)
        elif action == "maps":
            self._show_maps(name)
        else:
            node = self.network.nodes[self.network.number[name]]
            self.tuner.tensor = name if action == "range" else node.weight
            self._detail.children = [self.tuner]

    def _capture_of(self, name: str) -> Capture | None:
        capture = self.values.captures.get(self.canvas.lane) or next(iter(self.values.captures.values()), None)
        return capture if capture is not None and name in capture.floats else None

    def _show_maps(self, name: str) -> None:
        capture = self._capture_of(name)
        assert capture is not None
        if self._maps is None:
            self._maps = FeatureMaps(self.show_error)
        maps, axis = self._maps, self._origin.graph.operation(name).channel_axis

        def keep(tap: TapCapture) -> None:
            maps.show(tap, axis)
            self._detail.children = [maps]

        self.work("computing feature maps", lambda: capture[name], keep)

    @shown
    def _chosen(self, _: Any) -> None:
        self._show_chosen()
        self.changed()

    def _show_chosen(self) -> None:
        name, canvas = self.selected, self.canvas
        with canvas.hold_sync():
            canvas.facts, canvas.pictures, canvas.said, canvas.actions = [], [], "", []
            if name in self.network.number:
                canvas.facts = node_facts(self.values, self.quantities, name)
                canvas.actions = [[action, ACTIONS[action]] for action in self.actions(name)]
                self._draw_pictures(name)
            elif name in self.network.blocks:
                canvas.facts = block_facts(self.values, self.quantities, name)

    def _draw_pictures(self, name: str) -> None:
        capture, lane = self._capture_of(name), self.canvas.lane
        if capture is None:
            self.canvas.said = "The pictures of its values come with the capture."
            return
        lane = lane if lane in capture.plans else next(iter(capture.plans))
        axis = self._origin.graph.operation(name).channel_axis
        self.canvas.said = "drawing its values …"

        def keep(found: list[str]) -> None:
            if self.selected == name:
                with self.canvas.hold_sync():
                    self.canvas.pictures, self.canvas.said = found, ""

        self._drawer.start("drawing", lambda: value_pictures(capture[name], lane, axis), keep)

    # export

    def overlay(
        self, path: str | Path | None = None, *, onnx: str | Path | None = None, name: str | None = None
    ) -> dict[str, Any]:
        """The colours as "custom node data" for Google's Model Explorer, written to a JSON file where a path is given.

        Parameters
        ----------
        onnx
            The file that Model Explorer shows, for the names of its nodes: the study's own, or one of ``study.export``. By
            default nodes are called as the taps, which is right for the layers of a file of ``study.export``.
        name
            What Model Explorer calls the data.

        Raises
        ------
        QkitError
            If the figure is not measured, a file cannot be read or written, or nothing in the ONNX file is of this network.
        """
        from qkit.engines.onnx.node_names import node_names

        quantity, lane = self.quantities[self.canvas.figure], self.canvas.lane
        values = self.values.get(quantity.key, lane)
        if values is None:
            raise QkitError(f"{quantity.name} is not measured in {lane} yet: call measure() and wait() first.")
        nodes = None if onnx is None else node_names(onnx)
        title = name or f"qkit: {quantity.name}{f', {lane}' if quantity.by_lane else ''}"
        data = overlay(quantity, values, name=title, nodes=nodes)
        if not data["results"] and values:
            raise QkitError(f"none of the {len(values)} coloured layers is in {onnx}: give the file of this network.")
        if path is not None:
            files.write_json(path, data)
        return data

    # where there is no front end

    def draw(self, figure: Figure) -> None:
        """The boxes as they are open, in columns."""
        drawing.draw(self._places, self.painted, ax=figure.add_subplot())

    def summary(self) -> pd.DataFrame:
        """Every box with its figure."""
        painted = self.painted
        rows = [
            {"box": box.key, "operations": len(box.nodes), painted.title: text}
            for box, text in zip(self._places.boxes, painted.texts, strict=True)
            if not box.opened
        ]
        return pd.DataFrame(rows, columns=["box", "operations", painted.title]).set_index("box")

    def brief(self) -> str:
        """How many boxes it shows of how many operations, and what colours them."""
        shown_boxes = sum(not box.opened for box in self._places.boxes)
        return f"{number(shown_boxes)} boxes of {number(len(self.network.nodes))} operations, by {self.painted.title}"
