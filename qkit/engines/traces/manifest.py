"""The manifest of a trace: what files without a header hold, in JSON.

.. code-block:: json

    {"format": "qkit-trace", "version": 1, "bits": 8,
     "defaults": {"dtype": "int8", "convention": "divide"},
     "tensors": [{"file": "frame_{frame}/conv1.bin", "tap": "conv1", "shape": [1, 12, 32, 32], "scale": 31.5}]}

Every key is checked; unknown ones are errors. A raw file without a dtype is an error too: a guess that is wrong by a factor of
two in width still yields numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkit import files
from qkit.engines.traces.formats import TraceError, file_size

if TYPE_CHECKING:
    from qkit.engines.traces.manifest_form import ManifestForm

#: Name of the file that is looked for in a trace's folder.
FILE = "trace.json"
FORMAT, VERSION = "qkit-trace", 1
_MAX_BYTES = 64 << 20


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
        told = {key: value for key, value in data.items() if key not in ("format", "version")}
        defaults = told.get("defaults", {})
        if isinstance(defaults, Mapping) and isinstance(told.get("tensors"), list):
            told["tensors"] = [{**defaults, **entry} if isinstance(entry, Mapping) else entry for entry in told["tensors"]]
        form = _checked(told, f"{where}: ", f"a tensor's keys are {', '.join(item.name for item in fields(Entry))}")
        base, *tensors = (Entry(**entry.model_dump(exclude_none=True)) for entry in (form.defaults, *form.tensors))
        return cls(tuple(tensors), base, form.name, form.bits, form.samples)

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


def check_samples(samples: Any) -> tuple[int, ...] | None:
    """Sample numbers from 0, each once."""
    return _checked({"samples": samples}, "", "give sample numbers from 0, each once").samples


def _checked(data: Any, where: str, cure: str) -> ManifestForm:
    from qkit.engines.traces.manifest_form import ManifestForm
    from qkit.forms import checked

    return checked(data, ManifestForm, error=TraceError, where=where, cure=cure)
