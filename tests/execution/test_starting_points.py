"""Scores computed from a point inside the network are those computed from its inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qkit import Study
from qkit.execution.evaluator import Evaluator
from qkit.execution.sensitivity import sweep


class TwoInputs(nn.Module):
    """Reads its second input behind a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.last((torch.relu(self.second(torch.relu(self.first(x)))) + y).mean((2, 3)))


def _one_input() -> Study:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    return Study(model, [torch.randn(24, 3, 8, 8) for _ in range(2)], metric="agreement")


def _two_inputs() -> Study:
    batches = [((torch.randn(24, 3, 8, 8), torch.randn(24, 4, 8, 8)), torch.randint(0, 10, (24,))) for _ in range(2)]
    return Study(TwoInputs(), batches)


@pytest.mark.parametrize("make", [_one_input, _two_inputs])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_edited_grid_scores_alike_from_anywhere(make, at):
    study = make()
    edited = study.plan.with_range(study.graph.taps[at], -0.02, 0.02)
    # another evaluator keeps no values of the first one
    whole = Evaluator(study.graph, study.evaluation, study.metric).scores({"edited": edited}, progress=False)["edited"]
    quick = study.score(edited)
    assert quick.n == 48
    assert quick.value == whole.mean() < 1.0


@pytest.mark.parametrize("make", [_one_input, _two_inputs])
@pytest.mark.parametrize("mode", ["only", "except"])
def test_sweep_in_small_groups_is_the_sweep_in_one(make, mode):
    study = make()
    options = {"progress": False}
    whole = sweep(Evaluator(study.graph, study.evaluation, study.metric), study.plan, mode, **options)
    grouped = sweep(Evaluator(study.graph, study.evaluation, study.metric), study.plan, mode, memory_budget=0, **options)
    assert np.array_equal(whole.scores, grouped.scores)
    assert np.array_equal(whole.base, grouped.base)
