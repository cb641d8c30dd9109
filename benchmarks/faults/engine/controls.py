"""Engines with nothing wrong: other ways to round and to sum, which move codes by a step at most and cost nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from benchmarks.faults.engine.lane import Round, as_the_kit_rounds
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams


def _on_grid(operations: Tensor, params: QuantParams) -> Tensor:
    zero = params.zero_point.double()
    return (operations.clamp(params.qmin - zero, params.qmax - zero) * params.scale.double()).float()


def _exact(op: Operation, y: Tensor, params: QuantParams) -> Tensor:
    return y.double().clamp(*op.act) / params.scale.double()


def half_up(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    """Halves up."""
    return as_the_kit_rounds(op, y, params) if params is None else _on_grid((_exact(op, y, params) + 0.5).floor(), params)


def half_away(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    """Halves away from zero."""
    if params is None:
        return as_the_kit_rounds(op, y, params)
    exact = _exact(op, y, params)
    return _on_grid(exact.sign() * (exact.abs() + 0.5).floor(), params)


def truncating_pools(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    """Average pools and additions cut off what is behind the point, as integer division does."""
    if params is None or op.kind not in ("pool", "add"):
        return half_up(op, y, params)
    return _on_grid(_exact(op, y, params).trunc(), params)


def coarse_multiplier(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    """The sums are brought to the output's scale by a multiplier of as many bits as the tensor has, and a shift."""
    if params is None:
        return as_the_kit_rounds(op, y, params)
    multiplier = 1.0 / params.scale.double()
    unit = 2.0 ** (torch.floor(torch.log2(multiplier)) - (params.bits - 1))
    held = torch.round(multiplier / unit) * unit / multiplier
    return _on_grid((_exact(op, y, params) * held).round(), params)


def one_step_noise(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    """Two codes in a hundred are a step off."""
    if params is None:
        return as_the_kit_rounds(op, y, params)
    generator = torch.Generator().manual_seed(op.index)
    chance = torch.rand(y.shape, generator=generator)
    return _on_grid(_exact(op, y, params).round() + (chance < 0.01).double() - (chance > 0.99).double(), params)


CONTROLS: Mapping[str, Round] = {
    "the kit's own": as_the_kit_rounds,
    "halves up": half_up,
    "halves away from zero": half_away,
    "truncating pools and additions": truncating_pools,
    "multipliers of few bits": coarse_multiplier,
    "one step off in 2 %": one_step_noise,
}
