"""Ratios that survive a noisy machine: each repetition is divided by the float passes measured right beside it."""

from __future__ import annotations

import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Ratio:
    """Median, least and greatest of the repetitions, in float passes."""

    median: float
    low: float
    high: float

    def over(self, count: int) -> Ratio:
        """The ratio for one of `count` equal parts."""
        return Ratio(self.median / count, self.low / count, self.high / count)

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Median wall time."""
    return statistics.median(seconds(work) for _ in range(repeats))


def ratio(work: Callable[[], Any], reference: Callable[[], Any], *, repeats: int, warm: bool = True) -> Ratio:
    """Time of `work` in units of `reference`, which is measured before and after every repetition."""
    reference()
    if warm:
        work()
    found = []
    for _ in range(repeats):
        before = median_seconds(reference, 3)
        taken = seconds(work)
        after = median_seconds(reference, 3)
        found.append(taken / ((before + after) / 2))
    return Ratio(statistics.median(found), min(found), max(found))


def peak_bytes(work: Callable[[], Any]) -> int:
    """Most bytes that torch's allocator held at once during the call, above what it held before."""
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak
