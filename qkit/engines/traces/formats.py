"""Arrays on disk, checked to the byte before they are read: ``.npy``, members of ``.npz``, raw dumps.

Files of a trace come from elsewhere. A :class:`Stored` is made from a file's header and size alone; it exists only if dtype,
shape and size agree and the size is within the limit. Its values are mapped into memory, never unpickled, and nothing is ever
extracted to disk.
"""

from __future__ import annotations

import math
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from qkit.errors import DataError
from qkit.files import explained

#: Number types that a trace may hold, by name.
DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "float16", "float32", "float64")
#: Bytes that one array may take, uncompressed, unless the caller says otherwise.
MAX_BYTES = 2 << 30
#: Files in a folder and members in an archive, beyond which it is none of a trace.
MAX_FILES = 200_000
_MAX_HEADER = 10_000
_LOCAL_HEADER = 30


class TraceError(DataError):
    """A file of a trace cannot be used, or does not fit the network; names file, what was found, and what to do."""


@dataclass(frozen=True)
class Stored:
    """One array in a file whose size was checked.

    Attributes
    ----------
    path, member
        The file, and the member's name where it is an archive.
    shape, dtype
        As stored; the dtype has the file's byte order.
    offset
        Of the first byte in the file; None where the member is compressed.
    fortran
        Whether the first axis runs fastest.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset: int | None = 0
    fortran: bool = False
    member: str | None = None

    def read(self) -> np.ndarray:
        """The array, mapped where it lies uncompressed."""
        try:
            if self.offset is not None:
                order: Any = "F" if self.fortran else "C"
                return np.memmap(self.path, self.dtype, "r", self.offset, self.shape, order)
            with zipfile.ZipFile(self.path) as archive, archive.open(self.member or "") as stream:
                read_header(stream, self.label)
                size = self.dtype.itemsize * math.prod(self.shape)
                data = stream.read(size + 1)
            if len(data) != size:
                raise TraceError(f"{self.label} holds {len(data)} bytes of numbers, not {size}: it is damaged. Copy it again.")
            flat = np.frombuffer(data, self.dtype)
            return flat.reshape(self.shape, order="F" if self.fortran else "C")
        except (OSError, ValueError, zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise TraceError(
                f"{self.label} can no longer be read ({error}): it is damaged or has changed. Copy it again."
            ) from error

    @property
    def label(self) -> str:
        """File and member for messages."""
        return self.path.name if self.member is None else f"{self.path.name}:{self.member}"


def dtype_of(name: str, where: str, byte_order: str = "little") -> np.dtype[Any]:
    """The numpy dtype of that name and byte order ("little" or "big"); `where` begins the message where there is none."""
    if name not in DTYPES:
        raise TraceError(f"{where}: dtype {name!r} is none of a trace's ({', '.join(DTYPES)}).")
    if byte_order not in ("little", "big"):
        raise TraceError(f"{where}: byte_order is {byte_order!r}; it is 'little' or 'big'.")
    return np.dtype(name).newbyteorder("<" if byte_order == "little" else ">")


def raw(path: Path, dtype: np.dtype[Any], shape: Sequence[int], *, max_bytes: int = MAX_BYTES) -> Stored:
    """A file of numbers without a header.

    Raises
    ------
    TraceError
        If its size is not that of shape and dtype to the byte, or beyond the limit.
    """
    size = file_size(path, max_bytes)
    dims = _check_shape(shape, path.name)
    elements = math.prod(dims)
    if size != elements * dtype.itemsize:
        raise TraceError(
            f"{path.name} holds {size} bytes; shape {dims} of {dtype.name} takes {elements * dtype.itemsize}. "
            + _size_hint(size, elements)
        )
    return Stored(path, dims, dtype)


def _size_hint(size: int, elements: int) -> str:
    width, rest = divmod(size, elements)
    fitting = [name for name in DTYPES if np.dtype(name).itemsize == width] if rest == 0 else []
    if fitting:
        return f"It would fit {' or '.join(fitting)}: check the dtype."
    return "It is cut off, or shape or dtype are those of another tensor: copy it again or correct the manifest."


def npy(path: Path, *, max_bytes: int = MAX_BYTES) -> Stored:
    """The array of an ``.npy`` file, by its header.

    Raises
    ------
    TraceError
        If it is none, holds objects, or its size is not what the header says.
    """
    size = file_size(path, max_bytes)
    with explained(path, "read", TraceError), path.open("rb") as stream:
        shape, fortran, dtype = read_header(stream, path.name)
        offset = stream.tell()
    _check_size(path.name, size - offset, shape, dtype)
    return Stored(path, shape, dtype, offset, fortran)


def npz(path: Path, *, max_bytes: int = MAX_BYTES) -> dict[str, Stored]:
    """The arrays of an ``.npz`` archive by name, without reading or extracting them.

    Raises
    ------
    TraceError
        If it is no archive, a member's name leads out of it, or a member or all of them together exceed the limit.
    """
    file_size(path, max_bytes)
    found: dict[str, Stored] = {}
    total = 0
    try:
        with explained(path, "read", TraceError), zipfile.ZipFile(path) as archive, path.open("rb") as plain:
            infos = archive.infolist()
            if len(infos) > MAX_FILES:
                raise TraceError(f"{path.name} has {len(infos)} members: that is no trace.")
            for info in infos:
                label = f"{path.name}:{info.filename!r}"
                if info.is_dir():
                    continue
                _check_member(info, label)
                total += info.file_size
                if info.file_size > max_bytes or total > max_bytes:
                    raise TraceError(
                        f"{label} brings the archive to {total} bytes uncompressed ({info.compress_size} compressed), beyond the "
                        f"limit of {max_bytes}. If that is right, raise max_bytes=."
                    )
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise TraceError(f"{label} is there twice: write the archive again.")
                with archive.open(info) as stream:
                    shape, fortran, dtype = read_header(stream, label)
                    header = stream.tell()
                _check_size(label, info.file_size - header, shape, dtype)
                start = _data_offset(plain, info) if info.compress_type == zipfile.ZIP_STORED else None
                offset = None if start is None else start + header
                found[name] = Stored(path, shape, dtype, offset, fortran, info.filename)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, struct.error, EOFError) as error:
        raise TraceError(f"{path.name} is no readable archive ({error}): it is cut off or damaged. Copy it again.") from error
    if not found:
        raise TraceError(f"{path.name} holds no array.")
    return found


def _check_member(info: zipfile.ZipInfo, label: str) -> None:
    name = info.filename
    steps = re.split(r"[/\\]", name)
    # no name is ever made a path: a leading slash is how exporters' names begin, and a:/0 is a name too
    if ".." in steps or "\\" in name or "\0" in name:
        raise TraceError(f"{label} leads out of the archive: its maker is not to be trusted, nothing was read.")
    if not name.endswith(".npy"):
        raise TraceError(f"{label} is no .npy array: an .npz of numpy.savez holds nothing else.")
    if info.flag_bits & 1:
        raise TraceError(f"{label} is encrypted: write it plainly.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise TraceError(f"{label} is compressed by method {info.compress_type}, which numpy does not write: write it again.")


def _data_offset(stream: IO[bytes], info: zipfile.ZipInfo) -> int:
    """Where an uncompressed member begins: behind its local header, whose two last fields are lengths."""
    stream.seek(info.header_offset)
    header = stream.read(_LOCAL_HEADER)
    name, extra = struct.unpack("<HH", header[26:30])
    return int(info.header_offset + _LOCAL_HEADER + name + extra)


def read_header(stream: IO[bytes], label: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, Fortran order and dtype from the header at the stream's beginning; the stream then stands at the numbers."""
    try:
        version = np.lib.format.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream, _MAX_HEADER)
        elif version == (2, 0):
            shape, fortran, dtype = np.lib.format.read_array_header_2_0(stream, _MAX_HEADER)
        else:
            raise TraceError(f"{label} is an .npy of version {version}: save plain numbers with numpy.save.")
    except (ValueError, SyntaxError, EOFError, TypeError, RecursionError, MemoryError) as error:
        raise TraceError(f"{label} is no .npy array ({error}): it is cut off or damaged. Copy it again.") from error
    if dtype.hasobject:
        raise TraceError(f"{label} holds Python objects, which only unpickling could read; qkit does not. Save numbers.")
    if dtype.subdtype is not None or dtype.fields is not None or dtype.newbyteorder("=").name not in DTYPES:
        raise TraceError(f"{label} holds {dtype}; a trace's numbers are {', '.join(DTYPES)}.")
    return _check_shape(shape, label), bool(fortran), dtype


