"""Weights whose rounding errors do not average out: the output's mean shifts, channel by channel."""

from __future__ import annotations

import torch
from torch import Tensor

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy
from qkit.execution.lanes import quantize_weight


def candidates(subject: Subject) -> list[Candidate]:
    """`bias-shift`: what the rounding of the weights adds to the mean output, from the mean inputs.

    Correction after Nagel et al. (2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2),
    with the inputs' means as measured. Padding is taken to hold the mean as well, which is off at the borders.
    """
    op = subject.op
    if not subject.is_weight or op.kind not in ("conv", "linear") or op.bias is None or subject.source_mean is None:
        return []
    shift = mean_shift(
        subject.weight, quantize_weight(subject.weight, subject.grid.params, subject.grid.codes), subject.source_mean
    )
    if shift is None:
        return []
    deviation = max(subject.output_deviation, 1e-30)
    typical = float(shift.square().mean().sqrt())
    if typical < 0.02 * deviation:
        return []
    evidence = (
        f"rounding {subject.tensor} shifts the mean of its output channels by {typical:.3g} (root mean square), "
        f"{typical / deviation:.0%} of the output's deviation."
    )
    corrections = {op.name: tuple((-shift).tolist())}
    remedy = Remedy("bias-correction", op.layer, f"Correct the biases of {op.layer} by that shift.", corrections=corrections)
    return [Candidate("bias-shift", op.layer, subject.tensor, evidence, remedy)]


def mean_shift(weight: Tensor, quantized: Tensor, source_mean: Tensor) -> Tensor | None:
    """Shift of every output channel's mean, float64 (C_out,); None where the shapes say nothing (flattened inputs)."""
    error = (quantized - weight).double().cpu()
    per_input = error.flatten(2).sum(2) if error.ndim > 2 else error
    outputs, inputs = per_input.shape
    mean = source_mean.double().cpu()
    if len(mean) == inputs:
        return per_input @ mean
    if error.ndim > 2 and len(mean) % inputs == 0 and outputs % (len(mean) // inputs) == 0:
        groups = len(mean) // inputs
        by_group = per_input.view(groups, outputs // groups, inputs)
        return torch.einsum("goi,gi->go", by_group, mean.view(groups, inputs)).flatten()
    return None
