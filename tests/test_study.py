"""The study: leaves the user's things as they were, computes nothing twice, says what a reader has to know."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor, nn

from qkit import FLOAT, DataError, GraphError, PlanError, QkitError, Study
from qkit.execution.observing import observe
from qkit.quant.calibration import make_plan
from qkit.quant.schemes import PRESETS

Batches = list[tuple[Tensor, Tensor]]


@cache
def data() -> tuple[Batches, Batches]:
    """Labels are the float network's own but for some, so that scores lie below one and differ between lanes."""
    model, draw = mixed_network(), torch.Generator().manual_seed(2)

    def batches(count: int) -> Batches:
        made = []
        for _ in range(count):
            x = torch.randn(16, 3, 16, 16, generator=draw)
            with torch.no_grad():
                y = model(x).argmax(1)
            y[:2] = (y[:2] + 1) % 5
            made.append((x, y))
        return made

    return batches(2), batches(4)


class Counting:
    """A loader that counts the passes over it."""

    def __init__(self, batches: Batches) -> None:
        self.batches, self.passes = batches, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        yield from self.batches

    def __len__(self) -> int:
        return len(self.batches)


def study(**settings: Any) -> Study:
    calibration, evaluation = data()
    made = Study(mixed_network(), calibration, evaluation, **{"scheme": "int8-per-tensor", **settings})
    made.calibrate("minmax", progress=False)
    return made


def coarse(**settings: Any) -> Study:
    """With three bits, so that lanes differ in their scores."""
    return study(scheme=PRESETS["int8-per-tensor"].at_bits(3, "int3"), **settings)


def random_states() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


def test_model_and_random_state_come_back_as_they_were() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(), nn.Flatten(), nn.Linear(784, 5)
    )
    model.train()
    model[3].eval()
    calls: list[int] = []
    hook = model[0].register_forward_hook(lambda *_: calls.append(1))
    before = copy.deepcopy(model.state_dict())
    flags = [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()]
    states = random_states()
    made = Study(model, *data())
    made.calibrate("mse", progress=False)
    made.evaluate(progress=False)
    made.capture(progress=False)
    made.sensitivity(batches=1, progress=False)
    made.verdict(progress=False)
    made.score(made.plan.with_range("0", 0.0, 0.5))
    assert random_states() == states
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert [(m.training, [p.requires_grad for p in m.parameters()]) for m in model.modules()] == flags
    calls.clear()
    hook.remove()
    model.eval()(data()[0][0][0])
    assert not calls, "no copy of the hook is left"
    assert model[2].inplace
    assert any("training" in remark for remark in made.remarks)


def test_in_place_models_give_what_they_give() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
            self.relu = nn.ReLU(inplace=True)
            self.head = nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.relu(x)
            y += x
            return self.head(self.b(y).mean((2, 3)))

    torch.manual_seed(0)
    model = InPlace().eval()
    made = Study(model, [x for x, _ in data()[0]])
    capture = made.capture(("float", "int8"), progress=False)
    with torch.no_grad():
        expected = model(data()[0][0][0])
    torch.testing.assert_close(capture["head"].float.values, expected, rtol=1e-4, atol=1e-5)


def test_calibration_is_one_pass_and_nothing_is_evaluated_twice() -> None:
    calibration, evaluation = (Counting(part) for part in data())
    made = Study(mixed_network(), calibration, evaluation)
    start = calibration.passes, evaluation.passes
    for method in ("minmax", "mse", "percentile", "entropy", "moving-average"):
        made.calibrate(method, progress=False)
    assert calibration.passes == start[0] + 1
    made.evaluate(progress=False)
    assert evaluation.passes == start[1] + 1
    made.evaluate(("int8", "float"), progress=False)
    made.verdict(progress=False)
    assert evaluation.passes == start[1] + 1
    made.evaluate(("float", "int8-symmetric"), progress=False)
    assert evaluation.passes == start[1] + 2
    assert calibration.passes == start[0] + 1, "another scheme reads the same histograms"


