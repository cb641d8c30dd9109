"""Captured tensors on disk, written batch by batch: a folder of ``.npy`` that reads back as traces, or one ``.npz``.

=====================  ==========================================================================================================
``float/``             a ``.npy`` per tap, float32, (samples, …); with ``trace.json``, a trace (`qkit.engines.traces.read`)
``int8/``, …           the same of a lane: integer codes where the tap has a grid, float32 where it stays in float; scales and
                       zero points are in ``trace.json``
``values/int8/``, …    the real numbers that the codes stand for, float32
``index.json``         lanes, taps, files, shapes, types, scales, zero points; value = (code - zero point) × scale
``errors.csv, .json``  the table of errors, a row per tap
=====================  ==========================================================================================================

An ``.npz`` has ``float/TAP``, ``int8/TAP/codes``, ``int8/TAP/values``, ``int8/TAP/scale``, ``int8/TAP/zero_point``, and the index
as the text ``index``; the tables of errors lie beside it. Whatever the number of samples, memory holds one batch.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from qkit import files
from qkit.engines.traces.manifest import FILE, Entry, Manifest
from qkit.errors import DataError, QkitError
from qkit.execution.capture import Capture, Store
from qkit.execution.loading import Batch, batches
from qkit.graph import Graph
from qkit.progress import Bar
from qkit.quant.grids import dequantize
from qkit.quant.plan import Plan

#: Version of the index, and its name.
FORMAT, INDEX = "qkit-capture 1", "index.json"


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes
    ----------
    capture
        The sums of errors over the samples.
    files
        All files, the index first.
    samples, size
        How many samples, and bytes on disk.
    interrupted
        Whether there were to be more samples.
    """

    capture: Capture
    files: tuple[Path, ...]
    samples: int
    size: int
    interrupted: bool


def bytes_needed(graph: Graph, plans: Mapping[str, Plan], taps: Iterable[str], samples: int, *, values: bool = True) -> int:
    """Bytes that the tensors take on disk."""
    total = 0
    for tap in taps:
        each = 4
        for plan in plans.values():
            params = plan.params(tap)
            each += 4 if params is None else (1 if params.bits <= 8 else 2) + 4 * values
        total += each * int(np.prod(graph.operation(tap).shape[1:]))
    return total * samples


def check_target(target: Path, *, force: bool) -> tuple[Path, tuple[str, ...]]:
    """Where to write, links followed, and the files of an earlier capture to replace there; nothing is made or removed yet.

    Raises
    ------
    QkitError
        If the folder has files in it, or the archive or its tables are there, and `force` is not set; with it, if these are no
        earlier capture's; or if there can be no such file.
    """
    with files.explained(target):
        target = Path(os.path.realpath(target)) if target.is_symlink() else target
        above = next(path for path in target.absolute().parents if path.exists())
        if not above.is_dir() or not os.access(above, os.W_OK):
            raise QkitError(f"{target} cannot be written: {above} is no folder that can be written to.")
        if not _is_archive(target):
            if target.is_file():
                raise QkitError(f"{target} is a file: name a folder, or a file that ends in .npz.")
            taken = [path.name for path in target.iterdir()] if target.is_dir() else []
        else:
            taken = [path.name for path in (target, *_beside(target)) if os.path.lexists(path)]
    if not taken:
        return target, ()
    if not force:
        what = f"{target.parent / taken[0]} is there already" if _is_archive(target) else f"{target} is not empty"
        raise QkitError(f"{what}: name another place, or write over an earlier capture with --force.")
    earlier = _earlier(target)
    if not _is_archive(target):
        return target, (*earlier, INDEX)
    for name in taken:
        if name not in (target.name, *earlier):
            raise QkitError(f"{target.parent / name} is not of the capture in {target.name}: name another file, or remove it.")
    return target, tuple(taken)


def _is_archive(target: Path) -> bool:
    return target.suffix.lower() == ".npz"


def _beside(target: Path) -> tuple[Path, Path]:
    """The tables of errors beside an archive."""
    return target.with_suffix(".errors.csv"), target.with_suffix(".errors.json")


