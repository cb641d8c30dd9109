"""Options of benchmarks that score plans: on whose workers."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager

from qkit.commands.options import WorkerOptions
from qkit.commands.source import on_workers


def add_workers(parser: argparse.ArgumentParser) -> None:
    """``--workers`` and ``--dask``, as the commands have them."""
    parser.add_argument("--workers", type=int, help="processes that score the plans of a case, in place of --jobs")
    parser.add_argument("--dask", metavar="ADDRESS", help="a Dask cluster whose workers do it: tcp://host:8786")


def scoring(options: argparse.Namespace) -> AbstractContextManager[None]:
    """Within this, plans are scored on the workers that are asked for.

    Raises
    ------
    SystemExit
        If cases run in processes of their own too.
    """
    if getattr(options, "jobs", 1) > 1 and (options.workers or options.dask):
        raise SystemExit("--jobs runs cases beside each other, --workers and --dask the plans of one case: give one of them.")
    return on_workers(WorkerOptions(options.workers, options.dask))
