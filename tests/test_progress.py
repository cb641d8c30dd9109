"""Progress is told to whoever listens, to nobody else; a listener that interrupts ends the work, which keeps what it had."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor

import qkit.progress
from qkit import QkitError, Study
from qkit.execution.observing import observe, observe_channels
from qkit.progress import Bar, listening, track

Report = tuple[str, int, int | None]


class Recorder:
    """A listener that keeps what it is told, and interrupts once `stop` are done (of the work named, if any is)."""

    def __init__(self, stop: int | None = None, error: type[BaseException] = KeyboardInterrupt, at: str = "") -> None:
        self.stop, self.error, self.at = stop, error, at
        self.reports: list[Report] = []

    def __call__(self, what: str, done: int, total: int | None) -> None:
        self.reports.append((what, done, total))
        if self.stop is not None and done >= self.stop and what.startswith(self.at):
            raise self.error

    @property
    def whats(self) -> list[str]:
        return list(dict.fromkeys(what for what, _, _ in self.reports))


class Bars:
    """In tqdm's place: keeps the settings and the steps of every bar that is drawn."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def __call__(self, **settings: Any) -> Bars:
        self.made.append({**settings, "updates": [], "closed": 0})
        return self

    def update(self, count: int) -> None:
        self.made[-1]["updates"].append(count)

    def close(self) -> None:
        self.made[-1]["closed"] += 1


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> Bars:
    found = Bars()
    monkeypatch.setattr(qkit.progress, "tqdm", found)
    return found


class Sized:
    """An iterable that has a length and is no list."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


class Unsized:
    """A loader without a length."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = items

    def __iter__(self) -> Iterator[Any]:
        yield from self.items


# Bars and tracks


def test_every_update_is_reported_with_what_is_done_and_the_total(bars: Bars) -> None:
    heard = Recorder()
    with listening(heard), Bar("sweeping", 9, unit="lane") as bar:
        bar.update()
        bar.update(5)
        bar.update(0)
        bar.update(3)
    assert heard.reports == [("sweeping", n, 9) for n in (0, 1, 6, 6, 9)]
    assert not bars.made, "no bar is drawn for a listener"


def test_a_closed_bar_stays_closed(bars: Bars) -> None:
    with Bar("sweeping", 9, unit="lane") as bar:
        bar.update()
    bar.close()
    assert bars.made[0]["closed"] == 1
    with pytest.raises(QkitError, match="closed"):
        bar.update()
    assert bars.made[0]["updates"] == [1]


def test_a_total_that_is_not_known_is_none() -> None:
    heard = Recorder()
    with listening(heard), Bar("counting", None, unit="batch") as bar:
        bar.update(2)
    assert heard.reports == [("counting", 0, None), ("counting", 2, None)]


@pytest.mark.parametrize(
    ("items", "total"),
    [([7, 8, 9], 3), ((7, 8, 9), 3), (Sized(3), 3), (range(3), 3), (Unsized([1, 2, 3]), None)],
    ids=["list", "tuple", "sized", "range", "unsized"],
)
def test_a_track_counts_the_items_and_expects_as_many_as_there_are_said_to_be(items: Any, total: int | None, bars: Bars) -> None:
    heard = Recorder()
    with listening(heard):
        assert list(track(items, "walking", unit="item")) == list(items)
    assert heard.reports == [("walking", n, total) for n in range(4)]
    assert not bars.made


def test_a_generator_has_no_total_and_is_read_as_it_goes() -> None:
    heard, made = Recorder(), []

    def source() -> Iterator[int]:
        for i in range(3):
            made.append(i)
            yield i

    with listening(heard):
        for item in track(source(), "walking", unit="item"):
            assert made[-1] == item, "nothing is read ahead"
            assert heard.reports[-1] == ("walking", item, None), "an item counts once it is done with"
    assert heard.reports[-1] == ("walking", 3, None)


def test_a_hidden_bar_is_reported_too(bars: Bars) -> None:
    """Whether a bar would be shown says nothing about whether somebody listens."""
    heard = Recorder()
    with listening(heard):
        list(track([1], "walking", unit="item", show=False))
    assert heard.reports == [("walking", 0, 1), ("walking", 1, 1)]
    assert not bars.made


@pytest.mark.parametrize("show", [True, False])
def test_without_a_listener_there_is_a_bar(bars: Bars, show: bool) -> None:
    assert list(track(Sized(2), "walking", unit="item", show=show)) == [0, 1]
    with Bar("sweeping", 5, unit="lane", show=show) as bar:
        bar.update(4)
    first, second = bars.made
    assert (first["desc"], first["total"], first["unit"], first["disable"]) == ("walking", 2, "item", not show)
    assert (second["desc"], second["total"], second["unit"], second["disable"]) == ("sweeping", 5, "lane", not show)
    assert (first["updates"], second["updates"]) == ([1, 1], [4])
    assert (first["closed"], second["closed"]) == (1, 1)


