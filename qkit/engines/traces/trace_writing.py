"""A trace as a device would write it, from a lane of the kit: for tests, and for trying out a way of reading before there is one.

Nothing is written outside the chosen folder: names of tensors are made into file names (`qkit.files.file_name`).
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from qkit.engines.traces.formats import TraceError
from qkit.engines.traces.manifest import FILE, Entry, Manifest
from qkit.engines.traces.names import Form, TidlName, scope, write_layer_info
from qkit.errors import DataError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches
from qkit.files import check_unused, dump, explained, file_name, filling, named
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams, quantize
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.study import Study

#: Names of tensors: the taps', the scopes of torch's ONNX exporter, or numbers only.
Naming = Literal["tap", "exporter", "none"]
Change = Callable[[str, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Written:
    """One tensor on its way to disk.

    Attributes
    ----------
    tap, name
        The kit's name and the device's.
    values
        Real numbers, (frames, …), NCHW.
    codes, params
        Integers and their grid; None in float.
    """

    tap: str
    name: str
    values: np.ndarray
    codes: np.ndarray | None = None
    params: QuantParams | None = None


@dataclass(frozen=True)
class _Style:
    layout: str
    convention: str
    codes: bool
    cores: int
    subgraphs: int
    form: Form


def write(
    study: Study,
    folder: str | Path,
    *,
    kind: Literal["npy", "npz", "raw", "tidl", "reference"] = "npy",
    lane: str | Plan = "float",
    frames: int = 4,
    inputs: Iterable[Any] | None = None,
    taps: Sequence[str] | None = None,
    naming: Naming = "tap",
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    codes: bool = True,
    convention: Literal["multiply", "divide"] = "multiply",
    form: Form = "subgraph",
    cores: int = 1,
    subgraphs: int = 1,
    per_frame: bool = True,
    change: Change | None = None,
) -> Path:
    """Write what a lane of the kit computes, in a device's form; returns the folder.

    Parameters
    ----------
    kind
        "npy", "npz", "raw" with a manifest, "tidl", or "reference" (float32 under the layers' names, one folder a frame).
    lane
        A lane's name or a plan.
    frames
        The first so many samples of the evaluation data, or of `inputs`.
    taps
        Which; by default all.
    naming
        "tap", "exporter" (``/layer1/layer1.0/conv1/Conv_output_0``), or "none" (numbers).
    layout
        How tensors of four axes are stored.
    codes
        Integers where the lane has a grid, instead of the numbers that they stand for; TIDL has both.
    convention
        Of the scales in the manifest.
    form
        Of TIDL's file names.
    cores, subgraphs
        Split every TIDL tensor's rows over so many cores' files, the tensors over so many subgraphs.
    per_frame
        A folder (or archive) for each frame, rather than all in one array; TIDL and "reference" always have one.
    change
        ``change(tap, array) -> array``: damage to try out, on what is stored, (frames, …) and NCHW.

    Raises
    ------
    TraceError
        If the folder has files in it, or cannot be written: nothing is left in it then.
    DataError
        If there are fewer samples than `frames`.
    """
    plan = study.lane(lane) if isinstance(lane, str) else lane
    root = Path(folder)
    check_unused(root, error=TraceError)
    tensors = list(_tensors(study.graph, plan, study.evaluation if inputs is None else inputs, frames, taps, naming))
    if change is not None:
        tensors = [_changed(tensor, change, codes and kind != "reference") for tensor in tensors]
    style = _Style(layout, convention, codes, cores, subgraphs, form)
    with filling(root, error=TraceError) as place, explained(root, error=TraceError):
        if kind == "tidl":
            _write_tidl(place, tensors, style)
        elif kind == "reference":
            for frame in range(frames):
                for t in tensors:
                    data = _stored(t.values[frame : frame + 1], layout).astype("<f4").tobytes()
                    _put(place / f"frame_{frame:04}", f"{file_name(t.name)}.bin", data)
        else:
            _write_arrays(place, tensors, style, kind, frames if per_frame else 0)
    return root


def _tensors(
    graph: Graph, plan: Plan, loader: Iterable[Any], frames: int, taps: Sequence[str] | None, naming: Naming
) -> Iterable[Written]:  # fmt: skip
    wanted = frozenset(graph.operation(tap).name for tap in (graph.taps if taps is None else taps))
    parts: dict[str, list[np.ndarray]] = {}
    operations: dict[str, Operation] = {}
    left = frames

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        if op.name in wanted:
            operations[op.name] = op
            parts.setdefault(op.name, []).append(values["lane"][:left].detach().cpu().contiguous().numpy().copy())

    for batch in batches(loader):
        run_lanes(graph, [Lane("lane", plan)], batch.inputs, observe=look)
        left -= min(left, batch.size)
        if not left:
            break
    if left:
        raise DataError(f"the loader has {frames - left} samples, fewer than {frames} frames.")
    taken: set[str] = set()
    for number, (tap, arrays) in enumerate(parts.items()):
        values = np.concatenate(arrays)
        params = plan.params(tap)
        name = {"tap": tap, "exporter": _exported(operations[tap]), "none": f"tensor_{number:04}"}[naming]
        while name in taken:
            name += "_1"
        taken.add(name)
        coded = None if params is None else quantize(torch.from_numpy(values), params, name=tap).numpy()
        yield Written(tap, name, values, coded, params)


def _exported(op: Operation) -> str:
    path, _, call = op.name.partition(":")
    kind = {"conv": "Conv", "linear": "Gemm", "input": ""}.get(op.kind, op.kind.capitalize())
    if op.kind == "input":
        return op.name
    return "/" + "/".join(part for part in (scope(path), f"{call.capitalize() or kind}_output_0") if part)


def _changed(tensor: Written, change: Change, codes: bool) -> Written:
    if codes and tensor.codes is not None:
        return Written(tensor.tap, tensor.name, tensor.values, change(tensor.tap, tensor.codes), tensor.params)
    return Written(tensor.tap, tensor.name, change(tensor.tap, tensor.values), None, None)


def _stored(array: np.ndarray, layout: str) -> np.ndarray:
    moved = np.moveaxis(array, 1, -1) if array.ndim == 4 and layout == "NHWC" else array
    return np.ascontiguousarray(moved)


def _grid(tensor: Written, convention: str) -> dict[str, Any]:
    if tensor.params is None or tensor.codes is None:
        return {}
    scales = [float(s) for s in tensor.params.scale.double().reshape(-1)]
    if convention == "divide":
        scales = [1.0 / s for s in scales]
    return {
        "scale": tuple(scales),
        "zero_point": tuple(int(z) for z in tensor.params.zero_point.reshape(-1)),
        "convention": convention,
    }


def _write_arrays(root: Path, tensors: Sequence[Written], style: _Style, kind: str, frames: int) -> None:
    entries = []
    archives: dict[str, dict[str, np.ndarray]] = {}
    for t in tensors:
        integers = style.codes and t.codes is not None
        array = _stored(t.codes if integers and t.codes is not None else t.values, style.layout)
        file = file_name(t.name)
        known = _grid(t, style.convention) if integers else {}
        layout = style.layout if array.ndim == 4 and style.layout != "NCHW" else None
        chunks = {f"frame_{k:04}": array[k : k + 1] for k in range(frames)} if frames else {"": array}
        for where, chunk in chunks.items():
            if kind == "npz":
                archives.setdefault(where or "trace", {})[t.name] = chunk
            else:
                data = _npy(chunk) if kind == "npy" else chunk.astype(chunk.dtype.newbyteorder("<")).tobytes()
                _put(root / where, f"{file}.{'npy' if kind == 'npy' else 'bin'}", data)
        if kind == "raw":
            pattern = ("frame_{frame}/" if frames else "") + f"{file}.bin"
            shape = (1 if frames else len(array), *array.shape[1:])
            entries.append(Entry(file=pattern, name=t.name, dtype=array.dtype.name, shape=shape, layout=layout, **known))
        elif known or layout:
            entries.append(Entry(name=t.name if kind == "npz" else named(file), layout=layout, **known))
    for where, arrays in archives.items():
        # numpy.savez takes names as arguments, among which its own
        with zipfile.ZipFile(root / f"{where}.npz", "w") as archive:
            for name, array in arrays.items():
                archive.writestr(f"{name}.npy", _npy(array))
    if entries:
        _put(root, FILE, dump(Manifest(tuple(entries)).to_dict()).encode())


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _write_tidl(root: Path, tensors: Sequence[Written], style: _Style) -> None:
    infos: dict[str, dict[int, str]] = {}
    entries = []
    per_graph = -(-len(tensors) // style.subgraphs)
    for number, t in enumerate(tensors):
        subgraph, data = (str(number // per_graph) if style.form == "subgraph" else "0"), number + 1
        infos.setdefault(subgraph, {})[data] = t.name
        if t.codes is not None and style.codes:
            entries.append(Entry(data_id=data, subgraph=subgraph, dtype=t.codes.dtype.name, **_grid(t, style.convention)))
        for frame in range(len(t.values)):
            arrays = {True: _image(t.values[frame]).astype("<f4")}
            if t.codes is not None and style.codes:
                codes = _image(t.codes[frame])
                arrays[False] = codes.astype(codes.dtype.newbyteorder("<"))
            for is_float, array in arrays.items():
                name = TidlName(data, *_three(array), is_float, subgraph=subgraph)
                _write_cores(root / f"frame_{frame:04}", array, name, style)
    for subgraph, names in infos.items():
        _put(root, f"subgraph_{subgraph}_tidl_net.bin.layer_info.txt", write_layer_info(names).encode())
    if entries:
        _put(root, FILE, dump(Manifest(tuple(entries)).to_dict()).encode())


def _three(array: np.ndarray) -> tuple[int, int, int]:
    channels, height, width = array.shape
    return channels, height, width


def _image(sample: np.ndarray) -> np.ndarray:
    """A sample as (channels, height, width)."""
    if sample.ndim == 3:
        return sample
    return sample.reshape(1, -1, sample.shape[-1] if sample.ndim else 1)


def _write_cores(folder: Path, array: np.ndarray, name: TidlName, style: _Style) -> None:
    rows = np.array_split(np.arange(name.height), min(style.cores, name.height))
    for core, some in enumerate(rows):
        own = TidlName(
            name.data, name.channels, len(some), name.width, name.is_float, subgraph=name.subgraph,
            core=core + 1 if style.cores > 1 else None,
        )  # fmt: skip
        _put(folder, own.format(style.form), np.ascontiguousarray(array[:, some]).tobytes())


def _put(folder: Path, name: str, data: bytes) -> None:
    folder.mkdir(exist_ok=True)
    with (folder / name).open("xb") as file:
        file.write(data)
