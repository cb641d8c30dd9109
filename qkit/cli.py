"""The command line: ``qkit demo`` on the bundled network, ``qkit report`` on the user's own."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table
from rich.text import Text

from qkit.diagnosis.verdict import TOLERANCE
from qkit.errors import DataError, QkitError
from qkit.estimators import METHODS
from qkit.linting.finding import Lint, where
from qkit.loading import batches as batches_of
from qkit.metrics import Interval, Scores
from qkit.schemes import PRESETS
from qkit.study import Study
from qkit.zoo.case import Case

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Is it quantization, and if it is, which tensor, why, and what is the cheapest thing that fixes it?",
)
#: Evaluation images of a diagnosis within a report: enough to tell a few points, few enough for seconds on small networks.
DIAGNOSIS_IMAGES = 256

_STYLES = {"no-degradation": "green", "quantization": "yellow", "not-quantization": "red", "both": "red", "inconclusive": "cyan"}
_SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "cyan"}

Model = Annotated[str, typer.Option(help="A torchvision name such as resnet50, or package.module:function that makes the model.")]
Data = Annotated[Path, typer.Option(help="ImageFolder: a folder of images per class, or with train/ and val/ inside.")]
Weights = Annotated[Path | None, typer.Option(help="State dict: .safetensors, or .pth (read with weights only).")]
Classes = Annotated[
    str | None, typer.Option(help="Class names in the order of the model's outputs: a text or JSON file, or a comma list.")
]
CalibrationData = Annotated[Path | None, typer.Option(help="Another ImageFolder to calibrate with.")]
WeightsTag = Annotated[str | None, typer.Option(help="torchvision's weights whose preprocessing to use, such as IMAGENET1K_V1.")]
Preprocessing = Annotated[str | None, typer.Option(help="torchvision model whose preprocessing to take instead.")]
Expected = Annotated[float | None, typer.Option(help="The float score that you believe in, as a fraction.")]
BatchSize = Annotated[int, typer.Option(min=1)]
CalibrationImages = Annotated[int, typer.Option(min=1, help="Most images to calibrate with.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Most images to evaluate on.")]
Out = Annotated[Path, typer.Option(help="Report to write: .html, .md, .json or .csv.")]
SchemeName = Annotated[str, typer.Option(help=f"Grids: {', '.join(PRESETS)}.")]
MethodName = Annotated[str, typer.Option(help=f"How activation ranges are chosen: {', '.join(METHODS)}.")]
Batches = Annotated[int | None, typer.Option(min=1, help="Evaluation batches to take; all by default.")]
Sensitive = Annotated[bool, typer.Option(help="Also quantize every layer alone (about half a pass a layer).")]
Diagnose = Annotated[bool, typer.Option(help="Also look for the cause and measure remedies, on at most 256 images.")]
Tolerance = Annotated[float, typer.Option(min=0.0, max=1.0, help="Loss that still counts as close: 0.01 is one point.")]
Device = Annotated[str | None, typer.Option(help="Where to run, such as cuda; the CPU by default.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")]


@app.callback()
def _logging(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more of what is read and chosen.")] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(
        level=level, format="%(message)s", handlers=[RichHandler(console=Console(stderr=True), show_path=False, show_time=False)]
    )


@app.command()
def demo(
    out: Out = Path("out/degradation.html"),
    network: Annotated[
        Literal["mobilenet_v2_hostile", "mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small"],
        typer.Option(help="The bundled network."),
    ] = "mobilenet_v2_hostile",
    scheme: SchemeName = "int8-per-tensor",
    method: MethodName = "mse",
    batches: Batches = None,
    sensitivity: Sensitive = True,
    diagnose: Diagnose = True,
    tolerance: Tolerance = TOLERANCE,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Take a bundled network and real images through float, int16 and int8, and write the degradation report."""
    from qkit import zoo

    case = zoo.load(network)
    Console().print(f"[bold]{case.name}[/bold]: {case.description}")
    _report(case, out, scheme, method, batches, sensitivity, diagnose, tolerance, device, threads)


