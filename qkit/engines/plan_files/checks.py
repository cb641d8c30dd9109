"""What files in other tools' formats share: tensors by other names, grids without rules, a network to check them against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qkit.engines.plan_files.json_file import Entry
from qkit.errors import PlanError
from qkit.forms import checked
from qkit.graph import Graph
from qkit.quant.arithmetic import FLOAT_INSIDE, Arithmetic
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.plan import Grid, Plan
from qkit.quant.plan_form import ArithmeticForm


def renamed(plan: Plan, names: Mapping[str, str] | None) -> dict[str, str]:
    """The file's name of every tensor of the plan, each once."""
    names = names or {}
    taken = {tensor: names.get(tensor, tensor) for tensor in plan.grids}
    unknown = [name for name in names if name not in plan.grids]
    if unknown:
        raise PlanError(f"names= renames {unknown[0]!r}, for which the plan has no grid.")
    seen: dict[str, str] = {}
    for tensor, name in taken.items():
        if not isinstance(name, str) or not name:
            raise PlanError(f"names= gives {tensor} the name {name!r}: names are texts.")
        if name in seen:
            raise PlanError(f"{tensor} and {seen[name]} would both be {name!r} in the file: give them different names.")
        seen[name] = tensor
    return taken


def widths_of(plan: Plan) -> dict[str, Any]:
    """What holds for the whole plan, as files have it."""
    inside = {} if plan.arithmetic == FLOAT_INSIDE else {"arithmetic": plan.arithmetic.to_dict()}
    return {"bias_bits": plan.bias_bits, "accumulator_bits": plan.accumulator_bits, **inside}


def left_out(plan: Plan) -> Iterator[str]:
    """What of a plan no list of grids holds."""
    chosen = [name for name, grid in plan.grids.items() if grid.codes is not None]
    if chosen:
        yield f"the codes that were chosen for {len(chosen)} weights ({chosen[0]} among them): readers round to nearest"
    if plan.factors:
        yield f"the factors of {len(plan.factors)} norms: study.with_plan(plan) is a study of the model that has them"
    if plan.corrections:
        yield f"the corrected biases of {len(plan.corrections)} layers: they belong into the model's own biases"


def rule_of(params: QuantParams, weight: bool) -> QuantSpec:
    """The rule that a grid follows."""
    symmetric = not bool(params.zero_point.any()) and (params.qmin == 0 or params.qmin in {-params.qmax, -params.qmax - 1})
    exponents = torch.log2(params.scale.double())
    return QuantSpec(
        bits=max(params.bits, 2), symmetric=symmetric, signed=True if weight and params.qmin < 0 else None,
        per_channel=params.axis is not None, power_of_two=bool((exponents == exponents.round()).all()),
        narrow=params.qmin == -params.qmax,
    )  # fmt: skip


@dataclass(eq=False)
class FoundTensors:
    """The tensors of a file, checked against the network."""

    graph: Graph
    names: Mapping[str, str] | None
    grids: dict[str, Grid] = field(default_factory=dict)
    bias_bits: int | None = None

    def _kit(self, name: str) -> str:
        return next((kit for kit, file in (self.names or {}).items() if file == name), name)

    def tensor(self, name: str, entry: Entry) -> str:
        """The kit's name of a tensor of the file."""
        tensor = self._kit(name)
        if tensor not in self.graph.weights and tensor not in self.graph.taps:
            raise entry.error(f"{self.graph.model_name} has no tensor {tensor!r}; names= says what the file's names stand for")
        return tensor

    def is_bias(self, name: str) -> bool:
        """Whether it is a bias' name."""
        return self._kit(name) in self.graph.biases

    def bias_width(self, bits: int, entry: Entry) -> None:
        """Take the width of a bias."""
        if self.bias_bits not in {None, bits}:
            raise entry.error(f"its bias has {bits} bits, others {self.bias_bits}; the kit's plans have one width for all")
        self.bias_bits = bits

    def add(self, tensor: str, grid: Grid, entry: Entry) -> None:
        """Take a tensor's grid."""
        if tensor in self.grids:
            raise entry.error(f"the file has {tensor} twice")
        op, params = self.graph.operation(tensor), grid.params
        shape = tuple(self.graph.weights[tensor].shape) if grid.weight else op.shape
        if params.axis is not None and not (0 <= params.axis < len(shape) and shape[params.axis] == params.scale.numel()):
            raise entry.error(f"it has {params.scale.numel()} channels on axis {params.axis}, the tensor has shape {shape}")
        self.grids[tensor] = grid

    def plan(self, own: Entry, stem: str) -> Plan:
        """The plan, in execution order; `own` has its name and widths."""
        order = [name for op in self.graph.operations for name in (op.weight, op.name) if name in self.grids]
        widths: dict[str, int | None] = {}
        for key, (least, most) in {"bias_bits": (2, 64), "accumulator_bits": (8, 64)}.items():
            widths[key] = own.get(key, (int, type(None)), None)
            if widths[key] is not None and not least <= (widths[key] or 0) <= most:
                raise own.error(f"its {key} is {widths[key]}, which is not {least} to {most}")
        bias_bits = self.bias_bits if widths["bias_bits"] is None else widths["bias_bits"]
        grids = {name: self.grids[name] for name in dict.fromkeys(order)}
        form = checked(own.get("arithmetic", dict, {}), ArithmeticForm, error=PlanError, cure="give a file as it was written")
        return Plan(
            grids, bias_bits, own.get("name", str, stem), accumulator_bits=widths["accumulator_bits"],
            arithmetic=Arithmetic(**form.model_dump()),
        )  # fmt: skip
