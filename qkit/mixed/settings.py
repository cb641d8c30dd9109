"""What can be put in 16 bits by itself and what that costs, and what the search found: layers, front, baselines, and the plan.

A layer is an operation's weight together with its output. Its inputs stay on the grids of the layers that make them: 8-bit
codes fit 16-bit operands as they are, so an engine that runs the layer in 16 bits needs nothing from them. Steps that share a
weight are one layer. By a table of a device's times it costs the microseconds that it takes longer in 16 bits, which may be none
or fewer than none. Without one it costs its multiply-accumulates; a layer without any (an addition, a pool, the input) costs one
for each element of its output, which it has to touch once, so that no layer is free.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from qkit.execution.statistics import Interval
from qkit.listing import few
from qkit.mixed.costs import Costs, Unit, times_of
from qkit.quant.plan import Plan
from qkit.style import Units

if TYPE_CHECKING:
    from qkit.figures.drawing import Picture


import math
from collections.abc import Iterable
from dataclasses import replace

from qkit.errors import QkitError
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.plan import Grid


@dataclass(frozen=True, eq=False)
class Layer:
    """Steps that change width together.

    Attributes
    ----------
    name
        Of the first operation, a tap's name.
    index
        Of the first operation.
    grids
        Their tensors' 16-bit grids, by tensor; empty where they are in 16 bits already.
    narrow, wide
        What it takes as it is in the base plan, and in 16 bits: microseconds a sample; or 0 and its multiply-accumulates a
        sample (elements of the output where there are none), so that the sum is what is computed in 16 bits.
    weighted
        Whether it has a weight.
    taps
        The operations' names.
    """

    name: str
    index: int
    grids: dict[str, Grid]
    narrow: float
    wide: float
    weighted: bool
    taps: tuple[str, ...]

    @property
    def cost(self) -> float:
        """Of putting it in 16 bits; of times it may be 0 or less."""
        return self.wide - self.narrow


@dataclass(frozen=True, eq=False)
class Network:
    """A study's graph with its plan and the 16-bit plan, layer by layer.

    `unit` is what costs count, `remarks` what is to be said of them.
    """

    graph: Graph
    base: Plan
    wide: Plan
    layers: tuple[Layer, ...]
    unit: Unit = "multiply-accumulates"
    remarks: tuple[str, ...] = ()

    @property
    def choices(self) -> frozenset[int]:
        """Positions of the layers that are not in 16 bits yet."""
        return frozenset(i for i, layer in enumerate(self.layers) if layer.grids)

    def cost(self, chosen: Iterable[int]) -> float:
        """Of these layers in 16 bits, those that always are left out."""
        # rounded once, so that the order of a set decides nothing
        return math.fsum(self.layers[i].cost for i in chosen)

    def total(self, chosen: Iterable[int]) -> float:
        """What the network takes with these layers in 16 bits: microseconds, or multiply-accumulates in 16 bits."""
        inside = set(chosen)
        return math.fsum(layer.wide if i in inside or not layer.grids else layer.narrow for i, layer in enumerate(self.layers))

    def share(self, chosen: Iterable[int]) -> float:
        """Of the multiply-accumulates, those in 16 bits; of the time that all layers in 16 bits take longer, what these take."""
        if self.unit == "multiply-accumulates":
            return self.total(chosen) / max(self.total(self.choices), 1)
        return self.cost(chosen) / self.cost(self.choices)

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
        """The plan with the 16-bit plan's biases, accumulators and arithmetic."""
        bias = None if plan.bias_bits is None else self.wide.bias_bits
        sums = None if plan.accumulator_bits is None else self.wide.accumulator_bits
        return replace(plan, bias_bits=bias, accumulator_bits=sums, arithmetic=self.wide.arithmetic)


