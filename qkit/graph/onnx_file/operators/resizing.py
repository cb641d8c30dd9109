"""Resize and Upsample: torch's interpolation where it gives the same numbers, else gathers and products with matrices.

Every axis is resized on its own: a nearest one by an index, others by a matrix of shape (new size, old size). Torch's
interpolations are tried on unit vectors, which gives their matrices; one that agrees on all axes is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qkit.graph.onnx_file.call import Call
from qkit.graph.onnx_file.sizes import Size
from qkit.graph.onnx_file.values import Planned, TorchCall

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Rule:
    """How places in the output belong to places in the input, and how values between are made."""

    mode: str
    coordinates: str
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    outside: bool = False
    antialias: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis to resize; `roi` is the part of it that is resized, for tf_crop_and_resize."""

    axis: int
    before: int
    after: int
    scale: float
    roi: tuple[float, float] = (0.0, 1.0)


def resize(call: Call) -> Planned:
    rule = _rule(call)
    axes = _resized_axes(call)
    if rule.coordinates != "tf_crop_and_resize":
        axes = [a for a in axes if a.before != a.after or a.scale != 1.0]
    if not axes:
        return (call.value(0),)
    if rule.mode not in {"nearest", "linear", "cubic"}:
        raise call.refuse(f"mode={rule.mode!r} does not exist.")
    tables = [matrix(rule, axis) for axis in axes]
    settings = _as_torch(call, rule, axes, tables)
    if settings is not None:
        return call.torch(F.interpolate, call.value(0), **settings)
    return _by_axis(call, rule, axes, tables)


def _rule(call: Call) -> Rule:
    mode = call.attribute("mode", "nearest")
    mode = {"bilinear": "linear", "trilinear": "linear"}.get(mode, mode)
    if call.opset < 11:
        return Rule(mode, "asymmetric", "floor")
    coordinates = call.attribute("coordinate_transformation_mode", "half_pixel")
    return Rule(
        mode,
        coordinates,
        call.attribute("nearest_mode", "round_prefer_floor"),
        call.attribute("cubic_coeff_a", -0.75),
        bool(call.attribute("exclude_outside", 0)),
        bool(call.attribute("antialias", 0)),
    )


def _resized_axes(call: Call) -> list[Axis]:
    rank = call.rank(0)
    at = 1 if call.opset < 11 else 2
    chosen = [axis % rank for axis in call.attribute("axes", range(rank))]
    before = call.shape(0)
    has_scales = call.has(at) and call.value(at).at(0).numel() > 0
    if has_scales:
        scales = [float(np.float32(s)) for s in call.array(at, "scales").reshape(-1).tolist()]
        if len(scales) != len(chosen):
            raise call.refuse(f"it has {len(scales)} scales for {len(chosen)} axes.")
        pairs = [(b if s == 1.0 else _floor(call, b, s), s) for b, s in zip([before[a] for a in chosen], scales, strict=True)]
    else:
        pairs = _from_sizes(call, [before[axis] for axis in chosen])
    regions = _regions(call, chosen)
    axes = []
    for axis, (after, scale), region in zip(chosen, pairs, regions, strict=True):
        if before[axis] == after and scale == 1.0 and isinstance(before[axis], Size):
            continue
        if isinstance(before[axis], Size) or isinstance(after, Size):
            raise call.refuse(f"it resizes axis {axis}, whose size depends on the batch.")
        axes.append(Axis(axis, int(before[axis]), int(after), scale, region))
    return axes


def _floor(call: Call, size: Any, scale: float) -> int:
    if isinstance(size, Size):
        raise call.refuse("it resizes an axis whose size depends on the batch.")
    return int(np.floor(np.float32(size) * np.float32(scale)))


def _from_sizes(call: Call, before: Sequence[Any]) -> list[tuple[Any, float]]:
    sizes: list[Any] = list(call.integers(3, "sizes"))
    policy = call.attribute("keep_aspect_ratio_policy", "stretch")
    if policy != "stretch":
        pick = min if policy == "not_larger" else max
        ratio = pick(float(np.float32(s) / np.float32(b)) for s, b in zip(sizes, before, strict=True))
        return [(int(np.floor(ratio * b + 0.5)), ratio) for b in before]
    return [(s, 1.0 if s == b else float(np.float32(s) / np.float32(b))) for s, b in zip(sizes, before, strict=True)]


