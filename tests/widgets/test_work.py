"""Work in the background: who gets the result and on which thread, the latest wins, cancelling, progress, errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from studies import nothing_runs

from qkit import QkitError
from qkit.progress import track
from qkit.widgets import work
from qkit.widgets.work import Worker

#: What a test waits for at most; only reached where it fails.
SOON = 20.0


class Said:
    """All that a worker says."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, float | None]] = []
        self.failures: list[Exception] = []
        self.results: list[Any] = []
        self.stops: list[str] = []
        self.threads: list[int] = []
        self.worker = Worker(self.report, self.fail, self.stops.append)

    def report(self, what: str, share: float | None) -> None:
        self.reports.append((what, share))
        self.threads.append(threading.get_ident())

    def fail(self, error: Exception) -> None:
        self.failures.append(error)
        self.threads.append(threading.get_ident())

    def done(self, result: Any) -> None:
        self.results.append(result)
        self.threads.append(threading.get_ident())

    def start(self, function: Callable[[], Any], what: str = "work") -> None:
        self.worker.start(what, function, self.done)


class Gate:
    """A function that says that it runs, and goes on when it is told to."""

    def __init__(self, result: Any = None) -> None:
        self.result = result
        self.entered, self.go = threading.Event(), threading.Event()

    def __call__(self) -> Any:
        self.entered.set()
        assert self.go.wait(SOON)
        return self.result


class Steps(Gate):
    """The same with progress, in steps of which the first is taken when it is told to go on."""

    def __init__(self, result: Any = None, *, keeps: bool = False) -> None:
        super().__init__(result)
        self.keeps = keeps
        self.taken = 0

    def __call__(self) -> Any:
        try:
            for _ in track(range(5), "stepping", unit="step"):
                super().__call__()
                self.taken += 1
        except KeyboardInterrupt:
            if not self.keeps:
                raise
            return f"{self.taken} steps"
        return self.result


def test_the_result_comes_to_the_thread_that_waits_and_not_before() -> None:
    said = Said()
    ran: list[int] = []
    said.start(lambda: ran.append(threading.get_ident()) or 42)
    assert said.worker.busy
    assert said.results == [], "nothing is delivered behind the back of this thread"
    said.worker.wait(SOON)
    assert said.results == [42]
    assert not said.worker.busy
    assert ran[0] != threading.get_ident()
    assert set(said.threads) == {threading.get_ident()}
    assert said.reports[0] == ("work", None)
    assert said.reports[-1] == ("", None)
    said.worker.wait(0.0)
    assert said.results == [42], "there is nothing more to wait for"


def test_the_latest_wins_and_the_superseded_result_is_dropped() -> None:
    said, first = Said(), Gate("old")
    said.start(first)
    assert first.entered.wait(SOON)
    said.start(lambda: "new")
    first.go.set()
    said.worker.wait(SOON)
    assert said.results == ["new"]
    assert said.failures == []


def test_a_result_that_is_there_but_not_delivered_is_dropped_too() -> None:
    said = Said()
    said.start(lambda: "old")
    with nothing_runs():  # the first is over, or has not begun and is stopped
        said.start(lambda: "new")
    said.worker.wait(SOON)
    assert said.results == ["new"]


def test_superseded_work_stops_at_its_next_step_and_its_failure_is_nobodys() -> None:
    said, first = Said(), Steps()

    def failing() -> None:
        first()
        raise ValueError("never reached")

    said.start(failing, "first")
    assert first.entered.wait(SOON)
    said.start(lambda: "new", "second")
    seen = len(said.reports)
    first.go.set()
    said.worker.wait(SOON)
    assert first.taken == 1
    assert said.results == ["new"]
    assert said.failures == []
    assert said.stops == []
    assert {what for what, _ in said.reports[seen:]} <= {""}, "nothing is told of the first any more"


def test_cancelling_delivers_what_the_interrupted_function_returns() -> None:
    said, steps = Said(), Steps(keeps=True)
    said.start(steps)
    assert steps.entered.wait(SOON)
    said.worker.cancel()
    steps.go.set()
    said.worker.wait(SOON)
    assert said.results == ["1 steps"]
    assert said.failures == []
    assert said.stops == [], "something was kept"


