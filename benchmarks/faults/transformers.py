"""``python -m benchmarks.faults.transformers run|list|score``: faults that only attention, norms and GELU have.

The networks are two transformers and a hybrid; plants, strengths, splits of places and the truth are as in the other cases.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from benchmarks.faults import command_line
from benchmarks.faults.cases import STRENGTHS, CaseSpec, stable_seed
from benchmarks.faults.plants import attention
from benchmarks.faults.run import run_case
from benchmarks.faults.score import Groups, Record, alarm, cause_right, has_layer, layer_right, read, share, verdict
from benchmarks.faults.score import verdict_right as right

MODULE = "benchmarks.faults.transformers"
NETWORKS = ("deit_small", "swin_small", "mobilevit_small")
CONTROLS = ("none", "mild-channels", "half-wide-range", "dim-calibration")
_SCHEMES, _METHODS = ("int8", "int8-symmetric", "int8-per-tensor"), ("mse", "minmax")


def cases(split: str) -> list[CaseSpec]:
    """All cases of a split, in a fixed order: of development one strength a plant and network, and a control a network."""
    found = []
    for number, plant in enumerate(attention.PLANTS):
        for home, network in enumerate(NETWORKS):
            for level, strength in enumerate(STRENGTHS):
                if split == "develop" and (number + home) % len(STRENGTHS) != level:
                    continue
                seed = stable_seed(split, plant.name, network, strength) % 100_000
                found.append(CaseSpec(split, "single", network, (plant.name,), strength, seed))
    for number, change in enumerate(CONTROLS):
        for home, network in enumerate(NETWORKS):
            if split == "develop" and number != home:
                continue
            scheme, method = _SCHEMES[(number + home) % len(_SCHEMES)], _METHODS[(number + home) % len(_METHODS)]
            seed = stable_seed(split, "control", change, network) % 100_000
            found.append(CaseSpec(split, "control", network, (change,), "none", seed, scheme, method))
    return found


def figures(records: Sequence[Record]) -> dict[str, Any]:
    """What was right, as `Share` each."""
    g = Groups.of(records)
    norms = [r for r in g.shown if "activation-channel-imbalance" in r["kinds"]]
    return {
        "verdict": share([*g.shown, *g.controls], right),
        "cause, the first one named": share(g.shown, cause_right),
        "layer, the first one named": share([r for r in g.shown if has_layer(r)], lambda r: layer_right(r, 1)),
        "outlier channels of a norm: smooth-scales first": share(
            norms, lambda r: bool(r["said"]["causes"]) and r["said"]["causes"][0]["remedy"] == "smooth-scales"
        ),
        "false alarms on controls": share(g.controls, alarm),
        "errors": share(records, lambda r: "said" not in r),
        "without effect, not counted": share(records, lambda r: r not in g.shown and r not in g.controls),
    }


def table(records: Sequence[Record]) -> str:
    """The figures as Markdown, then a row a case."""
    lines = ["| figure | measured |", "|---|---|", *(f"| {name} | {found} |" for name, found in figures(records).items())]
    lines += ["", "| case | costs | verdict | first cause | remedy | right |", "|---|---|---|---|---|---|"]
    for r in sorted(records, key=lambda r: r["id"]):
        first = next(iter(r.get("said", {}).get("causes", [])), {})
        at = f"{first['kind']} at {first['layer']}" if first else r.get("error", "none")
        ok = not alarm(r) if r["group"] == "control" else cause_right(r)
        said = "yes" if ok else "no" if r.get("truth", {}).get("effective") else "no effect"
        cost = f"{100 * r['truth']['effect']:.1f}" if "truth" in r else ""
        lines.append(f"| {r['id']} | {cost} | {verdict(r)} | {at} | {first.get('remedy', '')} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse and dispatch."""
    parser, commands = command_line.parsers(
        MODULE, __doc__, splits=("develop", "report"), only="kinds, plants, networks, groups, or parts of ids",
        out="out/transformers.jsonl", into="transformers.md and transformers.json",
    )  # fmt: skip
    commands["run"].add_argument("--limit", type=int, help="so many cases at most")
    options = parser.parse_args()
    if options.command == "score":
        records = read(options.out, options.split, options.only)
        into, text = options.into or options.out.parent, table(records)
        (into / "transformers.md").write_text(text, encoding="utf-8")
        plain = {name: found.to_dict() for name, found in figures(records).items()}
        (into / "transformers.json").write_text(json.dumps({"cases": len(records), **plain}, indent=1) + "\n", encoding="utf-8")
        print(text)
    elif options.command == "list":
        command_line.show(selected(options), lambda s: f"{s.split} {s.group} {' + '.join(s.plants)}")
    else:
        command_line.run(MODULE, selected(options)[: options.limit], options, case=partial(run_case, compare=False))


def selected(options: argparse.Namespace) -> list[CaseSpec]:
    """The cases that the options name."""
    return [s for s in cases(options.split) if not options.only or any(o in s.id or o in s.kinds for o in options.only)]


if __name__ == "__main__":
    main()
