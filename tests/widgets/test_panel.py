"""What all widgets share: errors in place, progress, the static stand-in, modules of the page, and how the extra is asked for."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import ipywidgets
import pandas as pd
import pytest
from matplotlib.figure import Figure
from studies import nothing_runs, ruined_diagnosis, ruined_study, small_study

import qkit
from qkit import MissingExtra, PlanError, QkitError
from qkit.progress import track
from qkit.widgets import CalibrationPanel, Explorer, Guide, Tuner, live, panel, work
from qkit.widgets.canvas import Canvas, es_module, style_sheet
from qkit.widgets.graph_canvas import GraphCanvas
from qkit.widgets.layer_chart import LayerTable
from qkit.widgets.live import Live
from qkit.widgets.map_view import FeatureMaps, MapPlot
from qkit.widgets.panel import Frame, Panel, shown
from qkit.widgets.stepper import Stepper
from qkit.widgets.strip import ChannelStrip
from qkit.widgets.tuner_page import TunerPage

PNG = b"\x89PNG\r\n\x1a\n"
VIEW = "application/vnd.jupyter.widget-view+json"
SOURCES = {path.stem: path.read_text(encoding="utf-8") for path in Path(panel.__file__).parent.glob("*.js")}
#: Files that are a widget's; the others are parts of them.
MODULES = sorted(name for name, text in SOURCES.items() if "export default" in text)


class Probe(Panel):
    """The least panel: a number."""

    def __init__(self) -> None:
        self.number = 1
        super().__init__(ipywidgets.Label("probe"))

    def draw(self, figure: Figure) -> None:
        figure.add_subplot().plot([0, self.number])

    def summary(self) -> pd.DataFrame:
        return pd.DataFrame({"number": {"now": self.number}})

    @shown
    def press(self, action: Callable[[], Any]) -> None:
        action()


def fail(error: Exception) -> None:
    raise error


class Words(HTMLParser):
    """What a page shows of HTML, and the tags in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words, self.tags = "", []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def tuner() -> Tuner:
    return Tuner(small_study(), "depthwise", batches=1)


def explorer() -> Explorer:
    return Explorer(small_study(), capture=small_study().capture(progress=False))


def calibration() -> CalibrationPanel:
    return CalibrationPanel(small_study(), batches=1)


def guide() -> Guide:
    made = Guide(ruined_study(), ruined_diagnosis())
    made.wait()
    return made


EVERY = pytest.mark.parametrize("make", [tuner, explorer, calibration, guide, Probe])


def test_an_error_of_a_callback_is_shown_until_the_next_success() -> None:
    probe = Probe()
    assert probe.error == ""
    probe.press(lambda: fail(ValueError("<b>so</b> & so")))
    said = Words(probe.error)
    assert "ValueError: <b>so</b> & so" in said.words
    assert "b" not in said.tags
    assert "summary" in said.tags
    assert "Traceback" in said.words
    assert "in fail" in said.words, "the traceback leads to where it was raised"
    assert 'role="alert"' in probe.error
    probe.press(lambda: None)
    assert probe.error == ""


def test_errors_of_the_kit_are_their_sentence() -> None:
    probe = Probe()
    probe.press(lambda: fail(PlanError("<stem>: [2, 1].")))
    said = Words(probe.error)
    assert said.words == "<stem>: [2, 1]."
    assert said.tags == ["div"]


def test_a_callback_is_no_way_for_a_keyboards_interrupt_to_be_lost() -> None:
    probe = Probe()
    with pytest.raises(KeyboardInterrupt):
        probe.press(lambda: (_ for _ in ()).throw(KeyboardInterrupt))


def test_errors_of_work_in_the_background_are_shown_until_the_next_work() -> None:
    probe = Probe()
    probe.work("working", lambda: fail(QkitError("no such <layer>")), lambda _: None)
    probe.wait()
    assert Words(probe.error).words == "no such <layer>"
    probe.work("working", lambda: 2, lambda found: setattr(probe, "number", found))
    assert probe.error == ""
    probe.wait()
    assert (probe.number, probe.error) == (2, "")
    probe.work("working", lambda: 3, lambda _: fail(KeyError("lost")))
    probe.wait()
    assert "KeyError: 'lost'" in Words(probe.error).words


