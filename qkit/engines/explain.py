"""Why an engine's codes differ from the simulation's on equal inputs: known differences of engines, tried one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from qkit.engines.comparison import ROUNDING, Steps, TapSums
from qkit.graph import Graph
from qkit.lanes import ACCUMULATING, decide
from qkit.numerics import QuantParams, quantize_bias, saturated_biases
from qkit.operations import UNBOUNDED, Bounds
from qkit.plan import Plan
from qkit.steps import Step

_BIAS = "the engine stores its biases in 32 bits at the scale of input times weight, where {} of them do not fit and saturate"
_WRONG_BIAS = (
    "the engine stores its biases in 32 bits at the scale of input times weight, where {} of them do not fit and become the most "
    "negative number, whatever their sign"
)
_NO_ACTIVATION = "the engine's tensor is the one in front of the activation that the kit has fused in"
_AWAY = "halves are rounded away from zero, not to even"
_UP = "halves are rounded up, not to even"
_DOWN = "values are rounded down, not to nearest"
_TO_ZERO = "values are cut off towards zero, not rounded to nearest"
_OWN = "codes differ by one step at most: the engine sums or rounds in another order"


class Explanations:
    """Tries each known difference at the taps that need a reason and sums up how well it does."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        self.graph, self.plan = graph, plan
        self.found: dict[str, dict[str, Steps]] = defaultdict(lambda: defaultdict(Steps))

    def tried(self, step: Step, y: Tensor, engine: Tensor, params: QuantParams, scale: Tensor) -> None:
        """Add a batch: `y` is the step's result on the engine's inputs before activation and rounding."""
        zero = params.zero_point.to(y.device).double()
        if params.axis is not None:
            zero = zero.view(scale.shape)
        low, high = params.qmin - zero, params.qmax - zero
        theirs = engine.double() / scale
        for words, steps in self._variants(step, y.double(), scale):
            self.found[step.name][words].add((theirs - torch.minimum(torch.maximum(steps, low), high)).round())

    def _variants(self, step: Step, y: Tensor, scale: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Words and the codes less the zero point, whole numbers, not yet cut to the grid."""
        shape = [1] * y.ndim
        if y.ndim:
            shape[step.channel_axis] = -1
        for words, moved in self._moved_biases(step):
            other = _clamped(y + moved.to(y.device).view(shape), step.act)
            yield words, (other / scale).round()
        if step.act != UNBOUNDED:
            yield _NO_ACTIVATION, (y / scale).round()
        exact = _clamped(y, step.act) / scale
        yield _AWAY, torch.sign(exact) * (exact.abs() + 0.5).floor()
        yield _UP, (exact + 0.5).floor()
        yield _DOWN, exact.floor()
        yield _TO_ZERO, exact.trunc()

    def _moved_biases(self, step: Step) -> Iterator[tuple[str, Tensor]]:
        """What biases of 32 bits add to the plan's own, by channel, float64; nothing where all of them fit."""
        decision = decide(step, self.plan, self.graph)
        source = self.plan.params(self.graph.steps[step.inputs[0]].tap) if step.inputs else None
        weight = decision.weight
        if step.kind not in ACCUMULATING or step.bias is None or weight is None or source is None or source.axis is not None:
            return
        bias = self.graph.biases[step.bias].detach().cpu()
        if decision.correction is not None:
            bias = bias + torch.tensor(decision.correction, dtype=bias.dtype)
        scale = source.scale.double() * weight.scale.double()
        count = saturated_biases(bias, scale, 32)
        if not count:
            return
        planned = bias if decision.bias_scale is None else quantize_bias(bias, scale, decision.bias_scale[2])
        codes = (bias.double() / scale).round()
        limit = 2.0**31
        yield _BIAS.format(count), codes.clamp(-limit, limit - 1) * scale - planned.double()
        wrong = torch.where((codes < -limit) | (codes >= limit), -limit, codes)
        yield _WRONG_BIAS.format(count), wrong * scale - planned.double()

    def reasons(self, sums: Mapping[str, TapSums]) -> dict[str, str]:
        """By tap, the known difference that brings the codes together, if one does."""
        found = {}
        for tap, variants in self.found.items():
            plain = sums[tap].local
            better = {words: steps for words, steps in variants.items() if steps.within_one >= ROUNDING}
            words = max(better, key=lambda w: better[w].same, default=None)
            gained = 0.0 if words is None else better[words].shares[0] - plain.shares[0]
            if words is not None and (plain.within_one < ROUNDING or gained > 0.005):
                found[tap] = words
            elif plain.within_one >= ROUNDING:
                found[tap] = _OWN
        return found


def _clamped(y: Tensor, act: Bounds) -> Tensor:
    return y if act == UNBOUNDED else y.clamp(*act)
