"""``python -m benchmarks.faults run|score|list|doses``: the blind benchmark of the diagnosis."""

from __future__ import annotations

import argparse

from benchmarks.faults import command_line
from benchmarks.faults.cases import CaseSpec, cases, stratified

MODULE = "benchmarks.faults"


def main() -> None:
    """Parse and dispatch."""
    parser, commands = command_line.parsers(
        MODULE, __doc__, splits=("develop", "report", "all"), only="kinds, plants, architectures, groups, or parts of ids",
        out="out/faults.jsonl", into="table.md, scores.json, confusion.png", more=("doses",),
    )  # fmt: skip
    for name in ("run", "list"):
        commands[name].add_argument("--limit", type=int, help="so many cases at most")
        commands[name].add_argument("--stratified", action="store_true", help="a case a kind, as CI runs it")
    options = parser.parse_args()
    if options.command == "score":
        from benchmarks.faults.report import report

        report(options.out, options.into or options.out.parent, options.split, options.only)
    elif options.command == "doses":
        from benchmarks.faults.build import DOSES, keep_doses
        from benchmarks.faults.score import read

        print(f"{DOSES} has the places and doses of {keep_doses(read(options.out, options.split, options.only))} cases")
    elif options.command == "list":
        command_line.show(selected(options), lambda s: f"{s.split} {s.group} {' + '.join(s.kinds)}".strip())
    else:
        command_line.run(MODULE, selected(options), options)


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