def test_new_studies_share_what_is_known_and_leave_the_old_one() -> None:
    made = coarse()
    calibration, evaluation = Counting(data()[0]), Counting(data()[1])
    made = made.with_data(calibration=calibration, evaluation=evaluation)
    observed = calibration.passes
    base = made.evaluate(progress=False)
    plan = made.plan
    edited = plan.with_range("stem", 0.0, 1.0)
    other = made.with_plan(edited)
    spread = made.with_scheme("int8")
    assert other.plan is edited
    assert made.plan is plan
    assert made.scheme.name == "int3"
    assert spread.scheme.name == "int8"
    assert spread.plan.grids["stem.weight"].params.per_channel
    assert spread.plan.grids["stem"].method == plan.grids["stem"].method == "minmax"
    passes = evaluation.passes
    assert other.evaluate(("float",), progress=False)["float"] == base["float"]
    assert (calibration.passes, evaluation.passes) == (observed, passes)
    with pytest.raises(GraphError, match="'nowhere'"):
        made.with_plan(other.plan.with_grid("nowhere", plan.grids["stem"]))


@pytest.mark.slow
def test_another_scheme_is_calibrated_by_the_same_methods() -> None:
    made = study(scheme="int8-per-tensor")
    made.calibrate("percentile", weight_method="mse", percentile=99.0, methods={"stem": "mse"}, progress=False)
    for scheme in ("int8-symmetric", PRESETS["int8"].at_bits(6, "int6")):
        for other in (made.with_scheme(scheme), made.with_calibration(scheme=scheme)):
            own = study(scheme=scheme)
            own.calibrate("percentile", weight_method="mse", percentile=99.0, methods={"stem": "mse"}, progress=False)
            assert other.plan == own.plan
            assert other.plan.name == other.scheme.name == own.scheme.name
            assert {t: g.method for t, g in other.plan.grids.items()} == {t: g.method for t, g in own.plan.grids.items()}
            assert other.methods == made.methods
            assert other.narrow == own.narrow
    with pytest.raises(QkitError, match="'int7ish'"):
        made.with_scheme("int7ish")


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "mse"},
        {"method": "entropy", "weight_method": "mse"},
        {"method": "percentile"},
        {"method": "percentile", "percentile": 95.0},
        {"method": "percentile", "weight_method": "percentile", "percentile": 90.0},
        {"methods": {"stem": "percentile", "side.weight": "mse"}, "percentile": 80.0},
    ],
    ids=str,
)
def test_other_methods_give_the_plan_that_calibrating_by_them_gives(settings: dict[str, Any]) -> None:
    made, own = study(), study()
    before, plan = made.plan.to_dict(), made.plan
    other = made.with_calibration(**settings)
    assert other.plan == own.calibrate(**{"method": "minmax", **settings}, progress=False)
    assert other.methods == own.methods
    assert other.scheme is made.scheme
    assert other.plan != plan
    assert made.plan is plan
    assert made.plan.to_dict() == before
    assert made.methods == {"method": "minmax", "weight_method": "minmax", "percentile": 99.99, "methods": None}


def test_settings_that_are_not_named_stay_as_they_were() -> None:
    made = study()
    made.calibrate("mse", weight_method="mse", percentile=97.0, progress=False)
    first = made.with_calibration(method="percentile")
    assert first.methods == {"method": "percentile", "weight_method": "mse", "percentile": 97.0, "methods": None}
    second = first.with_calibration(percentile=90.0).with_calibration(scheme="int8")
    expected = {"method": "percentile", "weight_method": "mse", "percentile": 90.0}
    assert second.plan == make_plan(made.graph, made.observe(), PRESETS["int8"], **expected)
    assert second.with_plan(made.plan).with_calibration().plan == second.plan, "whatever plan it has"
    assert made.with_calibration().plan == made.plan


