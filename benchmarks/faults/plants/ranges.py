"""Ranges that do not fit: too narrow, too wide, and clipped by a percentile."""

from __future__ import annotations

from functools import partial

from benchmarks.faults.plants.plant import Bench, Plant, names_of, step_of
from benchmarks.faults.setup import Setup
from benchmarks.faults.truth import NOT_QUANTIZATION, Mark
from qkit.quant.plan import Plan
from qkit.study import Study


def _taps(setup: Setup, bench: Bench) -> list[str]:
    return list(bench.graph.taps)


def _weights(setup: Setup, bench: Bench) -> list[str]:
    return [op.weight for op in bench.graph.operations if op.weight is not None]


def _scaled(study: Study, plan: Plan, tensor: str, factor: float) -> Plan:
    params = plan[tensor].params
    return plan.with_range(tensor, params.lo * factor, params.hi * factor)


def _rescale(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The tensor's range × factor, in the plan as if somebody had typed it."""
    setup.edits.append(partial(_scaled, tensor=site, factor=factor))
    op = step_of(bench, site)
    return Mark(names_of(op) | {site})


def _clip(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The tap's range from a low percentile of its values."""
    setup.calibrate |= {"methods": {site: "percentile"}, "percentile": factor}
    return Mark(names_of(step_of(bench, site)))


_NARROW = (0.4, 0.28, 0.2, 0.14, 0.1, 0.07, 0.05, 0.03, 0.02, 0.01)
_WIDE = (20.0, 40.0, 70.0, 120.0, 200.0, 350.0, 600.0, 1000.0, 2000.0)

PLANTS = (
    Plant("range-too-narrow", "tap", _taps, _rescale, _NARROW, ("int8", "int8-symmetric")),
    Plant("range-too-narrow", "weight", _weights, _rescale, _NARROW, ("int8", "int8-per-tensor")),
    # the estimator clips in 16 bits as well: by the fork of float, 16 and 8 bits this is not rounding
    Plant("range-too-narrow", "percentile", _taps, _clip, (98.0, 95.0, 90.0, 85.0, 80.0, 70.0, 60.0, 50.0), ("int8",),
          verdicts=(NOT_QUANTIZATION,), lanes=("int16",)),
    Plant("range-too-wide", "tap", _taps, _rescale, _WIDE, ("int8", "int8-symmetric")),
    Plant("range-too-wide", "weight", _weights, _rescale, _WIDE, ("int8", "int8-per-tensor")),
)  # fmt: skip
