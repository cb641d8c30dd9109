"""Editing without a widget: history, code that repeats it to the last bit, figures against the tensors themselves."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import READS, mixed_network, rounded_by_torch
from strategies import rules
from torch import Tensor, nn

from qkit import FLOAT, PRESETS, GraphError, PlanError, QuantParams, QuantSpec, Scheme, Study, quantize
from qkit.execution.editing import (
    Figures,
    channel_params,
    codes_used,
    figures,
    moved_end,
    rule_of,
    suggestions,
)
from qkit.execution.edits import History
from qkit.quant.estimators import METHODS
from qkit.quant.histogram import Histogram
from qkit.quant.plan import Grid, Plan

AFFINE = QuantSpec(8, symmetric=False)


def plans(count: int) -> list[Plan]:
    """That many, each with another range of its one tensor."""
    return [Plan({"tap": Grid(AFFINE, AFFINE.params(-1.0, 1.0 + i), "minmax")}) for i in range(count)]


# History


def test_a_new_history_has_one_plan_and_no_way_to_go() -> None:
    (plan,) = plans(1)
    history = History((plan,))
    assert history.plan is history.base is history.previous is plan
    assert not history.can_undo
    assert not history.can_redo
    assert history.undone() == history.redone() == history


def test_undo_and_redo_walk_the_plans() -> None:
    a, b, c = plans(3)
    start = History((a,))
    history = start.then(b).then(c)
    assert start.plan is a, "histories do not change"
    assert (history.plan, history.previous, history.base) == (c, b, a)
    assert (history.can_undo, history.can_redo) == (True, False)
    back = history.undone()
    assert (back.plan, back.previous, back.base) == (b, a, a)
    assert (back.can_undo, back.can_redo) == (True, True)
    first = back.undone()
    assert (first.plan, first.previous) == (a, a)
    assert (first.can_undo, first.can_redo) == (False, True)
    assert first.undone() == first
    assert first.redone() == back
    assert first.redone().redone() == history
    assert history.redone() == history


def test_what_was_undone_is_gone_after_another_edit() -> None:
    a, b, c, d = plans(4)
    history = History((a,)).then(b).then(c).undone().undone().then(d)
    assert history.plans == (a, d)
    assert not history.can_redo
    assert history.undone().plan is a


def test_the_same_plan_again_changes_nothing() -> None:
    a, b, _ = plans(3)
    history = History((a,)).then(b)
    assert history.then(b) is history
    assert history.then(Plan.from_dict(b.to_dict())) is history
    undone = history.undone()
    assert undone.then(a) is undone, "nor does it drop what was undone"
    assert undone.then(a).can_redo
    assert history.then(a).plans == (a, b, a), "only the current one counts"


def test_another_rule_that_gives_the_same_numbers_is_an_edit() -> None:
    rule, other = QuantSpec(8), QuantSpec(8, signed=True)
    plan = Plan({"tap": Grid(rule, rule.params(-1.0, 1.0), "minmax")})
    changed = plan.with_range("tap", -1.0, 1.0, spec=other)
    assert changed == plan
    history = History((plan,)).then(changed)
    assert history.plan["tap"].spec is other, "the next range goes by it"
    assert history.can_undo
    assert history.then(changed) is history
    assert executed(history) == changed


@given(st.lists(st.sampled_from(["undo", "redo", 0, 1, 2, 3]), max_size=30))
@settings(deadline=None, max_examples=100)
def test_any_walk_is_that_of_two_stacks(moves: list[Any]) -> None:
    choices = plans(4)
    history = History((choices[0],))
    done, undone = [choices[0]], []
    for move in moves:
        if move == "undo":
            history = history.undone()
            if len(done) > 1:
                undone.append(done.pop())
        elif move == "redo":
            history = history.redone()
            if undone:
                done.append(undone.pop())
        else:
            history = history.then(choices[move])
            if choices[move] != done[-1]:
                done.append(choices[move])
                undone = []
        assert history.plan == done[-1]
        assert history.base == choices[0]
        assert history.previous == done[max(len(done) - 2, 0)]
        assert (history.can_undo, history.can_redo) == (len(done) > 1, bool(undone))


# The code for it


class Holder:
    """What of a study the code needs."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def with_plan(self, plan: Plan) -> Holder:
        return Holder(plan)


