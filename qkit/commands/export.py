"""``qkit export``: the plan in the formats of other tools, each read back after it was written."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.text import Text

from qkit import files
from qkit.commands import source
from qkit.commands.command import Outcome, Talk
from qkit.commands.options import OUTPUT, DataOptions, GridOptions, MachineOptions, ModelOptions, option
from qkit.commands.printing import size
from qkit.errors import PlanError, QkitError

if TYPE_CHECKING:
    from qkit.quant.plan import Plan
    from qkit.study import Study

EXAMPLES = (
    "qkit export --out model.onnx",
    "qkit export --out plan.json --format plan",
    "qkit export --model resnet50 --weights resnet50.pth --data images --out resnet50.onnx --out resnet50.encodings",
    "qkit export --plan fixed.json --out options.tidl.json",
)

Format = Literal["onnx", "tidl", "prototxt", "encodings", "ranges", "plan"]
FORMATS: tuple[Format, ...] = ("onnx", "tidl", "prototxt", "encodings", "ranges", "plan")
#: Ends of file names that say what is wanted.
_ENDS: tuple[tuple[str, Format], ...] = (
    (".onnx", "onnx"), (".encodings", "encodings"), (".encodings.json", "encodings"), (".prototxt", "prototxt"),
    (".tidl.json", "tidl"), (".ranges.json", "ranges"), (".plan.json", "plan"),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Options of single formats."""

    opset: int
    version: Literal["0.6.1", "1.0.0"]
    names: Mapping[str, str] | None
    prototxt: Path | None


def export(
    talk: Talk,
    model: ModelOptions,
    data: DataOptions,
    grids: GridOptions,
    machine: MachineOptions,
    out: Annotated[
        list[Path] | None,
        option(
            panel=OUTPUT,
            metavar="FILE",
            help="What to write; can be repeated. The end of its name says the format: "
            f"{', '.join(end for end, _ in _ENDS)}. model.onnx by default.",
        ),
    ] = None,
    format: Annotated[  # noqa: A002  # the option's name
        Format | None,
        option(
            panel=OUTPUT,
            help="onnx: Q/DQ nodes; tidl: TIDL's compile options; prototxt: ranges in TIDL's prototxt; encodings: AIMET's form; "
            "ranges: a plain JSON of ranges; plan: the kit's own.",
        ),
    ] = None,
    opset: Annotated[int, option(panel=OUTPUT, help="Of ONNX: from 18 on, from 21 on for 16 bits.")] = 21,
    encodings_version: Annotated[Literal["0.6.1", "1.0.0"], option(panel=OUTPUT, help="Of encodings.")] = "1.0.0",
    names: Annotated[
        Path | None,
        option(panel=OUTPUT, metavar="FILE", help="JSON object: the file's tensor names by tap, for tidl, encodings and ranges."),
    ] = None,
    prototxt: Annotated[
        Path | None, option(panel=OUTPUT, metavar="FILE", help="TIDL's own prototxt, whose ranges --format prototxt replaces.")
    ] = None,
    ptc: Annotated[
        bool, option("--ptc", panel=OUTPUT, help="Post-training calibration first; its changes of weights go into ONNX alone.")
    ] = False,
) -> Outcome:
    """Write the calibrated plan for an engine or another tool, and check it by reading it back.

    An ONNX file is run by ONNX Runtime and compared with the simulation tap by tap; the other files are read back and compared
    with the plan. What a format cannot hold is said. ONNX alone needs an extra, onnx.
    """
    paths = out or [Path("model.onnx")]
    formats = [format_of(path, format) for path in paths]
    for path in paths:
        files.prepare(path)
    settings = Settings(opset, encodings_version, _names(names), prototxt)
    if ("prototxt" in formats) != (prototxt is not None):
        raise QkitError("--format prototxt and --prototxt FILE, which TIDL wrote, go together.")
    if ptc and grids.plan is not None:
        raise QkitError("--ptc calibrates anew: --plan does not go with it.")
    if "onnx" in formats:
        # before the calibration, which is not to be lost for want of a package
        from qkit.engines.onnx.file_program import require

        require("onnx", "onnxscript")
    source.use_threads(machine)
    taken = source.load(model, data)
    study = source.calibrate(source.make_study(taken, grids, machine), grids)
    if ptc:
        if set(formats) != {"onnx"}:
            raise QkitError("--ptc may change weights, which ONNX files alone hold: leave out the other formats.")
        study = study.ptc()
        talk.sentence(repr(study.treatment))
    written = []
    for path, kind in zip(paths, formats, strict=True):
        notes, checked = _WRITERS[kind](study, path, settings)
        talk.say(Text(f"{path}", "bold") + Text(f" ({kind}, {size(path.stat().st_size)}): {checked}"))
        for note in notes:
            talk.sentence(f"  not in it: {note}" if kind not in ("onnx", "tidl") else f"  {note}", "yellow")
        written.append(
            {"path": str(path), "format": kind, "bytes": path.stat().st_size, "checked": checked, "notes": list(notes)}
        )
    return Outcome({"model": taken.case.name, "plan": study.plan.name, "written": written})


