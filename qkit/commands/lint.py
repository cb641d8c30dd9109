"""``qkit lint``: what keeps a study from taking a model, and what predicts trouble in fixed point."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.table import Table
from rich.text import Text

from qkit import files
from qkit.commands import source
from qkit.commands.command import FINE, FOUND, Outcome, Talk
from qkit.commands.options import MODEL, OUTPUT, MachineOptions, ModelOptions, option
from qkit.commands.printing import SEVERITIES
from qkit.errors import QkitError

if TYPE_CHECKING:
    from qkit.linting import Lint

EXAMPLES = (
    "qkit lint --model mobilenet_v2",
    "qkit lint --model net:make --input-size 1x3x224x224",
    "qkit lint --model net.onnx",
    "qkit lint --model net:make --json > lint.json",
)


def lint(
    talk: Talk,
    model: ModelOptions,
    machine: MachineOptions,
    input_size: Annotated[
        str | None,
        option(
            panel=MODEL,
            metavar="NxCxHxW",
            help="The batch's shape. By default what the bundled network or the model's file takes, else 1x3x224x224.",
        ),
    ] = None,
    everything: Annotated[bool, option("--all", panel=OUTPUT, help="List every finding, however many are alike.")] = False,
    out: Annotated[Path | None, option(panel=OUTPUT, metavar="FILE", help="Also write the findings here, as JSON.")] = None,
) -> Outcome:
    """Say what keeps a study from taking a model and what predicts trouble in fixed point, with file and line. Needs no data.

    A torchvision network needs no weights either: it is then built with random ones, and nothing is said of channels' ranges.
    """
    from qkit.commands.lint_model import model_and_batch
    from qkit.linting import lint as look

    if model.argument:
        raise QkitError("--argument does not go with lint: give a function that needs none.")
    if machine.device is not None:
        raise QkitError("--device does not go with lint: it runs one batch, on the CPU.")
    if out is not None:
        files.prepare(out)
    source.use_threads(machine)
    with source.working_folder():
        network, batch, trained = model_and_batch(source.named(model), model.weights, input_size, weights_key=model.weights_key)
        found = look(network, batch)
    told = found.to_dict()
    if out is not None:
        files.write_json(out, told)
    if len(found):
        talk.say(_table(found, everything))
    remarks = [*found.remarks, *([] if trained else ["The weights are random: nothing is known of the ranges of channels."])]
    talk.sentence("\n".join([*remarks, found.summary()]))
    return Outcome(told, FINE if found.ok else FOUND)


def _table(found: Lint, everything: bool) -> Table:
    from qkit.linting.finding import where

    kept, more = (found.findings, {}) if everything else found.shown()
    table = Table(title=f"Lint of {found.model_name}", show_lines=False)
    for name in ("severity", "rule", "where", "what, and what to do"):
        table.add_column(name, overflow="fold")
    for finding in kept:
        place = "\n".join(part for part in (finding.layer, where(finding)) if part)
        cells = (finding.severity, finding.rule, place, f"{finding.message} {finding.cure}")
        table.add_row(*(Text(cell, SEVERITIES[finding.severity] if i == 0 else "") for i, cell in enumerate(cells)))
    for (severity, rule), count in more.items():
        table.add_row(Text(severity, SEVERITIES[severity]), Text(rule), "", f"{count} more; --all lists them")
    return table
