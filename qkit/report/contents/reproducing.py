"""How to get a report again: the Python, and the command line."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

from qkit.execution.metrics import NAMED
from qkit.quant.schemes import PRESETS
from qkit.report.contents.samples import batches_holding
from qkit.version import __version__

if TYPE_CHECKING:
    from qkit.diagnosis.answer import Diagnosis
    from qkit.study import Study

_FILE = "degradation.html"


def python(
    study: Study, options: dict[str, Any], diagnosis: Diagnosis | None, sizes: list[int], *, mixed: bool, engines: int
) -> str:  # fmt: skip
    """The calls that make the report again, on the data as they were."""
    metric = repr(study.metric_name) if NAMED.get(study.metric_name) == study.metric else study.metric_name
    evaluation = "" if study.evaluation is study.calibration else ", evaluation"
    expected = "" if study.expected is None else f", expected={study.expected!r}"
    names = ("method", "weight_method", "percentile", "methods")
    settings = ", ".join(f"{name}={study.methods[name]!r}" for name in names if study.methods.get(name) is not None)
    own = study.scheme.name not in PRESETS or study.scheme != PRESETS[study.scheme.name]
    lines = [f"# qkit {__version__}; model, calibration{evaluation} as they were" + (", and your own scheme" if own else "")]
    scheme = "scheme" if own else repr(study.scheme.name)
    scheme = "" if study.has_file_grids else f", scheme={scheme}"
    lines.append(f"study = qkit.Study(model, calibration{evaluation}, metric={metric}{scheme}{expected})")
    if study.has_file_grids:
        lines.append("# the plan is the grids of the quantized file")
    elif study.treatment is None:
        lines.append(f"study.calibrate({settings})")
    else:
        steps = [effect.step for effect in study.treatment.effects]
        lines.append("study.calibrate()  # with the arguments that it had before post-training calibration")
        lines.append(f"study = study.ptc({steps!r})  # with seed=0, unless another was given")
    if any(grid.method == "manual" for grid in study.plan.grids.values()):
        lines.append('# ranges were edited by hand: study = study.with_plan(qkit.Plan.load("plan.json")), saved by plan.save')
    arguments = [f"{name}={value!r}" for name, value in options.items()]
    if diagnosis is not None:
        count = batches_holding(sizes, diagnosis.samples)
        amount = "" if count is None or (count == len(sizes) and options["batches"] is None) else f"batches={count}, "
        lines.append(f"diagnosis = study.diagnose({amount}tolerance={options['tolerance']!r})  # on {diagnosis.samples} samples")
        arguments.append("diagnosis=diagnosis")
    arguments += ["mixed=mixed"] if mixed else []
    arguments += ["engines=engines"] if engines else []
    if mixed:
        lines.append("# mixed = study.mixed(…), with the options that it was made with")
    if engines:
        lines.append("# engines = qkit.engines.compare.compare(study, lane), on the same engine and files")
    # an argument a line: a title may hold anything
    lines += ["study.report(", *(f"    {argument}," for argument in (repr(_FILE), *arguments)), ")"]
    lines.append("# every pass over a loader starts from the same random state, so that shuffling repeats;")
    lines.append("# the report itself draws no random numbers")
    return "\n".join(lines) + "\n"


def command(study: Study, options: dict[str, Any], diagnosis: Diagnosis | None) -> str:
    """The command line that comes nearest to it, with places for model and data; "" where the study was made of other things."""
    own = study.scheme.name not in PRESETS or study.scheme != PRESETS[study.scheme.name]
    chosen = study.methods.get("weight_method", "minmax") != "minmax" or study.methods.get("methods")
    edited = any(grid.method == "manual" for grid in study.plan.grids.values())
    if own or chosen or edited or study.treatment is not None or study.metric_name != "top1":
        return ""
    words = ["qkit", "report", "--model", "MODEL", "--data", "FOLDER"]
    if not study.has_file_grids:
        words += ["--scheme", study.scheme.name, "--method", str(study.methods.get("method", "mse"))]
    words += [] if study.expected is None else ["--expected", repr(study.expected)]
    words += [] if options["batches"] is None else ["--batches", str(options["batches"])]
    words += [] if options["sensitivity"] else ["--no-sensitivity"]
    words += ["--diagnose" if diagnosis is not None else "--no-diagnose"]
    words += ["--tolerance", repr(options["tolerance"])]
    return shlex.join([*words, "--out", _FILE])
