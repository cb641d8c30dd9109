"""The guide without a page: the diagnosis in steps, remedies to apply and take back with their score, and the report."""

from __future__ import annotations

import json
import re
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from small_networks import mixed_network
from studies import Dropping, images, kept, nothing_runs, opened, ruined, ruined_diagnosis, ruined_study, sound_study

from qkit import FLOAT, QkitError, Study
from qkit.diagnosis.diagnose import QAT
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.meanings import CAUSES
from qkit.diagnosis.remedies import Remedy
from qkit.execution.metrics import NAMED
from qkit.widgets import Guide, guide
from qkit.widgets.guide_steps import SOUND
from qkit.widgets.numbers import change_words, loss_words, score_words

TOP1 = NAMED["top1"].units


@cache
def shifted_study() -> Study:
    """Evaluated on images that were prepared otherwise than those it was calibrated on."""
    data = images(5, 32, seed=5)
    made = Study(mixed_network(), data, [(0.2 * x - 2.0, y) for x, y in data], scheme="int8-per-tensor")
    made.calibrate(progress=False)
    return made


def widen(tensor: str) -> Remedy:
    """The remedy of the cause at that tap alone."""
    remedy = next(cause.remedy for cause in ruined_diagnosis().causes if tensor in (cause.tensor, *cause.places))
    return replace(remedy, layer=tensor, grids={tensor: remedy.grids[tensor]})


def evaluated(**plans: Any) -> Any:
    return ruined_study().evaluate(plans, progress=False)


def measured(made: Guide, step: int) -> dict[str, str]:
    return {row[0]: " ".join(row[1:]) for row in made.steps[step].measured}


# the steps


def test_steps_in_the_order_in_which_the_diagnosis_asks() -> None:
    made, found = ruined(), ruined_diagnosis()
    assert [step.kind for step in made.steps] == [
        "answer", "gate", "verdict", "parts", "tensors", "cause", "remedies", "training",
    ]  # fmt: skip
    assert all("range-too-narrow" in step.title for step in made.steps if step.kind == "cause")
    assert len({step.title for step in made.steps}) == 8
    assert all(step.question.endswith("?") for step in made.steps)
    assert made.step == 0
    assert made.diagnosis is found
    listed = [step["title"] for step in made.stepper.steps]
    assert listed == [f"{i}. {step.title}" for i, step in enumerate(made.steps, 1)]
    assert made.steps[0].remedies == found.remedies
    assert made.steps[1].meaning == SOUND
    assert made.steps[1].then
    assert measured(made, 2)["verdict"] == "quantization"
    assert found.verdict.reason in measured(made, 2).values()
    losses = {name.split()[0]: words for name, words in measured(made, 2).items() if name.startswith("int")}
    assert list(losses) == ["int16", "int8"]
    assert loss_words(evaluated(float=FLOAT, int8=ruined_study().plan).loss("int8"), TOP1) == losses["int8"]
    assert re.search(r"\bactivations\b", made.steps[3].meaning)
    assert "weights" not in made.steps[3].meaning
    assert found.parts is not None
    parts = (found.parts.weights, found.parts.activations, found.parts.clipping)
    assert list(measured(made, 3).values()) == [loss_words(part, found.units) for part in parts]
    assert {"average", "depthwise"} <= set(measured(made, 4))
    assert all(f"{sqnr:.0f} dB" in measured(made, 4)[tensor] for tensor, sqnr in found.harmless)
    for number, cause in enumerate(found.causes, 5):
        rows = measured(made, number)
        assert (rows["cause"], rows["where"], rows["evidence"]) == (cause.kind, cause.tensor, cause.evidence)
        assert made.steps[number].remedies == (cause.remedy,)
        assert made.steps[number].then == cause.remedy.text
    assert made.steps[6].remedies == found.remedies
    assert measured(made, 6)["1"].startswith("widen-range")
    assert found.remedies[0].text in measured(made, 6)["1"]
    assert found.qat in made.steps[7].meaning
    assert measured(made, 7)["samples"] == "160"
    assert str(found.evaluations) in measured(made, 7).values()


