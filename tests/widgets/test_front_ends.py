"""The range tuner in the other front ends, in a real Chromium: a handle is dragged on the page, and the score comes back.

JupyterLab has all the tests of `test_browser`; here one gesture, as a person makes it, in Notebook 7 and in marimo, and the first
minutes of somebody who types ``qkit lab``. Nothing is asked of the kernel: what a person sees is read from the page.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

if os.environ.get("QKIT_REQUIRE_BROWSER") != "1":
    pytest.importorskip("playwright", reason="BROWSER TESTS LEFT OUT: playwright is not installed")

from browsers import REQUIRED, missing
from lab import chromium
from playwright.sync_api import Browser, Locator, Page

from benchmarks.lab import first_lab, marimo_server, server, write_notebook

#: The weight that costs the most; it opens at ±199, and at ±20 the network gets a third of the lost score back.
WEIGHT = "features.3.conv.1.0.weight"
STUDY = """\
import qkit
from qkit import zoo
case = zoo.load("mobilenet_v2_hostile")
study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
study.calibrate(progress=False)"""
GUIDE = "study.guide(diagnosis)"
TUNER = f"tuner = study.tune({WEIGHT!r})\ntuner"
MARIMO = """\
import marimo

app = marimo.App()


@app.cell
def _():
{study}
    return (study,)


@app.cell
def _(study):
{tuner}
    return (tuner,)


if __name__ == "__main__":
    app.run()
