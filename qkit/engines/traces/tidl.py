"""TIDL's layer traces: raw files whose names hold their sizes.

``*_float.bin`` are real numbers in float32. ``.y`` are fixed-point codes whose width follows from the file's size; sign and
scale are nowhere in the file. They come from a manifest, or, where both files were written, from the pair: the codes are put
to the numbers that they stand for. Several cores write the rows of one tensor, to be put one below the other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qkit.engines.traces.dumped_tensors import Part, TraceTensor
from qkit.engines.traces.formats import Stored, TraceError, dtype_of, file_size, raw
from qkit.engines.traces.manifest import Manifest
from qkit.engines.traces.names import TidlName, layer_infos, natural

_LAYOUT = "CHW"
#: Files by folder (frame), then core.
_Files = Mapping[Path, Mapping[int, tuple[Path, TidlName]]]
#: Elements of a pair that are looked at to find the codes' grid.
_SAMPLE = 1 << 16


@dataclass(eq=False)
class _Group:
    """Files of one tensor: by real or fixed point, then frame, then core."""

    subgraph: str
    data: int
    files: dict[bool, dict[Path, dict[int, tuple[Path, TidlName]]]] = field(default_factory=dict)

    def add(self, path: Path, name: TidlName) -> None:
        cores = self.files.setdefault(name.is_float, {}).setdefault(path.parent, {})
        core = -1 if name.core is None else name.core
        if core in cores:
            raise TraceError(f"{path.name} and {cores[core][0].name} are one tensor's of one frame: keep one of the runs.")
        cores[core] = path, name


def tensors(root: Path, files: Sequence[Path], manifest: Manifest, max_bytes: int) -> tuple[list[TraceTensor], list[str]]:
    """Tensors of all subgraphs, in the order of their numbers, and what was assumed.

    A folder with trace files is a frame (or as many as the batch in the names says); folders follow each other by the numbers in
    their names.
    """
    infos = layer_infos(files)
    groups: dict[tuple[str, int], _Group] = {}
    for path in sorted(files, key=lambda p: natural(p.relative_to(root).as_posix())):
        name = TidlName.parse(path.name)
        if name is not None:
            groups.setdefault((name.subgraph, name.data), _Group(name.subgraph, name.data)).add(path, name)
    found, notes = [], []
    named = {(g, data): name for g, names in infos.items() for data, name in names.items()}
    for key in sorted(groups, key=lambda k: (natural(k[0]), k[1])):
        group = groups[key]
        label = named.get(key) or (named.get(("0", key[1])) if set(infos) == {"0"} and len({g for g, _ in groups}) == 1 else None)
        tensor = _tensor(group, label or f"subgraph_{group.subgraph}/data_{group.data:04}", manifest, max_bytes)
        found.append(tensor)
        if tensor.note:
            notes.append(tensor.note)
    if groups and not infos:
        notes.append("there is no layer_info.txt: no tensor of the trace has a layer's name.")
    names = [tensor.name for tensor in found]
    return [
        tensor if names.count(tensor.name) == 1 else _renamed(tensor, f"{tensor.name} (subgraph {g}, data {d})")
        for tensor, (g, d) in zip(found, sorted(groups, key=lambda k: (natural(k[0]), k[1])), strict=True)
    ], notes


def _renamed(tensor: TraceTensor, name: str) -> TraceTensor:
    return TraceTensor(name, tensor.parts, tensor.batched, tensor.layout, tensor.tap, tensor.step, tensor.zero_point, tensor.note)


def _tensor(group: _Group, name: str, manifest: Manifest, max_bytes: int) -> TraceTensor:
    entry = manifest.find(name, data_id=group.data, subgraph=group.subgraph)
    floats = _parts(group.files.get(True, {}), np.dtype("<f4"), max_bytes)
    fixed = group.files.get(False, {})
    if not fixed:
        return TraceTensor(name, floats, True, _axes(floats), entry.tap)
    width = _width(fixed, floats, entry.dtype, max_bytes)
    signed, unsigned = f"int{8 * width}", f"uint{8 * width}"
    step, zero_point, note = entry.step, entry.zero_point, ""
    dtype = entry.dtype if entry.dtype in (signed, unsigned) else None
    if entry.dtype is not None and dtype is None and entry is not manifest.defaults:
        raise TraceError(f"{name}: its .y file has {width} bytes an element, the manifest says {entry.dtype}.")
    if floats and (dtype is None or step is None):
        choices = (signed, unsigned) if dtype is None else (dtype,)
        fitted = _from_pair(floats, {d: _parts(fixed, dtype_of(d, name), max_bytes) for d in choices})
        if fitted is None:
            return TraceTensor(
                name, floats, True, _axes(floats), entry.tap,
                note=f"{name}: its codes (.y) are not its numbers (_float.bin) on any grid; the numbers were taken.",
            )  # fmt: skip
        dtype, step, zero_point = fitted
    if dtype is None:
        raise TraceError(
            f"{name}: its .y files hold codes of {width} bytes, {signed} or {unsigned}; nothing says which. Say it in "
            f'trace.json: by "defaults": {{"dtype": "{signed}"}}, or by an entry with "data_id": {group.data} and a scale.'
        )
    parts = _parts(fixed, dtype_of(dtype, name, entry.byte_order), max_bytes)
    return TraceTensor(name, parts, True, _axes(parts), entry.tap, step, zero_point, note)


def _axes(parts: Sequence[Part]) -> str | None:
    return _LAYOUT if len(parts[0].shape) == 4 else None


def _sizes(name: TidlName) -> tuple[int, int, int]:
    """Frames, what lies before the rows, and a row's elements."""
    batch, dim1, dim2, channels, _, width = name.shape
    return batch, dim1 * dim2 * channels, width


