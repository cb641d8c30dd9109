"""Scoring on the workers of an executor: other processes, other machines, one GPU each.

A worker gets graph, data and metric once, and reads its batches itself. A task is some plans on one batch; what comes back is
their scores, one a sample. Each is what one process computes, bit for bit where a worker computes with as many threads on a
processor, or a GPU, of the same kind: sums are the same then.

Any `concurrent.futures.Executor` will do. It may run a task anywhere and again, and lose workers.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Executor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import torch

from qkit.errors import DataError, GraphError, QkitError, WorkersError
from qkit.execution.parcel import dumps, loads
from qkit.execution.pool import Pool
from qkit.execution.worker import UNKNOWN, Asked, Failed, Found, Payload, Task, here, work

if TYPE_CHECKING:
    from qkit.execution.evaluator import Evaluator

logger = logging.getLogger(__name__)

#: Share of the workers that are busy to the end, at least: plans are shared out on a batch as far as that needs.
_BUSY = 0.85
#: A task is given up when so many workers were lost with it.
_LOSSES = 3
#: Seconds between two looks at whether somebody wants it to stop.
_BEAT = 0.5

Keep = Callable[[Task, Found], None]

#: Weakly: an event loop's task that begins meanwhile keeps a copy of the context for as long as it lives.
_chosen: ContextVar[weakref.ref[Executor] | None] = ContextVar("executor", default=None)


@contextmanager
def using(executor: Executor | None) -> Iterator[None]:
    """Within this, whatever this thread scores is scored on the executor's workers; None changes nothing."""
    token = _chosen.set(_chosen.get() if executor is None else weakref.ref(executor))
    try:
        yield
    finally:
        _chosen.reset(token)


def chosen() -> Executor | None:
    """The executor of `using`."""
    found = _chosen.get()
    return None if found is None else found()


class Workers:
    """What the workers of an executor are sent of an evaluator, once.

    Parameters
    ----------
    executor
        Whose workers.
    evaluator
        Graph, data and metric.
    first
        Fingerprint of its first batch.

    Raises
    ------
    DataError, GraphError, WorkersError
        If loader, graph or metric cannot be sent: which, why, and what to do.
    """

    def __init__(self, executor: Executor, evaluator: Evaluator, first: tuple[Any, ...]) -> None:
        client = dask_client(executor)
        if client is not None and not client.nthreads():
            raise WorkersError("the Dask cluster has no workers: start some, and client.wait_for_workers(1).")
        own = sys.prefix, sys.base_prefix
        path = tuple(folder for folder in (*sys.path, str(Path.cwd())) if folder and not folder.startswith(own))
        self.token = uuid4().hex
        self.data = dumps(Payload(_pickled(evaluator), here(), str(evaluator.graph.device), first, path, _threads(executor)))
        self._file: str | None = None
        self._threads = 0

    def run(self, executor: Executor, asked: Asked, tasks: Iterator[Task], keep: Keep, look: Callable[[], bool]) -> bool:
        """Whether `look` said that it is enough.

        Tasks are given out a few at a time, in order. Whatever ends this, no further one is begun, and what was finished is
        kept.

        Parameters
        ----------
        keep
            Called with all that is found, in any order.
        look
            Called after that, and twice a second; what it raises ends this.

        Raises
        ------
        WorkersError
            If the executor is shut down or loses too many workers.
        Exception
            What a worker raised, with its traceback as a note.
        """
        going = _Going(self, executor, dumps(asked))
        try:
            while going.give_out(tasks):
                done, _ = wait(going.given, timeout=_BEAT, return_when=FIRST_COMPLETED)
                for future in done:
                    found = going.back(future)
                    if found is not None:
                        self._note(found[1].threads)
                        keep(*found)
                if look():
                    return True
            return False
        finally:
            for future in going.given:
                future.cancel()
            for future, pending in going.given.items():
                if future.done() and not future.cancelled() and future.exception() is None:
                    answer = loads(future.result()) if future.result() != UNKNOWN else None
                    if isinstance(answer, Found):
                        keep(pending.task, answer)

    def sent(self, client: Any) -> Any:
        """What goes with a task: the study as it lies on Dask's workers, or the file that it is in."""
        if client is not None:
            scattered = _scattered(client)
            if self.token not in scattered:
                try:
                    scattered[self.token] = client.scatter(self.data, broadcast=True, hash=False)
                except TimeoutError as error:
                    raise WorkersError("the Dask cluster has lost all its workers, and no other came.") from error
                weakref.finalize(self, _take_back, weakref.ref(client), self.token).atexit = False
            return scattered[self.token]
        if self._file is None:
            with tempfile.NamedTemporaryFile(prefix="qkit-", delete=False) as file:
                weakref.finalize(self, Path(file.name).unlink, missing_ok=True)
                file.write(self.data)
            self._file = file.name
        return self._file

    def _note(self, threads: int) -> None:
        if threads not in (0, torch.get_num_threads(), self._threads):
            logger.info(
                "Workers compute with %d threads, this process with %d: scores agree up to the rounding of sums, and bit for bit "
                "with as many.", threads, torch.get_num_threads(),
            )  # fmt: skip
            self._threads = threads

    def gone(self, client: Any) -> None:
        """Dask's workers that had the study may be gone: it is sent again with the next task."""
        if client is not None:
            _scattered(client).pop(self.token, None)


