"""A graph's operations as one module that `torch.onnx.export` takes, with a marker wherever a grid belongs.

The markers are operators of the domain ``qkit`` that no engine knows. They carry the operation's index through the exporter,
which names tensors as it likes; `qkit.engines.onnx.qdq` puts Q/DQ nodes in their places. So any operation that torch can export
is exported, and a tap is found again by number and not by name.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qkit.errors import GraphError, MissingExtra, QkitError, installing
from qkit.execution.lanes import decide
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import operate
from qkit.graph.table import UNBOUNDED, Bounds
from qkit.quant.grids import QuantParams, quantize
from qkit.quant.plan import Plan

#: Domain of the markers, and what they stand for: an activation, a tensor on its input's grid, a weight, a bias.
DOMAIN, MARKER = "qkit", "Marker"
TAP, KEEP, WEIGHT, BIAS = "tap", "keep", "weight", "bias"


class Program(nn.Module):
    """The operations in order; weights are buffers. Returns the network's tensors, flat."""

    def __init__(self, graph: Graph, plan: Plan) -> None:
        super().__init__()
        self.graph, self.plan = graph, plan
        # decided before the tracer is at work, which would take the arithmetic on codes for the network's
        self.acts: dict[int, Bounds] = {op.index: _left_to_clamp(op, plan) for op in graph.operations}
        for op in graph.operations:
            if op.weight is not None:
                self.register_buffer(f"w{op.index}", graph.weights[op.weight].contiguous())
                bias = float_bias(graph, plan, op)
                if bias is not None:
                    self.register_buffer(f"b{op.index}", bias.to(graph.device))

    @property
    def key(self) -> Hashable:
        """The graph, and what of the plan is in the program: what is clamped, where markers stand, corrected biases."""
        kept = (op.index for op in self.graph.operations if op.kind == "keep" and shared_grid(self.plan, op) is not None)
        return self.graph, tuple(self.acts.values()), tuple(kept), tuple(sorted(self.plan.corrections.items()))

    def forward(self, *inputs: Any) -> tuple[Tensor, ...]:
        """The network's tensors, flat."""
        values: dict[int, Any] = {}
        for op in self.graph.operations:
            value = self._value(op, values, inputs)
            if op.quantized:
                value = mark(clamped(value, self.acts[op.index]), TAP, op)
            elif op.kind == "keep" and isinstance(value, Tensor) and shared_grid(self.plan, op) is not None:
                value = mark(value, KEEP, op)
            values[op.index] = value
        flat: list[Tensor] = []
        flattened(values[len(self.graph.operations) - 1], flat)
        return tuple(flat)

    def _value(self, op: Operation, values: Mapping[int, Any], inputs: tuple[Any, ...]) -> Any:
        if op.argument is not None:
            return inputs[op.argument]
        operands = [values[i] for i in op.inputs]
        if op.weight is None:
            return operate(op, operands)
        bias = getattr(self, f"b{op.index}", None)
        marked = None if bias is None else mark(bias, BIAS, op)
        return operate(op, operands, mark(getattr(self, f"w{op.index}"), WEIGHT, op), marked)


def mark(x: Tensor, kind: str, op: Operation) -> Tensor:
    """`x` behind a marker."""
    attributes: dict[str, Any] = {"kind": kind, "step": op.index}
    marked: Tensor = torch.onnx.ops.symbolic(f"{DOMAIN}::{MARKER}", (x,), attributes, dtype=x.dtype, shape=x.shape, version=1)
    return marked


def clamped(x: Tensor, act: Bounds) -> Tensor:
    """`x` behind its fused activation, in the form that engines recognize."""
    if act == UNBOUNDED:
        return x
    return torch.relu(x) if act == (0.0, float("inf")) else torch.clamp(x, *(None if abs(b) == float("inf") else b for b in act))


def clamps(params: QuantParams, act: Bounds) -> bool:
    """Whether the grid's ends do what the activation does, to the code: then nothing has to be clamped before rounding."""
    if params.axis is not None:
        return act == UNBOUNDED
    ends = zip(act, (params.qmin, params.qmax), strict=True)
    return all(abs(bound) == float("inf") or int(quantize(torch.tensor(bound), params)) == end for bound, end in ends)


