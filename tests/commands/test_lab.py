"""``qkit lab``: a copy that never takes away what the user changed, and JupyterLab on it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from command_cases import Run

from qkit.commands import lab, notebooks
from qkit.errors import QkitError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    origin = tmp_path / "origin"
    (origin / "pictures").mkdir(parents=True)
    (origin / ".ipynb_checkpoints").mkdir()
    (origin / "out").mkdir()
    for name, text in (
        ("01_one.ipynb", "one"), ("02_two.ipynb", "two"), ("pictures/a.png", "a"), ("execute.py", "no"), ("nbval.cfg", "no"), ("out/plan.json", "no"),
        (".ipynb_checkpoints/01_one.ipynb", "no"),
    ):  # fmt: skip
        (origin / name).write_text(text)
    return origin


def test_a_copy_is_brought_up_to_date_and_changes_are_kept(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "work" / "mine"
    first = notebooks.copy(target, source=source)
    assert first.new == ("01_one.ipynb", "02_two.ipynb", "pictures/a.png"), "the notebooks and what they show, no tools"
    assert notebooks.copy(target, source=source).same == first.new
    (target / "01_one.ipynb").write_text("mine")
    (target / "own.ipynb").write_text("my own")
    (source / "01_one.ipynb").write_text("one, better")
    (source / "02_two.ipynb").write_text("two, better")
    second = notebooks.copy(target, source=source)
    assert (second.kept, second.updated, second.same) == (("01_one.ipynb",), ("02_two.ipynb",), ("pictures/a.png",))
    assert (target / "01_one.ipynb").read_text() == "mine"
    assert (target / "02_two.ipynb").read_text() == "two, better"
    assert notebooks.copy(target, source=source).kept == ("01_one.ipynb",), "and is still the user's the next time"
    third = notebooks.copy(target, source=source, overwrite=True)
    assert third.replaced == ("01_one.ipynb",)
    assert (target / "01_one.ipynb").read_text() == "one, better"
    assert (target / "own.ipynb").read_text() == "my own"
    assert sorted(path.name for path in source.iterdir()) == [
        ".ipynb_checkpoints", "01_one.ipynb", "02_two.ipynb", "execute.py", "nbval.cfg", "out", "pictures",
    ], "the kit's own are as they were"  # fmt: skip


@pytest.mark.parametrize("damage", ["{", "[]", '{"copied": 3}'])
def test_a_damaged_list_makes_every_file_the_users(damage: str, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    notebooks.copy(target, source=source)
    (target / notebooks.LISTED).write_text(damage)
    (source / "01_one.ipynb").write_text("one, better")
    assert notebooks.copy(target, source=source).kept == ("01_one.ipynb",)
    assert (target / "01_one.ipynb").read_text() == "one"


def test_links_are_not_followed(source: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "mine"
    target.mkdir()
    (target / "01_one.ipynb").symlink_to(outside / "made.ipynb")
    (target / "pictures").symlink_to(outside)
    with pytest.raises(QkitError, match=r"01_one\.ipynb .*\blink\b"):
        notebooks.copy(target, source=source, overwrite=True)
    (target / "01_one.ipynb").unlink()
    with pytest.raises(QkitError, match=r"a\.png .*\blink\b"):
        notebooks.copy(target, source=source)
    assert not list(outside.iterdir())


def test_the_kits_own_folder_is_no_copy(source: Path) -> None:
    for target in (source, source / "inside"):
        with pytest.raises(QkitError, match=re.escape(str(target))):
            notebooks.copy(target, source=source)


def test_copy_only_says_what_it_did(run: Run, data: Run, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "SOURCES", (folder / "nowhere", source))
    code, said, _ = run("lab", "--copy-only")
    assert code == 0
    assert ": 01_one.ipynb, 02_two.ipynb" in said
    (folder / "qkit-notebooks" / "01_one.ipynb").write_text("mine")
    code, said, _ = run("lab", "--copy-only")
    assert re.search(r"--overwrite.*: 01_one\.ipynb$", said, re.MULTILINE)
    code, told = data("lab", "elsewhere", "--copy-only")
    assert (code, told["folder"], told["new"][0]) == (0, "elsewhere", "01_one.ipynb")
    monkeypatch.setattr(notebooks, "SOURCES", (folder / "nowhere",))
    code, _, warned = run("lab", "--copy-only")
    assert code == 2
    assert "nowhere" in warned


def test_what_is_missing_is_named_with_its_extra(run: Run, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notebooks, "SOURCES", (source,))
    monkeypatch.setattr(lab, "_NEEDED", ("jupyterlab_of_mars", "json"))
    code, _, warned = run("lab")
    assert code == 2
    assert "jupyterlab_of_mars" in warned
    assert "'.[lab]'" in warned
    assert not (folder / "qkit-notebooks").exists()


def test_jupyterlab_is_started_on_the_copy(run: Run, source: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    class Process:
        def __init__(self, arguments: list[str], **_: Any) -> None:
            started.append(arguments)
            self.asked = 0

        def wait(self) -> int:
            self.asked += 1
            if self.asked == 1:
                raise KeyboardInterrupt  # which JupyterLab gets too, and asks back
            return 0 if len(started) == 1 else 3

    monkeypatch.setattr(notebooks, "SOURCES", (source,))
    monkeypatch.setattr(subprocess, "Popen", Process)
    assert run("lab", "mine", "--no-browser", "--port", "9321")[0] == 0
    assert started[0][:3] == [sys.executable, "-m", "jupyterlab"]
    assert {f"--ServerApp.root_dir={folder / 'mine'}", "--no-browser", "--port=9321"} <= set(started[0])
    assert "--LabApp.default_url=/lab/tree/01_one.ipynb" in started[0], "the first notebook opens by itself"
    code, _, warned = run("lab", "mine")
    assert code == 2
    assert re.search(r"\bJupyterLab\b.*\b3\b", warned)
    assert "--no-browser" not in started[1]


@pytest.mark.slow
def test_a_real_jupyterlab_serves_the_copy(folder: Path) -> None:
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "qkit", "lab", "mine", "--no-browser", "--allow-root", "--port", str(port)], cwd=folder, stderr=subprocess.PIPE,
        env={**os.environ, "JUPYTER_TOKEN": "t", "JUPYTER_ALLOW_INSECURE_WRITES": "1"}, start_new_session=True, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents?token=t", timeout=5) as answer:
                    names = {entry["name"] for entry in json.load(answer)["content"]}
                break
            except OSError:
                assert process.poll() is None, process.stderr and process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(1)
        assert {path.name for path in notebooks.find().glob("*.ipynb")} <= names
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/?token=t", timeout=60) as answer:
            assert answer.url.partition("?")[0].endswith("/lab/tree/01_is_it_quantization.ipynb"), "what is opened is the first"
        setting = f"http://127.0.0.1:{port}/lab/api/settings/@jupyterlab/apputils-extension:notification?token=t"
        with urllib.request.urlopen(setting, timeout=60) as answer:
            default = json.load(answer)["schema"]["properties"]["fetchNews"]["default"]
        assert default == "false", "JupyterLab does not ask about news, which would lie over the first notebook"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)
