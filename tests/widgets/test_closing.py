"""Closing widgets: no child is left, nothing runs or is held on to, what was found can still be read, and cells run again."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ipywidgets import VBox, Widget
from ipywidgets.widgets.widget import _instances
from studies import fresh_study, nothing_runs, ruined_diagnosis, ruined_study, small_study

from qkit import FLOAT, QkitError, Study
from qkit.progress import track
from qkit.widgets import CalibrationPanel, Explorer, Guide, Tuner, cells
from qkit.widgets.map_view import FeatureMaps
from qkit.widgets.panel import Panel

SOON = 20.0


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """Whatever a test leaves open is closed."""
    yield
    for widget in live():
        if isinstance(widget, Panel):
            widget.close()


def live() -> list[Widget]:
    """Every widget that is not closed, as ipywidgets sees it."""
    return list(_instances.values())


def tuner(study: Study) -> Tuner:
    return study.tune("depthwise", batches=1)


def explorer(study: Study) -> Explorer:
    return study.explore(study.capture(progress=False))


def calibration(study: Study) -> CalibrationPanel:
    return study.calibration_panel(batches=1)


def guide(study: Study) -> Guide:
    made = Guide(ruined_study(), ruined_diagnosis())
    made.wait()
    return made


EVERY = pytest.mark.parametrize("make", [tuner, explorer, calibration, guide])


@EVERY
def test_a_closed_widget_leaves_none_of_its_children(make: Callable[[Study], Panel]) -> None:
    before = live()
    with make(small_study()) as made:
        # the tuner is one widget and its layout, the others are made of many
        assert len(live()) > len(before) + (1 if isinstance(made, Tuner) else 20)
        assert not made.closed
    assert made.closed
    assert live() == before
    made.close()
    assert repr(made) == f"{type(made).__name__}(closed)"
    with pytest.raises(QkitError, match="closed"):
        made.__enter__()


def test_one_after_the_other_leaves_nothing() -> None:
    before = live()
    for i in range(4):
        made = small_study().tune("depthwise", batches=1)
        made.set_range(0.0, 1.0 + i)
        made.close()
    assert live() == before


def test_edits_make_no_more_widgets() -> None:
    made = tuner(small_study())
    before = live()
    for i in range(10):
        made.set_range(0.0, 1.0 + i / 10)
        made.tensor = ("stem", "stem.weight", "depthwise")[i % 3]
    assert live() == before


def test_looking_at_layers_makes_no_more_widgets() -> None:
    made = explorer(small_study())
    assert isinstance(made.tuner, Tuner)
    names, before = [row["name"] for row in made.table.rows], live()
    for i in range(8):
        made._view.value = ("range", "weights per channel")[i % 2]
        made.select(names[i % len(names)])
    made._view.value = "feature maps"
    made.wait()
    assert live() == before


def test_a_step_of_the_guide_takes_the_place_of_the_one_before() -> None:
    made = guide(small_study())
    made.step = 0
    before = len(live())
    with_remedies = next(i for i, step in enumerate(made.steps) if step.remedies)
    for step in (with_remedies, with_remedies + 1, with_remedies, 0):
        made.step = step
    assert len(live()) == before
    made.apply(made.steps[with_remedies].remedies[0])
    made.wait()
    made.step = with_remedies
    assert not made._undo.disabled
    assert made._undo in live()


@pytest.mark.slow
@EVERY
def test_a_closed_widget_holds_no_study_and_is_collected(make: Callable[[Study], Panel]) -> None:
    study = fresh_study()
    made = make(study)
    if isinstance(made, Tuner):
        made.choose("minmax")
    made.wait()
    made.close()
    studies, widgets = weakref.ref(study), weakref.ref(made)
    del study
    gc.collect()
    assert studies() is None, "the study goes though the widget is still there"
    del made
    gc.collect()
    assert widgets() is None


def test_work_that_runs_stops_at_its_next_step_and_says_nothing_more() -> None:
    made = tuner(small_study())
    entered, go, ended, told = threading.Event(), threading.Event(), threading.Event(), []

    def work() -> None:
        try:
            for _ in track(range(5), "stepping", unit="step"):
                entered.set()
                assert go.wait(SOON)
        finally:
            ended.set()

    made.work("working", work, told.append)
    assert entered.wait(SOON)
    made.close()
    assert not made.worker.busy
    go.set()
    assert ended.wait(SOON)
    made.wait()
    assert told == []
    widgets = weakref.ref(made)
    del made
    for thread in threading.enumerate():
        if thread.name.startswith("qkit "):
            thread.join(SOON)
    gc.collect()
    assert widgets() is None


def test_what_was_found_can_be_read_and_all_else_says_that_it_is_closed() -> None:
    study = fresh_study()
    tuned = tuner(study)
    tuned.set_range(0.0, 1.0)
    tuned.wait()
    plan, code = tuned.plan, tuned.code
    tuned.close()
    assert (tuned.plan, tuned.code, tuned.history.at) == (plan, code, 1)
    assert tuned.effect is not None
    explored, capture = explorer(study), study.capture(progress=False)
    explored.tuner.set_range(0.0, 1.0)
    edited = explored.plan
    explored.close()
    assert explored.plan == edited != study.plan
    bare = study.explore(capture)
    bare.close()
    assert bare.plan == study.plan
    chosen = calibration(study)
    chosen.choose(method="minmax")
    chosen.wait()
    other = chosen.plan
    chosen.close()
    assert chosen.plan == other != study.plan
    guided = guide(study)
    remedy = next(remedy for step in guided.steps for remedy in step.remedies if remedy.changes)
    guided.apply(remedy)
    guided.wait()
    guided.close()
    assert guided.applied == (remedy,)
    assert guided.scores is not None
    assert guided.diagnosis is ruined_diagnosis()
    actions: list[Callable[[], Any]] = [
        lambda: tuned.study, lambda: tuned.set_range(0.0, 2.0), tuned.undo, lambda: tuned.choose("mse"), tuned.png,
        lambda: setattr(tuned, "tensor", "stem"), lambda: explored.capture, explored.measure, lambda: explored.select("stem"),
        lambda: explored.study, lambda: bare.study, lambda: chosen.study, chosen.score, chosen.compare, guided.undo,
        lambda: chosen.choose(method="mse"), lambda: guided.study, guided.diagnose, lambda: guided.report("x.html"),
    ]  # fmt: skip
    for action in actions:
        with pytest.raises(QkitError, match="closed"):
            action()
    assert tuned.history.at == 1, "nothing was edited on the way"
    for panel in (tuned, explored, chosen, guided):
        panel.cancel()
        panel.wait()


def test_a_widget_that_was_not_made_leaves_nothing() -> None:
    before = live()
    study = small_study()
    with pytest.raises(QkitError):
        study.tune("nowhere")
    with pytest.raises(QkitError):
        study.with_plan(FLOAT).tune()
    assert live() == before


def test_maps_by_themselves_close_too() -> None:
    before = live()
    capture = small_study().capture(progress=False)
    maps = FeatureMaps()
    maps.show(capture["stem"], 1)
    maps.close()
    assert live() == before
    assert maps.maps is None
    with pytest.raises(QkitError, match="closed"):
        maps.show(capture["stem"], 1)


def test_widgets_around_it_stay() -> None:
    made = tuner(small_study())
    box = VBox([made])
    made.close()
    assert box in live()
    box.close()


class Bare(Panel):
    """A panel of which only the frame is made."""

    def _bundles(self) -> dict[str, dict[str, Any]]:
        return {}


class Front:
    """A notebook: which cell runs, its variables, and what was shown."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cell, self.run, self.user_ns = "", 0, {}
        self.outputs: list[Any] = []
        monkeypatch.setattr(cells, "_shown", {})
        monkeypatch.setattr(cells, "get_ipython", lambda: self)
        monkeypatch.setattr("IPython.display.display", self.display)

    def get_parent(self) -> dict[str, Any]:
        return {"header": {"msg_id": str(self.run)}, "metadata": {"cellId": self.cell} if self.cell else {}}

    def display(self, bundle: dict[str, Any], *, raw: bool, display_id: bool = False) -> Any:
        self.outputs.append(bundle)
        return self

    def update(self, bundle: dict[str, Any], *, raw: bool) -> None:
        self.outputs.append(bundle)

    def execute(self, cell: str, *made: Panel, **variables: Any) -> list[Panel]:
        """Run a cell that makes a panel, or shows those that there are."""
        self.cell, self.run = cell, self.run + 1
        found = list(made) or [Bare()]
        self.user_ns.update(variables, _=found[-1], Out={self.run: found[-1]})
        for each in found:
            each._ipython_display_()
        return found


