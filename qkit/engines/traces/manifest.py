"""The manifest of a trace: what files without a header hold, in JSON.

.. code-block:: json

    {"format": "qkit-trace", "version": 1, "bits": 8,
     "defaults": {"dtype": "int8", "convention": "divide"},
     "tensors": [{"file": "frame_{frame}/conv1.bin", "tap": "conv1", "shape": [1, 12, 32, 32], "scale": 31.5}]}

Every key is checked; unknown ones are errors. A raw file without a dtype is an error too: a guess that is wrong by a factor of
two in width still yields numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from qkit import files
from qkit.engines.traces.formats import DTYPES, TraceError, file_size

#: Name of the file that is looked for in a trace's folder.
FILE = "trace.json"
FORMAT, VERSION = "qkit-trace", 1
_MAX_BYTES = 64 << 20
_LAYOUT = re.compile(r"^N?[A-MO-Z]+$|^N$")


@dataclass(frozen=True)
class Entry:
    """What is known of one tensor.

    Attributes
    ----------
    file
        Path relative to the folder; ``{frame}`` stands for the frame's number. None where the entry only adds to a tensor that is
        found by its name or number.
    member
        Name in the archive, for ``.npz``.
    tap
        The kit's name for it; `name` is the device's.
    data_id, subgraph
        TIDL's numbers.
    dtype, byte_order
        Of raw files: one of ``formats.DTYPES``; "little" or "big".
    shape
        As stored, the batch included where `layout` begins with N.
    layout
        Axes in the order in which they are stored, such as "NCHW", "NHWC", "HWC".
    scale, zero_point
        Of integers, one number or one a channel. ``convention`` "multiply": value = (q - zero point) × scale, torch's;
        "divide": value = (q - zero point) / scale, TIDL's.
    """

    file: str | None = None
    member: str | None = None
    name: str | None = None
    tap: str | None = None
    data_id: int | None = None
    subgraph: str = "0"
    dtype: str | None = None
    byte_order: str = "little"
    shape: tuple[int, ...] | None = None
    layout: str | None = None
    scale: tuple[float, ...] | None = None
    zero_point: tuple[int, ...] = (0,)
    convention: str = "multiply"

    @property
    def step(self) -> tuple[float, ...] | None:
        """The scale as torch has it: value = (q - zero point) × step."""
        if self.scale is None or self.convention == "multiply":
            return self.scale
        return tuple(1.0 / scale for scale in self.scale)

    @property
    def label(self) -> str:
        """What to call it in messages."""
        return self.tap or self.name or self.file or f"dataId {self.data_id}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what has its default is left out."""
        found: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if value != item.default:
                if isinstance(value, tuple):
                    value = list(value) if len(value) != 1 or item.name == "shape" else value[0]
                found[item.name] = value
        return found

    @classmethod
    def from_dict(cls, data: Any, where: str) -> Entry:
        """Inverse of `to_dict`; every value is checked, `where` begins the messages."""
        if not isinstance(data, Mapping):
            raise TraceError(f"{where} is a {type(data).__name__}, not an object.")
        unknown = sorted(set(data) - {item.name for item in fields(cls)})
        if unknown:
            raise TraceError(
                f"{where} has unknown keys {', '.join(unknown)}; there are {', '.join(f.name for f in fields(cls))}."
            )
        made: dict[str, Any] = {}
        for key, value in data.items():
            if value is not None:
                made[key] = _CHECKS.get(key, _text)(value, f"{where}, {key}")
        entry = cls(**made)
        entry._check(where)
        return entry

    def _check(self, where: str) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise TraceError(f"{where}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}.")
        if self.byte_order not in ("little", "big"):
            raise TraceError(f"{where}: byte_order is {self.byte_order!r}; it is 'little' or 'big'.")
        if self.convention not in ("multiply", "divide"):
            raise TraceError(f"{where}: convention is {self.convention!r}; it is 'multiply' (q × scale) or 'divide' (q / scale).")
        if self.file is not None and (self.file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", self.file)):
            raise TraceError(f"{where}: file {self.file!r} leads out of the folder; paths are relative to it.")
        if self.layout is not None and (not _LAYOUT.match(self.layout) or len(set(self.layout)) != len(self.layout)):
            raise TraceError(f"{where}: layout {self.layout!r} is no order of axes such as NCHW, with N first where it is there.")
        if self.layout is not None and self.shape is not None and len(self.layout) != len(self.shape):
            raise TraceError(f"{where}: layout {self.layout} has {len(self.layout)} axes, shape {self.shape} {len(self.shape)}.")
        if self.scale is not None and not all(math.isfinite(s) and s > 0 for s in self.scale):
            raise TraceError(f"{where}: its scale is not finite and greater than 0.")
        if self.scale is not None and len(self.zero_point) not in (1, len(self.scale)):
            raise TraceError(f"{where}: it has {len(self.scale)} scales and {len(self.zero_point)} zero points.")


@dataclass(frozen=True)
class Manifest:
    """What is known of a trace.

    Attributes
    ----------
    tensors
        By tensor.
    defaults
        What holds for tensors without an entry.
    name, bits
        Of the lane; None where the reader decides.
    samples
        The evaluation sample that each frame belongs to; None: frame k belongs to sample k.
    """

    tensors: tuple[Entry, ...] = ()
    defaults: Entry = field(default_factory=Entry)
    name: str | None = None
    bits: int | None = None
    samples: tuple[int, ...] | None = None

    def find(self, name: str | None = None, *, tap: str | None = None, data_id: int | None = None, subgraph: str = "0") -> Entry:
        """The entry without a file that adds to this tensor; the defaults where there is none."""
        for entry in self.tensors:
            if entry.file is not None:
                continue
            if data_id is not None and entry.data_id == data_id and entry.subgraph == subgraph:
                return entry
            if (name is not None and entry.name == name) or (tap is not None and entry.tap == tap):
                return entry
        return self.defaults

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "format": FORMAT,
            "version": VERSION,
            **({} if self.name is None else {"name": self.name}),
            **({} if self.bits is None else {"bits": self.bits}),
            **({} if self.samples is None else {"samples": list(self.samples)}),
            **({"defaults": self.defaults.to_dict()} if self.defaults != Entry() else {}),
            "tensors": [entry.to_dict() for entry in self.tensors],
        }

    @classmethod
    def from_dict(cls, data: Any, where: str = "the manifest") -> Manifest:
        """Inverse of `to_dict`.

        Raises
        ------
        TraceError
            If it is none, of another version, or an entry is wrong; names the entry and what is wrong.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT or data.get("version") != VERSION:
            raise TraceError(
                f'{where} is no manifest of version {VERSION}: it begins with "format": "{FORMAT}", "version": {VERSION}.'
            )
        unknown = sorted(set(data) - {"format", "version", "name", "bits", "samples", "defaults", "tensors"})
        if unknown:
            raise TraceError(f"{where} has unknown keys {', '.join(map(str, unknown))}.")
        defaults = data.get("defaults", {})
        entries = data.get("tensors", [])
        if not isinstance(entries, list):
            raise TraceError(f"{where}: tensors is a {type(entries).__name__}, not a list.")
        base = Entry.from_dict(defaults, f"{where}, defaults")
        tensors = tuple(
            Entry.from_dict({**defaults, **entry} if isinstance(entry, Mapping) else entry, f"{where}, tensor {number}")
            for number, entry in enumerate(entries)
        )
        bits = data.get("bits")
        if bits is not None and not (_is_int(bits) and 2 <= bits <= 32):
            raise TraceError(f"{where}: bits is {bits!r}; it is a number from 2 to 32.")
        name = data.get("name")
        samples = data.get("samples")
        return cls(
            tensors,
            base,
            None if name is None else _text(name, f"{where}, name"),
            bits,
            None if samples is None else check_samples(samples, where),
        )

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        files.write_json(path, self.to_dict(), error=TraceError)

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Read what `save` wrote, or a person."""
        file = Path(path)
        file_size(file, _MAX_BYTES)
        data = files.read_json(file, "a manifest", error=TraceError)
        return cls.from_dict(data, file.name)


