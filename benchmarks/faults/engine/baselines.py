"""Simpler rules on the same lanes: both run from the network's input, and the first tap that looks different is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qkit.engines.lane import EngineLane
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph.operation import Operation
from qkit.quant.plan import Plan
from qkit.study import Study

#: Rules: the first tap of which more than this share of the codes differs by at least so many steps.
RULES = {"first tap with 1 % other codes": (0.01, 1), "first tap with 1 % more than a step off": (0.01, 2)}
LOWEST = "lowest SQNR to the simulation"


def answers(study: Study, lane: EngineLane, plan: Plan) -> dict[str, str | None]:
    """By rule, the tap that it names on the first batch; None where it raises no alarm."""
    batch = next(iter(lane.run(study.evaluation, limit=1)))
    shares: dict[str, dict[str, float]] = {}
    ratios: dict[str, float] = {}

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        theirs = batch.taps.get(op.name)
        params = plan.params(op.name)
        if theirs is None or params is None:
            return
        scale = params.scale.double()
        if params.axis is not None:
            scale = scale.view(*[-1 if d == params.axis else 1 for d in range(theirs.values.ndim)])
        difference = theirs.values.double() - values["simulated"].double()
        steps = (difference / scale).abs().round()
        shares[op.name] = {name: float((steps >= most).double().mean()) for name, (_, most) in RULES.items()}
        noise = float(difference.square().sum())
        ratios[op.name] = float(values["simulated"].double().square().sum()) / noise if noise else math.inf

    with torch.no_grad():
        run_lanes(study.graph, [Lane("simulated", plan)], batch.batch.inputs, observe=look)
    found: dict[str, Any] = {
        name: next((tap for tap, by_rule in shares.items() if by_rule[name] > share), None) for name, (share, _) in RULES.items()
    }
    return found | {LOWEST: min(ratios, key=lambda tap: ratios[tap], default=None)}
