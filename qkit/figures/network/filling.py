"""From a graph and what was measured of it to plain nodes and values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qkit.figures.network.blocks import Network, Node
from qkit.figures.network.quantities import Values

if TYPE_CHECKING:
    import pandas as pd

    from qkit.execution.gradient import GradientRanking
    from qkit.execution.sensitivity import Sensitivity
    from qkit.graph import Graph
    from qkit.quant.plan import Plan

#: Operations without a tensor of their own, which the picture leaves out.
_LEFT_OUT = frozenset({"meta"})
#: Columns of a capture's table by quantity.
CAPTURED = {"propagated": "sqnr", "local": "local sqnr"}


def network_of(graph: Graph) -> Network:
    """The folded network's operations with their edges; what only computes sizes is left out."""
    shown = [op for op in graph.operations if op.kind not in _LEFT_OUT]
    number = {op.index: i for i, op in enumerate(shown)}
    return Network(
        tuple(
            Node(
                op.name,
                op.kind,
                tuple(number[i] for i in op.inputs if i in number),
                "×".join(map(str, op.shape[1:])),
                op.note or "",
                op.weight or "",
                op.macs,
                op.quantized,
            )
            for op in shown
        )
    )


def captured_values(table: pd.DataFrame, lane: str, key: str) -> Values:
    """SQNR by operation from a capture's table: `key` is "propagated" or "local"."""
    column = table[lane, CAPTURED[key]]
    return {str(name): float(value) for name, value in column.items() if not math.isnan(float(value))}


def loss_values(sensitivity: Sensitivity) -> Values:
    """Loss of each layer quantized alone, in units of the score."""
    return {op.name: sensitivity.effect(i).value for i, op in enumerate(sensitivity.layers)}


def gradient_values(ranking: GradientRanking, graph: Graph) -> Values:
    """The place of every operation when its tensors, activation and weight, are ordered by expected cost: 1 costs most."""
    costs: dict[str, float] = {}
    for tensor, cost in ranking.costs.items():
        name = graph.operation(tensor).name
        costs[name] = costs.get(name, 0.0) + float(cost.mean())
    ordered = sorted(costs, key=lambda name: -costs[name])
    return {name: float(place) for place, name in enumerate(ordered, 1)}


def mac_values(network: Network) -> Values:
    """Multiply-accumulates of what multiplies."""
    return {node.name: float(node.macs) for node in network.nodes if node.macs}


def bit_values(network: Network, plan: Plan) -> Values:
    """Bits of the tensor and of its weight, the fewer of the two; infinite where neither has a grid."""
    found = {}
    for node in network.nodes:
        if node.quantized:
            grids = [params for name in (node.name, node.weight) if name and (params := plan.params(name)) is not None]
            found[node.name] = min((float(params.bits) for params in grids), default=math.inf)
    return found