def _regions(call: Call, chosen: Sequence[int]) -> list[tuple[float, float]]:
    if call.attribute("coordinate_transformation_mode") != "tf_crop_and_resize":
        return [(0.0, 1.0)] * len(chosen)
    flat = [float(number) for number in call.array(1, "roi").reshape(-1).tolist()]
    return list(zip(flat[: len(chosen)], flat[len(chosen) :], strict=True))


def places(rule: Rule, axis: Axis) -> NDArray[np.float32]:
    """Where each output element lies in the input, in single precision as engines compute it."""
    x = np.arange(axis.after, dtype=np.float32)
    scale, half = np.float32(axis.scale), np.float32(0.5)
    match rule.coordinates:
        case "half_pixel":
            made = (x + half) / scale - half
        case "half_pixel_symmetric":
            adjustment = np.float32(axis.after) / (scale * np.float32(axis.before))
            center = np.float32(axis.before) / np.float32(2)
            made = center * (np.float32(1) - adjustment) + (x + half) / scale - half
        case "pytorch_half_pixel":
            made = (x + half) / scale - half if axis.after > 1 else np.zeros_like(x)
        case "align_corners":
            made = x * np.float32(axis.before - 1) / np.float32(axis.after - 1) if axis.after > 1 else np.zeros_like(x)
        case "asymmetric":
            made = x / scale
        case "tf_half_pixel_for_nn":
            made = (x + half) / scale
        case "tf_crop_and_resize":
            low, high = np.float32(axis.roi[0]), np.float32(axis.roi[1])
            last = np.float32(axis.before - 1)
            if axis.after > 1:
                made = low * last + x * (high - low) * last / np.float32(axis.after - 1)
            else:
                made = np.full_like(x, half * (low + high) * last)
        case other:
            raise ValueError(f"coordinate_transformation_mode={other!r} does not exist")
    return made.astype(np.float32)


def matrix(rule: Rule, axis: Axis) -> Matrix:
    """The matrix of shape (new size, old size) that resizes one axis."""
    x = places(rule, axis)
    if rule.mode == "nearest":
        index = _nearest(rule, x).clip(0, axis.before - 1).astype(np.int64)
        return np.eye(axis.before, dtype=np.float32)[index]
    if rule.antialias and axis.scale < 1:
        return _antialiased(rule, axis, x)
    made = np.zeros((axis.after, axis.before))
    rows = np.arange(axis.after)
    if rule.mode == "linear":
        inside = x.clip(0, axis.before - 1)
        low = np.floor(inside).astype(np.int64).clip(0, axis.before - 1)
        fraction = (inside - low).astype(np.float64)
        np.add.at(made, (rows, low), 1 - fraction)
        np.add.at(made, (rows, (low + 1).clip(0, axis.before - 1)), fraction)
        return made.astype(np.float32)
    low = np.floor(x).astype(np.int64)
    fraction = (x - low).astype(np.float64)
    for offset in (-1, 0, 1, 2):
        weight = _cubic(np.abs(fraction - offset), rule.cubic)
        place = low + offset
        beyond = (place < 0) | (place >= axis.before)
        np.add.at(made, (rows, place.clip(0, axis.before - 1)), np.where(beyond & rule.outside, 0.0, weight))
    return (made / made.sum(1, keepdims=True) if rule.outside else made).astype(np.float32)


def _nearest(rule: Rule, x: NDArray[np.float32]) -> NDArray[np.float32]:
    made: NDArray[np.float32]
    match rule.nearest:
        case "round_prefer_floor":
            made = np.ceil(x - np.float32(0.5))
        case "round_prefer_ceil":
            made = np.floor(x + np.float32(0.5))
        case "floor":
            made = np.floor(x)
        case "ceil":
            made = np.ceil(x)
        case other:
            raise ValueError(f"nearest_mode={other!r} does not exist")
    return made