@pytest.mark.parametrize("setting", [{"bits": 4}, {"progress": False}, {"batches": 1}, {"method": "mse", "weightmethod": "mse"}])
def test_a_setting_that_there_is_not_is_named(setting: dict[str, Any]) -> None:
    name = list(setting)[-1]
    with pytest.raises(QkitError, match=rf"\b{name}\b.*method, weight_method, percentile, methods"):
        study().with_calibration(**setting)


def test_calibrations_that_fail_leave_the_study_alone() -> None:
    made = study()
    plan, methods = made.plan, dict(made.methods)
    for wrong in (
        {"method": "best"},
        {"method": "percentile", "percentile": 3.0},
        {"methods": {"stem": "best"}},
        {"scheme": "no"},
    ):
        with pytest.raises(PlanError):
            made.with_calibration(**wrong)
    with pytest.raises(GraphError, match="'nowhere'"):
        made.with_calibration(methods={"nowhere": "mse"})
    assert made.plan is plan
    assert made.methods == methods


def test_ranges_from_other_observations() -> None:
    made = study()
    few = observe(made.graph, made.calibration, limit=1, progress=False)
    loud = observe(made.graph, [(x * 3.0, y) for x, y in data()[0]], progress=False)
    for seen in (few, loud):
        other = made.with_calibration(observed=seen)
        assert other.plan == make_plan(made.graph, seen, made.scheme, method="minmax")
        assert other.plan != made.plan
        assert other.with_calibration(method="mse").plan == make_plan(made.graph, seen, made.scheme, method="mse")
        assert other.lane("int16") == make_plan(made.graph, seen, made.scheme.at_bits(16), method="minmax")
    assert float(other.plan["input"].params.hi) == pytest.approx(3 * float(made.plan["input"].params.hi), rel=0.01)
    assert made.calibrate("minmax", progress=False) == study().plan, "this study still knows what it saw"
    assert made.lane("int16") == study().lane("int16")
    short = dict(few)
    del short["side"]
    with pytest.raises(PlanError, match=r"^side\b.*observe"):
        made.with_calibration(observed=short)


def test_the_lanes_of_other_widths_go_by_the_new_settings() -> None:
    made = study()
    wide, narrow = made.lane("int16"), made.lane("int4")
    for settings in ({"method": "moving-average"}, {"method": "percentile", "percentile": 90.0}):
        other = made.with_calibration(**settings)
        for name, bits, mine in (("int16", 16, wide), ("int4", 4, narrow)):
            assert other.lane(name) == make_plan(made.graph, made.observe(), made.scheme.at_bits(bits), **settings)
            assert other.lane(name) != mine
            assert made.lane(name) is mine
        assert other.lane("int8") is other.plan
        assert other.lane("int8-symmetric") == make_plan(made.graph, made.observe(), PRESETS["int8-symmetric"], **settings)
    spread = made.with_calibration(scheme="int8")
    assert spread.lane("int16") == make_plan(made.graph, made.observe(), PRESETS["int8"].at_bits(16), method="minmax")


def test_a_new_calibration_shares_what_is_known_and_scores_its_own_plan() -> None:
    made = coarse()
    calibration, evaluation = Counting(data()[0]), Counting(data()[1])
    made = made.with_data(calibration=calibration, evaluation=evaluation)
    observed = calibration.passes
    made.evaluate(progress=False)
    made.effect("side", made.plan.with_range("side", -0.5, 0.5))
    passes = evaluation.passes
    other = made.with_calibration(method="mse")
    assert (calibration.passes, evaluation.passes) == (observed, passes)
    assert other.evaluate(("float",), progress=False)["float"] == made.evaluate(("float",), progress=False)["float"]
    assert evaluation.passes == passes, "the float scores are known"
    own = coarse()
    own.calibrate("mse", progress=False)
    assert other.evaluate(progress=False).table().equals(own.evaluate(progress=False).table())
    edited = other.plan.with_range("side", -0.5, 0.5)
    assert other.score(edited) == coarse().evaluate({"edited": edited}, progress=False)["edited"]
    assert calibration.passes == observed


