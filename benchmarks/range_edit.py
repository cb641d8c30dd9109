"""A changed range: error figures from the histogram, and the new score on 256 bundled images from the changed node on."""

from __future__ import annotations

import statistics

import torch
from torch.utils.data import DataLoader, Subset

from benchmarks.imagenet_nets import Row
from benchmarks.timing import median_seconds, seconds
from qkit import zoo
from qkit.execution.lanes import Lane, run_lanes
from qkit.study import Study


def measure() -> list[Row]:
    """Milliseconds, and shares of a whole evaluation."""
    case = zoo.load("mobilenet_v2_hostile")
    images = [item for batch in case.evaluation for item in zip(*batch, strict=True)][:256]
    loader = DataLoader(Subset(images, range(len(images))), batch_size=64)  # type: ignore[arg-type]
    study = Study(case.model, case.calibration, loader, scheme="int8-per-tensor")
    plan = study.calibrate(progress=False)
    taps = [name for name in study.graph.taps if name in plan.grids]
    histograms = [study.observe()[name].histogram for name in taps]
    figures = [median_seconds(lambda h=h, t=t: h.error(plan[t].params), 20) for h, t in zip(histograms, taps, strict=True)]
    rows = [
        Row(
            "bundled",
            "error figures of a range, slowest tap",
            f"{1e3 * max(figures):.2f} ms, median {1e3 * statistics.median(figures):.2f} ms",
            "< 5 ms",
            max(figures) < 5e-3,
        )
    ]
    batches = [inputs for inputs, _ in loader]

    def whole() -> None:
        for inputs in batches:
            run_lanes(study.graph, [Lane("int8", plan)], (inputs,))

    full = median_seconds(whole, 5)
    for place, tap in (("first", taps[1]), ("middle", taps[len(taps) // 2]), ("last", taps[-1])):
        grid = plan[tap].params

        def rescore(share: float, tap: str = tap, grid=grid) -> float:  # type: ignore[no-untyped-def]
            edited = plan.with_range(tap, float(grid.lo) * share, float(grid.hi) * share)
            return seconds(lambda: study.score(edited))

        rescore(0.999)
        times = [rescore(0.9 - 0.01 * k) for k in range(7)]
        taken = statistics.median(times)
        rows.append(
            Row(
                "bundled",
                f"new score, {place} tap changed, 256 images",
                f"{1e3 * taken:.0f} ms, {taken / full:.2f} of a whole int8 evaluation",
                "",
                True,
            )
        )
    assert torch.get_num_threads() >= 1
    return rows
