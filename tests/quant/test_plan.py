"""Plans: immutable edits, differences, JSON both ways to the last bit, and corrupt files that never load."""

from __future__ import annotations

import copy
import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import specs

from qkit.errors import PlanError
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import FLOAT, FORMAT, Codes, Grid, Plan


def grid(low: float = -1.0, high: float = 2.0, *, weight: bool = False, method: str = "minmax", **rule) -> Grid:
    spec = QuantSpec(**{"bits": 8, "symmetric": False, **rule})
    return Grid(spec, spec.params(low, high), method, weight)


def channel_grid(*peaks: float) -> Grid:
    spec = QuantSpec(8, signed=True, per_channel=True, narrow=True)
    high = torch.tensor(peaks, dtype=torch.float64)
    return Grid(spec, spec.params(-high, high, axis=0), "mse", weight=True)


@pytest.fixture
def plan() -> Plan:
    grids = {
        "input": grid(0.0, 1.0),
        "features.0": grid(-3.0, 4.0),
        "features.0.weight": channel_grid(0.1, 0.2, 0.3),
        "head": grid(-9.0, 9.0, bits=16, method="entropy"),
        "head.weight": grid(-0.5, 0.5, weight=True, symmetric=True),
    }
    return Plan(grids, 32, "int8")


def test_lookup(plan: Plan) -> None:
    assert plan["head"].method == "entropy"
    assert plan.params("head") is plan["head"].params
    assert plan.params("nowhere") is None
    assert plan.params(None) is None
    with pytest.raises(PlanError, match=r"no grid for 'features'; did you mean features\.0, features\.0\.weight"):
        plan["features"]
    with pytest.raises(PlanError, match=r"'zzz'; see plan\.grids"):
        plan["zzz"]


def test_with_range_is_by_the_tensors_own_rule(plan: Plan) -> None:
    changed = plan.with_range("features.0", -2.0, 2.0)
    assert changed["features.0"].params == QuantSpec(8, symmetric=False).params(-2.0, 2.0)
    assert changed["features.0"].method == "manual"
    assert list(changed.diff(plan)) == ["features.0"]
    assert list(changed.grids) == list(plan.grids)
    assert (changed.name, changed.bias_bits) == (plan.name, plan.bias_bits)
    assert plan["features.0"].params == grid(-3.0, 4.0).params
    back = changed.with_range("features.0", -3.0, 4.0)
    assert back == plan
    assert hash(back) == hash(plan)
    assert back["features.0"].method == "manual"
    wide = plan.with_range("head", -1.0, 1.0)["head"].params
    assert (wide.qmin, wide.qmax) == (-32768, 32767)


def test_with_range_per_channel(plan: Plan) -> None:
    one = plan.with_range("features.0.weight", -0.5, 0.5)["features.0.weight"].params
    assert one.scale.tolist() == [pytest.approx(0.5 / 127)] * 3
    high = torch.tensor([1.0, 2.0, 3.0])
    each = plan.with_range("features.0.weight", -high, high)["features.0.weight"].params
    assert each.scale.tolist() == [pytest.approx(v / 127) for v in (1, 2, 3)]
    assert each.axis == 0
    with pytest.raises(PlanError, match=r"features\.0\.weight has 3 channels; its range needs one number or 3"):
        plan.with_range("features.0.weight", torch.zeros(2), torch.ones(2))


def test_with_range_by_another_rule(plan: Plan) -> None:
    rule = QuantSpec(4, signed=False, power_of_two=True)
    changed = plan.with_range("features.0", 0.0, 3.0, spec=rule)
    grid = changed["features.0"]
    assert grid.spec is rule
    assert grid.params == rule.params(0.0, 3.0)
    assert (float(grid.params.scale), grid.params.qmin, grid.params.qmax) == (0.25, 0, 15)
    assert (grid.method, grid.weight) == ("manual", False)
    assert list(plan.diff(changed)) == ["features.0"]
    assert (changed.name, changed.bias_bits, list(changed.grids)) == (plan.name, plan.bias_bits, list(plan.grids))
    assert plan["features.0"] == grid_of(plan, "features.0"), "the plan itself stays"
    again = changed.with_range("features.0", 0.0, 1.0)
    assert again["features.0"].spec is rule, "from then on it is the tensor's own"
    weight = plan.with_range("head.weight", -1.0, 1.0, spec=QuantSpec(3))["head.weight"]
    assert weight.weight
    assert (weight.params.qmin, weight.params.qmax) == (-4, 3)