def executed(history: History) -> Plan:
    """The plan that the code makes, run on its own."""
    names: dict[str, Any] = {"study": Holder(history.base)}
    exec(history.code(), names)
    assert names["study"].plan is history.base
    assert names["tuned"].plan == names["plan"]
    return names["plan"]


specs = rules(per_channel=st.booleans())
#: Any float32 that a tensor may hold. Near 2**126 the ends of an affine grid pass the greatest bound, and are cut.
bounds = st.floats(-(2.0**120), 2.0**120, width=32) | st.floats(-10.0, 10.0) | st.sampled_from([0.0, -0.0, 1e-40, -1e-40, 6.0])


@st.composite
def grids(draw: st.DrawFn, channels: int) -> Grid:
    """Any rule over any range."""
    spec = draw(specs)
    size = channels if spec.per_channel else 1
    pairs = draw(st.lists(st.tuples(bounds, bounds), min_size=size, max_size=size))
    low, high = (torch.tensor([f(pair) for pair in pairs], dtype=torch.float64) for f in (min, max))
    if not spec.per_channel:
        return Grid(spec, spec.params(low[0], high[0]), "mse")
    return Grid(spec, spec.params(low, high, axis=draw(st.integers(0, 3))), "mse", weight=True)


@st.composite
def edited(draw: st.DrawFn) -> History:
    """A plan of several tensors and one to five edits, some of them undone."""
    names = draw(st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=4, unique=True))
    channels = {name: draw(st.integers(1, 9)) for name in names}
    history = History((Plan({name: draw(grids(channels[name])) for name in names}),))
    for _ in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(names))
        grid, old = draw(grids(channels[name])), history.plan[name]
        if grid.params.axis is not None and old.params.axis is not None and grid.params.axis != old.params.axis:
            params = grid.params
            grid = replace(grid, params=QuantParams(params.scale, params.zero_point, params.qmin, params.qmax, old.params.axis))
        history = history.then(history.plan.with_grid(name, grid))
    for _ in range(draw(st.integers(0, 2))):
        history = history.undone()
    return history


@pytest.mark.slow
@given(edited())
@settings(deadline=None, max_examples=200)
def test_the_code_makes_the_plan_to_the_last_bit(history: History) -> None:
    made = executed(history)
    assert made == history.plan
    for name, grid in history.plan.grids.items():
        mine = made[name].params
        assert torch.equal(mine.scale.view(torch.int32), grid.params.scale.view(torch.int32)), name
        assert torch.equal(mine.zero_point, grid.params.zero_point)
        assert (mine.qmin, mine.qmax, mine.axis) == (grid.params.qmin, grid.params.qmax, grid.params.axis)
        if name in history.base.diff(history.plan):
            assert made[name].spec == grid.spec


def test_the_code_of_no_change_is_short() -> None:
    a, b = plans(2)
    for history in (History((a,)), History((a,)).then(b).undone(), History((a,)).then(b).then(a)):
        assert history.code() == "plan = study.plan\ntuned = study.with_plan(plan)"
        assert executed(history) == a


