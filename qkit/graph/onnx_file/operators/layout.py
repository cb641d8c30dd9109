"""Shapes: reshaping, transposing, joining, splitting, repeating, padding."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.sizes import Dimension, Size
from qkit.graph.onnx_file.values import Planned, TorchCall


def reshaped_to(call: Call, shapes: Sequence[Sequence[int]]) -> TorchCall:
    """A reshape to these shapes, one a batch; the one dimension that grows with the batch is written as -1."""
    sizes = call.dimensions(shapes, "the new shape")
    open_sizes = [size for size in sizes if isinstance(size, Size)]
    if len(open_sizes) == 1 and 0 not in sizes:
        sizes = tuple(-1 if isinstance(size, Size) else size for size in sizes)
    return call.torch(torch.reshape, call.value(0), shape=sizes)


def reshape(call: Call) -> Planned:
    wanted = call.tensors(1, "new shape")
    shapes: list[list[int]] = []
    for probe in range(len(call.batches)):
        before = list(call.value(0).at(probe).shape)
        target = [int(size) for size in wanted[probe].reshape(-1).tolist()]
        if not call.attribute("allowzero", 0):
            target = [before[axis] if size == 0 else size for axis, size in enumerate(target)]
        if -1 in target:
            rest = math.prod(size for size in target if size != -1)
            target[target.index(-1)] = math.prod(before) // rest if rest else 0
        shapes.append(target)
    if any(math.prod(call.value(0).at(i).shape) != math.prod(shape) for i, shape in enumerate(shapes)):
        found = tuple(call.value(0).at(0).shape)
        hint = " If the file is made for one image at a time, read it with shapes= that have a 1 as the batch."
        raise call.refuse(f"{found} cannot be reshaped to {tuple(shapes[0])}.{hint if len(call.batches) > 1 else ''}")
    return _reshaped(call, shapes)


def _reshaped(call: Call, shapes: Sequence[Sequence[int]]) -> Planned:
    value = call.value(0)
    if not value.known and all(tuple(value.at(i).shape) == tuple(shape) for i, shape in enumerate(shapes)):
        return (value,)
    return reshaped_to(call, shapes)


def flatten(call: Call) -> Planned:
    axis = call.attribute("axis", 1)
    axis = axis + call.rank(0) if axis < 0 else axis
    shapes = []
    for probe in range(len(call.batches)):
        before = call.value(0).at(probe).shape
        shapes.append([math.prod(before[:axis]), math.prod(before[axis:])])
    return _reshaped(call, shapes)


def transpose(call: Call) -> Planned:
    order = tuple(call.attribute("perm", list(range(call.rank(0)))[::-1]))
    value = call.value(0)
    if order == tuple(range(call.rank(0))):
        return (value,)
    if value.constant:
        return (value.permuted(order),)
    return call.torch(torch.permute, value, dims=order)


def _axes(call: Call, rank: int) -> list[int] | None:
    axes = call.numbers(1, "axes") if call.has(1) else call.attribute("axes")
    return None if axes is None else sorted({axis % rank for axis in axes})


def squeeze(call: Call) -> Planned:
    rank = call.rank(0)
    axes = _axes(call, rank)
    sizes = call.shape(0)
    axes = [axis for axis in range(rank) if sizes[axis] == 1] if axes is None else axes
    wrong = [axis for axis in axes if sizes[axis] != 1]
    if wrong:
        hint = " Read the file with shapes= that have a 1 as the batch." if isinstance(sizes[wrong[0]], Size) else ""
        raise call.refuse(f"it removes axis {wrong[0]}, whose size is not 1.{hint}")
    if not axes:
        return (call.value(0),)
    return call.torch(torch.squeeze, call.value(0), dim=tuple(axes))


def unsqueeze(call: Call) -> Planned:
    count = len(call.numbers(1, "axes") if call.has(1) else call.needed("axes"))
    axes = _axes(call, call.rank(0) + count) or []
    if len(axes) == 1:
        return call.torch(torch.unsqueeze, call.value(0), dim=axes[0])
    return call.torch(with_new_axes, call.value(0), axes=tuple(axes)) if axes else (call.value(0),)


def with_new_axes(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """The tensor with axes of size 1 at these places of the result."""
    for axis in axes:
        x = x.unsqueeze(axis)
    return x


def expand(call: Call) -> Planned:
    wanted = [tuple(int(size) for size in tensor.reshape(-1).tolist()) for tensor in call.tensors(1, "new shape")]
    value = call.value(0)
    shapes = [np.broadcast_shapes(tuple(value.at(i).shape), wanted[i]) for i in range(len(call.batches))]
    if not value.known and all(tuple(value.at(i).shape) == shape for i, shape in enumerate(shapes)):
        return (value,)
    sizes = call.dimensions(shapes, "the new shape")
    before = call.shape(0)
    ahead = len(sizes) - len(before)
    kept: list[Dimension] = [-1 if axis >= ahead and before[axis - ahead] == size else size for axis, size in enumerate(sizes)]
    return call.torch(expanded, value, shape=tuple(kept))


def expanded(x: Tensor, *, shape: Sequence[int]) -> Tensor:
    """The tensor broadcast to a shape."""
    return x.expand(tuple(shape))


def tile(call: Call) -> Planned:
    counts = call.integers(1, "repeats")
    return (call.value(0),) if all(count == 1 for count in counts) else call.torch(tiled, call.value(0), counts=tuple(counts))


def tiled(x: Tensor, *, counts: Sequence[int]) -> Tensor:
    """The tensor again and again along each axis."""
    return x.repeat(tuple(counts))


def concat(call: Call) -> Planned:
    axis = call.axis(0, call.needed("axis"))
    return call.torch(joined, *call.inputs, axis=axis) if len(call.inputs) > 1 else (call.value(0),)


def joined(*tensors: Tensor, axis: int) -> Tensor:
    """The tensors one after the other."""
    return torch.cat(tensors, dim=axis)


def split(call: Call) -> TorchCall:
    axis = call.axis(0, call.attribute("axis", 0))
    if call.has(1):
        sizes: Sequence[Dimension] = call.integers(1, "sizes")
    elif "split" in call.attributes:
        sizes = call.attribute("split")
    else:
        count = call.attribute("num_outputs", len(call.outputs))
        size = -(-call.static(0, axis) // count)
        sizes = [size] * (count - 1) + [call.static(0, axis) - size * (count - 1)]
    return call.torch(parts, call.value(0), sizes=tuple(sizes), axis=axis)


def parts(x: Tensor, *, sizes: Sequence[int], axis: int) -> tuple[Tensor, ...]:
    """The tensor cut along an axis."""
    return torch.split(x, list(sizes), dim=axis)


def depth_to_space(call: Call) -> TorchCall:
    size = call.needed("blocksize")
    if call.attribute("mode", "DCR") == "CRD":
        return call.torch(F.pixel_shuffle, call.value(0), upscale_factor=size)
    return call.torch(depth_first_to_space, call.value(0), size=size)


def depth_first_to_space(x: Tensor, *, size: int) -> Tensor:
    """DepthToSpace where the block's place varies slowest among the channels."""
    _, channels, height, width = x.shape
    blocks = x.reshape(-1, size, size, channels // size**2, height, width)
    return blocks.permute(0, 3, 4, 1, 5, 2).reshape(-1, channels // size**2, height * size, width * size)


def space_to_depth(call: Call) -> TorchCall:
    return call.torch(space_to_depth_first, call.value(0), size=call.needed("blocksize"))


def space_to_depth_first(x: Tensor, *, size: int) -> Tensor:
    """SpaceToDepth: the block's place varies slowest among the new channels."""
    _, channels, height, width = x.shape
    blocks = x.reshape(-1, channels, height // size, size, width // size, size)
    return blocks.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels * size**2, height // size, width // size)


def pad(call: Call) -> Planned:
    rank = call.rank(0)
    pads = call.numbers(1, "pads") if call.opset >= 11 else list(call.needed("pads"))
    value = call.attribute("value", 0.0)
    if call.opset >= 11 and call.has(2):
        value = call.scalar(2, "value")
    axes = [axis % rank for axis in call.numbers(3, "axes")] if call.has(3) else list(range(rank))
    begin, end = [0] * rank, [0] * rank
    for position, axis in enumerate(axes):
        begin[axis], end[axis] = pads[position], pads[position + len(axes)]
    mode = call.attribute("mode", "constant")
    if not any(begin) and not any(end):
        return (call.value(0),)
    flat = tuple(side for pair in zip(begin[::-1], end[::-1], strict=True) for side in pair)
    while len(flat) > 2 and flat[-2:] == (0, 0):
        flat = flat[:-2]
    if mode == "constant":
        return call.torch(F.pad, call.value(0), pad=flat, value=value)
    torch_mode = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}.get(mode)
    if torch_mode is None:
        raise call.refuse(f"mode={mode!r} does not exist.")
    if _torch_pads(call, flat, torch_mode):
        return call.torch(F.pad, call.value(0), pad=flat, mode=torch_mode)
    chosen = [axis for axis in range(rank) if begin[axis] or end[axis]]
    indices = [call.made(_padded_places(call.static(0, axis), begin[axis], end[axis], mode), f"axis{axis}") for axis in chosen]
    return call.torch(picked, call.value(0), *indices, axes=tuple(chosen))


def _torch_pads(call: Call, flat: Sequence[int], mode: str) -> bool:
    axes = len(flat) // 2
    sizes = [call.static(0, -1 - position // 2) for position in range(len(flat))]
    within = all(0 <= side < size if mode == "reflect" else 0 <= side <= size for side, size in zip(flat, sizes, strict=True))
    return mode != "circular" and within and axes == call.rank(0) - 2


def _padded_places(size: int, begin: int, end: int, mode: str) -> Tensor:
    places = np.arange(size)
    low, high = max(begin, 0), max(end, 0)
    modes = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}
    places = places[max(-begin, 0) : size - max(-end, 0)]
    return torch.from_numpy(np.pad(places, (low, high), mode=modes[mode]).astype(np.int64))  # type: ignore[call-overload]


def picked(x: Tensor, *indices: Tensor, axes: Sequence[int]) -> Tensor:
    """The elements at these places along each axis."""
    for index, axis in zip(indices, axes, strict=True):
        x = torch.index_select(x, axis, index)
    return x


def shape(call: Call) -> Planned:
    rank = call.rank(0)
    start, end, _ = slice(call.attribute("start", 0), call.attribute("end", rank)).indices(rank)
    shapes = [call.value(0).at(i).shape[start:end] for i in range(len(call.batches))]
    return (call.known([torch.tensor(list(sizes), dtype=torch.int64) for sizes in shapes]),)


def size(call: Call) -> Planned:
    return (call.known([torch.tensor(call.value(0).at(i).numel()) for i in range(len(call.batches))]),)


def identity(call: Call) -> Planned:
    return (call.value(0),)


def constant(call: Call) -> Planned:
    makers: dict[str, Callable[..., Tensor]] = {
        "value": lambda x: x,
        "value_float": lambda x: torch.tensor(x, dtype=torch.float32),
        "value_floats": lambda x: torch.tensor(x, dtype=torch.float32),
        "value_int": lambda x: torch.tensor(x, dtype=torch.int64),
        "value_ints": lambda x: torch.tensor(x, dtype=torch.int64),
    }
    for name, make in makers.items():
        if name in call.attributes:
            value = call.known([make(call.attributes[name])])
            value.source = value.name
            return (value,)
    raise call.refuse("it holds strings or a sparse tensor, which are not supported. Cut the file in front of what reads it.")


def constant_of_shape(call: Call) -> TorchCall:
    value = call.attribute("value", torch.zeros(1))
    kind = call.made(torch.zeros((), dtype=value.dtype), "kind")
    return call.torch(filled, kind, shape=tuple(call.integers(0, "shape")), value=value.item())


def filled(kind: Tensor, *, shape: Sequence[int], value: float) -> Tensor:
    """A tensor of one number, of the type and on the device of `kind`."""
    return torch.full(tuple(shape), value, dtype=kind.dtype, device=kind.device)


def numbers_between(call: Call) -> TorchCall:
    dtype = call.value(0).at(0).dtype
    kind = call.made(torch.zeros((), dtype=dtype), "kind")
    whats = ("start", "limit", "delta")
    if dtype.is_floating_point:
        return call.torch(arange, kind, bounds=tuple(call.scalar(index, what) for index, what in enumerate(whats)))
    return call.torch(arange, kind, bounds=tuple(call.integers(index, what)[0] for index, what in enumerate(whats)))


def arange(kind: Tensor, *, bounds: Sequence[float]) -> Tensor:
    """Numbers from the first bound, below the second, by the third, of the type and on the device of `kind`."""
    start, limit, delta = bounds
    return torch.arange(start, limit, delta, dtype=kind.dtype, device=kind.device)


TABLE: dict[str, Callable[[Call], Planned]] = {
    "Reshape": reshape,
    "Flatten": flatten,
    "Transpose": transpose,
    "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "Expand": expand,
    "Tile": tile,
    "Concat": concat,
    "Split": split,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Pad": pad,
    "Shape": shape,
    "Size": size,
    "Identity": identity,
    "Constant": constant,
    "ConstantOfShape": constant_of_shape,
    "Range": numbers_between,
}
