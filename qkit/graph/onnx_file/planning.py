"""The walk over a file's nodes: what is known beforehand is computed here, the rest becomes lines of the module's program."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.errors import GraphError
from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.file_loading import MAIN, attributes_of, integer_type, to_tensor, type_name
from qkit.graph.onnx_file.network import OnnxGrid
from qkit.graph.onnx_file.operators import planner
from qkit.graph.onnx_file.sizes import Size, at_batch, depends_on_batch, fit_tensors
from qkit.graph.onnx_file.values import TorchCall, Value, as_at_run_time, constant

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto

ON_CODES = frozenset({"DequantizeLinear", "QGemm", "Shape", "Size"})
"""Operations that take codes, or only their shape."""

CODES_PASS = frozenset(
    "Reshape Flatten Transpose Squeeze Unsqueeze Expand Tile Slice Split Gather GatherElements GatherND "
    "Concat MaxPool GlobalMaxPool DepthToSpace SpaceToDepth Identity Dropout".split()
)
"""Operations that give the same numbers on codes as on what the codes stand for."""

BEFORE_ACTIVATIONS = frozenset(
    "Conv ConvTranspose Gemm MatMul Add Sub Sum BatchNormalization InstanceNormalization GroupNormalization LayerNormalization "
    "FusedConv FusedGemm FusedMatMul QLinearConv QLinearMatMul QGemm QLinearAdd".split()
)
"""Operations whose results have either sign: where a grid behind one begins at 0, the grid is what is left of a ReLU."""


@dataclass(frozen=True, eq=False)
class Emitted:
    """A call that the module makes at run time."""

    node: str
    operator: str
    planned: TorchCall
    outputs: tuple[Value, ...]


@dataclass(eq=False)
class Walk:
    """What is known so far; `batches` has one entry where no dimension is open."""

    opsets: Mapping[str, int]
    batches: tuple[int, ...]
    emitted: list[Emitted] = field(default_factory=list)
    grids: dict[str, OnnxGrid] = field(default_factory=dict)
    cast: dict[str, str] = field(default_factory=dict)
    slots: int = 0
    visited: int = 0
    read: set[str] = field(default_factory=set)
    rectified: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    _signed: set[int] = field(default_factory=set)
    _rectified: dict[int, Value] = field(default_factory=dict)
    _in_batch: dict[int, Value] = field(default_factory=dict)

    def input(self, name: str, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> Value:
        """An input of the file, by its shape at every batch."""
        return self._fresh(name, tuple(torch.empty(tuple(shape), dtype=dtype, device="meta") for shape in shapes))

    def graph(self, graph: GraphProto, scope: dict[str, Value | None]) -> None:
        """Walk a graph; `scope` has the values by name and is filled. A subgraph has a scope of its own."""
        wanted, nodes = live_nodes(graph)
        self.read |= wanted
        for proto in graph.initializer:
            value = constant(proto.name, to_tensor(proto, f"the initializer {proto.name!r}"))
            value.source, value.integers = proto.name, integer_type(proto.data_type)
            scope[proto.name] = value
            if type_name(proto.data_type) in {"float16", "bfloat16", "double"}:
                self.cast[proto.name] = type_name(proto.data_type)
        if graph.sparse_initializer:
            name = graph.sparse_initializer[0].values.name
            raise GraphError(f"the initializer {name!r} is sparse, which is not supported. Store it as a dense tensor.")
        for node, live in zip(graph.node, nodes, strict=True):
            self.visited += 1
            if live:
                self._visit(node, scope)

    def _visit(self, node: NodeProto, scope: dict[str, Value | None]) -> None:
        label = f"{node.op_type} node {node.name or next(iter(node.output), '')!r}"
        for name in node.input:
            if name and name not in scope:
                raise GraphError(f"{label}: its input {name!r} is not made by any node in front of it. The file is damaged.")
        self.nodes |= {name: label for name in node.output if name}
        inputs = [scope[name] if name else None for name in node.input]
        attributes = attributes_of(node, label)
        domain = "" if node.domain in MAIN else node.domain
        if domain == "" and node.op_type == "If":
            self._branch(label, node, attributes, inputs, scope)
            return
        outputs = [name if name in self.read else "" for name in node.output]
        opset = self.opsets.get(domain, 1)
        written = sum(bool(name) for name in node.output)
        call = Call(node.op_type, label, attributes, inputs, outputs, opset=opset, batches=self.batches, written=written)
        plan = planner(domain, call)
        passed = self._codes_passed(call)
        try:
            planned = plan(call)
            made = self.take(node.op_type, planned, outputs) if isinstance(planned, TorchCall) else planned
        except GraphError:
            raise
        except Exception as error:  # whatever torch says about shapes and types
            shapes = ", ".join(str(tuple(value.at(0).shape)) for value in inputs if value is not None)
            raise GraphError(f"{label} cannot be computed on inputs of shapes {shapes}: {error}{self._advice()}") from error
        if len([name for name in outputs if name]) > len(made):
            raise call.refuse(f"only {len(made)} of its outputs can be computed.")
        if node.op_type == "Constant" and made[0].integers is None:
            made[0].integers = next((integer_type(a.t.data_type) for a in node.attribute if a.HasField("t")), None)
        if passed is not None:
            for value in made:
                value.codes = passed
        if call.operator in BEFORE_ACTIVATIONS:
            self._signed |= {value.slot for value in made if not value.known}
        made = tuple(self._with_activation(value) for value in made)
        scope.update(zip(node.output, made, strict=False))
        self._note_grids(made)

    def _with_activation(self, value: Value) -> Value:
        """Codes with the ReLU that the quantizer took out of the file, since the grid clips as it does: float lanes need it."""
        grid, source = value.codes, value.origin or value
        if grid is None or value.known or source.slot not in self._signed or grid.axis is not None or grid.least != 0.0:
            return value
        if source.slot not in self._rectified:
            six = abs(grid.greatest - 6.0) <= float(grid.scale) / 2
            name, source.name = source.name, f"{source.name}:linear"
            planned = TorchCall(F.relu6 if six else torch.relu, (replace(source, codes=None, _variants={}),))
            self._rectified[source.slot] = self.take("Relu", planned, [name])[0]
            self.rectified[name] = "ReLU6" if six else "ReLU"
        made = self._rectified[source.slot]
        return replace(made, codes=grid, origin=made, _variants={})

    def _advice(self) -> str:
        if len(self.batches) == 1:
            return ""
        return (
            f" (tried with a batch of {self.batches[0]}). If the file is made for one image at a time, read it with shapes= that "
            "have a 1 as the batch."
        )

    def _branch(
        self,
        label: str,
        node: NodeProto,
        attributes: Mapping[str, Any],
        inputs: Sequence[Value | None],
        scope: dict[str, Value | None],
    ) -> None:
        condition = inputs[0] if inputs else None
        if condition is None or not condition.constant or condition.probes[0].numel() != 1:
            raise GraphError(
                f"{label}: which branch is taken depends on the inputs' data. Only an If with a constant condition can be read: "
                "export the network with torch.where, or one file for each branch."
            )
        branch = "then_branch" if bool(condition.probes[0].item()) else "else_branch"
        if branch not in attributes:
            raise GraphError(f"{label}: the attribute {branch!r} is missing. The file is damaged.")
        graph = attributes[branch]
        inner = dict(scope)
        self.graph(graph, inner)
        for mine, theirs in zip(node.output, graph.output, strict=False):
            if theirs.name not in inner:
                raise GraphError(f"{label}: the output {theirs.name!r} of its branch is not made there. The file is damaged.")
            scope[mine] = inner[theirs.name]

    def _codes_passed(self, call: Call) -> OnnxGrid | None:
        """The grid that an operation hands on from codes to codes; arithmetic on codes is refused."""
        held = [value for value in call.inputs if value is not None and value.codes is not None]
        if not held or call.operator in ON_CODES or call.operator.startswith("QLinear"):
            return None
        grid = held[0].codes
        assert grid is not None
        if call.operator not in CODES_PASS:
            raise call.refuse(
                f"it computes with the integer codes of {held[0].name!r}, which is not supported. Put a DequantizeLinear in "
                "front of it (onnxruntime.quantization with quant_format=QDQ writes such files)."
            )
        if any(value.codes is None or not value.codes.same(grid) for value in held):
            raise call.refuse("it joins integer codes of different grids. Put a DequantizeLinear in front of each input.")
        return grid

    def _note_grids(self, made: Iterable[Value | None]) -> None:
        for value in made:
            grid = None if value is None else value.codes or value.grid
            if value is not None and grid is not None:
                self.note_grid(value.source or value.name, grid)

    def note_grid(self, name: str, grid: OnnxGrid) -> None:
        """Note a tensor's grid; a second one that differs is noted under the name with a number."""
        number, key = 1, name
        while key in self.grids and not self.grids[key].same(grid):
            number += 1
            key = f"{name}:{number}"
        self.grids[key] = grid

    def take(self, operator: str, planned: TorchCall, outputs: Sequence[str]) -> tuple[Value, ...]:
        """Compute a call now if everything is known and it comes out plainly, else put it into the program."""
        if all(value is None or value.known for value in planned.operands):
            folded = self._fold(planned, outputs)
            if folded is not None:
                return folded
        planned = TorchCall(
            planned.function,
            tuple(None if value is None else self.at_run_time(value) for value in planned.operands),
            planned.settings,
            planned.codes,
            planned.grid,
        )
        probes = [
            self._call(planned, [None if v is None else v.on_meta(i) for v in planned.operands], i)
            for i in range(len(self.batches))
        ]
        made = []
        for position in range(len(probes[0])):
            tensors = tuple(as_at_run_time(results[position]).to("meta") for results in probes)
            made.append(self._fresh(outputs[position] if position < len(outputs) else "", tensors))
        if made:
            made[0].codes, made[0].grid = planned.codes, planned.grid
        self._note_grids(value for value in planned.operands if value is not None and value.known)
        self.emitted.append(Emitted(f"{operator.lower()}_{self.visited}", operator, planned, tuple(made)))
        return tuple(made)

    def _call(self, planned: TorchCall, operands: Sequence[Tensor | None], probe: int) -> tuple[Tensor, ...]:
        settings = {name: at_batch(setting, self.batches[probe]) for name, setting in planned.settings.items()}
        made = planned.function(*operands, **settings)
        return tuple(made) if isinstance(made, (tuple, list)) else (made,)

    def _fold(self, planned: TorchCall, outputs: Sequence[str]) -> tuple[Value, ...] | None:
        settings = any(depends_on_batch(setting) for setting in planned.settings.values())
        fixed = not settings and all(value is None or value.constant for value in planned.operands)
        count = 1 if fixed else len(self.batches)
        probes = [self._call(planned, [None if v is None else v.at(i) for v in planned.operands], i) for i in range(count)]
        made = []
        for position, name in zip(range(len(probes[0])), (*outputs, *[""] * len(probes[0])), strict=False):
            tensors = [results[position] for results in probes]
            same = all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:])
            if not same and fit_tensors(tensors, self.batches) is None:
                return None
            made.append(Value(name, tuple(tensors[:1] if same else tensors), known=True))
        if made:
            made[0].codes = planned.codes
        return tuple(made)

    def at_run_time(self, value: Value) -> Value:
        """The value as the module reads it: numbers that grow with the batch are computed there."""
        if not value.known or value.constant:
            return value
        if id(value) not in self._in_batch:
            fitted = fit_tensors(value.probes, self.batches)
            assert fitted is not None
            parts = [
                constant(f"{value.name}:{part}", tensor) for part, tensor in zip(("per_image", "fixed"), fitted, strict=True)
            ]
            planned = TorchCall(in_batch, tuple(parts), {"size": Size(1), "whole": not value.probes[0].is_floating_point()})
            tensors = tuple(as_at_run_time(tensor).to("meta") for tensor in value.probes)
            made = self._fresh(value.name, tensors)
            name = f"batch_{self.slots}"
            self.emitted.append(Emitted(name, "Batch", planned, (made,)))
            self._in_batch[id(value)] = made
        return self._in_batch[id(value)]

    def _fresh(self, name: str, probes: tuple[Tensor, ...]) -> Value:
        self.slots += 1
        return Value(name, probes, known=False, slot=self.slots - 1)


