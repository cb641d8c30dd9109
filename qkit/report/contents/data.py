"""Everything that a report says, gathered from a study as plain data."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qkit.diagnosis.candidates import OUTSIDE
from qkit.engines.tidl import layer_names
from qkit.errors import QkitError
from qkit.figures import entries
from qkit.figures.network.filling import network_of
from qkit.report.contents import facts, reproducing, samples, shown_maps
from qkit.report.contents import worst as worst_layers
from qkit.report.contents.facts import WIDE
from qkit.report.text.summary import summarize
from qkit.report.text.terms import UNITS
from qkit.style import frame_dict, plain, units_of

if TYPE_CHECKING:
    from qkit.diagnosis.answer import Diagnosis
    from qkit.engines.tap_comparison import Comparison as EngineComparison
    from qkit.mixed import Mixed
    from qkit.study import Study

__all__ = ["FORMAT", "WIDE", "Report", "make"]

#: Version of the JSON form. 2: data, plan, lint, remedies tried, scores by sample, treatment, mixed precision, engines.
FORMAT = 2
#: Most batches that the table of layers is made of: its figures settle long before the scores do.
CAPTURE_BATCHES = 4
#: What the settings say where feature maps were not asked for.
LEFT_OUT = "left out: the report has none of your images. Feature maps of one image come with images=True"


@dataclass(frozen=True, eq=False)
class Report:
    """A degradation report as plain data: frames, dicts, lists, strings and numbers; made by :func:`make`.

    Attributes
    ----------
    title
        Shown on top.
    model
        ``name``, ``taps``, ``weights``, ``macs`` of one sample, ``deviation`` of the folded graph, ``front`` (the way in), and
        ``integer_macs`` and ``integer_elements``, shares from 0 to 1.
    metric
        ``name``, ``percent`` (whether scores are shares), ``samples``, ``tolerance``, ``expected``.
    verdict
        ``verdict``, ``reason``, ``meaning``, ``then``, ``loss16``, ``loss8``, ``samples_needed``.
    scores
        A row per lane, as :meth:`qkit.Scores.table` gives it.
    lanes
        Names of the quantized lanes.
    layers
        A row per tap, a column group per lane, as :meth:`qkit.Capture.table` gives it, over `layer_samples` samples; and
        the name of its weight.
    weights
        A row per weight, as :meth:`qkit.Capture.weights` gives it.
    sensitivity
        A row per layer quantized alone, the greatest loss first; None where it was not measured.
    diagnosis
        Causes and remedies, as :meth:`qkit.diagnosis.Diagnosis.to_dict` gives them; None where it was not asked for.
    worst
        Rules, grid, histogram and weight of the worst layers.
    notes
        What stays float or is simulated in float inside, by step.
    remarks
        What a reader has to know of the data, the model and the lanes.
    environment, settings
        Versions and machine; scheme, calibration and amounts of data.
    reproduce
        The calls that give this report again; `command` the command line, where there is one.
    narrow
        Name of the lane that the verdict compares with 16 bits.
    summary
        Answers to :data:`qkit.report.text.summary.QUESTIONS`, for somebody who reads nothing else.
    data
        Samples, shapes and fingerprint of the data, as :func:`qkit.report.contents.samples.describe` gives them.
    per_sample
        Scores of every sample, float64 (N,), by lane; None beyond 100,000 samples.
    plan
        Every grid, as :meth:`qkit.Plan.to_dict` gives it; a hash stands for weights' codes not made by rounding.
    tried
        Remedies put to the report's samples: score before and after, gain and the loss that is left.
    lint
        Findings on the model, as :meth:`qkit.linting.Lint.to_dict` gives them; `settings` says why there are none.
    maps
        Feature maps of one image by tap; None unless asked for.
    names
        By tap, what else it is called: ``node`` in the ONNX file, ``target`` in the layer map. Empty where neither is known.
    network
        The operations in the order of execution: ``name``, ``kind``, and ``inputs``, numbers of those that each reads.
    treatment, mixed, engines
        What post-training calibration did, what the search for mixed precision found, and engines against the simulation.
    """

    title: str
    model: dict[str, Any]
    metric: dict[str, Any]
    verdict: dict[str, Any]
    scores: pd.DataFrame
    lanes: tuple[str, ...]
    layers: pd.DataFrame
    layer_samples: int
    weights: pd.DataFrame
    sensitivity: pd.DataFrame | None
    diagnosis: dict[str, Any] | None
    worst: tuple[dict[str, Any], ...]
    notes: dict[str, str]
    remarks: tuple[str, ...]
    environment: dict[str, Any]
    settings: dict[str, Any]
    reproduce: str
    narrow: str
    summary: dict[str, str]
    data: dict[str, Any]
    per_sample: dict[str, np.ndarray] | None
    plan: dict[str, Any]
    tried: tuple[dict[str, Any], ...] = ()
    lint: dict[str, Any] | None = None
    maps: dict[str, dict[str, Any]] | None = None
    treatment: dict[str, Any] | None = None
    mixed: dict[str, Any] | None = None
    engines: tuple[dict[str, Any], ...] = ()
    command: str = ""
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    network: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What strict JSON can hold: infinities as "inf" and "-inf", missing figures as None; frames by row name."""
        return {
            "format": FORMAT,
            "title": self.title,
            "summary": dict(self.summary),
            "model": plain(self.model),
            "metric": plain(self.metric),
            "verdict": plain(self.verdict),
            "data": plain(self.data),
            "scores": frame_dict(self.scores),
            "lanes": list(self.lanes),
            "narrow": self.narrow,
            "diagnosis": plain(self.diagnosis),
            "tried": plain(self.tried),
            "treatment": plain(self.treatment),
            "mixed": plain(self.mixed),
            "engines": plain(self.engines),
            "lint": plain(self.lint),
            "remarks": list(self.remarks),
            "notes": plain(self.notes),
            "settings": plain(self.settings),
            "environment": plain(self.environment),
            "reproduce": self.reproduce,
            "command": self.command,
            "units": dict(UNITS),
            "layer_samples": self.layer_samples,
            "layers": frame_dict(self.layers),
            "weights": frame_dict(self.weights),
            "network": plain(self.network),
            "sensitivity": None if self.sensitivity is None else frame_dict(self.sensitivity),
            "worst": plain(self.worst),
            "names": plain(self.names),
            "maps": plain(self.maps),
            "plan": plain(self.plan),
            "per_sample": None if self.per_sample is None else samples.encode(self.per_sample),
        }

    def __repr__(self) -> str:
        units = units_of(self.metric)
        losses = ", ".join(
            f"{lane} loses {units.amount(*self.scores.loc[lane, ['loss', 'loss low', 'loss high']])}" for lane in self.lanes
        )
        on = f"{self.metric['name']} on {self.metric['samples']} samples, {len(self.layers)} layers"
        return f"Report({self.title!r}: {self.verdict['verdict']}; {losses}; {on})"

    def _repr_html_(self) -> str:
        head = f"<b>{html.escape(self.title)}</b>: <b>{html.escape(self.verdict['verdict'])}</b>. "
        return head + html.escape(self.verdict["reason"]) + str(self.scores.to_html(float_format="{:.4f}".format))


