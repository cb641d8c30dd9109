"""The widgets in a real JupyterLab in a real Chromium: gestures on the page, state in the kernel, and no console errors.

With ``QKIT_PICTURES=folder`` the pictures of the docs are taken on the way.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

if os.environ.get("QKIT_REQUIRE_BROWSER") != "1":
    pytest.importorskip("playwright", reason="BROWSER TESTS LEFT OUT: playwright is not installed")

import numpy as np
from lab import Notebook, Server, opened
from playwright.sync_api import Browser, Locator, Page, expect
from studies import small_study

from qkit.widgets.layer_chart import Column, LayerTable
from qkit.widgets.map_view import FeatureMaps
from qkit.widgets.panel import Frame

STUDY = """\
import qkit
from qkit import zoo
case = zoo.load("mobilenet_v2_hostile")
study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
study.calibrate(progress=False);"""
TAP = "features.4.conv.1.0"
#: The layer whose weight costs the bundled hostile network most.
HOSTILE = "features.3.conv.1.0"

Open = Callable[..., Notebook]

#: Whether some pixel of the first plot has a theme's orange: the canvas itself, not the style sheet.
_COLOURED = """colour => { const canvas = document.querySelector('.qkit-plot canvas');
    const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    for (let i = 0; i < data.length; i += 4)
        if (data[i] === colour[0] && data[i + 1] === colour[1] && data[i + 2] === colour[2] && data[i + 3] === 255) return true;
    return false; }"""
_INK = {"light": [0xCC, 0x5F, 0x00], "dark": [0xFF, 0x9D, 0x4D]}


def pictured(book: Notebook, name: str) -> None:
    """Take the panel's picture in both themes where the docs ask for it; both are switched to anyway, and the colours follow."""
    folder = os.environ.get("QKIT_PICTURES")
    for theme in ("dark", "light"):
        book.theme(theme)
        if book.page.locator(".qkit-plot").count():
            book.page.wait_for_function(_COLOURED, arg=_INK[theme])
        if folder:
            book.page.wait_for_timeout(900)
            book.page.locator(".qkit-panel").first.screenshot(path=Path(folder) / f"{name}-{theme}.png")


def value(book: Notebook, expression: str) -> Any:
    return ast.literal_eval(book.kernel(expression))


def drag(page: Page, end: str, by: float, *, release: bool = True) -> None:
    handle = page.locator(f".qkit-handle[data-end={end}]")
    handle.wait_for()
    box = handle.bounding_box()
    assert box is not None
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by, y, steps=15)
    if release:
        page.mouse.up()


def figure(page: Page, name: str) -> str:
    """A figure of the tuner as the page shows it, by its name among `qkit.widgets.numbers.figure_rows`."""
    return page.locator(".qkit-figures").first.locator("tr").filter(has_text=name).locator("td").first.inner_text()


def box(page: Page, selector: str) -> Any:
    """Where an element is, in pixels."""
    found = page.locator(selector).first.bounding_box()
    assert found is not None
    return found


def cells(page: Page, column: int) -> list[str]:
    return page.locator(f".qkit-rows tbody tr td:nth-child({column})").all_inner_texts()


