"""Capture, calibration and sweeps on torchvision's mobilenet_v2 and resnet50: 224×224, batch 8, random weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.timing import Ratio, peak_bytes, ratio
from qkit.execution.capture import capture
from qkit.execution.evaluator import Evaluator
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.execution.sensitivity import sweep
from qkit.graph import build
from qkit.quant.calibration import make_plan
from qkit.quant.schemes import scheme_of
from qkit.zoo import load_torchvision

#: Of 8 images each; 64 are about what people calibrate with.
BATCHES = 8


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    network: str
    what: str
    measured: str
    target: str
    met: bool


def network(name: str) -> nn.Module:
    """The torchvision model with seeded random weights and batch-norm statistics of its own random activations."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = load_torchvision().models.get_model(name, weights=None).train()
        with torch.no_grad():
            model(torch.randn(8, 3, 224, 224))
        return model.eval()


def _float_pass(model: nn.Module, x: Tensor) -> None:
    with torch.inference_mode():
        model(x)


def measure(name: str, *, sweeps: bool, repeats: int) -> list[Row]:
    """All ratios of one network."""
    model = network(name)
    x = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    graph = build(model, x)
    layers = len(graph.taps)
    loader = [(x, torch.zeros(8, dtype=torch.int64))]
    seen = observe(graph, loader, progress=False)
    plans = {"int16": make_plan(graph, seen, scheme_of("int16")), "int8": make_plan(graph, seen, scheme_of("int8"))}

    def reference() -> None:
        _float_pass(model, x)

    rows: list[Row] = []

    def add(what: str, found: Ratio, limit: float, unit: str = "passes") -> None:
        rows.append(Row(name, what, f"{found} {unit}", f"≤ {limit:g}", found.median <= limit))

    def info(what: str, found: Ratio) -> None:
        rows.append(Row(name, what, f"{found} passes", "", True))

    info("float lane alone", ratio(lambda: run_lanes(graph, [Lane("float")], (x,)), reference, repeats=repeats))
    info("int8 lane alone", ratio(lambda: run_lanes(graph, [Lane("int8", plans["int8"])], (x,)), reference, repeats=repeats))
    capturing = ratio(lambda: capture(graph, loader, plans, progress=False).table(), reference, repeats=repeats)
    add("capture, 3 lanes, local and accumulated errors", capturing, 7.0)
    calibrating = ratio(lambda: observe(graph, loader * BATCHES, progress=False), reference, repeats=repeats)
    limit = 2.0 if name == "mobilenet_v2" else 1.5
    add(f"calibration, a batch ({BATCHES} of them in one go)", calibrating.over(BATCHES), limit, "passes")
    for method in ("minmax", "mse", "entropy"):
        info(
            f"choosing all ranges, {method}",
            ratio(lambda m=method: make_plan(graph, seen, scheme_of("int8"), method=m), reference, repeats=3),
        )
    if sweeps:
        for mode, share in (("only", 0.6), ("except", 0.75)):
            found = ratio(
                lambda m=mode: sweep(Evaluator(graph, loader, "top1"), plans["int8"], m, progress=False),
                reference,
                repeats=3,
                warm=False,
            )
            add(f'sensitivity "{mode}", L = {layers} layers', found.over(layers), share, "× L passes")
    plain = peak_bytes(reference)
    taken = peak_bytes(lambda: capture(graph, loader, plans, progress=False))
    rows.append(
        Row(
            name,
            "capture, peak memory",
            f"{taken / plain:.2f} × ({taken / 2**20:.0f} of {plain / 2**20:.0f} MiB)",
            "≤ 3 ×",
            taken <= 3 * plain,
        )
    )
    return rows