def test_the_code_names_what_was_changed_alone_and_reads_well() -> None:
    per_channel = QuantSpec(8, signed=True, per_channel=True, narrow=True)
    base = Plan(
        {
            "input": Grid(AFFINE, AFFINE.params(0.0, 1.0), "mse"),
            "stem": Grid(AFFINE, AFFINE.params(0.0, 6.0), "mse"),
            "stem.weight": Grid(per_channel, per_channel.params(-torch.ones(2), torch.ones(2), axis=0), "minmax", weight=True),
        }
    )
    history = History((base,)).then(base.with_range("stem", 0.0, 2.55, spec=replace(AFFINE, signed=False)))
    assert re.fullmatch(
        r"""import qkit

plan = study\.plan
plan = plan\.with_range\('stem', 0\.0, 2\.5499\d+,
    spec=qkit\.QuantSpec\(symmetric=False, signed=False\)\)
tuned = study\.with_plan\(plan\)""",
        history.code(),
    )
    weight = history.then(history.plan.with_range("stem.weight", -0.5, torch.tensor([0.5, 0.25]))).code("mine")
    assert weight.startswith("import qkit\nimport torch\n\nplan = mine.plan\nplan = plan.with_range('stem', ")
    assert "spec=qkit.QuantSpec(signed=True, per_channel=True, narrow=True), axis=0)" in weight
    assert weight.endswith("tuned = mine.with_plan(plan)")
    assert "'input'" not in weight


def test_the_code_says_what_it_leaves_out() -> None:
    a, b = plans(2)
    for other in (replace(b, bias_bits=16), replace(b, corrections={"tap": (1.0,)})):
        code = History((a,)).then(other).code()
        assert re.search(r"^#.*bias", code, re.MULTILINE)
        exec(code, names := {"study": Holder(a)})
        assert names["plan"] == b  # type: ignore[comparison-overlap]
    assert "#" not in History((a,)).then(b).code()


def test_the_code_of_a_tuned_study_scores_alike() -> None:
    study = studied()
    plan = study.plan.with_range("stem", 0.0, 3.3).with_range("classify", -1.0, 2.0, spec=QuantSpec(6))
    plan = plan.with_range("side.weight", -0.1, 0.2, spec=QuantSpec(7, symmetric=False))
    history = History((study.plan,)).then(plan)
    names: dict[str, Any] = {"study": study}
    exec(history.code(), names)
    tuned = names["tuned"]
    assert isinstance(tuned, Study)
    assert tuned.plan == plan
    assert study.plan == history.base
    lanes = study.evaluate({"plan": plan, "tuned": tuned.plan}, progress=False).lanes
    np.testing.assert_array_equal(lanes["plan"], lanes["tuned"])


def test_the_code_of_a_weight_in_groups_under_a_rule_that_has_channels() -> None:
    """A transposed convolution in groups has a scale for each output channel, and an edited range is one for all."""
    x = torch.randn(2, 4, 3, 3)
    study = Study(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2)).eval(), [x], scheme="int8")
    study.calibrate("minmax", progress=False)
    grid = study.plan["0.weight"]
    assert grid.spec.per_channel
    assert grid.params.scale.shape == (4,)
    history = History((study.plan,)).then(study.plan.with_range("0.weight", -0.1, 0.1))
    assert executed(history) == history.plan


# Figures


SIZE = 200_000


@cache
def values(kind: str) -> Tensor:
    draw = torch.Generator().manual_seed(11)
    normal = torch.randn(SIZE, generator=draw)
    made = {
        "normal": normal,
        "relu": normal.relu(),
        "relu6": (normal * 4).clamp(0, 6),
        "laplace": torch.sign(normal) * -torch.log(torch.rand(SIZE, generator=draw).clamp(min=1e-9)),
        "shifted": normal * 0.5 + 3.0,
        "tiny": normal * 1e-5,
    }
    return made[kind]


KINDS = ["normal", "relu", "relu6", "laplace", "shifted", "tiny"]


