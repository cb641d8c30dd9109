"""``python -m benchmarks.faults run|score|list|doses``: the blind benchmark of the diagnosis."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from benchmarks.faults.cases import CaseSpec, cases, stratified

OUT = Path("out/faults.jsonl")


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "list", "score", "doses"):
        command = commands.add_parser(name)
        command.add_argument("--split", choices=("develop", "report", "all"), default="report")
        command.add_argument("--only", nargs="+", default=[], help="kinds, plants, architectures, groups, or parts of ids")
        command.add_argument("--out", type=Path, default=OUT, help="JSON lines of the cases that are done")
        if name in ("run", "list"):
            command.add_argument("--limit", type=int, help="so many cases at most")
            command.add_argument("--stratified", action="store_true", help="a case a kind, as CI runs it")
        if name == "run":
            command.add_argument("--jobs", type=int, default=1)
            command.add_argument("--retry-errors", action="store_true", help="run cases again that ended in an exception")
        if name == "score":
            command.add_argument(
                "--into", type=Path, help="folder for table.md, scores.json, confusion.png (default: beside --out)"
            )
    options = parser.parse_args()
    if options.command == "score":
        from benchmarks.faults.report import report

        report(options.out, options.into or options.out.parent, options.split, options.only)
        return
    if options.command == "doses":
        from benchmarks.faults.build import DOSES, keep_doses
        from benchmarks.faults.score import read

        print(f"{DOSES} has the places and doses of {keep_doses(read(options.out, options.split, options.only))} cases")
        return
    specs = selected(options)
    if options.command == "list":
        for spec in specs:
            print(spec.id)
        counts = Counter(f"{s.split} {s.group} {' + '.join(s.kinds)}".strip() for s in specs)
        print("\n".join(f"{count:4d}  {name}" for name, count in sorted(counts.items())), file=sys.stderr)
        return
    from benchmarks.faults.run import run

    try:
        count = run(specs, options.out, options.jobs, retry_errors=options.retry_errors)
    except KeyboardInterrupt:
        print(f"interrupted; {options.out} keeps what was done: run the same again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
    print(f"{count} cases run, {len(specs) - count} were there; python -m benchmarks.faults score --out {options.out}")


def selected(options: argparse.Namespace) -> list[CaseSpec]:
    """The cases that the options name."""
    splits = ("develop", "report") if options.split == "all" else (options.split,)
    specs = [spec for split in splits for spec in cases(split)]
    if options.stratified:
        specs = stratified(specs)
    if options.only:
        specs = [s for s in specs if any(o in s.id or o in s.kinds for o in options.only)]
    return specs[: options.limit]


if __name__ == "__main__":
    main()
