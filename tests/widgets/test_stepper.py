"""The walk through the guide: the answer first, ticks and words for every step, causes of one kind together."""

from __future__ import annotations

import re
from dataclasses import replace

from studies import opened, ruined, ruined_diagnosis, ruined_study

from qkit.diagnosis.remedies import Remedy
from qkit.execution.metrics import NAMED
from qkit.widgets.guide_steps import guide_steps

TOP1 = NAMED["top1"].units


def widen(tensor: str) -> Remedy:
    """The remedy of the cause at that tap alone."""
    remedy = next(cause.remedy for cause in ruined_diagnosis().causes if tensor in (cause.tensor, *cause.places))
    return replace(remedy, layer=tensor, grids={tensor: remedy.grids[tensor]})


def test_the_answer_comes_first_with_its_bars_and_its_remedy() -> None:
    made, found = ruined(), ruined_diagnosis()
    assert (made.step, made.steps[0].kind) == (0, "answer")
    text = made._text.value
    base, lost, best = found.verdict.base, found.verdict.narrow, found.best_loss
    assert base is not None
    assert lost is not None
    assert best is not None
    for score in (base.value, base.value - lost.value, base.value - best.value):
        assert TOP1.score(score) in text
    assert text.count('class="track"') == 3
    assert found.remedies[0].text in text
    assert [remedy for remedy, _ in made._apply] == list(found.remedies)
    made._apply[0][1].click()
    made.wait()
    assert made.applied == found.remedies, "one click from the start"


def test_steps_say_which_are_seen_which_is_here_and_which_are_to_come() -> None:
    made = ruined()
    assert made.stepper.states == ["here", *["open"] * 7]
    assert [step["part"] for step in made.stepper.steps] == [
        "the answer", *["how it was found"] * 5, *["what to do"] * 2,
    ]  # fmt: skip
    made._forth.click()
    made._forth.click()
    assert made.stepper.states == ["seen", "seen", "here", *["open"] * 5]
    made.stepper.step = 7
    assert made.step == 7
    assert made.stepper.states == ["seen", "seen", "seen", *["open"] * 4, "here"]
    made.apply(ruined_diagnosis().remedies[0])
    # its cause, its remedies, and the answer, which offers it too
    assert [i for i, state in enumerate(made.stepper.states) if state == "applied"] == [0, 5, 6]
    made.undo()
    assert made.stepper.states == ["seen", "seen", "seen", *["open"] * 4, "here"]


def test_causes_of_one_kind_are_one_step_with_all_their_places() -> None:
    found = ruined_diagnosis()
    (cause,) = found.causes
    places = tuple(dict.fromkeys((cause.tensor, *cause.places)))
    assert len(places) == 2
    whole = guide_steps(ruined_study(), found)[5]
    assert places[1] in dict(whole.measured)["evidence"]
    assert re.search(r"\b2\b", whole.question)
    apart = tuple(replace(cause, tensor=place, layer=place, places=(), remedy=widen(place)) for place in places)
    other = replace(cause, kind="activation-outlier", places=())
    made = opened(ruined_study(), replace(found, causes=(apart[0], other, apart[1])))
    steps = [step for step in made.steps if step.kind == "cause"]
    assert len(steps) == 2
    assert [row[1] for row in steps[0].measured if row[0] == "where"] == list(places)
    assert steps[0].remedies == (widen(places[0]), widen(places[1]))
    assert all(remedy.text in steps[0].then for remedy in steps[0].remedies)
