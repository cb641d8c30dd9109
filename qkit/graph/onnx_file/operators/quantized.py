"""Q/DQ nodes and quantized operators: the module computes in float, and the grids are noted.

Where the file holds codes, the module holds the numbers that they stand for, neither rounded nor clipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qkit.graph.onnx_file.call import Call, to_numpy
from qkit.graph.onnx_file.file_loading import integer_type
from qkit.graph.onnx_file.network import OnnxGrid
from qkit.graph.onnx_file.operators.convolution import convolution, gemm_of, matmul_of
from qkit.graph.onnx_file.operators.layout import joined
from qkit.graph.onnx_file.operators.pooling import global_average_pool
from qkit.graph.onnx_file.values import Planned, TorchCall, Value

CUT = "Quantize the file statically (onnxruntime.quantization.quantize_static) or read the float file."


def code_type(call: Call, codes: Value | None) -> tuple[int, bool]:
    """Bits of codes and whether they are signed, from a tensor that has their type: the zero point, say."""
    if codes is not None:
        dtype = codes.at(0).dtype
        return codes.integers or (torch.iinfo(dtype).bits, dtype != torch.uint8)
    wanted = integer_type(call.attribute("output_dtype", 0) or 2)
    if wanted is None:
        raise call.refuse(
            "its codes are floating-point numbers of 8 bits, which is not supported. Quantize the file to integers."
        )
    return wanted


def grid_at(call: Call, scale: int, zero_point: int | None, axis: int | None, kind: tuple[int, bool]) -> OnnxGrid:
    """The grid that inputs of a node describe; `axis` counts where there are several scales."""
    scales = np.asarray(to_numpy(call.array(scale, "scale")), dtype=np.float32)
    if scales.ndim > 1:
        raise call.refuse("its scales are those of blocks, which is not supported, only one scale, or one a channel.")
    zeros = np.zeros(scales.shape, dtype=np.int64)
    if zero_point is not None and call.has(zero_point):
        zeros = np.asarray(to_numpy(call.array(zero_point, "zero point")), dtype=np.int64)
    if scales.size == 1:
        scales, zeros, axis = scales.reshape(()), zeros.reshape(()), None
    if not (np.isfinite(scales).all() and (scales > 0).all()):
        raise call.refuse("its scale is not a positive number. Quantize the file again.")
    return OnnxGrid(scales, np.broadcast_to(zeros, scales.shape).copy(), *kind, axis)


def quantize(call: Call) -> Planned:
    if call.attribute("block_size", 0):
        raise call.refuse("block_size is not supported, only one scale, or one a channel.")
    x = call.value(0)
    axis = call.axis(0, call.attribute("axis", 1)) if call.value(1).at(0).numel() > 1 else None
    grid = grid_at(call, 1, 2, axis, code_type(call, call.get(2)))
    return (replace(x, codes=grid, origin=x, _variants={}),)


def dequantize(call: Call) -> Planned:
    if call.attribute("block_size", 0):
        raise call.refuse("block_size is not supported, only one scale, or one a channel.")
    x = call.value(0)
    axis = call.axis(0, call.attribute("axis", 1)) if call.value(1).at(0).numel() > 1 else None
    if x.codes is not None:
        grid = grid_at(call, 1, 2, axis, (x.codes.bits, x.codes.signed))
        if not grid.same(x.codes):
            raise call.refuse(f"its grid is not the one that {x.name!r} was quantized with, which is not supported.")
        return (x.origin if x.origin is not None else replace(x, codes=None, _variants={}),)
    grid = grid_at(call, 1, 2, axis, code_type(call, x))
    if x.constant:
        return (dequantized_constant(x, grid),)
    zero = float(grid.zero_point) if grid.axis is None else 0.0
    if grid.axis is not None:
        raise call.refuse("codes that are computed at run time have several scales, which is not supported.")
    planned = call.torch(dequantized, x, scale=float(grid.scale), zero_point=zero)
    return TorchCall(planned.function, planned.operands, planned.settings, grid=grid)


def dequantized(codes: Tensor, *, scale: float, zero_point: float) -> Tensor:
    """The numbers that codes of one grid stand for."""
    return (codes.to(torch.float32) - zero_point) * scale


def dequantized_constant(codes: Value, grid: OnnxGrid) -> Value:
    """A constant in float, on its grid."""

    def change(x: Tensor) -> Tensor:
        shape = [1] * x.ndim
        if grid.axis is not None:
            shape[grid.axis] = -1
        scale, zero = torch.from_numpy(grid.scale).reshape(shape), torch.from_numpy(grid.zero_point).reshape(shape)
        return ((x.to(torch.int64) - zero).to(torch.float32) * scale).reshape(x.shape)

    key = ("dequantized", grid.scale.tobytes(), grid.zero_point.tobytes(), grid.axis)
    value = codes.variant(key, change)
    value.grid = grid
    return value


def operand(call: Call, index: int, *, axis: int | None = None) -> Value:
    """An operand of a quantized operator: codes at `index`, their scale and zero point behind."""
    x = call.value(index)
    if x.codes is not None:
        grid = grid_at(call, index + 1, index + 2, axis, (x.codes.bits, x.codes.signed))
        if not grid.same(x.codes):
            raise call.refuse(f"its grid of {x.name!r} is not the one that this was quantized with, which is not supported.")
        return replace(x, codes=None, _variants={})
    if not x.constant:
        raise call.refuse(f"{x.name!r} holds codes that come from outside the file. Put a DequantizeLinear behind the input.")
    return dequantized_constant(x, grid_at(call, index + 1, index + 2, axis, code_type(call, x)))


def output_grid(call: Call, scale: int, zero_point: int) -> OnnxGrid:
    """The grid of a quantized operator's output."""
    return grid_at(call, scale, zero_point, None, code_type(call, call.get(zero_point)))


