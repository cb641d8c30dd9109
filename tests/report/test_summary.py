"""The summary of real studies of bundled networks with planted faults: a sentence for every question, under every verdict."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from report_pages import Page

from qkit import Study, zoo
from qkit.diagnosis import Cause, Diagnosis, Remedy, Verdict
from qkit.diagnosis.diagnose import QAT
from qkit.diagnosis.meanings import CAUSES, REMEDIES, VERDICTS
from qkit.diagnosis.verdict import amount
from qkit.execution.metrics import NAMED
from qkit.execution.statistics import Interval
from qkit.report import Report, make
from qkit.report.page import html
from qkit.report.text import markdown
from qkit.report.text.captions import sentences
from qkit.report.text.summary import QUESTIONS, TRAINING, summarize


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
    assert said["verdict"] == f"{VERDICTS['no-degradation'].headline}."
    loss = f"{100 * made.scores.loc['int8', 'loss']:.2f} points [".replace("-", "−")
    assert re.match(rf"int8\b[^\d−]*{re.escape(loss)}.*\b741\b", said["loss"])
    assert made.diagnosis is None
    for key in ("cause", "remedy"):
        assert said[key].startswith("None")
        assert "diagnosis=True" not in said[key]
    assert said["qat"] == TRAINING["no-degradation"]


def test_quantization_with_its_cause_remedy_and_gain():
    made = studied("mobilenet_v2_hostile", "int8-per-tensor", batches=4, diagnosis=True)
    assert made.verdict["verdict"] == "quantization"
    said = said_everywhere(made)
    assert said["cause"].startswith("weight-channel-imbalance at features.")
    assert CAUSES["weight-channel-imbalance"] in said["cause"]
    assert said["remedy"].lower().startswith(f"{REMEDIES['per-channel-weights']} (per-channel-weights)".lower())
    together = made.tried[-1]
    assert together["what"] == "all"
    assert said["gain"].startswith(f"{100 * together['before']['value']:.2f} % → {100 * together['score']['value']:.2f} %")
    assert together["before"]["value"] == made.scores.loc["int8", "score"]
    assert together["gain"]["value"] == pytest.approx(together["score"]["value"] - together["before"]["value"])
    assert together["gain"]["low"] > 0.5
    assert together["gain"]["n"] == made.metric["samples"] == 741
    left = amount(Interval(**made.diagnosis["best_loss"]), NAMED["top1"].units)
    assert made.diagnosis["qat"] == QAT["remedies-do"].format(loss=left)
    assert made.diagnosis["qat"].lower().endswith(said["qat"].lower())
    assert made.diagnosis["samples"] < 741
    chosen = sentences(made)["tried"]
    assert re.search(rf"\b{made.diagnosis['samples']}\b", chosen)
    assert chosen in Page(html.render(made)).text
    call = rf"study\.diagnose\(batches=4, tolerance=0\.01\).*#.*\b{made.diagnosis['samples']}\b"
    assert re.search(call, made.reproduce)


def test_quantization_without_a_diagnosis_says_how_to_get_one():
    made = studied("mobilenet_v2_hostile", "int8-per-tensor", batches=4)
    assert made.verdict["verdict"] == "quantization"
    said = said_everywhere(made)
    for key in ("cause", "remedy", "qat"):
        assert "diagnosis=True" in said[key]
    assert not made.tried
    assert said["gain"].startswith("None")
    assert not re.search(r"\d", said["gain"])


def test_not_quantization():
    """Evaluation images on another scale than those of training: float itself misses what was expected of it."""
    made = studied("resnet_small", "int8", change=lambda x: 8 * x - 5, batches=4, diagnosis=True)
    assert made.verdict["verdict"] == "not-quantization"
    said = said_everywhere(made)
    assert said["verdict"] == f"{VERDICTS['not-quantization'].headline}."
    assert made.diagnosis["causes"][0]["kind"] in said["cause"]
    assert made.diagnosis["causes"][0]["remedy"]["text"] in said["remedy"]
    assert made.diagnosis["qat"] == QAT["not-quantization"]
    assert made.diagnosis["qat"].lower().endswith(said["qat"].lower())


def test_both():
    """The hostile network on images that are half as bright: float suffers, and 8 bits on top."""
    made = studied("mobilenet_v2_hostile", "int8-per-tensor", change=lambda x: 0.3 * x)
    assert made.verdict["verdict"] == "both"
    said = said_everywhere(made)
    assert said["verdict"] == f"{VERDICTS['both'].headline}."
    assert said["qat"] == TRAINING["both"]


def test_inconclusive_says_how_many_samples_would_do():
    few = studied("mobilenet_v2_lite", "int4-weights", batches=1, tolerance=0.02)
    assert few.verdict["verdict"] == "inconclusive"
    said = said_everywhere(few)
    assert str(few.verdict["samples_needed"]) in said["remedy"]
    assert said["qat"] == TRAINING["inconclusive"]


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
        assert re.match(r"range-too-narrow\b.*\ba\b.*it clips\.", said["cause"])
        assert said["cause"].endswith(CAUSES["range-too-narrow"])
        assert said["remedy"].lower().startswith(f"{REMEDIES['widen-range']} (widen-range)".lower())
        assert re.search(r"\ba\.$", said["remedy"])
        assert re.match(r"25\.00 points \[20\.00, 30\.00\].*\b64\b", said["gain"])
        assert said["qat"] == "X."


def test_every_remedy_has_words():
    from typing import get_args

    from qkit.diagnosis.remedies import RemedyKind

    assert set(REMEDIES) == set(get_args(RemedyKind)) - {"fix-input", "fix-engine"}


def test_a_lane_that_could_not_be_scored():
    judged = {"verdict": "not-quantization", "reason": "x", "loss16": None, "loss8": None, "samples_needed": None}
    said = summarize(judged | VERDICTS["not-quantization"]._asdict(), {"name": "top1", "percent": True}, "int8", None, [], None)
    assert re.search(r"\blane\b", said["loss"])
    assert not re.search(r"\d|None|nan", said["loss"])
