"""The score of an edited plan from the changed step on: equal to the whole run, and no step more than needed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import READS, mixed_network, plain_run
from torch import Tensor, nn

import qkit.execution.lanes
import qkit.execution.prefix
from qkit.errors import DataError, QkitError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.execution.prefix import Effect, agree, first_difference, prefix
from qkit.graph import Graph, build
from qkit.graph.operation import Operation
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import PRESETS
from qkit.study import Study

SAMPLES = 10


def margin(outputs: Tensor, targets: Any) -> Tensor:
    """A continuous score, so that a difference anywhere shows: the target's logit less the mean."""
    return outputs.gather(1, torch.as_tensor(targets)[:, None])[:, 0] - outputs.mean(1)


@cache
def setting() -> tuple[Graph, Plan, list[tuple[Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(2)
    x, y = torch.randn(SAMPLES, 3, 16, 16, generator=draw), torch.randint(0, 5, (SAMPLES,), generator=draw)
    batches = list(zip(x.split(4), y.split(4), strict=True))
    graph = build(mixed_network(), x[:2])
    plan = make_plan(graph, observe(graph, batches, progress=False), PRESETS["int8"])
    return graph, plan, batches


def whole(plan: Plan) -> np.ndarray:
    """Scores from the input on, batch by batch."""
    graph, _, batches = setting()
    parts = [margin(run_lanes(graph, [Lane("whole", plan)], (x,))["whole"], y) for x, y in batches]
    return torch.cat(parts).double().numpy()


def edits(plan: Plan) -> dict[str, Plan]:
    """One edit of every tensor."""
    changed = {}
    for name, grid in plan.grids.items():
        lo, hi = grid.params.lo, grid.params.hi
        changed[name] = plan.with_range(name, lo * 0.5, hi * 0.5)
    return changed


def first_reader(graph: Graph, tensor: str) -> int:
    return next(s.index for s in graph.operations if tensor in (s.name, s.weight))


@pytest.mark.parametrize("tensor", [*READS, "stem.weight", "side.weight", "classify.weight"])
def test_edited_plan_scores_like_the_whole_run(tensor: str) -> None:
    graph, plan, batches = setting()
    edited = edits(plan)[tensor]
    first = first_difference(graph, plan, edited)
    assert first == first_reader(graph, tensor)
    kept = prefix(graph, batches, plan, first, margin)
    scores = kept.scores(edited)
    assert np.array_equal(scores, whole(edited))
    assert not np.array_equal(scores, whole(plan))
    assert np.array_equal(kept.scores(plan), whole(plan))
    x = torch.cat([x for x, _ in batches])
    y = torch.cat([y for _, y in batches])
    plain = margin(plain_run(mixed_network(), x, edited)["classify"], y)
    np.testing.assert_allclose(scores, plain.double(), atol=3 * float(plan.grids["classify"].params.scale))


@given(st.data())
@settings(deadline=None, max_examples=20)
def test_a_kept_prefix_serves_every_later_edit(data: st.DataObject) -> None:
    graph, plan, batches = setting()
    chosen = data.draw(st.sets(st.sampled_from(sorted(plan.grids)), min_size=1, max_size=3), label="tensors")
    edited = plan
    for tensor in chosen:
        edited = edited.with_grid(tensor, edits(plan)[tensor].grids[tensor])
    first = min(first_reader(graph, tensor) for tensor in chosen)
    assert first_difference(graph, plan, edited) == first
    kept = prefix(graph, batches, plan, data.draw(st.integers(0, first), label="index"), margin)
    assert np.array_equal(kept.scores(edited), whole(edited))
    onward = kept.advanced(data.draw(st.integers(kept.index, first), label="advanced"))
    assert np.array_equal(onward.scores(edited), whole(edited))
    assert np.array_equal(kept.scores(edited), whole(edited)), "the earlier one stays as it was"


def test_a_prefix_does_not_go_back() -> None:
    graph, plan, batches = setting()
    with pytest.raises(QkitError, match=r"\b3\b.*\b2\b"):
        prefix(graph, batches, plan, 3, margin).advanced(2)


def test_what_differs_where() -> None:
    graph, plan, _ = setting()
    assert first_difference(graph, plan, plan) is None
    assert first_difference(graph, plan, Plan.from_dict(plan.to_dict())) is None
    assert first_difference(graph, FLOAT, plan) == 0
    assert first_difference(graph, plan, plan.without(["side.weight"])) == graph.operation("side").index
    # the input's grid decides the first bias too, but the input comes first
    assert first_difference(graph, plan, plan.without(["input"])) == 0
    # without its input's grid only the bias of a layer differs
    spared = plan.only(["input", "stem.weight"])
    assert first_difference(graph, spared, plan.only(["stem.weight"])) == 0
    from dataclasses import replace

    narrow = replace(plan, bias_bits=8)
    assert first_difference(graph, plan, narrow) == graph.operation("stem").index


def test_only_the_steps_behind_the_change_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, plan, batches = setting()
    executed: Counter[str] = Counter()

    def counting(*args: Any, **kwargs: Any) -> Any:
        return run_lanes(*args, **kwargs, executed=executed)

    for tensor in ("input", "depthwise", ":cat", "classify.weight"):
        edited = edits(plan)[tensor]
        index = first_difference(graph, plan, edited)
        kept = prefix(graph, batches, plan, index, margin)
        with monkeypatch.context() as patched:
            patched.setattr(qkit.execution.prefix, "run_lanes", counting)
            executed.clear()
            kept.scores(edited)
        assert executed == Counter({s.name: len(batches) for s in graph.operations[index:]})


def test_kept_values_are_those_that_later_steps_read() -> None:
    graph, plan, batches = setting()
    index = graph.operation(":add").index
    kept = prefix(graph, batches, plan, index, margin)
    # the residual and the projection, 8 channels of 16 × 16 floats each
    assert kept.nbytes == SAMPLES * 2 * 8 * 16 * 16 * 4
    assert prefix(graph, batches, plan, index, margin, limit=1).nbytes == kept.nbytes * 4 // SAMPLES


def test_agreement_is_with_the_float_lane() -> None:
    graph, plan, batches = setting()
    edited = plan.with_range("stem", 0.0, 1.0)
    inputs = [x for x, _ in batches]
    scores = prefix(graph, inputs, plan, graph.operation("stem").index, "agreement").scores(edited)
    x = torch.cat(inputs)
    expected = mixed_network()(x).argmax(1) == run_lanes(graph, [Lane("e", edited)], (x,))["e"].argmax(1)
    assert np.array_equal(scores, expected.double())
    assert 0 < scores.mean() < 1


def test_an_input_that_is_read_late_is_there() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, late: Tensor) -> Tensor:
            return (self.one(x) + self.two(late)).mean((2, 3))

    model = Late()
    pair = (torch.randn(4, 3, 4, 4), torch.randn(4, 3, 4, 4))
    batches = [(pair, torch.zeros(4, dtype=torch.long))]
    graph = build(model, pair)
    plan = make_plan(graph, observe(graph, batches, progress=False), PRESETS["int8"])
    for tensor in plan.grids:
        edited = edits(plan)[tensor]
        kept = prefix(graph, batches, plan, first_difference(graph, plan, edited), margin)
        expected = margin(run_lanes(graph, [Lane("e", edited)], pair)["e"], batches[0][1])
        assert np.array_equal(kept.scores(edited), expected.double())


def test_study_scores_edits_in_any_order() -> None:
    _, _, batches = setting()
    study = Study(mixed_network(), batches, batches, metric=margin)
    study.calibrate("minmax", progress=False)
    changed = edits(study.plan)
    for tensor in (":cat", "classify", "input", "stem.weight", "side", "input"):
        value = study.score(changed[tensor]).value
        assert value == pytest.approx(whole(changed[tensor]).mean(), abs=1e-12), tensor
        assert value == study.evaluate({"edited": changed[tensor]}, progress=False)["edited"].value
    assert study.score(changed["side"], batches=1).value == pytest.approx(whole(changed["side"])[:4].mean(), abs=1e-12)
    assert study.score(changed["side"]).value == pytest.approx(whole(changed["side"]).mean(), abs=1e-12)


def test_an_empty_loader_is_an_error() -> None:
    graph, plan, _ = setting()
    with pytest.raises(DataError, match=r"evaluation.*batch"):
        prefix(graph, [], plan, 3, margin)


# What an edit does to the tap, to the output and to the score


TENSORS = [*READS, "stem.weight", "depthwise.weight", "project.weight", "side.weight", "classify.weight"]


def decibels(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Signal to noise of (exact, other), summed in float64 over all of them."""
    signal = sum(float(a.double().square().sum()) for a, _ in pairs)
    noise = sum(float((b.double() - a.double()).square().sum()) for a, b in pairs)
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


def by_hand(plan: Plan, tensor: str) -> tuple[float, float, float]:
    """Local, layer and output figures from whole runs of three lanes."""
    graph, _, batches = setting()
    tap = graph.operation(tensor).name
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {"local": [], "edited": []}
    ends = []

    def look(op: Operation, values: Any) -> None:
        if op.name == tap:
            for lane, pairs in seen.items():
                pairs.append((values["float"].clone(), values[lane].clone()))

    for x, _ in batches:
        lanes = [Lane("float"), Lane("local", plan, reads="float"), Lane("edited", plan)]
        outputs = run_lanes(graph, lanes, (x,), observe=look)
        ends.append((outputs["float"], outputs["edited"]))
    return decibels(seen["local"]), decibels(seen["edited"]), decibels(ends)


def fresh_study(metric: Any = margin) -> Study:
    _, _, batches = setting()
    study = Study(mixed_network(), batches, batches, metric=metric)
    study.calibrate("minmax", progress=False)
    return study


def captured(study: Study, plan: Plan) -> pd.DataFrame:
    return study.capture({"edited": plan}, batches=None, progress=False).table()["edited"]


def same_effect(found: Effect, expected: Effect) -> None:
    assert found.tap == expected.tap
    assert (found.local, found.layer, found.output) == pytest.approx((expected.local, expected.layer, expected.output), abs=1e-6)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("tensor", TENSORS)
def test_an_effect_is_what_whole_runs_show(tensor: str) -> None:
    study = fresh_study()
    edited = edits(study.plan)[tensor]
    found = study.effect(tensor, edited)
    tap = study.graph.operation(tensor).name
    table = captured(study, edited)
    assert found.tap == tap
    assert found.local == pytest.approx(table.loc[tap, "local sqnr"], abs=1e-3)
    assert found.layer == pytest.approx(table.loc[tap, "sqnr"], abs=1e-3)
    assert found.output == pytest.approx(table.loc["classify", "sqnr"], abs=1e-3)
    assert (found.local, found.layer, found.output) == pytest.approx(by_hand(edited, tensor), abs=1e-3)
    assert np.array_equal(found.scores, whole(edited))
    assert study.score(edited).value == found.scores.mean()
    assert study.evaluate({"edited": edited}, progress=False)["edited"] == study.score(edited)
    # and the edit does something: other figures than before it
    assert study.effect(tensor).local < 100
    assert found.local != study.effect(tensor).local


def test_the_effect_without_an_edit_is_that_of_the_studys_own_lane() -> None:
    study = fresh_study()
    table = study.capture(("float", "int8"), batches=None, progress=False).table()["int8"]
    for tensor in TENSORS:
        found = study.effect(tensor)
        tap = study.graph.operation(tensor).name
        assert (found.local, found.layer) == pytest.approx((table.loc[tap, "local sqnr"], table.loc[tap, "sqnr"]), abs=1e-3)
        assert found.output == pytest.approx(table.loc["classify", "sqnr"], abs=1e-3)
        assert np.array_equal(found.scores, whole(study.plan))
    assert study.effect("input").local == study.effect("input").layer, "nothing comes before it"
    assert study.effect("classify").layer == study.effect("classify").output


def test_a_plan_that_does_nothing_has_no_error() -> None:
    study = fresh_study()
    for tensor in ("input", ":add", "classify.weight"):
        found = study.effect(tensor, FLOAT)
        assert (found.local, found.layer, found.output) == (math.inf,) * 3
        assert np.array_equal(found.scores, whole(FLOAT))
    late = study.plan.only(["classify"])
    found = study.effect("stem", late)
    assert (found.local, found.layer) == (math.inf, math.inf)
    assert found.output == pytest.approx(by_hand(late, "stem")[2], abs=1e-3)


def test_an_effect_over_some_batches() -> None:
    study = fresh_study()
    edited = edits(study.plan)["side"]
    found = study.effect("side", edited, batches=2)
    assert np.array_equal(found.scores, whole(edited)[:8])
    assert study.score(edited, batches=2).n == 8
    assert study.score(edited).value == whole(edited).mean(), "its scores are not taken for those of all batches"
    table = study.capture({"edited": edited}, batches=2, progress=False).table()["edited"]
    assert found.layer == pytest.approx(table.loc["side", "sqnr"], abs=1e-3)
    assert np.array_equal(study.effect("side", edited).scores, whole(edited)), "another number of batches is another prefix"
    same_effect(study.effect("side", edited, batches=2), found)


@pytest.mark.slow
def test_effects_in_any_order_are_those_of_a_new_study() -> None:
    """The tensor moves on, stays and moves back, scores come between, and earlier edits stay in the plan."""
    study = fresh_study()
    changed = edits(study.plan)
    for tensor in ("project", "side.weight", "side", "stem", "classify", "input", ":cat", "stem.weight", ":cat"):
        same_effect(study.effect(tensor, changed[tensor]), fresh_study().effect(tensor, changed[tensor]))
        assert study.score(changed["average"]).value == whole(changed["average"]).mean()
    both = changed["stem"].with_grid("side", changed["side"].grids["side"])
    for tensor in ("side", ":cat", "stem", "side"):
        found = study.effect(tensor, both)
        assert (found.local, found.layer, found.output) == pytest.approx(by_hand(both, tensor), abs=1e-3)
        assert np.array_equal(found.scores, whole(both))
    again = both.with_range("classify", -0.1, 0.1)
    same_effect(study.effect("classify", again), fresh_study().effect("classify", again))


@pytest.mark.slow
@given(st.data())
@settings(deadline=None, max_examples=20)
def test_any_walk_of_edits_has_the_figures_of_whole_runs(data: st.DataObject) -> None:
    study = fresh_study()
    plan = study.plan
    for tensor in data.draw(st.lists(st.sampled_from(TENSORS), min_size=1, max_size=4), label="tensors"):
        grid, factor = plan.grids[tensor].params, data.draw(st.sampled_from([0.25, 0.5, 2.0]), label="factor")
        plan = plan.with_range(tensor, grid.lo * factor, grid.hi * factor)
        found = study.effect(tensor, plan)
        assert (found.local, found.layer, found.output) == pytest.approx(by_hand(plan, tensor), abs=1e-3)
        assert np.array_equal(found.scores, whole(plan))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each step was computed within, whoever asked for it; no lane here shares a run with another."""
    executed: Counter[str] = Counter()
    run_step = qkit.execution.lanes._run_step

    def counting(graph: Graph, op: Operation, *args: Any, **kwargs: Any) -> Any:
        executed[op.name] += 1
        return run_step(graph, op, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(qkit.execution.lanes, "_run_step", counting)
        yield executed


@pytest.mark.parametrize("tensor", ["input", "stem.weight", "depthwise", ":add", ":cat", "classify"])
def test_further_edits_of_a_tensor_compute_nothing_before_it(tensor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    study = fresh_study()
    graph, _, batches = setting()
    index, grid = graph.operation(tensor).index, study.plan.grids[tensor].params
    study.effect(tensor)
    for factor in (0.9, 0.7, 0.3):
        edited = study.plan.with_range(tensor, grid.lo * factor, grid.hi * factor)
        with counted(monkeypatch) as executed:
            found = study.effect(tensor, edited)
        # the tap's own step in float, alone and with what it inherits; whatever follows once
        expected = Counter({s.name: len(batches) for s in graph.operations[index:]})
        expected[graph.operations[index].name] = 3 * len(batches)
        assert executed == expected
        assert np.array_equal(found.scores, whole(edited))
    with counted(monkeypatch) as executed:
        study.score(edited)
    assert not executed, "the effect's scores are kept"


def test_a_later_tensor_starts_from_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    study = fresh_study()
    graph, _, batches = setting()
    study.effect("project", edits(study.plan)["project"])
    here, there = graph.operation("project").index, graph.operation(":cat").index
    with counted(monkeypatch) as executed:
        study.effect(":cat", edits(study.plan)[":cat"])
    between = {s.name: 2 * len(batches) for s in graph.operations[here:there]}  # in float and in the plan's lane
    assert {name: executed[name] for name in between} == between
    assert not set(executed) & {s.name for s in graph.operations[:here]}
    assert executed["classify"] == len(batches)
    with counted(monkeypatch) as executed:
        study.score(study.plan.with_range("average", 0.0, 0.1))
    assert set(executed) == {s.name for s in graph.operations[graph.operation(":cat").index :]}, (
        "a score takes the effect's values"
    )


def test_an_earlier_tensor_starts_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    study = fresh_study()
    graph, _, _ = setting()
    study.effect("classify")
    edited = edits(study.plan)["stem"]
    with counted(monkeypatch) as executed:
        found = study.effect("stem", edited)
    assert set(executed) == {s.name for s in graph.operations}
    same_effect(found, fresh_study().effect("stem", edited))


def test_a_prefix_made_for_scores_alone_has_no_effect() -> None:
    graph, plan, batches = setting()
    index = graph.operation("side").index
    alone = prefix(graph, batches, plan, index, margin)
    assert not alone.has_errors
    with pytest.raises(QkitError, match="errors=True"):
        alone.effect(plan)
    with pytest.raises(QkitError, match="errors=True"):
        alone.advanced(index + 1).effect(plan)
    both = prefix(graph, batches, plan, index, margin, errors=True)
    assert both.has_errors
    assert both.nbytes == 2 * alone.nbytes
    assert np.array_equal(both.scores(plan), alone.scores(plan))


def test_a_score_before_does_not_spoil_the_effect() -> None:
    study = fresh_study()
    edited = edits(study.plan)["side"]
    study.score(edited)
    same_effect(study.effect("side", edited), fresh_study().effect("side", edited))


@pytest.mark.parametrize("tensor", ["depthwise", ":cat", "classify.weight"])
def test_an_advanced_prefix_has_the_same_effect(tensor: str) -> None:
    graph, plan, batches = setting()
    edited, index = edits(plan)[tensor], graph.operation(tensor).index
    direct = prefix(graph, batches, plan, index, margin, errors=True).effect(edited)
    for start in range(index):
        same_effect(prefix(graph, batches, plan, start, margin, errors=True).advanced(index).effect(edited), direct)


def test_an_effect_on_agreement_and_on_inputs_without_targets() -> None:
    graph, plan, batches = setting()
    study = Study(mixed_network(), [x for x, _ in batches])
    study.calibrate("minmax", progress=False)
    edited = plan.with_range("stem", 0.0, 1.0)
    x = torch.cat([x for x, _ in batches])
    expected = mixed_network()(x).argmax(1) == run_lanes(graph, [Lane("e", edited)], (x,))["e"].argmax(1)
    assert np.array_equal(study.effect("stem", edited).scores, expected.double())
    assert 0 < study.effect("stem", edited).scores.mean() < 1


def test_an_output_of_several_tensors_is_judged_as_a_whole() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> dict[str, Any]:
            x = self.body(x).relu()
            return {"one": self.one(x), "rest": (self.two(x) * 30,)}

    draw = torch.Generator().manual_seed(4)
    x = torch.randn(6, 3, 8, 8, generator=draw)
    batches = [(part, torch.zeros(len(part))) for part in x.split(3)]
    study = Study(Heads().eval(), batches, batches, metric=lambda out, _: out["one"].mean((1, 2, 3)))
    study.calibrate("minmax", progress=False)
    edited = study.plan.with_range("body", 0.0, 0.4)
    pairs = []
    for part, _ in batches:
        outputs = run_lanes(study.graph, [Lane("float"), Lane("edited", edited)], (part,))
        exact, other = outputs["float"], outputs["edited"]
        pairs += [(exact["one"], other["one"]), (exact["rest"][0], other["rest"][0])]
    assert study.effect("body", edited).output == pytest.approx(decibels(pairs), abs=1e-3)


def test_a_layer_used_twice_is_edited_from_its_first_use_on() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(self.conv(x).relu())).mean((2, 3))

    x = torch.randn(6, 3, 8, 8)
    batches = [(part, torch.arange(len(part))) for part in x.split(3)]
    study = Study(Twice().eval(), batches, batches, metric=margin)
    study.calibrate("minmax", progress=False)
    edited = study.plan.with_range("conv.weight", -0.05, 0.05)
    found = study.effect("conv.weight", edited)
    outputs = [run_lanes(study.graph, [Lane("edited", edited)], (part,))["edited"] for part, _ in batches]
    expected = torch.cat([margin(out, y) for out, (_, y) in zip(outputs, batches, strict=True)])
    assert np.array_equal(found.scores, expected.double())
    table = captured(study, edited)
    assert found.tap == "conv"
    assert (found.local, found.layer) == pytest.approx((table.loc["conv", "local sqnr"], table.loc["conv", "sqnr"]), abs=1e-3)


@pytest.mark.parametrize("name", ["pool", ":flatten", "output"])
def test_no_effect_at_what_has_no_grid_of_its_own(name: str) -> None:
    study = fresh_study()
    with pytest.raises(QkitError, match=rf"^{name}\b.*grid"):
        study.effect(name)
    with pytest.raises(QkitError, match="'nowhere'"):
        study.effect("nowhere")


def test_where_two_plans_agree() -> None:
    graph, plan, _ = setting()
    last = len(graph.operations)
    for tensor, edited in edits(plan).items():
        first = first_reader(graph, tensor)
        assert [index for index in range(last + 1) if agree(graph, plan, edited, index)] == list(range(first + 1))
        assert agree(graph, edited, plan, first)
    assert agree(graph, plan, Plan.from_dict(plan.to_dict()), last)
    assert agree(graph, plan, FLOAT, 0)
    assert not agree(graph, plan, FLOAT, 1)