def make(
    study: Study,
    *,
    title: str | None = None,
    batches: int | None = None,
    worst: int = 6,
    sensitivity: bool = True,
    diagnosis: Diagnosis | bool | None = None,
    tolerance: float | None = None,
    images: bool = False,
    lint: bool = True,
    mixed: Mixed | None = None,
    engines: EngineComparison | Sequence[EngineComparison] = (),
    command: str | None = None,
    layer_map: Mapping[str, str] | str | Path | None = None,
    executor: Executor | None = None,
    progress: bool = True,
) -> Report:
    """Measure what a degradation report holds.

    Parameters
    ----------
    study
        Calibrated or not; its current plan is the report's. A study that `ptc` made brings what that did.
    title
        "Degradation of <model>" by default.
    batches
        Evaluation batches to score on, all by default. The table of layers takes at most `CAPTURE_BATCHES` of them.
    worst
        How many layers to show in detail.
    sensitivity
        Whether to quantize every layer alone, which costs about half a pass a layer.
    diagnosis
        What :meth:`qkit.Study.diagnose` found, to go into the report; True to diagnose now, on the same batches.
    tolerance
        Loss that still counts as close, in units of the score; by default the metric's own.
    images
        Whether to show feature maps of the first evaluation image at the worst layers. They show the image: think of whom
        the report goes to.
    lint
        Whether to add what `qkit.lint` says of the model.
    mixed
        What :meth:`qkit.Study.mixed` found, to go into the report.
    engines
        What :func:`qkit.engines.compare.compare` found, one or several.
    command
        The command line that made this report, where one did; by default the one that comes nearest to it.
    layer_map
        What the target calls the tensors, so that its vendor can read the report; see `qkit.engines.tidl.layer_names`.
    executor
        Whose workers score, see `Study.with_executor`.

    Raises
    ------
    QkitError
        If an option is out of range, or the study's data do not fit.
    """
    _check(worst, tolerance, batches)
    at_target = {} if layer_map is None else layer_names(layer_map, study.graph)
    study = study if executor is None else study.with_executor(executor)
    seen = study.observe(progress=progress)
    study.plan  # noqa: B018  # calibrates from what was just observed
    lanes = {name: study.lane(name) for name in ("float", WIDE, study.narrow)}
    scores = study.evaluate(tuple(lanes), batches=batches, progress=progress)
    tolerance = scores.tolerance() if tolerance is None else tolerance
    described, sizes = samples.describe(study, batches, progress=progress)
    if isinstance(diagnosis, bool):
        diagnosis = study.diagnose(tolerance=tolerance, batches=batches, progress=progress) if diagnosis else None
    verdict = study.verdict(tolerance=tolerance, batches=batches, progress=progress)
    if diagnosis is not None and any(cause.kind in OUTSIDE for cause in diagnosis.causes):
        # the lanes alone do not see what the gate has found
        verdict = diagnosis.verdict
    captured = study.capture(tuple(lanes), batches=min(batches or CAPTURE_BATCHES, CAPTURE_BATCHES), progress=progress)
    layers = facts.layers_of(captured)
    narrow = lanes[study.narrow]
    swept = None
    why = "not measured (sensitivity=False)"
    if sensitivity and narrow.grids:
        swept = study.sensitivity("only", lane=narrow, batches=batches, progress=progress).table()
        why = f"each layer alone in the {study.narrow} lane's grids"
    elif sensitivity:
        why = f"not measured: the {study.narrow} lane quantizes nothing"
    rules = worst_layers.choose(layers, study.narrow, swept, worst)
    graph = study.graph
    metric = {
        "name": study.metric_name,
        **study.metric.units.to_dict(),
        "samples": scores.n,
        "tolerance": tolerance,
        "expected": study.expected,
    }
    judged = facts.verdict_of(verdict, diagnosis)
    tried = [] if diagnosis is None else facts.tried_of(study, diagnosis, batches, progress=progress)
    found = None if diagnosis is None else facts.strip(facts.diagnosis_of(diagnosis))
    treatment = None if study.treatment is None else study.treatment.to_dict()
    compared = tuple(engines) if isinstance(engines, Sequence) else (engines,)
    linted = facts.lint_of(study) if lint else "left out (lint=False)"
    shown = {name: shown_maps.describe(captured, name, study.narrow) for name in rules} if images else {}
    options: dict[str, Any] = {"batches": batches, "worst": worst, "sensitivity": sensitivity, "tolerance": tolerance}
    options |= (
        ({} if title is None else {"title": title}) | ({"images": True} if images else {}) | ({} if lint else {"lint": False})
    )
    return Report(
        title=title or f"Degradation of {graph.model_name}",
        model={
            "name": graph.model_name,
            "taps": len(graph.taps),
            "weights": len(graph.weights),
            "macs": sum(op.macs for op in graph.operations),
            "deviation": graph.deviation,
            "front": graph.front,
            "integer_macs": study.share.macs,
            "integer_elements": study.share.elements,
        },
        metric=metric,
        verdict=judged,
        scores=scores.table(),
        lanes=tuple(lane for lane in lanes if lane != "float"),
        layers=layers,
        layer_samples=captured.samples,
        weights=captured.weights(),
        sensitivity=swept,
        diagnosis=found,
        worst=tuple(entries.describe(graph, narrow, name, seen, why_worst) for name, why_worst in rules.items()),
        notes=dict(graph.notes),
        remarks=tuple(map(facts.without_folders, (*study.remarks, *facts.remarks_of(study, lanes, scores, captured, layers)))),
        environment=facts.environment_of(study),
        settings=facts.settings_of(study, batches, captured.samples, scores.n)
        | {
            "sensitivity": why,
            "lint": linted if isinstance(linted, str) else "on one evaluation sample",
            "images": "feature maps of the first evaluation image (images=True)" if images else LEFT_OUT,
        },
        reproduce=reproducing.python(study, options, diagnosis, sizes, mixed=mixed is not None, engines=len(compared)),
        narrow=study.narrow,
        summary=summarize(judged, metric, study.narrow, found, tried, treatment),
        data=described,
        per_sample=None if scores.n > samples.MOST_SAMPLES else {name: scores.lanes[name] for name in lanes},
        plan=facts.plan_of(study.plan),
        tried=tuple(tried),
        lint=None if isinstance(linted, str) else linted,
        maps={name: entry for name, entry in shown.items() if entry is not None} if images else None,
        treatment=treatment,
        mixed=None if mixed is None else mixed.to_dict(),
        engines=tuple(facts.engine_of(comparison) for comparison in compared),
        command=reproducing.command(study, options, diagnosis) if command is None else facts.without_folders(command),
        names=facts.names_of(graph, at_target),
        network=tuple({"name": node.name, "kind": node.kind, "inputs": list(node.inputs)} for node in network_of(graph).nodes),
    )


def _check(worst: int, tolerance: float | None, batches: int | None) -> None:
    if worst < 0:
        raise QkitError(f"worst={worst}: the number of layers to show in detail is 0 or more.")
    if tolerance is not None and not (math.isfinite(tolerance) and tolerance > 0):
        raise QkitError(f"tolerance={tolerance}: the loss that counts as close is a number above 0, 0.01 for one point.")
    if batches is not None and batches < 1:
        raise QkitError(f"batches={batches}: a report needs at least one evaluation batch, or None for all.")
