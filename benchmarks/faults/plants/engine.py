"""Faults of the simulated engine: narrow accumulators, operations that stay in float."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor, nn

from benchmarks.faults.plants.modes import around, behind, units
from benchmarks.faults.plants.plant import FIXED_POINT, Bench, Plant, anywhere, elsewhere, names_of, override, step_of
from benchmarks.faults.setup import Setup
from benchmarks.faults.truth import BOTH, NO_DEGRADATION, NOT_QUANTIZATION, Mark, NoSite
from qkit.quant.schemes import Scheme


class Unknown(nn.Module):
    """An identity on finite numbers for which an integer engine has no operation."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.nan_to_num(x)


def _narrow_accumulator(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The integer accumulator of every layer wraps around at so many bits."""
    if "accumulator_bits" not in {field.name for field in fields(Scheme)}:
        raise NoSite("this version's Scheme has no accumulator_bits")
    setup.scheme = replace(setup.scheme, accumulator_bits=int(factor))
    return Mark()


def _unknown(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    return Mark(around(behind(setup, bench, site, Unknown()), "nan_to_num"))


def _left_out(setup: Setup, bench: Bench, site: str, factor: float) -> Mark:
    """The scheme says by mistake that this tensor stays float."""
    setup.scheme = override(setup.scheme, site, None)
    return Mark(names_of(step_of(bench, site)) | {site})


def _taps(setup: Setup, bench: Bench) -> list[str]:
    return list(bench.graph.taps)


def _weights(setup: Setup, bench: Bench) -> list[str]:
    return [op.weight for op in bench.graph.operations if op.weight is not None]


PLANTS: tuple[Plant, ...] = (
    # wider products overflow first: 16 bits are hit as hard or harder, and 8 bits may lose more on top
    elsewhere("accumulator-overflow", "network", anywhere, _narrow_accumulator, (22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12),
              verdicts=(NOT_QUANTIZATION, BOTH), lanes=("int8",), keeps_float=True),
    elsewhere("unquantized-layer", "unknown-operation", units, _unknown, (1.0,), verdicts=(NO_DEGRADATION,), lanes=FIXED_POINT),
    elsewhere("unquantized-layer", "tap", _taps, _left_out, (1.0,), verdicts=(NO_DEGRADATION,), lanes=FIXED_POINT),
    elsewhere("unquantized-layer", "weight", _weights, _left_out, (1.0,), verdicts=(NO_DEGRADATION,), lanes=FIXED_POINT),
)  # fmt: skip
