"""Names of tensors and files: TIDL's, the exporters', and the taps that they stand for.

TIDL's names are parsed by pattern, since the padding of their numbers varies. A device's name is brought to a tap exactly, by its
normal form (letters and digits, everything else one underscore, as where ``/`` was written as ``_``), or as an exporter's
scope (``/layer1/layer1.0/conv1/Conv_output_0`` is ``layer1.0.conv1``); what is left is for the content to decide.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qkit.engines.traces.formats import TraceError, file_size
from qkit.files import explained
from qkit.graph import Graph
from qkit.graph.operation import Operation

_CORE = r"(?:C7x_(?P<core>\d+)_)?"
_PLANE = r"(?P<width>\d+)x(?P<height>\d+)(?P<suffix>_float\.bin|\.y|\.bin)?$"
_PATTERNS = (
    re.compile(
        _CORE + r"tidl_trace_subgraph_(?P<subgraph>.+)_(?P<data>\d+)_(?P<batch>\d+)_(?P<dim1>\d+)_(?P<dim2>\d+)"
        r"_(?P<channels>\d+)_" + _PLANE,
        re.IGNORECASE,
    ),
    re.compile(_CORE + r"tidl_trace_?(?P<data>\d+)_(?P<batch>\d+)_(?P<channels>\d+)_" + _PLANE, re.IGNORECASE),
    re.compile(_CORE + r"(?P<config>[^/]*\.txt)_(?P<data>\d+)_(?P<channels>\d+)_" + _PLANE, re.IGNORECASE),
)
_INFO = re.compile(r"(?:subgraph_(?P<subgraph>.+?)_)?[^/]*layer_info\.txt$", re.IGNORECASE)
_MAX_INFO = 16 << 20
#: What an exporter appends to a scope: the operator, its number, the output's number.
_OPERATOR = re.compile(r"^(?P<base>.*?)_?(?P<op>[a-z]+)(?:_\d+)?_output_\d+$")

Form = Literal["subgraph", "plain", "config"]


@dataclass(frozen=True)
class TidlName:
    """The name of one of TIDL's trace files.

    Attributes
    ----------
    data
        Number of the tensor, `dataId`.
    channels, height, width, batch, dim1, dim2
        Sizes; the values are (batch, dim1, dim2, channels, height, width).
    is_float
        ``_float.bin`` (real numbers, float32) and not ``.y`` (fixed point of 8 or 16 bits).
    subgraph
        Number of the subgraph, "0" where the form has none.
    core
        Number in a ``C7x_{n}_`` prefix: the file holds some rows of the tensor. None without.
    """

    data: int
    channels: int
    height: int
    width: int
    is_float: bool
    batch: int = 1
    dim1: int = 1
    dim2: int = 1
    subgraph: str = "0"
    core: int | None = None

    @property
    def shape(self) -> tuple[int, int, int, int, int, int]:
        """(batch, dim1, dim2, channels, height, width), a 0 counted as 1."""
        batch, dim1, dim2 = (max(size, 1) for size in (self.batch, self.dim1, self.dim2))
        return batch, dim1, dim2, max(self.channels, 1), max(self.height, 1), max(self.width, 1)

    @classmethod
    def parse(cls, name: str) -> TidlName | None:
        """Parts of a file's name; None where it is of no known form."""
        for pattern in _PATTERNS:
            match = pattern.match(name)
            if match is None:
                continue
            found = match.groupdict()
            suffix = (found["suffix"] or "").lower()
            numbers = {key: int(found.get(key) or 1) for key in ("batch", "dim1", "dim2", "channels", "height", "width")}
            if any(len(found.get(key) or "") > 12 for key in (*numbers, "data")):
                return None
            subgraph = found.get("subgraph") or "0"
            core = found["core"]
            return cls(
                data=int(found["data"]),
                is_float=suffix in ("_float.bin", ".bin"),
                subgraph=subgraph_of(subgraph),
                core=None if core is None else int(core),
                **numbers,
            )
        return None

    def format(self, form: Form = "subgraph", config: str = "net") -> str:
        """The file's name in one of the three forms."""
        plane = f"{self.width:05}x{self.height:05}" + ("_float.bin" if self.is_float else ".y")
        core = "" if self.core is None else f"C7x_{self.core}_"
        if form == "plain":
            return f"{core}tidl_trace{self.data:04}_{self.batch:05}_{self.channels:05}_{plane}"
        if form == "config":
            return f"{core}{config}.txt_{self.data:04}_{self.channels:05}_{plane}"
        return (
            f"{core}tidl_trace_subgraph_{self.subgraph}_{self.data:04}_{self.batch:04}_{self.dim1:04}_{self.dim2:05}_"
            f"{self.channels:05}_{plane}"
        )


def layer_infos(files: Iterable[Path]) -> dict[str, dict[int, str]]:
    """Names by subgraph and `dataId`, from the ``layer_info.txt`` files among these: columns ``layerId dataId name``.

    Raises
    ------
    TraceError
        On a line that is none of the three columns, and on two names for one tensor.
    """
    infos: dict[str, dict[int, str]] = {}
    for path, subgraph, rows in _info_rows(files):
        names = infos.setdefault(subgraph, {})
        for number, _, data, name in rows:
            if names.setdefault(data, name) != name:
                raise TraceError(f"{path.name}, line {number}: dataId {data} is {names[data]!r} and {name!r}.")
    return infos


