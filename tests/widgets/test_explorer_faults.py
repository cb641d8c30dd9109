"""What the explorer opens, and what it says of each layer: the error split in two, and what the layer costs."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
from small_networks import READS
from studies import fresh_study, kept, nothing_runs, small_study

from qkit import QkitError, Study, zoo
from qkit.execution.capture import Capture
from qkit.execution.faults import local_parts, tensor_at_fault
from qkit.style import decibels, plain
from qkit.widgets import Explorer


@cache
def captured() -> Capture:
    return small_study().capture(progress=False)


def explorer(study: Study | None = None, **options: Any) -> Explorer:
    return kept(Explorer(small_study() if study is None else study, **options))


def shown() -> Explorer:
    return explorer(capture=captured())


def column(made: Explorer, head: str) -> list[Any]:
    at = [each["head"] for each in made.table.columns].index(head)
    return [row["values"][at] for row in made.table.rows]


def test_the_error_is_split_into_weight_and_activation() -> None:
    made, parts = shown(), local_parts(captured(), "int8")
    for tensor in ("weight", "activation"):
        assert column(made, f"int8 local, {tensor}") == [plain(value) for value in parts[tensor]]
        assert column(made, f"int16 local, {tensor}") == [plain(value) for value in local_parts(captured(), "int16")[tensor]]
    made.select("project")
    share_of_weight = parts.loc["project", "weight share"]
    for tensor, part in (("weight", share_of_weight), ("activation", 1.0 - share_of_weight)):
        assert re.search(rf"{tensor}<.*{100 * part:.0f} %.*{decibels(parts.loc['project', tensor])} dB", made._about.value)
    made.select("average")
    assert re.search(r"activation<.*100 %", made._about.value)


def hostile(scheme: str = "int8-per-tensor") -> Study:
    case = zoo.load("mobilenet_v2_hostile")
    few = [(x[:4], y[:4]) for x, y in [next(iter(case.evaluation))]]
    made = Study(case.model, few, few, metric="top1", scheme=scheme)
    made.calibrate("minmax", progress=False)
    return made


def test_the_hostile_weight_is_opened_and_not_its_activation() -> None:
    study = hostile()
    made = explorer(study, capture=study.capture(("float", "int8"), progress=False))
    layer = "features.3.conv.1.0"
    assert made.selected == layer, "by its local error, before any loss is known"
    assert made.tuner.tensor == f"{layer}.weight"
    made.wait()
    assert made.losses is not None
    assert made.losses.dearest == made.selected == layer, "and by what it costs"
    assert made.tuner.tensor == f"{layer}.weight"
    assert [name for _, name in made._tensor.options] == [f"{layer}.weight", layer]
    assert made.error == ""


def test_the_layers_other_tensor_is_one_click_away() -> None:
    made = shown()
    made.select("project")
    fault = tensor_at_fault(captured(), "project")
    assert made.tuner.tensor == fault
    other = "project" if fault == "project.weight" else "project.weight"
    made._tensor.value = other
    assert made.tuner.tensor == other
    made._view.value = "weights per channel"
    made._view.value = "range"
    assert made.tuner.tensor == other, "what was chosen stays, as long as the layer does"
    made.select(":add")
    assert made.tuner.tensor == ":add"
    assert made._tensor.layout.display == "none", "there is nothing to choose between"
    made.select("project")
    assert made.tuner.tensor == fault
    assert made._tensor.layout.display == ""
    assert made.error == ""


def test_losses_are_estimated_from_gradients() -> None:
    with nothing_runs():
        # a study of its own: nothing has been measured on it by another test
        made = explorer(fresh_study(), capture=captured())
        assert column(made, "loss") == [None] * len(READS)
        assert made.table.bars == -1
    made.wait()
    assert made.losses is not None
    assert not made.losses.measured
    ranking = small_study().sensitivity("gradient", lane=captured().plans["int8"], batches=1, progress=False)
    costs = dict.fromkeys(READS, 0.0)
    for tensor, cost in ranking.costs.items():
        costs[tensor.removesuffix(".weight")] += float(cost.mean())
    assert column(made, "loss") == pytest.approx(list(costs.values()))
    assert made.table.columns[made.table.bars]["head"] == "loss"
    assert "gradient" in made._note.value
    assert made.selected == max(costs, key=lambda name: costs[name])


def test_losses_that_were_measured_are_taken() -> None:
    study = fresh_study()
    capture = study.capture(progress=False)
    swept = study.sensitivity("only", progress=False)
    made = explorer(study, capture=capture)
    assert made.losses is not None, "nothing is left to wait for"
    assert made.losses.measured
    expected = swept.table()["loss"]
    assert column(made, "loss") == pytest.approx([100 * expected[name] for name in READS])
    assert "32 samples" in made._note.value
    assert made._alone.layout.display == "none"
    again = explorer(study, capture=capture, sensitivity=study.sensitivity("gradient", progress=False))
    assert again.losses is not None
    assert not again.losses.measured, "what is given goes first"
    with pytest.raises(QkitError, match="except"):
        study.explore(capture, sensitivity=study.sensitivity("except", progress=False))


def test_a_button_measures_each_layer_alone() -> None:
    study = fresh_study()
    made = explorer(study, capture=study.capture(progress=False))
    made.wait()
    assert made._alone.layout.display == ""
    chosen = made.selected
    made.select("side")
    made._alone.click()
    made.wait()
    assert made.error == ""
    assert made.losses is not None
    assert made.losses.measured
    assert study.evaluator.known(study.plan.only(["stem", "stem.weight"])) is not None
    assert made.selected == "side", "what somebody chose stays"
    assert chosen != "side"
    without = explorer(study, capture=study.capture(("float",), progress=False))
    assert without._alone.layout.display == "none"
    with pytest.raises(QkitError, match="lane"):
        without.measure_losses()


def test_another_plan_has_other_losses() -> None:
    study = fresh_study()
    made = explorer(study, capture=study.capture(progress=False))
    made.wait()
    before = made.losses
    assert before is not None
    made.select("stem")
    made._tensor.value = "stem"
    made.tuner.set_range(0.0, 0.1)
    made._again.click()
    made.wait()
    assert made.losses is not None
    assert made.losses.by_layer["stem"] > 10 * before.by_layer["stem"]


def test_without_a_loss_the_rest_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    study = fresh_study()
    capture = study.capture(progress=False)

    def broken(*_: Any, **__: Any) -> None:
        raise QkitError("no gradient here")

    monkeypatch.setattr(study, "sensitivity", broken)
    made = explorer(study, capture=capture)
    made.wait()
    assert made.losses is None
    assert made.error == ""
    assert "no gradient here" in made._note.value
    assert made.selected == captured().table()["int8", "local sqnr"].idxmin()


def test_sixteen_bits_fold_away_beside_another_lane() -> None:
    made = shown()
    folded = {each["head"] for each in made.table.columns if each["fold"]}
    assert folded == {each["head"] for each in made.table.columns if each["head"].startswith("int16")} != set()
    assert (made.table.folds, made.table.unfolded) == ("int16", False)
    alone = explorer(capture=small_study().capture(("float", "int16"), progress=False))
    assert not any(each["fold"] for each in alone.table.columns)
    assert alone.table.folds == ""


def test_progress_stands_above_what_waits_and_names_both_jobs() -> None:
    with nothing_runs():
        made = explorer(fresh_study())
        assert made._working in made.children[1].children
        assert "capturing" in made._doing.value
        assert made._working.layout.visibility == "visible"
    made.wait()
    assert made._working.layout.visibility == "hidden"
    with nothing_runs():
        made.measure_losses()
        assert "alone" in made._doing.value
        made._cancel.click()
        made.wait()
    assert made.losses is not None
    assert not made.losses.measured
    assert made._working.layout.visibility == "hidden"
