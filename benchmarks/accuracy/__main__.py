"""``python -m benchmarks.accuracy``: computes the cells that are missing, and writes the tables."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy import store
from benchmarks.accuracy.cells import BUNDLED, SCHEMES, TREATMENTS, UNTRAINED, Cell, cells
from benchmarks.accuracy.compute import Settings
from benchmarks.accuracy.report import write
from benchmarks.accuracy.run import run
from benchmarks.accuracy.subjects import Source
from benchmarks.keeping import keeping
from benchmarks.scoring import add_workers, scoring

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Parse, compute, write."""
    options = _parser().parse_args(arguments)
    source, settings = _source(options), _settings(options)
    wanted = _cells(options)
    folder = options.out or _default_folder(options)
    file = folder / "cells.jsonl"
    if not options.tables:
        with keeping(file), scoring(options):
            run(
                wanted, file, source, settings,
                jobs=options.jobs, device=options.device, fresh=options.fresh, stale=options.stale,
            )  # fmt: skip
    records = store.read(file)
    if not records:
        raise SystemExit(f"{file} has no cells: leave --tables out.")
    store.compact(file, records.values())
    setting = f"{settings.epochs} epochs of training at rate {settings.rate:g}; {_machines(records.values())}"
    write(records, folder, setting)
    print((folder / "table.md").read_text(encoding="utf-8").partition("**Every row**")[0])
    print(f"written to {folder}: table.md, scores.json, cells.jsonl")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--networks", nargs="+", help=f"by default {', '.join(BUNDLED)}; with --imagenet torchvision's names")
    parser.add_argument("--schemes", nargs="+", choices=SCHEMES, default=list(SCHEMES))
    parser.add_argument("--treatments", nargs="+", choices=TREATMENTS, help="by default all; with --imagenet plain and ptc")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, few images, one epoch: shows that it runs, no figures")
    parser.add_argument("--fresh", action="store_true", help="compute cells again that are done")
    parser.add_argument("--stale", action="store_true", help="compute cells again that another version of the code made")
    parser.add_argument("--tables", action="store_true", help="compute nothing, write the tables of what is done")
    parser.add_argument("--out", type=Path, help="folder for cells.jsonl, table.md, scores.json")
    parser.add_argument("--imagenet", type=Path, metavar="FOLDER", help="a folder of class folders, or one with train and val")
    parser.add_argument("--weights", nargs="+", default=[], metavar="NETWORK=FILE", help="else torchvision's, downloaded once")
    parser.add_argument("--limit", type=int, help="at most so many evaluation images")
    parser.add_argument("--device", help="where to run; the CPU by default")
    add_workers(parser)
    return parser


def _cells(options: argparse.Namespace) -> list[Cell]:
    if options.imagenet:
        treatments = options.treatments or ["plain", "ptc"]
        if unfit := [t for t in treatments if t not in UNTRAINED]:
            raise SystemExit(f"{', '.join(unfit)}: with --imagenet nothing is trained; there are {', '.join(UNTRAINED)}.")
        networks = options.networks or ["mobilenet_v2", "resnet50"]
    else:
        networks, treatments = options.networks or list(BUNDLED), options.treatments or list(TREATMENTS)
        if unknown := [name for name in networks if name not in BUNDLED]:
            raise SystemExit(f"{', '.join(unknown)}: the bundled networks are {', '.join(BUNDLED)}; others need --imagenet.")
    # float is what all others are compared with
    chosen = treatments if "plain" in treatments else ["plain", *treatments]
    found = cells(networks, options.schemes, chosen, 1 if options.quick else options.seeds)
    return [c for c in found if c.treatment in treatments or c.scheme == "float"]


def _source(options: argparse.Namespace) -> Source:
    weights = dict(entry.partition("=")[::2] for entry in options.weights)
    limit, images = (128, 64) if options.quick else (options.limit, Source.images)
    return Source(options.imagenet, {network: Path(file) for network, file in weights.items()}, limit, images)


def _settings(options: argparse.Namespace) -> Settings:
    return replace(Settings(), epochs=1) if options.quick else Settings()


def _machines(records: Iterable[dict[str, Any]]) -> str:
    """Which torch computed how many cells, where."""
    counts = Counter(f"torch {r.get('torch', '?')} on {r.get('device', '?')}" for r in records)
    return ", ".join(f"{where}: {count} cells" for where, count in counts.most_common())


def _default_folder(options: argparse.Namespace) -> Path:
    if options.quick:
        return Path("out/accuracy-quick")
    return Path("out/accuracy-imagenet") if options.imagenet else RESULTS


if __name__ == "__main__":
    main()