def network(graph: Graph, base: Plan, wide: Plan, costs: Costs | None = None) -> Network:
    """The layers of a graph in execution order.

    Parameters
    ----------
    costs
        A device's times; by default multiply-accumulates count. A layer's width is that of its narrowest tensor.

    Raises
    ------
    QkitError
        If no tensor of the base plan is narrower than 16 bits, the times are not those of this network, or all layers in 16
        bits take no longer than the base plan.
    """
    together: dict[str, list[Operation]] = {}
    for op in graph.operations:
        if op.quantized and (op.name in base.grids or op.weight in base.grids):
            together.setdefault(op.weight or op.name, []).append(op)
    layers, widths = [], {}
    for operations in together.values():
        tensors = dict.fromkeys(name for op in operations for name in (op.weight, op.name) if name is not None)
        narrow = [t for t in tensors if t in wide.grids and t in base.grids and base.grids[t].spec.bits < 16]
        name = operations[0].name
        taps = tuple(op.name for op in operations)
        widths[name] = taps, tuple(sorted({16, *[min((base.grids[t].spec.bits for t in narrow), default=16)]}))
        layers.append(
            Layer(
                name,
                operations[0].index,
                {tensor: wide.grids[tensor] for tensor in narrow},
                0,
                sum(op.macs or max(math.prod(op.shape[1:]), 1) for op in operations),
                operations[0].weight is not None,
                taps,
            )
        )
    layers.sort(key=lambda layer: layer.index)
    if not any(layer.grids for layer in layers):
        raise QkitError(
            f"the plan {base.name!r} has no tensor of fewer than 16 bits: there is nothing to search. Use a study with a "
            "narrower scheme, such as 'int8'."
        )
    if costs is None:
        return Network(graph, base, wide, tuple(layers))
    times, remarks = times_of(costs, widths, [op.name for op in graph.operations if op.kind == "input"])
    timed = tuple(
        replace(layer, narrow=times[layer.name][min(times[layer.name])], wide=times[layer.name][16]) for layer in layers
    )
    net = Network(graph, base, wide, timed, "µs", tuple(remarks))
    slow, fast = net.total(net.choices), net.total(())
    if not slow > fast:
        raise QkitError(
            f"by {costs.source} all layers in 16 bits take {slow:.6g} µs, no longer than the {fast:.6g} µs of the plan "
            f"{base.name!r}: there is nothing to save. Use study.with_scheme('int16'), or look whether the times of the two "
            "widths are exchanged."
        )
    return net


_MOST_NAMES = 6
_EPSILON = 1e-12


@dataclass(frozen=True)
class Setting:
    """One choice of 16-bit layers, scored.

    Attributes
    ----------
    name
        "found", "none", "all", "first", "last", "first and last", "first 12" (layers with weights, until the target is reached),
        "front 3".
    layers
        Names of the layers in 16 bits, in execution order.
    cost
        Microseconds of the whole network, or multiply-accumulates in 16 bits: `Mixed.unit` says which.
    share
        Of the multiply-accumulates that are in 16 bits, 0 to 1. Of times: of what all layers in 16 bits take longer than none,
        what these take; below 0 where they are faster.
    selection
        Score on the data that the search used.
    evaluation
        Score on the evaluation data.
    loss
        Against float on the evaluation data, paired.
    reached
        Whether the score on the evaluation data reaches the target.
    """

    name: str
    layers: tuple[str, ...]
    cost: float
    share: float
    selection: float
    evaluation: Interval
    loss: Interval
    reached: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "name": self.name,
            "layers": list(self.layers),
            "cost": self.cost,
            "share": self.share,
            "selection": self.selection,
            "evaluation": self.evaluation.to_dict(),
            "loss": self.loss.to_dict(),
            "reached": self.reached,
        }


