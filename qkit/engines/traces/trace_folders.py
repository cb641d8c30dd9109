"""From a folder to the tensors of a trace: by a manifest, from ``.npy`` and ``.npz``, from dumps of named layers, from TIDL."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from qkit.engines.traces import tidl
from qkit.engines.traces.dumped_tensors import Part, Trace, TraceTensor, checked
from qkit.engines.traces.formats import MAX_BYTES, Stored, TraceError, dtype_of, file_size, files_in, npy, npz, raw
from qkit.engines.traces.manifest import FILE, Entry, Manifest
from qkit.engines.traces.names import Names, TidlName, natural
from qkit.files import named
from qkit.graph.operation import Operation

Kind = Literal["auto", "manifest", "npy", "npz", "tidl", "reference"]
KINDS = ("auto", "manifest", "npy", "npz", "tidl", "reference")


def scan(
    folder: str | Path, names: Names, *, kind: Kind = "auto", manifest: Manifest | str | Path | None = None,
    max_bytes: int = MAX_BYTES,
) -> Trace:  # fmt: skip
    """Read the folder's names, headers and sizes; no values yet.

    Parameters
    ----------
    names
        The graph's, which tell what a tensor's first axis is and what shape a dump without a header has.
    kind
        The form; "auto" finds it from the manifest and the files' names.
    manifest
        One, or its file; by default ``trace.json`` in the folder where there is one.
    max_bytes
        Limit of a file, and of an archive's contents uncompressed.

    Raises
    ------
    TraceError
        If a file is corrupt, of the wrong size, too large, or nothing is found.
    """
    if kind not in KINDS:
        raise TraceError(f"kind is {kind!r}; it is one of {', '.join(KINDS)}.")
    root = Path(folder)
    files = files_in(root)
    given = manifest
    if given is None and (root / FILE).is_file():
        given = root / FILE
    known = given if isinstance(given, Manifest) else Manifest() if given is None else Manifest.load(given)
    files = [path for path in files if path.name != FILE]
    if kind == "auto":
        kind = _kind_of(files, known)
    if kind == "manifest":
        return checked(_listed(root, files, known, names, max_bytes), known, kind)
    if kind == "tidl":
        tensors, notes = tidl.tensors(root, files, known, max_bytes)
        return checked(tensors, known, kind, notes)
    groups = _archives(files, max_bytes) if kind == "npz" else _folders(root, files, kind, names, max_bytes)
    return checked([_tensor(name, parts, known, names) for name, parts in groups.items()], known, kind)


def _kind_of(files: Sequence[Path], manifest: Manifest) -> Kind:
    if any(entry.file is not None for entry in manifest.tensors):
        return "manifest"
    if any(TidlName.parse(path.name) for path in files):
        return "tidl"
    suffixes = Counter(path.suffix.lower() for path in files)
    if suffixes[".npz"] or suffixes[".npy"]:
        return "npz" if suffixes[".npz"] > suffixes[".npy"] or not suffixes[".npy"] else "npy"
    seen = ", ".join(path.name for path in files[:3])
    raise TraceError(
        f"nothing in the folder says what its files hold ({len(files)} files{f', such as {seen}' if seen else ''}): write a "
        f"manifest {FILE} with dtype and shape of each, or pass kind='reference' for float32 under the layers' names."
    )


def _archives(files: Sequence[Path], max_bytes: int) -> dict[str, list[Stored]]:
    groups: dict[str, list[Stored]] = {}
    for path in sorted((p for p in files if p.suffix.lower() == ".npz"), key=lambda p: natural(str(p))):
        for name, stored in npz(path, max_bytes=max_bytes).items():
            groups.setdefault(name, []).append(stored)
    return groups


def _folders(root: Path, files: Sequence[Path], kind: Kind, names: Names, max_bytes: int) -> dict[str, list[Stored]]:
    """Arrays by tensor; folders, where there are several, are the frames."""
    groups: dict[str, list[Stored]] = {}
    for path in sorted(files, key=lambda p: natural(p.relative_to(root).as_posix())):
        if kind == "npy":
            if path.suffix.lower() == ".npy":
                groups.setdefault(named(path.name[: -len(".npy")]), []).append(npy(path, max_bytes=max_bytes))
        elif path.suffix.lower() in (".bin", ".raw", ".dat", ""):
            name = path.name.removesuffix(path.suffix) if path.suffix else path.name
            name = named(name.removesuffix("_float"))
            op, _ = names.find(name)
            if op is None:
                # the suffix may be a part of the layer's name: conv.0
                op, _ = names.find(path.name)
                name = path.name if op is not None else name
            groups.setdefault(name, []).append(_dump(path, op, max_bytes))
    return groups


def _dump(path: Path, op: Operation | None, max_bytes: int) -> Stored:
    """A float32 dump; its shape is its layer's, or a row of numbers where no layer has that name."""
    size = file_size(path, max_bytes)
    if size % 4:
        raise TraceError(f"{path.name} has {size} bytes, no whole number of float32: it is cut off, or not float32.")
    if op is None:
        return raw(path, dtype_of("float32", path.name), (1, size // 4), max_bytes=max_bytes)
    sample = op.shape[1:] or (1,)
    count = max(size // (4 * int(np.prod(sample))), 1)
    return raw(path, dtype_of("float32", path.name), (count, *sample), max_bytes=max_bytes)


def _tensor(name: str, arrays: Sequence[Stored], manifest: Manifest, names: Names) -> TraceTensor:
    entry = manifest.find(name)
    if entry.tap is None and entry is manifest.defaults:
        op, _ = names.find(name)
        entry = manifest.find(name, tap=None if op is None else op.name)
    return assemble(entry, name, [Part.of(stored) for stored in arrays], names)


def assemble(entry: Entry, name: str, parts: Sequence[Part], names: Names) -> TraceTensor:
    """A tensor from its arrays and what is known of it."""
    op, _ = names.find(entry.tap or name)
    shape = parts[0].shape
    for part in parts:
        if entry.shape is not None and part.shape != entry.shape:
            raise TraceError(f"{part.stored[0].label} has shape {part.shape}, the manifest says {entry.shape}.")
        if entry.dtype is not None and part.dtype.name != entry.dtype:
            raise TraceError(f"{part.stored[0].label} holds {part.dtype.name}, the manifest says {entry.dtype}.")
    layout = entry.layout
    if layout is not None and len(layout) != len(shape):
        # a general layout says nothing about tensors of other ranks
        layout = None
    if layout is not None:
        batched = layout.startswith("N")
    elif op is not None and op.shape:
        batched = len(shape) == len(op.shape) or (len(shape) > 1 and shape[1:] == op.shape[1:])
    else:
        batched = len(shape) in (2, 4)
    if batched and len(shape) == 1:
        raise TraceError(f"{name}: shape {shape} has a batch and nothing else.")
    return TraceTensor(
        name,
        tuple(parts),
        batched,
        None if layout is None else layout.removeprefix("N"),
        entry.tap,
        entry.step,
        entry.zero_point,
    )


def _listed(
    root: Path, files: Sequence[Path], manifest: Manifest, names: Names, max_bytes: int
) -> list[TraceTensor]:  # fmt: skip
    by_path = {path.relative_to(root).as_posix(): path for path in files}
    archives: dict[Path, Mapping[str, Stored]] = {}
    found = []
    for entry in manifest.tensors:
        if entry.file is None:
            continue
        paths = _matching(entry, by_path)
        parts = [Part.of(_open(path, entry, archives, max_bytes)) for path in paths]
        found.append(assemble(entry, entry.name or entry.tap or entry.member or Path(entry.file).stem, parts, names))
    return found


def _matching(entry: Entry, by_path: Mapping[str, Path]) -> list[Path]:
    pattern = entry.file or ""
    if "{" not in pattern:
        if pattern not in by_path:
            raise TraceError(f"the manifest names {pattern!r} for {entry.label}, which is not in the folder.")
        return [by_path[pattern]]
    pieces = re.split(r"\{frame(?::[^}]*)?\}", pattern)
    if len(pieces) < 2:
        raise TraceError(f"the manifest's file {pattern!r} has braces that are not {{frame}}.")
    expression = re.compile(r"(\d{1,9})".join(map(re.escape, pieces)))
    hits: dict[int, Path] = {}
    for path, file in by_path.items():
        if match := expression.fullmatch(path):
            numbers = set(map(int, match.groups()))
            if len(numbers) == 1:
                number = numbers.pop()
                if number in hits:
                    raise TraceError(f"{entry.label}: frame {number} is there twice, {hits[number].name} and {file.name}.")
                hits[number] = file
    if not hits:
        raise TraceError(f"no file fits {pattern!r}, which the manifest gives for {entry.label}.")
    missing = sorted(set(range(min(hits), max(hits) + 1)) - set(hits))
    if missing:
        raise TraceError(
            f"{entry.label}: no file for frame {missing[0]} ({pattern!r}), though there are {min(hits)} to {max(hits)}."
        )
    return [hits[number] for number in sorted(hits)]


def _open(path: Path, entry: Entry, archives: dict[Path, Mapping[str, Stored]], max_bytes: int) -> Stored:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return npy(path, max_bytes=max_bytes)
    if suffix == ".npz":
        if path not in archives:
            archives[path] = npz(path, max_bytes=max_bytes)
        member = entry.member or entry.name or entry.tap or ""
        if member not in archives[path]:
            raise TraceError(f"{path.name} has no member {member!r}; it has {', '.join(list(archives[path])[:5])}.")
        return archives[path][member]
    if entry.dtype is None:
        raise TraceError(
            f"the manifest gives no dtype for {path.name} ({entry.label}). Say it: float32 dumps read as float64 are numbers too."
        )
    if entry.shape is None:
        raise TraceError(f"the manifest gives no shape for {path.name} ({entry.label}).")
    return raw(path, dtype_of(entry.dtype, path.name, entry.byte_order), entry.shape, max_bytes=max_bytes)