def test_cancelling_what_keeps_nothing_delivers_nothing_and_is_no_failure() -> None:
    said, steps = Said(), Steps("whole")
    said.start(steps)
    assert steps.entered.wait(SOON)
    said.worker.cancel()
    steps.go.set()
    said.worker.wait(SOON)
    assert said.results == []
    assert said.failures == []
    assert said.stops == ["work"]
    assert not said.worker.busy
    assert said.reports[-1] == ("", None)
    said.start(lambda: "next")
    said.worker.wait(SOON)
    assert said.results == ["next"], "what comes after is not cancelled with it"


def test_cancelling_what_still_waits_for_its_turn_never_runs_it() -> None:
    said = Said()
    ran = threading.Event()
    with nothing_runs():
        said.start(ran.set)
        said.worker.cancel()
        said.worker.wait(SOON)
    assert not ran.is_set()
    assert said.results == []
    said.worker.cancel()
    assert not said.worker.busy, "where nothing runs there is nothing to cancel"


def test_what_is_abandoned_says_nothing_more() -> None:
    said, gate = Said(), Gate("dropped")
    assert said.worker.what == ""
    said.start(gate, "first")
    assert said.worker.what == "first"
    assert gate.entered.wait(SOON)
    said.worker.abandon()
    assert not said.worker.busy
    assert said.reports[-1] == ("", None)
    said.start(lambda: "next", "second")
    gate.go.set()
    said.worker.wait(SOON)
    assert said.results == ["next"]
    assert said.stops == []


def test_exceptions_go_to_fail() -> None:
    said = Said()
    said.start(lambda: 1 / 0)
    said.worker.wait(SOON)
    assert [type(error) for error in said.failures] == [ZeroDivisionError]
    assert said.results == []
    assert not said.worker.busy

    def refuse(result: Any) -> None:
        raise QkitError(f"{result} refused")

    said.worker.start("work", lambda: "this", refuse)
    said.worker.wait(SOON)
    assert str(said.failures[-1]) == "this refused"
    assert not said.worker.busy
    assert set(said.threads) == {threading.get_ident()}


def test_progress_is_reported_with_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_REPORT_EVERY", -1.0)
    said = Said()
    said.start(lambda: sum(track(range(4), "adding", unit="number")))
    said.worker.wait(SOON)
    assert said.results == [6]
    assert said.reports == [("work", None), *(("adding", n / 4) for n in range(5)), ("", None)]
    said.reports.clear()
    said.start(lambda: sum(track((n for n in range(2)), "adding", unit="number")))
    said.worker.wait(SOON)
    assert said.reports == [("work", None), *[("adding", None)] * 3, ("", None)], "a generator does not say how many it has"


def test_progress_is_reported_now_and_then_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "_REPORT_EVERY", 1000.0)
    said = Said()
    said.start(lambda: sum(track(range(400), "adding", unit="number")))
    said.worker.wait(SOON)
    assert len([what for what, _ in said.reports if what == "adding"]) <= 1


def test_waiting_ends_with_an_error_that_names_the_work() -> None:
    said, gate = Said(), Gate("late")
    said.start(gate, "counting")
    with pytest.raises(QkitError, match=r"^counting\b.*\b0 s"):
        said.worker.wait(0.0)
    assert said.worker.busy
    gate.go.set()
    said.worker.wait(SOON)
    assert said.results == ["late"]


def test_two_workers_take_turns() -> None:
    first, second = Said(), Said()
    gate, entered = Gate(), threading.Event()
    meanwhile: list[bool] = []

    def long() -> None:
        gate()
        meanwhile.append(entered.wait(0.1))

    first.start(long)
    assert gate.entered.wait(SOON)
    second.start(entered.set)
    gate.go.set()
    first.worker.wait(SOON)
    second.worker.wait(SOON)
    assert meanwhile == [False]
    assert entered.is_set()


def test_work_that_is_started_by_a_result_is_waited_for() -> None:
    said = Said()
    said.worker.start("first", lambda: 1, lambda result: said.start(lambda: result + 1, "second"))
    said.worker.wait(SOON)
    assert said.results == [2]
    assert [what for what, _ in said.reports] == ["first", "", "second", ""]


