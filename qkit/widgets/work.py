"""Long work beside a notebook that stays responsive: in a thread, with progress, cancelled by a button, the latest wins.

The thread only computes. Whatever it has to say is handed to the thread that made the worker, through the running event loop
where there is one (a Jupyter kernel), or through `Worker.wait`, so that widgets are touched by one thread only.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Any

from qkit.errors import QkitError
from qkit.progress import listening

#: Passes of two widgets would only take the processor from each other.
_ONE_AT_A_TIME = threading.Lock()
#: Seconds between two reports of progress.
_REPORT_EVERY = 0.1


@dataclass(eq=False)
class _Job:
    what: str
    function: Callable[[], Any]
    done: Callable[[Any], None]
    stopped: threading.Event = field(default_factory=threading.Event)
    superseded: bool = False


class Worker:
    """Runs one function at a time; starting another stops the one before it, whose result is then dropped.

    Parameters
    ----------
    report
        ``report(what, share)`` with the share done from 0 to 1, None where it is not known; called once more with
        ``("", None)`` when nothing runs any more.
    fail
        Gets what a function raised.
    """

    def __init__(self, report: Callable[[str, float | None], None], fail: Callable[[Exception], None]) -> None:
        self._report, self._fail = report, fail
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._job: _Job | None = None
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            self._loop = None

    @property
    def busy(self) -> bool:
        """Whether something runs or its result has not been delivered yet."""
        return self._job is not None

    def start(self, what: str, function: Callable[[], Any], done: Callable[[Any], None]) -> None:
        """Run ``function()`` in a thread and hand its result to `done`; returns at once."""
        if self._job is not None:
            self._job.superseded = True
            self._job.stopped.set()
        job = self._job = _Job(what, function, done)
        self._report(what, None)
        threading.Thread(target=self._run, args=(job,), daemon=True, name=f"qkit {what}").start()

    def cancel(self) -> None:
        """Stop at the next step; what the function makes of an interrupt is still delivered."""
        if self._job is not None:
            self._job.stopped.set()

    def later(self, seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle | None:
        """Call the function on this thread after a while; never, where there is no event loop."""
        return None if self._loop is None or self._loop.is_closed() else self._loop.call_later(seconds, function)

    def wait(self, timeout: float = 600.0) -> None:
        """Block until nothing runs any more, delivering what there is to say; raises `QkitError` after `timeout` seconds."""
        end = time.monotonic() + timeout
        while self.busy:
            try:
                self._inbox.get(timeout=max(end - time.monotonic(), 0.0))()
            except Empty:
                what = self._job.what if self._job is not None else "work"
                raise QkitError(f"{what} was not done after {timeout:g} s: wait longer, or cancel it.") from None

    def _run(self, job: _Job) -> None:
        last = 0.0

        def listen(what: str, done: int, total: int | None) -> None:
            nonlocal last
            if job.stopped.is_set():
                raise KeyboardInterrupt
            if time.monotonic() - last > _REPORT_EVERY:
                last = time.monotonic()
                self._post(lambda: self._tell(job, what, done / total if total else None))

        try:
            while not _ONE_AT_A_TIME.acquire(timeout=0.05):
                if job.stopped.is_set():
                    raise KeyboardInterrupt
            try:
                with listening(listen):
                    result = job.function()
            finally:
                _ONE_AT_A_TIME.release()
        except KeyboardInterrupt:
            self._post(lambda: self._finish(job, lambda: None))
        except Exception as error:  # whatever a user's model or metric raises is shown, not lost with the thread
            kept = error
            self._post(lambda: self._finish(job, lambda: self._fail(kept)))
        else:
            self._post(lambda: self._finish(job, lambda: job.done(result)))

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

    def _post(self, call: Callable[[], None]) -> None:
        self._inbox.put(call)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        while True:
            try:
                self._inbox.get_nowait()()
            except Empty:
                return