def test_the_terminal_shows_the_bar_or_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    list(track([1, 2], "walking", unit="item"))
    drawn = capsys.readouterr()
    assert "walking" in drawn.err
    assert not drawn.out
    list(track([1, 2], "walking", unit="item", show=False))
    with listening(Recorder()):
        list(track([1, 2], "walking", unit="item"))
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")


def test_a_bar_is_closed_whatever_ends_the_work(bars: Bars) -> None:
    with pytest.raises(ZeroDivisionError), Bar("sweeping", 5, unit="lane"):
        _ = 1 / 0
    walk = track([1, 2, 3], "walking", unit="item")
    assert next(walk) == 1
    walk.close()  # type: ignore[attr-defined]
    assert [bar["closed"] for bar in bars.made] == [1, 1]
    assert bars.made[1]["updates"] == []


# Who listens, and how long


def test_after_the_context_nobody_listens(bars: Bars) -> None:
    heard = Recorder()
    with listening(heard):
        pass
    list(track([1], "walking", unit="item"))
    assert heard.reports == []
    assert len(bars.made) == 1


def test_the_inner_listener_hears_and_the_outer_one_hears_again_after(bars: Bars) -> None:
    outer, inner = Recorder(), Recorder()
    with listening(outer):
        list(track([1], "before", unit="item"))
        with listening(inner):
            list(track([1], "within", unit="item"))
        list(track([1], "after", unit="item"))
    assert outer.whats == ["before", "after"]
    assert inner.whats == ["within"]
    assert not bars.made


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_error_within_resets_the_listener(error: type[BaseException], bars: Bars) -> None:
    outer, inner = Recorder(), Recorder(stop=1, error=error)
    with listening(outer):
        with pytest.raises(error), listening(inner):
            list(track([1, 2], "within", unit="item"))
        list(track([1], "after", unit="item"))
    assert inner.reports == [("within", 0, 2), ("within", 1, 2)]
    assert outer.whats == ["after"]
    list(track([1], "drawn", unit="item"))
    assert [bar["desc"] for bar in bars.made] == ["drawn"]


@pytest.mark.parametrize("stop", [0, 1, 3])
def test_an_interrupting_listener_ends_the_work(stop: int) -> None:
    heard, seen = Recorder(stop), []
    with listening(heard), pytest.raises(KeyboardInterrupt):
        seen.extend(track(range(5), "walking", unit="item"))
    assert seen == list(range(stop))
    assert heard.reports == [("walking", n, 5) for n in range(stop + 1)]


def in_a_thread(function: Callable[[], None]) -> None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not errors, errors


def test_another_thread_has_no_listener(bars: Bars) -> None:
    heard = Recorder()
    with listening(heard):
        in_a_thread(lambda: list(track([1, 2], "elsewhere", unit="item")))  # type: ignore[arg-type, return-value]
        assert heard.reports == []
    assert [bar["desc"] for bar in bars.made] == ["elsewhere"]


def test_every_thread_has_its_own_listener(bars: Bars) -> None:
    """Both are inside their contexts at once, and walk in turns."""
    both = threading.Barrier(2, timeout=30)
    heard = {name: Recorder() for name in ("a", "b")}

    def work(name: str) -> None:
        with listening(heard[name]):
            both.wait()
            for _ in track(range(4), name, unit="item"):
                both.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in heard]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name, listener in heard.items():
        assert listener.reports == [(name, n, 4) for n in range(5)]
    assert not bars.made


# The kit's long work


BATCHES, SIZE = 4, 6


@cache
def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(BATCHES * SIZE, 3, 16, 16, generator=draw)
    with torch.no_grad():
        y = mixed_network()(x).argmax(1)
    return list(zip(x.split(SIZE), y.split(SIZE), strict=True))


def fresh(**settings: Any) -> Study:
    study = Study(mixed_network(), batches(), batches(), **{"scheme": "int8-per-tensor", **settings})
    study.calibrate("minmax", progress=False)
    study.lane("int16")  # whose ranges are chosen on first use, which is reported too
    return study


@pytest.fixture
def study() -> Study:
    return fresh()