def write(
    graph: Graph, loader: Iterable[Any], plans: Mapping[str, Plan], taps: Sequence[str], target: Path, *, samples: int,
    values: bool = True, force: bool = False,
) -> Written:  # fmt: skip
    """Run float and the plans' lanes over the first samples, and write the taps' tensors and the table of all taps' errors.

    Parameters
    ----------
    target
        A folder, or a file that ends in ``.npz``.
    samples
        How many; fewer where the loader has fewer.
    values
        Also the real numbers of lanes that have codes.
    force
        Write over an earlier capture, once the new one is complete: what that lists is removed, other files stay.

    Raises
    ------
    DataError
        If the loader is empty or a batch does not fit.
    QkitError
        As `check_target`, or if a file cannot be written: there is then what there was.
    """
    target, replaced = check_target(target, force=force)
    single = _is_archive(target)
    folder = target.parent if single else target
    with files.filling(folder, replacing=replaced) as root:
        parts = root / "parts" if single else root
        arrays = _Files(frozenset(taps), None, 0, root=parts, plans=plans, values=values, target=target)
        capture, whole = _run(graph, loader, plans, arrays, samples)
        with files.explained(target):
            arrays.finish(capture.samples)
            index = _index(graph, capture, arrays, taps, whole)
            made = _archive(root / target.name, arrays, index) if single else _folder(root, arrays, index, capture)
            tables = _beside(root / target.name) if single else (root / "errors.csv", root / "errors.json")
            _write_tables(capture, *tables)
            every = [path.relative_to(root) for path in (*made, *tables)]
            size = sum((root / path).stat().st_size for path in every)
            if single:
                shutil.rmtree(parts)
    return Written(capture, tuple(folder / path for path in every), capture.samples, size, not whole)


@dataclass(eq=False)
class _Files(Store):
    """Tensors go to files as they come, instead of being kept."""

    root: Path = Path()
    #: What to call it in messages.
    target: Path = Path()
    plans: Mapping[str, Plan] = field(default_factory=dict)
    values: bool = True
    made: dict[str, _Npy] = field(default_factory=dict)
    #: (lane, tap) -> names in `made`
    places: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)

    def put(self, tap: str, tensors: Mapping[str, Tensor]) -> None:
        """One batch of a tap: by lane, codes where the lane has a grid, else values."""
        name = f"{files.file_name(tap)}.npy"
        for lane, tensor in tensors.items():
            folder = files.file_name(lane)
            self._append(lane, tap, "tensor", f"{folder}/{name}", tensor)
            params = None if lane == "float" else self.plans[lane].params(tap)
            if params is not None and self.values:
                self._append(lane, tap, "values", f"values/{folder}/{name}", dequantize(tensor, params))

    def _append(self, lane: str, tap: str, what: str, name: str, tensor: Tensor) -> None:
        self.places.setdefault((lane, tap), {})[what] = name
        with files.explained(self.target):
            if name not in self.made:
                path = self.root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self.made[name] = _Npy(path)
            self.made[name].append(tensor.contiguous().numpy())

    def finish(self, samples: int) -> None:
        """Close the files at so many samples; what an interrupted batch wrote beyond is cut off."""
        for array in self.made.values():
            array.finish(samples)


@dataclass(eq=False)
class _Npy:
    """A ``.npy`` file that grows along its first axis: numpy keeps room for that in its header."""

    path: Path
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] | None = None
    count: int = 0

    def append(self, array: np.ndarray) -> None:
        first = self.dtype is None
        if first:
            self.shape, self.dtype = array.shape[1:], array.dtype
        elif array.shape[1:] != self.shape or array.dtype != self.dtype:
            raise DataError(f"{self.path.stem} has shape {array.shape[1:]} in one batch and {self.shape} in another.")
        with self.path.open("wb" if first else "ab") as file:
            if first:
                file.write(self._header(0))
            file.write(np.ascontiguousarray(array).tobytes())
        self.count += len(array)

    def finish(self, count: int) -> None:
        header = self._header(count)
        with self.path.open("r+b") as file:
            file.write(header)
            assert self.dtype is not None
            file.truncate(len(header) + count * int(np.prod(self.shape)) * self.dtype.itemsize)
        self.count = count

    def _header(self, count: int) -> bytes:
        assert self.dtype is not None
        stream = io.BytesIO()
        described = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(stream, described)
        return stream.getvalue()


def _run(graph: Graph, loader: Iterable[Any], plans: Mapping[str, Plan], arrays: _Files, samples: int) -> tuple[Capture, bool]:
    """The capture, and whether it has all samples (not after an interrupt)."""
    capture = Capture(graph, plans, arrays)
    try:
        with Bar("capturing", samples, unit="sample") as bar:
            for batch in batches(loader):
                part = _first(batch, samples - capture.samples)
                capture.run(part.inputs, part.size)
                bar.update(part.size)
                if capture.samples >= samples:
                    return capture, True
    except KeyboardInterrupt:
        if capture.samples == 0:
            raise
        return capture, False
    if capture.samples == 0:
        raise DataError("the loader gave no batch to capture: pass at least one.")
    return capture, True


def _first(batch: Batch, count: int) -> Batch:
    """The batch's first samples."""
    if count >= batch.size:
        return batch
    size = batch.size
    return Batch(tuple(x[:count] if isinstance(x, Tensor) and x.ndim and x.shape[0] == size else x for x in batch.inputs))