def test_walking() -> None:
    made = ruined()
    last = len(made.steps) - 1
    assert (made._back.disabled, made._forth.disabled) == (True, False)
    made._back.click()
    assert made.step == 0
    for at in range(1, last + 1):
        made._forth.click()
        assert made.step == made.stepper.step == at
        step = made.steps[at]
        for words in (step.question, step.meaning.split(".", maxsplit=1)[0], step.then.split(".", maxsplit=1)[0]):
            assert words in made._text.value
        assert ("<svg" in made._picture.value) == (step.draw is not None)
        assert (made._ending.layout.display == "none") == (at != last)
    made._forth.click()
    assert made.step == last
    assert (made._back.disabled, made._forth.disabled) == (False, True)
    made.stepper.step = 4
    assert made.step == 4
    assert made.error == ""


def test_pictures_of_the_causes_are_their_tensors() -> None:
    made = ruined()
    for at in (5,):
        assert made.steps[at].draw is not None
        assert re.search("histogram|calibration", made.steps[at].caption.lower())
        ax = Figure().add_subplot()
        made.steps[at].draw(ax)
        assert ax.patches or ax.collections or ax.lines
    made.step = 5
    at_cause = made.png()
    made.step = 0
    assert made.png() != at_cause
    assert made.png().startswith(b"\x89PNG")


def test_what_is_known_from_the_start_is_shown_at_once() -> None:
    made = ruined()
    scores = evaluated(float=FLOAT, now=ruined_study().plan)
    assert made.scores is not None
    for lane in ("as opened", "before", "now"):
        np.testing.assert_array_equal(made.scores.lanes[lane], scores.lanes["now"])
    assert score_words(scores["float"], TOP1) in made._effect.value
    assert score_words(scores["now"], TOP1) in made._effect.value
    assert re.search(rf"{re.escape(loss_words(scores.loss('now'), TOP1))}.*\b160\b", made._effect.value)


def test_nothing_to_find_gives_a_guide_without_remedies() -> None:
    made = opened(sound_study())
    assert made.error == ""
    assert made.diagnosis is not None
    assert made.diagnosis.verdict.name == "no-degradation"
    assert [step.kind for step in made.steps] == ["answer", "gate", "verdict", "remedies", "training"]
    assert all(step.remedies == () for step in made.steps)
    assert made.steps[-1].meaning == QAT["nothing-lost"]
    for at in range(len(made.steps)):
        made.step = at
        assert made._buttons.children == ()
    assert re.match(r"Guide\(no-degradation\b.*\b5\b.*\b0\b", repr(made))


def test_a_cause_outside_quantization_is_named_before_quantization() -> None:
    made = opened(shifted_study())
    first = made.steps[1]
    assert "preprocessing" in measured(made, 1)
    assert made.diagnosis is not None
    assert made.diagnosis.causes[0].evidence in measured(made, 1)["preprocessing"]
    assert first.meaning == CAUSES["preprocessing"]
    assert made.diagnosis.causes[0].remedy.text in first.then
    assert first.remedies == ()
    assert "preprocessing" in made._text.value
    assert not any(step.kind == "cause" for step in made.steps)
    assert measured(made, 2)["verdict"] == "not-quantization"


def test_a_pass_that_does_not_repeat_is_named_before_quantization() -> None:
    data = images(2, 16, seed=5)
    study = Study(Dropping().eval(), data, scheme="int8-per-tensor")
    study.calibrate(progress=False)
    made = opened(study)
    assert made.error == ""
    assert "train-mode" in measured(made, 1)
    assert any(name.startswith("unquantized-layer") for name in measured(made, 1))
    remarks = [row[1] for row in made.steps[1].measured if row[0] == "remark"]
    assert remarks == list(study.remarks)


def test_a_score_that_nobody_expected_is_wrong_before_quantization() -> None:
    data = images(5, 32, seed=5, clear=0.03)
    study = Study(mixed_network(), data[:2], data, scheme="int8-per-tensor", expected=0.5)
    study.calibrate(progress=False)
    made = opened(study)
    assert made.diagnosis is not None
    assert made.diagnosis.verdict.name == "not-quantization"
    assert "50.00 %" in measured(made, 1).values()
    assert made.steps[1].meaning == made.diagnosis.verdict.reason