def test_a_cell_that_is_run_again_closes_what_it_showed_before(monkeypatch: pytest.MonkeyPatch) -> None:
    front, before = Front(monkeypatch), live()
    first = front.execute("a")[0]
    other = front.execute("b")[0]
    size = len(live())
    for _ in range(5):
        again = front.execute("a")[0]
    assert len(live()) == size
    assert (first.closed, other.closed, again.closed) == (True, False, False)
    again.close()
    other.close()
    assert live() == before


def test_what_a_variable_names_or_another_cell_shows_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    front = Front(monkeypatch)
    named, listed, elsewhere = (front.execute("a")[0] for _ in range(3))
    assert named.closed, "each run closes the one before"
    named = front.execute("a")[0]
    front.user_ns["mine"] = named
    assert elsewhere.closed
    listed = front.execute("a")[0]
    front.user_ns["all"] = [1, listed]
    elsewhere = front.execute("a")[0]
    front.execute("b", elsewhere)
    front.execute("a")
    assert [each.closed for each in (named, listed, elsewhere)] == [False, False, False]
    front.execute("b")
    assert not elsewhere.closed, "b shows it no more, but did not make it"
    del front.user_ns["mine"]
    front.execute("a")
    assert named.closed


def test_one_run_may_show_many_and_without_cells_none_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    front = Front(monkeypatch)
    front.cell, front.run = "a", 1
    many = [Bare() for _ in range(3)]
    for each in many:
        each._ipython_display_()
    assert not any(each.closed for each in many)
    without = front.execute("")[0]
    front.execute("")
    assert not without.closed


