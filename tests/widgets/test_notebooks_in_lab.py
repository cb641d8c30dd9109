"""Notebooks in a real JupyterLab in a real Chromium: run as a whole, with live widgets and without errors on the page.

By default the two with the most widgets; nbval runs the cells of all. With ``QKIT_NOTEBOOK_PICTURES=folder`` all of them, and the
whole page of each is saved there, to be looked at.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

if os.environ.get("QKIT_REQUIRE_BROWSER") != "1":
    pytest.importorskip("playwright", reason="BROWSER TESTS LEFT OUT: playwright is not installed")

from lab import Server, opened
from playwright.sync_api import Browser, Page

PICTURES = os.environ.get("QKIT_NOTEBOOK_PICTURES")
NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb" if PICTURES else "0[34]_*.ipynb"))

#: Pixels of the tallest page that Chromium takes a picture of.
TALLEST = 16_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_in_the_lab(path: Path, lab: Server, browser: Browser) -> None:
    copied = Path(shutil.copy(path, lab.folder))
    with opened(lab, browser, copied, width=1300, height=1000) as book:
        page = book.page
        page.evaluate("() => jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        page.set_default_timeout(300_000)
        try:
            book.run_all()
            counts = page.evaluate(
                """() => jupyterapp.shell.currentWidget.content.widgets
                    .filter(cell => cell.model.type === 'code').map(cell => cell.model.executionCount)"""
            )
            assert counts == list(range(1, len(counts) + 1))
            # each panel is alive: its frame has hidden the picture that stands in for it
            panels = page.locator(".qkit-panel")
            assert panels.count() >= 1
            for i in range(panels.count()):
                panels.nth(i).scroll_into_view_if_needed()
                assert panels.nth(i).is_visible()
            page.wait_for_function("() => [...document.querySelectorAll('.qkit-static')].every(e => !e.checkVisibility())")
            assert page.locator(".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']").count() == 0
            assert page.locator(".qkit-error").count() == 0
            _picture(book.page, path.stem)
            assert book.errors == []
        finally:
            book.shut_down()


def _picture(page: Page, name: str) -> None:
    if not PICTURES:
        return
    page.wait_for_timeout(2000)
    tall = page.evaluate(
        "() => Math.max(...[...document.querySelectorAll('.jp-Notebook, .jp-Notebook *')].map(e => e.scrollHeight))"
    )
    page.set_viewport_size({"width": 1300, "height": min(int(tall) + 150, TALLEST)})
    page.evaluate("() => document.querySelectorAll('.jp-Notebook, .jp-Notebook *').forEach(e => { e.scrollTop = 0; })")
    page.wait_for_timeout(1500)
    page.screenshot(path=Path(PICTURES) / f"{name}.png")
