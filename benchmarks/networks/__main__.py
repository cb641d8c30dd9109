"""``python -m benchmarks.networks``: measures the networks that are missing, one process each, and writes the table."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from benchmarks.keeping import keeping
from benchmarks.networks import report, same
from benchmarks.networks.catalogue import Network, networks
from benchmarks.networks.measure import Row, measure

FOLDER = Path("out/networks")
#: A network that takes longer than so many seconds is refused, and that is its row.
LIMIT = 900.0


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, write."""
    options = _parser().parse_args(arguments)
    chosen = _chosen(options.only)
    if options.list:
        print("\n".join(f"{network.name:48} {network.kind:14} {network.shape}" for network in chosen))
        return
    if options.same:
        options.out.mkdir(parents=True, exist_ok=True)
        groups = {
            "The hostile network's norms in four forms": same.hostile(),
            "EfficientNet-Lite0 in two packagings": same.lite0(),
        }
        text = "\n".join(same.tables(groups))
        (options.out / "same.md").write_text(text, encoding="utf-8")
        print(text)
        return
    rows: Path = options.out / "rows"
    if options.one:
        (network,) = chosen
        _write(rows, measure(network, engine=not options.no_engine))
        return
    if not options.tables:
        rows.mkdir(parents=True, exist_ok=True)
        with keeping(rows):
            _run(chosen, rows, options)
    found = [Row.from_dict(json.loads(file.read_text(encoding="utf-8"))) for file in sorted(rows.glob("*.json"))]
    if not found:
        raise SystemExit(f"{rows} has no rows: leave --tables out.")
    report.write(found, options.out)
    print(f"{len(found)} rows; written to {options.out}: table.md, networks.json")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="packages, names, or parts of names")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for rows/, table.md and networks.json")
    parser.add_argument("--fresh", action="store_true", help="measure networks again that are done")
    parser.add_argument("--retry", action="store_true", help="measure networks again that were refused or had trouble")
    parser.add_argument("--no-engine", action="store_true", help="leave ONNX Runtime out")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds for one network")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the table of what is done")
    parser.add_argument("--same", action="store_true", help="instead: one function in several forms, their scores; same.md")
    parser.add_argument("--list", action="store_true", help="print the networks and stop")
    parser.add_argument("--one", action="store_true", help="measure the one network that --only names in this very process")
    return parser


def _chosen(only: list[str]) -> list[Network]:
    """The networks that are asked for: by their whole name, by package, or by a part of the name."""
    listed = networks()
    if not only:
        return listed
    exact = {network.name for network in listed} & set(only)
    parts = [part for part in only if part not in exact]
    chosen = [n for n in listed if n.name in exact or any(part == n.package or part in n.name for part in parts)]
    if not chosen:
        raise SystemExit(f"{', '.join(only)}: no such network; --list shows them.")
    return chosen


def _run(chosen: list[Network], rows: Path, options: argparse.Namespace) -> None:
    for count, network in enumerate(chosen, 1):
        file = _file(rows, network.name)
        if file.exists() and not _again(file, options):
            continue
        row = _apart(network, options)
        if row is None:
            row = Row.from_dict(json.loads(file.read_text(encoding="utf-8")))
        else:
            _write(rows, row)
        print(f"[{count}/{len(chosen)}] {report.line(row)}", flush=True)


def _again(file: Path, options: argparse.Namespace) -> bool:
    row = Row.from_dict(json.loads(file.read_text(encoding="utf-8")))
    return options.fresh or (options.retry and (not row.made or bool(row.troubles)))


def _apart(network: Network, options: argparse.Namespace) -> Row | None:
    """Measure in a process of its own; None where it wrote its row, else a row that says how it ended."""
    command = [sys.executable, "-m", "benchmarks.networks", "--one", "--only", network.name, "--out", str(options.out)]
    command += ["--no-engine"] if options.no_engine else []
    row = Row(network.name, network.kind, network.shape)
    try:
        ended = subprocess.run(command, timeout=options.limit, capture_output=True, text=True, check=False)
    except subprocess.TimeoutExpired:
        row.refused = f"not done after {options.limit:.0f} s"
        return row
    if ended.returncode == 0:
        return None
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    row.refused = f"not the kit's: the process ended with {ended.returncode}: {last[:300]}"
    return row


def _file(rows: Path, name: str) -> Path:
    return rows / f"{name.replace('/', '-')}.json"


def _write(rows: Path, row: Row) -> None:
    rows.mkdir(parents=True, exist_ok=True)
    file = _file(rows, row.name)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(row.to_dict(), indent=1), encoding="utf-8")
    partial.replace(file)


if __name__ == "__main__":
    main()