def measured(rows: list[Tensor], params: QuantParams) -> Figures:
    """The figures of the tensor itself by torch's fake quantization and float64 sums; `rows` are its channels."""
    flat = torch.stack(rows)
    params = replace(params, axis=None if params.axis is None else 0)
    y = rounded_by_torch(flat, params)
    scale, zero = params.scale, params.zero_point
    if params.axis is not None:
        scale, zero = scale[:, None], zero[:, None]
    x = flat.double()
    squared = (y.double() - x).square()
    low, high = (params.qmin - zero - 0.5) * scale.double(), (params.qmax - zero + 0.5) * scale.double()
    beyond = (x < low) | (x > high)
    codes = quantize(flat, params).int()
    used = max(int(row.max() - row.min()) + 1 for row in (codes if params.axis is not None else [codes]))
    noise, signal = float(squared.sum()), float(x.square().sum())
    return Figures(
        float(beyond.double().mean()),
        float(squared[~beyond].sum() / x.numel()) ** 0.5,
        float(squared[beyond].sum() / x.numel()) ** 0.5,
        math.inf if noise == 0 else 10 * math.log10(signal / noise),
        used,
        params.qmax - params.qmin + 1,
    )


def alike(found: Figures, truth: Figures) -> None:
    """Equal up to what bins leave open.

    The mean of n squared rounding errors, each uniform on a step, has a relative deviation of sqrt(4/5/n): 0.2 % of n = 200 000,
    and bins that span several codes know the expectation alone. Five such deviations are 1 % of the power, 0.05 dB. A bin is 1/128
    wide, so that of 200 000 smooth values at most 0.002 lie in the one across an end. Their errors on either side are half a step
    alike, and move between rounding and clipping: 1 % of both together again.
    """
    power = truth.rounding**2 + truth.clipping**2
    assert found.sqnr == pytest.approx(truth.sqnr, abs=0.05)
    assert found.clipped == pytest.approx(truth.clipped, abs=0.002)
    assert found.rounding**2 == pytest.approx(truth.rounding**2, rel=0.01, abs=0.01 * power)
    assert found.clipping**2 == pytest.approx(truth.clipping**2, rel=0.01, abs=0.01 * power)
    assert found.steps == truth.steps
    assert abs(found.used - truth.used) <= (0 if truth.steps <= 256 else 2)  # a float32 product may cross a tie at each end


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(8), QuantSpec(8, symmetric=False), QuantSpec(4, symmetric=False, signed=False), QuantSpec(16), QuantSpec(2),
        QuantSpec(6, signed=True, narrow=True), QuantSpec(8, power_of_two=True), QuantSpec(12, symmetric=False, signed=True),
    ],
    ids=["8", "8 affine", "4 affine", "16", "2", "6 narrow", "8 power of two", "12 affine"],
)  # fmt: skip
def test_figures_are_those_of_the_tensor(kind: str, spec: QuantSpec) -> None:
    x = values(kind)
    histogram = Histogram.of(x)
    clipped = []
    for share in (1.5, 1.0, 0.6, 0.2):
        params = spec.params(min(histogram.min, 0.0) * share, max(histogram.max, 0.0) * share)
        truth = measured([x], params)
        alike(figures([histogram], params), truth)
        clipped.append(truth.clipped)
    assert clipped[0] == 0
    assert clipped[-1] > 0.001, "the last range clips"


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    "spec",
    [
        QuantSpec(8, signed=True, per_channel=True, narrow=True), QuantSpec(8, symmetric=False, per_channel=True),
        QuantSpec(4, per_channel=True, power_of_two=True), QuantSpec(16, signed=True, per_channel=True),
    ],
    ids=["8 narrow", "8 affine", "4 power of two", "16"],
)  # fmt: skip
def test_figures_per_channel_are_those_of_the_tensor(spec: QuantSpec, axis: int) -> None:
    """Channels of very different reach, as depthwise weights are, each with a grid of its own."""
    x = torch.stack([values("normal"), values("laplace") * 30, values("shifted") * 0.01, values("relu")])
    histograms = [Histogram.of(row) for row in x]
    for share in (1.0, 0.5):
        params = spec.params(x.amin(1).double().clamp(max=0) * share, x.amax(1).double() * share, axis=axis)
        truth = measured(list(x), params)
        found = figures(histograms, params)
        alike(found, truth)
        each = [figures([h], p) for h, p in zip(histograms, channel_params(params), strict=True)]
        assert found.used == max(f.used for f in each)
        assert found.clipped == pytest.approx(np.mean([f.clipped for f in each]))