def grid_of(plan: Plan, tensor: str) -> Grid:
    """By a plan of its own."""
    return Plan.from_dict(plan.to_dict())[tensor]


def test_with_range_from_one_grid_to_one_per_channel_needs_the_axis(plan: Plan) -> None:
    rule = QuantSpec(8, signed=True, per_channel=True)
    high = torch.tensor([1.0, 2.0, 3.0, 4.0])
    with pytest.raises(PlanError, match=r"^head\.weight has had one grid so far: say along which axis="):
        plan.with_range("head.weight", -high, high, spec=rule)
    for axis in (0, 1):
        grid = plan.with_range("head.weight", -high, high, spec=rule, axis=axis)["head.weight"]
        assert grid.params == rule.params(-high, high, axis=axis)
        assert (grid.params.axis, grid.spec, grid.weight) == (axis, rule, True)
        assert grid.params.scale.tolist() == pytest.approx([v / 127 for v in (1, 2, 3, 4)])
    half = plan.with_range("head.weight", -1.0, high, spec=rule, axis=0)["head.weight"]
    assert half.params == rule.params(-torch.ones(4), high, axis=0), "one number serves all channels"
    affine = QuantSpec(8, symmetric=False, per_channel=True)
    assert plan.with_range("input", -1.0, high, spec=affine, axis=1)["input"].params == affine.params(
        -torch.ones(4), high, axis=1
    )
    changed = plan.with_range("head.weight", -high, high, spec=rule, axis=1)
    assert changed.with_range("head.weight", -0.5, 0.5)["head.weight"].params.axis == 1, "known from then on"


def test_with_range_per_channel_cannot_tell_how_many_channels_there_are_from_two_numbers(plan: Plan) -> None:
    with pytest.raises(PlanError, match=r"^head\.weight"):
        plan.with_range("head.weight", -1.0, 1.0, spec=QuantSpec(8, per_channel=True), axis=0)


def test_with_range_of_a_weight_that_cannot_have_channels_under_a_rule_that_has(plan: Plan) -> None:
    """As calibration leaves a transposed convolution in groups: its rule says per channel, and it has one grid."""
    rule = QuantSpec(8, signed=True, per_channel=True)
    one = plan.with_grid("head.weight", Grid(rule, rule.params(-1.0, 1.0), "minmax", weight=True))
    assert one.with_range("head.weight", -0.5, 0.5)["head.weight"].params == rule.params(-0.5, 0.5)
    assert one.with_range("head.weight", -0.5, 0.5, spec=rule)["head.weight"].params == rule.params(-0.5, 0.5)


def test_with_range_from_a_grid_per_channel_to_one(plan: Plan) -> None:
    rule = QuantSpec(8, symmetric=False)
    changed = plan.with_range("features.0.weight", -0.5, 0.25, spec=rule)
    assert changed["features.0.weight"].params == rule.params(-0.5, 0.25)
    assert changed["features.0.weight"].weight
    assert list(plan.diff(changed)) == ["features.0.weight"]
    with pytest.raises(PlanError, match=r"^features\.0\.weight: "):
        plan.with_range("features.0.weight", -torch.ones(3), torch.ones(3), spec=rule)
    back = changed.with_range(
        "features.0.weight", -0.5, torch.tensor([0.1, 0.2, 0.3]), spec=plan["features.0.weight"].spec, axis=0
    )
    assert back["features.0.weight"].params.axis == 0