def _check_shape(shape: Sequence[int], label: str) -> tuple[int, ...]:
    dims = tuple(int(size) for size in shape)
    if not dims or any(size < 1 for size in dims):
        raise TraceError(f"{label} has shape {dims}: a trace's tensors have at least one axis, none of them empty.")
    return dims


def _check_size(label: str, size: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    wanted = math.prod(shape) * dtype.itemsize
    if size != wanted:
        raise TraceError(
            f"{label} has {size} bytes behind its header, which says shape {shape} of {dtype.name}, {wanted} bytes: it is cut "
            "off or damaged. Copy it again."
        )


def file_size(path: Path, max_bytes: int) -> int:
    """Bytes of an ordinary file, checked against the limit."""
    with explained(path, "read", TraceError):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise TraceError(f"{path.name} is no ordinary file.")
    if status.st_size == 0:
        raise TraceError(f"{path.name} is empty: the device wrote nothing, or the copy failed.")
    if status.st_size > max_bytes:
        raise TraceError(
            f"{path.name} has {status.st_size} bytes, beyond the limit of {max_bytes}. Raise max_bytes= if it is right."
        )
    return status.st_size


def files_in(folder: Path) -> list[Path]:
    """All ordinary files below a folder, by path; what leads out of it is an error.

    Raises
    ------
    TraceError
        If it is no folder, has too many files, or a link in it leads elsewhere.
    """
    found = []
    with explained(folder, "read", TraceError):
        if not folder.is_dir():
            raise TraceError(f"{folder} is no folder: give the one that holds the device's files.")
        root = folder.resolve()
        for path in folder.rglob("*"):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                raise TraceError(f"{path.relative_to(folder)} is a link out of the folder: copy the file into it.")
            if path.is_file():
                found.append(path)
            if len(found) > MAX_FILES:
                raise TraceError(f"{folder} holds more than {MAX_FILES} files: give the folder of one trace.")
    return sorted(found)