def _index(graph: Graph, capture: Capture, arrays: _Files, taps: Sequence[str], whole: bool) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for tap in taps:
        op = graph.operation(tap)
        described[tap] = {"kind": op.kind, "weight": op.weight, "lanes": {}}
        for lane in capture.lanes:
            places = arrays.places[lane, tap]
            main = arrays.made[places["tensor"]]
            params = None if lane == "float" else capture.plans[lane].params(tap)
            entry: dict[str, Any] = {"shape": [main.count, *main.shape], "dtype": str(main.dtype)}
            if params is None:
                entry["values"] = places["tensor"]
            else:
                entry |= {"codes": places["tensor"], "values": places.get("values"), "bits": params.bits}
                entry |= {"scale": params.scale.tolist(), "zero_point": params.zero_point.tolist(), "axis": params.axis}
                entry |= {"qmin": params.qmin, "qmax": params.qmax}
            described[tap]["lanes"][lane] = entry
    return {
        "format": FORMAT,
        "model": graph.model_name,
        "samples": capture.samples,
        "interrupted": not whole,
        "lanes": {lane: None if lane == "float" else capture.plans[lane].name for lane in capture.lanes},
        "rule": "value = (code - zero point) × scale",
        "layout": "as the model has it; images are NCHW",
        "taps": described,
    }


def _folder(root: Path, arrays: _Files, index: dict[str, Any], capture: Capture) -> list[Path]:
    made = []
    for lane in capture.lanes:
        manifest = root / files.file_name(lane) / FILE
        manifest.write_text(files.dump(_manifest(lane, index).to_dict()), encoding="utf-8")
        made.append(manifest)
    own = [path.relative_to(root).as_posix() for path in made] + [*arrays.made, "errors.csv", "errors.json"]
    target = root / INDEX
    target.write_text(files.dump({**index, "files": own}), encoding="utf-8")
    return [target, *made, *(array.path for array in arrays.made.values())]


def _manifest(lane: str, index: dict[str, Any]) -> Manifest:
    entries = []
    widths = set()
    for tap, described in index["taps"].items():
        entry = described["lanes"][lane]
        name = Path(entry.get("codes") or entry["values"]).name
        known: dict[str, Any] = {}
        if "codes" in entry:
            widths.add(entry["bits"])
            known = {key: tuple(np.atleast_1d(entry[key]).tolist()) for key in ("scale", "zero_point")}
        entries.append(Entry(file=name, tap=tap, **known))
    bits = (8 if max(widths) <= 8 else 16) if widths else 32
    return Manifest(tuple(entries), name=lane, bits=bits)


def _archive(target: Path, arrays: _Files, index: dict[str, Any]) -> list[Path]:
    taken: set[str] = set()
    with zipfile.ZipFile(target, "w") as archive:
        stored = {**index, "taps": {}, "files": [path.name for path in _beside(target)]}
        for tap, described in index["taps"].items():
            lanes = {}
            for lane, entry in described["lanes"].items():
                coded = "codes" in entry
                base = _member(taken, f"{lane}/{tap}", ("/codes", "/values", "/scale", "/zero_point") if coded else ("",))
                if not coded:
                    archive.write(arrays.root / entry["values"], f"{base}.npy")
                    lanes[lane] = {**entry, "values": base}
                    continue
                archive.write(arrays.root / entry["codes"], f"{base}/codes.npy")
                if entry["values"] is not None:
                    archive.write(arrays.root / entry["values"], f"{base}/values.npy")
                for key, kind in (("scale", np.float32), ("zero_point", np.int32)):
                    archive.writestr(f"{base}/{key}.npy", _npy(np.asarray(entry[key], kind)))
                lanes[lane] = {**entry, "codes": f"{base}/codes", "values": entry["values"] and f"{base}/values"}
            stored["taps"][tap] = {**described, "lanes": lanes}
        archive.writestr("index.npy", _npy(np.array(json.dumps(stored, allow_nan=False))))
    return [target]


def _member(taken: set[str], name: str, parts: Sequence[str]) -> str:
    """The name, or a longer one where another tap has it: the codes of ``a``, say, where there is ``a/codes``."""
    while not taken.isdisjoint(members := {name + part for part in parts}):
        name += "~"
    taken |= members
    return name


def _npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _write_tables(capture: Capture, comma: Path, plain: Path) -> None:
    table = capture.table()
    pairs: Any = table.columns.tolist()
    table.columns = pd.Index([figure if group == "tap" else f"{group} {figure}" for group, figure in pairs])
    table.to_csv(comma, lineterminator="\n")
    plain.write_text(files.dump(capture.to_dict()), encoding="utf-8")


def _earlier(target: Path) -> tuple[str, ...]:
    """The files of an earlier capture, as its index lists them."""
    try:
        if _is_archive(target):
            with np.load(target, allow_pickle=False) as archive:
                listed = json.loads(str(archive["index"]))
        else:
            listed = files.read_json(target / INDEX, "an index")
        if listed["format"] != FORMAT or not all(isinstance(name, str) for name in listed["files"]):
            raise ValueError(f"its format is {listed['format']!r}")
    except Exception as error:  # whatever a file of another kind makes numpy raise
        raise QkitError(f"{target} is there and is no earlier capture ({error}): name another place.") from error
    return tuple(listed["files"])
