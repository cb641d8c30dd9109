"""The network's picture in a real JupyterLab in a real Chromium: opens, closes, searches, is walked with keys, in both themes.

With ``QKIT_PICTURES=folder`` the pictures of the docs are taken on the way.
"""

from __future__ import annotations

import ast
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("QKIT_REQUIRE_BROWSER") != "1":
    pytest.importorskip("playwright", reason="BROWSER TESTS LEFT OUT: playwright is not installed")

from lab import Notebook
from playwright.sync_api import Locator, Page, expect

STUDY = """\
import qkit
from qkit import zoo
case = zoo.load("mobilenet_v2_hostile")
study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
study.calibrate(progress=False);"""
SHOW = "view = study.graph_view()\nview"

Open = Callable[..., Notebook]

#: Keeps where the picture stands: its corner, and how large a unit is.
_LISTEN = "() => document.addEventListener('qkit-graph-painted', event => (window.at = event.detail))"
#: Whether some pixel is like a colour: what is on the canvas, not in the style sheet.
_LIKE = """colour => { const canvas = document.querySelector('.qkit-graph-plot canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < data.length; i += 4)
        if (Math.max(...[0, 1, 2].map(k => Math.abs(data[i + k] - colour[k]))) < 3 && data[i + 3] === 255) return true;
    return false; }"""
#: Blue of what is chosen, by theme.
_CHOSEN = {"light": [0x0F, 0x73, 0xB3], "dark": [0x5C, 0xB3, 0xEA]}


def value(book: Notebook, expression: str) -> Any:
    return ast.literal_eval(book.kernel(expression))


def opened(notebook: Open, *cells: str, **options: Any) -> tuple[Notebook, Page, Locator]:
    book = notebook(STUDY, *(cells or (SHOW,)), height=1150, **options)
    page = book.page
    page.evaluate(_LISTEN)
    book.until("not view.worker.busy and not view.canvas.missing")
    plot = page.locator(".qkit-graph-plot canvas")
    plot.scroll_into_view_if_needed()
    page.get_by_role("button", name="zoom in").click()
    page.get_by_role("button", name="zoom out").click()
    page.wait_for_function("() => window.at")
    return book, page, plot


def place(book: Notebook, page: Page, key: str, share: float = 0.5) -> dict[str, float]:
    """Where a box is on the canvas: `share` of its width from the left, a little under its top."""
    box = value(book, f"next((b['place'] for b in view.canvas.boxes if b['key'] == {key!r}), None)")
    at = page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(window.at))))")
    left, top, width, _ = box
    return {"x": at["x"] + (left + share * width) * at["k"], "y": at["y"] + (top + 10) * at["k"]}


def redrawn(book: Notebook, page: Page) -> None:
    """Wait until the page shows the boxes that the kernel has laid out.

    Both are asked anew each time: the page's wishes are met in a thread of their own, so the kernel may still be laying out.
    """
    end = time.monotonic() + 60
    while (shown := page.evaluate("() => window.at.boxes")) != (laid := value(book, "len(view.canvas.boxes)")):
        assert time.monotonic() < end, f"the page shows {shown} boxes, the kernel has laid out {laid}"
        page.wait_for_timeout(50)


def click(book: Notebook, page: Page, plot: Locator, key: str, share: float = 0.5) -> None:
    plot.click(position=place(book, page, key, share))  # type: ignore[arg-type]


def pictured(book: Notebook, name: str) -> None:
    """Take the picture in both themes where the docs ask for it; the canvas follows the theme."""
    folder = os.environ.get("QKIT_PICTURES")
    for theme in ("dark", "light"):
        book.theme(theme)
        book.page.wait_for_function(_LIKE, arg=_CHOSEN[theme])
        if folder:
            book.page.wait_for_timeout(900)
            book.page.locator(".qkit-graph").screenshot(path=Path(folder) / f"{name}-{theme}.png")


def test_click_opens_blocks_and_chooses_layers(notebook: Open) -> None:
    book, page, plot = opened(notebook)
    assert value(book, "'features.3' in view.opened") is False
    expect(page.locator(".qkit-graph-legend")).to_contain_text("dB")

    click(book, page, plot, "features.2.conv")
    book.until("view.selected == 'features.2.conv'")
    expect(page.locator(".qkit-graph-facts")).to_contain_text("features.2.conv")
    # the triangle opens, and the block stays where it was
    before = place(book, page, "features.2.conv", 0)
    click(book, page, plot, "features.2.conv", 0.95)
    book.until("'features.2.conv' in view.opened")
    redrawn(book, page)
    after = place(book, page, "features.2.conv", 0)
    assert after == pytest.approx(before, abs=2)

    click(book, page, plot, "features.2.conv.1.0")
    book.until("view.selected == 'features.2.conv.1.0' and len(view.canvas.pictures) == 2")
    expect(page.locator(".qkit-graph-picture svg")).to_have_count(2)
    pictured(book, "graph")
    page.get_by_role("button", name="tune weight").click()
    book.until("view._tuner is not None and view._tuner.tensor == 'features.2.conv.1.0.weight'")
    expect(page.locator(".qkit-handle").first).to_be_visible()