def test_figures_weigh_channels_by_their_elements() -> None:
    small, large = torch.full((10,), 0.3), torch.full((990,), 0.6)
    params = QuantSpec(8, per_channel=True, signed=True).params(-torch.tensor([0.1, 1.0]), torch.tensor([0.1, 1.0]), axis=0)
    found = figures([Histogram.of(small), Histogram.of(large)], params)
    # the grid of the first ends at 0.1, that of the second has 0.6 = 76.2 steps of 1/127: 76 of them
    excess, inside = (0.3 - 0.1) ** 2 * 10 / 1000, (0.6 - 76 / 127) ** 2 * 990 / 1000
    assert found.clipped == pytest.approx(0.01)
    assert found.clipping == pytest.approx(excess**0.5, rel=1e-4)
    assert found.rounding == pytest.approx(inside**0.5, rel=1e-3)
    signal = (0.3**2 * 10 + 0.6**2 * 990) / 1000
    assert found.sqnr == pytest.approx(10 * math.log10(signal / (excess + inside)), abs=1e-3)
    assert (found.used, found.steps) == (1, 256)


def test_figures_of_values_on_the_grid_are_without_error() -> None:
    params = QuantSpec(8, symmetric=False).params(0.0, 255.0)
    found = figures([Histogram.of(torch.arange(0.0, 256.0))], params)
    assert (found.clipped, found.clipping) == (0.0, 0.0)
    assert found.rounding == pytest.approx(0.0, abs=1e-6)
    assert (found.used, found.steps) == (256, 256)
    zero = figures([Histogram.of(torch.zeros(9))], params)
    assert (zero.clipped, zero.rounding, zero.clipping, zero.sqnr, zero.used) == (0.0, 0.0, 0.0, math.inf, 1)


@pytest.mark.parametrize(("channels", "given"), [(None, 0), (None, 2), (3, 2), (3, 1), (3, 4)])
def test_as_many_histograms_as_grids_are_needed(channels: int | None, given: int) -> None:
    one = Histogram.of(torch.ones(3))
    spec = QuantSpec(8, per_channel=channels is not None)
    params = spec.params(-1.0, 1.0) if channels is None else spec.params(-torch.ones(channels), torch.ones(channels), axis=0)
    with pytest.raises(PlanError, match=rf"\b{channels or 1} grids.* {given}\b"):
        figures([one] * given, params)


def test_a_grid_for_each_channel() -> None:
    params = QuantSpec(8, symmetric=False).params(torch.tensor([-1.0, 0.0, -3.0]), torch.tensor([1.0, 5.0, 0.0]), axis=2)
    each = channel_params(params)
    assert [p.axis for p in each] == [None] * 3
    assert [float(p.scale) for p in each] == params.scale.tolist()
    assert [int(p.zero_point) for p in each] == params.zero_point.tolist()
    assert {(p.qmin, p.qmax) for p in each} == {(params.qmin, params.qmax)}


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=40),
    specs.filter(lambda s: not s.per_channel),
    st.floats(-100.0, 0.0),
    st.floats(0.0, 100.0),
)
@settings(deadline=None, max_examples=200)
def test_codes_used_are_those_between_the_extreme_codes(data: list[float], spec: QuantSpec, low: float, high: float) -> None:
    x = torch.tensor(data)
    params = spec.params(low, high)
    codes = torch.unique(quantize(x, params).int())
    found = codes_used(Histogram.of(x), params)
    # quantize multiplies by the reciprocal in float32, which may carry an extreme across a tie
    steps = torch.tensor([float(x.min()), float(x.max())], dtype=torch.float64) / params.scale.double()
    close = ((steps - steps.floor() - 0.5).abs() <= steps.abs() * 2.0**-22).sum()
    assert abs(found - (int(codes.max() - codes.min()) + 1)) <= int(close)
    assert 1 <= found <= params.qmax - params.qmin + 1