@pytest.mark.parametrize("spec", [None, QuantSpec(4, per_channel=True), QuantSpec(8, symmetric=False, per_channel=True)])
@pytest.mark.parametrize(
    ("low", "high"),
    [(torch.zeros(2), torch.ones(2)), (torch.zeros(3), torch.ones(4)), (0.0, torch.ones(4)), (torch.zeros(1), 1.0),
     (torch.zeros(3, 1), torch.ones(3, 1))],
)  # fmt: skip
def test_with_range_refuses_another_number_of_channels(plan: Plan, spec: QuantSpec | None, low, high) -> None:
    for axis in (None, 0):
        with pytest.raises(PlanError, match=r"^features\.0\.weight has 3 channels; its range needs one number or 3"):
            plan.with_range("features.0.weight", low, high, spec=spec, axis=axis)


def test_with_range_refuses_bounds_of_different_numbers_of_channels(plan: Plan) -> None:
    rule = QuantSpec(8, per_channel=True)
    for low, high in ((torch.zeros(2), torch.ones(3)), (torch.zeros(3, 2), torch.ones(3, 2))):
        with pytest.raises(PlanError, match=r"^head\.weight has \d channels"):
            plan.with_range("head.weight", low, high, spec=rule, axis=0)
    with pytest.raises(PlanError, match=r"^head\.weight: the range .* is empty"):
        plan.with_range("head.weight", torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0]), spec=rule, axis=0)
    with pytest.raises(PlanError, match=r"^features\.0\.weight: the range .* is not finite"):
        plan.with_range("features.0.weight", -1.0, torch.tensor([1.0, math.inf, 1.0]), spec=rule)
    with pytest.raises(PlanError, match="no grid for 'tail'"):
        plan.with_range("tail", -1.0, 1.0, spec=QuantSpec(8), axis=0)


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (math.nan, 1.0), (0.0, math.inf), (torch.zeros(2), torch.ones(2))])
def test_an_impossible_range_names_the_tensor(plan: Plan, low, high) -> None:
    with pytest.raises(PlanError, match=r"^head: "):
        plan.with_range("head", low, high)
    with pytest.raises(PlanError, match="no grid for 'tail'"):
        plan.with_range("tail", -1.0, 1.0)


def test_choosing_tensors(plan: Plan) -> None:
    assert list(plan.only(["head", "input"]).grids) == ["input", "head"]
    assert list(plan.without(["head", "input"]).grids) == ["features.0", "features.0.weight", "head.weight"]
    assert list(plan.weights_only().grids) == ["features.0.weight", "head.weight"]
    assert list(plan.activations_only().grids) == ["input", "features.0", "head"]
    assert list(plan.where(lambda name, g: g.spec.bits == 16, "wide").grids) == ["head"]
    assert plan.where(lambda name, g: True, "renamed").name == "renamed"
    assert plan.weights_only().name == "int8 weights only"
    assert not plan.only([]).grids
    assert plan.without(iter([])) == plan
    assert len(plan.grids) == 5
    for choose in (plan.only, plan.without):
        with pytest.raises(PlanError, match="no grid for 'missing'"):
            choose(["head", "missing"])


def test_only_and_without_are_complements(plan: Plan) -> None:
    chosen = ["head", "features.0.weight"]
    assert {**plan.only(chosen).grids, **plan.without(chosen).grids} == plan.grids


def test_difference(plan: Plan) -> None:
    other = plan.without(["head"]).with_grid("new", grid()).with_range("input", 0.0, 2.0)
    difference = plan.diff(other)
    assert list(difference) == ["input", "head", "new"]
    assert difference["head"] == (plan["head"], None)
    assert difference["new"] == (None, other["new"])
    assert difference["input"] == (plan["input"], other["input"])
    assert plan.diff(plan) == {}


