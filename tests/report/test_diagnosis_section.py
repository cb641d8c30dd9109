"""The report's section on the diagnosis: causes with gains where there are some, a sentence where there are none."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from report_cases import tiny_study

from qkit.diagnosis import Cause, Diagnosis, Remedy, Verdict
from qkit.diagnosis.answer import interaction_words
from qkit.execution.statistics import Interval
from qkit.report import make, write
from qkit.report.text.captions import NO_CAUSE


def found(*causes: Cause) -> Diagnosis:
    loss = Interval(0.25, 0.2, 0.3, 64)
    verdict = Verdict("quantization", "because.", Interval(0.0, -0.01, 0.01, 64), loss)
    remedies = tuple(cause.remedy for cause in causes)
    return Diagnosis(
        verdict, causes, (), (), None, None, remedies, None, None, "No training needed.", ("Stopped early.",), 64, 9, "top1"
    )


CAUSE = Cause(
    "range-too-narrow", "a.<b>", "a.<b>", "it clips & clips.", Remedy("widen-range", "a.<b>", "Widen it."),
    Interval(0.125, 0.1, 0.15, 64), Interval(0.2, 0.1, 0.3, 64), Interval(0.2, 0.1, 0.3, 64),
)  # fmt: skip


@pytest.mark.parametrize("causes", [(), (CAUSE,)])
def test_section_is_in_every_form(causes: tuple[Cause, ...], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    made = make(tiny_study(), sensitivity=False, worst=1, diagnosis=found(*causes), progress=False)
    page, text, data = (write(made, tmp_path / f"report.{suffix}").read_text() for suffix in ("html", "md", "json"))
    for form in (page, text):
        assert "No training needed." in form
        assert "Stopped early." in form
        assert (NO_CAUSE in form) is (not causes)
        assert ("12.50 points [10.00, 15.00]" in form) is bool(causes)
    assert "<b>a" not in page
    if causes:
        assert "It clips &amp; clips." in page
        assert "a.&lt;b&gt;" in page
    assert len(json.loads(data)["diagnosis"]["causes"]) == len(causes)
    assert re.search(r"#.*\b64\b", made.reproduce)


def test_what_the_gate_found_and_errors_that_do_not_add_up_are_said(tmp_path: Path) -> None:
    base = found(replace(CAUSE, kind="preprocessing"))
    apart = Interval(-0.3, -0.4, -0.2, 64)
    verdict = replace(base.verdict, name="both", reason="something is wrong before quantization.")
    made = make(
        tiny_study(), sensitivity=False, worst=1, progress=False, diagnosis=replace(base, verdict=verdict, interaction=apart)
    )
    assert made.verdict["verdict"] == "both", "the lanes alone do not see what the gate has found"
    text = write(made, tmp_path / "report.md").read_text()
    assert "something is wrong before quantization." in text
    assert re.search(r"−30\.0 points \[−40\.0, −20\.0\].*\boverlap\b", text)
    chance = Interval(-0.3, -0.7, 0.1, 64)
    assert interaction_words(chance, base.units, 0.01) == ""
    assert "−30.0" not in str(replace(base, interaction=chance))


def test_without_a_diagnosis_there_is_no_section(tmp_path: Path) -> None:
    made = make(tiny_study(), sensitivity=False, worst=1, progress=False)
    assert 'id="diagnosis"' not in write(made, tmp_path / "report.html").read_text()
    assert json.loads(write(made, tmp_path / "report.json").read_text())["diagnosis"] is None
