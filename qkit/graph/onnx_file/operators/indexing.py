"""Slices, gathering and scattering."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call, as_weight
from qkit.graph.onnx_file.sizes import Dimension, Size
from qkit.graph.onnx_file.values import Planned, TorchCall, Value

FAR = 2**31 - 1
"""From here on, a bound of a slice means the end."""


def cut(call: Call) -> Planned:
    rank = call.rank(0)
    if call.opset >= 10:
        starts, ends = call.integers(1, "starts"), call.integers(2, "ends")
        axes = call.numbers(3, "axes") if call.has(3) else list(range(len(starts)))
        steps = call.numbers(4, "steps") if call.has(4) else [1] * len(starts)
    else:
        starts, ends = list(call.needed("starts")), list(call.needed("ends"))
        axes, steps = list(call.attribute("axes", range(len(starts)))), [1] * len(starts)
    bounds: list[tuple[Any, ...]] = [(None, None, None)] * rank
    flips = []
    for start, end, given, step in zip(starts, ends, axes, steps, strict=True):
        axis = call.axis(0, given)
        bounds[axis], flip = _bounds(call, axis, start, end, step)
        flips += [axis] if flip else []
    if all(bound == (None, None, None) for bound in bounds) and not flips:
        return (call.value(0),)
    return call.torch(cut_out, call.value(0), bounds=tuple(bounds), flips=tuple(flips))


def _bounds(call: Call, axis: int, start: Dimension, end: Dimension, step: int) -> tuple[tuple[Any, ...], bool]:
    size = call.shape(0)[axis]
    if isinstance(size, Size) or isinstance(start, Size) or isinstance(end, Size):
        if step < 0:
            raise call.refuse(f"it goes backwards over axis {axis}, whose size depends on the batch.")
        whole = end == size or (isinstance(end, int) and end >= FAR)
        return (None if start == 0 else start, None if whole else end, None if step == 1 else step), False
    places = range(size)[slice(start, end, step)] if not (step < 0 and end < -size) else range(size)[slice(start, None, step)]
    if step < 0 and len(places):
        return (places[-1], places[0] + 1, -step), True
    if places == range(size):
        return (None, None, None), False
    if not len(places):
        return (0, 0, None), False
    return (places[0], places[-1] + 1, None if step == 1 else step), False


def cut_out(x: Tensor, *, bounds: Sequence[tuple[Any, ...]], flips: Sequence[int]) -> Tensor:
    """A slice, turned around along some axes."""
    part = x[tuple(slice(*bound) for bound in bounds)]
    return part.flip(tuple(flips)) if flips else part


def gather(call: Call) -> Planned:
    x, index = call.value(0), call.value(1)
    axis = call.axis(0, call.attribute("axis", 0))
    if index.constant:
        size = call.shape(0)[axis]
        if index.at(0).numel() == 1 and index.at(0).ndim == 0:
            place = int(index.at(0).item())
            if isinstance(size, int) and not -size <= place < size:
                raise call.refuse(f"index {place} is outside axis {axis}, whose size is {size}.")
            return call.torch(torch.select, x, dim=axis, index=place)
        index = _counted_from_start(index, size)
        if index.at(0).ndim == 1:
            return call.torch(taken, x, index, axis=axis)
        return call.torch(taken_in_shape, x, index, axis=axis)
    if x.constant and call.rank(0) == 2 and axis == 0 and not index.known:
        return call.torch(looked_up, as_weight(x), index)
    return call.torch(taken_by_data, x, index, axis=axis)


def _counted_from_start(index: Value, size: Dimension) -> Value:
    """Constant places along an axis, none of them from its end."""
    if isinstance(size, int) and index.at(0).numel() and int(index.at(0).min()) < 0:
        return index.variant(("counted from start", size), lambda places: places.long().remainder(size))
    return index if index.at(0).dtype == torch.int64 else index.variant("long", lambda places: places.long())


def looked_up(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table: an embedding."""
    return F.embedding(index.long(), table)