def test_tuner(notebook: Open) -> None:
    book = notebook(STUDY, f"tuner = study.tune({TAP!r})\ntuner", height=1150)
    page = book.page
    # the score is there before anything is done
    book.until("not tuner.worker.busy")
    opened = value(book, "study.score(batches=tuner.batches).value")
    expect(page.locator(".qkit-now")).to_contain_text(f"{100 * opened:.2f} %")
    expect(page.locator(".qkit-others")).to_contain_text("float")
    assert box(page, ".qkit-tuner")["height"] <= 420
    before = value(book, "tuner.output.total")
    high = value(book, "float(tuner.grid.params.hi)")

    drag(page, "hi", -320, release=False)
    # the figures come from the kernel while the handle is held, and the plan stays
    expect(page.locator(".qkit-figures").first.locator("tr").nth(1).locator("td").first).not_to_have_text(f"{before:.1f} dB")
    # beside those of the range that is being left
    expect(page.locator(".qkit-figures").first.locator("tr").nth(1).locator("td").last).to_have_text(f"{before:.1f} dB")
    assert value(book, "tuner.history.at") == 0
    page.mouse.up()
    book.until("tuner.history.at == 1 and tuner.effect is not None")
    tuned = value(book, "float(tuner.grid.params.hi)")
    assert 0 < tuned < 0.8 * high
    handle = page.locator(".qkit-handle[data-end=hi]")
    assert float(handle.get_attribute("aria-valuenow") or "nan") == pytest.approx(tuned)
    assert figure(page, "layer's output") == f"{value(book, 'tuner.output.total'):.1f} dB"
    assert figure(page, "steps used") == "256 of 256"
    # the score after the release is that of a whole evaluation
    assert value(book, "float(tuner.effect.scores.mean())") == value(
        book, "study.evaluate({'plan': tuner.plan}, batches=tuner.batches, progress=False)['plan'].value"
    )
    expect(page.locator(".qkit-now")).to_contain_text(f"{100 * value(book, 'float(tuner.effect.scores.mean())'):.2f} %")
    expect(page.locator(".qkit-now")).to_contain_text("top1")
    expect(page.locator(".qkit-score .qkit-note").filter(has_text=re.compile(r"\b256\b"))).to_be_visible()

    page.get_by_role("button", name="undo").click()
    book.until("tuner.history.at == 0")
    assert value(book, "tuner.plan == study.plan")
    expect(handle).to_have_attribute("aria-valuenow", str(high))
    page.get_by_role("button", name="redo").click()
    book.until("tuner.history.at == 1")
    expect(handle).to_have_attribute("aria-valuenow", str(tuned))

    # the keyboard: one step of the grid a press
    step = value(book, "float(tuner.grid.params.scale)")
    handle.focus()
    page.keyboard.press("ArrowLeft")
    # measured too: a position that the next edit overtakes has no score to show as the one before
    book.until("tuner.history.at == 2 and not tuner.worker.busy")
    assert value(book, "float(tuner.grid.params.hi)") == pytest.approx(tuned - step, rel=1e-3)

    expect(page.locator(".qkit-figures").first).to_contain_text("before")
    page.get_by_role("button", name="copy as code").click()
    expect(page.locator(".qkit-code pre")).to_contain_text("tuned = study.with_plan(plan)")
    code = page.locator(".qkit-code pre").inner_text()
    assert value(book, f"(ns := {{'study': study}}, exec({code!r}, ns), ns['plan'] == tuner.plan)[2]")
    page.get_by_role("button", name="copy as code").click()
    page.get_by_label("range by").select_option("entropy")
    book.until("tuner.grid.method == 'entropy' and not tuner.worker.busy")
    expect(page.get_by_label("range by")).to_have_value("entropy")
    expect(page.locator(".qkit-others")).to_contain_text("before")
    assert box(page, ".qkit-tuner")["height"] <= 420
    pictured(book, "tuner")


@pytest.mark.slow
def test_several_tensors_are_tuned_together_with_one_undo(notebook: Open) -> None:
    book = notebook(STUDY, "tuner = study.tune('features.3.conv.1.0.weight')\ntuner", height=1000)
    page = book.page
    page.locator(".qkit-handle").first.wait_for()
    book.until("not tuner.worker.busy")
    opened = value(book, "float(tuner.effect.scores.mean())")
    page.get_by_label("tensor", exact=True).select_option("weights: depthwise conv")
    book.until("len(tuner.tensors) > 10 and tuner.tensor == 'features.3.conv.1.0.weight'")
    expect(page.get_by_label("percentile", exact=True)).to_be_hidden()
    page.get_by_label("range by").select_option("percentile")
    book.until("tuner.history.at == 1 and tuner.effect is not None and not tuner.worker.busy")
    page.get_by_label("percentile", exact=True).fill("99")
    page.get_by_label("percentile", exact=True).press("Enter")
    book.until("tuner.history.at == 2 and tuner.effect is not None and not tuner.worker.busy")
    assert value(book, "set(study.plan.diff(tuner.plan)) == set(tuner.tensors)")
    assert value(book, "float(tuner.effect.scores.mean())") > opened + 0.3
    page.get_by_role("button", name="copy as code").click()
    code = page.locator(".qkit-code pre").inner_text()
    assert "'percentile', percentile=99.0" in code
    assert len(code) < 250, "the rule, not a range for each tensor"
    assert value(book, f"(ns := {{'study': study}}, exec({code!r}, ns), ns['plan'] == tuner.plan)[2]")
    page.get_by_label("shown of them").select_option("features.5.conv.1.0.weight")
    book.until("tuner.tensor == 'features.5.conv.1.0.weight' and len(tuner.tensors) > 10")
    drag(page, "hi", -40)
    book.until("tuner.history.at == 3 and not tuner.worker.busy")
    for _ in range(3):
        page.get_by_role("button", name="undo").click()
    book.until("tuner.history.at == 0")
    assert value(book, "tuner.plan == study.plan")


