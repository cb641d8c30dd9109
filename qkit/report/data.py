"""Everything that a report says, gathered from a study as plain data."""

from __future__ import annotations

import hashlib
import html
import json
import math
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

import qkit
from qkit.capture import Capture
from qkit.diagnosis.candidates import OUTSIDE
from qkit.diagnosis.verdict import TOLERANCE, Verdict
from qkit.errors import QkitError
from qkit.metrics import NAMED, Scores
from qkit.plan import FLOAT, Plan
from qkit.report import worst as worst_layers
from qkit.report.formats import Units, frame_dict, plain
from qkit.report.words import UNITS, VERDICTS
from qkit.study import Study

if TYPE_CHECKING:
    from qkit.diagnosis.result import Diagnosis

#: Version of the JSON form.
FORMAT = 1
#: Most batches that the table of layers is made of: its figures settle long before the scores do.
CAPTURE_BATCHES = 4
WIDE = "int16"


@dataclass(frozen=True, eq=False)
class Report:
    """A degradation report as plain data: frames, dicts, lists, strings and numbers; made by :func:`make`.

    Attributes
    ----------
    title
        Shown on top.
    model
        ``name``, ``taps``, ``weights``, ``macs`` of one sample, ``deviation`` of the folded graph.
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
        The calls that give this report again.
    narrow
        Name of the lane that the verdict compares with 16 bits.
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
    narrow: str = "int8"

    def to_dict(self) -> dict[str, Any]:
        """What strict JSON can hold: infinities as "inf" and "-inf", missing figures as None; frames by row name."""
        return {
            "format": FORMAT,
            "title": self.title,
            "model": plain(self.model),
            "metric": plain(self.metric),
            "verdict": plain(self.verdict),
            "scores": frame_dict(self.scores),
            "lanes": list(self.lanes),
            "layer_samples": self.layer_samples,
            "layers": frame_dict(self.layers),
            "weights": frame_dict(self.weights),
            "sensitivity": None if self.sensitivity is None else frame_dict(self.sensitivity),
            "diagnosis": plain(self.diagnosis),
            "worst": plain(self.worst),
            "notes": plain(self.notes),
            "remarks": list(self.remarks),
            "environment": plain(self.environment),
            "settings": plain(self.settings),
            "reproduce": self.reproduce,
            "units": dict(UNITS),
        }

    def __repr__(self) -> str:
        units = Units(percent=self.metric["percent"])
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
    diagnosis: Diagnosis | None = None,
    tolerance: float = TOLERANCE,
    progress: bool = True,
) -> Report:
    """Measure what a degradation report holds.

    Parameters
    ----------
    study
        Calibrated or not; its current plan is the report's.
    title
        "Degradation of <model>" by default.
    batches
        Evaluation batches to score on, all by default. The table of layers takes at most `CAPTURE_BATCHES` of them.
    worst
        How many layers to show in detail.
    diagnosis
        What :meth:`qkit.Study.diagnose` found, to go into the report.
    sensitivity
        Whether to quantize every layer alone, which costs about half a pass a layer.
    tolerance
        Loss that still counts as close, in units of the score.

    Raises
    ------
    QkitError
        If an option is out of range, or the study's data do not fit.
    """
    if worst < 0:
        raise QkitError(f"worst={worst}: the number of layers to show in detail is 0 or more.")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise QkitError(f"tolerance={tolerance}: the loss that counts as close is a number above 0, 0.01 for one point.")
    if batches is not None and batches < 1:
        raise QkitError(f"batches={batches}: a report needs at least one evaluation batch, or None for all.")
    seen = study.observe(progress=progress)
    study.plan  # noqa: B018  # calibrates from what was just observed
    lanes = {name: study.lane(name) for name in ("float", WIDE, study.narrow)}
    scores = study.evaluate(tuple(lanes), batches=batches, progress=progress)
    verdict = study.verdict(tolerance=tolerance, batches=batches, progress=progress)
    if diagnosis is not None and any(cause.kind in OUTSIDE for cause in diagnosis.causes):
        # the lanes alone do not see what the gate has found
        verdict = diagnosis.verdict
    captured = study.capture(tuple(lanes), batches=min(batches or CAPTURE_BATCHES, CAPTURE_BATCHES), progress=progress)
    layers = _layers(captured)
    narrow = lanes[study.narrow]
    swept = None
    why = "not measured (sensitivity=False)"
    if sensitivity and narrow.grids:
        swept = study.sensitivity("only", lane=narrow, batches=batches, progress=progress).table()
        why = f"each layer alone in the {study.narrow} lane's grids"
    elif sensitivity:
        why = f"not measured: the {study.narrow} lane quantizes nothing"
    rules = worst_layers.choose(layers, study.narrow, swept, worst)
    percent = isinstance(study.metric, str) and study.metric in NAMED
    graph = study.graph
    return Report(
        title=title or f"Degradation of {graph.model_name}",
        model={
            "name": graph.model_name,
            "taps": len(graph.taps),
            "weights": len(graph.weights),
            "macs": sum(step.macs for step in graph.steps),
            "deviation": graph.deviation,
        },
        metric={
            "name": study.metric_name,
            "percent": percent,
            "samples": scores.n,
            "tolerance": tolerance,
            "expected": study.expected,
        },
        verdict=_verdict(verdict),
        scores=scores.table(),
        lanes=tuple(lane for lane in lanes if lane != "float"),
        layers=layers,
        layer_samples=captured.samples,
        weights=captured.weights(),
        sensitivity=swept,
        diagnosis=None if diagnosis is None else diagnosis.to_dict(),
        worst=tuple(worst_layers.describe(graph, narrow, name, seen, why_worst) for name, why_worst in rules.items()),
        notes=dict(graph.notes),
        remarks=(*study.remarks, *_remarks(study, lanes, scores, captured, layers)),
        environment=_environment(study),
        settings=_settings(study, batches, captured.samples, scores.n) | {"sensitivity": why},
        reproduce=_reproduce(study, title, batches, worst, sensitivity, tolerance) + _reproduce_diagnosis(diagnosis),
        narrow=study.narrow,
    )


def _layers(captured: Capture) -> pd.DataFrame:
    layers = captured.table()
    for column in layers.columns:
        if column[1] == "zero point":
            layers[column] = layers[column].astype("Int64")
    weights = [captured.graph.step(str(tap)).weight for tap in layers.index]
    layers.insert(2, ("tap", "weight"), pd.Series(weights, index=layers.index, dtype=object))
    return layers


def _verdict(verdict: Verdict) -> dict[str, Any]:
    words = VERDICTS[verdict.name]
    return verdict.to_dict() | {"headline": words.headline, "meaning": words.meaning, "then": words.then}


def _remarks(study: Study, lanes: dict[str, Plan], scores: Scores, captured: Capture, layers: pd.DataFrame) -> list[str]:
    remarks = []
    if study.metric == "agreement" and not any("agreement" in remark for remark in study.remarks):
        remarks.append("The score is agreement with the float lane, not accuracy: float agrees with itself by definition.")
    if captured.samples < scores.n:
        remarks.append(f"Scores are measured on {scores.n} samples, the figures of layers and weights on {captured.samples}.")
    edited = [name for name, grid in study.plan.grids.items() if grid.method == "manual"]
    if edited:
        remarks.append(f"{_named(edited)} edited by hand: save the plan (plan.save) to hand these ranges on.")
    for lane in captured.plans:
        clipped = layers[lane, "clipped"].astype(float)
        much = clipped[clipped > 0.001].sort_values(ascending=False)
        if len(much):
            most = f"most in {much.index[0]} ({100 * much.iloc[0]:.2g} %)"
            count = "1 tensor" if len(much) == 1 else f"{len(much)} tensors"
            remarks.append(f"{lane} clips more than 0.1 % of the elements of {count}, {most}.")
        if bool(np.isinf(layers[lane, "sqnr"].astype(float)).all()):
            remarks.append(f"{lane} equals float exactly in every layer: it quantizes nothing that these data can show.")
    missing = [step.name for step in study.graph.steps if step.quantized and step.name not in study.plan.grids]
    if missing and study.plan != FLOAT:
        remarks.append(f"{_named(missing)} without a grid in the scheme {study.scheme.name!r}: in float by the user's choice.")
    return remarks


def _named(names: list[str]) -> str:
    few = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
    return f"{few} {'is' if len(names) == 1 else 'are'}"


def _environment(study: Study) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "qkit": qkit.__version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "device": str(study.graph.device),
        "threads": torch.get_num_threads(),
    }


def _settings(study: Study, batches: int | None, layer_samples: int, samples: int) -> dict[str, Any]:
    method = study.methods
    plan = json.dumps(study.plan.to_dict(), sort_keys=True)
    own = bool(study.plan.grids)
    return {
        "scheme": study.scheme.name,
        "activations": _rule(study.scheme.activation) + (f", range by {method.get('method')}" if own else ""),
        "weights": _rule(study.scheme.weight) + (f", range by {method.get('weight_method')}" if own else ""),
        "bias": "float" if study.plan.bias_bits is None else f"{study.plan.bias_bits} bits",
        "overrides": len(study.scheme.overrides),
        "metric": study.metric_name,
        "batches": "all" if batches is None else batches,
        "samples": samples,
        "layer samples": layer_samples,
        "plan fingerprint": hashlib.sha256(plan.encode()).hexdigest()[:16],
    }


def _rule(spec: qkit.QuantSpec | None) -> str:
    if spec is None:
        return "float"
    words = [
        f"{spec.bits} bits",
        "symmetric" if spec.symmetric else "affine",
        "per channel" if spec.per_channel else "per tensor",
    ]
    return ", ".join([*words, "scales powers of two"] if spec.power_of_two else words)


def _reproduce_diagnosis(diagnosis: Diagnosis | None) -> str:
    if diagnosis is None:
        return ""
    return f"# and diagnosis=study.diagnose(batches=…), here on {diagnosis.samples} samples\n"


def _reproduce(
    study: Study, title: str | None, batches: int | None, worst: int, sensitivity: bool, tolerance: float
) -> str:  # fmt: skip
    metric = repr(study.metric) if isinstance(study.metric, str) else study.metric_name
    evaluation = "" if study.evaluation is study.calibration else ", evaluation"
    expected = "" if study.expected is None else f", expected={study.expected!r}"
    names = ("method", "weight_method", "percentile", "methods")
    settings = ", ".join(f"{name}={study.methods[name]!r}" for name in names if study.methods.get(name) is not None)
    options = [f"title={title!r}"] if title is not None else []
    options += [f"batches={batches}", f"worst={worst}", f"sensitivity={sensitivity}", f"tolerance={tolerance!r}"]
    scheme = repr(study.scheme.name) if study.scheme.name in qkit.PRESETS else "scheme"
    return (
        f"# qkit {qkit.__version__}; model, calibration{evaluation} as they were\n"
        f"study = qkit.Study(model, calibration{evaluation}, metric={metric}, scheme={scheme}{expected})\n"
        f"study.calibrate({settings})\n"
        f'study.report("degradation.html", {", ".join(options)})\n'
    )
