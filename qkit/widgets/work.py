"""Long work beside a notebook that stays responsive: in a thread, with progress, cancelled by a button, the latest wins.

The thread only computes. Whatever it has to say is handed to the event loop that the work was started from where there is one
(a Jupyter kernel), or to `Worker.wait`.

A kernel has more than one such loop: JupyterLab sends what widgets report to a subshell, a thread of its own, so that a
handle can be dragged while a cell runs. Hence callbacks, deliveries and calls from cells take turns by `STATE`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from qkit.closing import Closeable
from qkit.errors import QkitError
from qkit.execution.loading import seeded
from qkit.progress import listening

#: Held by whoever reads or changes the state of widgets.
STATE = threading.RLock()
#: Seconds between two reports of progress.
_REPORT_EVERY = 0.1


class Turns:
    """One piece of work at a time: passes of two widgets would only take the processor from each other.

    What is short, as a score that a handle waits for, goes before what is long: before all that waits, and what runs lets it
    in at its next step (`let_in`).
    """

    def __init__(self) -> None:
        self._change = threading.Condition()
        # the last one has the turn, those before it have let it in; with what stops them
        self._running: list[tuple[str, threading.Event | None]] = []
        self._short = 0
        self._open = True

    def __enter__(self) -> None:
        self.acquire("other work")

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def running(self) -> str:
        """What has the turn; "" for nothing, or for what is about to stop."""
        what, stopped = self._running[-1] if self._running else ("", None)
        return "" if stopped is not None and stopped.is_set() else what

    def acquire(
        self,
        what: str,
        *,
        short: bool = False,
        stopped: threading.Event | None = None,
        waits: Callable[[str], None] | None = None,
    ) -> None:
        """Wait for the turn.

        Parameters
        ----------
        stopped
            Ends the waiting with a KeyboardInterrupt.
        waits
            ``waits(other)`` is told what has the turn, whenever that is another.
        """
        told = ""
        with self._change:
            self._short += short
            try:
                while not self._free(short):
                    if stopped is not None and stopped.is_set():
                        raise KeyboardInterrupt
                    if waits is not None and self.running not in ("", told):
                        told = self.running
                        waits(told)
                    self._change.wait(0.05)
                self._running.append((what, stopped))
                self._open = False
            finally:
                self._short -= short

    def _free(self, short: bool) -> bool:
        return (not self._running and (short or not self._short)) or (short and self._open)

    def release(self) -> None:
        """Give the turn back."""
        with self._change:
            self._running.pop()
            self._open = False
            self._change.notify_all()

    def let_in(self) -> None:
        """Let short work go first, if some waits. Random states come back as they were."""
        if not self._short:
            return
        with seeded(None, 0), self._change:
            depth = len(self._running)
            while self._short or len(self._running) > depth:
                self._open = len(self._running) == depth
                self._change.notify_all()
                self._change.wait(0.05)
            self._open = False


TURNS = Turns()


@dataclass(eq=False)
class _Job:
    what: str
    function: Callable[[], Any]
    done: Callable[[Any], None]
    loop: asyncio.AbstractEventLoop | None
    short: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)


class Worker(Closeable):
    """Runs one function at a time; starting another stops the one before it, whose result is then dropped.

    Closed, it stops what runs at its next step, and says nothing more of it; `start` raises `QkitError` then.

    Parameters
    ----------
    report
        ``report(what, share)`` with the share done from 0 to 1, None where it is not known; called once more with
        ``("", None)`` when nothing runs any more.
    fail
        Gets what a function raised.
    stopped
        ``stopped(what)`` where work was cancelled before it had a result.
    """

    def __init__(
        self,
        report: Callable[[str, float | None], None],
        fail: Callable[[Exception], None],
        stopped: Callable[[str], None] = lambda what: None,
    ) -> None:
        self._report, self._fail, self._stopped = report, fail, stopped
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._job: _Job | None = None
        self._loop = _running_loop()

    @property
    def busy(self) -> bool:
        """Whether something runs or its result has not been delivered yet."""
        return self._job is not None

    def start(self, what: str, function: Callable[[], Any], done: Callable[[Any], None], *, short: bool = False) -> None:
        """Run ``function()`` in a thread and hand its result to `done`; returns at once. What is `short` goes before the rest."""
        self._check_open()
        self.cancel()
        job = self._job = _Job(what, function, done, _running_loop() or self._loop, short)
        self._report(what, None)
        threading.Thread(target=self._run, args=(job,), daemon=True, name=f"qkit {what}").start()

    def cancel(self) -> None:
        """Stop at the next step; what the function makes of an interrupt is still delivered."""
        if self._job is not None:
            self._job.stopped.set()

    @property
    def what(self) -> str:
        """What runs; "" for nothing."""
        return "" if self._job is None else self._job.what

    def abandon(self) -> None:
        """Stop what runs, and drop its result."""
        self.cancel()
        self._job = None
        self._report("", None)

    def _release(self) -> None:
        self.cancel()
        if self._job is not None:
            self._job.done = _ignore  # the thread has its job until it ends
        self._job, self._report, self._fail, self._stopped = None, _ignore, _ignore, _ignore

    def later(self, seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Call the function on this thread after a while; never, where there is no event loop."""
        loop = _running_loop()
        return None if loop is None else loop.call_later(seconds, function)

    def wait(self, timeout: float = 600.0) -> None:
        """Block until nothing runs any more, delivering what there is to say; raises `QkitError` after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.busy:
            # an event loop may take what there is to say out of the box just as well: look again now and then
            try:
                call = self._inbox.get(timeout=0.05)
            except Empty:
                if time.monotonic() < end:
                    continue
                what = self._job.what if self._job is not None else "work"
                raise QkitError(f"{what} was not done after {timeout:g} s: wait longer, or cancel it.") from None
            with STATE:
                call()

    def _run(self, job: _Job) -> None:
        last = 0.0

        def listen(what: str, done: int, total: int | None) -> None:
            nonlocal last
            if job.stopped.is_set():
                raise KeyboardInterrupt
            if time.monotonic() - last > _REPORT_EVERY:
                last = time.monotonic()
                self._post(job, lambda: self._tell(job, what, done / total if total else None))
            if not job.short:
                TURNS.let_in()

        def waits(other: str) -> None:
            self._post(job, lambda: self._tell(job, f"{job.what} waits for: {other}", None))

        try:
            TURNS.acquire(job.what, short=job.short, stopped=job.stopped, waits=waits)
            try:
                with listening(listen):
                    result = job.function()
            finally:
                TURNS.release()
        except KeyboardInterrupt:
            self._post(job, lambda: self._finish(job, lambda: self._stopped(job.what)))
        except Exception as error:  # whatever a user's model or metric raises is shown, not lost with the thread
            kept = error
            self._post(job, lambda: self._finish(job, lambda: self._fail(kept)))
        else:
            self._post(job, lambda: self._finish(job, lambda: job.done(result)))

    def _tell(self, job: _Job, what: str, share: float | None) -> None:
        if job is self._job:
            self._report(what, share)

    def _finish(self, job: _Job, deliver: Callable[[], None]) -> None:
        if job is not self._job:
            return
        self._job = None
        self._report("", None)
        try:
            deliver()
        except Exception as error:  # see above
            self._fail(error)

    def _post(self, job: _Job, call: Callable[[], None]) -> None:
        self._inbox.put(call)
        for loop in (job.loop, self._loop):
            # a subshell's loop ends with the page that it belongs to
            with contextlib.suppress(RuntimeError):
                if loop is not None:
                    loop.call_soon_threadsafe(self._drain)
                    return

    def _drain(self) -> None:
        while True:
            # taken and called under one lock: whoever waits with the lock held finds it in the box
            with STATE:
                try:
                    call = self._inbox.get_nowait()
                except Empty:
                    return
                call()


def _ignore(*_: Any) -> None:
    """What a closed worker has to say."""


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