@pytest.mark.slow
def test_a_restarted_kernel_is_said_on_the_widgets(notebook: Open) -> None:
    book = notebook(STUDY, f"tuner = study.tune({TAP!r})\ntuner", "panel = study.calibration_panel()\npanel", height=1400)
    page = book.page
    page.locator(".qkit-handle").first.wait_for()
    said = "[...document.querySelectorAll('.qkit-panel')].map(e => getComputedStyle(e, '::before').content)"
    assert "run the cell again" not in "".join(page.evaluate(said))
    page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.restartKernel(); }")
    page.wait_for_function(f"{said}.filter(words => words.includes('run the cell again')).length === 2")
    # nothing else is left to press, and no broken icons stand beside it
    assert page.evaluate("document.querySelectorAll('.qkit-lost > :not([inert])').length") == 0
    icons = "[...document.querySelectorAll('.qkit-panel .jupyter-widgets-disconnected')].map(e => getComputedStyle(e, '::before').display)"
    assert set(page.evaluate(icons)) == {"none"}
    book.errors.clear()  # the page lost its kernel


@pytest.mark.slow
def test_a_grid_per_channel_is_tuned_channel_by_channel(notebook: Open) -> None:
    book = notebook(STUDY, f"tuner = study.tune({TAP + '.weight'!r})\ntuner.set_rule(per_channel=True)\ntuner", height=1300)
    page = book.page
    page.get_by_role("listbox", name="channels").focus()
    page.keyboard.press("End")
    book.until("tuner.channel == len(tuner.grid.params.scale) - 1")
    before = value(book, "tuner.grid.params.scale.tolist()")
    drag(page, "hi", -150)
    book.until("tuner.history.at == 2 and not tuner.worker.busy")
    after = value(book, "tuner.grid.params.scale.tolist()")
    assert after[:-1] == before[:-1]
    assert after[-1] < before[-1]
    pictured(book, "tuner-per-channel")


@pytest.mark.slow
def test_errors_show_in_place(notebook: Open) -> None:
    book = notebook(STUDY, f"tuner = study.tune({TAP!r})\ntuner")
    page = book.page
    page.locator(".qkit-handle").first.wait_for()
    # Python's: a range that ends before it begins
    lower = page.get_by_role("textbox", name="from")
    lower.fill("30")
    lower.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text(re.compile(r"\[30, .*\bempty\b"))
    expect(lower).to_have_value("0")
    assert value(book, "tuner.plan == study.plan")
    # what is no finite number, and what is no number
    for text, said in (("1e400", "finite"), ("nan", "finite"), ("wide", "number")):
        lower.fill(text)
        lower.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text(re.compile(said))
        expect(lower).to_have_value("0")
    assert value(book, "tuner.plan == study.plan")
    page.get_by_label("range by").select_option("minmax")
    expect(page.get_by_role("alert")).to_have_count(0)
    book.until("tuner.grid.method == 'minmax' and tuner.effect is not None")
    # JavaScript's: what the plot cannot draw
    book.kernel("setattr(tuner, 'marks', [None])")
    expect(page.get_by_role("alert")).to_be_visible()
    assert book.errors
    book.errors.clear()


