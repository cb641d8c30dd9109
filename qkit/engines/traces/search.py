"""Which operation a tensor's content is: against all operations of its size at once, under every order of its axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qkit.engines.traces.aligned import Mend, ProblemKind
from qkit.engines.traces.assumptions import Look, View
from qkit.engines.traces.matching import lead, normalised
from qkit.engines.traces.signatures import Order, References, orders, squeezed
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, eq=False)
class Found:
    """What a tensor may be.

    Attributes
    ----------
    look
        The tensor.
    views
        One an operation, the most alike first.
    """

    look: Look
    views: list[View]


def search(
    looks: Sequence[Look], graph: Graph, known: References, *, clamp: bool, taken: frozenset[str] = frozenset()
) -> list[Found]:  # fmt: skip
    """Every tensor's likeness to the operations of its size, the most certain tensor first.

    Parameters
    ----------
    clamp
        Whether values from before an operation's activation count as its.
    taken
        Steps that other tensors are, by name: they still count as rivals.
    """
    groups = _groups(graph, known)
    found = []
    for look in looks:
        plain: dict[str, View] = {}
        mended: dict[str, View] = {}
        for (dims, _), group in groups.items():
            if math.prod(dims) == look.tensor.size:
                for view in _views(look, group, _orders(look, group.operations[0]), clamp):
                    views = plain if view.kind is None else mended
                    held = views.get(view.op.name)
                    if held is None or view.correlation > held.correlation + 1e-9:
                        views[view.op.name] = view
        views = plain | {name: view for name, view in mended.items() if name not in plain or _better(view, plain[name])}
        look.release()
        found.append(Found(look, sorted(views.values(), key=lambda v: (-v.correlation, v.op.name in taken))))
    return sorted(found, key=lambda f: -(f.views[0].correlation if f.views else -1.0))


def _better(view: View, plain: View) -> bool:
    """Whether an assumption explains half of what is unexplained without it: noise alone makes some look a little better."""
    return lead(view.correlation, plain.correlation) >= 0.5


@dataclass(frozen=True, eq=False)
class _Group:
    operations: list[Operation]
    #: (operation, lane, normalised signature)
    rows: list[tuple[Operation, str]]
    matrix: np.ndarray


def _groups(graph: Graph, known: References) -> Mapping[tuple[tuple[int, ...], int], _Group]:
    """Operations by dims and channel axis, with the matrix of their signatures; reshapes of another operation are left out."""
    held = known.groups
    if not held:
        by_dims: dict[tuple[tuple[int, ...], int], list[Operation]] = {}
        for op in graph.operations:
            if op.name in known.values and not _reshape(op, graph):
                by_dims.setdefault(squeezed(op), []).append(op)
        for key, operations in by_dims.items():
            rows, vectors = [], []
            for op in operations:
                for lane, y in known.values[op.name].items():
                    vector = normalised(y)
                    if vector is not None:
                        rows.append((op, lane))
                        vectors.append(vector)
            if rows:
                held[key] = _Group(operations, rows, np.stack(vectors))
    return held


def _reshape(op: Operation, graph: Graph) -> bool:
    return op.kind == "keep" and math.prod(op.shape[1:]) == math.prod(graph.operations[op.inputs[0]].shape[1:])


def _orders(look: Look, op: Operation) -> list[Order]:
    """Orders that may be meant, the declared one first; without those under which nothing changes place."""
    own = look.declared(op)
    tried = [order for order in orders(squeezed(op)[0]) if order != own]
    spots, seen, kept = look.spots(op), set(), []
    for order in ([own] if own is not None else []) + tried:
        key = spots.flat(order).tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(order)
    return kept


def _views(look: Look, group: _Group, tried: Sequence[Order], clamp: bool) -> list[View]:
    found = []
    own = look.declared(group.operations[0])
    for order in tried:
        kind: ProblemKind | None = None if order == own else "layout"
        x = look.values(group.operations[0], order)
        for act in {UNBOUNDED, *(op.act for op in group.operations if clamp and look.outside(x, op))}:
            vector = normalised(x if act == UNBOUNDED else np.clip(x, *act))
            if vector is None:
                continue
            scores = group.matrix @ vector
            for (op, lane), score in zip(group.rows, scores, strict=True):
                if act == UNBOUNDED:
                    found.append(View(op, kind, Mend(order=order), float(score), lane))
                elif op.act == act:
                    mend = Mend(order=order, clamp=True)
                    found.append(View(op, "pre-activation" if kind is None else kind, mend, float(score), lane))
    return found
