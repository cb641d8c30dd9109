"""Additions and concatenations whose inputs differ so much that the small one is lost on the common grid."""

from __future__ import annotations

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes.subject import Subject
from qkit.diagnosis.remedies import Remedy


def candidates(subject: Subject) -> list[Candidate]:
    """`mismatched-join`, at the join and at what only hands its result on."""
    if subject.is_weight:
        return []
    lineage = subject.lineage
    join = lineage[-1]
    apart = subject.mismatch(join)
    if apart is None:
        return []
    small, large = apart
    ratio = subject.reach(large) / subject.reach(small)
    evidence = f"{large} reaches {ratio:.3g} times as far as {small}, which is left with few steps of the common grid."
    text = f"Join at 16 bits at {join.name}, or scale its inputs apart."
    readers = [op for op in subject.graph.operations if join.index in op.inputs]
    if join.kind == "concat" and readers and all(op.kind == "output" for op in readers):
        text = f"Return what {join.name} joins as outputs of their own: each has its own grid then, which costs nothing."
    remedy = Remedy("split-join", join.layer, text, subject.at_bits(16, lineage))
    return [Candidate("mismatched-join", join.layer, join.name, evidence, remedy)]
