"""The plan that a file of another tool amounts to: its activations' grids, its weights' codes, its biases."""

from __future__ import annotations

from typing import Any

import torch

from qkit.engines.onnx.taps import Found, Wiring
from qkit.errors import PlanError
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.plan import FLOAT, Codes, Grid, Plan

_RANGES = {"int8": (-(2**7), 2**7 - 1), "uint8": (0, 2**8 - 1), "int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1)}


def foreign_plan(model: Any, graph: Graph, found: Found, name: str) -> Plan:
    """Grids of the matched taps, and of the weights of their layers with the codes that the file has; none for a float file."""
    wiring = Wiring(model)
    grids: dict[str, Grid] = {}
    bias_bits, floats = None, []
    for op in graph.operations:
        place = found.taps.get(op.name)
        if op.quantized and place is not None and place.params is not None:
            grids[op.name] = _grid(place.params)
        core = found.cores.get(op.name)
        if op.weight is None or core is None or len(core.input) < 2:
            continue
        grid = _weight(wiring, core, graph, op)
        if grid is not None:
            grids[op.weight] = grid
        elif op.weight not in grids:
            floats.append(op.weight)
        if len(core.input) > 2 and _dequantizer(wiring, core.input[2]) is not None:
            bias_bits = 32
    # Q/DQ files whose biases are float get integer ones when ONNX Runtime makes integer kernels of them
    bits = 32 if bias_bits is None and all(g.params.bits <= 8 for g in grids.values()) else bias_bits
    if not grids:
        return FLOAT
    if floats:
        found.notes.append(
            f"{len(floats)} weights are not found as integers in the file; their float values are taken: {floats[0]}"
        )
    return Plan(grids, bits, name)


def _grid(params: QuantParams, *, weight: bool = False, codes: Codes | None = None) -> Grid:
    symmetric = bool((params.zero_point == 0).all())
    spec = QuantSpec(params.bits, symmetric=symmetric, signed=params.qmin < 0, per_channel=params.axis is not None)
    return Grid(spec, params, "engine", weight, codes)


def _dequantizer(wiring: Wiring, name: str) -> Any | None:
    """The DequantizeLinear that makes the tensor from integers in the file."""
    node = wiring.made.get(name)
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] not in wiring.constants:
        return None
    return node if node.input[1] in wiring.constants else None


def _weight(wiring: Wiring, core: Any, graph: Graph, op: Operation) -> Grid | None:
    from onnx import numpy_helper

    node = _dequantizer(wiring, core.input[1])
    if node is None or op.weight is None:
        return None
    arrays = [numpy_helper.to_array(wiring.constants[name]) for name in node.input if name]
    codes, kind = torch.from_numpy(arrays[0].astype("int32")), arrays[0].dtype.name
    scale = torch.from_numpy(arrays[1].astype("float32"))
    zero = torch.from_numpy(arrays[2].astype("int32")) if len(arrays) > 2 else torch.zeros(scale.shape, dtype=torch.int32)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % max(codes.ndim, 1)
    wanted = graph.weights[op.weight].shape
    transposed = core.op_type == "MatMul" or (
        core.op_type == "Gemm" and not any(a.name == "transB" and a.i for a in core.attribute)
    )
    if transposed and codes.ndim == 2:
        codes, axis = codes.T.contiguous(), 1 - axis
    if codes.shape != wanted or kind not in _RANGES:
        return None
    if scale.numel() == 1:
        scale, zero = scale.reshape(()), zero.reshape(())
    try:
        params = QuantParams(scale, zero, *_RANGES[kind], axis if scale.ndim else None)
    except PlanError:
        return None
    return _grid(params, weight=True, codes=Codes(codes.to(params.dtype)))