@pytest.mark.parametrize("kind", KINDS)
def test_codes_used_of_a_tensor(kind: str) -> None:
    x = values(kind)
    for spec in (QuantSpec(8), AFFINE, QuantSpec(3), QuantSpec(8, power_of_two=True)):
        for share in (3.0, 1.0, 0.3):
            params = spec.params(min(float(x.min()), 0.0) * share, float(x.max()) * share)
            codes = torch.unique(quantize(x, params).int())
            assert codes_used(Histogram.of(x), params) == int(codes.max() - codes.min()) + 1


# Rules and ends


def test_the_rule_with_changes() -> None:
    spec = QuantSpec(8, signed=True, per_channel=True, narrow=True)
    grid = Grid(spec, spec.params(-torch.ones(2), torch.ones(2), axis=0), "mse", weight=True)
    assert rule_of(grid) == spec
    assert rule_of(grid, bits=4, power_of_two=True) == replace(spec, bits=4, power_of_two=True)
    affine = rule_of(grid, symmetric=False)
    assert (affine.symmetric, affine.narrow) == (False, False), "an affine grid uses every code"
    assert affine == replace(spec, symmetric=False, narrow=False)
    assert rule_of(replace(grid, spec=affine), symmetric=True) == replace(spec, narrow=False)
    assert grid.spec is spec
    with pytest.raises(PlanError, match=r"bits=17\b.*\b2\b.*\b16\b"):
        rule_of(grid, bits=17)
    with pytest.raises(TypeError):
        rule_of(grid, bitz=8)


@given(
    specs.filter(lambda s: not s.per_channel),
    st.sampled_from(["lo", "hi"]),
    st.floats(-1e6, 1e6),
    st.floats(-1e6, -0.0) | st.floats(-1e-6, -0.0),
    st.floats(0.0, 1e6) | st.floats(0.0, 1e-6),
)
@settings(deadline=None, max_examples=200)
def test_a_moved_end_is_where_it_was_put_and_the_range_contains_0(
    spec: QuantSpec, end: str, value: float, low: float, high: float
) -> None:
    before = spec.params(low, high)
    lo, hi = float(before.lo), float(before.hi)
    new_lo, new_hi = moved_end(spec, end, value, lo, hi)
    assert new_lo <= 0.0 <= new_hi
    assert new_hi > new_lo, "the range does not vanish"
    moved, other, kept = (new_lo, new_hi, hi) if end == "lo" else (new_hi, new_lo, lo)
    after = spec.params(new_lo, new_hi)
    if spec.symmetric and lo < 0:
        assert abs(moved) == pytest.approx(abs(value), rel=1e-12, abs=2.0**-100)
        assert other * (lo if end == "lo" else hi) == pytest.approx(moved * kept), "the other end keeps pace"
        assert (after.qmin, after.qmax) == (before.qmin, before.qmax)
        if not spec.power_of_two:
            assert (float(after.lo), float(after.hi)) == pytest.approx((new_lo, new_hi), rel=1e-6), "the grid ends there"
    else:
        crosses = value > 0 if end == "lo" else value < 0
        assert moved == pytest.approx(0.0 if crosses else value, abs=2.0**-100), "an end stops at 0"
        assert other == kept, "the other end stays"