@app.command()
def report(
    model: Model,
    data: Data,
    weights: Weights = None,
    classes: Classes = None,
    calibration_data: CalibrationData = None,
    weights_tag: WeightsTag = None,
    preprocessing: Preprocessing = None,
    expected: Expected = None,
    batch_size: BatchSize = 32,
    calibration_images: CalibrationImages = 256,
    limit: Limit = None,
    out: Out = Path("degradation.html"),
    scheme: SchemeName = "int8",
    method: MethodName = "mse",
    batches: Batches = None,
    sensitivity: Sensitive = True,
    diagnose: Diagnose = True,
    tolerance: Tolerance = TOLERANCE,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Take your own network and images through float, int16 and int8, and write the degradation report."""
    from qkit import zoo

    case = zoo.user_case(
        model, weights, data, classes=classes, calibration_data=calibration_data, weights_tag=weights_tag,
        preprocessing=preprocessing, expected=expected, batch_size=batch_size, calibration_images=calibration_images, limit=limit,
    )  # fmt: skip
    _report(case, out, scheme, method, batches, sensitivity, diagnose, tolerance, device, threads)


@app.command()
def diagnose(
    model: Annotated[
        str, typer.Option(help="A bundled network's name, a torchvision name, or package.module:function that makes the model.")
    ] = "mobilenet_v2_hostile",
    data: Annotated[Path | None, typer.Option(help="ImageFolder, as for report; a bundled network brings its own.")] = None,
    weights: Weights = None,
    classes: Classes = None,
    calibration_data: CalibrationData = None,
    weights_tag: WeightsTag = None,
    preprocessing: Preprocessing = None,
    expected: Expected = None,
    batch_size: BatchSize = 32,
    calibration_images: CalibrationImages = 256,
    limit: Limit = None,
    scheme: SchemeName = "int8-per-tensor",
    method: MethodName = "mse",
    batches: Batches = None,
    budget: Annotated[int | None, typer.Option(min=3, help="Most evaluations of the data to spend.")] = None,
    tolerance: Tolerance = TOLERANCE,
    out: Annotated[Path | None, typer.Option(help="Also write the diagnosis here, as JSON.")] = None,
    save_plan: Annotated[Path | None, typer.Option(help="Write the plan with all remedies applied here, as JSON.")] = None,
    device: Device = None,
    threads: Threads = None,
) -> None:
    """Find out whether it is quantization, where, why, and what fixes it: every cause is confirmed by an experiment."""
    from qkit import zoo
    from qkit.diagnosis import cost

    _use_threads(threads)
    if data is None:
        case = zoo.load(model)
    else:
        case = zoo.user_case(
            model, weights, data, classes=classes, calibration_data=calibration_data, weights_tag=weights_tag,
            preprocessing=preprocessing, expected=expected, batch_size=batch_size, calibration_images=calibration_images,
            limit=limit,
        )  # fmt: skip
    study = Study(case.model, case.calibration, case.evaluation, scheme=scheme, expected=case.expected, device=device)
    with contextlib.suppress(DataError):
        # what is not finite the diagnosis names; whatever else is wrong with the data it raises again
        study.calibrate(method)
    Console().print(f"[bold]{case.name}[/bold]: {cost(study, batches=batches, budget=budget)}", highlight=False)
    begun = time.perf_counter()
    found = study.diagnose(tolerance=tolerance, batches=batches, budget=budget)
    style = _STYLES[found.verdict.name]
    for number, line in enumerate(found.lines()):
        Console().print(Text(line, style=f"bold {style}" if number == 0 else ""))
    Console().print(f"{found.evaluations} evaluations, {time.perf_counter() - begun:.0f} s", highlight=False)
    if out is not None:
        out.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    if save_plan is not None:
        if found.best is None:
            raise QkitError("no remedy changes the plan, so there is none to save.")
        found.best.save(save_plan)


@app.command(name="lint")
def lint_command(
    model: Annotated[
        str, typer.Option(help="A bundled network's name, a torchvision name, or package.module:function that makes the model.")
    ] = "mobilenet_v2_hostile",
    weights: Weights = None,
    input_size: Annotated[
        str | None, typer.Option(help="The batch's shape; 1x3x224x224, or what the bundled network takes, by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="List every finding, however many are alike.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the findings here, as JSON.")] = None,
    threads: Threads = None,
) -> None:
    """Say what hinders symbolic tracing and what predicts trouble in fixed point; exit code 1 if there are errors."""
    from qkit.linting import lint
    from qkit.linting.command import model_and_batch

    _use_threads(threads)
    network, batch, trained = model_and_batch(model, weights, input_size)
    found = lint(network, batch)
    text = json.dumps(found.to_dict(), indent=1)
    if out is not None:
        _write(out, text)
    if as_json:
        sys.stdout.write(text + "\n")
    else:
        if len(found):
            Console().print(_finding_table(found, everything))
        remarks = [*found.remarks, *([] if trained else ["The weights are random: nothing is known of the ranges of channels."])]
        Console().print(Text("\n".join([*remarks, found.summary()])))
    if not found.ok:
        raise typer.Exit(1)


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise QkitError(f"{out} cannot be written: {error.strerror or error}.") from error


def _finding_table(found: Lint, everything: bool) -> Table:
    kept, more = (found.findings, {}) if everything else found.shown()
    table = Table(title=f"Lint of {found.model_name}", show_lines=False)
    for name in ("severity", "rule", "where", "what, and what to do"):
        table.add_column(name, overflow="fold")
    for finding in kept:
        place = "\n".join(part for part in (finding.layer, where(finding)) if part)
        cells = (finding.severity, finding.rule, place, f"{finding.message} {finding.cure}")
        table.add_row(*(Text(cell, _SEVERITIES[finding.severity] if i == 0 else "") for i, cell in enumerate(cells)))
    for (severity, rule), count in more.items():
        table.add_row(Text(severity, _SEVERITIES[severity]), Text(rule), "", f"{count} more; --all lists them")
    return table


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _report(
    case: Case, out: Path, scheme: str, method: str, batches: int | None, sensitivity: bool, diagnose: bool,
    tolerance: float, device: str | None, threads: int | None,
) -> None:  # fmt: skip
    from qkit.report import check_path, make, write

    _use_threads(threads)
    check_path(out)
    begun = time.perf_counter()
    study = Study(case.model, case.calibration, case.evaluation, scheme=scheme, expected=case.expected, device=device)
    study.calibrate(method)
    scores = study.evaluate(batches=batches)
    Console().print(_score_table(scores))
    verdict = study.verdict(tolerance=tolerance, batches=batches)
    style = _STYLES[verdict.name]
    Console().print(f"[bold {style}]{verdict.name}[/bold {style}]: {verdict.reason}", highlight=False)
    found = study.diagnose(tolerance=tolerance, batches=_batches_of_images(study, batches)) if diagnose else None
    if found is not None and found.causes:
        Console().print(Text("\n".join(found.lines()[1:])))
    made = make(
        study, title=f"Degradation of {case.name}", batches=batches, sensitivity=sensitivity, diagnosis=found, tolerance=tolerance
    )
    write(made, out)
    Console().print(f"Report: {out} ({time.perf_counter() - begun:.0f} s)", highlight=False)


def _batches_of_images(study: Study, limit: int | None) -> int:
    """Batches that hold the images a diagnosis takes within a report, at most `limit`."""
    size = next(iter(batches_of(study.evaluation))).size
    count = math.ceil(DIAGNOSIS_IMAGES / size)
    return count if limit is None else min(count, limit)


def _score_table(scores: Scores) -> Table:
    percent = scores.metric in {"top1", "top5", "agreement"}

    def shown(interval: Interval) -> tuple[str, str]:
        factor, unit = (100.0, " %") if percent else (1.0, "")
        return f"{factor * interval.value:.2f}{unit}", f"{factor * interval.low:.2f} to {factor * interval.high:.2f}"

    table = Table(title=f"{scores.metric} on {scores.n} images, 95 % intervals")
    for name in ("lane", "score", "interval", "loss (points)" if percent else "loss", "interval of the loss"):
        table.add_column(name, justify="left" if name == "lane" else "right")
    for lane in scores.lanes:
        loss = shown(scores.loss(lane)) if lane != "float" else ("–", "")
        table.add_row(lane, *shown(scores[lane]), loss[0].removesuffix(" %"), loss[1])
    return table


def main() -> None:
    """Run the command line: errors become one line on standard error and exit code 2 (typer makes an interrupt 130)."""
    try:
        app()
    except QkitError as error:
        Console(stderr=True).print(Text("error: ", "bold red") + Text(str(error)))
        sys.exit(2)