def test_progress_shows_while_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_REPORT_EVERY", -1.0)
    probe = Probe()
    seen: list[tuple[str, float]] = []
    probe._doing.observe(lambda change: seen.append((change["new"], probe._bar.value)), "value")
    assert probe._working.layout.visibility == "hidden"
    probe.work("adding up", lambda: sum(track(range(4), "adding", unit="number")), lambda _: None)
    assert probe._working.layout.visibility == "visible"
    assert probe._doing.value == "adding up …"
    probe.wait()
    assert probe._working.layout.visibility == "hidden"
    assert [text for text, _ in seen] == [
        "adding up …", "adding: 0 %", "adding: 25 %", "adding: 50 %", "adding: 75 %", "adding: 100 %", "",
    ]  # fmt: skip
    assert probe._bar.value == 0.0


def test_the_button_cancels() -> None:
    probe = Probe()
    ran = threading.Event()
    with nothing_runs():
        probe.work("working", ran.set, lambda _: None)
        probe._cancel.click()
        assert probe._doing.value == "stopping …"
        probe.wait()
    assert not ran.is_set()
    assert probe._working.layout.visibility == "hidden"
    assert re.search(r"\bworking\b.*\bstopped\b", probe._notice.value)
    assert probe.error == "", "it is no error"
    probe.press(lambda: None)
    assert probe._notice.value == ""


@EVERY
def test_a_bundle_holds_the_widget_a_picture_a_table_and_words(make: Callable[[], Panel]) -> None:
    made = make()
    bundle = made._repr_mimebundle_()
    assert bundle[VIEW]["model_id"] == made.model_id
    assert bundle["image/png"].startswith(PNG)
    assert len(bundle["image/png"]) > 2000
    said = Words(bundle["text/html"])
    assert said.tags.count("table") == 1
    rows, most = len(made.summary()), made.most_rows
    assert said.tags.count("tr") == min(rows, most) + 1 + (made.summary().index.name is not None)
    assert (f"{rows - most} more" in said.words) == (rows > most), "what is left out is said"
    assert bundle["text/plain"] == repr(made)
    assert "nan" not in said.words.lower()


@EVERY
def test_a_repr_is_the_same_in_every_run(make: Callable[[], Panel]) -> None:
    made = make()
    assert repr(made) == repr(make())
    assert re.fullmatch(r"\w+\(.*\)", repr(made))
    assert "0x" not in repr(made)
    canvases = [child for child in vars(made).values() if isinstance(child, Canvas) and not isinstance(child, Live)]
    assert all(repr(canvas) == f"{type(canvas).__name__}()" for canvas in canvases)


def test_reprs_say_what_there_is() -> None:
    assert re.match(r"Tuner\(depthwise\b.*\b0\b.*\b1\.71", repr(tuner()))
    assert re.match(r"Explorer\(9\b.*\b8\b", repr(explorer()))
    assert re.match(r"CalibrationPanel\(mse\b.*\b0\b.*\b14\b", repr(calibration()))
    assert re.match(rf"Guide\(quantization\b.*\b{len(guide().steps)}\b.*\b0\b", repr(guide()))
    with nothing_runs():
        waiting = Explorer(small_study()), Guide(ruined_study())
        assert re.fullmatch(r"Explorer\(9\b[^\d]*\)", repr(waiting[0]))
        assert re.fullmatch(r"Guide\([^\d]*\)", repr(waiting[1]))
        assert all(each._repr_mimebundle_()["image/png"].startswith(PNG) for each in waiting)
        for each in waiting:
            each.cancel()
            each.wait()


def test_a_tuner_of_an_activation_per_channel_can_be_shown_at_once() -> None:
    study = small_study()
    spec = qkit.QuantSpec(symmetric=False, per_channel=True)
    scheme = qkit.Scheme("per channel", study.scheme.weight, study.scheme.activation, overrides={"stem": spec})
    made = Tuner(study.with_scheme(scheme), "stem", batches=1)
    try:
        assert made._repr_mimebundle_()["image/png"].startswith(PNG), "before its channels are counted, too"
    finally:
        made.wait()
    assert made._repr_mimebundle_()["image/png"].startswith(PNG)


