"""Workers to be had without a word of configuration: processes of this machine, one for each GPU, and a Dask cluster by name."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, ParamSpec, TypeVar

import torch

from qkit.errors import MissingExtra, WorkersError, installing

__all__ = ["Pool", "dask", "workers"]

P = ParamSpec("P")
T = TypeVar("T")

#: Number of this process among its pool's; None in other processes.
_number: int | None = None


class Pool(Executor):
    """Processes of this machine, each with a GPU of its own where there are some; started anew where one is lost.

    A script that makes one is run by its processes too, up to ``if __name__ == "__main__":``, under which it has to stand.

    Parameters
    ----------
    count
        Processes: as many as there are GPUs by default, else processors.
    """

    def __init__(self, count: int | None = None) -> None:
        self._max_workers = torch.cuda.device_count() or os.cpu_count() or 1 if count is None else count
        if self._max_workers < 1:
            raise WorkersError(f"{count} workers were asked for: at least one has to be there.")
        self._closed = False
        self._pool = self._made()

    def _made(self) -> ProcessPoolExecutor:
        # CUDA and torch's threads do not survive a fork
        context = get_context("spawn")
        return ProcessPoolExecutor(self._max_workers, context, _begin, (context.Value("i", 0),))

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """See `concurrent.futures.Executor.submit`."""
        try:
            return self._pool.submit(fn, *args, **kwargs)
        except BrokenExecutor:
            if self._closed:
                raise
            self._pool.shutdown(wait=False)
            self._pool = self._made()
            return self._pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `concurrent.futures.Executor.shutdown`."""
        self._closed = True
        self._pool.shutdown(wait, cancel_futures=cancel_futures)

    def close(self) -> None:
        """End the processes; what is being computed is finished, what is not begun is left."""
        self.shutdown(cancel_futures=True)

    def __repr__(self) -> str:
        return f"Pool({self._max_workers} processes)"


def workers(count: int | None = None) -> Pool:
    """Processes of this machine to score plans: ``study.sensitivity(executor=qkit.workers(4))``. See `Pool`."""
    return Pool(count)


def dask(address: str) -> Any:
    """A client of the Dask cluster at an address such as ``tcp://host:8786``.

    Raises
    ------
    MissingExtra
        If Dask is not installed.
    WorkersError
        If there is no such cluster.
    """
    try:
        from distributed import Client
    except ModuleNotFoundError as error:
        raise MissingExtra(f"Dask is not installed: {installing('dask')}.") from error
    try:
        return Client(address)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise WorkersError(f"there is no Dask scheduler at {address} ({error}): start one with `dask scheduler`.") from error


def own_gpu() -> torch.device:
    """The GPU that this process computes on: by its number in the pool, else the current one.

    Raises
    ------
    WorkersError
        If there is none.
    """
    if not torch.cuda.is_available():
        raise WorkersError("the study computes on a GPU, and a worker has none: start workers where there are some.")
    devices = torch.cuda.device_count()
    return torch.device("cuda", torch.cuda.current_device() if _number is None else _number % devices)


def _begin(taken: Any) -> None:
    """In a new process: take the next number, and end when the process that wants the work does."""
    global _number
    with taken.get_lock():
        _number, taken.value = taken.value, taken.value + 1
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # a worker waits for work on a pipe whose other end it holds too: it would not notice, and keep its GPU's memory for ever
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