@pytest.mark.parametrize(
    ("spec", "end", "value", "old", "expected"),
    [
        (QuantSpec(8), "lo", -3.0, (-1.0, 1.0), (-3.0, 3.0)),
        (QuantSpec(8), "hi", 0.5, (-1.0, 1.0), (-0.5, 0.5)),
        (QuantSpec(8), "hi", -0.5, (-1.0, 1.0), (-0.5, 0.5)),
        (QuantSpec(8), "hi", 4.0, (0.0, 6.0), (0.0, 4.0)),
        (QuantSpec(8), "hi", -4.0, (0.0, 6.0), (0.0, 2.0**-100)),
        (QuantSpec(8), "lo", -2.56, (-1.28, 1.27), (-2.56, 2.54)),
        (QuantSpec(8), "hi", 0.0, (-1.0, 1.0), (-(2.0**-100), 2.0**-100)),
        (AFFINE, "lo", -3.0, (-1.0, 2.0), (-3.0, 2.0)),
        (AFFINE, "lo", 3.0, (-1.0, 2.0), (0.0, 2.0)),
        (AFFINE, "hi", 0.25, (-1.0, 2.0), (-1.0, 0.25)),
        (AFFINE, "lo", -1.0, (1.0, 2.0), (-1.0, 2.0)),
        (AFFINE, "hi", 5.0, (1.0, 2.0), (0.0, 5.0)),
        (AFFINE, "lo", -5.0, (-2.0, -1.0), (-5.0, 0.0)),
    ],
)
def test_moved_ends(spec: QuantSpec, end: str, value: float, old: tuple[float, float], expected: tuple[float, float]) -> None:
    assert moved_end(spec, end, value, *old) == pytest.approx(expected, abs=1e-29)


@pytest.mark.parametrize(
    ("spec", "end", "old", "expected"),
    [
        (QuantSpec(8), "hi", (-1.0, 1.0), (-0.25, 0.25)),
        (QuantSpec(8), "hi", (0.0, 6.0), (0.0, 0.25)),
        (AFFINE, "lo", (-1.0, 0.0), (-0.25, 0.0)),
        (AFFINE, "lo", (-1.0, 0.1), (-0.15, 0.1)),
        (AFFINE, "lo", (-1.0, 2.0), (0.0, 2.0)),
        (AFFINE, "hi", (-0.125, 5.0), (-0.125, 0.125)),
    ],
)
def test_a_range_is_not_narrower_than_the_least(
    spec: QuantSpec, end: str, old: tuple[float, float], expected: tuple[float, float]
) -> None:
    assert moved_end(spec, end, 0.0, *old, least=0.25) == pytest.approx(expected)


# What the methods would choose


@cache
def data() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(32, 3, 16, 16, generator=draw)
    x[3, 1, 2, 2] = 40.0  # so that the methods differ
    with torch.no_grad():
        y = mixed_network()(x).argmax(1)
    return list(zip(x.split(8), y.split(8), strict=True))


