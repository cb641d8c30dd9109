"""The range tuner: a tensor's histogram and integer grid, two handles, what every position of them costs, and the score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import traitlets

from qkit.errors import PlanError, QkitError
from qkit.execution.editing import moved_end, rule_of
from qkit.execution.edits import Chosen, Edit, History, Ranged, Reset, Ruled, Scaled
from qkit.execution.layer_errors import grid_errors
from qkit.execution.loading import batches as batches_of
from qkit.execution.observing import observe_channels
from qkit.execution.prefix import Effect
from qkit.execution.tensors import named
from qkit.progress import bars_drawn
from qkit.quant.grids import QuantParams
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Plan
from qkit.widgets import tuner_page as page
from qkit.widgets.canvas import answer
from qkit.widgets.counted import axis_of
from qkit.widgets.live import shown
from qkit.widgets.measured import Measured, measure
from qkit.widgets.tuner_page import grid_drawn
from qkit.widgets.tuner_view import TunerView
from qkit.widgets.work import STATE

if TYPE_CHECKING:
    from qkit.study import Study

#: Evaluation samples that a score after every release is measured on, unless told otherwise.
SAMPLES = 256
_OPENING, _SCORING, _COUNTING = "scoring the plan as opened", "scoring the new range", "counting per channel"


class Tuner(TunerView):
    """Tune ranges of a study's plan, of one tap or weight or of several at once.

    The study stays as it is; `plan` is the edited one, and `study` a new study with it.

    Parameters
    ----------
    study
        Calibrated, or about to be.
    tensor
        Tap or weight name; by default the activation whose own range costs most. Several names, a pattern such as
        ``"*.conv.1.0.weight"`` or a kind such as ``"weights: depthwise conv"`` are tuned together: a method or a rule goes to
        all of them, and a handle scales every range by the same factor.
    batches
        Evaluation batches that a score is measured on after each release; by default those that hold about 256 samples.

    Raises
    ------
    PlanError
        If the plan has no grid for the tensor.
    """

    #: How often the plan has changed.
    edits = traitlets.Int(0)

    def __init__(self, study: Study, tensor: str | Sequence[str] | None = None, *, batches: int | None = None) -> None:
        if not study.plan.grids:
            if isinstance(tensor, str):
                study.plan[tensor]  # says that this one is not there
            raise PlanError("the study's plan quantizes nothing, so there is no range to tune: choose a scheme with grids.")
        names = (_noisiest(study),) if tensor is None else named(study.graph, study.plan, tensor)
        self._start(study)
        self.batches = batches_for(study, SAMPLES) if batches is None else batches
        super().__init__(names=list(study.plan.grids), kinds=page.kinds_of(study))
        self.on_msg(self._received)
        self.observe(lambda _: self._opened(), "tensor")
        self.observe(lambda _: self._picked(), "selected")
        self._together(names, tensor if isinstance(tensor, str) else "")
        self._measure()

    @traitlets.validate("tensor")
    def _known(self, proposal: Any) -> str:
        self._check_open()
        self.plan[proposal["value"]]
        return str(proposal["value"])

    def _ipython_display_(self, **options: Any) -> None:
        if not bars_drawn():
            # a notebook that is run to be saved keeps the score, not what there was before it came
            self.wait()
        super()._ipython_display_(**options)

    # what it holds

    @property
    def study(self) -> Study:
        """A study with the edited plan."""
        return self._origin.with_plan(self.plan)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors that are tuned together; the shown one alone where there is no other."""
        return tuple(self.group) or (self.tensor,)

    @property
    def effect(self) -> Effect | None:
        """What the current plan does to layer, output and score; None until it is measured."""
        return self._measured.effects.get((self.tensor, self.plan))

    # what one can do with it

    def select(self, tensors: str | Sequence[str]) -> None:
        """Show a tensor, or take several together: names, a pattern, a kind; see `Tuner`.

        Raises
        ------
        PlanError
            If the plan has no such tensor.
        """
        self._together(named(self._origin.graph, self.plan, tensors), tensors if isinstance(tensors, str) else "")

    def set_range(self, lo: float, hi: float) -> None:
        """Give the tensor, or the chosen channel, that range; tensors that are tuned together are scaled by the same factors."""
        self._do(self._ranged(lo, hi))

    def set_rule(self, **changes: object) -> None:
        """Change the rule of the grid: ``bits``, ``symmetric``, ``per_channel``, ``power_of_two``; the range stays."""
        params = self.grid.params
        per_channel = bool(changes.get("per_channel", params.axis is not None or self._wanted is not None))
        rule_of(self.grid, **{**changes, "per_channel": per_channel})  # refuses what no grid has
        waiting, self._wanted = self._wanted or {}, None
        changes = {**waiting, **changes}
        changes.pop("per_channel", None)
        if per_channel != (params.axis is not None):
            changes["per_channel"] = per_channel
        if per_channel == (params.axis is not None) or not per_channel:
            self._do(Ruled(self._changing(per_channel), tuple(changes.items())))
            return
        if axis_of(self._origin, self.tensor) is None:
            raise PlanError(f"{self.tensor} has no channel axis: its grid is per tensor.")
        self._wanted = changes
        self._need_channels(self._per_channel)

    def choose(self, method: str, percentile: float | None = None) -> None:
        """The range that a calibration method chooses, of all tensors that are tuned together.

        Raises
        ------
        PlanError
            If the method is not defined for this rule.
        """
        if percentile is not None:
            self.percentile = percentile
        known: Any = method
        self._do(Chosen(self._origin, self.tensors, known, self.percentile, said=self._said()))

    def undo(self) -> None:
        """The plan before."""
        self._go(self.history.undone())

    def redo(self) -> None:
        """The plan that was undone."""
        self._go(self.history.redone())

    def reset(self) -> None:
        """The plan that the study came with."""
        self._do(Reset(self.history.base))

    def take(self, plan: Plan) -> None:
        """Another plan as the current one, as one step that can be undone."""
        self._go(self.history.then(plan))

    # from the page

    @shown
    def _received(self, _: Any, message: dict[str, Any], __: Any) -> None:
        event = message.get("event")
        if event in ("drag", "release"):
            self._gesture(message)
            return
        try:
            done = self._pressed_on(event, message)
        finally:
            if not self.closed:
                self._show_rule()
                answer(self, {"event": "refresh"})  # a field that was refused shows what there is, though no trait has changed
        if not done:
            raise QkitError(f"the page sent a gesture that is none: {message!r}; load the page again.")

    def _pressed_on(self, event: Any, message: dict[str, Any]) -> bool:
        value = message.get("value")
        if event in ("undo", "redo", "reset", "cancel"):
            getattr(self, event)()
        elif event == "rule" and isinstance(value, dict):
            self.set_rule(**value)
        elif event == "choose":
            self.choose(str(value))
        elif event == "percentile":
            self._set_percentile(_number(value))
        elif event == "typed" and message.get("end") in ("lo", "hi"):
            self._typed(message["end"], _number(value))
        elif event == "select":
            self.select(str(value))
        elif event == "tensor":
            self.tensor = str(value)
        elif event == "channel" and isinstance(value, int):
            self.selected = value
        elif event == "logarithmic":
            self.logarithmic = bool(value)
        elif event == "zoomed":
            self.zoomed = bool(value)
            self._redrawn()
        else:
            return False
        return True

    def _set_percentile(self, value: float) -> None:
        if not 50.0 < value <= 100.0:
            raise PlanError(f"a percentile is above 50 and at most 100, not {value:g}.")
        self.percentile = value
        if self.grid.method == "percentile":
            self.choose("percentile")
        else:
            self._mark()

    def _typed(self, end: str, value: float) -> None:
        # the other end as it is, not as its field rounds it
        params = self._shown(self.grid.params)
        low, high = (value, float(params.hi)) if end == "lo" else (float(params.lo), value)
        if low <= 0.0 <= high:
            low, high = self._moved(end, value, params)
        self.set_range(low, high)

    @shown
    def _picked(self) -> None:
        if self._ready(self.grid.params):
            self._shown(self.grid.params)  # refuses a channel that is not there
            self._redrawn()

    def _gesture(self, message: dict[str, Any]) -> None:
        event, end, value = message.get("event"), message.get("end"), message.get("value")
        seq = message["seq"] if isinstance(message.get("seq"), int) else 0
        if end not in ("lo", "hi") or not isinstance(value, (int, float)):
            answer(self, {"event": "refused", "seq": seq})
            raise QkitError(f"the page sent a gesture that is none: {message!r}; load the page again.")
        if not self._ready(self.grid.params):
            answer(self, {"event": "refused", "seq": seq})
            raise QkitError(f"the channels of {self.tensor} are being counted: wait until their ranges are there.")
        try:
            edit = self._ranged(*self._moved(end, float(value), self._shown(self.grid.params)))
            plan = edit.made(self.plan)
        except QkitError:
            answer(self, {"event": "refused", "seq": seq})
            raise
        params = plan[self.tensor].params
        released = event == "release"
        output = self._layer().errors(plan) if released or self._layer().quick else None
        rows = self._rows(params, output, self.plan)
        reply = {"event": "figures", "seq": seq, "released": released, "grid": grid_drawn(self._shown(params)), "figures": rows}
        answer(self, reply)
        if released:
            self._go(self.history.then(plan, edit))
        elif self.worker.what == _SCORING:
            self.worker.cancel()  # the score of a range that is being left would only hold the next one up

    def _moved(self, end: str, value: float, params: QuantParams) -> tuple[float, float]:
        histogram = self._histogram()
        least = 2.0**-12 * (max(abs(histogram.min), abs(histogram.max)) or 1.0)
        return moved_end(self.grid.spec, end, value, float(params.lo), float(params.hi), least=least)

    # edits

    def _changing(self, per_channel: bool) -> tuple[str, ...]:
        """Of the tensors that are tuned together those whose grids can be so."""
        if not per_channel:
            return self.tensors
        return tuple(name for name in self.tensors if self.plan[name].params.axis is not None)

    def _said(self) -> str:
        """The pattern or kind that means the tensors that are tuned together; "" where there is none."""
        said = self.group_name if self.group else ""
        try:
            return said if named(self._origin.graph, self.history.base, said) == self.tensors else ""
        except PlanError:  # a number of tensors that were named one by one
            return ""

    def _ranged(self, lo: float, hi: float) -> Edit:
        if len(self.tensors) == 1:
            return Ranged(self.tensor, lo, hi, self.channel)
        params = self._shown(self.grid.params)
        self.plan.with_range(self.tensor, lo, hi)  # refuses what is no range
        low, high = (new / float(old) if float(old) else 1.0 for new, old in ((lo, params.lo), (hi, params.hi)))
        return Scaled(self.tensors, low, high)

    def _per_channel(self) -> None:
        changes, self._wanted = self._wanted, None
        if changes is None:
            return
        plain = [n for n in self.tensors if self.plan[n].params.axis is None and axis_of(self._origin, n) is not None]
        said = self._said() if tuple(plain) == self.tensors else ""
        self._do(Chosen(self._origin, tuple(plain), "minmax", self.percentile, tuple(changes.items()), said))

    def _do(self, edit: Edit) -> None:
        self._check_open()
        self._go(self.history.then(edit.made(self.plan), edit))

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

    def _together(self, names: tuple[str, ...], said: str) -> None:
        with self.hold_sync():
            several = len(names) > 1
            self.group, self.group_name = (list(names), said or f"{len(names)} tensors") if several else ([], "")
            first = self.tensor if self.tensor in names else self._worst(names)
            if self.tensor == first:
                self._redrawn()
            else:
                self.tensor = first

    def _worst(self, names: tuple[str, ...]) -> str:
        """Of several tensors the one whose range costs its layer's output most."""
        if len(names) == 1:
            return names[0]
        (errors,) = grid_errors(self._origin.graph, self._inputs, [self.plan.only(names)])
        totals = {name: errors[name].total for name in names if name in errors and not math.isnan(errors[name].total)}
        return min(totals, key=totals.__getitem__) if totals else names[0]

    # tensors

    def _opened(self) -> None:
        if self.closed:
            return
        self._wanted = self._previous = None
        if self.group and self.tensor not in self.group:
            self.group, self.group_name = [], ""
        self.selected = 0
        self._redrawn()

    def _count(self) -> None:
        self._need_channels(self._counted_then)

    def _counted_then(self) -> None:
        self._redrawn()
        self._measure_edited()

    def _need_channels(self, then: Any) -> None:
        """Count per channel first, which takes a pass over the calibration data, once a tensor."""
        name, study = self.tensor, self._origin
        if self._counted.has(study, name):
            then()
            return

        def keep(found: list[Histogram]) -> None:
            self._counted.keep(name, found)
            self.clear_error()
            if self.tensor == name:
                then()
            else:
                self._measure_edited()

        self.work(_COUNTING, partial(observe_channels, study.graph, study.calibration, name), keep)

    # what it does to the network

    def stopped(self, what: str) -> None:
        """Cancelled, by hand or because the handle moves on: of a score that needs no notice."""
        if what in (_SCORING, _OPENING):
            self._without_result()
            return
        super().stopped(what)
        self._wanted = None
        self._show_rule()

    def _without_result(self) -> None:
        self.measuring = False

    def _measure_edited(self) -> None:
        if self.history.at or self.history.can_redo:
            self._measure()

    def _measure(self) -> None:
        """The score of the current plan, of the first one and of float, and what both do to the tensor."""
        origin, tensor, limit = self._origin, self.tensor, self.batches
        todo = self._measured.missing(tensor, self.history.base, self.plan)
        if not todo:
            self._show_effect()
            return
        if self.worker.what == _COUNTING:
            return  # what is being counted for is measured when it is done

        def keep(found: Measured) -> None:
            self._measured.add(found)
            self.measuring = False
            self._show_effect()

        self.measuring = True
        self._show_effect()
        what = _SCORING if self.history.at or self.history.can_redo else _OPENING
        self.work(what, lambda: measure(origin, tensor, todo, limit), keep, short=True)

    def _show_effect(self) -> None:
        base, before = self.history.base, self._previous
        self.score = self._measured.card(self._origin, self.plan, base, before)
        self.measured_rows = self._measured.rows(self.tensor, self.plan, self._before(), base)


def _number(text: Any) -> float:
    try:
        return float(text)
    except (TypeError, ValueError):
        raise PlanError(f"{text!r} is not a number.") from None


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
