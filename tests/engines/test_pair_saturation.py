"""Pairs of 8-bit products that saturate in 16 bits, as on processors without VNNI: against integers by hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.engines.compare import compare
from qkit.engines.faults import PAIRS
from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.execution.capture import capture
from qkit.execution.loading import batches


def network(kind: str, *, wide: bool) -> nn.Module:
    """Two layers; the second one's weights lie near the ends of their grid, or, if not `wide`, spread around 0."""
    torch.manual_seed(3)
    second: nn.Module = nn.Linear(4 * 8 * 8, 5) if kind == "linear" else nn.Conv2d(4, 5, 3, padding=1)
    between = [nn.Flatten()] if kind == "linear" else []
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), *between, second)
    with torch.no_grad():
        size = 0.9 + 0.1 * torch.rand(second.weight.shape)
        second.weight.copy_(
            torch.sign(torch.randn(second.weight.shape)) * size if wide else 0.05 * torch.randn(second.weight.shape)
        )
        # the largest alone decides a channel's scale
        second.weight.flatten(1)[:, 0] = 1.0
    return model.eval()


def integers(study: qkit.Study, x: Tensor, last: bool, *, saturate: bool) -> Tensor:
    """The second layer's output by int64 sums of pairs, rounded as the plan says."""
    tap = list(study.graph.taps)[-1]
    weight = study.graph.weights[f"{tap}.weight"]
    source, grid, target = study.plan["0"].params, study.plan[f"{tap}.weight"].params, study.plan[tap].params
    shape = (-1, *([1] * (weight.ndim - 1)))
    w = torch.round(weight.double() / grid.scale.double().view(shape)).long()
    u = torch.round(x.double() / float(source.scale)).long() + int(source.zero_point) - source.qmin
    zero = int(source.zero_point) - source.qmin
    if weight.ndim == 4:
        u = F.unfold(F.pad(u, (1, 1, 1, 1), value=zero).double(), 3).long()  # N, C * 9, places
        if last:
            u = u.unflatten(1, (4, 9)).transpose(1, 2).flatten(1, 2)
            w = w.permute(0, 2, 3, 1)
    else:
        u = u.flatten(1)[..., None]
    w = w.flatten(1)
    pairs = w[None, :, 0::2, None] * u[:, None, 0::2] + w[None, :, 1::2, None] * u[:, None, 1::2]
    total = (pairs.clamp(-(1 << 15), (1 << 15) - 1) if saturate else pairs).sum(2) - zero * w.sum(1)[None, :, None]
    bias = study.graph.biases[f"{tap}.bias"].double()
    y = total.double() * float(source.scale) * grid.scale.double()[None, :, None] + bias[None, :, None]
    y = y.reshape(len(x), 5, *([8, 8] if weight.ndim == 4 else []))
    return torch.fake_quantize_per_tensor_affine(y.float(), float(target.scale), int(target.zero_point), target.qmin, target.qmax)


class Engine:
    """The simulation with the second layer's sums by hand."""

    name, bits, notes = "pairs", 8, ()

    def __init__(self, study: qkit.Study, last: bool, saturate: bool) -> None:
        self.study, self.last, self.saturate = study, last, saturate

    @torch.no_grad()
    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        first, tap = list(self.study.graph.taps)[1], list(self.study.graph.taps)[-1]
        for batch in batches(loader, limit):
            found = capture(self.study.graph, [batch.inputs[0]], {"int8": self.study.plan}, keep=("input", first), progress=False)
            values = {name: found[name].int8.values for name in ("input", first)}
            values[tap] = integers(self.study, values[first], self.last, saturate=self.saturate)
            yield EngineBatch(batch, {name: EngineTensor(value) for name, value in values.items()}, values[tap])


def study_of(kind: str, *, wide: bool) -> qkit.Study:
    data = [torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
    study = qkit.Study(network(kind, wide=wide), data, data, metric="agreement", scheme="int8")
    study.calibrate("minmax", progress=False)
    return study


@pytest.mark.parametrize(("kind", "last"), [("linear", False), ("conv", False), ("conv", True)])
def test_it_is_named_at_the_layer_that_saturates(kind: str, last: bool) -> None:
    study = study_of(kind, wide=True)
    tap = list(study.graph.taps)[-1]
    right = compare(study, Engine(study, last, saturate=False), progress=False)
    assert right.first is None
    found = compare(study, Engine(study, last, saturate=True), progress=False)
    assert found.first == tap
    assert found.faults[tap].kind == "accumulator"
    order = "" if kind == "linear" else f", channels {'last' if last else 'first'}"
    assert found.faults[tap].words == PAIRS + order
    assert found.faults[tap].share > 0.999


def test_small_weights_cannot_saturate_and_nothing_is_said() -> None:
    study = study_of("conv", wide=False)
    found = compare(study, Engine(study, last=False, saturate=True), progress=False)
    assert found.first is None
    assert not found.faults