def check_samples(value: Any, where: str) -> tuple[int, ...]:
    """Sample numbers, each once."""
    if not isinstance(value, (list, tuple)) or not all(_is_int(v) and v >= 0 for v in value) or len(set(value)) != len(value):
        raise TraceError(f"{where}: samples is a list of sample numbers from 0, each once.")
    return tuple(value)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise TraceError(f"{where} is {value!r}, not a text.")
    return value


def _integer(value: Any, where: str) -> int:
    if not _is_int(value) or not 0 <= value < 2**31:
        raise TraceError(f"{where} is {value!r}, not a number from 0.")
    return int(value)


def _subgraph(value: Any, where: str) -> str:
    return str(value) if _is_int(value) else _text(value, where)


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value or not all(_is_int(v) and 1 <= v < 2**31 for v in value):
        raise TraceError(f"{where} is {value!r}, not a list of sizes.")
    return tuple(value)


def _numbers(value: Any, where: str) -> tuple[float, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        raise TraceError(f"{where} is {value!r}, not a number or one a channel.")
    return tuple(float(v) for v in values)


def _integers(value: Any, where: str) -> tuple[int, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    if not values or not all(_is_int(v) and -(2**15) <= v < 2**16 for v in values):
        raise TraceError(f"{where} is {value!r}, not a code or one a channel.")
    return tuple(values)


_CHECKS = {
    "data_id": _integer,
    "subgraph": _subgraph,
    "shape": _shape,
    "scale": _numbers,
    "zero_point": _integers,
}
