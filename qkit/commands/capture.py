"""``qkit capture``: tensors of chosen taps in all lanes, on disk."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from rich.text import Text

from qkit.commands import source
from qkit.commands.command import Outcome, Talk
from qkit.commands.options import DATA, GRIDS, OUTPUT, DataOptions, GridOptions, MachineOptions, ModelOptions, option
from qkit.commands.printing import size
from qkit.errors import QkitError

if TYPE_CHECKING:
    import pandas as pd

    from qkit.graph import Graph

EXAMPLES = (
    "qkit capture --out tensors",
    "qkit capture --tap 'features.3.*' --samples 1 --out tensors.npz",
    "qkit capture --model resnet50 --weights resnet50.pth --data images --lane float --lane int8 --out tensors",
)
#: Taps that the table on the terminal shows.
_SHOWN = 15


def capture(
    talk: Talk,
    model: ModelOptions,
    data: DataOptions,
    grids: GridOptions,
    machine: MachineOptions,
    out: Annotated[
        Path, option(panel=OUTPUT, metavar="FOLDER|FILE.npz", help="Where the tensors go: a folder of .npy, or one .npz.")
    ] = Path("qkit-tensors"),
    tap: Annotated[
        list[str] | None,
        option(
            panel=OUTPUT,
            metavar="PATTERN",
            help="Which tensors, by name; * and ? stand for any; can be repeated. All by default.",
        ),
    ] = None,
    lane: Annotated[
        list[str] | None,
        option(
            panel=GRIDS,
            metavar="NAME",
            help="Lanes: float, int16, int8, int4, or a preset's name; can be repeated. float, int16 and the scheme's own by "
            "default.",
        ),
    ] = None,
    samples: Annotated[int, option(panel=DATA, min=1, help="Of the evaluation data, the first so many.")] = 4,
    values: Annotated[bool, option(panel=OUTPUT, help="Also write the real numbers that the codes stand for.")] = True,
    most: Annotated[
        float, option("--max-mib", panel=OUTPUT, min=0.0, help="Write nothing if the tensors would take more than so many MiB.")
    ] = 2048.0,
    force: Annotated[
        bool, option("--force", panel=OUTPUT, help="Write over an earlier capture; files that it did not write stay.")
    ] = False,
) -> Outcome:
    """Write what the network computes in float, int16 and int8, tap by tap: values, integer codes, scales and zero points.

    A folder gets a folder per lane, each of which reads back as a trace (qkit.engines.traces.read), index.json with shapes and
    grids, and errors.csv and errors.json with every layer's error. Samples are written as they come: memory holds one batch.
    """
    from qkit.commands import tensorfiles

    tensorfiles.check_target(out, force=force)
    source.use_threads(machine)
    taken = source.load(model, data)
    study = source.calibrate(source.make_study(taken, grids, machine), grids)
    graph = study.graph
    taps = choose(graph, tap)
    names = [name for name in dict.fromkeys(lane or ("float", "int16", study.narrow)) if name != "float"]
    plans = {name: study.lane(name) for name in names}
    needed = tensorfiles.bytes_needed(graph, plans, taps, samples, values=values)
    if needed > most * 2**20:
        raise QkitError(
            f"{len(taps)} tensors of {samples} samples take {size(needed)}, more than --max-mib {most:g}: choose fewer with "
            "--tap, --samples or --lane, leave the real numbers out with --no-values, or raise it."
        )
    made = tensorfiles.write(graph, study.evaluation, plans, taps, out, samples=samples, values=values, force=force)
    if names:
        talk.say(_table(made.capture.table().loc[list(taps)], names, made.samples))
    fewer = made.samples < samples
    why = "interrupted: " if made.interrupted else "the data have no more: " if fewer else ""
    talk.sentence(
        f"{why}{len(taps)} tensors of {made.samples} samples in {', '.join(made.capture.lanes)}: {out} ({size(made.size)})"
    )
    told = {
        "out": str(out),
        "model": taken.case.name,
        "samples": made.samples,
        "interrupted": made.interrupted,
        "taps": list(taps),
        "files": [str(path) for path in made.files],
        "bytes": made.size,
        "errors": made.capture.to_dict(),
    }
    return Outcome(told)


def _table(errors: pd.DataFrame, lanes: Sequence[str], samples: int) -> Table:
    """The taps that the last lane has most error at."""
    worst = errors.sort_values((lanes[-1], "sqnr")).head(_SHOWN)
    which = f"the {len(worst)} worst of {len(errors)} taps" if len(worst) < len(errors) else "the worst tap first"
    table = Table(title=f"Errors against float over {samples} samples, {which}")
    table.add_column("tap", no_wrap=True)
    for lane in lanes:
        table.add_column(f"{lane} SQNR, dB", justify="right")
        table.add_column(f"{lane} clipped, %", justify="right")
    for tap, row in worst.iterrows():
        figures = (text for lane in lanes for text in (f"{row[lane, 'sqnr']:.1f}", f"{100 * row[lane, 'clipped']:.2g}"))
        table.add_row(Text(str(tap)), *figures)
    return table


def choose(graph: Graph, patterns: Sequence[str] | None) -> tuple[str, ...]:
    """The taps that fit a pattern, in execution order.

    Raises
    ------
    QkitError
        If a pattern fits none; names near ones are listed.
    """
    if not patterns:
        return graph.taps
    chosen: set[str] = set()
    for pattern in patterns:
        fits = {name for name in graph.taps if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        if not fits:
            near = difflib.get_close_matches(pattern, graph.taps, n=4, cutoff=0.4) or graph.taps[:4]
            raise QkitError(f"no tap of {graph.model_name} is {pattern!r}; there are {', '.join(near)} among {len(graph.taps)}.")
        chosen |= fits
    return tuple(name for name in graph.taps if name in chosen)
