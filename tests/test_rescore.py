"""The score of an edited plan from the changed step on: equal to the whole run, and no step more than needed."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import READS, mixed_network, plain_run
from torch import Tensor, nn

import qkit.rescore
from qkit.calibration import make_plan, observe
from qkit.errors import DataError, QkitError
from qkit.graph import Graph, build
from qkit.lanes import Lane, run_lanes
from qkit.plan import FLOAT, Plan
from qkit.rescore import first_difference, prefix
from qkit.schemes import PRESETS
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
    return next(s.index for s in graph.steps if tensor in (s.name, s.weight))


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
    with pytest.raises(QkitError, match="at step 3 cannot go back to step 2"):
        prefix(graph, batches, plan, 3, margin).advanced(2)


def test_what_differs_where() -> None:
    graph, plan, _ = setting()
    assert first_difference(graph, plan, plan) is None
    assert first_difference(graph, plan, Plan.from_dict(plan.to_dict())) is None
    assert first_difference(graph, FLOAT, plan) == 0
    assert first_difference(graph, plan, plan.without(["side.weight"])) == graph.step("side").index
    # the input's grid decides the first bias too, but the input comes first
    assert first_difference(graph, plan, plan.without(["input"])) == 0
    # without its input's grid only the bias of a layer differs
    spared = plan.only(["input", "stem.weight"])
    assert first_difference(graph, spared, plan.only(["stem.weight"])) == 0
    from dataclasses import replace

    narrow = replace(plan, bias_bits=8)
    assert first_difference(graph, plan, narrow) == graph.step("stem").index


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
            patched.setattr(qkit.rescore, "run_lanes", counting)
            executed.clear()
            kept.scores(edited)
        assert executed == Counter({s.name: len(batches) for s in graph.steps[index:]})


def test_kept_values_are_those_that_later_steps_read() -> None:
    graph, plan, batches = setting()
    index = graph.step(":add").index
    kept = prefix(graph, batches, plan, index, margin)
    # the residual and the projection, 8 channels of 16 × 16 floats each
    assert kept.nbytes == SAMPLES * 2 * 8 * 16 * 16 * 4
    assert prefix(graph, batches, plan, index, margin, limit=1).nbytes == kept.nbytes * 4 // SAMPLES


def test_agreement_is_with_the_float_lane() -> None:
    graph, plan, batches = setting()
    edited = plan.with_range("stem", 0.0, 1.0)
    inputs = [x for x, _ in batches]
    scores = prefix(graph, inputs, plan, graph.step("stem").index, "agreement").scores(edited)
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
    with pytest.raises(DataError, match="gave no batch"):
        prefix(graph, [], plan, 3, margin)