def layer_ids(files: Iterable[Path]) -> dict[str, dict[int, str]]:
    """The same by subgraph and `layerId`; of a layer with several tensors the first one's name.

    Raises
    ------
    TraceError
        On a line that is none of the three columns, and on two files that name a layer differently.
    """
    infos: dict[str, dict[int, str]] = {}
    for path, subgraph, rows in _info_rows(files):
        own: dict[int, str] = {}
        for _, layer, _, name in rows:
            own.setdefault(layer, name)
        names = infos.setdefault(subgraph, {})
        for layer, name in own.items():
            if names.setdefault(layer, name) != name:
                raise TraceError(
                    f"{path}: layer {layer} of subgraph {subgraph} is {name!r}, in another file {names[layer]!r}. Give the "
                    "folder of one model."
                )
    return infos


def _info_rows(files: Iterable[Path]) -> Iterator[tuple[Path, str, list[tuple[int, int, int, str]]]]:
    """Of each ``layer_info.txt``: subgraph, and number of the line, layerId, dataId and name."""
    for path in files:
        match = _INFO.match(path.name)
        if match is None:
            continue
        file_size(path, _MAX_INFO)
        with explained(path, "read", TraceError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        rows = []
        for number, line in enumerate(lines, 1):
            columns = line.split(maxsplit=2)
            if not columns or not columns[0].lstrip("-").isdigit():
                continue
            if (
                len(columns) < 3
                or not all(part.removeprefix("-").isascii() and len(part) <= 12 for part in columns[:2])
                or not columns[1].isdigit()
            ):
                raise TraceError(f"{path.name}, line {number}: {line[:80]!r} has not the columns layerId, dataId, name.")
            rows.append((number, int(columns[0]), int(columns[1]), columns[2].strip()))
        yield path, subgraph_of(match["subgraph"] or "0"), rows


def subgraph_of(name: str) -> str:
    """A subgraph's number without leading zeros, where it is one."""
    return str(int(name)) if name.isascii() and name.isdigit() else name


def write_layer_info(names: Mapping[int, str]) -> str:
    """The text of a ``layer_info.txt`` for names by `dataId`."""
    return "".join(f"{layer} {data} {' '.join(name.split()) or '_'}\n" for layer, (data, name) in enumerate(names.items()))


def natural(text: str) -> tuple[tuple[int, str], ...]:
    """Sort key in which ``frame_10`` comes after ``frame_2``."""
    return tuple(
        (int(part), "") if part.isascii() and part.isdigit() else (-1, part) for part in re.findall(r"[0-9]+|[^0-9]+", text)
    )


def normal(name: str) -> str:
    """Letters and digits in lower case, everything between them one underscore."""
    return re.sub(r"[^0-9a-z]+", "_", name.lower()).strip("_")


def scope(path: str) -> str:
    """The scope that torch's exporter gives a module: ``layer1.0.conv1`` is ``layer1/layer1.0/conv1``."""
    parts: list[str] = []
    for part in path.split("."):
        parts.append(f"{parts[-1]}.{part}" if part.isdigit() and parts else part)
    return "/".join(parts)


class Names:
    """Steps of a graph by the names that devices give them."""

    def __init__(self, graph: Graph) -> None:
        operations = [op for op in graph.operations if op.kind in ("keep", "float") or op.quantized]
        # a tap wins over an operation without a grid where both have one normal form
        self._exact = {op.name: op for op in operations}
        self._normal = _unique([(normal(op.name), op) for op in operations])
        self._scope = _unique([(normal(scope(op.name.partition(":")[0])), op) for op in operations if ":" not in op.name])
        self._operation = _unique(
            [
                (normal(scope(path)) + ":" + normal(kind), op)
                for op in operations
                for path, colon, kind in [op.name.partition(":")]
                if colon
            ]
        )

    def find(self, name: str) -> tuple[Operation | None, str]:
        """The operation of that name, or None, and how it was found: "exact", "normalised", "exporter"."""
        if name in self._exact:
            return self._exact[name], "exact"
        plain = normal(name)
        if plain in self._normal:
            return self._normal[plain], "normalised"
        base, kind = plain, ""
        if match := _OPERATOR.match(plain):
            base, kind = match["base"], match["op"]
        for key, table in ((base, self._scope), (f"{base}:{kind}", self._operation)):
            if key in table:
                return table[key], "exporter"
        return None, ""


def _unique(pairs: list[tuple[str, Operation]]) -> dict[str, Operation]:
    taps = [(key, op) for key, op in pairs if op.quantized]
    counts, all_counts = Counter(key for key, _ in taps), Counter(key for key, _ in pairs)
    kept = {key: op for key, op in pairs if all_counts[key] == 1}
    return kept | {key: op for key, op in taps if counts[key] == 1}