@dataclass(frozen=True, eq=False)
class Mixed:
    """The answer of :func:`qkit.mixed.search`.

    Attributes
    ----------
    plan
        The study's plan with the found layers in 16 bits: ``study.with_plan(mixed.plan)``.
    found
        The cheapest set found that reaches the target on the selection data; all layers where none does.
    front
        Sets tried that no other beats in both cost and score on the selection data, the cheapest first; a score counts as far as
        the search believes it, see ``caution``.
    baselines
        None, all, first, last, first and last, and these growing until the target is reached on the selection data.
    float_score, float_selection
        Float on the evaluation and on the selection data.
    target, selection_target
        What was to be reached on either.
    metric, selection_metric
        Names of the scores on either.
    units
        How scores are shown.
    select
        The data that the search used: "calibration" or "evaluation".
    unit
        What costs count: "multiply-accumulates", or "µs" where a table of times was given.
    costs
        Of 16 bits, by layer in execution order: multiply-accumulates a sample, or elements of the output where a layer has none;
        or microseconds more than in the study's plan, 0 or less where 16 bits are no slower.
    scored
        Sets of layers that the search scored.
    remarks
        What a reader of the figures has to know.
    """

    plan: Plan
    found: Setting
    front: tuple[Setting, ...]
    baselines: tuple[Setting, ...]
    float_score: Interval
    float_selection: float
    target: float
    selection_target: float
    metric: str
    selection_metric: str
    units: Units
    select: str
    unit: Unit
    costs: Mapping[str, float]
    scored: int
    remarks: tuple[str, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers in 16 bits, in execution order; a layer is a tap together with its weight."""
        return self.found.layers

    @property
    def share(self) -> float:
        """Of the found set, see `Setting`."""
        return self.found.share

    @property
    def cost(self) -> float:
        """Of the found set, in `unit`, see `Setting`."""
        return self.found.cost

    @property
    def reached(self) -> bool:
        """Whether the found set reaches the target on the evaluation data."""
        return self.found.reached

    @property
    def reached_in_search(self) -> bool:
        """Whether it does so on the data that it was chosen on."""
        return self.found.selection >= self.selection_target - _EPSILON

    @property
    def best_baseline(self) -> Setting | None:
        """The cheapest of the baselines that reach the target on the evaluation data, all layers in 16 bits left out."""
        reaching = [s for s in self.baselines if s.reached and s.name != "all"]
        return min(reaching, key=lambda s: s.cost, default=None)

    def table(self) -> pd.DataFrame:
        """A row per setting: the found one, baselines, the front; scores and paired losses against float, with 95 % intervals.

        The cost is in a column that its unit names.
        """
        rows = {}
        for s in (self.found, *self.baselines, *self.front):
            rows[s.name] = {
                "layers": len(s.layers),
                self.unit: s.cost,
                "share": s.share,
                "selection": s.selection,
                "score": s.evaluation.value,
                "low": s.evaluation.low,
                "high": s.evaluation.high,
                "loss": s.loss.value,
                "loss low": s.loss.low,
                "loss high": s.loss.high,
                "reached": s.reached,
            }
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("setting")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; without the plan, which has a form of its own."""
        return {
            "metric": self.metric,
            "selection_metric": self.selection_metric,
            "select": self.select,
            "unit": self.unit,
            "target": self.target,
            "selection_target": self.selection_target,
            "float": self.float_score.to_dict(),
            "float_selection": self.float_selection,
            "reached": self.reached,
            "found": self.found.to_dict(),
            "front": [s.to_dict() for s in self.front],
            "baselines": [s.to_dict() for s in self.baselines],
            "costs": dict(self.costs),
            "scored": self.scored,
            "remarks": list(self.remarks),
        }

    def plot(self) -> Picture:
        """The front: score over the network's time, or over the share of multiply-accumulates in 16 bits, with target and
        baselines, as a picture.
        """
        from qkit.figures.drawing import picture
        from qkit.figures.front import draw

        over = "time in µs" if self.unit == "µs" else "the share of multiply-accumulates in 16 bits"
        return picture(draw, self, words=f"{self.metric} over {over}", width=7.6, height=4.4)

    def _costs(self, setting: Setting) -> str:
        """What a setting costs, with its unit."""
        if self.unit == "multiply-accumulates":
            return f"{setting.share:.1%} of the multiply-accumulates"
        none, every = (next(s.cost for s in self.baselines if s.name == name) for name in ("none", "all"))
        return f"{setting.cost:.6g} µs (with none {none:.6g} µs, with all {every:.6g} µs)"

    @property
    def summary(self) -> str:
        """The answer in a sentence."""
        n = len(self.layers)
        what = f"{n} {'layer' if n == 1 else 'layers'} in 16 bits, {self._costs(self.found)},"
        verb = ("reaches" if n == 1 else "reach") if self.reached else ("does not reach" if n == 1 else "do not reach")
        score = f"{self.metric} {self.found.evaluation} of {self.target:.4g}"
        return f"{what} {verb} the target: {score}, float {self.float_score.value:.4g}."

    def __repr__(self) -> str:
        lines = [f"Mixed({self.summary}"]
        if self.layers:
            lines.append(f"  in 16 bits: {few(self.layers, _MOST_NAMES)}")
        best = self.best_baseline
        if best is not None:
            lines.append(f"  cheapest baseline that reaches it: {best.name}, {self._costs(best)}")
        else:
            lines.append("  no baseline but all layers in 16 bits reaches it")
        lines.append(
            f"  chosen on the {self.select} data among {self.scored} sets, scored on {self.float_score.n} evaluation samples"
        )
        lines += [f"  {remark}" for remark in self.remarks]
        return "\n".join(lines) + ")"

    def _repr_html_(self) -> str:
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self.remarks)
        layers = html.escape(", ".join(self.layers) or "none")
        table = self.table().to_html(float_format="{:.4f}".format)
        return f"<p><b>{html.escape(self.summary)}</b></p><p>In 16 bits: {layers}</p>{remarks}{table}"