@cache
def studied() -> Study:
    study = Study(mixed_network(), data(), data(), scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    return study


WEIGHTS = ["stem.weight", "depthwise.weight", "project.weight", "side.weight", "classify.weight"]


def calibrated(scheme: Scheme | str, method: str, **options: Any) -> Plan:
    """By a study that knows nothing of the one that suggests."""
    return Study(mixed_network(), data(), data(), scheme=scheme).calibrate(
        method, weight_method=options.pop("weight_method", "minmax"), progress=False, **options
    )


@pytest.mark.parametrize("method", METHODS)
def test_suggestions_are_what_calibrating_by_the_method_gives(method: str) -> None:
    study = studied()
    by_taps, by_weights = calibrated("int8-per-tensor", method), calibrated("int8-per-tensor", "minmax", weight_method=method)
    for tensors, plan in ((READS, by_taps), (WEIGHTS, by_weights)):
        for tensor in tensors:
            found = suggestions(study, tensor, study.plan[tensor].spec)
            assert list(found) == list(METHODS)
            assert found[method] == plan[tensor]  # type: ignore[index]
    assert study.plan == calibrated("int8-per-tensor", "minmax"), "they are suggestions"


def test_the_methods_suggest_different_ranges() -> None:
    found = suggestions(studied(), "input", studied().plan["input"].spec)
    assert len({grid.params for grid in found.values()}) == len(METHODS)
    assert float(found["minmax"].params.hi) == pytest.approx(40.0, rel=0.01)


@pytest.mark.parametrize("percentile", [99.0, 99.9])
def test_suggestions_with_another_percentile(percentile: float) -> None:
    plan = calibrated("int8-per-tensor", "percentile", weight_method="percentile", percentile=percentile)
    for tensor in ("input", "side", "side.weight"):
        found = suggestions(studied(), tensor, plan[tensor].spec, percentile)
        assert found["percentile"] == plan[tensor]
        assert found["percentile"] != suggestions(studied(), tensor, plan[tensor].spec)["percentile"]


@pytest.mark.parametrize(
    ("tensor", "spec"),
    [
        ("stem", QuantSpec(4)),
        ("classify", QuantSpec(6, power_of_two=True)),
        ("project.weight", QuantSpec(8, symmetric=False, signed=False)),
    ],
)
def test_suggestions_under_another_rule_than_the_plans(tensor: str, spec: QuantSpec) -> None:
    scheme = replace(PRESETS["int8-per-tensor"], name="mine", overrides={tensor: spec})
    found = suggestions(studied(), tensor, spec)
    assert list(found) == list(METHODS)
    for method, grid in found.items():
        assert grid == calibrated(scheme, method, weight_method=method)[tensor]


@pytest.mark.slow
def test_methods_that_are_not_defined_are_left_out() -> None:
    per_channel = PRESETS["int8"].weight
    assert per_channel is not None
    for weight in WEIGHTS:
        found = suggestions(studied(), weight, per_channel)
        assert list(found) == ["minmax", "mse"]
        for method, grid in found.items():
            assert grid == calibrated("int8", "minmax", weight_method=method)[weight]
    with pytest.raises(PlanError, match=r"minmax.*mse.*percentile.*weight_method="):
        calibrated("int8", "minmax", weight_method="percentile")
    wide = suggestions(studied(), "stem", QuantSpec(16, symmetric=False))
    assert list(wide) == [m for m in METHODS if m != "entropy"], "entropy is defined up to 8 bits"
    channels = suggestions(studied(), "stem", QuantSpec(8, symmetric=False, per_channel=True))
    assert list(channels) == ["minmax"], "only the extremes of channels are observed"
    assert channels["minmax"].params.axis == 1


def test_no_suggestions_for_what_is_not_there() -> None:
    with pytest.raises(GraphError, match="'nowhere'"):
        suggestions(studied(), "nowhere", AFFINE)


# A histogram for each channel


@pytest.mark.parametrize("name", WEIGHTS)
def test_channel_histograms_are_of_the_channels(name: str) -> None:
    weight = studied().graph.weights[name]
    found = Histogram.of_channels(weight, 0)
    assert len(found) == weight.shape[0]
    same([row for row in weight], found)  # noqa: C416


@pytest.mark.parametrize("shape", [(5,), (3, 7), (4, 2, 3, 3), (2, 6, 1, 5), (3, 4, 5)])
@pytest.mark.parametrize("memory", ["contiguous", "moved"])
def test_channel_histograms_along_any_axis(shape: tuple[int, ...], memory: str) -> None:
    weight = torch.randn(shape)
    if memory == "moved" and len(shape) > 2:
        weight = weight.movedim(1, -1).contiguous().movedim(-1, 1)
    before = weight.clone()
    for axis in range(len(shape)):
        found = Histogram.of_channels(weight, axis)
        assert len(found) == shape[axis]
        same([weight.select(axis, i) for i in range(shape[axis])], found)
    assert torch.equal(weight, before)


def same(channels: list[Tensor], found: list[Histogram]) -> None:
    """Counts by numpy, of the upper halves of the floats."""
    for channel, histogram in zip(channels, found, strict=True):
        values = channel.contiguous().numpy().reshape(-1)
        keys, counts = np.unique((values.view(np.uint32) >> 16).astype(np.uint16), return_counts=True)
        order = np.argsort(histogram.keys)
        np.testing.assert_array_equal(histogram.keys[order], keys)
        np.testing.assert_array_equal(histogram.counts[order], counts)
        assert (histogram.min, histogram.max) == (float(values.min()), float(values.max()))


def test_the_float_plan_has_no_code_to_write() -> None:
    assert executed(History((FLOAT,))) == FLOAT
