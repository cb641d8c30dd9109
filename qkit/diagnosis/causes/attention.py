"""Masked logits: values that softmax gives nothing, and that stretch the range of all others."""

from __future__ import annotations

import math

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy
from qkit.graph.operation import Operation

#: The unmasked logits' range has to be this much narrower than the grid's for the masked ones to matter.
_NARROWER = 0.75


def candidates(subject: Subject) -> list[Candidate]:
    """`activation-outlier` at logits to which a mask such as -100 or -1e9 was added.

    The least logit that is not masked is at least L. What lies ``log(2 ** (bits + 1))`` below it has a probability of less than
    half a step of a grid of that width, wherever it ends: clipped there, masked logits still get nothing.
    """
    op, grid = subject.op, subject.grid
    if subject.is_weight or op.kind != "add" or grid.params.axis is not None or not subject.feeds_softmax:
        return []
    parts = [subject.graph.operations[i] for i in op.inputs]
    mask = next((part for part in parts if _is_mask(subject, part)), None)
    rest = [part.tap for part in parts if part is not mask and part.tap in subject.seen]
    if mask is None or len(rest) != 1:
        return []
    logits = subject.seen[rest[0] or ""].histogram
    low = logits.min - math.log(2.0 ** (grid.spec.bits + 1))
    high = subject.histogram.max
    now = float(grid.params.hi - grid.params.lo)
    if high - low > _NARROWER * now:
        return []
    masked = subject.histogram.share_between(subject.histogram.min, low)
    evidence = (
        f"{masked:.0%} of the logits at {op.name} are masked, down to {subject.histogram.min:.4g}; softmax gives them nothing. "
        f"The others lie between {logits.min:.4g} and {high:.4g}, {(high - logits.min) / now:.0%} of the grid's range."
    )
    clipped = grid.at(grid.spec.params(max(low, float(grid.params.lo)), high))
    text = f"Clip {subject.tensor} at {low:.4g} to {high:.4g}: masked logits stay too low to count."
    remedy = Remedy("clip-activation", op.layer, text, {subject.tensor: clipped})
    return [Candidate("activation-outlier", op.layer, subject.tensor, evidence, remedy)]


def _is_mask(subject: Subject, part: Operation) -> bool:
    """Whether it is a constant that is 0, or far below 0."""
    if part.kind != "constant" or part.tap is None or part.tap not in subject.seen:
        return False
    found = subject.seen[part.tap].histogram
    return found.max <= 0.0 and found.zeros > 0 and found.min < -math.log(2.0**16)
