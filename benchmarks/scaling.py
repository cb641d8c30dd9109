"""How the cost of a capture and of a sweep grows with batch, image size and depth."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.imagenet_nets import Row, network
from benchmarks.timing import ratio
from qkit.execution.capture import capture
from qkit.execution.evaluator import Evaluator
from qkit.execution.observing import observe
from qkit.execution.sensitivity import sweep
from qkit.graph import build
from qkit.quant.calibration import make_plan
from qkit.quant.schemes import scheme_of


def measure() -> list[Row]:
    """Ratios of mobilenet_v2's capture over batch and image size, and of sweeps of plain networks over depth."""
    rows = []
    model = network("mobilenet_v2")
    for batch, size in ((1, 224), (8, 224), (32, 224), (8, 112), (8, 64)):
        x = torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))
        rows.append(_row(model, x, f"capture, batch {batch}, {size}×{size}"))
    for depth in (10, 20, 40, 80):
        plain = _plain(depth)
        x = torch.randn(8, 16, 56, 56, generator=torch.Generator().manual_seed(1))
        graph, plans = _prepare(plain, x)
        loader = [(x, torch.zeros(8, dtype=torch.int64))]
        found = ratio(
            lambda p=plans["int8"], g=graph, data=loader: sweep(Evaluator(g, data, "top1"), p, "only", progress=False),
            lambda m=plain, data=x: _float(m, data), repeats=3,
        )  # fmt: skip
        layers = len(graph.taps)
        rows.append(
            Row("plain", f'sensitivity "only", {layers} layers', f"{found} passes, {found.median / layers:.2f} × L", "", True)
        )
    return rows


def _plain(depth: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [m for _ in range(depth) for m in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)).eval()


def _prepare(model: nn.Module, x: torch.Tensor):  # type: ignore[no-untyped-def]
    graph = build(model, x)
    seen = observe(graph, [x], progress=False)
    return graph, {name: make_plan(graph, seen, scheme_of(name)) for name in ("int16", "int8")}


def _row(model: nn.Module, x: torch.Tensor, what: str) -> Row:
    graph, plans = _prepare(model, x)
    found = ratio(lambda: capture(graph, [x], plans, progress=False), lambda: _float(model, x), repeats=5)
    return Row("mobilenet_v2", what, f"{found} passes", "", True)


def _float(model: nn.Module, x: torch.Tensor) -> None:
    with torch.inference_mode():
        model(x)
