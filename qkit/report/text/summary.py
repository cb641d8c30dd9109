"""The summary for somebody who reads nothing else: verdict, loss, cause, remedy, what it gains, and whether to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qkit.diagnosis.meanings import CAUSES, REMEDIES
from qkit.style import Units, units_of

#: What the summary answers, in this order.
QUESTIONS = {
    "verdict": "Is it quantization?",
    "loss": "What is lost",
    "cause": "Cause",
    "remedy": "Remedy",
    "gain": "Measured gain",
    "qat": "Is training needed?",
}
#: Whether to train where nothing was diagnosed, by verdict.
TRAINING: Mapping[str, str] = {
    "no-degradation": "No: nothing is lost.",
    "not-quantization": "No: quantization is not what costs the score.",
    "inconclusive": "Not to be decided before there are samples enough to tell a loss from none.",
    "both": "Not to be decided before what is not quantization is settled.",
}
_ASK = "pass diagnosis=True, which puts causes and remedies to the test"


def summarize(
    verdict: dict[str, Any],
    metric: dict[str, Any],
    narrow: str,
    diagnosis: dict[str, Any] | None,
    tried: list[dict[str, Any]],
    treatment: dict[str, Any] | None,
) -> dict[str, str]:
    """A sentence or two for each of `QUESTIONS`."""
    units = units_of(metric)
    answers = {
        "verdict": f"{verdict['headline']}.",
        "loss": _loss(verdict, metric, narrow, units),
        "cause": _cause(verdict, diagnosis),
        "remedy": _remedy(verdict, diagnosis),
        "gain": _gain(diagnosis, tried, units),
        "qat": _qat(verdict, diagnosis),
    }
    if treatment is not None:
        after = units.amount(*(treatment["loss"][end] for end in ("value", "low", "high")))
        answers["loss"] += f" This is after post-training calibration, before which {metric['name']} was "
        answers["loss"] += f"{units.score(treatment['before']['value'])}; it still loses {after} against the model as it was."
    return answers


def _amount(figure: dict[str, float], units: Units) -> str:
    return units.amount(figure["value"], figure["low"], figure["high"])


def _loss(verdict: dict[str, Any], metric: dict[str, Any], narrow: str, units: Units) -> str:
    if verdict["loss8"] is None:
        return "Not measured: no lane could be scored."
    text = f"{narrow} loses {_amount(verdict['loss8'], units)} of {metric['name']} against float"
    if verdict["loss16"] is not None:
        text += f", 16 bits lose {_amount(verdict['loss16'], units)}"
    return f"{text}; the brackets are 95 % intervals on {verdict['loss8']['n']} samples."


def _cause(verdict: dict[str, Any], diagnosis: dict[str, Any] | None) -> str:
    if diagnosis is None:
        return "None to look for." if verdict["verdict"] == "no-degradation" else f"Not looked for: {_ASK}."
    causes = diagnosis["causes"]
    if not causes:
        nothing = verdict["verdict"] == "no-degradation"
        return "None: nothing is lost." if nothing else "None was confirmed by an experiment."
    first = causes[0]
    text = f"{first['kind']} at {first['layer'] or 'the whole network'}: {first['evidence']} {CAUSES.get(first['kind'], '')}"
    if len(causes) > 1:
        others = "one more cause was" if len(causes) == 2 else f"{len(causes) - 1} more causes were"
        text += f" {others[:1].upper()}{others[1:]} confirmed."
    return text


def _remedy(verdict: dict[str, Any], diagnosis: dict[str, Any] | None) -> str:
    name = verdict["verdict"]
    if diagnosis is not None and diagnosis["causes"] and diagnosis["causes"][0]["remedy"]["kind"] in ("fix-input", "fix-engine"):
        return str(diagnosis["causes"][0]["remedy"]["text"])
    if diagnosis is not None and diagnosis["remedies"]:
        steps = [f"{_in_words(r['kind'])}, {_where(r['layer'])}" for r in diagnosis["remedies"]]
        text = "; then ".join(steps)
        return f"{text[:1].upper()}{text[1:]}."
    if name == "no-degradation":
        return "None needed."
    if name == "inconclusive":
        return "More evaluation samples first: " + _needed(verdict)
    if diagnosis is None:
        return f"Not looked for: {_ASK}."
    return str(verdict["then"]) if name == "not-quantization" else "No remedy was found that helps by more than chance."


def _where(layer: str) -> str:
    return f"at {layer}" if layer else "everywhere"


def _in_words(kind: str) -> str:
    return f"{REMEDIES[kind]} ({kind})" if kind in REMEDIES else kind


def _needed(verdict: dict[str, Any]) -> str:
    return "as many as can be had." if verdict["samples_needed"] is None else f"about {verdict['samples_needed']} would tell."


def _gain(diagnosis: dict[str, Any] | None, tried: list[dict[str, Any]], units: Units) -> str:
    together = next((row for row in tried if row["what"] == "all"), tried[0] if len(tried) == 1 else None)
    if together is not None:
        text = f"{units.score(together['before']['value'])} → {units.score(together['score']['value'])}, "
        text += f"a gain of {_amount(together['gain'], units)} on {together['gain']['n']} samples"
        return f"{text}; {_amount(together['loss'], units)} are then lost against float."
    gains = [c["gain"] for c in ([] if diagnosis is None else diagnosis["causes"]) if c["gain"] is not None]
    if gains:
        best = max(gains, key=lambda gain: float(gain["value"]))
        return f"{_amount(best, units)} on {best['n']} samples, for the first of the causes put right alone."
    return "None: no remedy was measured."


def _qat(verdict: dict[str, Any], diagnosis: dict[str, Any] | None) -> str:
    if diagnosis is not None:
        said = str(diagnosis["qat"]).removeprefix("Quantization-aware training: ")
        return said[:1].upper() + said[1:]
    return TRAINING.get(verdict["verdict"], f"Not decided: cheaper remedies come first, and were not tried here; {_ASK}.")
