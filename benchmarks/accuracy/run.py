"""Runs cells, one process each at a time, and writes each down as it is done."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.accuracy import store
from benchmarks.accuracy.cells import Cell
from benchmarks.accuracy.compute import Settings, compute, quiet
from benchmarks.accuracy.subjects import Source


def run_cell(cell: Cell, source: Source, settings: Settings, device: str | None, versions: dict[str, str]) -> dict[str, Any]:
    """The cell's record with the versions of code and torch; an exception becomes its ``error``."""
    stamp = {
        "settings": _wanted(cell, source, settings),
        "version": versions[cell.treatment],
        "torch": torch.__version__,
        "device": device or "cpu",
    }
    try:
        return {**compute(cell, source, settings, device), **stamp}
    except Exception as error:
        told = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc(limit=-6)}
        return {"id": cell.id, **asdict(cell), **told, **stamp}


def _wanted(cell: Cell, source: Source, settings: Settings) -> dict[str, Any]:
    """What a finished cell has to have been computed with to be used again."""
    return settings.of(cell.treatment) | {"images": source.images, "limit": source.limit}


def run(
    cells: Sequence[Cell],
    out: Path,
    source: Source,
    settings: Settings,
    *,
    jobs: int = 1,
    device: str | None = None,
    fresh: bool = False,
    stale: bool = False,
) -> int:
    """Compute the cells that the file lacks and append a line for each as it is done; returns how many were computed.

    An interrupt keeps what is written. Cells of the same settings are taken from the file, whichever version of the code made
    them; `stale` computes those of another version again, `fresh` all.
    """
    kept = {} if fresh else store.read(out)
    todo = [cell for cell in cells if not store.usable(kept.get(cell.id), _wanted(cell, source, settings), current=stale)]
    # taken before anything runs: the source may be edited meanwhile
    versions = {cell.treatment: store.version(cell.treatment) for cell in todo}
    work = partial(run_cell, source=source, settings=settings, device=device, versions=versions)
    started = time.perf_counter()
    for record in tqdm(_results(work, todo, jobs), total=len(todo), unit="cell", desc="accuracy"):
        store.append(out, record)
    tqdm.write(f"{len(todo)} cells computed in {time.perf_counter() - started:.0f} s, {len(cells) - len(todo)} were there.")
    return len(todo)


def _results(work: Callable[[Cell], dict[str, Any]], todo: Sequence[Cell], jobs: int) -> Iterator[dict[str, Any]]:
    if jobs <= 1:
        with _quiet():
            yield from map(work, todo)
        return
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(min(jobs, max(len(todo), 1)), initializer=_start) as pool:
        yield from pool.imap_unordered(work, todo)


def _start() -> None:
    quiet()
    # now, not when they are first used: the source may be edited meanwhile
    import qkit.mixed
    import qkit.ptq
    import qkit.ptq.absorption
    import qkit.ptq.equalization
    import qkit.qat  # noqa: F401


@contextmanager
def _quiet() -> Iterator[None]:
    """`quiet` for a while, in a process that goes on with other things."""
    import logging
    import warnings

    threads, level = torch.get_num_threads(), logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            _start()
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(level)
