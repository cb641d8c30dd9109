"""``python -m benchmarks.faults.engine run|score|list``: engines with a fault in one layer, named blind."""

from __future__ import annotations

import argparse

from benchmarks.faults import command_line
from benchmarks.faults.engine.cases import EngineSpec, cases

MODULE = "benchmarks.faults.engine"


def main() -> None:
    """Parse and dispatch."""
    parser, _ = command_line.parsers(
        MODULE, __doc__, splits=("develop", "report"), only="parts of ids: kinds, forms, networks, groups",
        out="out/engine.jsonl", into="engine.md and engine.json",
    )  # fmt: skip
    options = parser.parse_args()
    if options.command == "score":
        from benchmarks.faults.engine.report import report

        report(options.out, options.into or options.out.parent, options.split, options.only)
    elif options.command == "list":
        command_line.show(selected(options), lambda s: f"{s.group} {s.kind}")
    else:
        from benchmarks.faults.engine.run import run_case

        command_line.run(MODULE, selected(options), options, case=run_case)


def selected(options: argparse.Namespace) -> list[EngineSpec]:
    """The cases that the options name."""
    return [s for s in cases(options.split) if not options.only or any(o in s.id for o in options.only)]


if __name__ == "__main__":
    main()
