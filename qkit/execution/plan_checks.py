"""What is wrong with a plan for a graph before anything is run: biases that saturate, divisors that round to zero."""

from __future__ import annotations

from collections.abc import Mapping

from qkit.execution.lanes import decide
from qkit.graph import Graph
from qkit.quant.estimators import Observation
from qkit.quant.grids import saturated_biases
from qkit.quant.plan import Plan


def saturations(graph: Graph, plan: Plan) -> dict[str, int]:
    """Layers with biases beyond what their width holds at the accumulator's scale, and how many entries saturate there."""
    found = {}
    for op in graph.operations:
        grid = decide(op, plan, graph).bias_scale
        if grid is not None and op.bias is not None:
            source, weight, bits = grid
            count = saturated_biases(graph.biases[op.bias], source.scale.double() * weight.scale.double(), bits)
            if count:
                found[op.name] = count
    return found


def zero_divisors(graph: Graph, plan: Plan, seen: Mapping[str, Observation]) -> dict[str, float]:
    """Taps that are divided by, and what share of their observed values rounds to 0 on the plan's grid, where any does."""
    found = {}
    for op in graph.operations:
        tap = None if op.divisor is None else graph.operations[op.divisor].tap
        grid = plan.params(tap)
        if tap is not None and tap in seen and grid is not None and plan.params(op.name) is not None:
            half = 0.5 * float(grid.scale.max())
            if share := seen[tap].histogram.share_between(-half, half):
                found[tap] = share
    return found