@pytest.mark.slow
def test_explorer(notebook: Open) -> None:
    book = notebook(STUDY, "explorer = study.explore()\nexplorer", height=1500)
    page = book.page
    book.until("explorer.capture is not None and not explorer.worker.busy")
    names = value(book, "list(explorer.capture.table().index)")
    rows = page.locator(".qkit-rows tbody tr")
    expect(rows).to_have_count(len(names))
    assert cells(page, 1) == names
    # what is at fault is open: the weight that was made hostile, not its activation
    book.until("explorer.losses is not None and not explorer._ranker.busy")
    assert value(book, "(explorer.selected, explorer.tuner.tensor)") == (HOSTILE, f"{HOSTILE}.weight")
    expect(page.locator(".qkit-rows tr[aria-selected=true]")).to_contain_text(HOSTILE)
    expect(page.locator(".qkit-split tr").filter(has_text="at fault")).to_contain_text("weight")

    page.get_by_role("button", name="int8 local", exact=True).click()
    book.until("explorer.table.sort_by == 'int8 local' and not explorer.table.descending")
    worst = value(book, "list(explorer.capture.table()['int8']['local sqnr'].sort_values(kind='stable').index)")
    assert cells(page, 1) == worst
    page.get_by_label("filter by name or kind").fill("add")
    book.until("explorer.table.filter == 'add'")
    assert all(cell.endswith(":add") for cell in cells(page, 1))
    assert len(cells(page, 1)) == value(book, "sum(explorer.capture.table()['tap']['kind'] == 'add')")
    page.get_by_label("filter by name or kind").fill("")

    # the keyboard walks through the rows, and the layer goes along
    rows.first.locator("td").first.click()
    book.until(f"explorer.selected == {worst[0]!r}")
    rows.first.focus()
    page.keyboard.press("ArrowDown")
    book.until(f"explorer.selected == {worst[1]!r} and explorer.tuner.tensor == {worst[1] + '.weight'!r}")
    expect(page.locator(".qkit-rows tr[aria-selected=true]")).to_contain_text(worst[1])
    page.get_by_role("button", name="activation", exact=True).click()
    book.until(f"explorer.tuner.tensor == {worst[1]!r}")
    rows.first.locator("td").first.click()
    book.until(f"explorer.tuner.tensor == {worst[0] + '.weight'!r}")
    expect(page.locator("th[data-head='int8 local']")).to_be_in_viewport(ratio=1)
    pictured(book, "explorer")

    page.get_by_role("button", name="weights per channel").click()
    book.until("len(explorer.strip.ranges) > 0")
    weight = value(book, "study.graph.operation(explorer.selected).weight")
    peaks = f"p := study.graph.weights[{weight!r}].abs().flatten(1).amax(1)"
    number = "__import__('qkit.style', fromlist=['number']).number"
    spread = value(book, f"({peaks}, {number}(float(p.max() / p[p > 0].min()), 3))[1]")
    expect(page.locator(".qkit-facts").filter(has_text=weight)).to_contain_text(spread)

    page.get_by_role("button", name="feature maps").click()
    book.until("explorer.maps.maps is not None and not explorer.worker.busy")
    expect(page.locator(".qkit-maps figure")).to_have_count(5)
    worst_channel = value(book, "int(explorer.maps.maps.ranking[0])")
    assert value(book, "explorer.maps.channel.value") == worst_channel
    page.get_by_label("channel", exact=True).select_option(index=3)
    book.until("explorer.maps.channel.value == int(explorer.maps.maps.ranking[3])")
    assert value(
        book,
        "explorer.maps.plot.maps == __import__('numpy').concatenate([*(l[explorer.maps.channel.value] for l in explorer.maps.maps.lanes.values()),"
        " *(l[explorer.maps.channel.value] - explorer.maps.maps.lanes['float'][explorer.maps.channel.value]"
        " for n, l in explorer.maps.maps.lanes.items() if n != 'float')]).astype('f4').tobytes()",
    )
    pictured(book, "feature-maps")