def taken(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """The elements at these places along an axis."""
    return torch.index_select(x, axis, index)


def taken_in_shape(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """The elements at these places along an axis, which becomes as many axes as `index` has."""
    return torch.unflatten(torch.index_select(x, axis, index.reshape(-1)), axis, tuple(index.shape))


def taken_by_data(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """The elements at places that may count from the end."""
    places = torch.where(index < 0, index + x.shape[axis], index).long()
    taken_there: Tensor = x[(slice(None),) * axis + (places,)]
    return taken_there


def gather_elements(call: Call) -> TorchCall:
    axis = call.axis(0, call.attribute("axis", 0))
    return call.torch(taken_each, call.value(0), call.value(1), axis=axis)


def taken_each(x: Tensor, index: Tensor, *, axis: int) -> Tensor:
    """`torch.gather` with places that may count from the end."""
    return torch.gather(x, axis, torch.where(index < 0, index + x.shape[axis], index).long())


def gather_nd(call: Call) -> TorchCall:
    shared = call.attribute("batch_dims", 0)
    if shared > 1:
        raise call.refuse(f"batch_dims={shared} is not supported, only 0 and 1.")
    return call.torch(taken_at_points, call.value(0), call.value(1), shared=shared)


def taken_at_points(x: Tensor, index: Tensor, *, shared: int) -> Tensor:
    """The parts at points: the last axis of `index` has their coordinates."""
    places = [axis_places.long() for axis_places in index.unbind(-1)]
    if shared:
        rows = torch.arange(x.shape[0], device=x.device)
        places.insert(0, rows.reshape(-1, *[1] * (places[0].ndim - 1)))
    return x[tuple(places)]


def scatter_nd(call: Call) -> TorchCall:
    how = call.attribute("reduction", "none")
    if how not in {"none", "add"}:
        raise call.refuse(f"reduction={how!r} is not supported, only none and add.")
    return call.torch(put_at_points, *(call.value(i) for i in range(3)), add=how == "add")


def put_at_points(x: Tensor, index: Tensor, updates: Tensor, *, add: bool) -> Tensor:
    """The tensor with the parts at points replaced, or added to."""
    return x.index_put(tuple(places.long() for places in index.unbind(-1)), updates, accumulate=add)


def scatter_elements(call: Call) -> TorchCall:
    how = {"none": None, "add": "sum", "mul": "prod", "min": "amin", "max": "amax"}[call.attribute("reduction", "none")]
    axis = call.axis(0, call.attribute("axis", 0))
    return call.torch(put_each, *(call.value(i) for i in range(3)), axis=axis, how=how)


def put_each(x: Tensor, index: Tensor, updates: Tensor, *, axis: int, how: str | None) -> Tensor:
    """`torch.scatter` with places that may count from the end."""
    places = torch.where(index < 0, index + x.shape[axis], index).long()
    return x.scatter(axis, places, updates) if how is None else x.scatter_reduce(axis, places, updates, how)


def triangle(call: Call) -> TorchCall:
    diagonal = call.numbers(1, "k")[0] if call.has(1) else 0
    function: Callable[..., Tensor] = torch.triu if call.attribute("upper", 1) else torch.tril
    return call.torch(function, call.value(0), diagonal=diagonal)


def one_hot(call: Call) -> TorchCall:
    depth = int(call.numbers(1, "depth")[0])
    axis = call.attribute("axis", -1)
    axis = axis + call.rank(0) + 1 if axis < 0 else axis
    return call.torch(on_and_off, call.value(0), call.value(2), depth=depth, axis=axis)


def on_and_off(index: Tensor, values: Tensor, *, depth: int, axis: int) -> Tensor:
    """``values[1]`` at each index along a new axis, ``values[0]`` elsewhere."""
    places = torch.where(index < 0, index + depth, index).unsqueeze(axis)
    shape = [-1 if i == axis else 1 for i in range(places.ndim)]
    hot = places == torch.arange(depth, device=index.device).reshape(shape)
    return torch.where(hot, values[1], values[0])


TABLE: dict[str, Callable[[Call], Planned]] = {
    "Slice": cut,
    "Gather": gather,
    "GatherElements": gather_elements,
    "GatherND": gather_nd,
    "ScatterND": scatter_nd,
    "ScatterElements": scatter_elements,
    "Scatter": scatter_elements,
    "Trilu": triangle,
    "OneHot": one_hot,
}
