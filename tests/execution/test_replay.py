"""Work that is the same for every batch: recorded and played on a GPU, as it is elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from small_networks import mixed_network
from torch import Tensor

from qkit.execution.capture import Capturing
from qkit.execution.evaluator import Evaluator
from qkit.execution.observing import observe
from qkit.execution.replay import Replayed, hold, recording
from qkit.graph import build
from qkit.quant.calibration import make_plan
from qkit.quant.schemes import scheme_of

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")


def batches(device: str, count: int = 6) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(4)
    x, y = torch.randn(8 * count, 3, 16, 16, generator=draw), torch.randint(0, 5, (8 * count,), generator=draw)
    whole = [(a.to(device), b.to(device)) for a, b in zip(x.split(8), y.split(8), strict=True)]
    return [*whole, (whole[0][0][:3], whole[0][1][:3])]  # the last one is smaller


def test_elsewhere_it_is_the_function() -> None:
    calls: list[float] = []

    def work(inputs: tuple[Any, ...]) -> Tensor:
        assert not recording()
        calls.append(float(inputs[0]))
        return hold(2.0 * inputs[0])

    played = Replayed(work, torch.device("cpu"))
    assert [float(played((torch.tensor(float(k)),))) for k in range(5)] == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert calls == [0.0, 1.0, 2.0, 3.0, 4.0]


@needs_cuda
def test_played_results_are_those_of_the_function() -> None:
    calls = 0

    def work(inputs: tuple[Any, ...]) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        return {"y": (inputs[0] * 3.0).relu() + inputs[1]["z"]}

    played = Replayed(work, torch.device("cuda"))
    for k in range(6):
        x, z = torch.randn(100).cuda(), torch.full((100,), float(k)).cuda()
        torch.testing.assert_close(played((x, {"z": z}))["y"], (x * 3.0).relu() + z)
    assert calls == 2
    assert played((torch.randn(7).cuda(), {"z": torch.zeros(7).cuda()}))["y"].shape == (7,)


@needs_cuda
def test_what_waits_for_the_device_runs_as_it_is_and_leaves_torch_whole() -> None:
    played = Replayed(lambda inputs: inputs[0] * float(inputs[0].sum() > 0.0), torch.device("cuda"))
    stream = torch.cuda.current_stream()
    for k in range(4):
        x = torch.full((5,), float(k - 1)).cuda()
        torch.testing.assert_close(played((x,)), x * float(x.sum() > 0.0))
    assert torch.cuda.current_stream() == stream
    assert torch.isfinite(torch.randn(10, device="cuda")).all()


@needs_cuda
def test_a_whole_pass_gives_the_same_recorded_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    data = batches("cuda")
    graph = build(mixed_network(), data[0][0], device="cuda")

    def found() -> tuple[Any, ...]:
        seen = observe(graph, data, progress=False)
        plans = {k: make_plan(graph, seen, scheme_of(k)) for k in ("int8", "int16")}
        captured = Capturing(graph, plans).run(data, limit=None, progress=False)
        scores = Evaluator(graph, data, "top1").scores(plans, progress=False)
        return seen, captured.table(), scores

    seen, table, scores = found()
    monkeypatch.setattr("qkit.execution.replay._PLAIN", 100)
    seen_plainly, table_plainly, scores_plainly = found()
    for name, there in seen.items():
        plainly = seen_plainly[name]
        np.testing.assert_array_equal(there.histogram.counts, plainly.histogram.counts)
        np.testing.assert_array_equal(there.batch_max, plainly.batch_max)
        np.testing.assert_array_equal(there.channel_min, plainly.channel_min)
    np.testing.assert_array_equal(table["int8", "sqnr"], table_plainly["int8", "sqnr"])
    for name in scores:
        np.testing.assert_array_equal(scores[name], scores_plainly[name])