def test_equality_is_of_the_numbers(plan: Plan) -> None:
    same = Plan(dict(reversed(plan.grids.items())), 32, "another name")
    assert same == plan
    assert hash(same) == hash(plan)
    assert Plan(plan.grids, 64, plan.name) != plan
    assert Plan(plan.grids, None, plan.name) != plan
    assert plan.without(["head"]) != plan
    assert plan != plan.grids
    assert Plan() == FLOAT
    assert len({plan, same, FLOAT}) == 2


def test_a_grid_by_another_method_is_the_same_plan(plan: Plan) -> None:
    other = plan.with_grid("head", Grid(plan["head"].spec, plan["head"].params, "mse"))
    assert other == plan
    assert hash(other) == hash(plan)


def test_repr(plan: Plan) -> None:
    assert repr(plan) == "Plan('int8': 3 taps, 2 weights, 32 bits of bias)"
    assert "everything in float" in repr(FLOAT)
    assert "float bits of bias" in repr(Plan({"a": grid()}))


def test_copies_and_pickles(plan: Plan) -> None:
    assert copy.deepcopy(plan) == plan
    assert pickle.loads(pickle.dumps(plan)) == plan


bounds = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    entries=st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(specs, bounds, bounds, st.booleans()), max_size=5),
    channels=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=6),
    bias_bits=st.sampled_from([None, 8, 32, 64]),
    accumulator_bits=st.sampled_from([None, 8, 24, 64]),
    name=st.text(max_size=8),
)
@settings(deadline=None, max_examples=150)
def test_json_both_ways_is_exact(
    entries, channels: list[float], bias_bits: int | None, accumulator_bits: int | None, name: str
) -> None:
    grids = {k: Grid(s, s.params(min(a, b), max(a, b)), "mse", w) for k, (s, a, b, w) in entries.items()}
    grids["channels"] = channel_grid(*channels)
    plan = Plan(grids, bias_bits, name, accumulator_bits=accumulator_bits)
    assert list(plan) == list(grids)
    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict(), allow_nan=False)))
    assert again == plan
    assert (again.name, again.bias_bits, list(again.grids)) == (name, bias_bits, list(plan.grids))
    assert again.accumulator_bits == accumulator_bits
    for tensor, mine in again.grids.items():
        theirs = plan[tensor]
        assert mine == theirs
        assert mine.params.scale.dtype == torch.float32
        assert torch.equal(mine.params.scale.view(torch.int32), theirs.params.scale.view(torch.int32))


