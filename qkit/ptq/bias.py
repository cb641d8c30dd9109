"""Bias correction against the float lane.

Rounding weights and inputs shifts the mean of a layer's output, channel by channel, and the next layer inherits the shift. So
the layers are corrected in execution order, each with all corrections before it in force: what is measured is the accumulated
shift against the float lane, not what the layer's own rounding adds (Nagel et al. 2019, "Data-Free Quantization Through Weight
Equalization and Bias Correction", section 4.2, in its empirical form).

The mean that counts is the one behind the activation, since that is what the next layer reads: a clamp turns a change of the
spread into a change of the mean, and hides a shift of what it clamps anyway. There a bias acts on the share of elements that the
clamp lets through, so the correction is found in a few rounds of Newton's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qkit.execution.lanes import lane_bias, lane_weight
from qkit.execution.loading import Batch
from qkit.graph import Graph
from qkit.graph.step import Step
from qkit.ptq.side_by_side import Walk, by_channel, called_twice, layers
from qkit.quant.plan import Plan

#: Rounds per layer.
ITERATIONS = 4
#: A channel of which the clamp lets through less than this share is corrected as if it were this: it hardly answers.
LEAST_SHARE = 0.05


def correct_biases(
    graph: Graph, plan: Plan, batches: Sequence[Batch], *, iterations: int = ITERATIONS, progress: bool = True
) -> Plan:
    """The plan with corrections that bring every layer's mean output to that of the float lane, on these batches.

    A weight that several steps share is left alone: its one bias cannot follow several means. An interrupt ends it without a
    result.
    """
    walk = Walk(graph, batches, plan)
    for step in layers(graph, plan, "correcting biases", progress=progress):
        if correctable(graph, step):
            walk.to(step, plan)
            plan = correct_bias(walk, step, plan, iterations=iterations)
    return plan


def correctable(graph: Graph, step: Step) -> bool:
    """Whether the step has a bias of its own to correct."""
    return step.kind != "batchnorm" and not called_twice(graph, step)


def correct_bias(walk: Walk, step: Step, plan: Plan, *, iterations: int = ITERATIONS, share: float = 1.0) -> Plan:
    """The plan with one layer's correction, each time by `share` of what is missing; the walk stands at the layer."""
    weight = lane_weight(walk.graph, plan, step.weight or "")
    for _ in range(iterations):
        shift = mean_shift(walk, step, weight, lane_bias(walk.graph, step, plan))
        before = torch.tensor(plan.corrections.get(step.name, (0.0,) * len(shift)), dtype=torch.float64)
        plan = replace(plan, corrections={**plan.corrections, step.name: tuple((before - share * shift).tolist())})
    return plan


def mean_shift(walk: Walk, step: Step, weight: Tensor, bias: Tensor | None) -> Tensor:
    """How much lower the bias of every channel has to be for its mean behind the activation to be float's, float64 (C,).

    To first order: the difference of the means by the share of elements that follow the bias.
    """
    difference: Any = 0.0
    free: Any = 0.0
    count = 0
    low, high = step.act
    for exact, quantized in walk.outputs(step, weight, bias):
        a, b = by_channel(exact, step.channel_axis), by_channel(quantized, step.channel_axis)
        difference = difference + (b.clamp(low, high) - a.clamp(low, high)).sum(1).cpu()
        free = free + ((b > low) & (b < high)).sum(1).double().cpu()
        count += a.shape[1]
    return torch.as_tensor(difference / torch.as_tensor(free).clamp(min=LEAST_SHARE * count))
