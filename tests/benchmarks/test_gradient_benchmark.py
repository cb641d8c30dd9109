"""The benchmark of the ranking by gradients: a row has its correlations and its cost, and says whether both are reached."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from benchmarks.gradient import Row, measure
from benchmarks.timing import Ratio


def test_a_row_of_a_small_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
        model = nn.Sequential(*layers).eval()
        images = [torch.randn(16, 3, 12, 12) for _ in range(2)]
    row = measure("small", model, images, images, scheme="int8-per-tensor", repeats=1)
    assert (row.network, row.samples, row.tensors) == ("small", 32, 7)
    assert min(row.weights, row.activations, row.together) > 0.5
    assert row.cost.median > 0


def test_both_targets_have_to_be_reached() -> None:
    good = Row("a", 1, 1, 0.95, 0.95, 0.95, Ratio(9.0, 8.0, 12.0))
    assert good.met
    assert not replace(good, activations=0.89).met
    assert not replace(good, cost=Ratio(10.5, 9.0, 12.0)).met
