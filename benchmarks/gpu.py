"""``python -m benchmarks.gpu``: what a GPU takes for captures, ranges, lanes, sweeps and a diagnosis, in its own float passes.

A pass is the model's own float32 forward pass without TF32, timed right before and after what is divided by it. Batches lie on
the GPU: what a loader takes is another matter. Work on data is given for one batch alone; for a batch of eight from a fresh
start, of which the first runs as it is and the second is recorded (see `qkit.execution.replay`); and for every further one.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.peer import debugged
from benchmarks.imagenet_nets import network
from benchmarks.timing import Ratio, median_seconds, ratio, seconds
from qkit.errors import MissingExtra
from qkit.execution.capture import capture
from qkit.execution.evaluator import Evaluator
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.execution.sensitivity import sweep
from qkit.graph import Graph, build
from qkit.graph.running import execution
from qkit.quant.calibration import make_plan
from qkit.quant.schemes import scheme_of
from qkit.study import Study

DEVICE = torch.device("cuda")
NETWORKS = ("mobilenet_v2", "resnet50")
#: Batches of one pass over data.
MANY = 8


def synced(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, begun when the device is idle and over when the device is done."""

    def whole() -> None:
        torch.cuda.synchronize()
        work()
        torch.cuda.synchronize()

    return whole


def passing(work: Callable[[], Any], repeats: int = 5) -> float:
    """Median seconds until the device is done."""
    return median_seconds(synced(work), repeats)


def in_passes(work: Callable[[], Any], passes: Callable[[], Any], repeats: int = 5) -> Ratio:
    """The work's time over that of a float pass, which is timed before and after it."""
    return ratio(synced(work), synced(passes), repeats=repeats)


def further(work: Callable[[int], Any], passes: Callable[[], Any], repeats: int = 3) -> Ratio:
    """What every further batch takes, when the first ones are done and the work is recorded, in float passes."""
    found = []
    for _ in range(repeats):
        reference = passing(passes)
        some, more = (seconds(synced(lambda many=many: work(many))) for many in (MANY, 3 * MANY))
        found.append((more - some) / (2 * MANY) / reference)
    return Ratio(statistics.median(found), min(found), max(found))


def peak(work: Callable[[], Any]) -> int:
    """Bytes that tensors take on the device at most while the work is done, beyond those before it."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - held


def float_pass(model: nn.Module, x: Tensor) -> None:
    """The yardstick."""
    with execution(DEVICE):
        model(x)


def hooked(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """What one writes without a kit: torch's fake-quantize operators in hooks, two widths, errors summed at every convolution."""

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        for low, high in ((-128, 127), (-32768, 32767)):
            scale = (output.abs().amax() / high).clamp_min(1e-12)
            zero = torch.zeros((), dtype=torch.int32, device=output.device)
            error = torch.fake_quantize_per_tensor_affine(output, scale, zero, low, high) - output
            error.square().sum((0, 2, 3)).cpu()

    def work() -> None:
        handles = [m.register_forward_hook(hook) for m in model.modules() if isinstance(m, nn.Conv2d)]
        try:
            float_pass(model, x)
        finally:
            for handle in handles:
                handle.remove()

    return work


def roofline(graph: Graph, batch: int, found: dict[str, Any]) -> dict[str, Any]:
    """Least bytes that every figure has to move, and share of the card's copying speed that its time is.

    Of a number in a tap: written by its operation and read by the next in every lane; in a capture of three lanes it is besides
    read and written for its activation and grid (read alone in the two local lanes), and float's is read for the errors of
    four; an observing pass reads it to count. Weights are left out.
    """
    numbers = batch * sum(int(torch.Size(op.shape[1:]).numel()) for op in graph.operations if op.quantized)
    flops = 2.0 * batch * sum(op.macs for op in graph.operations)
    touched = {"int8": 4, "observing": 5, "capture": 3 * 2 + 2 * 2 + 3 * 2 + 2 + 4}
    block = torch.empty(1 << 28, device=DEVICE)
    other = torch.empty_like(block)
    copying = 2 * block.nbytes / passing(lambda: other.copy_(block), 10)
    rows: dict[str, Any] = {"copy TB/s": copying / 1e12, "pass TFLOP/s": flops / found["pass ms"] / 1e9}
    for what, times in touched.items():
        moved = 4.0 * times * numbers
        rows[f"{what} GB"] = moved / 1e9
        rows[f"{what} share of copying speed"] = moved / copying / (found[what].median * found["pass ms"] / 1e3)
    return rows


