"""What a person meets in the explorer and the guide, in a real browser: room, folding, sorting, and a kernel that is gone."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("QKIT_REQUIRE_BROWSER") != "1":
    pytest.importorskip("playwright", reason="BROWSER TESTS LEFT OUT: playwright is not installed")

from lab import Notebook
from playwright.sync_api import Page, expect
from test_browser import STUDY as HOSTILE
from test_browser import pictured

#: A small study whose second half of layers has a cause; see `studies`.
STUDY = """\
import sys
sys.path[:0] = {paths!r}
from studies import ruined_study, ruined_diagnosis
study = ruined_study()
capture = study.capture(progress=False);"""
EXPLORER = "explorer = study.explore(capture)\nexplorer.wait()\nexplorer"

Open = Callable[..., Notebook]


def setup() -> str:
    here = Path(__file__).parent
    return STUDY.format(paths=[str(here), str(here.parent)])


def value(book: Notebook, expression: str) -> Any:
    return ast.literal_eval(book.kernel(expression))


def box(page: Page, selector: str) -> dict[str, float]:
    found = page.locator(selector).first.bounding_box()
    assert found is not None
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "beside"), [(700, False), (1000, True), (1600, True)])
def test_two_panes_where_there_is_room(notebook: Open, width: int, beside: bool) -> None:
    page = notebook(setup(), EXPLORER, width=width, height=1300).page
    page.locator(".qkit-rows tbody tr").first.wait_for()
    left, right = box(page, ".qkit-panes > :nth-child(1)"), box(page, ".qkit-panes > :nth-child(2)")
    assert (right["x"] >= left["x"] + left["width"]) == beside
    assert (right["y"] >= left["y"] + left["height"]) != beside
    panel = box(page, ".qkit-panel")
    assert right["x"] + right["width"] <= panel["x"] + panel["width"] + 1


@pytest.mark.slow
def test_the_sorted_column_is_seen_and_no_row_hides_under_the_head(notebook: Open) -> None:
    book = notebook(setup(), EXPLORER, width=700, height=1300)
    page = book.page
    page.locator(".qkit-rows tbody tr").first.wait_for()
    # room for two rows, so that one has to scroll
    page.add_style_tag(content=".qkit-rows { max-height: 84px !important; }")

    def clear(selector: str) -> None:
        """It stands in the table's box, right of the names and below the head."""
        part, rows = box(page, selector), box(page, ".qkit-rows")
        first, head = box(page, ".qkit-rows th"), box(page, ".qkit-rows thead")
        if "tr" in selector:
            assert part["y"] >= head["y"] + head["height"] - 1
            assert part["y"] + part["height"] <= rows["y"] + rows["height"] + 1
        else:
            assert part["x"] >= first["x"] + first["width"] - 1
            assert part["x"] + part["width"] <= rows["x"] + rows["width"] + 1

    for head in ("MACs", "int8 local", "int8 max error"):
        book.kernel(f"explorer.table.set_trait('sort_by', {head!r})")
        cell = f"th[data-head='{head}']"
        expect(page.locator(cell)).to_have_attribute("aria-sort", "ascending")
        clear(cell)
    names = page.locator(".qkit-rows tbody td:first-child").all_inner_texts()
    for name in (names[0], names[-1], names[4], names[3]):
        book.kernel(f"explorer.select({name!r})")
        expect(page.locator(".qkit-rows tr[aria-selected=true]")).to_contain_text(name)
        clear("tr[aria-selected=true]")
    page.locator("tr[aria-selected=true]").focus()
    for _ in range(3):
        page.keyboard.press("ArrowUp")
        clear("tr[aria-selected=true]")


@pytest.mark.slow
def test_sixteen_bits_are_folded_away_until_asked(notebook: Open) -> None:
    book = notebook(setup(), EXPLORER, height=1300)
    page = book.page
    head = page.locator("th[data-head='int16 SQNR']")
    expect(page.locator("th[data-head='int8 SQNR']")).to_be_visible()
    expect(head).to_be_hidden()
    expect(page.locator(".qkit-legend")).not_to_contain_text("int16")
    page.get_by_label("int16 too").check()
    expect(head).to_be_visible()
    expect(page.locator(".qkit-legend")).to_contain_text("int16")
    book.until("explorer.table.unfolded")
    head.get_by_role("button").click()
    book.until("explorer.table.sort_by == 'int16 SQNR'")
    page.get_by_label("int16 too").uncheck()
    book.until("explorer.table.sort_by == ''")
    expect(head).to_be_hidden()


@pytest.mark.slow
def test_losses_are_bars_and_measuring_them_shows_beside_the_button(notebook: Open) -> None:
    book = notebook(setup(), EXPLORER, height=1300)
    page = book.page
    dearest = value(book, "explorer.losses.dearest")
    assert value(book, "explorer.selected") == dearest
    parts = page.evaluate(
        "() => [...document.querySelectorAll('td.qkit-bar')].map(td => parseFloat(td.style.getPropertyValue('--part')))"
    )
    losses = value(book, "[max(explorer.losses.by_layer.get(row['name'], 0.0), 0.0) for row in explorer.table.rows]")
    assert parts == pytest.approx([100 * loss / max(losses) for loss in losses], abs=0.1)
    # the bars on the canvas are the theme's red
    red = page.evaluate(
        """() => { const canvas = document.querySelector('.qkit-plot canvas');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            let found = 0;
            for (let i = 0; i < data.length; i += 4) found += data[i] === 0xb3 && data[i + 1] === 0x26 && data[i + 2] === 0x1e;
            return found; }"""
    )
    assert red > 200
    assert not value(book, "explorer.losses.measured")
    button = page.get_by_role("button", name="measure each layer alone")
    bar, above = page.locator(".widget-hprogress").first.bounding_box(), button.bounding_box()
    assert bar is not None
    assert above is not None
    assert abs(bar["y"] - above["y"]) < 30, "progress stands beside the button"
    button.click()
    book.until("explorer.losses.measured and not explorer._ranker.busy")
    expect(button).to_be_hidden()
    assert value(book, "explorer.table.bars_unit == explorer.losses.unit")


