"""How much of a network an integer engine computes: the share of multiply-accumulates and of elements on a grid."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from qkit.graph.operation import Operation

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


def share_of(operations: Sequence[Operation], bare: Collection[str] = ()) -> Share:
    """The shares of a graph's operations.

    Parameters
    ----------
    bare
        Taps and weights that a plan leaves without a grid.
    """
    macs = integer_macs = elements = integer_elements = 0
    for op in operations:
        macs += op.macs
        sources = [operations[i] for i in op.inputs if operations[i].kind not in {"meta", "constant"}]
        on_grids = op.quantized and op.weight not in bare and all(s.tap is not None and s.tap not in bare for s in sources)
        integer_macs += op.macs * on_grids
        if op.kind not in _PASSIVE:
            elements += op.elements
            integer_elements += op.elements * (op.quantized and op.tap not in bare)
    of_elements = integer_elements / elements if elements else 1.0
    return Share(integer_macs / macs if macs else of_elements, of_elements)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if 0.0 < share < 1.0 else f"{100 * share:.0f} %"