def measure(name: str, batch: int, *, sweeps: bool) -> dict[str, Any]:
    """All figures of one network at one batch."""
    model = network(name).to(DEVICE)
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, 224, 224, generator=draw).to(DEVICE)
    loader = [(x, torch.zeros(batch, dtype=torch.int64, device=DEVICE))]
    graph = build(model, x, device=DEVICE)
    seen = observe(graph, loader, progress=False)
    plans = {k: make_plan(graph, seen, scheme_of(k)) for k in ("int16", "int8")}

    def passes() -> None:
        float_pass(model, x)

    found: dict[str, Any] = {"network": name, "batch": batch, "pass ms": 1e3 * passing(passes, 10)}

    def lane(plan: str | None) -> Callable[[], None]:
        lanes = [Lane("float")] if plan is None else [Lane(plan, plans[plan])]
        return lambda: (run_lanes(graph, lanes, (x,)), None)[1]

    found["float lane, one batch"] = in_passes(lane(None), passes)
    found["int8 lane, one batch"] = in_passes(lane("int8"), passes)
    found["capture, one batch"] = in_passes(lambda: capture(graph, loader, plans, progress=False), passes)
    work: dict[str, Callable[[int], Any]] = {
        "capture": lambda many: capture(graph, loader * many, plans, limit=None, progress=False),
        "observing": lambda many: observe(graph, loader * many, progress=False),
        "int8": lambda many: Evaluator(graph, loader * many, "top1").scores({"int8": plans["int8"]}, progress=False),
    }
    for what, many in work.items():
        found[f"{what}, {MANY} batches"] = in_passes(lambda many=many: many(MANY), passes, 3).over(MANY)
        found[what] = further(many, passes)
    found["by hand, hooks"] = in_passes(hooked(model, x), passes)
    try:
        found["torchao's numeric debugger"] = in_passes(debugged(model, x), passes, 3)
    except (MissingExtra, RuntimeError) as error:
        found["torchao's numeric debugger"] = f"not measured: {error}"
    own = peak(passes)
    found["memory"] = peak(lambda: work["capture"](MANY)) / own
    found["memory, one batch"] = peak(lambda: capture(graph, loader, plans, progress=False)) / own
    found |= roofline(graph, batch, found)
    if sweeps:
        layers = len(graph.taps)
        for mode in ("only", "except"):

            def swept(many: int, mode: Any = mode) -> Any:
                return sweep(Evaluator(graph, loader * many, "top1"), plans["int8"], mode, progress=False)

            found[f"{mode}, {MANY} batches"] = in_passes(lambda swept=swept: swept(MANY), passes, 1).over(layers * MANY)
            found[mode] = further(swept, passes, 1).over(layers)
    return found


def diagnosis(images: int = 1000, batch: int = 64) -> dict[str, float]:
    """Seconds of a whole diagnosis of resnet50."""
    model = network("resnet50").to(DEVICE)
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(images, 3, 224, 224, generator=draw).to(DEVICE)
    with execution(DEVICE):
        y = torch.cat([model(part).argmax(1) for part in x.split(batch)])
    loader = list(zip(x.split(batch), y.split(batch), strict=True))
    start = time.perf_counter()
    study = Study(model, loader[:2], loader, metric="top1", scheme="int8-per-tensor", device="cuda")
    study.calibrate("minmax", progress=False)
    ready = time.perf_counter()
    found = study.diagnose(progress=False)
    torch.cuda.synchronize()
    return {
        "to the plan s": ready - start, "diagnosis s": time.perf_counter() - ready, "evaluations": found.evaluations,
        "causes": len(found.causes),
    }  # fmt: skip


def text(value: Any) -> str:
    """A figure with its spread."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Parse and dispatch."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS))
    parser.add_argument("--batches", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--no-sweeps", action="store_true", help="sweeps are measured at the least batch alone")
    parser.add_argument("--no-diagnosis", action="store_true")
    parser.add_argument("--out", type=Path, help="JSON lines of what was measured")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here: these figures need one.")
    rows: list[dict[str, Any]] = [{"device": torch.cuda.get_device_name(), "torch": torch.__version__}]
    print(rows[0], flush=True)
    for name in options.networks:
        for batch in options.batches:
            row = measure(name, batch, sweeps=not options.no_sweeps and batch == min(options.batches))
            rows.append(row)
            print(*(f"{k}: {text(v)}" for k, v in row.items()), sep="\n   ", flush=True)
    if not options.no_diagnosis:
        rows.append(dict(diagnosis()))
        print(rows[-1], flush=True)
    if options.out is not None:
        options.out.write_text("".join(json.dumps(row, default=asdict) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