def on_grid(planned: TorchCall, grid: OnnxGrid) -> TorchCall:
    """The call, its output noted as codes on the grid."""
    return TorchCall(planned.function, planned.operands, planned.settings, codes=grid)


def _integer_bias(call: Call, index: int, x: int, w: int, axis: int) -> Value | None:
    """A bias of codes whose scale is the product of the operands' scales."""
    if not call.has(index):
        return None
    scales = to_numpy(call.array(x + 1, "scale")).reshape(()) * to_numpy(call.array(w + 1, "scale"))
    scales = np.asarray(scales, dtype=np.float32)
    scales = scales.reshape(()) if scales.size == 1 else scales
    bias = call.value(index)
    grid = OnnxGrid(scales, np.zeros(scales.shape, np.int64), 32, True, axis if scales.ndim else None)
    return dequantized_constant(bias, grid)


def qlinear_conv(call: Call) -> TorchCall:
    planned = convolution(call, operand(call, 0), operand(call, 3, axis=0), _integer_bias(call, 8, 0, 3, 0))
    return on_grid(planned, output_grid(call, 6, 7))


def qlinear_matmul(call: Call) -> TorchCall:
    last = call.rank(3) - 1
    return on_grid(matmul_of(call, operand(call, 0), operand(call, 3, axis=last)), output_grid(call, 6, 7))


def qgemm(call: Call) -> Planned:
    axis = 0 if call.attribute("transB", 0) else 1
    alpha = float(call.attribute("alpha", 1.0))
    planned = gemm_of(call, operand(call, 0), operand(call, 3, axis=axis), _integer_bias(call, 6, 0, 3, 0), alpha=alpha)
    return on_grid(planned, output_grid(call, 7, 8)) if call.has(7) else planned


def qlinear_binary(function: Callable[..., Tensor]) -> Callable[[Call], TorchCall]:
    """The quantized operator of two tensors."""

    def plan(call: Call) -> TorchCall:
        return on_grid(call.torch(function, operand(call, 0), operand(call, 3)), output_grid(call, 6, 7))

    return plan


def qlinear_unary(function: Callable[..., Tensor]) -> Callable[[Call], TorchCall]:
    """The quantized operator of one tensor."""

    def plan(call: Call) -> TorchCall:
        return on_grid(call.torch(function, operand(call, 0)), output_grid(call, 3, 4))

    return plan


def qlinear_leaky_relu(call: Call) -> TorchCall:
    slope = call.attribute("alpha", 0.01)
    return on_grid(call.torch(torch.nn.functional.leaky_relu, operand(call, 0), negative_slope=slope), output_grid(call, 3, 4))


def qlinear_softmax(call: Call) -> TorchCall:
    axis = call.axis(0, call.attribute("axis", -1))
    if call.attribute("opset", 13) < 13 and axis != call.rank(0) - 1:
        raise call.refuse("a softmax of before opset 13 over several axes is not supported.")
    return on_grid(call.torch(torch.softmax, operand(call, 0), dim=axis), output_grid(call, 3, 4))


def qlinear_concat(call: Call) -> TorchCall:
    operands = [operand(call, index) for index in range(2, len(call.inputs), 3)]
    axis = call.axis(2, call.needed("axis"))
    return on_grid(call.torch(joined, *operands, axis=axis), output_grid(call, 0, 1))


def qlinear_global_average_pool(call: Call) -> TorchCall:
    call.only(channels_last=0)
    planned = global_average_pool(call)
    return on_grid(TorchCall(planned.function, (operand(call, 0),), planned.settings), output_grid(call, 3, 4))


def dynamic(call: Call) -> Planned:
    raise call.refuse(f"the grid depends on the inputs' data, which is not supported. {CUT}")


def integer(call: Call) -> Planned:
    raise call.refuse(f"it computes with integer codes without a grid of the result, which is not supported. {CUT}")


TABLE: dict[str, Callable[[Call], Planned]] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
    "DynamicQuantizeLinear": dynamic,
    "ConvInteger": integer,
    "MatMulInteger": integer,
}

MICROSOFT: dict[str, Callable[[Call], Planned]] = {
    "QuantizeLinear": quantize,
    "DequantizeLinear": dequantize,
    "QGemm": qgemm,
    "QLinearConcat": qlinear_concat,
    "QLinearGlobalAveragePool": qlinear_global_average_pool,
    "QLinearAdd": qlinear_binary(torch.add),
    "QLinearMul": qlinear_binary(torch.mul),
    "QLinearSigmoid": qlinear_unary(torch.sigmoid),
    "QLinearLeakyRelu": qlinear_leaky_relu,
    "QLinearSoftmax": qlinear_softmax,
}