@pytest.mark.slow
def test_after_a_restart_each_widget_says_to_run_the_cell_again(notebook: Open) -> None:
    cells = {
        "explorer": EXPLORER,
        "guide": "guide = study.guide(ruined_diagnosis())\nguide.wait()\nguide",
        "table": "explorer.table",
        "maps": "from qkit.widgets.map_view import FeatureMaps\nmaps = FeatureMaps()\nmaps.show(capture['stem'], 1)\nmaps",
    }
    book = notebook(setup(), *cells.values(), height=2400)
    page = book.page
    page.locator(".qkit-steps button").first.wait_for()
    page.locator(".qkit-maps figure").first.wait_for()
    page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart(); }")
    page.locator(".qkit-panel.jupyter-widgets-disconnected").first.wait_for()

    def said() -> list[str]:
        """What the style sheet says before each thing that lost its kernel, where it shows."""
        return page.evaluate(  # type: ignore[no-any-return]
            """() => [...document.querySelectorAll('.jupyter-widgets-disconnected, .qkit-lost')].flatMap(e => {
                const before = getComputedStyle(e, '::before');
                return before.display === 'none' || ['none', 'normal'].includes(before.content) ? [] : [before.content]; })"""
        )

    assert len(said()) == len(cells)
    assert all("un the cell again" in words for words in said())
    # nothing can be pressed or focused, by hand or by keyboard
    dead = page.evaluate(
        """() => [...document.querySelectorAll('.qkit-panel button, .qkit-panel select, .qkit-panel input')]
            .filter(e => !e.closest('[inert]')).length"""
    )
    assert dead == 0
    book.run_all()
    expect(page.locator(".jupyter-widgets-disconnected, .qkit-lost")).to_have_count(0)
    expect(page.locator(".qkit-panel [inert]")).to_have_count(0)
    book.until("explorer.capture is capture")
    book.errors.clear()  # the page lost a kernel


@pytest.mark.slow
def test_guide(notebook: Open) -> None:
    book = notebook(HOSTILE, "guide = study.guide(batches=4)\nguide", height=1000)
    page = book.page
    # progress stands where the answer will
    expect(page.locator(".qkit-walk .widget-hprogress")).to_be_visible()
    book.until("guide.diagnosis is not None and not guide.worker.busy", timeout=120)
    expect(page.get_by_role("heading", name=value(book, "guide.steps[0].question"))).to_be_visible()
    # the answer first: three bars, and its remedy one click away
    expect(page.locator(".qkit-card .track")).to_have_count(3)
    expect(page.get_by_role("button", name="apply").first).to_be_visible()
    pictured(book, "guide")
    kinds = value(book, "[s.kind for s in guide.steps]")

    # ticks and words say where one is; the keyboard walks
    walk = page.locator(".qkit-steps button")
    expect(walk).to_have_count(len(kinds))
    assert page.locator(".qkit-steps small").all_inner_texts() == ["here", *["not seen"] * (len(kinds) - 1)]
    page.get_by_role("button", name="next").click()
    expect(page.get_by_role("heading", name=value(book, "guide.steps[1].question"))).to_be_visible()
    expect(walk.nth(0)).to_contain_text("✓")
    expect(walk.nth(1)).to_have_attribute("aria-current", "step")
    walk.nth(1).focus()
    page.keyboard.press("ArrowDown")
    book.until("guide.step == 2")
    expect(walk.nth(2)).to_be_focused()
    expect(page.locator(".qkit-steps [aria-current=step]")).to_have_count(1)
    expect(page.locator(".qkit-picture svg")).to_be_visible()
    page.keyboard.press("End")
    book.until(f"guide.step == {len(kinds) - 1}")
    page.keyboard.press("Home")
    book.until("guide.step == 0")
    assert page.locator(".qkit-steps small").all_inner_texts().count("seen") == 3
    steps = len(kinds)
    walk.nth(kinds.index("remedies")).click()
    book.until(f"guide.step == {kinds.index('remedies')}")

    before = value(book, "guide.scores['now'].value")
    page.get_by_role("button", name="apply").first.click()
    book.until("len(guide.applied) == 1 and not guide.worker.busy")
    assert value(book, "guide.scores['now'].value") > before + 0.3
    numbers = "__import__('qkit.widgets.numbers', fromlist=['change_words'])"
    gain = value(book, f"{numbers}.change_words(guide.scores.loss('before', against='now'), guide.scores.units)")
    assert gain.startswith("+")
    expect(page.locator(".qkit-panel")).to_contain_text(gain)
    assert "applied" in page.locator(".qkit-steps small").all_inner_texts()
    pictured(book, "guide-applied")
    page.get_by_role("button", name="undo").click()
    book.until("not guide.applied and not guide.worker.busy and guide.plan == study.plan")
    assert value(book, "guide.scores['now'].value") == before

    for _ in range(steps - 1 - kinds.index("remedies")):
        page.get_by_role("button", name="next").click()
    page.get_by_role("button", name="write the report").click()
    book.until("__import__('pathlib').Path('degradation.html').exists()", timeout=120)
    expect(page.get_by_role("link", name="degradation.html")).to_be_visible()