def test_a_checkpoint_that_is_broken_is_guided_through_too() -> None:
    model = mixed_network()
    with torch.no_grad():
        model.side.weight[0, 0, 0, 0] = float("nan")
    study = Study(model, images(), scheme="int8-per-tensor")
    assert study.diagnose(progress=False).causes[0].kind == "non-finite"
    made = opened(study)
    assert "non-finite" in measured(made, 1)
    assert "side.weight" in made.steps[1].measured[0][1]


def band(ax: Axes) -> float:
    """Upper end of what counts as close, as it is shaded."""
    patch = ax.patches[0]
    return float(patch.get_path().transformed(patch.get_patch_transform()).vertices[:, 0].max())


@pytest.mark.parametrize("tolerance", [0.01, 0.05])
def test_the_shaded_band_is_the_tolerance_that_was_given(tolerance: float) -> None:
    found = ruined_study().diagnose(tolerance=tolerance, progress=False)
    made = opened(ruined_study(), found, tolerance=tolerance)
    for at in (2, 3, 4):
        ax = Figure().add_subplot()
        draw = made.steps[at].draw
        assert draw is not None
        draw(ax)
        assert "tolerance" in ax.get_xlabel()
        assert band(ax) == pytest.approx(100 * tolerance)


def test_text_of_models_is_escaped() -> None:
    found = ruined_diagnosis()
    cause = replace(found.causes[0], evidence="<b>5 & 6</b>")
    made = opened(ruined_study(), replace(found, causes=(cause,), qat="<i>no</i>"))
    made.step = 5
    assert "&lt;b&gt;5 &amp; 6&lt;/b&gt;" in made._text.value
    assert "<b>5" not in made._text.value
    made.step = len(made.steps) - 1
    assert "&lt;i&gt;no&lt;/i&gt;" in made._text.value


# remedies


def test_a_remedy_is_applied_and_measured() -> None:
    made = ruined()
    study, (remedy,) = ruined_study(), ruined_diagnosis().remedies
    before = study.plan
    made.apply(remedy)
    assert made.plan == remedy.plan(before)
    assert made.study.plan == made.plan
    assert made.applied == (remedy,)
    made.wait()
    assert made.error == ""
    expected = evaluated(float=FLOAT, before=before, now=made.plan)
    assert made.scores is not None
    for lane in ("float", "before", "now"):
        np.testing.assert_array_equal(made.scores.lanes[lane], expected.lanes[lane])
    np.testing.assert_array_equal(made.scores.lanes["as opened"], expected.lanes["before"])
    assert expected["now"].value > expected["before"].value + 0.5
    assert score_words(expected["now"], TOP1) in made._effect.value
    assert change_words(expected.loss("before", against="now"), TOP1) in made._effect.value
    assert "widen-range" in made._effect.value
    assert study.plan is before, "the study itself is untouched"


def test_remedies_one_by_one_undone_and_redone() -> None:
    made = ruined()
    base = made.plan
    first, second = widen("average"), widen("depthwise")
    assert (made._undo.disabled, made._redo.disabled) == (True, True)
    made.apply(first)
    made.wait()
    made.apply(second)
    made.wait()
    both = second.plan(first.plan(base))
    assert made.plan == both
    assert made.applied == (first, second)
    assert re.search(r"\bwiden-range\b[^<]*\baverage\b[^<]*\bwiden-range\b[^<]*\bdepthwise\b", made._effect.value)
    assert made.scores is not None
    expected = evaluated(before=first.plan(base), now=both)
    np.testing.assert_array_equal(made.scores.lanes["before"], expected.lanes["before"])
    np.testing.assert_array_equal(made.scores.lanes["now"], expected.lanes["now"])
    made.undo()
    assert (made.plan, made.applied) == (first.plan(base), (first,))
    made._undo.click()
    assert (made.plan, made.applied) == (base, ())
    assert (made._undo.disabled, made._redo.disabled) == (True, False)
    made.undo()
    assert made.plan == base
    made.redo()
    made._redo.click()
    assert (made.plan, made.applied) == (both, (first, second))
    assert (made._undo.disabled, made._redo.disabled) == (False, True)
    made.undo()
    made.undo()
    made.apply(second)
    made.wait()
    assert made.applied == (second,)
    assert not made.history.can_redo, "what was undone is gone"
    np.testing.assert_array_equal(made.scores.lanes["now"], evaluated(now=second.plan(base)).lanes["now"])
    assert made.error == ""


