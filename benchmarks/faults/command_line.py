"""What the command lines of both benchmarks have in common: run, list and score planted cases."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.keeping import keeping
from benchmarks.scoring import add_workers, scoring


def parsers(
    module: str, text: str | None, *, splits: Sequence[str], only: str, out: str, into: str, more: Sequence[str] = ()
) -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser, and those of its commands: run, list, score and `more`, with the options that both benchmarks have."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=text)
    added = parser.add_subparsers(dest="command", required=True)
    commands = {name: added.add_parser(name) for name in ("run", "list", "score", *more)}
    for command in commands.values():
        command.add_argument("--split", choices=splits, default="report")
        command.add_argument("--only", nargs="+", default=[], help=only)
        command.add_argument("--out", type=Path, default=Path(out), help="JSON lines of the cases that are done")
    commands["run"].add_argument("--jobs", type=int, default=1)
    add_workers(commands["run"])
    commands["run"].add_argument("--retry-errors", action="store_true", help="run cases again that ended in an exception")
    commands["score"].add_argument("--into", type=Path, help=f"folder for {into} (default: beside --out)")
    return parser, commands


def show(specs: Sequence[Any], sort: Callable[[Any], str]) -> None:
    """Print the cases' names, and how many there are of each sort on standard error."""
    for spec in specs:
        print(spec.id)
    counts = Counter(map(sort, specs))
    print("\n".join(f"{count:4d}  {name}" for name, count in sorted(counts.items())), file=sys.stderr)


def run(module: str, specs: Sequence[Any], options: argparse.Namespace, **more: Any) -> None:
    """Run those that are not done."""
    from benchmarks.faults.run import run as run_all

    with keeping(options.out), scoring(options):
        count = run_all(specs, options.out, options.jobs, retry_errors=options.retry_errors, **more)
    print(f"{count} cases run, {len(specs) - count} were there; python -m {module} score --out {options.out}")