@dataclass(eq=False)
class _Pending:
    """A task that was given out, and how often its worker was lost."""

    task: Task
    losses: int = 0


class _Going:
    """One run: the tasks that are with the executor, and those that have to go there again."""

    def __init__(self, workers: Workers, executor: Executor, asked: bytes) -> None:
        self._workers, self._asked = workers, asked
        self._client = dask_client(executor)
        # a client is taken as its executor
        self._executor = executor if isinstance(executor, Executor) else self._client.get_executor()
        self._room = 2 * count(executor) + 1
        self._again: deque[_Pending] = deque()
        self.given: dict[Future[bytes], _Pending] = {}

    def give_out(self, tasks: Iterator[Task]) -> bool:
        """Give the executor as much as keeps it busy; whether there is anything to wait for."""
        while len(self.given) < self._room:
            pending = self._again.popleft() if self._again else next(map(_Pending, tasks), None)
            if pending is None:
                break
            self._give(pending, self._workers.sent(self._client))
        return bool(self.given)

    def back(self, future: Future[bytes]) -> tuple[Task, Found] | None:
        """What came back of a task; None where it has to be done again."""
        pending = self.given.pop(future)
        try:
            answer = future.result()
        except BrokenExecutor as error:
            self._lost(pending, error)
        except CancelledError as error:
            self._workers.gone(self._client)
            self._lost(pending, error)
        except ImportError as error:
            raise WorkersError(f"a worker cannot begin: {error}. Install qkit there, at the same version as here.") from error
        except Exception as error:
            if type(error).__name__ != "KilledWorker":
                raise
            pending.losses = _LOSSES  # Dask itself has tried as often as it does
            self._lost(pending, error)
        else:
            if answer != UNKNOWN:
                return pending.task, _opened(answer)
            self._give(pending, self._workers.data)
        return None

    def _give(self, pending: _Pending, sent: Any) -> None:
        # what Dask takes for the same task it would not do again
        more: dict[str, Any] = {} if self._client is None else {"pure": False}
        try:
            future = self._executor.submit(work, self._workers.token, sent, self._asked, *pending.task, **more)
        except BrokenExecutor as error:
            raise WorkersError(
                f"a worker was lost, and this executor cannot go on without it ({error}): make a new one. qkit.workers(n) starts "
                "lost ones anew."
            ) from error
        except RuntimeError as error:
            raise WorkersError(f"the executor takes no more work ({error}): pass another, or None for this process.") from error
        self.given[future] = pending

    def _lost(self, pending: _Pending, error: BaseException) -> None:
        pending.losses += 1
        if pending.losses >= _LOSSES:
            raise WorkersError(
                f"batch {pending.task[0]} was lost with its worker again and again ({type(error).__name__}). Mostly that is "
                "memory: see what the workers said last, use smaller batches or fewer workers."
            ) from error
        self._again.append(pending)


