"""Additions and concatenations whose inputs differ so much that the small one is lost on the common grid."""

from __future__ import annotations

from dataclasses import replace

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy

_JOINS = frozenset({"add", "concat"})


def candidates(subject: Subject) -> list[Candidate]:
    """`mismatched-join`."""
    step, tensor = subject.step, subject.tensor
    if subject.is_weight or step.kind not in _JOINS or len(step.inputs) < 2:
        return []
    reach = {}
    for index in step.inputs:
        tap = subject.graph.steps[index].tap
        if tap is not None and tap in subject.seen:
            hist = subject.seen[tap].histogram
            reach[tap] = max(abs(hist.min), abs(hist.max))
    if len(reach) < 2 or min(reach.values()) <= 0.0:
        return []
    small, large = min(reach, key=reach.__getitem__), max(reach, key=reach.__getitem__)
    ratio = reach[large] / reach[small]
    if ratio < 4.0:
        return []
    evidence = f"{large} reaches {ratio:.3g} times as far as {small}, which is left with few steps of the common grid."
    wide = subject.regrid(replace(subject.grid.spec, bits=16), "minmax")
    remedy = Remedy("split-join", step.layer, f"Join at 16 bits at {tensor}, or scale its inputs apart.", {tensor: wide})
    return [Candidate("mismatched-join", step.layer, tensor, evidence, remedy)]
