"""The sentences that go with a report's tables and pictures, states without data included."""

from __future__ import annotations

from typing import Any

import numpy as np

from qkit.diagnosis.answer import interaction_words
from qkit.diagnosis.survival import Survival
from qkit.execution.statistics import Interval
from qkit.report.contents.data import Report
from qkit.report.text import sections
from qkit.report.text.tables import bars_shown
from qkit.style import units_of

#: Said where a diagnosis found none.
NO_CAUSE = "No cause was confirmed."


def sentences(report: Report) -> dict[str, str]:
    """A sentence or two for each section; the empty string where there is nothing to say."""
    return {
        "scores": _scores(report),
        "depth": _depth(report),
        "infinite": _infinite(report),
        "diagnosis": _diagnosis(report),
        "sensitivity": _sensitivity(report),
        "worst": _worst(report),
        "layers": f"Measured on {_samples(report.layer_samples)}, in order of execution.",
        "weights": "" if len(report.weights) else "The network has no weights that are quantized: there is nothing to show here.",
        "tried": _tried(report),
        "images": _images(report),
        "treatment": sections.treatment_words(report),
        "mixed": sections.mixed_words(report),
        "lint": sections.lint_words(report),
        "plan": sections.plan_words(report),
        "notes": "" if report.notes or report.remarks else "Nothing stays float, and there is nothing to remark.",
    }


def _samples(n: int) -> str:
    return "1 evaluation sample" if n == 1 else f"{n} evaluation samples"


def _scores(report: Report) -> str:
    metric = report.metric
    units = units_of(metric)
    tolerance = f"{units.factor * metric['tolerance']:g}"
    if units.points:
        tolerance += " point" if tolerance == "1" else f" {units.points}"
    said = {
        "top1": "Top-1 accuracy",
        "top5": "Top-5 accuracy",
        "agreement": "Agreement with the float lane's class (not accuracy; float agrees with itself by definition)",
    }
    text = said.get(metric["name"], f"Score: {metric['name']}, higher is better") if metric["percent"] else ""
    text = text or f"Score: {metric['name']}, higher is better, in its own units"
    text += f", on {_samples(metric['samples'])}. Losses are against float, sample by sample; a loss of up to {tolerance} "
    text += "counts as close."
    if metric["expected"] is not None:
        text += f" Expected of float: {units.score(metric['expected'])}."
    return text


def _diagnosis(report: Report) -> str:
    found = report.diagnosis
    if found is None:
        return ""
    text = f"On {_samples(found['samples'])}, {found['evaluations']} evaluations of them. "
    if found["causes"]:
        text += (
            "A cause is named only if its remedy, applied there alone, recovers score by more than chance; gains are measured "
            "on the same samples as the losses."
        )
    else:
        text += NO_CAUSE
    if found["interaction"] is not None:
        together = interaction_words(Interval(**found["interaction"]), units_of(report.metric), report.metric["tolerance"])
        text += f" {together}" if together else ""
    return " ".join([text, *(survival.said(units_of(report.metric)) for survival in survivals(found))])


def survivals(diagnosis: dict[str, Any]) -> list[Survival]:
    """What became of the offered plans in exported files; none in reports from before that was looked at."""
    return [
        Survival(**{**one, "lost": None if one["lost"] is None else Interval(**one["lost"])})
        for one in diagnosis.get("exported", [])
    ]


def _depth(report: Report) -> str:
    text = (
        "Signal to quantization noise ratio of every layer in order of execution; 20 dB are an error of a tenth, 0 dB an error "
        "as large as the tensor. Accumulated: with all errors from the input on. Local: this layer's quantization alone, on "
        "float inputs. A layer with a low local value makes an error; one with a low accumulated value may only inherit it."
    )
    if report.worst:
        text += " Numbers mark the worst layers, shown one by one below."
    return text


def _infinite(report: Report) -> str:
    figures = np.concatenate([report.layers[lane, "sqnr"].to_numpy(float) for lane in report.lanes] or [np.zeros(0)])
    local = np.concatenate([report.layers[lane, "local sqnr"].to_numpy(float) for lane in report.lanes] or [np.zeros(0)])
    both = np.concatenate([figures, local])
    if len(figures) and np.isposinf(figures).all():
        return "∞ throughout: no lane differs from float in any element. Nothing is quantized, or all lies on its grid."
    if np.isposinf(both).any():
        return "∞ stands for no error at all: the lane's tensor equals float's exactly, element by element."
    return ""


def _sensitivity(report: Report) -> str:
    swept = report.sensitivity
    if swept is None:
        return f"The sensitivity of single layers was {report.settings['sensitivity']}."
    sure = int((swept["loss low"] > 0).sum())
    chance = max(1, round(0.05 * len(swept)))
    bars = bars_shown(report)
    shown = f"The {bars} greatest of {len(swept)}. " if 0 < bars < len(swept) else ""
    found = "No layer's interval" if sure == 0 else "1 layer's interval" if sure == 1 else f"The intervals of {sure} layers"
    by_chance = "one may miss its own" if chance == 1 else f"{chance} may miss theirs"
    count = "1 layer" if len(swept) == 1 else f"{len(swept)} layers"
    lost = "excludes a loss of none" if sure <= 1 else "exclude a loss of none"
    return (
        f"Loss with one layer in {report.narrow} and all others in float. {shown}Each 95 % interval stands for itself: "
        f"of {count}, {by_chance} by chance. {found} {lost}."
    )


def _tried(report: Report) -> str:
    if not report.tried:
        return ""
    text = f"Each remedy in the whole {report.narrow} network, on this report's {_samples(report.metric['samples'])}."
    found = report.diagnosis
    if found is not None and found["samples"] < report.metric["samples"]:
        text += f" They were chosen on {found['samples']} of these, so the others are a check."
    elif found is not None:
        text += " They were chosen on the same samples, so the gains are on the bright side."
    return text


def _images(report: Report) -> str:
    if report.maps is None:
        return (
            "Feature maps are left out, since they show your images, and this page may be handed on: "
            "study.report(…, images=True) adds those of the first evaluation image."
        )
    if not report.maps:
        return "Feature maps were asked for, but none of the worst layers has positions to show."
    return "The feature maps show the first evaluation image: think of whom this page goes to."


def _worst(report: Report) -> str:
    if report.worst:
        return (
            "Chosen by turns: the layer that loses most when it alone is quantized (as far as its interval excludes none), and "
            f"the layer with the lowest local SQNR in {report.narrow}. What follows describes them; a cause is only what an "
            "intervention on that layer confirms."
        )
    return f"There is none to show: no layer has an error in {report.narrow}, or none was asked for."
