"""One quantized tensor with everything that the cause families look at."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from qkit.diagnosis.equalized_grids import equalized
from qkit.diagnosis.remedies import Remedy
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.smoothing import function_of, readers_of
from qkit.quant.estimators import Observation, activation_grid, weight_grid
from qkit.quant.grids import QuantSpec
from qkit.quant.histogram import Histogram
from qkit.quant.memory import by_channel
from qkit.quant.plan import Grid, Plan

#: Kinds of operations that hand the greatest values of an input on, more or less as they are.
_PASSING = frozenset({"concat", "add", "pool", "resize", "activation"})
_JOINS = frozenset({"add", "concat"})
#: Inputs of a join are apart if one reaches so many times as far as another.
_APART = 4.0
#: A channel's greatest value is called rare if it exceeds what 99 % of the channel stay below so many times.
_RARE = 3.0
#: Channels are even if the widest is at most so many times as wide as the median one.
EVEN = 3.0
_SOFTMAXES = frozenset({"softmax", "attention_weights"})
#: How sentences call functions.
_FUNCTIONS = {
    "gelu": "GELU", "silu": "SiLU", "quick_gelu": "GELU", "hardswish": "hard swish", "attention_weights": "softmax",
    "layer_norm": "the layer norm", "rms_norm": "the RMS norm", "group_norm": "the group norm",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Subject:
    """A tap or a weight under suspicion.

    Attributes
    ----------
    graph, op
        Where it is.
    tensor
        Its name in the plan.
    grid
        Its grid there.
    seen
        Observations of all taps.
    plan
        All grids.
    typical
        Of every tap's channels, float64 (C,): the magnitude that 99 % of the values stay below.
    source_mean
        For weights: mean of every channel of the layer's input, float64 (C_in,); None if not observed.
    output_deviation
        For weights: root mean square of the layer's output.
    scalable
        Taps of norms that scales can be folded into.
    """

    graph: Graph
    op: Operation
    tensor: str
    grid: Grid
    seen: Mapping[str, Observation]
    plan: Plan
    typical: Mapping[str, np.ndarray]
    source_mean: Tensor | None = None
    output_deviation: float = 0.0
    scalable: Collection[str] = ()

    @property
    def is_weight(self) -> bool:
        """Whether it is a weight."""
        return self.tensor == self.op.weight

    @property
    def weight(self) -> Tensor:
        """The weight's values."""
        return self.graph.weights[self.tensor]

    @property
    def observation(self) -> Observation:
        """What was seen at the tap."""
        return self.seen[self.op.name]

    @property
    def noun(self) -> str:
        """What it is, in words: the output of a softmax, logits, "the tensor" where there is no better word."""
        if self.is_weight:
            return "the tensor"
        if self.op.kind in ("activation", "norm"):
            return f"the output of {_FUNCTIONS.get(name := function_of(self.op), name)}"
        return "the softmax's input" if self.feeds_softmax else "the tensor"

    @property
    def feeds_softmax(self) -> bool:
        """Whether a softmax alone reads the tap, through operations that keep the grid."""
        found, at = False, {self.op.index}
        for op in self.graph.operations[self.op.index + 1 :]:
            if at.isdisjoint(op.inputs) or op.kind == "meta":
                continue
            if op.kind == "keep":
                at.add(op.index)
            elif op.kind == "activation" and function_of(op) in _SOFTMAXES:
                found = True
            else:
                return False
        return found

    @property
    def histogram(self) -> Histogram:
        """Of all elements."""
        return Histogram.of(self.weight, name=self.tensor) if self.is_weight else self.observation.histogram

    @property
    def channel_peaks(self) -> np.ndarray:
        """Greatest magnitude of every channel, float64 (C,)."""
        if not self.is_weight:
            return self.peaks_of(self.op.name)
        return np.asarray(self.weight_rows.abs().amax(1).cpu().double())

    @property
    def weight_rows(self) -> Tensor:
        """The weight as (C, everything else); a standing norm's has one number a channel."""
        return by_channel(self.weight, self.op.weight_axis or 0)

    @property
    def lineage(self) -> tuple[Operation, ...]:
        """The tap's operation, and before it those whose greatest values only pass through here, the origin last.

        A join of inputs that differ as wholes is itself the origin.
        """
        found = [self.op]
        while found[-1].kind in _PASSING and self.mismatch(found[-1]) is None:
            sources = (self.graph.operations[i].tap for i in found[-1].inputs)
            reach = {tap: self.reach(tap) for tap in sources if tap is not None and tap in self.seen and tap in self.plan.grids}
            widest = max(reach, key=reach.__getitem__, default=None)
            if widest is None or reach[widest] < 0.8 * self.reach(found[-1].name):
                break
            found.append(self.graph.operation(widest))
        return tuple(found)

    def reach(self, tap: str) -> float:
        """Greatest magnitude seen at a tap."""
        return max(abs(self.seen[tap].histogram.min), abs(self.seen[tap].histogram.max))

    def mismatch(self, op: Operation) -> tuple[str, str] | None:
        """The inputs of a join that reach least and furthest, if all channels of the latter reach far; None otherwise.

        Single channels or values that stand out of an input are that input's fault, not the join's.
        """
        if op.kind not in _JOINS:
            return None
        sources = (self.graph.operations[i].tap for i in op.inputs)
        reach = {tap: self.reach(tap) for tap in sources if tap is not None and tap in self.typical}
        if len(reach) < 2 or min(reach.values()) <= 0.0:
            return None
        small, large = min(reach, key=reach.__getitem__), max(reach, key=reach.__getitem__)
        even = spread(self.typical[large]) <= EVEN and not self.rare(large)[1]
        return (small, large) if even and reach[large] > _APART * reach[small] else None

    def rare(self, tap: str) -> tuple[int, bool]:
        """The channel that reaches furthest, and whether few of its values do."""
        peaks, typical = self.peaks_of(tap), self.typical[tap]
        channel = int(np.argmax(peaks))
        return channel, len(peaks) == len(typical) and bool(peaks[channel] > _RARE * typical[channel])

    def peaks_of(self, tap: str) -> np.ndarray:
        """Greatest magnitude of a tap's channels, float64 (C,)."""
        seen = self.seen[tap]
        return np.asarray(np.maximum(np.abs(seen.channel_min), np.abs(seen.channel_max)), float)

    def at_bits(self, bits: int, operations: Sequence[Operation] = ()) -> dict[str, Grid]:
        """Grids of that width by the same rule: of this tensor, or of the operations' taps."""
        if self.is_weight or not operations:
            return {self.tensor: self.regrid(replace(self.grid.spec, bits=bits), "minmax")}
        grids = {}
        for op in operations:
            spec = replace(self.plan.grids[op.name].spec, bits=bits)
            grids[op.name] = activation_grid(self.seen[op.name], spec, "minmax", op.channel_axis)
        return grids

    def regrid(self, spec: QuantSpec, method: str = "mse") -> Grid:
        """The tensor's grid by another rule, its range chosen anew from what was seen."""
        if self.is_weight:
            return weight_grid(self.weight, spec, method, self.op.weight_axis)  # type: ignore[arg-type]
        return activation_grid(self.observation, spec, method, self.op.channel_axis)  # type: ignore[arg-type]

    def equalization(self, by: str) -> Remedy | None:
        """Cross-layer equalization of the layer with the next one; None where it does not apply."""
        op, seen = self.op, self.seen.get(self.op.name)
        if seen is None:
            return None
        grids = equalized(self.graph, op, self.plan.grids, seen.channel_min, seen.channel_max, by)
        text = f"Even out the channels between {op.layer} and the layer behind it (cross-layer equalization)."
        return Remedy("cross-layer-equalization", op.layer, text, grids) if grids else None

    def smoothing(self) -> Remedy | None:
        """Scales folded between the norm and the linear layers behind it, with the grids after that; None where none can be."""
        op, tap = self.op, self.op.name
        if self.is_weight or tap not in self.scalable or self.grid.params.axis is not None:
            return None
        from qkit.ptq.smoothing import factors_of  # loads all of post-training calibration

        by = factors_of(self.graph, tap, self.seen[tap])
        low, high = float((self.observation.channel_min / by).min()), float((self.observation.channel_max / by).max())
        grids = {tap: self.grid.at(self.grid.spec.params(min(low, 0.0), max(high, 0.0)), "smoothed")}
        readers = readers_of(self.graph, op)
        for reader in readers:
            name = reader.weight or ""
            if (old := self.plan.grids.get(name)) is None:
                continue
            weight = self.graph.weights[name] * torch.from_numpy(by).to(self.graph.weights[name])
            grids[name] = replace(weight_grid(weight, old.spec, "minmax", reader.weight_axis), method="smoothed")
        text = f"Fold scales between {op.layer} and {' and '.join(r.layer for r in readers)} (SmoothQuant)."
        return Remedy("smooth-scales", op.layer, text, grids, factors={tap: tuple(by.tolist())})


def spread(peaks: np.ndarray) -> float:
    """Greatest over median channel range, of the channels that hold anything."""
    used = peaks[peaks > 0]
    return float(used.max() / np.median(used)) if len(used) > 1 else 1.0
