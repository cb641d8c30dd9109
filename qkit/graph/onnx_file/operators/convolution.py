"""Convolutions, transposed ones, and products with matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call, as_weight
from qkit.graph.onnx_file.values import TorchCall, Value

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Window:
    """Where a kernel is put: a number for each spatial dimension in every field."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]

    @property
    def symmetric(self) -> bool:
        """Whether both sides of every dimension are padded alike, and none is cropped."""
        return self.begin == self.end and min(self.begin, default=0) >= 0

    @property
    def extent(self) -> tuple[int, ...]:
        """Size of the kernel with its holes."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel, self.dilation, strict=True))

    @property
    def padding(self) -> tuple[int, ...]:
        """The padding as `F.pad` takes it: last dimension first."""
        return tuple(side for pair in zip(self.begin[::-1], self.end[::-1], strict=True) for side in pair)


def spatial(call: Call) -> tuple[int, ...]:
    """The input's sizes behind batch and channels."""
    return tuple(call.static(0, axis) for axis in range(2, call.rank(0)))


def window(call: Call, kernel: Sequence[int]) -> Window:
    """The window that a node's attributes ask for, SAME padding as numbers."""
    count = len(kernel)
    stride = tuple(call.attribute("strides", [1] * count))
    dilation = tuple(call.attribute("dilations", [1] * count))
    pads = list(call.attribute("pads", [0] * 2 * count))
    auto = call.attribute("auto_pad", "NOTSET")
    if not len(stride) == len(dilation) == count == call.rank(0) - 2 or len(pads) != 2 * count:
        raise call.refuse(f"kernel, strides, dilations and pads do not fit an input of {call.rank(0)} dimensions.")
    if auto in {"SAME_UPPER", "SAME_LOWER"}:
        extent = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        total = [max((-(-n // s) - 1) * s + e - n, 0) for n, s, e in zip(spatial(call), stride, extent, strict=True)]
        less = [t // 2 for t in total]
        more = [t - half for t, half in zip(total, less, strict=True)]
        pads = less + more if auto == "SAME_UPPER" else more + less
    elif auto == "VALID":
        pads = [0] * 2 * count
    elif auto != "NOTSET":
        raise call.refuse(f"auto_pad={auto!r} does not exist.")
    return Window(tuple(kernel), stride, dilation, tuple(pads[:count]), tuple(pads[count:]))


def kernel_of(call: Call, index: int = 1) -> tuple[int, ...]:
    """The kernel's size, from the shape of the weights."""
    return tuple(call.static(index, axis) for axis in range(2, call.rank(index)))


def conv(call: Call) -> TorchCall:
    return convolution(call, call.value(0), call.value(1), call.get(2))


def convolution(call: Call, x: Value, weight: Value, bias: Value | None) -> TorchCall:
    """A convolution of these operands with the attributes of the node."""
    kernel = tuple(weight.at(0).shape[2:])
    w = window(call, kernel)
    if not 1 <= len(kernel) <= 3:
        raise call.refuse(f"convolutions over {len(kernel)} dimensions are not supported, only over 1 to 3.")
    operands = (x, as_weight(weight), None if bias is None else as_weight(bias))
    settings = {"stride": w.stride, "dilation": w.dilation, "groups": call.attribute("group", 1)}
    if w.symmetric:
        return call.torch(CONVOLUTIONS[len(kernel) - 1], *operands, padding=w.begin, **settings)
    return call.torch(padded_convolution, *operands, padding=w.padding, **settings)


def padded_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A convolution with other padding on one side than on the other."""
    return CONVOLUTIONS[weight.ndim - 3](F.pad(x, padding), weight, bias, stride=stride, dilation=dilation, groups=groups)


def conv_transpose(call: Call) -> TorchCall:
    kernel = kernel_of(call)
    count = len(kernel)
    if not 1 <= count <= 3:
        raise call.refuse(f"convolutions over {count} dimensions are not supported, only over 1 to 3.")
    stride = tuple(call.attribute("strides", [1] * count))
    dilation = tuple(call.attribute("dilations", [1] * count))
    extra = tuple(call.attribute("output_padding", [0] * count))
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(spatial(call), stride, kernel, dilation, extra, strict=True)
    ]
    begin, end = _transposed_pads(call, full, stride)
    operands = (call.value(0), call.weight(1), call.weight(2))
    settings = {"stride": stride, "dilation": dilation, "groups": call.attribute("group", 1)}
    # torch crops `padding` on both sides and adds `output_padding` at the end: most asymmetric crops can be written so
    added = tuple(e + b - c for e, b, c in zip(extra, begin, end, strict=True))
    limits = [max(s, d) for s, d in zip(stride, dilation, strict=True)]
    if min(begin) >= 0 and all(0 <= a < limit for a, limit in zip(added, limits, strict=True)):
        return call.torch(TRANSPOSED[count - 1], *operands, padding=begin, output_padding=added, **settings)
    crop = tuple(side for b, e, x in zip(begin[::-1], end[::-1], extra[::-1], strict=True) for side in (-b, x - e))
    return call.torch(cropped_transposed_convolution, *operands, crop=crop, **settings)


def _transposed_pads(call: Call, full: Sequence[int], stride: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    count = len(full)
    auto = call.attribute("auto_pad", "NOTSET")
    wanted = call.attribute("output_shape", None)
    if wanted is None and auto in {"SAME_UPPER", "SAME_LOWER"}:
        wanted = [n * s for n, s in zip(spatial(call), stride, strict=True)]
    if wanted is None:
        pads = [0] * 2 * count if auto == "VALID" else list(call.attribute("pads", [0] * 2 * count))
        return tuple(pads[:count]), tuple(pads[count:])
    total = [n - out for n, out in zip(full, list(wanted)[-count:], strict=True)]
    # what the output has more than the convolution gives (a negative total) lies at the end
    less = [t // 2 if t > 0 else 0 for t in total]
    more = [t - half for t, half in zip(total, less, strict=True)]
    begin = [low if auto == "SAME_UPPER" or t < 0 else high for t, low, high in zip(total, less, more, strict=True)]
    return tuple(begin), tuple(t - b for t, b in zip(total, begin, strict=True))


def cropped_transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    crop: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """A transposed convolution whose output is cropped or padded by hand."""
    whole = TRANSPOSED[weight.ndim - 3](x, weight, None, stride=stride, dilation=dilation, groups=groups)
    cropped = F.pad(whole, crop)
    return cropped if bias is None else cropped + bias.reshape(-1, *[1] * (weight.ndim - 2))


def gemm(call: Call) -> TorchCall:
    a, b, c = call.value(0), call.value(1), call.get(2)
    alpha, beta = float(call.attribute("alpha", 1.0)), float(call.attribute("beta", 1.0))
    return gemm_of(call, a, b, c, alpha=alpha, beta=beta)


def gemm_of(call: Call, a: Value, b: Value, c: Value | None, *, alpha: float = 1.0, beta: float = 1.0) -> TorchCall:
    """``alpha * a @ b + beta * c`` of these operands, transposed as the node's attributes say."""
    transposed_a, transposed_b = bool(call.attribute("transA", 0)), bool(call.attribute("transB", 0))
    if b.constant and alpha == 1.0:
        weight = as_weight(b if transposed_b else b.permuted((1, 0)))
        bias = _vector(c, weight.at(0).shape[0]) if c is None or beta == 1.0 else None
        if c is None or bias is not None:
            if transposed_a:
                return call.torch(linear_of_transposed, a, weight, bias)
            return call.torch(F.linear, a, weight, bias)
    settings = {"alpha": alpha, "beta": beta, "transposed_a": transposed_a, "transposed_b": transposed_b}
    return call.torch(general_matrix_product, a, as_weight(b), c, **settings)


def _vector(c: Value | None, features: int) -> Value | None:
    """A constant as the bias of a linear layer; None if it is not the same in every row."""
    if c is None or not c.constant or (c.at(0).numel() not in {1, features}) or (c.at(0).ndim == 2 and c.at(0).shape[0] != 1):
        return None
    if c.at(0).shape == (features,):
        return as_weight(c)
    return as_weight(c.variant(("vector", features), lambda x: x.reshape(-1).expand(features).contiguous()))


def linear_of_transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer of the columns of a matrix."""
    return F.linear(x.transpose(0, 1), weight, bias)


def general_matrix_product(
    a: Tensor, b: Tensor, c: Tensor | None, *, alpha: float, beta: float, transposed_a: bool, transposed_b: bool
) -> Tensor:
    """ONNX's Gemm with everything that it has."""
    product = torch.matmul(a.transpose(0, 1) if transposed_a else a, b.transpose(0, 1) if transposed_b else b)
    product = product if alpha == 1.0 else product * alpha
    return product if c is None else product + (c if beta == 1.0 else c * beta)


def matmul(call: Call) -> TorchCall:
    return matmul_of(call, call.value(0), call.value(1))


def matmul_of(call: Call, a: Value, b: Value) -> TorchCall:
    """The matrix product of these operands; with a constant matrix on the right, a linear layer."""
    if b.constant and b.at(0).ndim == 2 and b.at(0).is_floating_point() and not (a.known and a.constant):
        return call.torch(F.linear, a, as_weight(b.permuted((1, 0))))
    return call.torch(torch.matmul, a if not a.constant else as_weight(a), as_weight(b) if b.constant else b)


def einsum(call: Call) -> TorchCall:
    return call.torch(einstein_sum, *call.inputs, equation=call.needed("equation"))


def einstein_sum(*tensors: Tensor, equation: str) -> Tensor:
    """`torch.einsum` with the equation behind the operands."""
    return torch.einsum(equation.replace(" ", ""), *tensors)


TABLE = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "Einsum": einsum,
}