def test_files_both_ways(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert Plan.load(str(tmp_path / "plan.json")).to_dict() == plan.to_dict()
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["format"] == FORMAT


@pytest.mark.parametrize("content", ["", "{", "null", "[]", "3", '"plan"', "{}", '{"format": 99}', '{"format": "1"}', "\x00\xff"])
def test_a_file_that_is_no_plan_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(PlanError, match=r"broken\.json"):
        Plan.load(path)


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(PlanError, match=path.name):
            Plan.load(path)


def test_a_truncated_file_is_refused(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    text = (tmp_path / "plan.json").read_text()
    for end in range(0, len(text) - 2, 97):
        (tmp_path / "cut.json").write_text(text[:end])
        with pytest.raises(PlanError, match=r"cut\.json"):
            Plan.load(tmp_path / "cut.json")


CORRUPT = {
    "scale": [None, "x", [1.0, 2.0], 0, -1.0, math.nan, math.inf, 1e-42, 1e50, True, [[1.0]], {}],
    "zero_point": [None, "1", 1.5, 2**40, 40_000, -40_000, [0], True, math.nan],
    "qmin": [None, "x", "-128", math.inf, -128.5, 127, 200, -(10**9), True],
    "qmax": [None, math.nan, 10**6, -128, -129, [127]],
    "axis": ["x", 1.5, 0, True],
    "method": [None, 3],
    "weight": [None, "false", 0],
    "spec": [None, [1], {"bits": 99}, {"bits": "8"}, {"bitz": 8}, {"bits": 8, "symmetric": "no"}, {"bits": 8, "signed": "yes"}],
}


@pytest.mark.parametrize(("field", "value"), [(k, v) for k, values in CORRUPT.items() for v in values])
def test_a_corrupt_entry_is_named(plan: Plan, tmp_path: Path, field: str, value) -> None:
    data = plan.to_dict()
    data["grids"]["head"] |= {field: value}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    with pytest.raises(PlanError, match=r"plan\.json: grids/head\b"):
        Plan.load(tmp_path / "plan.json")


@pytest.mark.parametrize("field", ["scale", "zero_point", "qmin", "qmax", "axis", "method", "weight", "spec"])
def test_a_missing_field_is_named(plan: Plan, field: str) -> None:
    data = plan.to_dict()
    del data["grids"]["features.0.weight"][field]
    with pytest.raises(PlanError, match=rf"grids/features\.0\.weight/{field} is missing"):
        Plan.from_dict(data)


@pytest.mark.parametrize(
    "change",
    [
        {"grids": None}, {"grids": []}, {"bias_bits": "32"}, {"bias_bits": 1.5}, {"bias_bits": -3}, {"bias_bits": 0},
        {"bias_bits": True}, {"name": None}, {"name": 3},
    ],
)  # fmt: skip
def test_a_corrupt_header_is_refused(plan: Plan, change: dict) -> None:
    with pytest.raises(PlanError, match=f"^{next(iter(change))} is "):
        Plan.from_dict({**plan.to_dict(), **change})


@pytest.mark.parametrize("entry", [None, [], 3, "grid", {}])
def test_an_entry_that_is_no_grid_is_named(entry) -> None:
    with pytest.raises(PlanError, match=r"^grids/conv\b"):
        Plan.from_dict({"format": FORMAT, "name": "x", "bias_bits": None, "grids": {"conv": entry}})


def test_a_corrupt_channel_is_refused(plan: Plan) -> None:
    for field, value in (("scale", math.nan), ("scale", None), ("zero_point", 128), ("zero_point", 0.5)):
        data = plan.to_dict()
        data["grids"]["features.0.weight"][field][1] = value
        with pytest.raises(PlanError, match=r"features\.0\.weight"):
            Plan.from_dict(data)


def test_codes_survive_json_and_corrupt_ones_do_not_load(plan: Plan) -> None:
    codes = Codes(torch.tensor([[-127, 3], [0, 127], [5, -6]], dtype=torch.int8))
    rounded = plan.with_grid("features.0.weight", replace(plan["features.0.weight"], codes=codes))
    loaded = Plan.from_dict(json.loads(json.dumps(rounded.to_dict())))
    assert loaded == rounded
    assert hash(loaded) == hash(rounded)
    assert torch.equal(loaded.codes("features.0.weight").tensor, codes.tensor)
    assert loaded.codes("features.0.weight").tensor.dtype == torch.int8
    assert plan != rounded
    assert rounded.codes("head") is None
    assert rounded["features.0.weight"].at(rounded.params("features.0.weight")).codes is None
    for change, words in (
        ({"shape": [5, 2]}, "is not shape"),
        ({"shape": [-3, -2]}, r"^grids/features\.0\.weight/codes/shape/0 is -3"),
        ({"int32": "!!"}, r"^grids/features\.0\.weight is no grid: .*base64"),
        ({"int32": Codes(torch.full((3, 2), 200)).to_dict()["int32"]}, r"leave the grid's -127\.\.127"),
    ):
        data = rounded.to_dict()
        data["grids"]["features.0.weight"]["codes"] |= change
        with pytest.raises(PlanError, match=words):
            Plan.from_dict(data)
    for value, words in (("a hash", r"weight is no grid: its codes are a hash"), (None, r"weight/codes is null")):
        data["grids"]["features.0.weight"]["codes"] = value
        with pytest.raises(PlanError, match=words):
            Plan.from_dict(data)


def test_with_grids_sets_several(plan: Plan) -> None:
    new = {"input": grid(0.0, 5.0), "head": grid(-1.0, 1.0)}
    assert set(plan.with_grids(new).diff(plan)) == set(new)
