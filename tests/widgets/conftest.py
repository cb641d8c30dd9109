"""The real JupyterLab and Chromium of the browser tests; what is missing is said, and fails where it is required."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browsers import REQUIRED, missing

if TYPE_CHECKING:
    from lab import Notebook, Server
    from playwright.sync_api import Browser


FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Let fixtures know whether their test failed."""
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Widgets that the test has opened are closed after it."""
    yield
    if "studies" in sys.modules:
        sys.modules["studies"].settle()


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """JupyterLab with settings of its own."""
    if lack := missing():
        if REQUIRED:
            pytest.fail(f"the browser tests cannot run: {lack}")
        pytest.skip(f"BROWSER TESTS LEFT OUT: {lack}")
    from lab import server

    with server(tmp_path_factory.mktemp("lab") / "root") as running:
        yield running


@pytest.fixture(scope="module")
def browser(lab: Server) -> Iterator[Browser]:
    """Chromium, headless; gone after the module, since its driver keeps an event loop running on this thread."""
    from lab import chromium

    with chromium() as running:
        yield running


@pytest.fixture
def notebook(lab: Server, browser: Browser, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Notebook]]:
    """``notebook(*cells)`` gives a notebook whose cells have run; its page's errors fail the test at the end."""
    from lab import notebook as open_notebook

    with ExitStack() as stack:
        books: list[Notebook] = []

        def run(*cells: str, **options: Any) -> Notebook:
            book = stack.enter_context(open_notebook(lab, browser, *cells, **options))
            books.append(book)
            book.run_all()
            return book

        yield run
        failed = request.node.stash.get(FAILED, False)
        for i, book in enumerate(books):
            if failed:
                # what the page looked like, for whoever reads the failure
                book.page.screenshot(path=tmp_path / f"page{i}.png")
                print(f"the page: {tmp_path / f'page{i}.png'}; its errors: {book.errors}")
            else:
                assert book.errors == []