@pytest.mark.slow
def test_calibration_panel(notebook: Open) -> None:
    book = notebook(STUDY, "panel = study.calibration_panel()\npanel", height=1400)
    page = book.page
    page.locator(".qkit-rows tbody tr").first.wait_for()
    page.get_by_label("activations", exact=True).select_option("entropy")
    book.until("panel.plan != study.plan and not panel.worker.busy")
    assert value(book, "panel.plan == study.with_calibration(method='entropy').plan")
    many = value(book, "(len(study.plan.diff(panel.plan)), len(study.plan.grids))")
    expect(page.locator(".qkit-panel")).to_contain_text("{} of {}".format(*many))
    page.get_by_role("button", name="score", exact=False).first.click()
    book.until("panel.scores is not None and not panel.worker.busy")
    page.get_by_role("button", name="compare methods").click()
    book.until("panel.comparison is not None and not panel.worker.busy")
    expect(page.locator(".qkit-facts").last).to_contain_text("moving-average")
    pictured(book, "calibration")
    page.get_by_role("button", name="reset").click()
    book.until("panel.plan == study.plan")


@pytest.mark.slow
def test_long_work_is_cancelled_and_leaves_the_page_alive(notebook: Open) -> None:
    book = notebook(STUDY, "guide = study.guide()\nguide", f"tuner = study.tune({TAP!r})\ntuner", height=1300)
    page = book.page
    cancel = page.get_by_role("button", name="cancel").first
    expect(cancel).to_be_visible()
    assert value(book, "guide.worker.busy")
    # the diagnosis computes in its thread; gestures of another widget are answered all the same
    before = page.locator(".qkit-figures").first.inner_text()
    drag(page, "hi", -200, release=False)
    expect(page.locator(".qkit-figures").first).not_to_have_text(before)
    assert value(book, "guide.worker.busy")
    page.mouse.up()
    cancel.click()
    book.until("not guide.worker.busy")
    book.until("not tuner.worker.busy and tuner.effect is not None")
    assert value(book, "guide.error") == ""


@pytest.mark.slow
def test_a_closed_widget_leaves_its_picture_and_a_cell_run_again_one_widget(notebook: Open) -> None:
    book = notebook(STUDY, f"tuner = study.tune({TAP!r})\ntuner", height=1150)
    page = book.page
    page.locator(".qkit-handle").first.wait_for()
    count = "len(__import__('ipywidgets').widgets.widget._instances)"
    before = value(book, count)
    for _ in range(2):
        page.evaluate(
            "() => { jupyterapp.shell.currentWidget.content.activeCellIndex = 1; return jupyterapp.commands.execute('notebook:run-cell'); }"
        )
        expect(page.locator(".qkit-panel")).to_have_count(1)
        assert value(book, count) == before
    drag(page, "hi", -250)
    book.until("tuner.history.at == 1")
    high = value(book, "float(tuner.grid.params.hi)")
    expect(page.locator(".qkit-static")).to_be_hidden()

    book.kernel("tuner.close()")
    expect(page.locator(".qkit-panel")).to_have_count(0)
    expect(page.locator(".qkit-static")).to_be_visible()
    expect(page.locator(".qkit-static")).to_contain_text(f"{high:.6g}")
    expect(page.locator(".jp-RenderedImage img")).to_be_visible()
    assert value(book, "len(get_ipython().kernel.comm_manager.comms)") < 10
    assert value(book, "float(tuner.plan[tuner.tensor].params.hi)") == high