def test_a_remedy_is_applied_once() -> None:
    made = ruined()
    remedy = widen("average")
    made.apply(remedy)
    with pytest.raises(QkitError, match=r"^widen-range\b.*\baverage\b"):
        made.apply(remedy)
    assert made.applied == (remedy,)
    made.undo()
    made.apply(remedy)
    assert made.applied == (remedy,)


def test_the_buttons_apply() -> None:
    made = ruined()
    made.step = 5
    ((remedy, knob),) = made._apply
    assert remedy == ruined_diagnosis().causes[0].remedy
    assert knob.description == f"apply widen-range at {remedy.layer}"
    assert not knob.disabled
    knob.click()
    made.wait()
    assert made.error == ""
    assert made.applied == (remedy,)
    assert knob.disabled
    made.step = 6
    made.step = 5
    assert made._apply[0][1].disabled, "also when the step is shown again"
    made._undo.click()
    assert not made._apply[0][1].disabled
    made.step = 6
    assert [knob.description for _, knob in made._apply] == [f"apply widen-range at {remedy.layer}"]


def test_remedies_that_change_no_plan_cannot_be_applied() -> None:
    made = opened(shifted_study())
    at = next(i for i, step in enumerate(made.steps) if step.kind == "remedies")
    made.step = at
    ((remedy, knob),) = made._apply
    assert remedy.kind == "fix-input"
    assert knob.disabled
    plan = made.plan
    with pytest.raises(QkitError, match=r"^fix-input\b"):
        made.apply(remedy)
    assert made.plan is plan
    assert made.applied == ()
    knob.click()
    assert "fix-input" in made.error


# diagnosing in the background


def test_diagnoses_by_itself() -> None:
    with nothing_runs():
        made = Guide(ruined_study())
        kept(made)
        assert made.diagnosis is None
        assert made.steps == ()
        assert re.fullmatch(r"Guide\([^\d]*\)", repr(made))
        assert made._walk.layout.display == "none"
        with pytest.raises(QkitError, match=r"\bdiagnosis\b"):
            made.report("early.html")
    made.wait()
    assert made.error == ""
    assert made.diagnosis is not None
    assert made.diagnosis.to_dict() == ruined_diagnosis().to_dict()
    assert made._walk.layout.display == ""
    assert made.scores is not None


def test_options_reach_the_diagnosis() -> None:
    made = opened(ruined_study(), batches=2, tolerance=0.06)
    assert made.diagnosis is not None
    expected = ruined_study().diagnose(batches=2, tolerance=0.06, progress=False)
    assert made.diagnosis.to_dict() == expected.to_dict()
    assert made.scores is not None
    assert made.scores.n == 64


def test_diagnosing_again_takes_the_remedies_along() -> None:
    made = ruined()
    (remedy,) = ruined_diagnosis().remedies
    made.apply(remedy)
    made.wait()
    made.step = len(made.steps) - 1
    made._again.click()
    made.wait()
    assert made.error == ""
    assert made.diagnosis is not None
    assert made.diagnosis.verdict.name == "no-degradation"
    assert made.step == 0
    assert len(made.steps) == len(made.stepper.steps) == 5
    assert made.applied == (remedy,)
    assert made.history.can_undo
    assert "no-degradation" in repr(made)


def test_cancelled_before_anything_is_found_it_can_be_started_again() -> None:
    with nothing_runs():
        made = Guide(ruined_study())
        kept(made)
        made._cancel.click()
        made.wait()
    assert made.diagnosis is None
    assert not made.worker.busy
    assert made.error == ""
    assert made._ending.layout.display == "", "there is a button for it"
    assert ruined_study().evaluate(progress=False).n == 160
    made._again.click()
    made.wait()
    assert made.error == ""
    assert made.diagnosis is not None
    assert made.diagnosis.verdict.name == "quantization"
    assert len(made.steps) == 8


