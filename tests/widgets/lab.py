"""A real JupyterLab in a real Chromium: what the browser tests, the pictures of the docs and the benchmark drive."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = os.environ.get("QKIT_CHROMIUM", "/usr/bin/chromium")
_FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
    "--disable-sync"
).split()
#: News, autosave and the removal of cells out of sight would each disturb a test.
_SETTINGS: dict[str, dict[str, Any]] = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
_THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


@dataclass(frozen=True)
class Server:
    """A running server and the folder of its notebooks."""

    url: str
    folder: Path


@contextmanager
def server(root: Path) -> Iterator[Server]:
    """JupyterLab with configuration, data and settings of its own under `root`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for name in ("notebooks", "settings"):
        (root / name).mkdir(parents=True)
    (root / "settings" / "overrides.json").write_text(json.dumps(_SETTINGS))
    private = {f"JUPYTER_{name}_DIR": str(root / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    env = {**os.environ, **private, "IPYTHONDIR": str(root / "ipython"), "PYTHONPATH": os.pathsep.join(sys.path)}
    options = {
        "ip": "127.0.0.1",
        "port": port,
        "ServerApp.port_retries": 0,
        "IdentityProvider.token": "",
        "ServerApp.root_dir": root / "notebooks",
        "LabApp.expose_app_in_browser": True,
        "LabApp.app_settings_dir": root / "settings",
        "LabApp.workspaces_dir": root / "workspaces",
        "LabApp.user_settings_dir": root / "user",
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", *(f"--{k}={v}" for k, v in options.items())]
    with (root / "lab.log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        url = f"http://127.0.0.1:{port}"
        try:
            _until_up(url, process, root / "lab.log")
            yield Server(url, root / "notebooks")
        finally:
            process.terminate()
            process.wait(10)


def _until_up(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        try:
            urllib.request.urlopen(url + "/api/status", timeout=1)
        except OSError:
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:]) from None
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"JupyterLab did not start: {log.read_text()[-2000:]}")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        browser.close()


@dataclass
class Notebook:
    """An open notebook whose kernel runs."""

    page: Page
    url: str
    path: Path
    errors: list[str] = field(default_factory=list)

    def run_all(self) -> None:
        """Run every cell and wait until the kernel is idle; raises with the traceback if one fails."""
        self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        problem = self.page.evaluate(
            """() => jupyterapp.shell.currentWidget.content.widgets.flatMap(cell => cell.model.type === 'code'
                ? cell.model.outputs.toJSON().filter(o => o.output_type === 'error').map(o => o.traceback.join('\\n')) : [])"""
        )
        if problem:
            raise AssertionError("\n".join(problem))

    def kernel(self, expression: str) -> str:
        """The repr of an expression in the kernel."""
        return str(
            self.page.evaluate(
                """async e => { const k = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
                const m = await k.requestExecute({code: '', silent: true, user_expressions: {r: e}}).done;
                const r = m.content.user_expressions.r; if (!r.data) throw new Error(r.evalue); return r.data['text/plain']; }""",
                expression,
            )
        )

    def until(self, expression: str, timeout: float = 60.0) -> None:
        """Ask the kernel until the expression is true."""
        end = time.monotonic() + timeout
        while self.kernel(f"bool({expression})") != "True":
            if time.monotonic() > end:
                raise AssertionError(f"{expression} was not true after {timeout:g} s")
            self.page.wait_for_timeout(50)

    def save(self) -> dict[str, Any]:
        """Save the notebook; returns what was written."""
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
        return json.loads(self.path.read_text())  # type: ignore[no-any-return]

    def theme(self, name: str) -> None:
        """Switch to "light" or "dark"."""
        self.page.evaluate(
            "t => jupyterapp.commands.execute('apputils:change-theme', {theme: t})",
            _THEMES[name],
        )
        self.page.wait_for_function("n => document.body.dataset.jpThemeLight === n", arg=str(name == "light").lower())

    def shut_down(self) -> None:
        """End the kernel."""
        self.page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")


@contextmanager
def notebook(lab: Server, browser: Browser, *cells: str, width: int = 1200, height: int = 1000) -> Iterator[Notebook]:
    """A new notebook with these cells, open in a page of its own; not run yet."""
    path = lab.folder / f"n{time.time_ns()}.ipynb"
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    content.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(content, path)
    with opened(lab, browser, path, width=width, height=height) as book:
        try:
            yield book
        finally:
            book.shut_down()


@contextmanager
def opened(
    lab: Server, browser: Browser, path: Path, *, width: int = 1200, height: int = 1000, kernel: bool = True
) -> Iterator[Notebook]:
    """A notebook that is there, in a page of its own; console errors of the page are collected."""
    context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", device_scale_factor=1)
    page = context.new_page()
    book = Notebook(page, lab.url, path)
    page.on("pageerror", lambda error: book.errors.append(str(error)))
    page.on("console", lambda message: book.errors.append(message.text) if message.type == "error" else None)
    try:
        page.goto(f"{lab.url}/lab/tree/{path.name}?reset")
        page.wait_for_function("() => window.jupyterapp?.shell?.currentWidget?.sessionContext")
        page.evaluate("async () => { await jupyterapp.shell.currentWidget.revealed; jupyterapp.shell.collapseLeft(); }")
        if kernel:
            page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.ready; }")
        yield book
    finally:
        context.close()