#: Counts what a view leaves behind on the page, outside of its own element: observers, timers, frames, listeners.
_COUNTING = """() => {
    const held = (window.held = new Map());
    const note = (what, by) => held.set(what, (held.get(what) ?? 0) + by);
    for (const name of ['ResizeObserver', 'MutationObserver', 'IntersectionObserver']) {
        const Real = window[name];
        window[name] = class extends Real {
            observe(...args) { if (!this.on) note(name, 1); this.on = true; super.observe(...args); }
            disconnect() { if (this.on) note(name, -1); this.on = false; super.disconnect(); }
        };
    }
    for (const [set, clear] of [['setInterval', 'clearInterval'], ['setTimeout', 'clearTimeout'], ['requestAnimationFrame', 'cancelAnimationFrame']]) {
        const [start, stop, running] = [window[set], window[clear], new Set()];
        const end = (id) => { if (running.delete(id)) note(set, -1); };
        window[set] = (work, ...rest) => {
            const id = start((...args) => { if (set !== 'setInterval') end(id); work(...args); }, ...rest);
            running.add(id);
            note(set, 1);
            return id;
        };
        window[clear] = (id) => { end(id); stop(id); };
    }
    for (const [method, by] of [['addEventListener', 1], ['removeEventListener', -1]]) {
        const real = EventTarget.prototype[method];
        EventTarget.prototype[method] = function (...args) {
            const own = this instanceof Element && this !== document.body && this !== document.documentElement;
            if (!own) note('listeners', by);
            return real.apply(this, args);
        };
    }
}"""
#: Renders a module with a model of its own, twice, and takes both views away; returns what is left, and whether it drew.
_RENDERING = """async ([source, state]) => {
    const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
    const widget = (await import(url)).default;
    const handlers = new Set();
    for (const [name, value] of Object.entries(state))
        if (value?.bytes) state[name] = new DataView(Uint8Array.from(value.bytes).buffer);
    const model = {
        get: (name) => state[name], set: (name, value) => (state[name] = value), save_changes() {}, send() {},
        on: (event, work) => handlers.add(event + work), off: (event, work) => handlers.delete(event + work),
    };
    const views = [];
    for (let i = 0; i < 2; i += 1) {
        const el = document.body.appendChild(document.createElement('div'));
        views.push([el, await widget.render({ model, el })]);
    }
    await new Promise((done) => setTimeout(done, 100));
    const failed = document.querySelector('.qkit-error')?.textContent ?? '';
    const busy = Object.fromEntries(window.held);
    for (const [el, clean] of views) { el.remove(); clean?.(); }
    await new Promise((done) => setTimeout(done, 100));
    const left = [...window.held].filter(([what, count]) => count);
    return { failed, busy, left, handlers: handlers.size };
}"""


@pytest.mark.slow
def test_views_clean_up_after_themselves(browser: Browser) -> None:
    study = small_study()
    maps, explorer = FeatureMaps(), study.explore(study.capture(progress=False))
    maps.show(study.capture(progress=False)["stem"], 1)
    canvases = {
        "frame": Frame(), "layers": explorer.table, "maps": maps.plot, "tuner": explorer.tuner, "strip": explorer.strip,
    }  # fmt: skip
    explorer.tuner.wait()
    explorer.strip.show(np.array([-1.0, -2.0]), np.array([1.0, 3.0]), None)
    page = browser.new_page()
    page.evaluate(_COUNTING)
    for name, canvas in canvases.items():
        state = {
            key: {"bytes": list(v)} if isinstance(v, bytes) else v for key, v in canvas.get_state().items() if key != "layout"
        }
        found = page.evaluate(_RENDERING, [canvas._esm, state])
        assert (found["failed"], found["left"], found["handlers"]) == ("", [], 0), name
        if name in ("layers", "tuner", "strip"):
            assert found["busy"]["ResizeObserver"] == (4 if name == "tuner" else 2), "it is counted"
    page.close()
    explorer.close()
    maps.close()


#: One view of a module with a model that only holds its state.
_SHOWING = """async ([source, state]) => {
    const url = URL.createObjectURL(new Blob([source], { type: 'text/javascript' }));
    const model = { get: (name) => state[name], set() {}, save_changes() {}, send() {}, on() {}, off() {} };
    (await import(url)).default.render({ model, el: document.body });
}"""


def test_before_the_figures_come_there_is_nothing_to_point_at(browser: Browser) -> None:
    table = LayerTable()
    table.show([Column("layer", words=True)], {"stem": ("stem",), "head": ("head",)}, {})
    page = browser.new_page()
    page.evaluate(_SHOWING, [table._esm, {key: v for key, v in table.get_state().items() if key != "layout"}])
    expect(page.locator(".qkit-rows tbody tr")).to_have_count(2)
    page.locator(".qkit-plot canvas").hover()
    page.locator(".qkit-rows tbody tr").first.hover()
    expect(page.locator(".qkit-error")).to_have_count(0)
    expect(page.locator(".qkit-tip")).to_be_hidden()
    page.close()


