"""Pooling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.operators.convolution import CONVOLUTIONS, Window, spatial, window
from qkit.graph.onnx_file.values import TorchCall

MAXIMUM = (torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
AVERAGE = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
ADAPTIVE = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


def _window(call: Call) -> Window:
    kernel = tuple(call.needed("kernel_shape"))
    if not 1 <= len(kernel) <= 3:
        raise call.refuse(f"pooling over {len(kernel)} dimensions is not supported, only over 1 to 3.")
    return window(call, kernel)


def _sizes(call: Call, w: Window) -> tuple[int, ...]:
    """Output sizes; with ceil_mode, a last window that would begin in the padding at the end is left out."""
    ceil = bool(call.attribute("ceil_mode", 0))
    sizes = []
    for n, b, e, extent, s in zip(spatial(call), w.begin, w.end, w.extent, w.stride, strict=True):
        free = n + b + e - extent
        size = (-(-free // s) if ceil else free // s) + 1
        sizes.append(size - 1 if ceil and (size - 1) * s >= n + b else size)
    return tuple(sizes)


def _exact(call: Call, w: Window) -> Window:
    """The window with just the padding at the end that its last position needs (negative where it does not reach the end)."""
    ends = [
        (out - 1) * s + extent - n - b
        for out, s, extent, n, b in zip(_sizes(call, w), w.stride, w.extent, spatial(call), w.begin, strict=True)
    ]
    return Window(w.kernel, w.stride, w.dilation, w.begin, tuple(ends))


def _as_torch(w: Window) -> bool:
    """Torch's pooling takes the same padding on both sides, at most half a kernel."""
    return w.symmetric and all(2 * side <= k for side, k in zip(w.begin, w.kernel, strict=True))


def max_pool(call: Call) -> TorchCall:
    call.only_first_output()
    w = _window(call)
    settings = {"kernel_size": w.kernel, "stride": w.stride, "dilation": w.dilation}
    if _as_torch(w):
        ceil = bool(call.attribute("ceil_mode", 0))
        return call.torch(MAXIMUM[len(w.kernel) - 1], call.value(0), padding=w.begin, ceil_mode=ceil, **settings)
    return call.torch(padded_max_pool, call.value(0), padding=_exact(call, w).padding, **settings)


def padded_max_pool(
    x: Tensor, *, padding: tuple[int, ...], kernel_size: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """Maximum pooling with padding that torch's own does not take."""
    padded = F.pad(x, padding, value=float("-inf"))
    return MAXIMUM[len(kernel_size) - 1](padded, kernel_size, stride=stride, dilation=dilation)


def average_pool(call: Call) -> TorchCall:
    w = _window(call)
    ceil, padded = bool(call.attribute("ceil_mode", 0)), bool(call.attribute("count_include_pad", 0))
    settings = {"kernel_size": w.kernel, "stride": w.stride}
    if set(w.dilation) == {1} and _as_torch(w):
        function = AVERAGE[len(w.kernel) - 1]
        return call.torch(function, call.value(0), padding=w.begin, ceil_mode=ceil, count_include_pad=padded, **settings)
    exact = _exact(call, w)
    factors = torch.ones([1] * len(w.kernel))
    for axis, n in enumerate(spatial(call)):
        low, high = (0, n + w.begin[axis] + w.end[axis]) if padded else (w.begin[axis], w.begin[axis] + n)
        out = _sizes(call, w)[axis]
        places = torch.arange(out)[:, None] * w.stride[axis] + torch.arange(w.kernel[axis])[None] * w.dilation[axis]
        count = ((places >= low) & (places < high)).sum(1)
        shape = [out if i == axis else 1 for i in range(len(w.kernel))]
        factors = factors * (w.kernel[axis] / count).reshape(shape)
    operand = None if bool((factors == 1).all()) else call.made(factors.float(), "counts")
    if set(w.dilation) == {1}:
        return call.torch(padded_average_pool, call.value(0), operand, padding=exact.padding, **settings)
    return call.torch(dilated_average_pool, call.value(0), operand, padding=exact.padding, dilation=w.dilation, **settings)


def padded_average_pool(
    x: Tensor, factors: Tensor | None, *, padding: tuple[int, ...], kernel_size: tuple[int, ...], stride: tuple[int, ...]
) -> Tensor:
    """Average pooling with padding that torch's own does not take; `factors` divide by the elements that count."""
    pooled = AVERAGE[len(kernel_size) - 1](F.pad(x, padding), kernel_size, stride=stride)
    return pooled if factors is None else pooled * factors


def dilated_average_pool(
    x: Tensor,
    factors: Tensor | None,
    *,
    padding: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """Average pooling with holes in the kernel, as a convolution of each channel with equal weights."""
    count = 1
    for size in kernel_size:
        count *= size
    weight = torch.full((x.shape[1], 1, *kernel_size), 1.0 / count, dtype=x.dtype, device=x.device)
    convolution = CONVOLUTIONS[len(kernel_size) - 1]
    pooled = convolution(F.pad(x, padding), weight, stride=stride, dilation=dilation, groups=x.shape[1])
    return pooled if factors is None else pooled * factors


def global_average_pool(call: Call) -> TorchCall:
    count = call.rank(0) - 2
    if 1 <= count <= 3:
        return call.torch(ADAPTIVE[count - 1], call.value(0), output_size=1)
    return call.torch(torch.mean, call.value(0), dim=tuple(range(2, call.rank(0))), keepdim=True)


def global_max_pool(call: Call) -> TorchCall:
    return call.torch(torch.amax, call.value(0), dim=tuple(range(2, call.rank(0))), keepdim=True)


TABLE = {
    "MaxPool": max_pool,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
}