def _cubic(x: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.asarray(np.where(x <= 1, near, np.where(x < 2, far, 0.0)), dtype=np.float64)


def _antialiased(rule: Rule, axis: Axis, x: NDArray[np.float32]) -> Matrix:
    """A filter as wide as the output's pixels are in the input; its weights add up to one."""
    scale = float(np.float32(axis.scale))
    radius = (1.0 if rule.mode == "linear" else 2.0) / scale
    made = np.zeros((axis.after, axis.before))
    for row, place in enumerate(x.astype(np.float64)):
        center = place + 0.5
        first, last = int(np.floor(center - radius + 0.5)), int(np.floor(center + radius + 0.5))
        taps = np.arange(first, last)
        distance = np.abs(taps - center + 0.5) * scale
        weights = np.maximum(1 - distance, 0) if rule.mode == "linear" else _cubic(distance, rule.cubic)
        inside = (taps >= 0) & (taps < axis.before)
        if not rule.outside:
            np.add.at(made[row], taps.clip(0, axis.before - 1), weights)
        else:
            made[row, taps[inside]] = weights[inside]
    return np.asarray(made / made.sum(1, keepdims=True), dtype=np.float32)


def _as_torch(call: Call, rule: Rule, axes: Sequence[Axis], tables: Sequence[Matrix]) -> dict[str, Any] | None:
    """Settings of `F.interpolate` that give the same numbers on every axis; None if there are none."""
    rank = call.rank(0)
    if not 3 <= rank <= 5 or any(axis.axis < 2 for axis in axes) or rule.coordinates == "tf_crop_and_resize":
        return None
    names = {"nearest": ("nearest", "nearest-exact"), "linear": ("linear", "bilinear", "trilinear"), "cubic": ("bicubic",)}[
        rule.mode
    ]
    if rule.mode == "linear":
        names = names[rank - 3 : rank - 2]
    if (rule.mode == "cubic" and rank != 4) or (rule.antialias and rank != 4):
        return None
    size = [call.static(0, axis) for axis in range(2, rank)]
    for axis in axes:
        size[axis.axis - 2] = axis.after
    corners: tuple[bool | None, ...] = (None,) if rule.mode == "nearest" else (False, True)
    for name, corner in itertools.product(names, corners):
        if rule.antialias and corner:
            continue
        extra = {"antialias": True} if rule.antialias and rule.mode != "nearest" else {}
        if all(
            np.allclose(_torch_matrix(axis, name, corner, extra), table, rtol=0, atol=1e-6)
            for axis, table in zip(axes, tables, strict=True)
        ):
            return {"size": tuple(size), "mode": name, **({} if corner is None else {"align_corners": corner}), **extra}
    return None


def _torch_matrix(axis: Axis, name: str, corner: bool | None, extra: dict[str, Any]) -> Matrix:
    unit = torch.eye(axis.before)[None, None]
    two = {"linear": "bilinear", "trilinear": "bilinear"}.get(name, name)
    made = F.interpolate(unit, size=(axis.before, axis.after), mode=two, align_corners=corner, **extra)
    return np.asarray(made[0, 0].T.numpy(), dtype=np.float32)


def _by_axis(call: Call, rule: Rule, axes: Sequence[Axis], tables: Sequence[Matrix]) -> TorchCall:
    operands = []
    for axis, table in zip(axes, tables, strict=True):
        table_tensor = torch.from_numpy(table.argmax(1).astype(np.int64) if rule.mode == "nearest" else table)
        operands.append(call.made(table_tensor, f"axis{axis.axis}"))
    mask = None
    value = float(call.attribute("extrapolation_value", 0.0))
    if rule.coordinates == "tf_crop_and_resize":
        whole = torch.ones([1] * call.rank(0), dtype=torch.bool)
        for axis in axes:
            x = places(rule, axis)
            inside = torch.from_numpy((x >= 0) & (x <= axis.before - 1))
            whole = whole & inside.reshape([-1 if i == axis.axis else 1 for i in range(call.rank(0))])
        mask = None if bool(whole.all()) else call.made(whole, "inside")
    return call.torch(resized, call.value(0), mask, *operands, axes=tuple(axis.axis for axis in axes), value=value)


def resized(x: Tensor, mask: Tensor | None, *tables: Tensor, axes: Sequence[int], value: float) -> Tensor:
    """The tensor with each axis resized by its index or matrix; `value` where the mask is false."""
    for axis, table in zip(axes, tables, strict=True):
        if table.ndim == 1:
            x = torch.index_select(x, axis, table)
        elif axis == x.ndim - 1:
            x = F.linear(x, table)
        else:
            x = F.linear(x.transpose(axis, -1), table).transpose(axis, -1)
    return x if mask is None else torch.where(mask, x, value)


def grid_sample(call: Call) -> TorchCall:
    mode = call.attribute("mode", "bilinear" if call.opset < 20 else "linear")
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    settings = {
        "padding_mode": call.attribute("padding_mode", "zeros"),
        "align_corners": bool(call.attribute("align_corners", 0)),
    }
    return call.torch(F.grid_sample, call.value(0), call.value(1), mode=mode, **settings)


TABLE = {"Resize": resize, "Upsample": resize, "GridSample": grid_sample}