@pytest.mark.parametrize(
    ("work", "what", "counts", "total"),
    [
        (lambda s: s.evaluate(), "evaluating", 3 * BATCHES, 3 * BATCHES),
        (lambda s: s.evaluate(batches=3, progress=False), "evaluating", 9, 9),
        (lambda s: s.observe(batches=BATCHES), "calibrating", BATCHES, BATCHES),
        (lambda s: s.capture(batches=2), "capturing", 2, 2),
        (lambda s: s.sensitivity(), "sensitivity (only)", 10 * BATCHES, 10 * BATCHES),
        (lambda s: observe_channels(s.graph, s.calibration, "stem"), "counting per channel", BATCHES, BATCHES),
    ],
    ids=["evaluate", "some", "observe", "capture", "sensitivity", "channels"],
)
def test_long_work_reports_each_batch_or_lane(
    study: Study, bars: Bars, work: Callable[[Study], Any], what: str, counts: int, total: int
) -> None:
    heard = Recorder()
    with listening(heard):
        work(study)
    assert heard.whats == [what]
    assert heard.reports[0] == (what, 0, total)
    assert heard.reports[-1] == (what, counts, total)
    done = [n for _, n, _ in heard.reports]
    assert done == sorted(done)
    assert not bars.made


def test_a_loader_without_a_length_has_no_total(study: Study) -> None:
    study = study.with_data(evaluation=Unsized(batches()))
    heard = Recorder()
    with listening(heard):
        study.evaluate(progress=False)
    assert {total for _, _, total in heard.reports} == {None}
    assert heard.reports[-1] == ("evaluating", 3 * BATCHES, None)


@pytest.mark.parametrize("work", [Study.evaluate, Study.capture, Study.sensitivity, lambda s: observe(s.graph, batches())])
def test_nothing_done_is_no_result(study: Study, work: Callable[[Study], Any]) -> None:
    heard = Recorder(stop=0)
    with listening(heard), pytest.raises(KeyboardInterrupt):
        work(study)
    assert [done for _, done, _ in heard.reports] == [0]


@pytest.mark.parametrize("work", [Study.evaluate, Study.capture, lambda s: observe(s.graph, batches())])
def test_any_other_error_of_the_listener_is_not_kept_quiet(study: Study, work: Callable[[Study], Any]) -> None:
    with listening(Recorder(stop=1, error=ValueError)), pytest.raises(ValueError):
        work(study)


def test_counting_per_channel_ends_without_a_result(study: Study) -> None:
    with listening(Recorder(stop=2)), pytest.raises(KeyboardInterrupt):
        observe_channels(study.graph, batches(), "stem")


@pytest.mark.parametrize("stage", ["running up to the change", "scoring"])
def test_a_stopped_effect_leaves_the_study_as_good_as_new(study: Study, stage: str, bars: Bars) -> None:
    first = study.plan.with_range("side", -0.5, 0.5)
    second = study.plan.with_range(":cat", -0.2, 0.2)
    study.effect("depthwise")
    heard = Recorder(stop=2, at=stage)
    with listening(heard), pytest.raises(KeyboardInterrupt):
        study.effect("stem", study.plan.with_range("stem", 0.0, 0.3))
    assert heard.whats[-1] == stage
    assert all(bar["disable"] for bar in bars.made)
    for tensor, plan in (("side", first), (":cat", second)):
        mine, other = study.effect(tensor, plan), fresh().effect(tensor, plan)
        assert (mine.local, mine.layer, mine.output) == (other.local, other.layer, other.output)
        np.testing.assert_array_equal(mine.scores, other.scores)
    assert study.score(first) == fresh().evaluate({"first": first}, progress=False)["first"]


def test_a_bar_that_stops_short_leaves_no_remnant_in_a_notebook() -> None:
    pytest.importorskip("ipywidgets")
    from tqdm.notebook import tqdm

    bar = Bar("looking", 5, unit="batch")
    if bar._bar is None:
        pytest.skip("no bar is drawn here")
    bar._bar = tqdm(total=5, leave=False, display=False)
    bar.update(2)
    with bar:
        pass
    # what tqdm asks before it shows a bar as failed for good
    assert not (bar._bar.total and bar._bar.n < bar._bar.total)


WIDGET = "application/vnd.jupyter.widget-view+json"
LEFT = """\
from qkit.progress import Bar, track
list(track(range(3), "walking", unit="item"))
with Bar("stopped short", 5, unit="lane") as bar:
    bar.update(2)
for step in track(range(3), "left early", unit="item"):
    break
print("done")"""


@pytest.mark.slow
def test_no_bar_stays_in_a_saved_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter shows a saved bar as "Loading widget..." for ever: nothing of it is left in the cell's outputs."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("ipywidgets")
    monkeypatch.delenv("QKIT_PROGRESS", raising=False)
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(LEFT)])
    nbclient.NotebookClient(book, kernel_name="python3", timeout=120).execute()
    outputs = book.cells[0].outputs
    assert "".join(output.get("text", "") for output in outputs) == "done\n"
    bundles = [output.data for output in outputs if "data" in output]
    # a bar was shown, for each of the three
    assert len(bundles) == 3
    assert not any(WIDGET in data for data in bundles)
    assert not any("".join(data.values()) for data in bundles)
