"""``qkit diagnose``: verdict, causes and remedies on the terminal."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated

from rich.text import Text

from qkit import files
from qkit.commands import source
from qkit.commands.command import FINE, FOUND, Outcome, Talk
from qkit.commands.options import (
    GRIDS,
    OUTPUT,
    RUNNING,
    Batches,
    DataOptions,
    GridOptions,
    MachineOptions,
    ModelOptions,
    Tolerance,
    WorkerOptions,
    option,
)
from qkit.commands.printing import VERDICTS, strict
from qkit.errors import DataError, QkitError

EXAMPLES = (
    "qkit diagnose",
    "qkit diagnose --model resnet50 --weights resnet50.pth --data images --classes classes.txt",
    "qkit diagnose --model net:make --data net:loaders --metric top1 --save-plan fixed.json",
    "qkit diagnose --workers 4",
    "qkit diagnose --config qkit.toml --fail-on-loss 1 --json > diagnosis.json",
)


def diagnose(
    talk: Talk,
    model: ModelOptions,
    data: DataOptions,
    grids: GridOptions,
    machine: MachineOptions,
    workers: WorkerOptions,
    batches: Batches = None,
    tolerance: Tolerance = None,
    budget: Annotated[
        int | None, option(panel=RUNNING, min=3, help="Most evaluations of the data to spend. All by default.")
    ] = None,
    out: Annotated[Path | None, option(panel=OUTPUT, metavar="FILE", help="Also write the diagnosis here, as JSON.")] = None,
    save_plan: Annotated[
        Path | None, option(panel=OUTPUT, metavar="FILE", help="Write the plan with all remedies applied here, as JSON.")
    ] = None,
    fail_on_loss: Annotated[
        float | None,
        option(
            panel=GRIDS,
            min=0.0,
            metavar="POINTS",
            help="Exit code 1 if the scheme's bits lose more against float: 1.5 points.",
        ),
    ] = None,
) -> Outcome:
    """Find out whether it is quantization, where, why, and what fixes it.

    Every cause is confirmed by an experiment: its remedy, applied to that tensor alone, recovers score by more than chance.
    Remedies are tried in the order of their cost, and the last line says whether quantization-aware training is needed at all.
    Ctrl-C stops the search and shows what was found until then.
    """
    from qkit.diagnosis import cost

    for path in filter(None, (out, save_plan)):
        files.prepare(path)
    source.use_threads(machine)
    taken = source.load(model, data)
    study = source.make_study(taken, grids, machine)
    with contextlib.suppress(DataError):
        # what is not finite the diagnosis names; whatever else is wrong with the data it raises again
        study = source.calibrate(study, grids)
    talk.say(Text(f"{taken.case.name}: ", "bold") + Text(str(cost(study, batches=batches, budget=budget))))
    begun = time.perf_counter()
    with source.on_workers(workers):
        found = study.diagnose(tolerance=tolerance, batches=batches, budget=budget)
    seconds = time.perf_counter() - begun
    for number, line in enumerate(found.lines()):
        talk.sentence(line, f"bold {VERDICTS[found.verdict.name]}" if number == 0 else "")
    talk.say(f"{found.evaluations} evaluations, {seconds:.0f} s")
    told = strict(found.to_dict())
    if out is not None:
        files.write_json(out, told)
        talk.sentence(f"Diagnosis: {out}")
    if save_plan is not None:
        if found.best is None:
            raise QkitError("no remedy changes the plan, so there is none to save.")
        found.best.save(save_plan)
        talk.sentence(f"Plan: {save_plan}")
    code = FINE
    if fail_on_loss is not None:
        lost = found.verdict.narrow
        code = FOUND if lost is None or 100.0 * lost.value > fail_on_loss else FINE
        said = "cannot be measured" if lost is None else f"is {100.0 * lost.value:.2f} points"
        talk.sentence(f"The loss {said}; up to {fail_on_loss:g} points were allowed.", "bold red" if code else "green")
    return Outcome({"model": taken.case.name, **told}, code)