def test_in_a_running_loop_results_come_without_waiting() -> None:
    async def session() -> tuple[list[Any], set[int]]:
        said, over = Said(), asyncio.Event()
        said.worker.start("work", lambda: 42, lambda result: (said.done(result), over.set()))
        assert said.worker.busy
        await asyncio.wait_for(over.wait(), SOON)
        failed = asyncio.Event()
        said.worker._fail = lambda error: (said.fail(error), failed.set())
        said.start(lambda: 1 / 0)
        await asyncio.wait_for(failed.wait(), SOON)
        assert [type(error) for error in said.failures] == [ZeroDivisionError]
        assert not said.worker.busy
        return said.results, set(said.threads)

    assert asyncio.run(session()) == ([42], {threading.get_ident()})


def test_waiting_in_a_running_loop_delivers_once() -> None:
    async def session() -> list[Any]:
        said = Said()
        said.start(lambda: 42)
        said.worker.wait(SOON)
        assert said.results == [42]
        later = asyncio.Event()
        asyncio.get_running_loop().call_soon(later.set)
        await later.wait()
        return said.results

    assert asyncio.run(session()) == [42]


def test_a_worker_outlives_its_loop() -> None:
    async def session() -> Said:
        return Said()

    said = asyncio.run(session())
    said.start(lambda: 42)
    said.worker.wait(SOON)
    assert said.results == [42]
    assert said.worker.later(0.0, lambda: None) is None


def test_later_needs_a_loop() -> None:
    assert Said().worker.later(0.0, lambda: None) is None

    async def session() -> bool:
        called, cancelled = asyncio.Event(), threading.Event()
        worker = Said().worker
        handle = worker.later(0.0, cancelled.set)
        assert handle is not None
        handle.cancel()
        worker.later(0.0, called.set)
        await asyncio.wait_for(called.wait(), SOON)
        return cancelled.is_set()

    assert not asyncio.run(session())


def test_what_is_short_goes_before_what_waits_and_into_what_runs() -> None:
    running, waiting, short = Said(), Said(), Said()
    order: list[str] = []
    steps = Steps("ran")
    running.start(lambda: (steps(), order.append("long"))[0], "a long one")
    assert steps.entered.wait(SOON)
    waiting.start(lambda: order.append("waiting"), "another")
    short.worker.start("a score", lambda: order.append("short"), short.done, short=True)
    while not any(what == "a score waits for: a long one" for what, _ in short.reports):
        short.worker._drain()
    steps.go.set()
    for said in (short, running, waiting):
        said.worker.wait(SOON)
    assert order == ["short", "long", "waiting"]
    assert running.results == ["ran"], "it went on where it was"
    assert steps.taken == 5
    assert ("another waits for: a long one", None) in waiting.reports


def test_what_lets_something_in_keeps_its_random_numbers() -> None:
    first, short, gate = Said(), Said(), threading.Event()
    expected = [float(x) for x in torch.rand(2, generator=torch.Generator().manual_seed(3))]

    def draw() -> list[float]:
        before = torch.get_rng_state()
        try:
            torch.manual_seed(3)
            drawn = []
            for _ in track(range(2), "drawing", unit="number"):
                drawn.append(float(torch.rand(())))
                gate.set()
                while not short.worker.busy and not short.results:
                    pass
            return drawn
        finally:
            torch.set_rng_state(before)

    first.start(draw, "drawing")
    assert gate.wait(SOON)
    short.worker.start("a score", lambda: torch.rand(5).sum(), short.done, short=True)
    short.worker.wait(SOON)
    first.worker.wait(SOON)
    assert first.results == [expected]


def test_short_work_that_is_cancelled_while_it_waits_holds_nothing_up() -> None:
    first, short, steps = Said(), Said(), Steps("ran")
    first.start(steps)
    assert steps.entered.wait(SOON)
    short.worker.start("a score", lambda: 1, short.done, short=True)
    short.worker.cancel()
    short.worker.wait(SOON)
    steps.go.set()
    first.worker.wait(SOON)
    assert first.results == ["ran"]
    assert short.results == []
