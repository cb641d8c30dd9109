"""What runs on a worker: a study is unpacked once, and its plans are scored on the batches that it is asked for."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import traceback
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qkit.errors import DataError, WorkersError
from qkit.execution.loading import fingerprint
from qkit.execution.metrics import Metric, whole_samples
from qkit.execution.parcel import dumps, loads
from qkit.execution.picking import Picker
from qkit.execution.pool import own_gpu
from qkit.execution.statistics import Samples
from qkit.execution.whole import WholeSamples
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.execution.evaluator import Evaluator

#: Number of the batch, and the positions of the plans.
Task = tuple[int, tuple[int, ...]]
#: What a worker answers that has not got the study.
UNKNOWN = b""
#: Studies that a worker keeps.
_KEPT = 4


@dataclass(frozen=True, eq=False)
class Asked:
    """What is to be found of every batch: scores of plans.

    Attributes
    ----------
    base
        The plan that others share a front part with.
    plans, starts
        In the order in which they part from the base, and the operations where they do.
    errors
        Whether to find how far outputs are from float's too.
    memory_budget
        Bytes of live tensors.
    """

    base: Plan
    plans: tuple[Plan, ...]
    starts: tuple[int, ...]
    errors: bool
    memory_budget: int


@dataclass(frozen=True, eq=False)
class Found:
    """What a worker found of some plans on one batch.

    Attributes
    ----------
    mark
        The batch's fingerprint; None where the loader has no such batch.
    rows
        Samples by plan; of a score of the whole set their records, since the score itself may be a function of the user's.
    apart
        How far outputs are from float's, by plan.
    threads
        That it was computed with; 0 on a GPU.
    """

    mark: tuple[Any, ...] | None
    rows: Sequence[Any] = ()
    apart: Sequence[np.ndarray] = ()
    threads: int = 0

    def samples(self, metric: Metric) -> list[Samples]:
        """The samples by plan."""
        return [row if isinstance(row, Samples) else whole_samples(metric, row, len(row)) for row in self.rows]


@dataclass(frozen=True, eq=False)
class Failed:
    """What went wrong on a worker: the error where it can be sent, and its traceback."""

    error: bytes | None
    told: str


@dataclass(frozen=True, eq=False)
class Payload:
    """What a worker needs of a study.

    Attributes
    ----------
    evaluator
        In bytes.
    home
        The process that it comes from, which is left as it is.
    device
        Where it computes.
    first
        Fingerprint of the first batch.
    path
        Folders where modules are found.
    threads
        To compute with; None for as many as the worker has.
    """

    evaluator: bytes
    home: tuple[str, int]
    device: str
    first: tuple[Any, ...]
    path: tuple[str, ...]
    threads: int | None


class _Session:
    """A study on a worker."""

    def __init__(self, payload: Payload) -> None:
        away = payload.home != here()
        device = torch.device(payload.device)
        if away:
            sys.path += [folder for folder in payload.path if folder not in sys.path and Path(folder).is_dir()]
            if device.type == "cuda":
                device = own_gpu()
                torch.cuda.set_device(device)
            if payload.threads is not None:
                torch.set_num_threads(payload.threads)
            if threading.current_thread() is threading.main_thread():
                # the keyboard's interrupt goes to all processes of a terminal; who gave the task decides what it means
                signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._evaluator: Evaluator = loads(payload.evaluator, None if device.type == "cpu" else device)
        self._batch = Picker(self._evaluator.data)
        self._asked: tuple[bytes, Asked] | None = None
        self.lock = threading.Lock()
        first = self._batch(0)
        if first is None or fingerprint(first) != payload.first:
            raise DataError(
                f"the first evaluation batch is another one on the worker {socket.gethostname()} than where the study is: give "
                "it the same files and the same versions of what reads them, and turn off what draws random numbers of its own."
            )

    def find(self, asked: bytes, at: int, which: Sequence[int]) -> Found:
        if self._asked is None or self._asked[0] != asked:
            self._asked = asked, loads(asked)
        batch = self._batch(at)
        if batch is None:
            return Found(None)
        mark = self._evaluator.checked(at, batch)
        rows, apart, _ = self._evaluator.part(self._asked[1], at, batch, which, None)
        sent = [row.records if isinstance(row, WholeSamples) else row for row in rows]
        threads = torch.get_num_threads() if self._evaluator.graph.device.type == "cpu" else 0
        return Found(mark, sent, apart, threads)


_sessions: OrderedDict[str, _Session] = OrderedDict()
_opening = threading.Lock()


def work(token: str, payload: bytes | str, asked: bytes, at: int, which: Sequence[int]) -> bytes:
    """A task, on a worker: what `Found` holds, in bytes; `UNKNOWN` if the study is not there and its file cannot be read."""
    try:
        with _opening:
            session = _session(token, payload)
        if session is None:
            return UNKNOWN
        with session.lock:  # a worker of several threads computes one task at a time
            return dumps(session.find(asked, at, which))
    except Exception as error:  # all errors go to who asked, whether an executor can send them or not
        return dumps(_failed(error))


def _session(token: str, payload: bytes | str) -> _Session | None:
    if token not in _sessions:
        if isinstance(payload, str):
            try:
                payload = Path(payload).read_bytes()
            except OSError:
                return None
        try:
            made = _Session(loads(payload))
        except ImportError as error:
            raise WorkersError(
                f"the worker {socket.gethostname()} cannot read the study: {error}. Install it there, or put its folder on "
                "PYTHONPATH there."
            ) from error
        _sessions[token] = made
    _sessions.move_to_end(token)
    while len(_sessions) > _KEPT:
        _sessions.popitem(last=False)
    return _sessions[token]


def _failed(error: Exception) -> Failed:
    told = "".join(traceback.format_exception(error))
    try:
        sent = dumps(error)
        loads(sent)
    except Exception:  # an error that cannot be pickled, or not be made again, is told in words
        return Failed(None, told)
    return Failed(sent, told)


def here() -> tuple[str, int]:
    """Name of the machine, number of the process."""
    return socket.gethostname(), os.getpid()