def _left_to_clamp(op: Operation, plan: Plan) -> Bounds:
    params = plan.params(op.name)
    return UNBOUNDED if params is not None and clamps(params, op.act) else op.act


def shared_grid(plan: Plan, op: Operation) -> QuantParams | None:
    """The grid that an operation of kind "keep" shares with its input, where ONNX can say so: one with a single scale."""
    params = plan.params(op.tap)
    return params if params is not None and params.axis is None else None


def float_bias(graph: Graph, plan: Plan, op: Operation) -> Tensor | None:
    """The layer's bias with the plan's correction; None where there is neither."""
    correction = decide(op, plan, graph).correction
    bias = None if op.bias is None else graph.biases[op.bias].detach().cpu().clone()
    if correction is None:
        return bias
    added = torch.tensor(correction, dtype=torch.float32)
    return added if bias is None else bias + added


def flattened(value: Any, flat: list[Tensor]) -> Any:
    """The structure with each tensor's index in `flat` in its place, other leaves None; appends the tensors to `flat`."""
    if isinstance(value, Tensor):
        flat.append(value)
        return len(flat) - 1
    if isinstance(value, Mapping):
        return {str(key): flattened(item, flat) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [flattened(item, flat) for item in value]
    return None


def marked_model(program: Program, inputs: tuple[Any, ...], opset: int) -> tuple[Any, str | None]:
    """The program as an ``onnx.ModelProto`` with markers, and a note where its batch size had to be fixed.

    Raises
    ------
    MissingExtra
        Without the packages of the extra.
    GraphError
        If torch cannot export one of the operations.
    """
    require("onnx", "onnxscript")
    example = tuple(_pair(x) for x in inputs)
    sizes = [{0: torch.export.Dim("batch")} if isinstance(x, Tensor) and x.ndim else None for x in example]
    program = program.eval()
    try:
        return _export(program, example, (tuple(sizes),), opset), None
    except Exception as error:
        logged = error
    try:
        note = f"the batch size is fixed at {len(inputs[0])}: the network computes with it, so that it cannot be left open"
        return _export(program, inputs, None, opset), note
    except Exception:
        raise GraphError(
            f"{program.graph.model_name} cannot be exported to ONNX: {_reason(logged)} Replace the operation that it speaks of."
        ) from logged


def _export(program: Program, inputs: tuple[Any, ...], sizes: Any, opset: int) -> Any:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(program, inputs, dynamo=True, opset_version=opset, dynamic_shapes=sizes, verbose=False)
    if exported is None:
        raise GraphError("torch.onnx.export gave no program.")
    return exported.model_proto


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first."""
    while error.__cause__ is not None:
        error = error.__cause__
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return line if line.endswith(".") else f"{line}."


def _pair(x: Any) -> Any:
    """A batch of at least two, since sizes of one are taken for constants."""
    return torch.cat([x, x]) if isinstance(x, Tensor) and x.ndim and len(x) == 1 else x


def require(*packages: str) -> None:
    """Raise `MissingExtra` unless all of these can be imported."""
    for name in packages:
        package(name)


def package(name: str) -> Any:
    """The package of that name; `MissingExtra` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtra(f"ONNX files need {name}, which cannot be imported ({error}): {installing('onnx')}.") from error


def example_inputs(graph: Graph) -> tuple[Tensor, ...]:
    """One batch of zeros in the shapes that the graph was built with.

    Raises
    ------
    QkitError
        If an input is not a float tensor, which shapes do not describe.
    """
    operations = sorted((s for s in graph.operations if s.argument is not None), key=lambda s: s.argument or 0)
    if [s.argument for s in operations] != list(range(len(operations))) or any(s.kind != "input" for s in operations):
        raise QkitError(
            f"{graph.model_name} takes inputs that are no float tensors, or does not read some: pass example_inputs=, one batch."
        )
    return tuple(torch.zeros(s.shape, device=graph.device) for s in operations)