def _pickled(evaluator: Evaluator) -> bytes:
    """The evaluator in bytes.

    Raises
    ------
    DataError, GraphError, WorkersError
        If loader, graph or metric cannot be pickled: which, and what to do.
    """
    try:
        return dumps(evaluator)
    except Exception as error:  # pickle raises what it likes
        hint = "" if "cloudpickle" in sys.modules else ", or pip install cloudpickle"
        why = f"({type(error).__name__}: {error})"
        if not _can_go(evaluator.data):
            raise DataError(
                f"the evaluation loader cannot be sent to workers {why}. Workers read the data themselves, so it may hold no "
                "open file, lock, connection or generator: open these when the first sample is read, and define its functions in "
                f"a module{hint}. Or pass list(loader): its batches then go to every worker, once."
            ) from error
        if not _can_go(evaluator.metric):
            raise WorkersError(
                f"the metric {evaluator.metric_name!r} cannot be sent to workers {why}: define its function in a module{hint}."
            ) from error
        raise GraphError(
            f"{evaluator.graph.model_name} cannot be sent to workers {why}: what is kept in float runs there too, so its modules "
            "may hold no open file, lock or hook that cannot be pickled."
        ) from error


def _can_go(part: Any) -> bool:
    try:
        dumps(part)
    except Exception:  # pickle raises what it likes
        return False
    return True


def _opened(answer: bytes) -> Found:
    """What a worker found.

    Raises
    ------
    Exception
        What it raised, with its traceback as a note.
    """
    found: Found | Failed = loads(answer)
    if isinstance(found, Found):
        return found
    error = QkitError(f"a worker failed: {found.told.splitlines()[-1]}") if found.error is None else loads(found.error)
    error.add_note(f"On a worker:\n{found.told}")
    raise error


def dask_client(executor: Any) -> Any:
    """Dask's client, of an executor of its or itself; None for any other executor."""
    if not type(executor).__module__.startswith("distributed."):
        return None
    return executor if hasattr(executor, "get_executor") else executor._client


def _scattered(client: Any) -> dict[str, Any]:
    """What lies on a cluster's workers, by study."""
    # on the client itself: Dask's futures refer to it, so that whoever else holds them keeps it alive
    found: dict[str, Any] = vars(client).setdefault("_qkit_scattered", {})
    return found


def _take_back(client: weakref.ref[Any], token: str) -> None:
    """Let a cluster forget a study that is gone here."""
    there = client()
    if there is not None:
        _scattered(there).pop(token, None)


def count(executor: Any) -> int:
    """Workers of an executor, as many as this machine has processors where it does not say."""
    client = dask_client(executor)
    if client is not None:
        return max(len(client.nthreads()), 1)
    return int(getattr(executor, "_max_workers", 0) or os.cpu_count() or 1)


def _threads(executor: Executor) -> int | None:
    """What a worker computes with: its part of this machine; None for as many as it has."""
    if not isinstance(executor, (ProcessPoolExecutor, Pool)):
        return None
    # threads that were started before a fork are not there after it, and OpenMP waits for them for ever
    context = getattr(executor, "_mp_context", None)
    return (
        1 if context is not None and context.get_start_method() == "fork" else max(1, torch.get_num_threads() // count(executor))
    )


def parts(executor: Executor, batches: int | None) -> int:
    """Parts of the plans on one batch, so that there is work for all workers to the end.

    As few as will do, since the front of the network is computed for each part anew.
    """
    if not batches:
        return 1
    workers = count(executor)
    rounds = {number: math.ceil(number * batches / workers) for number in range(1, workers + 1)}
    return next(number for number, least in rounds.items() if number * batches >= _BUSY * workers * least)


def shares(starts: Sequence[int], which: Sequence[int], most: int) -> list[tuple[int, ...]]:
    """The plans at these positions in at most so many parts of about equal work, neighbours together.

    A plan costs the operations from where it starts, so the ones that start late go in greater numbers.
    """
    if not which:
        return []
    last = max(starts) + 1
    work = np.cumsum([last - starts[i] for i in which])
    ends = np.searchsorted(work, work[-1] * np.arange(1, most + 1) / most - 1e-9) + 1
    cuts = [0, *dict.fromkeys(int(end) for end in ends)]
    return [tuple(which[a:b]) for a, b in itertools.pairwise(cuts) if b > a]
