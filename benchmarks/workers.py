"""A sweep by one process and by workers: ``python -m benchmarks.workers``, and what 50,000 images on 8 GPUs come to on paper."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import qkit
from benchmarks.imagenet_nets import network
from benchmarks.timing import seconds
from qkit.execution.evaluator import Evaluator
from qkit.execution.observing import observe
from qkit.execution.parallel import Workers
from qkit.execution.parcel import dumps, loads
from qkit.execution.sensitivity import sweep
from qkit.execution.worker import Asked, work
from qkit.graph import build
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import scheme_of
from qkit.zoo import load_torchvision


class Noise(Dataset[tuple[Tensor, int]]):
    """Images that are made when they are read, so that none travels."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if index >= self.count:
            raise IndexError
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(index)), index % 10


@dataclass(frozen=True)
class Sweep:
    """A network, its plan, and what is swept on which data."""

    graph: qkit.Graph
    plan: Plan
    loader: Iterable[Any]
    layers: tuple[str, ...]

    def run(self, executor: Executor | None) -> np.ndarray:
        """Scores of every layer quantized alone; nothing is known before."""
        evaluator = Evaluator(self.graph, self.loader, "closeness", executor=executor)
        return sweep(evaluator, self.plan, "only", layers=self.layers, progress=False).scores


@dataclass(frozen=True)
class Pieces:
    """What working elsewhere costs beside the computing: seconds and bytes.

    Attributes
    ----------
    study, task, answer
        Bytes that are sent: once to every worker; with every task of a sweep over all layers; back.
    packing, opening
        Seconds for the study: here, and on the worker.
    overhead
        Seconds for a task without a plan, to and fro, less the reading of its batch.
    here
        Seconds that this process is busy with a task's answer.
    reading
        Seconds for an image.
    """

    study: int
    task: int
    answer: int
    packing: float
    opening: float
    overhead: float
    here: float
    reading: float


