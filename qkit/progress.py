"""Progress of long work: a bar in the terminal or notebook, or whoever listens; the listener can stop the work.

A widget runs long work in a thread, where no bar can be drawn and no interrupt from the keyboard arrives. It listens
instead: every step is reported to it, and it stops the work by raising KeyboardInterrupt, which the work treats as it treats
the keyboard's: it goes up to the caller, and the same call goes on from what was finished.

``QKIT_PROGRESS=0`` in the environment draws no bars at all, for logs and for notebooks that are run to be saved.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from operator import length_hint
from types import FrameType
from typing import Any, TypeVar

from tqdm.auto import tqdm

from qkit.closing import Closeable

T = TypeVar("T")

#: ``listener(what, done, total)``; total is None where it is not known.
Listener = Callable[[str, int, "int | None"], None]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Report all progress of this thread to `listener` rather than to bars; what it raises ends the work."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def uninterrupted() -> Iterator[Callable[[], AbstractContextManager[None]]]:
    """Hold the keyboard's interrupt back until the block is done, so that what belongs together changes together.

    Gives a context manager that lets interrupts through within the block, the held one first. Other threads than the main one
    get no interrupt from the keyboard: there it does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield nullcontext
        return
    came: list[tuple[int, FrameType | None]] = []

    def hold() -> None:
        signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))

    def through() -> None:
        signal.signal(signal.SIGINT, before)
        if came:
            before(*came.pop())

    @contextmanager
    def release() -> Iterator[None]:
        try:
            through()
            yield
        finally:
            hold()

    hold()
    try:
        yield release
    finally:
        through()


def bars_drawn() -> bool:
    """Whether anybody is to see progress; ``QKIT_PROGRESS=0`` says no."""
    return os.environ.get("QKIT_PROGRESS") != "0"


def _in_a_page() -> bool:
    """Whether bars are widgets of a notebook's page."""
    return any(base.__module__ == "tqdm.notebook" for base in getattr(tqdm, "__mro__", ()))


def _shown(bar: Any) -> Any:
    """The display of a bar that is a widget, whose output can be changed later; None for others, and for hidden ones."""
    if not hasattr(bar, "container"):
        return None
    from IPython import display

    return display.display(bar.container, display_id=True)  # type: ignore[no-untyped-call]


class Bar(Closeable):
    """Progress of one piece of work, which is over, finished or not, when it is closed."""

    def __init__(self, what: str, total: int | None, *, unit: str, show: bool = True) -> None:
        self._what, self._total, self._done = what, total, 0
        self._listener = _listener.get()
        hidden = not show or not bars_drawn()
        self._bar, self._shown = None, None
        if self._listener is None:
            later = {"display": False} if _in_a_page() else {}
            self._bar = tqdm(total=total, desc=what, unit=unit, disable=hidden, leave=False, **later)
            self._shown = _shown(self._bar)
        self._tell()

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener(self._what, self._done, self._total)

    @property
    def done(self) -> int:
        """So many are done."""
        return self._done

    def update(self, count: int = 1) -> None:
        """So many more are done.

        Raises
        ------
        QkitError
            If it is closed: a bar that was drawn again would stay on the page.
        """
        self._check_open()
        self._done += count
        self._tell()
        if self._bar is not None:
            self._bar.update(count)

    def _release(self) -> None:
        if self._bar is not None:
            # a notebook keeps bars that stopped short of their total, though they are told not to stay
            self._bar.total = None
            self._bar.close()
        if self._shown is not None:
            # the output stays in the cell: a saved notebook would say "Loading widget..." there for ever
            self._shown.update({"text/html": ""}, raw=True)
            self._shown = None


def track(items: Iterable[T], what: str, *, unit: str, show: bool = True) -> Iterator[T]:
    """The items, one after the other, with progress; as many as `items` says that it has are expected."""
    with Bar(what, length_hint(items) or None, unit=unit, show=show) as bar:
        for item in items:
            yield item
            bar.update()