def test_a_study_without_a_plan_is_calibrated_first() -> None:
    made = Study(mixed_network(), *data(), scheme="int8-per-tensor")
    other = made.with_calibration(weight_method="percentile")
    assert made.methods["method"] == other.methods["method"] == "mse"
    assert other.plan == make_plan(made.graph, made.observe(), made.scheme, method="mse", weight_method="percentile")


@pytest.mark.slow
def test_scores_of_edited_plans_equal_whole_evaluations_wherever_the_edit_moves() -> None:
    made = coarse()
    evaluation = Counting(data()[1])
    made = made.with_data(evaluation=evaluation)
    seen = set()
    for tap in ("project", "classify", "input", ":cat", "stem", "stem", "average"):
        grid = made.plan.grids[tap].params
        edited = made.plan.with_range(tap, float(grid.lo) * 0.4, float(grid.hi) * 0.4)
        found = made.score(edited)
        assert found == coarse().evaluate({"edited": edited}, progress=False)["edited"], tap
        seen.add(found.value)
    assert len(seen) > 2
    passes = evaluation.passes
    made.score(made.plan.with_range("classify", -0.1, 0.1))
    assert evaluation.passes == passes, "a later tap starts from the values kept"
    assert made.score() == made.evaluate(("int3",), progress=False)["int3"]


def test_two_studies_agree_to_the_last_digit() -> None:
    a, b = (coarse() for _ in range(2))
    assert a.plan == b.plan
    assert a.capture(("float", "int3"), progress=False).table().equals(b.capture(("float", "int3"), progress=False).table())
    assert a.evaluate(progress=False).table().equals(b.evaluate(progress=False).table())
    assert a.sensitivity(lane="int3", progress=False).table().equals(b.sensitivity(lane="int3", progress=False).table())


def test_lanes_by_name() -> None:
    made = study()
    assert made.lane("float") is FLOAT
    assert made.lane("int8") is made.plan
    assert made.lane("int8-per-tensor") is made.plan
    wide = made.lane("int16")
    assert wide is made.lane("int16")
    assert all(grid.params.bits == 16 for grid in wide.grids.values())
    assert made.lane("int4").grids["stem"].params.bits == 4
    assert made.lane("int8-symmetric").grids["classify"].spec.symmetric
    with pytest.raises(QkitError, match="'bf16'"):
        made.lane("bf16")
    with pytest.raises(QkitError, match=r"\('int8',\)"):
        made.evaluate("int8")
    mapped = made.evaluate({"mine": made.plan.weights_only()}, progress=False)
    assert list(mapped.lanes) == ["mine"]


def test_without_targets_the_score_is_agreement_and_that_is_said() -> None:
    made = Study(mixed_network(), [x for x, _ in data()[0]], [x for x, _ in data()[1]])
    assert made.metric_name == "agreement"
    assert any(re.search(r"\bagreement\b.*\bfloat\b", remark) for remark in made.remarks)
    scores = made.evaluate(("float", "int4"), progress=False)
    assert scores["float"].value == 1.0
    assert 0.0 < scores["int4"].value < 1.0
    alone = made.evaluate(("int4",), progress=False)
    assert alone["int4"] == scores["int4"]


def test_without_evaluation_data_the_calibration_data_serve_and_that_is_said() -> None:
    made = Study(mixed_network(), data()[0])
    assert any(re.search(r"\bevaluation\b.*\bcalibration\b", remark) for remark in made.remarks)
    assert made.evaluate(progress=False).n == 32