def prepared(name: str, *, batches: int, batch: int, size: int, layers: int | None, device: str) -> Sweep:
    """The network in int8, calibrated on its first batch."""
    data = Noise(batches * batch, size)
    loader = DataLoader(data, batch_size=batch)
    x = next(iter(loader))[0]
    graph = build(network(name), x, device=device)
    plan = make_plan(graph, observe(graph, [x], progress=False), scheme_of("int8"))
    taps = [op.name for op in graph.operations if op.quantized and op.name in plan.grids]
    step = 1 if layers is None else max(len(taps) // layers, 1)
    return Sweep(graph, plan, loader, tuple(taps[::step]))


def pieces(work_on: Sweep, executor: Executor, batch: int) -> Pieces:
    """Measured on one worker that has the study already, but for the opening."""
    evaluator = Evaluator(work_on.graph, work_on.loader, "closeness")
    first = next(iter(work_on.loader))
    mark = evaluator.checked(0, qkit.execution.loading.as_batch(first))
    begun = time.perf_counter()
    workers = Workers(executor, evaluator, mark)
    packing = time.perf_counter() - begun
    taps = [op for op in work_on.graph.operations if op.quantized and op.name in work_on.plan.grids]
    plans = tuple(work_on.plan.only([name for name in (op.name, op.weight) if name in work_on.plan.grids]) for op in taps)
    asked = dumps(Asked(FLOAT, plans, tuple(op.index for op in taps), False, 2 << 30))
    executor.submit(time.sleep, 0.0).result()
    sent = workers.sent(None)

    def ask(*which: int) -> bytes:
        return executor.submit(work, workers.token, sent, asked, 1, which).result()

    opening = seconds(ask)
    there = statistics.median(seconds(ask) for _ in range(15))
    data: Any = work_on.loader.dataset  # type: ignore[attr-defined]
    reading = statistics.median(seconds(lambda: [data[i] for i in range(batch)]) for _ in range(5)) / batch
    answer = ask(len(taps) - 1)  # the last layer alone
    here = len(taps) * statistics.median(seconds(lambda: loads(answer)) for _ in range(15))
    overhead = max(there - reading * batch, 0.0)
    return Pieces(len(workers.data), len(asked), len(taps) * len(answer), packing, opening - there, overhead, here, reading)


def photograph_seconds(repeats: int = 15) -> float:
    """Seconds to read an image like ImageNet's (500×375, JPEG) from disk, and to resize, cut and scale it as torchvision does."""
    from PIL import Image

    transforms = load_torchvision().transforms
    prepare = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
    fine = np.clip(np.asarray(coarse) + draw.normal(0.0, 8.0, (375, 500, 3)), 0, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.jpg"
        Image.fromarray(fine).save(path, quality=90)
        return statistics.median(seconds(lambda: prepare(Image.open(path).convert("RGB"))) for _ in range(repeats))


@dataclass(frozen=True)
class Paper:
    """Seconds of a sweep over many images.

    Attributes
    ----------
    alone
        One GPU, with as many processes that read as it needs: computing alone.
    start, shared, serial
        Several GPUs: until all workers have the study; the whole; of it, what the process that gives out the tasks is busy.
    """

    alone: float
    start: float
    shared: float
    serial: float

    @property
    def times(self) -> float:
        """How much faster it is."""
        return self.alone / self.shared


def on_paper(
    found: Pieces, *, images: int, batch: int, gpus: int, each: int, passes: float, float_pass: float, reading: float, wire: float
) -> Paper:
    """What a sweep comes to from its pieces.

    Parameters
    ----------
    each
        Workers for each GPU: while one reads its next batch, another may compute. Each reads in its own process.
    passes
        That a sweep takes for a batch.
    float_pass
        Seconds for one on the GPU.
    reading
        Seconds to read an image from disk and prepare it.
    wire
        Bytes a second from here to all workers together.
    """
    count = -(-images // batch)
    compute, read = passes * float_pass, batch * reading + found.overhead
    # a GPU is never faster than its computing, and its workers no faster than their cycle of reading and computing
    cycle = max(compute, (compute + read) / each)
    start = found.packing + found.opening + gpus * each * found.study / wire
    serial = count * (found.here + (found.task + found.answer) / wire)
    return Paper(count * compute, start, max(start + read + -(-count // gpus) * cycle, serial), serial)


def core_seconds() -> float:
    """Seconds of a core that this process and all its children have taken: a busy machine does not add to them."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return sum(t.user + t.system for t in times)


@dataclass(frozen=True)
class Line:
    """A way to sweep: seconds by the clock, and of all cores together; medians."""

    who: str
    seconds: float
    cores: float


def measured(work_on: Sweep, counts: list[int], repeats: int, threads: int) -> list[Line]:
    """This process first, then pools; repetitions in turn, and all scores compared, bit for bit."""
    taken: dict[str, list[tuple[float, float]]] = {}
    with ExitStack() as stack:
        pools: dict[str, tuple[int, Executor | None]] = {"this process": (1, None)}
        for number in counts:
            pool = stack.enter_context(qkit.workers(number))
            pools[f"{number} process{'es' if number > 1 else ''}"] = number, pool
            list(pool.map(time.sleep, [1.0] * number))  # all start, and import torch
            for _ in range(3):
                replace(work_on, layers=work_on.layers[:1]).run(pool)  # and load the compiled loops, each of them
        most = max(counts)
        if most > 1:
            pools[f"this process, {most} times the threads"] = most, None
        torch.set_num_threads(threads)
        want = work_on.run(None)
        for _ in range(repeats):
            for who, (number, executor) in pools.items():
                torch.set_num_threads(threads * number)  # which are divided among a pool's processes
                begun, cores = time.perf_counter(), core_seconds()
                found = work_on.run(executor)
                taken.setdefault(who, []).append((time.perf_counter() - begun, core_seconds() - cores))
                # with other threads the sums are other ones, in their last bits
                assert np.array_equal(found, want) or (executor is None and number > 1), f"{who}: other scores"
    return [Line(who, *(statistics.median(part) for part in zip(*found, strict=True))) for who, found in taken.items()]


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=__doc__)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--threads", type=int, default=1, help="of every process")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--layers", type=int, default=12, help="to sweep, evenly spread; 0 for all")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="cuda: one GPU a process, where there are as many")
    parser.add_argument("--passes", type=float, default=32.4, help="float passes of a sweep on paper: 72 layers, 0.45 each")
    parser.add_argument("--float-pass", type=float, default=0.0203, help="seconds of a batch of 64 on the GPU, on paper")
    parser.add_argument("--reading", type=float, help="seconds to read an image, on paper; measured here by default")
    parser.add_argument("--wire", type=float, default=1e9, help="bytes a second to a worker, on paper")
    options = parser.parse_args()
    work_on = prepared(
        options.network, batches=options.batches, batch=options.batch, size=options.size, layers=options.layers or None,
        device=options.device,
    )  # fmt: skip
    rows = measured(work_on, options.processes, options.repeats, options.threads)
    torch.set_num_threads(1)  # a worker reads with one
    table = Table(
        title=f"{options.network}, {len(work_on.layers)} layers on {options.batches} batches of {options.batch}, {options.device}"
    )
    for column in ("who", "seconds", "times as fast", "seconds of a core", "of this process's"):
        table.add_column(column)
    for row in rows:
        ratios = rows[0].seconds / row.seconds, row.cores / rows[0].cores
        table.add_row(row.who, f"{row.seconds:.2f}", f"{ratios[0]:.2f}", f"{row.cores:.2f}", f"{ratios[1]:.2f}")
    console = Console(width=150)
    console.print(table)
    with qkit.workers(1) as pool:
        found = pieces(work_on, pool, options.batch)
    console.print(
        f"study {found.study / 1e6:.1f} MB, packed in {found.packing:.2f} s, opened in {found.opening:.2f} s; a task "
        f"{found.task / 1e3:.0f} kB there, {found.answer / 1e3:.1f} kB back, {1000 * found.overhead:.1f} ms beside its computing "
        f"({1000 * found.here:.1f} ms here); an image read in {1000 * found.reading:.1f} ms"
    )
    reading = photograph_seconds() if options.reading is None else options.reading
    console.print(f"a photograph is read and prepared in {1000 * reading:.1f} ms")
    for gpus, each in ((1, 1), (1, 2), (2, 2), (8, 1), (8, 2)):
        paper = on_paper(
            found, images=50_000, batch=64, gpus=gpus, each=each, passes=options.passes, float_pass=options.float_pass,
            reading=reading, wire=options.wire,
        )  # fmt: skip
        console.print(
            f"on paper, 50,000 images, {gpus} GPU, {each} workers each: {paper.shared:.0f} s, {paper.times:.2f} times one GPU's "
            f"{paper.alone:.0f} s (start {paper.start:.1f}; the process that gives out the tasks is busy for {paper.serial:.1f})"
        )


if __name__ == "__main__":
    main()
