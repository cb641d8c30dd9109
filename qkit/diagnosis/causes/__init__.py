"""What statistics suggest about one tensor: a file a cause family, each from a `Subject` to candidates."""

from qkit.diagnosis.candidates import Candidate
from qkit.diagnosis.causes import activation_reach, attention, biases, grid_rules, joins, range_fit, weight_channels
from qkit.diagnosis.causes.subject import Subject

__all__ = ["Subject", "candidates"]


def candidates(subject: Subject) -> list[Candidate]:
    """All candidates of a tensor, the most specific first: the order in which they are believed where several are confirmed."""
    found: list[Candidate] = []
    for family in (range_fit, grid_rules, attention, weight_channels, joins, activation_reach, biases):
        found += family.candidates(subject)
    return [*found, *grid_rules.last_resort(subject)]
