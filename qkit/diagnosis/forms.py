"""Integer forms that cost score: found by computing in float inside, one switch of the arithmetic at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.widths import gaining_most
from qkit.execution.integer_forms import form_of
from qkit.graph.operation import Operation
from qkit.quant.arithmetic import FLOAT_INSIDE, FORMS, Arithmetic
from qkit.quant.plan import Plan

#: A remedy is taken if it recovers this share of what float inside does.
_ALMOST = 0.7
_WHAT = {
    "pointwise": "functions of one number",
    "softmax": "softmax",
    "norm": "norms",
    "product": "products of activations",
    "rescale": "sums, concatenations and averages",
}


def integer_form(bench: Bench, plan: Plan) -> list[Cause]:
    """`integer-form`: what the forms inside operations without weights cost, which of them, and the nearest that does not."""
    arithmetic = plan.arithmetic
    if arithmetic.in_float:
        return []
    ideal = replace(plan, arithmetic=FLOAT_INSIDE)
    bench.scores({"ideal": ideal, "plan": plan}, plan, what="integer forms")
    gain = bench.gain(ideal, plan)
    if not bench.sure(gain) or gain.value < bench.tolerance:
        return []
    used = [name for name in FORMS if getattr(arithmetic, name) != "float"]
    without = {name: replace(plan, arithmetic=arithmetic.with_form(name, "float")) for name in used}
    bench.scores(without, plan, what="integer forms, one by one")
    worst = max(used, key=lambda name: bench.gain(without[name], plan).value)

    def affects(op: Operation, plan: Plan, decision: object) -> bool:
        form = form_of(op)
        return form is not None and form.switch == worst

    layer, own = gaining_most(bench, plan, lambda narrow: replace(narrow, arithmetic=FLOAT_INSIDE), affects)
    most = f", most of it at {layer}" if layer else ""
    how = f'{worst}="{getattr(arithmetic, worst)}" with {arithmetic.inside} bits inside'
    evidence = f"the integer form of {_WHAT[worst]} ({how}) costs score{most}; computed in float on the same grids it does not."
    for text, better in _nearer(arithmetic, worst):
        remedy = Remedy("finer-form", "", text, arithmetic=better)
        bench.scores({"finer": remedy.plan(plan)}, plan, what="finer integer forms")
        regained = bench.gain(remedy.plan(plan), plan)
        if bench.sure(regained) and regained.value >= _ALMOST * gain.value:
            return [Cause("integer-form", layer, layer, evidence, remedy, regained, None, own)]
    remedy = Remedy("finer-form", "", "Compute them in float inside, or in 16 bits.", arithmetic=FLOAT_INSIDE)
    return [Cause("integer-form", layer, layer, evidence, remedy, gain, None, own)]


def _nearer(arithmetic: Arithmetic, worst: str) -> Iterator[tuple[str, Arithmetic]]:
    """Forms that an engine can have in place of this one, the cheapest first."""
    if worst == "softmax" and arithmetic.softmax != "table":
        yield "Look the exponential of softmax up in a table.", replace(arithmetic, softmax="table")
    if worst in ("softmax", "norm") and arithmetic.inside < _WIDE:
        yield f"Compute inside {_WHAT[worst]} with {_WIDE} bits.", replace(arithmetic, inside=_WIDE)
        if worst == "softmax" and arithmetic.softmax != "table":
            text = f"Look the exponential of softmax up in a table, with {_WIDE} bits."
            yield text, replace(arithmetic, softmax="table", inside=_WIDE)
    yield f"Compute {_WHAT[worst]} in float between their grids.", arithmetic.with_form(worst, "float")


#: Bits inside that no 8-bit grid needs more of.
_WIDE = 24
