"""Studies and traces that the tests of qkit.engines.traces share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import qkit
from qkit import zoo
from qkit.engines import traces


@functools.lru_cache(maxsize=4)
def study(name: str) -> qkit.Study:
    case = zoo.load(name)
    scheme = "int8-per-tensor" if name.endswith("hostile") else "int8"
    made = qkit.Study(case.model, calibration=case.calibration, evaluation=case.evaluation, scheme=scheme)
    made.calibrate()
    return made


def written(folder: Path, name: str = "resnet_small", **options: Any) -> Path:
    return traces.write(study(name), folder / "trace", **options)


def read(folder: Path, name: str = "resnet_small", **options: Any) -> traces.TraceLane:
    return traces.read(folder, study(name), progress=False, **options)


def kinds(lane: traces.TraceLane, severity: str | None = None) -> set[tuple[str, str]]:
    """(kind, tap) of what was found, other than names."""
    return {(p.kind, p.tap) for p in lane.alignment.problems if severity in (None, p.severity) and p.kind != "renamed"}


def at(tap: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[str, np.ndarray], np.ndarray]:
    """A change of one tap's array."""
    return lambda name, array: change(array) if name == tap else array
