"""What can be put in 16 bits by itself, and what that costs.

A layer is a step's weight together with its output. Its inputs stay on the grids of the layers that make them: 8-bit codes fit
16-bit operands as they are, so an engine that runs the layer in 16 bits needs nothing from them. Steps that share a weight are
one layer. It costs its multiply-accumulates; a layer without any (an addition, a pool, the input) costs one for each element of
its output, which it has to touch once, so that no layer is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from qkit.errors import QkitError
from qkit.graph import Graph
from qkit.graph.step import Step
from qkit.quant.plan import Grid, Plan


@dataclass(frozen=True, eq=False)
class Layer:
    """Steps that change width together.

    Attributes
    ----------
    name
        Of the first step, a tap's name.
    index
        Of the first step.
    grids
        Their tensors' 16-bit grids, by tensor; empty where they are in 16 bits already.
    cost
        Multiply-accumulates a sample, or elements of the output where there are none.
    weighted
        Whether it has a weight.
    taps
        The steps' names.
    """

    name: str
    index: int
    grids: dict[str, Grid]
    cost: int
    weighted: bool
    taps: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """A study's graph with its plan and the 16-bit plan, layer by layer."""

    graph: Graph
    base: Plan
    wide: Plan
    layers: tuple[Layer, ...]

    @property
    def choices(self) -> frozenset[int]:
        """Positions of the layers that are not in 16 bits yet."""
        return frozenset(i for i, layer in enumerate(self.layers) if layer.grids)

    def cost(self, chosen: Iterable[int]) -> int:
        """Of these layers in 16 bits, those that always are left out."""
        return sum(self.layers[i].cost for i in chosen)

    def share(self, chosen: Iterable[int]) -> float:
        """Of the network's cost that is in 16 bits, 0 to 1."""
        always = sum(layer.cost for layer in self.layers if not layer.grids)
        return (always + self.cost(chosen)) / max(sum(layer.cost for layer in self.layers), 1)

    def plan(self, chosen: Iterable[int]) -> Plan:
        """The base plan with these layers in 16 bits.

        Biases and accumulators, of which a plan has one width each, get that of the 16-bit plan: the sums of a 16-bit layer would
        not fit. Corrections of biases that were measured with the layer's 8-bit weight go.
        """
        layers = [self.layers[i] for i in chosen]
        if not layers:
            return self.base
        taps = {tap for layer in layers for tap in layer.taps}
        grids = {tensor: grid for layer in layers for tensor, grid in layer.grids.items()}
        made = self.widened(self.base.with_grids(grids))
        return replace(
            made,
            name=f"{self.base.name}, {len(layers)} layers in 16 bits",
            corrections={tap: values for tap, values in self.base.corrections.items() if tap not in taps},
        )

    def widened(self, plan: Plan) -> Plan:
        """The plan with the 16-bit plan's biases and accumulators."""
        bias = None if plan.bias_bits is None else self.wide.bias_bits
        sums = None if plan.accumulator_bits is None else self.wide.accumulator_bits
        return replace(plan, bias_bits=bias, accumulator_bits=sums)


def network(graph: Graph, base: Plan, wide: Plan) -> Network:
    """The layers of a graph in execution order.

    Raises
    ------
    QkitError
        If no tensor of the base plan is narrower than 16 bits.
    """
    together: dict[str, list[Step]] = {}
    for step in graph.steps:
        if step.quantized and (step.name in base.grids or step.weight in base.grids):
            together.setdefault(step.weight or step.name, []).append(step)
    layers = []
    for steps in together.values():
        tensors = dict.fromkeys(name for step in steps for name in (step.weight, step.name) if name is not None)
        narrow = [t for t in tensors if t in wide.grids and t in base.grids and base.grids[t].spec.bits < 16]
        cost = sum(step.macs or max(math.prod(step.shape[1:]), 1) for step in steps)
        layers.append(
            Layer(
                steps[0].name,
                steps[0].index,
                {tensor: wide.grids[tensor] for tensor in narrow},
                cost,
                steps[0].weight is not None,
                tuple(step.name for step in steps),
            )
        )
    layers.sort(key=lambda layer: layer.index)
    if not any(layer.grids for layer in layers):
        raise QkitError(
            f"the plan {base.name!r} has no tensor of fewer than 16 bits: there is nothing to search. Use a study with a "
            "narrower scheme, such as 'int8'."
        )
    return Network(graph, base, wide, tuple(layers))