def test_a_metric_of_the_users() -> None:
    def confidence(outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.softmax(1).gather(1, targets[:, None])[:, 0]

    made = study(metric=confidence)
    scores = made.evaluate(progress=False)
    assert scores.metric == "confidence"
    with torch.no_grad():
        expected = torch.cat([confidence(mixed_network()(x), y) for x, y in data()[1]]).double().mean()
    assert scores["float"].value == pytest.approx(float(expected), rel=1e-4)
    assert "points" not in made.verdict(progress=False).reason


def test_loaders_that_cannot_be_read_twice_or_are_empty() -> None:
    calibration, evaluation = data()
    with pytest.raises(DataError):
        Study(mixed_network(), iter(calibration), evaluation)
    with pytest.raises(DataError):
        Study(mixed_network(), calibration, (batch for batch in evaluation))
    with pytest.raises(DataError, match=r"calibration.*batch"):
        Study(mixed_network(), [], evaluation)
    with pytest.raises(DataError, match=r"evaluation.*batch"):
        Study(mixed_network(), calibration, [])
    with pytest.raises(QkitError):
        Study(mixed_network(), calibration, evaluation, scheme="int7ish")
    with pytest.raises(QkitError, match=r"'evaluation'.*'calibration'.*'train'"):
        study().capture(data="train", progress=False)  # type: ignore[arg-type]


def test_a_model_that_holds_nan_is_said_at_once_and_gives_no_score() -> None:
    broken = mixed_network()
    with torch.no_grad():
        broken.side.weight[0, 0, 0, 0] = float("nan")
    made = Study(broken, *data())
    assert "side.weight" in made.remarks[0]
    for attempt in (made.calibrate, made.observe, made.evaluate, made.capture, made.sensitivity, made.verdict):
        with pytest.raises(DataError, match=r"^side\.weight\b.*\b1\b.*\b288\b.*NaN"):
            attempt(progress=False)


def test_a_model_that_does_not_trace_is_refused_at_once() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(GraphError, match=r"test_study\.py"):
        Study(Branch(), *data())


def test_results_show_themselves_and_are_plain_data() -> None:
    made = study()
    assert re.match(r"Study\(Mixed\b.*\b9\b.*'int8-per-tensor'.*'top1'.*Plan\(", repr(made))
    results = [
        made.evaluate(progress=False),
        made.capture(progress=False),
        made.sensitivity(batches=1, progress=False),
        made.sensitivity("except", batches=1, progress=False),
    ]
    for result in results:
        assert "0x" not in repr(result)
        assert "<table" in result._repr_html_()
        json.dumps(result.to_dict(), allow_nan=False)
    json.dumps(made.verdict(progress=False).to_dict(), allow_nan=False)
    json.dumps(made.plan.to_dict(), allow_nan=False)


def test_a_scheme_of_two_widths_is_judged_by_its_own_lane() -> None:
    made = study(scheme="int4-weights")
    assert made.narrow == "int4"
    assert made.lane("int4") == made.plan
    assert list(made.evaluate(progress=False).lanes) == ["float", "int16", "int4"]
    reason = made.verdict(progress=False).reason
    assert re.search(r"\bint4\b", reason)
    assert "int8" not in reason
    assert study(scheme="int8-weights-int16-activations").lane("int8").grids["stem"].spec.bits == 16
    assert study(scheme="int16").narrow == "int8"


def test_an_argument_that_the_batch_leaves_out_has_its_default() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor, scale: float | None = None) -> Tensor:
            return self.conv(x) * scale if scale is not None else self.conv(x)

    made = Study(Optional().eval(), *data())
    assert made.graph.taps == ("input", "conv")
    assert made.graph.deviation < 1e-6


# the names of a table's layers, and a second file beside the report, are the methods' own
@pytest.mark.parametrize(
    ("method", "function", "more"), [("mixed", "qkit.mixed:search", "layer_map"), ("report", "qkit.report:make", "attachment")]
)
def test_methods_have_the_options_of_what_they_call(method, function, more):
    module, name = function.split(":")
    theirs = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    own = inspect.signature(getattr(Study, method)).parameters
    options = {n: p.default for n, p in theirs.items() if p.kind is p.KEYWORD_ONLY and n != "command"}
    assert options == {n: p.default for n, p in own.items() if p.kind is p.KEYWORD_ONLY and n != more}
    assert not [p for p in own.values() if p.kind is p.VAR_KEYWORD]
