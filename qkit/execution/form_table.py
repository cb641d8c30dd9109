"""What is computed in integers under a plan, operation by operation, and how far each form is from the ideal."""

from __future__ import annotations

import math

import pandas as pd

from qkit.execution.integer_forms import Form, chosen, form_of, slices
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams
from qkit.quant.integer import joins, pointwise
from qkit.quant.plan import Plan

#: By how much a softmax's exponential misses, relative to it, for an argument of at most 16.
_MISSED = {"table": 0.0, "polynomial": 3.5e-3, "shift": 1.0615 * 2 ** (0.0052 * 16) - 1.0}


def form_table(graph: Graph, plan: Plan) -> pd.DataFrame:
    """Every operation that ends in a grid: by tap its kind, its function, how it is computed, and how far from the ideal.

    `computed` is "weights" for layers, whose products are those of integers; "table", "integer" and the like for what has an
    integer form that the plan chooses; "float: why" for the rest. `off` is by how many steps of the output's grid at most the
    form misses, beyond rounding to nearest: of tables on every code, of sums and products by their multipliers, of softmax by
    its exponential; NaN where it depends on the data (norms).
    """
    rows = []
    for op in graph.operations:
        if not op.quantized or op.kind in {"input", "constant"}:
            continue
        form = form_of(op)
        how, off = _computed(graph, op, form, plan)
        rows.append({"tap": op.name, "kind": op.kind, "function": form.name if form else op.kind, "computed": how, "off": off})
    return pd.DataFrame(rows, columns=["tap", "kind", "function", "computed", "off"]).set_index("tap")


def in_float(graph: Graph, plan: Plan) -> dict[str, str]:
    """Taps that are computed in float between their grids, each with the reason."""
    found = form_table(graph, plan)["computed"]
    return {str(tap): how.removeprefix("float: ") for tap, how in found.items() if how.startswith("float")}


def _computed(graph: Graph, op: Operation, form: Form | None, plan: Plan) -> tuple[str, float]:
    target = plan.params(op.name)
    parts = [graph.operations[i] for i in op.inputs if graph.operations[i].kind != "meta"]
    known = [grid for part in parts if (grid := plan.params(part.tap)) is not None]
    bare = [part.tap or part.name for part in parts if plan.params(part.tap) is None]
    if target is None:
        return "float: the plan has no grid for it", math.nan
    if op.weight is not None:
        whole = plan.params(op.weight) is not None and not bare
        return ("weights", 0.0) if whole else ("float: its weight or input has no grid", math.nan)
    if form is None:
        return "float: it has no integer form here", math.nan
    if not chosen(op, plan.arithmetic):
        return f'float: the scheme has {form.switch}="float"', math.nan
    if bare:
        return f"float: {', '.join(bare)} has no grid", math.nan
    moved = [part.name for part, grid in zip(parts, known, strict=True) if part.kind == "keep" and grid.axis is not None]
    if moved:
        return f"float: {moved[0]} moves a tensor with a scale for each channel", math.nan
    possible, axis = slices(form, op.shape, [part.shape for part in parts], known, target)
    if not possible:
        return "float: its grids have a scale for each channel along an axis that it computes over", math.nan
    how = getattr(plan.arithmetic, form.switch)
    return how, math.nan if axis is not None else _off(form, known, target, plan)


def _off(form: Form, grids: list[QuantParams], target: QuantParams, plan: Plan) -> float:
    scale, arithmetic = float(target.scale), plan.arithmetic
    if form.switch == "pointwise":
        assert form.call is not None
        made = pointwise.table(form.call, grids[0], target)
        return pointwise.deviation(form.call, grids[0], target, made)
    if form.switch == "softmax":
        units = 3 * 2.0 ** -(arithmetic.inside - 1)
        return float(_MISSED[arithmetic.softmax] / 2 + units) / scale
    if form.switch == "norm":
        return math.nan
    if form.name in {"add", "sub", "rsub"}:
        steps = [(float(grid.scale), grid.reach) for grid in grids]
        left, _, last = joins.addition(steps, scale)
        shifted = last.factor * (1 << left) / 2 ** (left + 1)
        return float(len(grids) * shifted + sum(s * reach for s, reach in steps) / scale * 2.0**-30)
    return max(target.reach, 1) * 2.0**-31
