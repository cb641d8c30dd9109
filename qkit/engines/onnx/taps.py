"""Which tensors of an ONNX file are taps, and on what grid their codes are.

In files of `qkit.engines.onnx.export` the metadata say so. In others the nodes' names do: torch's exporters and the tools
behind them keep the path of the module that a node comes from, and a tap is that of the convolution whose batch norm, activation
and quantizer follow it.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qkit.errors import PlanError, QkitError
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED
from qkit.listing import few
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan

_RANGES = {"uint8": (0, 2**8 - 1), "int8": (-(2**7), 2**7 - 1), "uint16": (0, 2**16 - 1), "int16": (-(2**15), 2**15 - 1)}
_FOLLOWS = frozenset({"BatchNormalization", "Relu", "Clip"})
_THROUGH = frozenset({"QuantizeLinear", "DequantizeLinear", "Identity"})
_RESHAPES = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_OPERATIONS = {"concat": "cat", "reducemean": "mean", "globalaveragepool": "adaptive_avg_pool2d", "averagepool": "avg_pool2d"}


@dataclass(frozen=True)
class TapTensor:
    """Where the lane finds a tap.

    Attributes
    ----------
    tensor
        Name in the file.
    params
        Grid of the codes, in the kit's codes; None where the tensor is float.
    offset
        Added to the stored integers to give the kit's codes.
    shape
        Of the kit's tap, by which channels-last tensors are told; () where it is not known.
    reshaped
        Whether the tensor lies behind a reshape and has to be brought back to `shape`.
    """

    tensor: str
    params: QuantParams | None = None
    offset: int = 0
    shape: tuple[int, ...] = ()
    reshaped: bool = False


@dataclass(eq=False)
class Found:
    """Taps in the order of execution, the nodes that compute them, and what is to be said about them."""

    taps: dict[str, TapTensor] = field(default_factory=dict)
    cores: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Wiring:
    """A file's nodes by what they make and read."""

    def __init__(self, model: Any) -> None:
        self.nodes = list(model.graph.node)
        self.made = {name: node for node in self.nodes for name in node.output if name}
        self.readers: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        for node in self.nodes:
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.inputs = [value.name for value in model.graph.input if value.name not in self.constants]

    def grid(self, node: Any, offset: int = 0) -> QuantParams | None:
        """Grid of a QuantizeLinear's codes plus `offset`; None where it is none of 8 or 16 bits that is fixed in the file."""
        from onnx import numpy_helper

        if len(node.input) < 2 or node.input[1] not in self.constants:
            return None
        scale = torch.from_numpy(numpy_helper.to_array(self.constants[node.input[1]]).astype("float32"))
        kind, zero = "uint8", torch.zeros(scale.shape, dtype=torch.int32)
        if len(node.input) > 2 and node.input[2]:
            if node.input[2] not in self.constants:
                return None
            stored = numpy_helper.to_array(self.constants[node.input[2]])
            kind, zero = stored.dtype.name, torch.from_numpy(stored.astype("int32"))
        if kind not in _RANGES:
            return None
        axis = None
        if scale.numel() == 1:
            scale, zero = scale.reshape(()), zero.reshape(())
        else:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        low, high = _RANGES[kind]
        try:
            return QuantParams(scale, zero + offset, low + offset, high + offset, axis)
        except PlanError as error:
            raise QkitError(f"the quantizer of {node.output[0]!r} in the file has no usable grid: {error}") from error

    def quantizer(self, tensor: str) -> tuple[Any | None, bool]:
        """The first QuantizeLinear that reads the tensor, and whether a reshape stands in between."""

        def reading(name: str) -> Any | None:
            return next((node for node in self.readers.get(name, []) if node.op_type == "QuantizeLinear"), None)

        readers = self.readers.get(tensor, [])
        if reading(tensor) is None and len(readers) == 1 and readers[0].op_type in _RESHAPES:
            return reading(readers[0].output[0]), True
        return reading(tensor), False


def own_taps(model: Any, contents: Mapping[str, Any], plan: Plan, graph: Graph | None) -> Found:
    """Taps of a file that the kit wrote.

    Raises
    ------
    QkitError
        If the metadata do not fit the file.
    """
    wiring, found = Wiring(model), Found()
    for name, said in mapping(contents.get("taps")).items():
        entry = mapping(said)
        tensor, offset, integer = entry.get("tensor"), entry.get("offset"), entry.get("integer")
        if not isinstance(tensor, str) or not isinstance(offset, int) or abs(offset) > 2**16 or not isinstance(integer, bool):
            raise QkitError(f"the file's metadata about the tap {name!r} are corrupt: export the model again.")
        if tensor not in wiring.made and tensor not in wiring.inputs:
            raise QkitError(f"the file has no tensor {tensor!r}, which its metadata name for {name!r}: export the model again.")
        shape = _shape(graph, name)
        if not integer:
            found.taps[name] = TapTensor(tensor, shape=shape)
            continue
        node = wiring.made.get(tensor)
        stored = wiring.grid(node, offset) if node is not None and node.op_type == "QuantizeLinear" else None
        if stored is None:
            raise QkitError(f"{tensor!r} of the tap {name!r} is not quantized in the file: export the model again.")
        planned = plan.params(name)
        if (
            planned is not None
            and torch.equal(planned.scale, stored.scale)
            and torch.equal(planned.zero_point, stored.zero_point)
        ):
            stored = planned
        else:
            found.notes.append(f"{name} is on another grid in the file than in the plan that it carries; the file's is taken")
        found.taps[name] = TapTensor(tensor, stored, offset, shape)
    return found


def mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise QkitError("the file's metadata about its taps are corrupt: export the model again.")
    return value


def _shape(graph: Graph | None, tap: str) -> tuple[int, ...]:
    return () if graph is None else graph.operation(tap).shape


def foreign_taps(model: Any, graph: Graph | None) -> Found:
    """Taps of a file that the kit did not write: the graph's as far as names tell, or all quantized tensors by theirs."""
    wiring = Wiring(model)
    return _all_quantized(wiring) if graph is None else _matched(wiring, graph)


def _all_quantized(wiring: Wiring) -> Found:
    found, skipped = Found(), []
    for node in wiring.nodes:
        if node.op_type == "QuantizeLinear" and node.input[0] not in wiring.constants:
            params = wiring.grid(node)
            name = node.input[0] if node.input[0] not in found.taps else node.output[0]
            if params is None:
                skipped.append(name)
            else:
                found.taps[name] = TapTensor(node.output[0], params)
    if not found.taps:
        found.notes.append("the file has no quantized tensors: without graph= only its outputs are yielded")
    if skipped:
        found.notes.append(
            f"{len(skipped)} tensors are left out, since they are not of 8 or 16 bits at a fixed scale: {skipped[0]}"
        )
    return found


def _matched(wiring: Wiring, graph: Graph) -> Found:
    found, missing = Found(), []
    cores = _cores(wiring)
    for op in graph.operations:
        if not op.quantized:
            continue
        tensor = _input(wiring, op) if op.argument is not None else _end(wiring, cores.get(op.name), op)
        if tensor is None:
            missing.append(op.name)
            continue
        if op.name in cores:
            found.cores[op.name] = cores[op.name]
        node, reshaped = wiring.quantizer(tensor)
        params = None if node is None else wiring.grid(node)
        if node is None or params is None or (reshaped and params.axis is not None):
            found.taps[op.name] = TapTensor(tensor, shape=op.shape)
        else:
            found.taps[op.name] = TapTensor(node.output[0], params, shape=op.shape, reshaped=reshaped)
    if missing:
        found.notes.append(
            f"{len(missing)} of {len(missing) + len(found.taps)} taps were not found by name in the file: {few(missing)}"
        )
    return found


def _input(wiring: Wiring, op: Operation) -> str | None:
    return wiring.inputs[op.argument] if op.argument is not None and op.argument < len(wiring.inputs) else None


def _end(wiring: Wiring, core: Any | None, op: Operation) -> str | None:
    """The tensor behind the batch norm and the activation that the operation has fused; a quantizer may stand in between."""
    if core is None:
        return None
    tensor: str = core.output[0]
    if op.norm is None and op.act == UNBOUNDED:
        return tensor
    seek = tensor
    for _ in range(8):
        readers = wiring.readers.get(seek, [])
        if len(readers) != 1 or readers[0].op_type not in _FOLLOWS | _THROUGH:
            break
        seek = readers[0].output[0]
        if readers[0].op_type in _FOLLOWS:
            tensor = seek
    return tensor


def _cores(wiring: Wiring) -> dict[str, Any]:
    """Nodes by the tap that their name speaks of; the last node of a module where there are several."""
    found: dict[str, Any] = {}
    seen: Counter[str] = Counter()
    for node in wiring.nodes:
        if node.op_type in _THROUGH or node.op_type == "Constant":
            continue
        path, operation = _origin(node)
        if path is not None:
            if path:
                found[path] = node
            name = f"{path}:{operation}"
            seen[name] += 1
            found[name if seen[name] == 1 else f"{name}#{seen[name]}"] = node
    for name in [name for name in found if name.endswith(":mean")]:
        found.setdefault(name.replace(":mean", ":adaptive_avg_pool2d"), found[name])
    # a weight's own name says more than that of a node which an exporter has fused with the next
    return found | {path: node for node in wiring.nodes if (path := _weight_owner(wiring, node)) is not None}


def _weight_owner(wiring: Wiring, node: Any) -> str | None:
    """Path of the module whose weight the node multiplies with, as far as the weight's name tells."""
    if node.op_type not in _WEIGHTED or len(node.input) < 2:
        return None
    name = node.input[1]
    for _ in range(4):
        maker = wiring.made.get(name)
        if maker is None or maker.op_type not in _THROUGH | {"Transpose"}:
            break
        name = maker.input[0]
    return name[: name.index(".weight")] if name in wiring.constants and ".weight" in name else None


def _origin(node: Any) -> tuple[str | None, str]:
    """Path of the module that the node comes from and name of the operation, as far as its exporter wrote them down."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            try:
                scopes = ast.literal_eval(entry.value)
                return str(scopes[-2]), re.sub(r"_\d+$", "", str(scopes[-1]))
            except (ValueError, SyntaxError, IndexError, TypeError, RecursionError, MemoryError):
                return None, ""
    parts = node.name.strip("/").split("/")
    operation = re.sub(r"(_\d+|_quant)+$", "", parts[-1]).lower()
    path: list[str] = []
    for part in parts[:-1]:
        # children of a Sequential are named with its name before theirs
        if path and part.startswith(f"{path[-1]}."):
            path[-1] = part
        else:
            path.append(part)
    return (".".join(path), _OPERATIONS.get(operation, operation)) if node.name.startswith("/") else (None, "")
