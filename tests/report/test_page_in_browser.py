"""The page in a real Chromium, opened as a file with the network cut: sorting, pointing, keys, print, light and dark.

With ``QKIT_PICTURES=folder`` pictures of the page are taken on the way.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from qkit.report import write

REQUIRED = os.environ.get("QKIT_REQUIRE_BROWSER") == "1"
CHROMIUM = os.environ.get("QKIT_CHROMIUM", "/usr/bin/chromium")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"]


def missing() -> str:
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed: pip install --group browser"
    return "" if Path(CHROMIUM).exists() else f"no Chromium at {CHROMIUM}: apt-get install chromium, or name one in QKIT_CHROMIUM"


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if lack := missing():
        if REQUIRED:
            pytest.fail(f"the browser tests cannot run: {lack}")
        pytest.skip(f"BROWSER TESTS LEFT OUT: {lack}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture(scope="module")
def address(full, tmp_path_factory) -> str:
    return write(full, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.fixture
def opened(browser, address, request) -> Iterator:
    """The page, offline; what it asks for and complains of fails the test at the end."""
    options = getattr(request, "param", {})
    context = browser.new_context(viewport={"width": 1600, "height": 1000}, reduced_motion="reduce", offline=True, **options)
    page = context.new_page()
    complaints: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type in ("error", "warning") else None)
    page.on("request", lambda sent: asked.append(sent.url) if not sent.url.startswith("data:") else None)
    page.set_default_timeout(15_000)
    page.goto(address)
    yield page
    context.close()
    assert complaints == []
    assert asked == [address]


def order(page) -> list[str]:
    """Names of the layers from left to right, as they lie on the screen."""
    return page.evaluate(
        """() => [...document.querySelectorAll('.chart .layer')]
            .map(g => [g.querySelector('.hit').getBoundingClientRect().left, g.dataset.name])
            .sort((a, b) => a[0] - b[0]).map(pair => pair[1])"""
    )


def picture(page, name: str) -> None:
    if folder := os.environ.get("QKIT_PICTURES"):
        page.screenshot(path=Path(folder) / f"report-{name}.png", full_page=True)


def test_chart_is_sorted_and_explored(opened, full):
    names = list(full.layers.index)
    assert order(opened) == names
    select, tip = opened.locator(".tools select"), opened.locator(".tip")
    select.select_option("local")
    by_local = full.layers["int8", "local sqnr"].astype(float).sort_values(kind="stable")
    assert order(opened) == list(by_local.index)
    assert not opened.locator(".chart .line").first.is_visible(), "a line along the depth means nothing in another order"
    select.select_option("loss")
    losses = [full.sensitivity["loss"].get(name, float("nan")) for name in order(opened)]
    known = [loss for loss in losses if loss == loss]
    assert known == sorted(known, reverse=True)
    select.select_option("order")
    assert order(opened) == names
    assert opened.locator(".chart .line").first.is_visible()
    assert not tip.is_visible()
    opened.locator(".chart .layer[data-name=second] .hit").hover()
    assert tip.is_visible()
    assert f"local {full.layers.loc['second', ('int8', 'local sqnr')]:.1f} dB" in tip.inner_text()
    box, frame = tip.bounding_box(), opened.locator("figure.layers").bounding_box()
    assert frame["x"] <= box["x"]
    assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1
    picture(opened, "hover")
    opened.mouse.move(5, 5)
    assert not tip.is_visible()


def test_chart_by_keys(opened, full):
    names = list(full.layers.index)
    opened.locator(".tools select").focus()
    for _ in range(3):
        opened.keyboard.press("Tab")
        if opened.evaluate("document.activeElement.closest('.chart') !== null"):
            break
    said = opened.locator(".tip")
    assert said.inner_text().startswith(names[0])
    opened.keyboard.press("ArrowRight")
    assert said.inner_text().startswith(names[1])
    opened.keyboard.press("End")
    assert said.inner_text().startswith(names[-1])
    opened.keyboard.press("ArrowRight")
    assert said.inner_text().startswith(names[-1])
    opened.keyboard.press("Escape")
    assert not said.is_visible()
    opened.keyboard.press("Home")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Enter")
    row = opened.locator("#table-layers tr.found")
    assert row.locator("td").nth(1).inner_text() == names[1]
    assert opened.evaluate("document.activeElement.matches('tr.found')")


def test_tables_are_sorted(opened, full):
    column = opened.locator("#table-layers thead tr").last.locator("button", has_text="local SQNR").first
    column.click()
    cells = opened.locator("#table-layers tbody tr td:nth-child(2)")
    expected = full.layers["int8", "local sqnr"].astype(float).sort_values(kind="stable")
    assert cells.all_inner_texts() == list(expected.index)
    column.focus()
    opened.keyboard.press("Enter")
    assert opened.locator("#table-layers th[aria-sort=descending]").count() == 1
    assert cells.first.inner_text() == expected.index[-1]


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_the_page_says_the_same(opened, full):
    assert opened.locator(".chart .layer").count() == len(full.layers)
    assert not opened.locator(".tools").is_visible()
    assert opened.locator(".chart .layer title").first.text_content().startswith(str(full.layers.index[0]))
    assert opened.locator("th button").count() == 0, "what does nothing is not there"
    assert opened.locator(".chart .line").first.is_visible()


def test_print(opened, full, tmp_path):
    opened.emulate_media(media="print", color_scheme="dark")
    for gone in ("nav", ".tools", "details", ".tip"):
        assert not opened.locator(gone).first.is_visible()
    for there in ("#summary", ".chart", "#worst article", "#reproduce pre"):
        assert opened.locator(there).first.is_visible()
    assert not opened.locator("#table-layers").is_visible(), "what fills pages stays on the screen, and the page says so"
    assert opened.locator("p.paper").is_visible()
    white = "rgb(255, 255, 255)"
    assert opened.evaluate("getComputedStyle(document.body).backgroundColor") == white, "paper is white in the dark, too"
    path = tmp_path / "report.pdf"
    opened.pdf(path=path, prefer_css_page_size=True)
    assert path.read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("width", [700, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_hangs_out_of_the_page(opened, width, scheme):
    opened.emulate_media(color_scheme=scheme)
    opened.set_viewport_size({"width": width, "height": 1000})
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    ink, ground = (opened.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor"))
    shades = [sum(int(part) for part in colour[4:-1].split(",")) for colour in (ink, ground)]
    assert (shades[0] > shades[1]) is (scheme == "dark")
    assert abs(shades[0] - shades[1]) > 400
    picture(opened, f"{width}-{scheme}")
