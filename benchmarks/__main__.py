"""``python -m benchmarks`` (``make bench``): prints the table of ratios, and can write it as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import imagenet_nets, range_edit, scaling
from benchmarks.lab import CHROMIUM

#: glibc hands large buffers back to the system after every use by default, and every pass then faults their pages in anew.
KEEP_BUFFERS = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "20000000000"}


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mobilenet_v2", "resnet50"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-sweeps", action="store_true", help="leave the sensitivity sweeps out (minutes)")
    parser.add_argument("--no-scaling", action="store_true", help="leave out how the cost grows")
    parser.add_argument("--no-widgets", action="store_true", help="leave out the widgets, which need JupyterLab and Chromium")
    parser.add_argument("--widgets-only", action="store_true", help="the widgets alone (two minutes)")
    parser.add_argument(
        "--keep-buffers", action="store_true", help="run with glibc's allocator keeping large buffers, " + str(KEEP_BUFFERS)
    )
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    if options.keep_buffers and any(os.environ.get(k) != v for k, v in KEEP_BUFFERS.items()):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks", *sys.argv[1:]], {**os.environ, **KEEP_BUFFERS})
    torch.set_num_threads(options.threads)
    rows = []
    if not options.widgets_only:
        for name in options.networks:
            rows += imagenet_nets.measure(name, sweeps=not options.no_sweeps, repeats=options.repeats)
        rows += range_edit.measure()
        if not options.no_scaling:
            rows += scaling.measure()
    if Path(CHROMIUM).exists() and not options.no_widgets:
        from benchmarks import widgets

        rows += widgets.measure()
    elif not options.no_widgets:
        print(f"The widgets are left out: no Chromium at {CHROMIUM}.")
    kept = all(os.environ.get(k) == v for k, v in KEEP_BUFFERS.items())
    malloc = "keeps buffers" if kept else "default"
    title = f"torch {torch.__version__}, Python {platform.python_version()}, {options.threads} threads, malloc {malloc}"
    table = Table(
        title=title,
        caption="float pass = the model's own forward pass of the same batch, measured beside each repetition; "
        "median (least to greatest)",
    )
    for column in ("network", "what", "measured", "target", "met"):
        table.add_column(column)
    for row in rows:
        table.add_row(row.network, row.what, row.measured, row.target, ("yes" if row.met else "NO") if row.target else "")
    Console(width=150).print(table)
    if options.json:
        options.json.write_text(
            json.dumps({"setting": title, "rows": [asdict(r) for r in rows]}, indent=1, ensure_ascii=False) + "\n"
        )


if __name__ == "__main__":
    main()