def _width(fixed: _Files, floats: Sequence[Part], dtype: str | None, max_bytes: int) -> int:
    """Bytes of a code, 1 or 2: by the numbers beside them, else by what was said, else by the names' sizes."""
    cores = next(iter(fixed.values()))
    path, name = next(iter(cores.values()))
    sizes = [(file_size(file, max_bytes), n) for file, n in cores.values()]
    held = sum(size for size, _ in sizes)
    possible = {width for width in (1, 2) if floats and held == width * math.prod(floats[0].shape)}
    if not floats:
        for batch in _batches(name):
            row = batch * math.prod(_sizes(name)[1:])
            possible |= {w for w in (1, 2) if all(size == w * row * n.shape[4] for size, n in sizes)}
            possible |= {w for w in (1, 2) if held == w * row * name.shape[4] and all(size % (w * row) == 0 for size, _ in sizes)}
    said = np.dtype(dtype).itemsize if dtype is not None else None
    if said in possible:
        return int(said)
    if len(possible) == 1:
        return possible.pop()
    if possible:
        raise TraceError(f"{path.name}: its cores' files may hold all rows in 8 bits or in 16; give its dtype in trace.json.")
    raise TraceError(
        f"{path.name} holds {held} bytes, neither one nor two for each element of {name.shape}: it is cut off or padded."
    )


def _batches(name: TidlName) -> tuple[int, ...]:
    """Frames in a file: the number in its name, or one, where it counts files instead."""
    return (name.shape[0],) if name.shape[0] == 1 else (name.shape[0], 1)


def _parts(
    files: _Files, dtype: np.dtype[np.generic], max_bytes: int
) -> tuple[Part, ...]:  # fmt: skip
    return tuple(_part([cores[core] for core in sorted(cores)], dtype, max_bytes) for cores in files.values())


def _part(files: Sequence[tuple[Path, TidlName]], dtype: np.dtype[np.generic], max_bytes: int) -> Part:
    """One frame's file, or its cores'. The height in a core's name may be its own rows' or the whole's: the sizes decide."""
    first = files[0][1]
    if len({(name.channels, name.width, name.dim1, name.dim2, name.batch) for _, name in files}) > 1:
        raise TraceError(f"{files[0][0].name} and {files[1][0].name} are cores of one tensor and differ in more than height.")
    cores = [name.core for _, name in files]
    if len(files) > 1 and (
        None in cores or cores != list(range(min(c or 0 for c in cores), len(files) + min(c or 0 for c in cores)))
    ):
        raise TraceError(f"{files[0][0].name}: the cores' files are {cores}, with gaps; their rows cannot be put together.")
    for batch in _batches(first):
        _, planes, width = _sizes(first)
        row = batch * planes * width * dtype.itemsize
        sizes = [file_size(path, max_bytes) for path, _ in files]
        rows = [size // row for size in sizes]
        own = rows == [name.shape[4] for _, name in files]
        if all(size % row == 0 for size in sizes) and (own or (sum(rows) == first.shape[4] and all(rows))):
            return _stack(files, rows, batch, dtype, max_bytes)
    path, name = files[0]
    expected = math.prod(name.shape) * dtype.itemsize
    raise TraceError(
        f"{path.name} holds {file_size(path, max_bytes)} bytes; {name.shape} of {dtype.name}, from its name, takes {expected}"
        + (f" over {len(files)} cores" if len(files) > 1 else "")
        + ": it is cut off or padded, or a core's file is missing. Write the trace again."
    )


def _stack(
    files: Sequence[tuple[Path, TidlName]], rows: Sequence[int], batch: int, dtype: np.dtype[np.generic], max_bytes: int
) -> Part:  # fmt: skip
    _, dim1, dim2, channels, _, width = files[0][1].shape
    leading = tuple(size for size in (dim1, dim2) if size > 1)
    stored: list[Stored] = []
    shapes: list[tuple[int, ...]] = []
    for (path, _), height in zip(files, rows, strict=True):
        shape = (batch, *leading, channels, height, width)
        stored.append(raw(path, dtype, shape, max_bytes=max_bytes))
        shapes.append(shape)
    return Part(tuple(stored), tuple(shapes), axis=len(shapes[0]) - 2)


def _from_pair(
    floats: Sequence[Part], fixed: Mapping[str, Sequence[Part]]
) -> tuple[str, tuple[float, ...], tuple[int, ...]] | None:  # fmt: skip
    """Dtype, step and zero point under which the codes are the numbers exactly; None where there is no such grid."""
    values = floats[0].read().reshape(-1)
    every = max(len(values) // _SAMPLE, 1)
    y = values[::every].astype(np.float64)
    for dtype, parts in fixed.items():
        if parts[0].shape != floats[0].shape:
            return None
        q = parts[0].read().reshape(-1)[::every].astype(np.float64)
        if not np.isfinite(y).all() or np.ptp(q) == 0 or np.ptp(y) == 0:
            continue
        low, high = int(q.argmin()), int(q.argmax())
        step = (y[high] - y[low]) / (q[high] - q[low])
        if step <= 0:
            continue
        zero = round(q[high] - y[high] / step)
        info = np.iinfo(dtype)
        if info.min <= zero <= info.max and np.abs((q - zero) * step - y).max() <= 0.02 * step:
            return dtype, (float(step),), (int(zero),)
    return None
