"""A plan as a plain JSON of ranges, for tools and hands that know nothing else, and back.

One entry per tensor: ``min`` and ``max`` (lists where there is one per channel), ``bits``, ``symmetric``, ``signed``, ``narrow``,
``power_of_two``, ``axis``, all but the first two with defaults. A grid is made from a range by the kit's own rule (`QuantSpec`),
and a range that was written gives back the grid it came from, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qkit import files
from qkit.engines.plan_files.checks import FoundTensors, left_out, renamed, rule_of, widths_of
from qkit.engines.plan_files.json_file import Entry, read_json
from qkit.errors import PlanError
from qkit.graph import Graph
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import Grid, Plan

if TYPE_CHECKING:
    from qkit.study import Study

__all__ = ["read", "write"]

#: Marks the files.
FORMAT = "qkit ranges 1"


def write(plan: Plan, path: str | Path, *, names: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Write a plan as ranges of tensors, and return what of the plan they do not hold.

    Raises
    ------
    PlanError
        If a grid is none that the kit's rules make from a range.
    """
    taken = renamed(plan, names)
    tensors = {taken[tensor]: {**_range(tensor, grid), "weight": grid.weight} for tensor, grid in plan.grids.items()}
    files.write_json(path, {"format": FORMAT, "name": plan.name, **widths_of(plan), "tensors": tensors}, error=PlanError)
    return tuple(left_out(plan))


def read(path: str | Path, study: Study | Graph, *, names: Mapping[str, str] | None = None) -> Plan:
    """The plan of a file of ranges, the kit's own or written by hand.

    By hand ``{"tensors": {"conv1": {"min": 0, "max": 6}}}`` is enough: 8 bits, affine for activations, symmetric for weights.

    Raises
    ------
    PlanError
        If the file is missing, corrupt, or names a tensor that the network does not have.
    """
    graph = study if isinstance(study, Graph) else study.graph
    document = read_json(path, "ranges")
    if document.get("format", str, FORMAT) != FORMAT:
        raise document.error(f"its format is {document.data['format']!r}, not {FORMAT!r}")
    document.only("format", "name", "bias_bits", "accumulator_bits", "arithmetic", "tensors")
    found = FoundTensors(graph, names)
    for name, entry in document.entry("tensors").items():
        tensor = found.tensor(name, entry)
        found.add(tensor, _ranged(entry, tensor, graph), entry)
    return found.plan(document, Path(path).stem)


def _range(tensor: str, grid: Grid) -> dict[str, Any]:
    """A grid as a range and a rule that make it again."""
    params = grid.params
    rule = replace(
        rule_of(params, grid.weight), signed=params.qmin < 0, per_channel=params.axis is not None,
        power_of_two=grid.spec.power_of_two,
    )  # fmt: skip
    for candidate in (rule, replace(rule, power_of_two=False), replace(rule, symmetric=False, power_of_two=False)):
        try:
            same = candidate.params(params.lo, params.hi, axis=params.axis) == params
        except PlanError:
            same = False
        if same:
            rules = {"bits": candidate.bits, "symmetric": candidate.symmetric, "signed": candidate.signed}
            more = {"narrow": candidate.narrow, "power_of_two": candidate.power_of_two, "axis": params.axis}
            return {"min": params.lo.tolist(), "max": params.hi.tolist(), **rules, **more}
    raise PlanError(
        f"{tensor} has codes {params.qmin}..{params.qmax}, a grid that no range and rule of the kit make: save the plan itself "
        "(plan.save)."
    )


def _ranged(entry: Entry, tensor: str, graph: Graph) -> Grid:
    """The grid of a range."""
    weight = tensor in graph.weights
    entry.only("min", "max", "bits", "symmetric", "signed", "narrow", "power_of_two", "axis", "weight")
    if entry.get("weight", bool, weight) != weight:
        raise entry.error(f"it is said to be {'no ' * weight}weight")
    axis = entry.get("axis", (int, type(None)), None)
    low, high = entry.numbers("min"), entry.numbers("max")
    if axis is not None and (len(low) != len(high)):
        raise entry.error(f"it has {len(low)} least and {len(high)} greatest values")
    if axis is None and (len(low) > 1 or len(high) > 1):
        raise entry.error("it has several ranges and no axis along which its channels lie")
    shape = () if axis is None else (len(low),)
    try:
        rule = QuantSpec(
            bits=entry.whole("bits", 8)[0], symmetric=entry.get("symmetric", bool, weight),
            signed=entry.get("signed", (bool, type(None)), None), per_channel=axis is not None,
            power_of_two=entry.get("power_of_two", bool, False), narrow=entry.get("narrow", bool, False),
        )  # fmt: skip
        bounds = (torch.tensor(bound, dtype=torch.float64).reshape(shape) for bound in (low, high))
        return Grid(rule, rule.params(*bounds, axis=axis), "ranges", weight)
    except PlanError as error:
        raise entry.error(str(error).rstrip(".")) from error