@pytest.mark.slow
def test_a_saved_notebook(notebook: Open, lab: Server, browser: Browser) -> None:
    book = notebook(STUDY, f"tuner = study.tune({TAP!r})\ntuner", height=1100)
    page = book.page
    page.locator(".qkit-handle").first.wait_for()
    stand_in = page.locator(".qkit-static")
    expect(stand_in).to_have_count(1)
    expect(stand_in).to_be_hidden()
    drag(page, "hi", -250)
    book.until("tuner.history.at == 1 and tuner.effect is not None")
    high = value(book, "float(tuner.grid.params.hi)")
    expect(stand_in).to_contain_text(f"{high:.6g}", use_inner_text=False)  # the stand-in follows, hidden
    saved = book.save()
    outputs = [output["data"] for output in saved["cells"][1]["outputs"]]
    assert [next(iter(data)) for data in outputs] == ["application/vnd.jupyter.widget-view+json", "image/png", "text/html"]

    # the same kernel, the page loaded again: alive as before
    page.reload()
    page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
    handle = page.locator(".qkit-handle[data-end=hi]")
    expect(handle).to_have_attribute("aria-valuenow", str(high), timeout=20_000)
    page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.ready; }")
    drag(page, "hi", -60)
    book.until("tuner.history.at == 2")
    book.shut_down()
    book.errors.clear()  # the page lost its kernel

    with opened(lab, browser, book.path, kernel=False) as still:
        still.page.locator(".qkit-static").wait_for()
        expect(still.page.locator(".qkit-static")).to_contain_text(f"{high:.6g}")
        picture = still.page.locator(".jp-RenderedImage img")
        expect(picture).to_be_visible()
        assert still.page.evaluate("() => document.querySelector('.jp-RenderedImage img').naturalWidth") > 600
        expect(still.page.get_by_text("model not found")).to_be_hidden()
        expect(still.page.get_by_text("Run the cell again")).to_be_visible()


@pytest.mark.slow
def test_nbconvert_shows_picture_and_table(notebook: Open) -> None:
    from nbconvert import HTMLExporter

    book = notebook(STUDY, f"tuner = study.tune({TAP!r})\ntuner")
    book.page.locator(".qkit-handle").first.wait_for()
    book.save()
    page, _ = HTMLExporter().from_filename(str(book.path))
    assert len(re.findall(r"<img[^>]*data:image/png", page)) == 1
    assert re.search(r"<th[^>]*>layer[^<]* output</th>\s*<td>[-−]?[\d.]+ dB", page)


@pytest.mark.slow
@pytest.mark.parametrize("width", [700, 1600])
def test_widths(notebook: Open, width: int) -> None:
    book = notebook(
        STUDY,
        "capture = study.capture(progress=False)\nexplorer = study.explore(capture)\nexplorer",
        "panel = study.calibration_panel()\npanel",
        width=width,
        height=1900,
    )
    page = book.page
    page.locator(".qkit-rows tbody tr").first.wait_for()
    page.wait_for_timeout(500)
    over = page.evaluate(
        """() => [...document.querySelectorAll('.qkit-panel, .qkit-plot, .qkit-tools')]
            .filter(e => e.scrollWidth > e.clientWidth + 2).map(e => [e.className, e.scrollWidth, e.clientWidth])"""
    )
    assert over == []

    def across(part: Locator) -> float:
        found = part.bounding_box()
        assert found is not None
        return found["width"]

    # the explorer has two panes where there is room, and the plot fills its own; the calibration panel's has the whole width
    left = page.locator(".qkit-panes > :first-child")
    assert across(page.locator(".qkit-panes")) > 0.6 * width
    assert across(left.locator(".qkit-plot canvas").first) > 0.95 * across(left)
    assert across(page.locator(".qkit-plot canvas").last) > 0.6 * width
    folder = os.environ.get("QKIT_PICTURES")
    if folder and width == 700:
        page.locator(".qkit-panel").first.screenshot(path=Path(folder) / "explorer-narrow.png")