class Display:
    """What a front end does with outputs."""

    def __init__(self, bundle: dict[str, Any]) -> None:
        self.bundles = [bundle]
        self.updated = asyncio.Event()

    def update(self, bundle: dict[str, Any], *, raw: bool) -> None:
        assert raw
        self.bundles.append(bundle)
        self.updated.set()


def test_the_stand_in_lies_beside_the_widget_and_follows_its_state(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[Display] = []

    def display(bundle: dict[str, Any], *, raw: bool, display_id: bool = False) -> Display | None:
        assert raw
        outputs.append(Display(bundle))
        return outputs[-1] if display_id else None

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live, "_QUIET", 0.0)

    async def session() -> None:
        made = tuner()
        made._ipython_display_()
        widget, picture, table = outputs
        assert widget.bundles[0][VIEW]["model_id"] == made.model_id
        assert set(picture.bundles[0]) == {"image/png", "text/plain"}
        assert set(table.bundles[0]) == {"text/html", "text/plain"}
        assert 'class="qkit-static"' in table.bundles[0]["text/html"]
        made.set_range(0.0, 0.25)
        for output in (picture, table):
            await asyncio.wait_for(output.updated.wait(), 20.0)
        assert "0.25" in table.bundles[-1]["text/html"]
        assert picture.bundles[-1]["image/png"] != picture.bundles[0]["image/png"]
        assert picture.bundles[-1]["text/plain"] == repr(made)
        assert made.effect is not None, "it follows once nothing runs any more"

    asyncio.run(session())


def test_the_study_makes_the_widgets() -> None:
    study = small_study()
    assert isinstance(study.tune("stem", batches=1), Tuner)
    assert study.tune("stem", batches=1).batches == 1
    assert isinstance(study.calibration_panel(), CalibrationPanel)
    capture = study.capture(progress=False)
    assert study.explore(capture).capture is capture
    made = ruined_study().guide(ruined_diagnosis(), batches=2)
    made.wait()
    assert made.scores is not None
    assert made.scores.n == 64


@pytest.mark.slow
def test_the_kit_without_widgets_imports_no_front_end() -> None:
    code = "import qkit, qkit.execution.editing, sys\nprint(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "qkit.execution.editing" in found
    assert not {"anywidget", "ipywidgets", "IPython", "qkit.widgets"} & set(found)


@pytest.mark.parametrize("ask", ["tune", "explore", "graph_view", "calibration_panel", "guide"])
def test_without_the_extra_a_widget_says_how_to_install_it(ask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("qkit.widgets")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "anywidget", None)
    with pytest.raises(MissingExtra, match=r"\banywidget\b.*\binstall\b.*\banywidget\b"):
        getattr(small_study(), ask)()


def test_there_are_modules() -> None:
    assert set(MODULES) == {"frame", "graph", "layers", "maps", "stepper", "strip", "tuner"}
    for part in set(SOURCES) - set(MODULES):
        head = SOURCES[part].partition("\n")[0]
        assert any(head in es_module(name) for name in MODULES), f"{part}.js is in no module"


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_in_one_piece(name: str, tmp_path: Path) -> None:
    text = es_module(name)
    assert not re.findall(r"^[ \t]*import\b.*", text, re.MULTILINE)
    assert re.findall(r"^[ \t]*export\b.*", text, re.MULTILINE) == ["export default {"]
    assert "export function" not in text
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    path = tmp_path / f"{name}.mjs"
    path.write_text(text, encoding="utf-8")
    checked = subprocess.run([node, "--check", str(path)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_every_canvas_has_a_module_of_its_own_and_the_one_style_sheet() -> None:
    kinds = [Frame, GraphCanvas, LayerTable, MapPlot, TunerPage, ChannelStrip, Stepper]
    assert {kind()._esm for kind in kinds} == {es_module(name) for name in MODULES}
    assert {kind()._css for kind in kinds} == {style_sheet()}
    assert ".qkit-error" in style_sheet()
    assert len(FeatureMaps().plot.colours) == 2 * 256 * 3
