"""The manifest of a trace: what files without a header hold, in JSON.

.. code-block:: json

    {"format": "qkit-trace", "version": 1, "bits": 8,
     "defaults": {"dtype": "int8", "convention": "divide"},
     "tensors": [{"file": "frame_{frame}/conv1.bin", "tap": "conv1", "shape": [1, 12, 32, 32], "scale": 31.5}]}

Every key is checked; unknown ones are errors. A raw file without a dtype is an error too: a guess that is wrong by a factor of
two in width still yields numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from qkit import files
from qkit.engines.traces.formats import DTYPES, TraceError, file_size
from qkit.forms import checked

#: Name of the file that is looked for in a trace's folder.
FILE = "trace.json"
FORMAT, VERSION = "qkit-trace", 1
_MAX_BYTES = 64 << 20
_Some = TypeVar("_Some", bound=Collection[Any])


def _each_once(values: _Some) -> _Some:
    if len(set(values)) != len(values):
        raise ValueError("should have each once")
    return values


def _inside(file: str) -> str:
    if file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file):
        raise ValueError("should not lead out of the folder: paths are relative to it")
    return file


_Text = Annotated[str, Field(strict=True, pattern=r"^[^\x00]+$")]
_Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
_Code = Annotated[int, Field(strict=True, ge=-(2**15), lt=2**16)]
_Step = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
_DType = Annotated[_Text, Field(pattern=f"^({'|'.join(DTYPES)})$")]
_Layout = Annotated[_Text, Field(pattern="^(N?[A-MO-Z]+|N)$"), AfterValidator(_each_once)]
#: Of texts, a number too.
_WRITTEN = BeforeValidator(lambda value: str(value) if type(value) is int else value)
#: Of several, one or one a channel.
_EACH = BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value])


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

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    file: Annotated[_Text, AfterValidator(_inside)] | None = None
    member: _Text | None = None
    name: _Text | None = None
    tap: _Text | None = None
    data_id: _Number | None = None
    subgraph: Annotated[_Text, _WRITTEN] = "0"
    dtype: _DType | None = None
    byte_order: Literal["little", "big"] = "little"
    shape: Annotated[tuple[_Size, ...], Field(min_length=1)] | None = None
    layout: _Layout | None = None
    scale: Annotated[tuple[_Step, ...], Field(min_length=1), _EACH] | None = None
    zero_point: Annotated[tuple[_Code, ...], Field(min_length=1), _EACH] = (0,)
    convention: Literal["multiply", "divide"] = "multiply"

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


def _consistent(entry: Entry) -> Entry:
    if entry.layout is not None and entry.shape is not None and len(entry.layout) != len(entry.shape):
        raise ValueError(f"layout {entry.layout} has {len(entry.layout)} axes, shape {entry.shape} {len(entry.shape)}")
    if entry.scale is not None and len(entry.zero_point) not in (1, len(entry.scale)):
        raise ValueError(f"has {len(entry.scale)} scales and {len(entry.zero_point)} zero points")
    return entry


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

    __pydantic_config__: ClassVar = ConfigDict(extra="forbid")

    tensors: tuple[Annotated[Entry, AfterValidator(_consistent)], ...] = ()
    defaults: Annotated[Entry, AfterValidator(_consistent)] = field(default_factory=Entry)
    name: _Text | None = None
    bits: Annotated[int, Field(strict=True, ge=2, le=32)] | None = None
    samples: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], AfterValidator(_each_once)] | None = None

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
        told = {key: value for key, value in data.items() if key not in ("format", "version")}
        defaults = _with({}, told.get("defaults", {}))
        if isinstance(told.get("tensors"), list):
            told["tensors"] = [_with(defaults, entry) for entry in told["tensors"]]
        keys = ", ".join(item.name for item in fields(Entry))
        # the defaults first: what is wrong in them is not the tensors' doing
        for part in ({"defaults": defaults}, {**told, "defaults": defaults}):
            found = checked(part, cls, error=TraceError, where=f"{where}: ", cure=f"a tensor's keys are {keys}")
        return found

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


def _with(defaults: Any, entry: Any) -> Any:
    """An entry with the defaults, without what is null; what is no object as it is."""
    if not isinstance(defaults, Mapping) or not isinstance(entry, Mapping):
        return entry
    return {key: value for key, value in {**defaults, **entry}.items() if value is not None}


def check_samples(samples: Any) -> tuple[int, ...] | None:
    """Sample numbers, each once."""
    cure = "samples= is a list of sample numbers from 0, each once"
    return checked({"samples": samples}, Manifest, error=TraceError, cure=cure).samples
