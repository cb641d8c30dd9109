"""Additions and concatenations whose inputs differ so much that the small one is lost on the common grid."""

from __future__ import annotations

import numpy as np

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject, spread
from qkit.diagnosis.remedies import Remedy

_JOINS = frozenset({"add", "concat"})


def candidates(subject: Subject) -> list[Candidate]:
    """`mismatched-join`."""
    step, tensor = subject.step, subject.tensor
    if subject.is_weight or step.kind not in _JOINS or len(step.inputs) < 2:
        return []
    sources = [subject.graph.steps[index].tap for index in step.inputs]
    reach = {tap: subject.reach(tap) for tap in sources if tap is not None and tap in subject.seen}
    if len(reach) < 2 or min(reach.values()) <= 0.0:
        return []
    small, large = min(reach, key=reach.__getitem__), max(reach, key=reach.__getitem__)
    ratio = reach[large] / reach[small]
    if ratio < 4.0 or spread(subject.typical.get(large, np.ones(1))) > 3.0:
        # single channels or values that stand out of the large one are that one's fault, not the join's
        return []
    evidence = f"{large} reaches {ratio:.3g} times as far as {small}, which is left with few steps of the common grid."
    text = f"Join at 16 bits at {tensor}, or scale its inputs apart."
    remedy = Remedy("split-join", step.layer, text, subject.at_bits(16))
    return [Candidate("mismatched-join", step.layer, tensor, evidence, remedy)]
