"""Naming several tensors at once: by kind, by pattern, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from qkit.errors import PlanError
from qkit.graph import Graph
from qkit.quant.plan import Plan


def tensor_classes(graph: Graph, plan: Plan) -> dict[str, list[str]]:
    """The plan's tensors by the kind of what makes them: activations by operation, weights by layer."""
    found: dict[str, list[str]] = {}
    for op in graph.operations:
        if op.weight is not None and op.weight in plan.grids:
            weight = graph.weights[op.weight]
            depthwise = op.kind == "conv" and weight.shape[1] == 1 < weight.shape[0]
            names = found.setdefault(f"weights: {'depthwise conv' if depthwise else op.kind}", [])
            if op.weight not in names:
                names.append(op.weight)
        if op.quantized and op.name in plan.grids:
            found.setdefault(f"activations: {op.kind}", []).append(op.name)
    return dict(sorted(found.items()))


def named(graph: Graph, plan: Plan, tensors: str | Sequence[str]) -> tuple[str, ...]:
    """The plan's tensors that are meant, in the order of the plan.

    Parameters
    ----------
    tensors
        One or several of: a name, a pattern with ``*``, ``?`` or ``[`` as in file names, a kind of `tensor_classes`.

    Raises
    ------
    PlanError
        If one of them means no tensor of the plan.
    """
    found: set[str] = set()
    kinds = None
    for each in [tensors] if isinstance(tensors, str) else tensors:
        if each in plan.grids:
            found.add(each)
            continue
        kinds = tensor_classes(graph, plan) if kinds is None else kinds
        if each in kinds:
            found.update(kinds[each])
        elif any(mark in each for mark in "*?[") and (matching := [name for name in plan.grids if fnmatchcase(name, each)]):
            found.update(matching)
        elif any(mark in each for mark in "*?[:"):
            raise PlanError(f"no tensor of the plan is meant by {each!r}; the kinds are {', '.join(kinds)}.")
        else:
            plan[each]  # says what is near
    if not found:
        raise PlanError("no tensor is named: give names, a pattern or a kind.")
    return tuple(name for name in plan.grids if name in found)
