"""Integer widths beside the grids: biases and accumulators that are too narrow, found by widening them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.remedies import Remedy
from qkit.execution.evaluator import OutOfBudgetError
from qkit.execution.integer_forms import chosen
from qkit.execution.lanes import Decision, decide, lane_weight
from qkit.execution.statistics import Interval
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import ACCUMULATING
from qkit.listing import few
from qkit.quant.biases import coarser_scales
from qkit.quant.memory import by_channel
from qkit.quant.plan import FLOAT, Plan

#: Coarser weight scales are preferred to wider biases if they recover this share of what those do.
_ALMOST = 0.7


def bias_width(bench: Bench, plan: Plan) -> list[Cause]:
    """`bias-width`: the loss without narrow biases, and the layer that explains most of it."""
    if plan.bias_bits is None or plan.bias_bits >= 64:
        return []

    def wide(narrow: Plan) -> Plan:
        return replace(narrow, bias_bits=64)

    bench.scores({"wide": wide(plan), "plan": plan}, plan, what="wider biases")
    gain = bench.gain(wide(plan), plan)
    if not bench.sure(gain):
        return []
    layer, own = gaining_most(bench, plan, wide, lambda op, plan, decision: decision.bias_scale is not None)
    most = f", most of it at {layer}" if layer else ""
    evidence = f"with {plan.bias_bits} bits the biases cost score{most}; with 64 bits they do not."
    coarser = coarser_scales(bench.study.graph, plan.grids, plan.bias_bits, bench.study.observe(progress=False), free=False)
    if coarser:
        text = f"Choose the weight scales of {few(coarser)} so coarse that the biases fit {plan.bias_bits} bits."
        fitting = Remedy("coarser-weight-scale", "", text, grids=coarser)
        bench.scores({"coarser": fitting.plan(plan)}, plan, what="coarser weight scales")
        regained = bench.gain(fitting.plan(plan), plan)
        if bench.sure(regained) and regained.value >= _ALMOST * gain.value:
            return [Cause("bias-width", layer, layer, evidence, fitting, regained, None, own)]
    remedy = Remedy("wider-bias", "", "Give the biases 32 bits.", bias_bits=64 if plan.bias_bits >= 32 else 32)
    return [Cause("bias-width", layer, layer, evidence, remedy, gain, None, own)]


def accumulator_overflow(bench: Bench, plan: Plan) -> list[Cause]:
    """`accumulator-overflow`: what accumulators without end gain, and the layer that explains most of it."""
    if plan.accumulator_bits is None:
        return []

    def wide(narrow: Plan) -> Plan:
        return replace(narrow, accumulator_bits=None)

    bench.scores({"wide": wide(plan), "plan": plan}, plan, what="wider accumulators")
    gain = bench.gain(wide(plan), plan)
    if not bench.sure(gain):
        return []
    layer, own = gaining_most(bench, plan, wide, _accumulates)
    needed = needed_accumulator(bench.study.graph, plan)
    most = f", most of all in {layer}" if layer else ""
    evidence = f"sums beyond {plan.accumulator_bits} bits wrap around{most}; in accumulators without end the score comes back."
    text = f"Accumulate in {needed} bits: no sum that these weights and grids can make is greater."
    remedy = Remedy("wider-accumulator", "", text, accumulator_bits=needed)
    return [Cause("accumulator-overflow", layer, layer, evidence, remedy, gain, None, own)]


def needed_accumulator(graph: Graph, plan: Plan) -> int:
    """Bits of a signed accumulator that holds whatever inputs on their grids can sum up to, in every layer.

    The greatest sum of a channel is that of the magnitudes of its weights' codes, times the greatest of an input code less
    the zero point, plus the bias.
    """
    bits = 2
    for op in graph.operations:
        if _is_product(op, plan):
            grids = [plan.params(graph.operations[i].tap) for i in op.inputs]
            greatest = op.terms * math.prod(grid.reach for grid in grids if grid is not None)
            bits = max(bits, greatest.bit_length() + 1)
            continue
        source = plan.params(graph.operations[op.inputs[0]].tap) if op.kind in ACCUMULATING else None
        weight = plan.params(op.weight)
        if source is None or weight is None or op.weight is None or source.axis is not None:
            continue
        axis = op.weight_axis or 0
        grid = weight.scale.double()
        codes = by_channel(lane_weight(graph, plan, op.weight).double().cpu(), axis).abs().sum(1) / grid
        reach = int((source.qmin - source.zero_point).abs().max().maximum((source.qmax - source.zero_point).abs().max()))
        sums = codes * reach
        if op.bias is not None:
            sums = sums + graph.biases[op.bias].double().cpu().abs() / (source.scale.double() * grid)
        bits = max(bits, math.ceil(math.log2(float(sums.max()) + 1.0)) + 1)
    return min(bits, 64)


def _is_product(op: Operation, plan: Plan) -> bool:
    """Whether it is a product of two activations whose sums run up in an accumulator."""
    return op.kind == "matmul" and chosen(op, plan.arithmetic)


def _accumulates(op: Operation, plan: Plan, decision: Decision) -> bool:
    return decision.accumulator is not None or (decision.setting is not None and _is_product(op, plan))


def gaining_most(
    bench: Bench, plan: Plan, wide: Callable[[Plan], Plan], affects: Callable[[Operation, Plan, Decision], bool]
) -> tuple[str, Interval | None]:
    """The layer that gains most of its own from being widened, with that gain; "" where the budget does not reach so far."""
    graph = bench.study.graph
    pairs = {}
    for op in graph.operations:
        sources = [tap for i in op.inputs if (tap := graph.operations[i].tap) is not None]
        if sources and affects(op, plan, decide(op, plan, graph)):
            # a layer goes by its path, a product by its own name: a module may have several
            where, own = (op.layer, op.weight) if op.weight is not None else (op.name, op.name)
            pairs[where] = plan.only([*sources, own])
    wides = {layer: wide(pair) for layer, pair in pairs.items()}
    try:
        bench.scores(pairs, FLOAT, what="integer widths, layer by layer")
        bench.scores(wides, FLOAT, what="integer widths, layer by layer")
    except OutOfBudgetError:
        return "", None
    gains = {layer: bench.gain(wides[layer], pairs[layer]) for layer in pairs}
    layer = max(gains, key=lambda name: gains[name].value, default="")
    return layer, gains.get(layer)