@pytest.mark.slow
def test_keyboard(notebook: Open) -> None:
    book, page, plot = opened(notebook)
    plot.focus()
    page.keyboard.press("ArrowDown")
    book.until("view.selected == 'input'")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    book.until("view.selected == 'features.1'")
    expect(page.locator(".qkit-graph-spoken")).to_contain_text(re.compile(r"features\.1: .* dB"))
    page.keyboard.press("ArrowUp")
    book.until("view.selected == 'features.0.0'")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    book.until("'features.1' in view.opened")
    page.keyboard.press("Backspace")
    book.until("view.selected == 'features'")
    book.until("'features' not in view.opened")
    page.keyboard.press("Enter")
    book.until("'features' in view.opened")
    redrawn(book, page)

    size = page.evaluate("() => window.at.k")
    page.keyboard.press("+")
    page.wait_for_function("k => window.at.k > 1.2 * k", arg=size)
    page.keyboard.press("-")
    page.wait_for_function("k => Math.abs(window.at.k - k) < 1e-6", arg=size)
    page.keyboard.press("0")
    page.wait_for_function("k => window.at.k < k", arg=size)

    page.keyboard.press("/")
    search = page.get_by_role("searchbox", name="search")
    expect(search).to_be_focused()
    # Enter on a layer opens it
    search.fill("features.0.0")
    search.press("Enter")
    book.until("view.selected == 'features.0.0'")
    search.press("Escape")
    expect(plot).to_be_focused()
    page.keyboard.press("Enter")
    book.until("view._tuner is not None and view._tuner.tensor == 'features.0.0'")


@pytest.mark.slow
def test_search_reveals_what_is_hidden(notebook: Open) -> None:
    book, page, _ = opened(notebook)
    search = page.get_by_role("searchbox", name="search")
    search.fill("features.5 add")
    total = value(book, "len(view.network.nodes)")
    expect(page.locator(".qkit-tools .qkit-note").first).to_have_text(f"1 of {total}")
    search.press("Enter")
    book.until("view.selected == 'features.5:add' and 'features.5' in view.opened")
    page.get_by_role("button", name="close every block").click()
    book.until("not view.opened")
    page.get_by_role("button", name="open every block").click()
    book.until("view.opened == frozenset(view.network.blocks)")
    redrawn(book, page)


@pytest.mark.slow
def test_colours_are_chosen_measured_and_compared(notebook: Open) -> None:
    book, page, _ = opened(notebook)
    page.get_by_role("combobox", name="colour by").select_option("gradient")
    expect(page.get_by_role("status").filter(has_text="int8")).to_be_visible()
    page.get_by_role("button", name="measure what is missing").click()
    book.until("view.canvas.missing == '' and not view.worker.busy")
    expect(page.get_by_role("button", name="measure what is missing")).to_be_hidden()
    page.get_by_role("combobox", name="colour by").select_option("local")
    page.get_by_role("combobox", name="compared with").select_option("int16")
    book.until("view.canvas.other == 'int16'")
    expect(page.locator(".qkit-graph-legend")).to_contain_text("int16")
    page.get_by_role("combobox", name="how two lanes are shown").select_option("1")
    book.until("view.canvas.beside and len(view.canvas.shares[0]) == 2")
    page.get_by_role("combobox", name="colour by").select_option("macs")
    expect(page.get_by_role("combobox", name="compared with")).to_be_disabled()


@pytest.mark.slow
@pytest.mark.parametrize("width", [700, 1000, 1600])
def test_it_fits_the_page(notebook: Open, width: int) -> None:
    book, page, plot = opened(notebook, width=width)
    book.kernel("view.select('features.3.conv.1.0')")
    book.until("len(view.canvas.pictures) == 2")
    expect(page.locator(".qkit-graph-picture svg")).to_have_count(2)
    outer = page.locator(".qkit-graph").bounding_box()
    side, drawn = page.locator(".qkit-graph-side").bounding_box(), plot.bounding_box()
    assert outer is not None
    assert side is not None
    assert drawn is not None
    for inner in (side, drawn):
        assert inner["x"] >= outer["x"] - 1
        assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] + 1
    beside = side["y"] < drawn["y"] + drawn["height"] - 10
    assert beside == (width >= 1000)
    assert drawn["width"] >= 400
    assert page.evaluate("() => document.querySelector('.qkit-graph-plot canvas').width") > 0


@pytest.mark.slow
def test_it_is_in_the_explorer(notebook: Open) -> None:
    book = notebook(STUDY, "explorer = study.explore()\nexplorer", height=1500)
    page = book.page
    book.until("explorer.capture is not None and not explorer.worker.busy")
    page.get_by_role("button", name="graph", exact=True).click()
    book.until("explorer._graph is not None and explorer._graph.selected == explorer.selected")
    expect(page.locator(".qkit-graph-plot canvas")).to_be_visible()
    page.locator(".qkit-graph-plot canvas").focus()
    page.keyboard.press("ArrowUp")
    book.until("explorer._graph.selected == explorer.selected")
    expect(page.locator('.qkit-rows tr[aria-selected="true"] td').first).to_have_text(value(book, "explorer.selected"))