def test_cancelled_on_its_way_it_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go, scores = threading.Event(), threading.Event(), Bench.scores

    def patient(self: Bench, *args: Any, what: str = "", **options: Any) -> Any:
        if what == "each tensor alone":
            entered.set()
            assert go.wait(20)
        return scores(self, *args, what=what, **options)

    monkeypatch.setattr(Bench, "scores", patient)
    known = ruined_study()
    # on a list of its own, of which nothing has been measured
    made = Guide(known.with_data(evaluation=list(known.evaluation)))
    kept(made)
    assert entered.wait(20)
    made.cancel()
    go.set()
    made.wait()
    assert made.error == ""
    assert made.diagnosis is not None
    assert made.diagnosis.verdict.name == "quantization"
    assert made.diagnosis.parts is not None
    assert made.diagnosis.causes == ()
    assert any("nterrupted" in row[1] for row in made.steps[-1].measured if row[0] == "remark")
    assert made.scores is not None, "what comes after is not cancelled with it"


@pytest.mark.parametrize("how", ["cancel", "undo"])
def test_a_diagnosis_that_is_not_finished_leaves_the_one_before(how: str) -> None:
    made = ruined()
    made.apply(widen("average"))
    made.wait()
    made.step = 2
    shown = made._text.value
    with nothing_runs():
        made.diagnose()
        if how == "cancel":
            made.cancel()
            made.wait()
        else:
            made.undo()
    made.wait()
    assert made.error == ""
    assert made.diagnosis is ruined_diagnosis()
    assert len(made.steps) == 8
    assert made._text.value == shown, "the step is shown again, not a question without its answer"


def test_a_failing_diagnosis_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    data = images(2, 16)
    study = Study(mixed_network(), data, scheme="int8-per-tensor")
    study.calibrate(progress=False)
    monkeypatch.setattr(Study, "diagnose", lambda *_, **__: 1 / 0)
    made = opened(study)
    assert "ZeroDivisionError" in made.error
    assert made.diagnosis is None
    assert made._ending.layout.display == "", "there is a button to try again"


# the report


def test_the_report_is_written(tmp_path: Path) -> None:
    made = ruined(batches=2)
    for name in ("found.json", "deeper/found.md"):
        made.report(tmp_path / name)
        made.wait()
        assert made.error == ""
        assert (tmp_path / name).stat().st_size > 1000
        assert str(tmp_path / name) in made._written.value
    data = json.loads((tmp_path / "found.json").read_text())
    assert data["diagnosis"]["verdict"] == "quantization"
    assert data["metric"]["samples"] == 64
    assert "depthwise" in (tmp_path / "deeper/found.md").read_text()


def test_the_button_writes_the_file_that_is_named(tmp_path: Path) -> None:
    made = ruined(batches=1)
    made._file.value = str(tmp_path / "found.csv")
    made._write.click()
    made.wait()
    assert made.error == ""
    assert (tmp_path / "found.csv").read_text().startswith("tap,")


def test_the_report_is_of_the_study_as_diagnosed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[Any] = []
    make = guide.make

    def recording(study: Study, **options: Any) -> Any:
        plans.append((study.plan, options["diagnosis"]))
        return make(study, **options)

    monkeypatch.setattr(guide, "make", recording)
    made = ruined(batches=1)
    (remedy,) = ruined_diagnosis().remedies
    made.apply(remedy)
    made.wait()
    made.report(tmp_path / "first.csv")
    made.wait()
    made.diagnose()
    made.wait()
    made.report(tmp_path / "second.csv")
    made.wait()
    assert made.error == ""
    assert plans == [(ruined_study().plan, ruined_diagnosis()), (remedy.plan(ruined_study().plan), made.diagnosis)]


def test_a_report_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    made = ruined()
    with pytest.raises(QkitError, match=r"'found\.docx'.*'\.docx'"):
        made.report(tmp_path / "found.docx")
    assert not made.worker.busy
    made._file.value = str(tmp_path / "found")
    made._write.click()
    assert re.search(r"\bfound\b.*\bsuffix\b", made.error)
    assert not made.worker.busy
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(QkitError, match=r"\bfolder\.html\b.*\bfolder\b"):
        made.report(tmp_path / "folder.html")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder.html"]


def test_the_summary_has_all_steps() -> None:
    made = ruined()
    frame = made.summary()
    assert list(frame["question"]) == [step.question for step in made.steps]
    assert list(frame["meaning"]) == [step.meaning for step in made.steps]
    assert re.match(r"verdict: quantization\b", frame["measured"][2])
