"""``python -m benchmarks.faults.engine run|score|list``: engines with a fault in one layer, named blind."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from benchmarks.faults.engine.cases import EngineSpec, cases

OUT = Path("out/engine.jsonl")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults.engine", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "list", "score"):
        command = commands.add_parser(name)
        command.add_argument("--split", choices=("develop", "report"), default="report")
        command.add_argument("--only", nargs="+", default=[], help="parts of ids: kinds, forms, networks, groups")
        command.add_argument("--out", type=Path, default=OUT, help="JSON lines of the cases that are done")
        if name == "run":
            command.add_argument("--jobs", type=int, default=1)
            command.add_argument("--retry-errors", action="store_true", help="run cases again that ended in an exception")
        if name == "score":
            command.add_argument("--into", type=Path, help="folder for engine.md and engine.json (default: beside --out)")
    options = parser.parse_args()
    if options.command == "score":
        from benchmarks.faults.engine.report import report

        report(options.out, options.into or options.out.parent, options.split, options.only)
        return
    specs = selected(options)
    if options.command == "list":
        print("\n".join(spec.id for spec in specs))
        counts = Counter(f"{s.group} {s.kind}" for s in specs)
        print("\n".join(f"{count:4d}  {name}" for name, count in sorted(counts.items())), file=sys.stderr)
        return
    from benchmarks.faults.engine.run import run_case
    from benchmarks.faults.run import run

    try:
        count = run(specs, options.out, options.jobs, retry_errors=options.retry_errors, case=run_case)
    except KeyboardInterrupt:
        print(f"interrupted; {options.out} keeps what was done: run the same again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"{count} cases run, {len(specs) - count} were there; python -m benchmarks.faults.engine score --out {options.out}")


def selected(options: argparse.Namespace) -> list[EngineSpec]:
    """The cases that the options name."""
    return [s for s in cases(options.split) if not options.only or any(o in s.id for o in options.only)]


if __name__ == "__main__":
    main()