"""
SECONDS = 120_000
#: The score on the page: the figure beside the metric's name, on either side of it.
_SCORE = re.compile(r"top1[^\d%]{0,12}(\d+(?:\.\d+)?)\s*%|(\d+(?:\.\d+)?)\s*%\s*top1")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if lack := missing():
        if REQUIRED:
            pytest.fail(f"the browser tests cannot run: {lack}")
        pytest.skip(f"BROWSER TESTS LEFT OUT: {lack}")
    with chromium() as running:
        yield running


def needed(package: str) -> None:
    """The package is there; where the browser tests are required, it has to be."""
    if importlib.util.find_spec(package) is None:
        if REQUIRED:
            pytest.fail(f"{package} is not installed: pip install --group browser")
        pytest.skip(f"BROWSER TESTS LEFT OUT: {package} is not installed: pip install --group browser")


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1300, "height": 1000}, reduced_motion="reduce", device_scale_factor=1)
    page = context.new_page()
    page.set_default_timeout(SECONDS)
    yield page
    context.close()


def score(panel: Locator) -> float | None:
    """The score in percent as the panel shows it; None while none is shown."""
    found = _SCORE.search(" ".join(panel.inner_text().split()))
    return None if found is None else float(found[1] or found[2])


def score_above(page: Page, panel: Locator, least: float) -> float:
    """Wait until the panel shows a score above that."""
    for _ in range(SECONDS // 100):
        now = score(panel)
        if now is not None and now > least:
            return now
        page.wait_for_timeout(100)
    raise AssertionError(f"no score above {least:g} % is shown: {panel.inner_text()!r}")


def dragged_and_the_score_comes_back(page: Page) -> None:
    """Drag the upper end to a tenth of its width, read the score; then a step further by the keyboard."""
    panel = page.locator(".qkit-panel").first
    ends = panel.get_by_role("slider")
    ends.first.wait_for()
    ends.first.scroll_into_view_if_needed()
    assert ends.count() == 2
    assert panel.locator("canvas").first.is_visible()
    assert "dB" in panel.inner_text(), "the figures are on the page"
    low, high = sorted((end.bounding_box() or {} for end in ends.all()), key=lambda box: box["x"])
    middle = (low["x"] + high["x"] + high["width"]) / 2
    x, y = high["x"] + high["width"] / 2, high["y"] + high["height"] / 2
    before = [float(end.get_attribute("aria-valuenow") or "nan") for end in ends.all()]
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(middle + 0.1 * (x - middle), y, steps=12)
    page.mouse.up()
    # 28.9 % of 256 images as opened
    tuned = score_above(page, panel, 40.0)
    after = [float(end.get_attribute("aria-valuenow") or "nan") for end in ends.all()]
    assert max(after) < 0.2 * max(before)
    # the keyboard: a step of the grid inwards, which is measured too
    ends.nth(after.index(max(after))).press("ArrowLeft")
    page.wait_for_function(
        "([end, at]) => Number(end.getAttribute('aria-valuenow')) < at",
        arg=[ends.nth(after.index(max(after))).element_handle(), max(after)],
    )
    assert score_above(page, panel, 40.0) == pytest.approx(tuned, abs=15.0)
    assert page.locator(".qkit-error").count() == 0


@pytest.mark.slow
def test_notebook_7(page: Page, tmp_path: Path) -> None:
    needed("notebook")
    with server(tmp_path / "root", "notebook") as running:
        path = write_notebook(running.folder, STUDY, TUNER)
        page.goto(f"{running.url}/notebooks/{path.name}")
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
        page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.ready; }")
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        try:
            dragged_and_the_score_comes_back(page)
        finally:
            # for whoever reads a failure
            page.screenshot(path=tmp_path / "notebook.png")
            page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())


@pytest.mark.slow
def test_marimo(page: Page, tmp_path: Path) -> None:
    needed("marimo")
    with marimo_server(tmp_path / "root", MARIMO.format(study=indented(STUDY), tuner=indented(TUNER))) as running:
        page.goto(running.url)
        try:
            dragged_and_the_score_comes_back(page)
        finally:
            # for whoever reads a failure
            page.screenshot(path=tmp_path / "marimo.png")


@pytest.mark.slow
def test_the_first_minutes(page: Page, tmp_path: Path) -> None:
    """``qkit lab`` opens notebook 1: the culprit is dragged, the cells run, the remedy applied in the guide, all of it saved."""
    with first_lab(tmp_path / "root") as running:
        page.goto(running.url)
        cells = page.locator(".jp-Notebook .jp-Cell")
        page.locator("h1", has_text="Is it quantization?").wait_for()
        # a cell that is run before the kernel is there is lost
        page.get_by_text("| Idle").wait_for()
        cells.first.click()
        try:
            for _ in range(4):
                page.keyboard.press("Shift+Enter")
            dragged_and_the_score_comes_back(page)
            page.screenshot(path=tmp_path / "dragged.png")

            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run Selected Cell and All Below").click()
            report = running.folder / "out" / "degradation.html"
            # the whole notebook, on a machine that may be busy
            for _ in range(5 * SECONDS // 1000):
                if report.exists():
                    break
                page.wait_for_timeout(1000)
            assert "per-channel-weights" in report.read_text(encoding="utf-8")
            page.get_by_text("| Idle").wait_for()
            the_remedy_applied_in_the_guide(page)
            # nothing has come between the person and the page, such as JupyterLab's question about news
            assert page.locator(".Toastify__toast, .jp-Dialog").count() == 0
            page.keyboard.press("Control+s")
            saved = running.folder / "01_is_it_quantization.ipynb"
            page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
            page.wait_for_timeout(1000)
            assert views(saved) == ["tuner", GUIDE]
        finally:
            page.screenshot(path=tmp_path / "lab.png")


def the_remedy_applied_in_the_guide(page: Page) -> None:
    """A cell is added below the last one, as a person adds it; its guide's button applies the remedy, and the score comes back."""
    page.locator(".jp-Notebook .jp-Cell").last.locator(".jp-InputPrompt, .jp-InputArea").first.click()
    page.keyboard.press("Escape")
    page.keyboard.press("b")
    page.keyboard.press("Enter")
    page.keyboard.type(GUIDE)
    page.keyboard.press("Shift+Enter")
    guide = page.locator(".qkit-guide")
    apply = guide.get_by_role("button", name=re.compile(r"apply per-channel-weights")).first
    apply.click()
    # 98.8 % in float, 27.5 % in 8 bits
    now = guide.get_by_role("row").filter(has=page.get_by_role("rowheader", name="now", exact=True))
    now.filter(has_text=re.compile(r"\b9\d\.\d+ %")).wait_for()
    guide.get_by_role("button", name="undo").wait_for()
    assert page.locator(".qkit-error").count() == 0


def views(path: Path) -> list[str]:
    """The last line of every cell that has a live widget among its saved outputs: no bar of progress stays there."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        "".join(cell["source"]).splitlines()[-1]
        for cell in cells
        for output in cell.get("outputs", [])
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