def in_batch(per_image: Tensor, fixed: Tensor, *, size: int, whole: bool) -> Tensor:
    """Numbers that grow with the batch, as a tensor."""
    return per_image * size + fixed if whole else per_image.float() * size + fixed.float()


def live_nodes(graph: GraphProto) -> tuple[set[str], list[bool]]:
    """Names of the tensors that the outputs need, and whether each node is needed; what nothing reads is not looked at."""
    wanted = {output.name for output in graph.output}
    live = []
    for node in reversed(graph.node):
        live.append(any(name in wanted for name in node.output if name))
        if live[-1]:
            wanted.update(node.input, *(names_read(inner) for inner in _subgraphs(node)))
    return wanted, live[::-1]


def names_read(graph: GraphProto) -> set[str]:
    """Names of all tensors that something in a graph reads: nodes, subgraphs, the graph's outputs."""
    found = {output.name for output in graph.output}
    for node in graph.node:
        found.update(node.input, *(names_read(inner) for inner in _subgraphs(node)))
    return found


def _subgraphs(node: NodeProto) -> list[GraphProto]:
    single = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return [*single, *(inner for attribute in node.attribute for inner in attribute.graphs)]


def unique_name(name: str, taken: Collection[str]) -> str:
    """A Python name close to `name` that is not taken."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "tensor"
    plain = f"_{plain}" if plain[0].isdigit() else plain
    number, found = 1, plain
    while found in taken:
        number += 1
        found = f"{plain}_{number}"
    return found
