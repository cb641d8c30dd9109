"""``python -m benchmarks.faults.few run|list|score``: the same faults and controls, diagnosed on 48, 96 and 192 images.

Cases have seeds of their own (split "few"), and the places of the report. What is true of a case is told by all images of the
diagnosis' half, whatever few of them it is given.
"""

from __future__ import annotations

import argparse
import json
import random
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.faults import command_line
from benchmarks.faults.build import Built, build
from benchmarks.faults.cases import CaseSpec, cases
from benchmarks.faults.run import cause_record, truth
from benchmarks.faults.score import Groups, Record, alarm, cause_right, read, share, verdict, verdict_right
from benchmarks.faults.setup import Images
from benchmarks.faults.truth import INCONCLUSIVE

SIZES = (48, 96, 192)
MODULE = "benchmarks.faults.few"


def few_of(images: Images, count: int, seed: int) -> Images:
    """So many of the images by chance, in their own order."""
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count]
    return images.take(chosen.sort().values)


def run_case(spec: CaseSpec) -> dict[str, Any]:
    """One JSON-ready record with an answer by number of images; an exception becomes the record's ``error``."""
    record: dict[str, Any] = spec.to_dict() | {"kinds": list(spec.kinds)}
    started = time.perf_counter()
    try:
        built = build(spec)
        record["truth"] = truth(built)
        record["by_size"] = {str(size): _answer(built, size, spec.seed) for size in SIZES}
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc(limit=-6)
    record["seconds"] = {"all": time.perf_counter() - started}
    return record


def _answer(built: Built, size: int, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    diagnosis = built.setup.study(built.calibration, few_of(built.diagnosis, size, seed)).diagnose(
        check_export=False, progress=False
    )
    return {
        "verdict": diagnosis.verdict.name,
        "reason": diagnosis.verdict.reason,
        "causes": [cause_record(cause) for cause in diagnosis.causes],
        "findings": [cause_record(cause) for cause in diagnosis.findings],
        "samples": diagnosis.samples,
        "evaluations": diagnosis.evaluations,
        "seconds": time.perf_counter() - started,
    }


def at_size(records: Sequence[Record], size: int) -> list[Record]:
    """The records as if that number of images were all that was asked."""
    return [{**r, "said": r["by_size"][str(size)]} if "by_size" in r else r for r in records]


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """Of one number of images."""
    g = Groups.of(records)
    judged = [*g.shown, *g.unquantized, *g.two, *g.controls]
    return {
        "decided": share(judged, lambda r: verdict(r) != INCONCLUSIVE),
        "wrong": share(judged, lambda r: verdict(r) != INCONCLUSIVE and not verdict_right(r)),
        "first cause": share(g.shown, cause_right),
        "false alarms on controls": share(g.controls, alarm),
        "sound controls decided": share(g.controls, lambda r: verdict(r) != INCONCLUSIVE),
        "errors": share(records, lambda r: "said" not in r),
    }


_WRONG: tuple[tuple[str, Callable[[Record], bool]], ...] = (
    ("verdict", lambda r: verdict(r) != INCONCLUSIVE and not verdict_right(r)),
    ("undecided", lambda r: verdict(r) == INCONCLUSIVE),
    ("cause", lambda r: r["group"] == "single" and not cause_right(r)),
    ("alarm", lambda r: r["group"] == "control" and alarm(r)),
)


def table(records: Sequence[Record]) -> str:
    """The figures as Markdown, a column for every number of images, and what went wrong."""
    by_size = {size: figures(at_size(records, size)) for size in SIZES}
    names = list(next(iter(by_size.values())))
    lines = [f"| figure | {' | '.join(f'{size} images' for size in SIZES)} |", f"|---|{'---|' * len(SIZES)}"]
    lines += [f"| {name} | {' | '.join(str(by_size[size][name]) for size in SIZES)} |" for name in names]
    lines += ["", "| images | case | wrong | truth | said |", "|---|---|---|---|---|"]
    for size in SIZES:
        g = Groups.of(at_size(records, size))
        for r in (*g.shown, *g.unquantized, *g.two, *g.controls):
            wrong = [name for name, is_wrong in _WRONG if is_wrong(r)]
            if wrong:
                truths = "/".join(r.get("truth", {}).get("verdicts", []))
                first = next((f"{c['kind']} at {c['layer']}" for c in r.get("said", {}).get("causes", [])), "none")
                lines.append(f"| {size} | {r['id']} | {', '.join(wrong)} | {truths} | {verdict(r)}: {first} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse and dispatch."""
    parser, commands = command_line.parsers(
        MODULE, __doc__, splits=("develop", "few"), only="kinds, plants, architectures, groups, or parts of ids",
        out="out/few.jsonl", into="few.md and few.json",
    )  # fmt: skip
    for command in commands.values():
        command.set_defaults(split="few")
    for command in commands.values():
        command.add_argument(
            "--every", type=int, default=1, help="one in so many cases with a fault, drawn by a fixed seed; all controls"
        )
    options = parser.parse_args()
    if options.command == "score":
        chosen = {spec.id for spec in selected(options)}
        records = [r for r in read(options.out, options.split, options.only) if r["id"] in chosen]
        into = options.into or options.out.parent
        text = table(records)
        (into / "few.md").write_text(text, encoding="utf-8")
        plain = {str(size): {k: v.to_dict() for k, v in figures(at_size(records, size)).items()} for size in SIZES}
        (into / "few.json").write_text(json.dumps({"cases": len(records), **plain}, indent=1) + "\n", encoding="utf-8")
        print(text)
    elif options.command == "list":
        command_line.show(selected(options), lambda s: f"{s.split} {s.group} {' + '.join(s.kinds)}".strip())
    else:
        command_line.run(MODULE, selected(options), options, case=run_case)


def selected(options: argparse.Namespace) -> list[CaseSpec]:
    """The cases that the options name."""
    specs = cases(options.split)
    faults = [spec for spec in specs if spec.group != "control"]
    # strengths and networks take turns in the list: every third case would be a weak fault
    drawn = set(random.Random(0).sample(range(len(faults)), -(-len(faults) // options.every)))
    chosen = [*(spec for at, spec in enumerate(faults) if at in drawn), *(spec for spec in specs if spec.group == "control")]
    return [s for s in chosen if not options.only or any(o in s.id or o in s.kinds for o in options.only)]


if __name__ == "__main__":
    main()