def format_of(path: Path, given: Format | None) -> Format:
    """What to write, from the option or the end of the name.

    Raises
    ------
    QkitError
        If neither says it, or both say different things.
    """
    name = path.name.lower()
    ends = {kind for end, kind in _ENDS if name.endswith(end)}
    if given is None and not ends:
        raise QkitError(
            f"{path.name!r} does not say what to write: add --format {'|'.join(FORMATS)}, or end it in one of "
            f"{', '.join(end for end, _ in _ENDS)}."
        )
    if given is not None and ends and given not in ends:
        raise QkitError(f"{path.name!r} is the name of {', '.join(ends)}, --format says {given}.")
    return given or ends.pop()


def _names(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    from qkit.engines.plan_files.json_file import read_json

    found = dict(read_json(path, "names by tap").data)
    if not all(isinstance(name, str) for name in found.values()):
        raise PlanError(f"{path} cannot be read as names by tap: it is a JSON object of texts.")
    return found


Told = tuple[tuple[str, ...], str]


def _onnx(study: Study, path: Path, settings: Settings) -> Told:
    from importlib.util import find_spec

    made = study.export(path, opset=settings.opset)
    integers = sum(stored.integer for stored in made.taps.values())
    text = f"{integers} of {len(made.taps)} taps in integers, opset {made.opset}; passes ONNX's checker"
    if find_spec("onnxruntime") is None:
        return made.notes, f"{text}; not run, since onnxruntime is not installed"
    from qkit.engines.compare import compare
    from qkit.engines.onnx.runtime import lane

    # the file is checked, not what this machine's processor makes of it
    with lane(path, graph=study.graph, precise=True) as opened:
        engine: Any = opened
        found = compare(study, engine, batches=1)
    return made.notes, f"{text}. Run on {found.samples} samples: {found.summary}"


def _encodings(study: Study, path: Path, settings: Settings) -> Told:
    from qkit.engines.plan_files import encodings

    notes = encodings.write(study.plan, path, version=settings.version, names=settings.names)
    return notes, _same(study, encodings.read(path, study, names=settings.names), path)


def _ranges(study: Study, path: Path, settings: Settings) -> Told:
    from qkit.engines.plan_files import ranges

    notes = ranges.write(study.plan, path, names=settings.names)
    return notes, _same(study, ranges.read(path, study, names=settings.names), path)


def _plan(study: Study, path: Path, settings: Settings) -> Told:
    from qkit.quant.plan import Plan

    study.plan.save(path)
    if Plan.load(path) != study.plan:
        raise QkitError(f"{path} does not give back the plan that was written: please report it.")
    return (), f"{len(study.plan.grids)} grids; reads back as the same plan"


def _same(study: Study, found: Plan, path: Path) -> str:
    """What reading a file back showed; a grid that differs is an error."""
    wanted = {name: grid.params for name, grid in study.plan.grids.items()}
    got = {name: grid.params for name, grid in found.grids.items()}
    for name, params in wanted.items():
        if got.get(name) != params:
            raise QkitError(f"{path} gives back another grid for {name} than was written: please report it.")
    return f"{len(wanted)} grids; reads back as the same grids, bit for bit"


def _tidl(study: Study, path: Path, settings: Settings) -> Told:
    from qkit.engines import tidl
    from qkit.engines.plan_files.json_file import read_json

    with _silent(logging.getLogger("qkit.engines.tidl.options")):
        # what it logs is listed below
        options = tidl.compile_options(study.plan, study.graph, names=settings.names)
    files.write_json(path, options)
    widths = tidl.bits_from_options(read_json(path, "options").data, study.graph, names=settings.names)
    planned = {name: grid.spec.bits for name, grid in study.plan.grids.items()}
    differ = [name for name, bits in planned.items() if widths.get(name) != bits]
    agreed = f"{len(planned) - len(differ)} of {len(planned)} tensors have the plan's width under them"
    notes = [f"TIDL has {widths.get(name)} bits for {name}, the plan {planned[name]}" for name in differ[:5]]
    carried = tidl.not_carried(study.plan, study.graph, accuracy_level=int(options["accuracy_level"]))
    return (*notes, *carried), f"{len(options)} options; {agreed}"


@contextlib.contextmanager
def _silent(logger: logging.Logger) -> Iterator[None]:
    before = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = before


def _prototxt(study: Study, path: Path, settings: Settings) -> Told:
    from qkit.engines import tidl

    assert settings.prototxt is not None
    text = files.read_text(settings.prototxt, "TIDL's prototxt", error=PlanError)
    files.write_text(path, tidl.with_ranges(text, study.plan, study.graph, names=settings.names))
    found = tidl.ranges_from_prototxt(files.read_text(path), study.graph, names=settings.names)
    held = [name for name in found if name in study.plan.grids]
    missing = [name for name in study.plan.grids if name not in found]
    notes = (f"{len(missing)} tensors, {missing[0]} among them, which TIDL's file has no range of",) if missing else ()
    return notes, f"{len(held)} ranges; read back"


_WRITERS: dict[Format, Callable[[Study, Path, Settings], Told]] = {
    "onnx": _onnx, "tidl": _tidl, "prototxt": _prototxt, "encodings": _encodings, "ranges": _ranges, "plan": _plan,
}  # fmt: skip
