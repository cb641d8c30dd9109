"""The range tuner in marimo, whose cells show one anywidget: dragged in a real Chromium; left out where marimo is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import missing

import qkit

NOTEBOOK = """\
import marimo
app = marimo.App(width="full")

@app.cell
def _():
    import qkit
    from qkit import zoo
    case = zoo.load("mobilenet_v2_hostile")
    study = qkit.Study(case.model, case.calibration, case.evaluation, metric="top1", scheme="int8-per-tensor")
    study.calibrate(progress=False)
    tuner = study.tune("features.3.conv.1.0.weight")
    tuner
    return (tuner,)
"""


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """A marimo server with the notebook."""
    lack = missing() or ("" if importlib.util.find_spec("marimo") else "marimo is not installed: pip install marimo")
    if lack:
        pytest.skip(f"BROWSER TESTS LEFT OUT: {lack}")
    path = tmp_path / "notebook.py"
    path.write_text(NOTEBOOK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "marimo", "edit", str(path), "--headless", "--no-token", "--skip-update-check"]
    env = {**os.environ, "PYTHONPATH": str(Path(qkit.__file__).parents[1]), "XDG_CONFIG_HOME": str(tmp_path)}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], env=env, stdout=log, stderr=log)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            except OSError:
                time.sleep(0.2)
            else:
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_the_tuner_is_whole_in_marimo(address: str) -> None:
    from lab import chromium
    from playwright.sync_api import expect

    with chromium() as browser:
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.goto(address)
        handle = page.locator(".qkit-handle[data-end=hi]")
        handle.wait_for(timeout=180_000)
        score = page.locator(".qkit-now")
        expect(score).to_contain_text("top1", timeout=60_000)
        expect(score).to_contain_text(re.compile(r"\d %"), timeout=60_000)
        opened = float(score.inner_text().split(" ")[0])
        place = handle.bounding_box()
        assert place is not None
        x, y = place["x"] + place["width"] / 2, place["y"] + 60
        page.mouse.move(x, y)
        page.mouse.down()
        page.mouse.move(x - 250, y, steps=10)
        output = page.locator(".qkit-figures").first.locator("tr").nth(1).locator("td")
        expect(output).to_have_count(2)
        now, before = (float(cell.removesuffix(" dB").replace("−", "-")) for cell in output.all_inner_texts())
        assert now > before + 10
        page.mouse.up()
        note = page.locator(".qkit-score .qkit-note").last
        expect(note).to_contain_text("evaluation samples", timeout=60_000)
        assert float(score.inner_text().split(" ")[0]) > opened + 10
        page.get_by_label("range by").select_option("minmax")
        expect(page.get_by_label("range by")).to_have_value("minmax")
        page.get_by_role("button", name="undo").click()
        expect(page.get_by_role("button", name="redo")).to_be_enabled()
        expect(page.locator(".qkit-error")).to_have_count(0)
