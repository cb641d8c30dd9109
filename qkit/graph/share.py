"""How much of a network an integer engine computes: the share of multiply-accumulates and of elements on a grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qkit.graph.step import Step

#: Kinds that compute nothing of their own.
_PASSIVE = frozenset({"input", "constant", "keep", "meta", "output"})


@dataclass(frozen=True)
class Share:
    """Shares from 0 to 1.

    Attributes
    ----------
    macs
        Of the multiply-accumulates, those whose operands are on grids; the elements' where there are none at all.
    elements
        Of the elements that operations compute, those that are put on a grid.
    """

    macs: float
    elements: float

    def __str__(self) -> str:
        return f"{_percent(self.macs)} of the multiply-accumulates and {_percent(self.elements)} of the elements are integers"


def share_of(steps: Sequence[Step], bare: Collection[str] = ()) -> Share:
    """The shares of a graph's steps.

    Parameters
    ----------
    bare
        Taps and weights that a plan leaves without a grid.
    """
    macs = integer_macs = elements = integer_elements = 0
    for step in steps:
        macs += step.macs
        sources = [steps[i] for i in step.inputs if steps[i].kind not in {"meta", "constant"}]
        on_grids = step.quantized and step.weight not in bare and all(s.tap is not None and s.tap not in bare for s in sources)
        integer_macs += step.macs * on_grids
        if step.kind not in _PASSIVE:
            elements += step.elements
            integer_elements += step.elements * (step.quantized and step.tap not in bare)
    of_elements = integer_elements / elements if elements else 1.0
    return Share(integer_macs / macs if macs else of_elements, of_elements)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0.0 < share < 1.0 else f"{100 * share:.0f} %"
