"""The summary of real studies of bundled networks with planted faults: a sentence for every question, under every verdict."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from report_pages import Page

from qkit import Study, zoo
from qkit.diagnosis import Cause, Diagnosis, Remedy, Verdict
from qkit.execution.statistics import Interval
from qkit.report import Report, make
from qkit.report.page import html
from qkit.report.text import markdown
from qkit.report.text.summary import QUESTIONS, summarize
from qkit.report.text.terms import CAUSES, REMEDIES, VERDICTS


def studied(
    name: str, scheme: str, *, change: Any = None, batches: int | None = None, diagnosis: Any = None, **options
) -> Report:
    torch.set_num_threads(1)
    case = zoo.load(name)
    evaluation = [(x if change is None else change(x), y) for x, y in case.evaluation]
    study = Study(case.model, case.calibration, evaluation, metric="top1", scheme=scheme, expected=case.expected)
    if diagnosis is True:
        diagnosis = study.diagnose(batches=batches, progress=False)
        batches = None
    return make(study, sensitivity=False, worst=0, lint=False, batches=batches, diagnosis=diagnosis, progress=False, **options)


def said_everywhere(made: Report) -> dict[str, str]:
    """The summary, found in the page and in the text."""
    page, text = Page(html.render(made)), markdown.render(made)
    assert list(made.summary) == list(QUESTIONS)
    for key, question in QUESTIONS.items():
        assert made.summary[key].endswith((".", "?"))
        assert not re.search(r"\bnan\b|\bnull\b|\{|\}|  ", made.summary[key])
        assert question in text
        assert key == "verdict" or " ".join(made.summary[key].split()) in page.text
    assert page.text.index(made.summary["loss"]) < page.text.index("Scores"), "the summary comes first"
    return made.summary


def test_no_degradation():
    made = studied("resnet_small", "int8")
    assert made.verdict["verdict"] == "no-degradation"
    said = said_everywhere(made)
    assert said["verdict"] == "No degradation."
    loss = 100 * made.scores.loc["int8", "loss"]
    assert said["loss"].startswith(f"int8 loses {loss:.2f} points [".replace("-", "−"))
    assert "741 samples" in said["loss"]
    assert (said["cause"], said["remedy"]) == ("None to look for.", "None needed.")
    assert said["qat"] == "No: nothing is lost."


def test_quantization_with_its_cause_remedy_and_gain():
    made = studied("mobilenet_v2_hostile", "int8-per-tensor", batches=4, diagnosis=True)
    assert made.verdict["verdict"] == "quantization"
    said = said_everywhere(made)
    assert said["cause"].startswith("weight-channel-imbalance at features.")
    assert CAUSES["weight-channel-imbalance"] in said["cause"]
    assert said["remedy"].startswith("One scale per output channel for the weights (per-channel-weights)")
    together = made.tried[-1]
    assert together["what"] == "all"
    assert said["gain"].startswith(
        f"{100 * together['before']['value']:.2f} % → {100 * together['score']['value']:.2f} %, a gain of "
    )
    assert together["before"]["value"] == made.scores.loc["int8", "score"]
    assert together["gain"]["value"] == pytest.approx(together["score"]["value"] - together["before"]["value"])
    assert together["gain"]["low"] > 0.5
    assert together["gain"]["n"] == made.metric["samples"] == 741
    assert said["qat"].startswith("Not needed")
    assert made.diagnosis["samples"] < 741
    assert "chosen on" in html.render(made)
    assert f"study.diagnose(batches=4, tolerance=0.01)  # on {made.diagnosis['samples']} samples" in made.reproduce


def test_quantization_without_a_diagnosis_says_how_to_get_one():
    made = studied("mobilenet_v2_hostile", "int8-per-tensor", batches=4)
    assert made.verdict["verdict"] == "quantization"
    said = said_everywhere(made)
    for key in ("cause", "remedy", "qat"):
        assert "diagnosis=True" in said[key]
    assert said["gain"] == "None: no remedy was measured."


def test_not_quantization():
    """Evaluation images on another scale than those of training: float itself misses what was expected of it."""
    made = studied("resnet_small", "int8", change=lambda x: 8 * x - 5, batches=4, diagnosis=True)
    assert made.verdict["verdict"] == "not-quantization"
    said = said_everywhere(made)
    assert said["verdict"] == "It is not quantization."
    assert made.diagnosis["causes"][0]["kind"] in said["cause"]
    assert made.diagnosis["causes"][0]["remedy"]["text"] in said["remedy"]
    assert said["qat"].startswith("Not the answer")


def test_both():
    """The hostile network on images that are half as bright: float suffers, and 8 bits on top."""
    made = studied("mobilenet_v2_hostile", "int8-per-tensor", change=lambda x: 0.3 * x)
    assert made.verdict["verdict"] == "both"
    said = said_everywhere(made)
    assert said["verdict"] == "Quantization, and something else."
    assert "settled" in said["qat"]


def test_inconclusive_says_how_many_samples_would_do():
    few = studied("resnet_small", "int8", batches=1)
    assert few.verdict["verdict"] == "inconclusive"
    said = said_everywhere(few)
    assert str(few.verdict["samples_needed"]) in said["remedy"]
    assert "not to be decided" in said["qat"].lower()


@pytest.mark.parametrize("name", list(VERDICTS))
@pytest.mark.parametrize("with_cause", [False, True, None])
def test_every_verdict_answers_every_question(report, name, with_cause):
    loss = Interval(0.25, 0.2, 0.3, 64)
    verdict = Verdict(name, "because.", Interval(0.0, -0.01, 0.01, 64), loss, 900 if name == "inconclusive" else None)
    judged = verdict.to_dict() | VERDICTS[name]._asdict()
    cause = Cause("range-too-narrow", "a", "a", "it clips.", Remedy("widen-range", "a", "Widen it.", bias_bits=3), loss)
    causes = (cause,) if with_cause else ()
    found = None
    if with_cause is not None:
        remedies = tuple(c.remedy for c in causes)
        found = Diagnosis(
            verdict, causes, (), (), None, None, remedies, None, None, "Quantization-aware training: x.", (), 64, 9, "top1"
        )
        found = found.to_dict()
    said = summarize(judged, report.metric, "int8", found, [], None)
    assert list(said) == list(QUESTIONS)
    assert all(answer.endswith(".") for answer in said.values())
    assert "25.00 points [20.00, 30.00]" in said["loss"]
    if with_cause:
        assert said["cause"] == f"range-too-narrow at a: it clips. {CAUSES['range-too-narrow']}"
        assert said["remedy"] == "A wider range (widen-range), at a."
        assert said["gain"].startswith("25.00 points [20.00, 30.00] on 64 samples")
        assert said["qat"] == "X."


def test_every_remedy_has_words():
    from typing import get_args

    from qkit.diagnosis.remedies import RemedyKind

    assert set(REMEDIES) == set(get_args(RemedyKind)) - {"fix-input"}


def test_a_lane_that_could_not_be_scored():
    judged = {"verdict": "not-quantization", "reason": "x", "loss16": None, "loss8": None, "samples_needed": None}
    said = summarize(judged | VERDICTS["not-quantization"]._asdict(), {"name": "top1", "percent": True}, "int8", None, [], None)
    assert said["loss"] == "Not measured: no lane could be scored."
