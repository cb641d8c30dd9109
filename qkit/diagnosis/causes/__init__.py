"""What statistics suggest about one tensor: a file a cause family, each from a `Subject` to candidates."""

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes import activations, biases, grids, joins, ranges, weights
from qkit.diagnosis.causes.subject import Subject

__all__ = ["Subject", "candidates"]


def candidates(subject: Subject) -> list[Candidate]:
    """All candidates of a tensor, the most specific first: the order in which they are believed where several are confirmed."""
    found: list[Candidate] = []
    for family in (ranges, grids, weights, joins, activations, biases):
        found += family.candidates(subject)
    return [*found, *grids.last_resort(subject)]