def test_closing_leaves_the_picture_of_its_last_state(monkeypatch: pytest.MonkeyPatch) -> None:
    front = Front(monkeypatch)

    async def session() -> None:
        made = tuner(small_study())
        front.execute("", made)
        with nothing_runs():
            made.set_range(0.0, 0.25)
            made.close()
        assert "0.25" in front.outputs[-1]["text/html"]
        shown = len(front.outputs)
        made._ipython_display_()
        assert front.outputs[shown:] == [{"text/plain": "Tuner(closed)"}]

    asyncio.run(session())


def test_closing_waits_for_a_gesture_that_another_thread_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    front, begun, redrawn = Front(monkeypatch), threading.Event(), threading.Event()
    made = tuner(small_study())
    front.execute("", made)
    redraw = made._redrawn

    def slowly() -> None:
        begun.set()
        redrawn.wait(1.0)  # ends sooner only if closing did not wait
        redraw()

    monkeypatch.setattr(made, "_redrawn", slowly)
    with nothing_runs():
        gesture = threading.Thread(target=made.set_range, args=(0.0, 0.25))
        gesture.start()
        assert begun.wait(SOON)
        made.close()
        redrawn.set()
        gesture.join(SOON)
    assert "0.25" in front.outputs[-1]["text/html"]
