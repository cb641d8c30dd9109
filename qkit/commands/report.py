"""``qkit demo`` and ``qkit report``: the degradation report, and two of them against each other."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Literal

from rich.text import Text

from qkit import files
from qkit.commands import source
from qkit.commands.command import FINE, FOUND, Outcome, Talk
from qkit.commands.options import (
    DEFAULT_MODEL,
    GRIDS,
    MODEL,
    OUTPUT,
    Batches,
    DataOptions,
    GridOptions,
    MachineOptions,
    ModelOptions,
    Tolerance,
    WorkerOptions,
    option,
)
from qkit.commands.printing import VERDICTS, score_table, strict
from qkit.errors import QkitError

#: Evaluation images of a diagnosis within a report: enough to tell a few points, few enough for seconds on small networks.
DIAGNOSIS_IMAGES = 256

DEMO_EXAMPLES = ("qkit demo", "qkit demo --network resnet_small --out out/sound.html", "qkit demo --batches 3 --no-sensitivity")
EXAMPLES = (
    "qkit report --model resnet50 --weights resnet50.pth --data images --classes classes.txt",
    "qkit report --model net:make --data net:loaders --out report.html --out report.json",
    "qkit report --compare last-week.json today.json --max-loss 0.5",
    "qkit report --config qkit.toml",
)

Out = Annotated[
    list[Path] | None,
    option(
        panel=OUTPUT,
        metavar="FILE",
        help="Report to write: .html, .md, .json or .csv; can be repeated. By default degradation.html.",
    ),
]
Sensitive = Annotated[
    bool, option(panel=OUTPUT, help="Also quantize every layer alone (about half a pass a layer) for the chart of layers.")
]
Diagnose = Annotated[
    bool, option(panel=OUTPUT, help=f"Also look for the cause and measure remedies, on at most {DIAGNOSIS_IMAGES} images.")
]
Images = Annotated[
    bool,
    option("--images", panel=OUTPUT, help="Show feature maps. They let your images be recognised: without it none are shown."),
]
LayerMap = Annotated[
    Path | None,
    option(
        panel=OUTPUT,
        metavar="FILE",
        help="What the target calls the layers, said beside every name: TIDL's layer_info.txt or results, or .json with names.",
    ),
]
Attachment = Annotated[
    Path | None,
    option(
        panel=OUTPUT,
        metavar="FILE.npz",
        help="Also write the worst layer's tensors and the images whose class changes, for a vendor. It holds your images.",
    ),
]


def demo(
    talk: Talk,
    grids: GridOptions,
    machine: MachineOptions,
    workers: WorkerOptions,
    network: Annotated[
        Literal[
            "mobilenet_v2_hostile",
            "mobilenet_v2_lite",
            "resnet_small",
            "vgg_small",
            "inception_small",
            "deit_small",
            "swin_small",
            "mobilevit_small",
        ],
        option(panel=MODEL, help="The bundled network."),
    ] = "mobilenet_v2_hostile",
    out: Out = None,
    batches: Batches = None,
    sensitivity: Sensitive = True,
    diagnose: Diagnose = True,
    images: Images = False,
    tolerance: Tolerance = None,
) -> Outcome:
    """Take a bundled network and real images through float, int16 and int8, and write the degradation report.

    Nothing is downloaded. The network that is taken by default loses 50 points in int8 to one layer; the report says which, why,
    and what fixes it. It goes to out/degradation.html.
    """
    source.use_threads(machine)
    taken = source.load(ModelOptions(network), DataOptions())
    talk.say(Text(network, "bold") + Text(f": {taken.case.description}"))
    paths = out or [Path("out/degradation.html")]
    with source.on_workers(workers):
        return _report(talk, taken, paths, grids, machine, batches, sensitivity, diagnose, images, tolerance, None)


def report(
    talk: Talk,
    model: ModelOptions,
    data: DataOptions,
    grids: GridOptions,
    machine: MachineOptions,
    workers: WorkerOptions,
    out: Out = None,
    title: Annotated[str | None, option(panel=OUTPUT, metavar="TEXT", help="Of the report.")] = None,
    batches: Batches = None,
    sensitivity: Sensitive = True,
    diagnose: Diagnose = True,
    images: Images = False,
    tolerance: Tolerance = None,
    layer_map: LayerMap = None,
    attachment: Attachment = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        option(
            panel=OUTPUT,
            metavar="OLD NEW",
            help="Measure nothing: show what changed between two reports in .json. --out takes .md and .json then.",
        ),
    ] = None,
    max_loss: Annotated[
        float | None,
        option(
            panel=GRIDS,
            min=0.0,
            metavar="POINTS",
            help="With --compare: exit code 1 if the loss against float grew by more (0.5 points), or cannot be read.",
        ),
    ] = None,
) -> Outcome:
    """Take your own network and images through float, int16 and int8, and write the degradation report.

    One self-contained HTML page (or Markdown, JSON, CSV) with the verdict, its causes and remedies, every layer's errors, and how
    to reproduce it. With --compare it guards a pipeline: it shows what changed between two reports.
    """
    if compare is not None:
        if model.model is not None or data.data is not None:
            raise QkitError("--compare measures nothing: --model and --data do not go with it.")
        return _compare(talk, *compare, out or [], tolerance, max_loss)
    if max_loss is not None:
        raise QkitError("--max-loss goes with --compare OLD NEW; for one run there is `qkit diagnose --fail-on-loss`.")
    if model.model is None and data.data is None and model.weights is None:
        talk.sentence(f"No network was named: this is the bundled {DEFAULT_MODEL}.")
    source.use_threads(machine)
    taken = source.load(model, data)
    paths = out or [Path("degradation.html")]
    with source.on_workers(workers):
        return _report(
            talk, taken, paths, grids, machine, batches, sensitivity, diagnose, images, tolerance, title, layer_map, attachment
        )


def _report(
    talk: Talk, taken: source.Source, out: list[Path], grids: GridOptions, machine: MachineOptions, batches: int | None,
    sensitivity: bool, diagnose: bool, images: bool, tolerance: float | None, title: str | None, layer_map: Path | None = None,
    attachment: Path | None = None,
) -> Outcome:  # fmt: skip
    from qkit.report import attach, check_path, make, write

    for path in out:
        check_path(path)
    begun = time.perf_counter()
    study = source.calibrate(source.make_study(taken, grids, machine), grids)
    scores = study.evaluate(batches=batches)
    talk.say(score_table(scores))
    verdict = study.verdict(tolerance=tolerance, batches=batches)
    talk.say(Text(verdict.name, f"bold {VERDICTS[verdict.name]}") + Text(f": {verdict.reason}"))
    found = None
    if diagnose:
        found = study.diagnose(tolerance=tolerance, batches=source.batches_of_images(study, DIAGNOSIS_IMAGES, batches))
        if found.causes:
            talk.sentence("\n".join(found.lines()[1:]))
    made = make(
        study, title=title or f"Degradation of {taken.case.name}", batches=batches, diagnosis=found, tolerance=tolerance,
        images=images, sensitivity=sensitivity and not talk.interrupted,
        command=talk.line, layer_map=layer_map,
    )  # fmt: skip
    for path in out:
        write(made, path)
        talk.sentence(f"Report: {path}")
    if attachment is not None:
        attach(study, attachment, layer=made.worst[0]["tap"] if made.worst else None)
        talk.sentence(f"Attachment: {attachment}")
    seconds = time.perf_counter() - begun
    talk.say(f"{seconds:.0f} s{', interrupted: not all was measured' if talk.interrupted else ''}")
    told = {
        "reports": [str(path) for path in out],
        "model": taken.case.name,
        **strict(verdict.to_dict()),
        "scores": strict(scores.to_dict()),
        "diagnosis": None if found is None else strict(found.to_dict()),
        "seconds": round(seconds, 1),
        "interrupted": talk.interrupted,
    }
    return Outcome(told)


def _compare(talk: Talk, old: Path, new: Path, out: list[Path], tolerance: float | None, max_loss: float | None) -> Outcome:
    from qkit.report import compare

    for path in out:
        if path.suffix.lower() not in (".md", ".json"):
            raise QkitError(f"{path}: a comparison is written as .md or .json.")
        files.prepare(path)
    found = compare(old, new, tolerance=tolerance)
    for line in found.lines():
        talk.sentence(line)
    told = strict(found.to_dict())
    for path in out:
        if path.suffix.lower() == ".md":
            files.write_text(path, found.to_markdown())
        else:
            files.write_json(path, told)
        talk.sentence(f"Comparison: {path}")
    if max_loss is None:
        return Outcome(told)
    # points are hundredths where the score is a share, and the score's own units elsewhere
    exceeded = found.exceeds(max_loss / 100.0 if found.percent else max_loss)
    unit = " points" if found.percent else ""
    said = f"The loss grew by more than {max_loss:g}{unit}, or cannot be compared." if exceeded else f"Within {max_loss:g}{unit}."
    talk.sentence(said, "bold red" if exceeded else "green")
    return Outcome({**told, "exceeded": exceeded}, FOUND if exceeded else FINE)
