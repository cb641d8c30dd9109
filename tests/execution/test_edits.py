"""Edits of a plan: each makes a plan, and its code makes the same one to the last bit."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from small_networks import mixed_network
from torch import Tensor

from qkit import PlanError, QuantSpec, Study
from qkit.execution.edits import Chosen, Edit, History, Ranged, Reset, Ruled, Scaled
from qkit.execution.tensors import named, tensor_classes
from qkit.quant.plan import Plan

WEIGHTS = ("stem.weight", "project.weight", "side.weight")
KIND = "weights: conv"


@cache
def studied(scheme: str = "int8-per-tensor") -> Study:
    x: Tensor = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    study = Study(mixed_network(), [x], scheme=scheme)
    study.calibrate("mse", progress=False)
    return study


def walked(study: Study, *edits: Edit) -> History:
    history = History((study.plan,))
    for edit in edits:
        history = history.then(edit.made(history.plan), edit)
    return history


def executed(study: Study, history: History) -> Plan:
    names: dict[str, Any] = {"study": study}
    exec(history.code(), names)
    assert names["tuned"].plan == names["plan"]
    plan: Plan = names["plan"]
    return plan


STORIES = {
    "a method": [Chosen(studied(), WEIGHTS, "percentile", 99.0, said=KIND)],
    "a rule, then a method": [Ruled(WEIGHTS, (("bits", 5),)), Chosen(studied(), WEIGHTS, "minmax")],
    "channels": [
        Chosen(studied(), WEIGHTS, "minmax", changes=(("per_channel", True),)),
        Ranged("side.weight", -0.125, 0.1, 2),
        Ranged("side.weight", -0.1, 0.3, 0),
        Ruled(("side.weight", "stem.weight"), (("bits", 4),)),
    ],
    "back to one grid": [
        Chosen(studied(), WEIGHTS, "minmax", changes=(("per_channel", True),)),
        Ruled(WEIGHTS, (("per_channel", False), ("symmetric", False))),
    ],
    "factors": [Scaled(("stem", *WEIGHTS), 0.5, 1 / 3), Scaled(("stem", "side"), 0.9, 0.7)],
    "by hand over a method": [Chosen(studied(), WEIGHTS, "mse"), Ranged("stem.weight", -0.1, 0.1), Ranged("side", -0.3, 0.2)],
    "a reset between": [Ranged("stem", 0.0, 0.3), Reset(studied().plan), Ranged("side", -0.3, 0.2)],
}


@pytest.mark.parametrize("story", STORIES)
def test_the_code_of_edits_makes_their_plan(story: str) -> None:
    study, history = studied(), walked(studied(), *STORIES[story])
    made = executed(study, history)
    assert made == history.plan
    for name in study.plan.diff(history.plan):
        assert made[name].spec == history.plan[name].spec
        assert torch.equal(made[name].params.scale, history.plan[name].params.scale)
    undone = history.undone()
    assert executed(study, undone) == undone.plan


def test_the_code_has_the_rule_and_not_its_numbers() -> None:
    code = walked(studied(), *STORIES["a method"]).code()
    assert f"study.choose({KIND!r}, 'percentile', percentile=99.0, plan=plan)" in code
    assert "with_range" not in code
    channels = walked(studied(), *STORIES["channels"]).code()
    assert "lo[2], hi[2] = -0.125, 0.1" in channels
    assert "torch.tensor" not in channels
    assert channels.count("'project.weight'") == 1, "several names are written once"


def test_what_a_later_edit_covers_is_not_in_the_code() -> None:
    code = walked(studied(), Ranged("stem", 0.0, 0.3), Ranged("side", -1.0, 1.0), Ranged("stem", 0.0, 0.5)).code()
    assert code.count("with_range") == 2
    reset = walked(studied(), *STORIES["a reset between"]).code()
    assert "'stem'" not in reset


def test_ranges_are_scaled_by_the_same_factors() -> None:
    before, after = studied().plan, Scaled(WEIGHTS, 0.5, 0.5).made(studied().plan)
    for name in WEIGHTS:
        assert float(after[name].params.hi) == pytest.approx(0.5 * float(before[name].params.hi), rel=1e-6)
    assert set(before.diff(after)) == set(WEIGHTS)


def test_a_study_chooses_for_names_patterns_and_kinds() -> None:
    study = studied()
    by_kind = study.choose(KIND, "percentile", percentile=99.0)
    assert by_kind == study.choose(WEIGHTS, "percentile", percentile=99.0)
    assert by_kind == study.choose(["s*.weight", "project.weight"], "percentile", percentile=99.0)
    assert set(study.plan.diff(by_kind)) == set(WEIGHTS)
    weights = study.with_calibration(weight_method="percentile", percentile=99.0).plan
    assert all(by_kind.params(name) == weights.params(name) for name in WEIGHTS)
    again = study.choose("stem", "minmax", plan=by_kind, spec=QuantSpec(6, symmetric=False))
    assert again["stem"].spec.bits == 6
    assert again["stem.weight"] == by_kind["stem.weight"]
    with pytest.raises(PlanError, match=r"entropy\b.*\bstem\.weight\b.*minmax"):
        studied("int8").choose("stem.weight", "entropy")
    with pytest.raises(PlanError, match="median"):
        study.choose("stem", "median")


def test_a_rule_changes_and_the_range_stays() -> None:
    plan = studied().plan
    narrow = plan.with_rule(["stem.weight", "stem"], bits=4)
    for name in ("stem.weight", "stem"):
        assert narrow[name].spec.bits == 4
        assert float(narrow[name].params.hi) == pytest.approx(float(plan[name].params.hi), rel=1e-5)
    assert narrow.with_rule(["stem.weight", "stem"], bits=8) == plan
    joined = studied("int8").plan.with_rule("stem.weight", per_channel=False)
    assert joined["stem.weight"].params.axis is None
    assert float(joined["stem.weight"].params.hi) == float(studied("int8").plan["stem.weight"].params.hi.max())
    with pytest.raises(PlanError, match=r"stem\b.*channel"):
        plan.with_rule("stem", per_channel=True)
    with pytest.raises(PlanError, match="bits=17"):
        plan.with_rule("stem", bits=17)


def test_names_that_mean_nothing_are_refused_with_what_there_is() -> None:
    study = studied()
    graph, plan = study.graph, study.plan
    assert named(graph, plan, "stem") == ("stem",)
    assert named(graph, plan, ["side", "stem"]) == ("stem", "side"), "in the order of the plan"
    assert set(named(graph, plan, "*")) == set(plan.grids)
    assert {name for kind in tensor_classes(graph, plan) for name in named(graph, plan, kind)} == set(plan.grids)
    for which, said in (("*.bias", KIND), ("weights: norm", KIND), ("stm", "plan.grids"), ([], "name")):
        with pytest.raises(PlanError, match=said):
            named(graph, plan, which)
