"""The calibration panel without a page: choices give what calibration gives, and are compared with what there was."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from small_networks import READS, mixed_network
from studies import fresh_study, images, kept, nothing_runs, small_study

from qkit import PlanError, Study
from qkit.execution.editing import figures
from qkit.execution.layer_errors import few_inputs, grid_errors
from qkit.execution.metrics import NAMED
from qkit.execution.observing import observe
from qkit.quant.estimators import METHODS
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Plan
from qkit.style import decibels, plain
from qkit.widgets import CalibrationPanel
from qkit.widgets.numbers import change_words, score_words

WEIGHTS = [f"{layer}.weight" for layer in ("stem", "depthwise", "project", "side", "classify")]

TOP1 = NAMED["top1"].units


def panel(study: Study | None = None, **options: Any) -> CalibrationPanel:
    return kept(CalibrationPanel(small_study() if study is None else study, **options))


def chosen(made: CalibrationPanel, **choices: Any) -> Plan:
    made.choose(**choices)
    made.wait()
    assert made.error == ""
    return made.plan


def column(made: CalibrationPanel, head: str) -> list[Any]:
    at = [each["head"] for each in made.table.columns].index(head)
    return [row["values"][at] for row in made.table.rows]


def changed(made: CalibrationPanel) -> set[str]:
    return set(small_study().plan.diff(made.plan))


# choices


@pytest.mark.parametrize("method", METHODS)
def test_a_method_gives_what_calibration_gives(method: str) -> None:
    made = panel()
    assert chosen(made, method=method) == fresh_study(method=method).plan
    assert made.plan == small_study().with_calibration(method=method).plan
    assert made.study.plan is made.plan
    assert chosen(made, weight_method=method) == fresh_study(method=method, weight_method=method).plan
    assert made.study.methods["weight_method"] == method


def test_the_controls_are_those_choices() -> None:
    made = panel()
    made._method.value = "percentile"
    made._percentile.value = 97.0
    made.wait()
    assert made.error == ""
    assert made.plan == small_study().with_calibration(method="percentile", percentile=97.0).plan
    made._weight_method.value = "mse"
    made._count.value = 2
    made.wait()
    seen = observe(small_study().graph, small_study().calibration, limit=2, progress=False)
    expected = small_study().with_calibration(method="percentile", percentile=97.0, weight_method="mse", observed=seen)
    assert made.plan == expected.plan


def test_the_panel_opens_with_what_the_study_was_calibrated_by() -> None:
    study = fresh_study(method="percentile", weight_method="mse")
    study.calibrate("percentile", weight_method="mse", percentile=98.5, progress=False)
    made = panel(study)
    assert (made._method.value, made._weight_method.value, made._percentile.value) == ("percentile", "mse", 98.5)
    assert made._count.value == made._count.max == 4
    assert made.plan == study.plan
    assert not made.worker.busy


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_batches_are_those_batches(count: int) -> None:
    made = panel()
    alone = fresh_study(calibration=images(seed=3)[:count], method="minmax")
    assert chosen(made, batches=count, method="minmax") == alone.plan
    seen = observe(small_study().graph, small_study().calibration, limit=count, progress=False)
    assert made.plan == small_study().with_calibration(method="minmax", observed=seen).plan
    assert made.plan != fresh_study(method="minmax").plan
    assert chosen(made, batches=4) == fresh_study(method="minmax").plan
    assert small_study().observe(progress=False)["input"].histogram.total == 4 * 8 * 3 * 256, "the study keeps all it saw"


@pytest.mark.slow
def test_batches_are_observed_once_for_all_methods() -> None:
    class Counting:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            yield from images(seed=3)

        def __len__(self) -> int:
            return 4

    loader = Counting()
    made = panel(fresh_study(calibration=loader))
    start = loader.passes
    for method in ("minmax", "entropy", "mse"):
        chosen(made, method=method, batches=2)
    assert loader.passes == start + 1
    chosen(made, method="minmax", batches=4)
    assert loader.passes == start + 1, "all of them are known"


def test_one_batch_of_a_loader_without_a_length_is_one_batch() -> None:
    class Unknown:
        def __iter__(self) -> Iterator[Any]:
            yield from images(seed=3)

    study = fresh_study(calibration=Unknown(), method="minmax")
    made = panel(study)
    assert made.plan == fresh_study(method="minmax").plan
    assert chosen(made, batches=2) == fresh_study(calibration=images(seed=3)[:2], method="minmax").plan
    assert chosen(made, batches=1) == fresh_study(calibration=images(seed=3)[:1], method="minmax").plan


def test_classes_hold_every_tensor_once() -> None:
    made = panel()
    assert sorted(name for tensors in made.classes.values() for name in tensors) == sorted(small_study().plan.grids)
    assert made.classes["weights: depthwise conv"] == ["depthwise.weight"]
    assert made.classes["weights: conv"] == ["stem.weight", "project.weight", "side.weight"]
    assert made.classes["activations: conv"] == ["stem", "depthwise", "project", "side"]
    assert list(made.class_controls) == list(made.classes)


def test_a_class_has_a_method_of_its_own() -> None:
    made = panel()
    plan = chosen(made, classes={"activations: conv": ("minmax", None)})
    assert changed(made) == set(made.classes["activations: conv"])
    expected = fresh_study(method="minmax").plan
    assert all(plan.params(tap) == expected.params(tap) for tap in made.classes["activations: conv"])
    plan = chosen(made, classes={"activations: conv": (None, None), "weights: linear": ("percentile", None)})
    assert changed(made) == {"classify.weight"}
    assert plan.params("classify.weight") == fresh_study(weight_method="percentile").plan.params("classify.weight")
    assert chosen(made, classes={"weights: linear": (None, None)}) == small_study().plan


def test_a_class_has_a_granularity_of_its_own() -> None:
    made = panel()
    plan = chosen(made, classes={"weights: conv": (None, "per channel")})
    assert changed(made) == set(made.classes["weights: conv"])
    for name in made.classes["weights: conv"]:
        assert plan.params(name) == small_study("int8").plan.params(name)
    assert made.study.scheme != small_study().scheme
    assert small_study().scheme.overrides == {}
    plan = chosen(made, classes={"weights: conv": (None, None), "activations: add": (None, "per channel")})
    assert changed(made) == {":add"}
    seen = small_study().observe(progress=False)[":add"]
    np.testing.assert_allclose(plan[":add"].params.hi.numpy(), seen.channel_max, atol=float(plan[":add"].params.scale.max()))
    spread = panel(small_study("int8"))
    plan = chosen(spread, classes={"weights: depthwise conv": (None, "per tensor")})
    assert plan.params("depthwise.weight") == small_study().plan.params("depthwise.weight")
    assert set(small_study("int8").plan.diff(plan)) == {"depthwise.weight"}


def test_methods_of_single_tensors_that_the_study_came_with_stay() -> None:
    study = fresh_study()
    study.calibrate("mse", methods={"stem": "minmax"}, progress=False)
    made = panel(study)
    chosen(made, weight_method="percentile")
    assert made.plan.params("stem") == study.plan.params("stem")
    chosen(made, classes={"activations: conv": ("mse", None)})
    assert made.plan.params("stem") == fresh_study().plan.params("stem"), "unless their class is given another one"


def test_what_is_not_there_is_refused_and_changes_nothing() -> None:
    made = panel()
    with pytest.raises(PlanError, match=r"'weights: norm'.*weights: conv"):
        made.choose(method="minmax", classes={"weights: norm": ("mse", None)})
    assert made._method.value == "mse", "nothing of it is taken"
    with pytest.raises(Exception, match=r"nonsense"):
        made.choose(weight_method="nonsense")
    assert not made.worker.busy
    assert made.plan == small_study().plan


def test_a_method_that_is_not_defined_per_channel_is_said_in_place() -> None:
    made = panel(small_study("int8"))
    made._weight_method.value = "entropy"
    made.wait()
    assert re.search(r"\bminmax\b.*\bmse\b.*\bentropy\b", made.error)
    assert made.plan == small_study("int8").plan
    made._weight_method.value = "mse"
    made.wait()
    assert made.error == ""
    assert made.plan == fresh_study("int8", weight_method="mse").plan


def test_the_latest_choice_wins() -> None:
    made = panel()
    with nothing_runs():
        for method in ("percentile", "entropy", "minmax"):
            made.choose(method=method)
    made.wait()
    assert made.plan == fresh_study(method="minmax").plan


def test_reset_goes_back_to_what_the_study_came_with() -> None:
    study = small_study().with_plan(small_study().plan.with_range("stem", 0.0, 1.0))
    made = panel(study)
    chosen(made, method="minmax", batches=1, percentile=99.0, classes={"weights: conv": ("mse", "per channel")})
    assert made.plan != study.plan
    made._method.value = "entropy"
    made._reset.click()
    made.wait()
    assert made._notice.value == made.error == "", "a reset needs no notice that something was stopped for it"
    assert made.plan == study.plan
    assert made._method.value == "mse"
    assert made._count.value == 4
    assert [control.value for pair in made.class_controls.values() for control in pair] == [
        "as above", "as the scheme",
    ] * len(made.classes)  # fmt: skip
    assert "0 of 14" in made._said.value


def test_reset_is_not_overtaken_by_a_choice_made_before(monkeypatch: pytest.MonkeyPatch) -> None:
    study = fresh_study()
    made = panel(study)
    entered, go, real = threading.Event(), threading.Event(), study.with_calibration

    def slow(**options: Any) -> Study:
        found = real(**options)
        entered.set()
        assert go.wait(20)
        return found

    monkeypatch.setattr(study, "with_calibration", slow)
    made.choose(method="minmax")
    assert entered.wait(20)
    made.reset()
    go.set()
    made.wait()
    assert made._method.value == "mse"
    assert made.plan == study.plan


def test_the_study_is_untouched() -> None:
    study = fresh_study()
    plan, methods = study.plan, dict(study.methods)
    made = panel(study, batches=1)
    chosen(made, method="minmax", weight_method="mse", batches=1, classes={"weights: linear": (None, "per channel")})
    made.compare()
    made.wait()
    assert study.plan is plan
    assert study.methods == methods
    assert study.scheme.name == "int8-per-tensor"
    assert study.observe(progress=False)["stem"].histogram.total == 4 * 8 * 8 * 256


# what they do


def test_the_table_has_both_ranges() -> None:
    made = panel()
    study = small_study()
    assert [row["name"] for row in made.table.rows] == list(study.plan.grids)
    assert column(made, "width, new by old") == [1.0] * 14
    plan = chosen(made, method="minmax", weight_method="percentile", percentile=95.0)
    for head, source in (("before", study.plan), ("now", plan)):
        tail = ", before" if head == "before" else ""
        assert column(made, f"from{tail}") == [float(source[name].params.lo) for name in source]
        assert column(made, f"to{tail}") == [float(source[name].params.hi) for name in source]
        expected = [figures([study.observe(progress=False)[tap].histogram], source[tap].params) for tap in source if tap in READS]
        at = [i for i, name in enumerate(source) if name in READS]
        assert [column(made, f"SQNR{tail}")[i] for i in at] == [found.sqnr for found in expected]
        assert [column(made, f"clipped{tail}")[i] for i in at] == [found.clipped for found in expected]
    widths = dict(zip(plan, column(made, "width, new by old"), strict=True))
    old, new = study.plan["stem"].params, plan["stem"].params
    assert widths["stem"] == pytest.approx(float((new.hi - new.lo) / (old.hi - old.lo)))
    assert all(widths[name] < 1.0 for name in WEIGHTS)
    assert f"{len(study.plan.diff(plan))} of 14 " in made._said.value
    assert list(made.summary().index) == list(study.plan.grids)
    assert made.summary().loc["stem", "SQNR"] == decibels(column(made, "SQNR")[list(plan).index("stem")])
    json.dumps(made.table.rows, allow_nan=False)


def test_every_range_shows_what_its_worst_and_median_channel_suffer() -> None:
    made, study = panel(), small_study()
    plan = chosen(made, weight_method="percentile", percentile=60.0)
    inputs = few_inputs(study.graph, study.evaluation)
    for tail, source in ((", before", study.plan), ("", plan)):
        (errors,) = grid_errors(study.graph, inputs, [source])
        assert column(made, f"worst channel{tail}") == [plain(errors[name].worst) for name in source]
        assert column(made, f"median channel{tail}") == [plain(errors[name].median) for name in source]
    at = list(plan).index("stem.weight")
    assert column(made, "worst channel")[at] < column(made, "worst channel, before")[at]
    assert column(made, "channels at 0")[at] == 0
    assert column(made, "channels at 0")[list(plan).index("input")] is None
    assert made.table.columns[made.table.limit_column]["head"] == "worst channel"


def test_channels_that_were_not_counted_apart_have_no_figures_and_weights_have() -> None:
    made = panel()
    plan = chosen(made, classes={"activations: add": (None, "per channel"), "weights: linear": (None, "per channel")})
    at = list(plan).index(":add")
    assert column(made, "SQNR")[at] is None
    assert column(made, "clipped")[at] is None
    assert column(made, "SQNR, before")[at] is not None
    at = list(plan).index("classify.weight")
    seen = figures([Histogram.of(row) for row in small_study().graph.weights["classify.weight"]], plan["classify.weight"].params)
    assert column(made, "SQNR")[at] == seen.sqnr
    assert made._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")


def test_the_score_is_that_of_the_chosen_plan() -> None:
    made = panel(fresh_study("int4-weights"), batches=3)
    chosen(made, weight_method="mse", method="entropy")
    made._score.click()
    made.wait()
    assert made.error == ""
    assert made.scores is not None
    base = fresh_study("int4-weights")
    expected = base.evaluate({"as opened": base.plan, "chosen": made.plan}, batches=3, progress=False)
    for name in ("as opened", "chosen"):
        np.testing.assert_array_equal(made.scores.lanes[name], expected.lanes[name])
        assert score_words(expected[name], TOP1) in made._said.value
    assert change_words(expected.loss("as opened", against="chosen"), TOP1) in made._said.value
    assert re.search(r"\b24\b", made._said.value)


def test_a_choice_takes_the_score_of_the_one_before_away() -> None:
    made = panel(batches=1)
    made.score()
    made.wait()
    assert made.scores is not None
    chosen(made, method="minmax")
    assert "<table" not in made._said.value
    assert made.scores is None, "it was that of another plan"


@pytest.mark.slow
def test_methods_are_compared_on_the_same_data() -> None:
    study = fresh_study("int4-weights")
    made = panel(study, batches=2)
    chosen(made, weight_method="mse")
    made._compare.click()
    made.wait()
    assert made.error == ""
    found = made.comparison
    assert found is not None
    assert list(found.index) == list(METHODS)
    opened = study.evaluate({"plan": study.plan}, batches=2, progress=False)["plan"].value
    for method in METHODS:
        plan = fresh_study("int4-weights", method=method, weight_method="mse").plan
        score = study.evaluate({"plan": plan}, batches=2, progress=False)["plan"]
        assert found.loc[method, "score"] == score.value
        assert found.loc[method, "change"] == pytest.approx(score.value - opened)
        each = [figures([study.observe(progress=False)[tap].histogram], plan[tap].params) for tap in READS]
        assert found.loc[method, "least SQNR"] == min(one.sqnr for one in each)
        assert found.loc[method, "median SQNR"] == pytest.approx(float(np.median([one.sqnr for one in each])))
        assert found.loc[method, "most clipped"] == max(one.clipped for one in each)
        assert score_words(score, TOP1) in made._compared.value
    assert made.plan == fresh_study("int4-weights", weight_method="mse").plan, "comparing chooses nothing"
    assert re.search(r"</table>.*\b16\b", made._compared.value)


def test_methods_are_compared_at_the_chosen_granularity() -> None:
    made = panel(batches=1)
    chosen(made, classes={"weights: conv": ("mse", "per channel")})
    made.compare()
    made.wait()
    assert made.error == ""
    assert made.comparison is not None
    study = small_study()
    base = study.evaluate({"plan": made.plan}, batches=1, progress=False)["plan"].value
    assert made.comparison.loc["mse", "score"] == base


def test_methods_are_compared_with_the_weights_as_chosen() -> None:
    made = panel(batches=2)
    chosen(made, percentile=60.0, classes={"weights: conv": ("percentile", None)})
    made.compare()
    made.wait()
    assert made.comparison is not None
    study = small_study()
    scores = study.evaluate({"chosen": made.plan, "opened": study.plan}, batches=2, progress=False)
    assert scores["chosen"].value < scores["opened"].value - 0.1
    assert made.comparison.loc["mse", "score"] == scores["chosen"].value


def test_a_failing_score_is_said_in_place() -> None:
    def refusing(outputs: Any, targets: Any) -> Any:
        raise ValueError("<unscored>")

    made = panel(Study(mixed_network(), images(1), metric=refusing, scheme="int8-per-tensor"))
    made.score()
    made.wait()
    assert "ValueError: &lt;unscored&gt;" in made.error
    assert made.scores is None
    assert plain(made.summary().shape) == [14, 15]


def test_cancelling_keeps_the_plan() -> None:
    made = panel()
    with nothing_runs():
        made.choose(method="minmax")
        made._cancel.click()
        made.wait()
    assert "stopped" in made._notice.value
    assert made.error == ""
    assert made.plan == small_study().plan
    assert chosen(made, method="minmax") == fresh_study(method="minmax").plan


def test_it_opens_with_what_suffers_most_and_shows_weights_apart() -> None:
    """The table sorts and filters on the page, by the words of its first two columns; here by the same rule in Python."""
    made = panel()
    assert (made.table.sort_by, made.table.descending) == ("worst channel", False)

    def left() -> set[str]:
        words = [index for index, each in enumerate(made.table.columns) if each["words"]][:2]
        shown = [row for row in made.table.rows if made.table.filter in " ".join(row["texts"][i] for i in words).lower()]
        return {row["texts"][0] for row in shown}

    whole = left()
    made._part.value = "weights:"
    assert left() == set(WEIGHTS)
    made._part.value = "activations:"
    assert left() == whole - set(WEIGHTS)
    made._part.value = ""
    assert left() == whole
