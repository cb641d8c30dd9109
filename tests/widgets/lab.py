"""A real JupyterLab in a real Chromium: what the browser tests, the pictures of the docs and the benchmark drive."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Error, Page, sync_playwright

from benchmarks.lab import CHROMIUM, FLAGS, Server, server, write_notebook

__all__ = ["Notebook", "Server", "chromium", "notebook", "opened", "server"]

_ASK = """async e => { const k = jupyterapp.shell.currentWidget.sessionContext.session.kernel;
    const m = await (window.asked = k.requestExecute({code: '', silent: true, user_expressions: {r: e}})).done;
    const r = m.content.user_expressions.r; if (!r.data) throw new Error(r.evalue); return r.data['text/plain']; }"""
_THEMES = {"light": "JupyterLab Light", "dark": "JupyterLab Dark"}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, headless."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
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
        for attempt in range(3):
            try:
                return str(self.page.evaluate(_ASK, expression))
            except Error as error:
                # the page's own answer was swept away with the request before it was read: ask again
                if "garbage collected" not in str(error) or attempt == 2:
                    raise
        raise AssertionError

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
        # a switch while the splash of the one before fades out makes JupyterLab take that splash away twice, which is an error
        self.page.locator("#jupyterlab-splash").wait_for(state="detached")

    def shut_down(self) -> None:
        """End the kernel."""
        self.page.evaluate("async () => { await jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")


@contextmanager
def notebook(lab: Server, browser: Browser, *cells: str, width: int = 1200, height: int = 1000) -> Iterator[Notebook]:
    """A new notebook with these cells, open in a page of its own; not run yet."""
    path = write_notebook(lab.folder, *cells)
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
    page.on("pageerror", lambda error: book.errors.append(error.stack or str(error)))
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
