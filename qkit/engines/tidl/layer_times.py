"""What TIDL's layers take, from the result folders of TI's tidlrunner: microseconds, cycles, memory traffic.

Compiling writes an estimate for each subgraph (``tempDir/subgraph_0/tempDir_subgraph_0_tidl_net_*.csv``, with ``lyrNum`` and
``procTime(us)``). A board that infers with ``debug_level=1`` or more writes measured cycles
(``/tmp/tidl_trace_subgraph_0_perf.csv``, with ``Layer`` and ``Layer Cycles``). Names come from ``layer_info.txt``, else from the
table of ``netLog.txt``. The formats are those that TI's model inspector (tidlrunner, August 2026) reads, that TI's runtime
prints, and that TI's documentation shows; no file of a real run was at hand.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from qkit.engines.onnx_taps import onnx_taps
from qkit.engines.tidl.inspector import inspected
from qkit.engines.tidl.layer_names import model_of
from qkit.engines.traces.formats import TraceError, file_size, files_in
from qkit.engines.traces.names import Names, layer_ids, subgraph_of
from qkit.files import explained
from qkit.graph import Graph

Source = Literal["estimate", "board"]

_FILES: dict[Source, re.Pattern[str]] = {
    "estimate": re.compile(r"(?:tempDir_)?subgraph_(?P<subgraph>[^/]+?)_tidl_net.*\.csv$", re.IGNORECASE),
    "board": re.compile(r"(?:tidl_trace_)?subgraph_(?P<subgraph>[^/]+?)_perf\.csv$", re.IGNORECASE),
}
_LOG = re.compile(r"subgraph_(?P<subgraph>[^/]+?)_tidl_net.*netLog\.txt$", re.IGNORECASE)
_BITS = re.compile(r"(\d{1,2})bits", re.IGNORECASE)
_MAX_BYTES = 64 << 20
#: Columns of either file by what they become: their names without blanks in lower case.
_COLUMNS: dict[Source, dict[str, tuple[str, ...]]] = {
    "estimate": {
        "number": ("lyrnum",),
        "µs": ("proctime(us)",),
        "cycles": ("layercycles",),
        "input KB": ("invol(kb)",),
        "weights KB": ("wtvol(kb)",),
        "output KB": ("outvol(kb)",),
    },
    "board": {
        "number": ("layer",),
        "cycles": ("layercycles",),
        "DDR read bytes": ("ddrbwreadinbytes",),
        "DDR write bytes": ("ddrbwwriteinbytes",),
    },
}
_NEEDED: dict[Source, tuple[str, ...]] = {"estimate": ("number", "µs"), "board": ("number", "cycles")}
_WHERE = (
    "TIDL writes estimates when it compiles (artifacts/tempDir/subgraph_*/*.csv), and a board that infers with debug_level=1 "
    "writes tidl_trace_subgraph_*_perf.csv into its /tmp: copy those beside the artifacts."
)


@dataclass(frozen=True)
class _Table:
    path: Path
    source: Source
    subgraph: str
    bits: int


def layer_times(
    folder: str | Path,
    graph: Graph | None = None,
    *,
    bits: int | None = None,
    clock_mhz: float | None = None,
    source: Source | None = None,
    model: str | Path | None = None,
) -> pd.DataFrame:
    """Layers of a compiled network with what they take, from a result folder of tidlrunner or one above several.

    Parameters
    ----------
    folder
        Of one model at one width (``…/8bits/<model>``), or one that holds both (``…/8bits/<model>`` and ``…/16bits/<model>``);
        or the inspector's ``modelinspector.json`` of one width.
    graph
        The kit's, to call layers by its names. A layer that it does not know keeps TIDL's.
    bits
        The width that the network was compiled at; by default what the path says (``8bits``).
    clock_mhz
        The C7x's clock, by which a board's cycles become microseconds; needed for those. TI's inspector takes 1000.
    source
        "estimate" or "board", where a folder holds both.
    model
        The ONNX file that was compiled, which says to which layer an activation's tensor belongs; by default the one in the
        folder's ``model``, if there is just one.

    Returns
    -------
    pandas.DataFrame
        A row per layer and width: ``layer`` (the kit's name, or TIDL's), ``bits``, ``µs``, ``cycles``, what else the files say
        (``input KB``, ``weights KB`` and ``output KB`` moved, ``DDR read bytes`` and ``DDR write bytes``, from the inspector
        ``L2 KB``, ``MSMC KB`` and ``DDR KB``; NaN where empty), and ``name``, ``type``, ``number`` and ``subgraph``, which are
        TIDL's, and ``source``. For :meth:`qkit.mixed.Costs.load`.

    Raises
    ------
    TraceError
        If there are no such files, one is malformed or cut off, nothing says the width or the clock, or two files are of one
        subgraph at one width.
    """
    root = Path(folder)
    if clock_mhz is not None and not (math.isfinite(clock_mhz) and clock_mhz > 0.0):
        raise TraceError(f"clock_mhz={clock_mhz}: give the C7x's clock in MHz, such as 1000.")
    if source not in (None, "estimate", "board"):
        raise TraceError(f"source is 'estimate' or 'board', not {source!r}.")
    if root.is_file() and root.suffix.lower() == ".json":
        rows = inspected(root, bits, clock_mhz)
        files = []
    else:
        files = files_in(root)
        rows = _of_folder(root, files, bits, clock_mhz, source)
    columns = [column for column in _order() if any(column in row for row in rows)]
    return pd.DataFrame(_named(rows, graph, model or model_of(files)), columns=["layer", *columns])


def _of_folder(
    root: Path, files: Sequence[Path], bits: int | None, clock_mhz: float | None, source: Source | None
) -> list[dict[str, Any]]:  # fmt: skip
    tables = _tables(root, files, bits, source)
    rows = []
    for width in sorted({table.bits for table in tables}):
        # layers of one network have other numbers at another width
        own = [path for path in files if _width(root, path, bits) == width]
        names, logged = layer_ids(own), _logged(own)
        for table in (t for t in tables if t.bits == width):
            known = names.get(table.subgraph, {})
            in_log = logged.get(table.subgraph, {})
            for row in _rows(table, clock_mhz):
                number = int(row["number"])
                kind, out = in_log.get(number, ("", ""))
                name = known.get(number) or out or f"subgraph {table.subgraph}, layer {number}"
                rows.append(row | {"name": name, "type": row.get("type") or kind, "bits": width})
    return rows


def _order() -> list[str]:
    extra = [name for columns in _COLUMNS.values() for name in columns if name not in ("number", "µs", "cycles")]
    extra += ["L2 KB", "MSMC KB", "DDR KB"]
    return ["bits", "µs", "cycles", *extra, "name", "type", "number", "subgraph", "source"]


def _named(
    rows: Sequence[dict[str, Any]], graph: Graph | None, model: str | Path | None
) -> list[dict[str, Any]]:  # fmt: skip
    """With the kit's names, no two alike at one width: of a tap that several layers are, the others keep TIDL's name."""
    names = None if graph is None else Names(graph)
    known = {} if graph is None or model is None else onnx_taps(model, graph)
    taken: set[tuple[str, int]] = set()
    found = []
    for row in rows:
        name = str(row["name"])
        # an ONNX node has no tensor's name, but torch's exporter calls its output so
        called = [name, *(made for node in row.get("nodes", ()) for made in (node, f"{node}_output_0"))]
        taps = [known.get(called_so) or _tap(names, called_so) for called_so in called]
        tap = next((tap for tap in taps if graph is not None and tap in graph.taps), name)
        numbered = f"{name} (subgraph {row['subgraph']}, layer {row['number']})"
        layer = next(free for free in (tap, name, numbered) if (free, row["bits"]) not in taken)
        taken.add((layer, row["bits"]))
        found.append({"layer": layer, **row})
    return found


def _tap(names: Names | None, name: str) -> str | None:
    op = None if names is None else names.find(name)[0]
    return None if op is None else op.name


def _width(root: Path, path: Path, bits: int | None) -> int | None:
    """Bits that a file is of: an analysis keeps the same network in 32 bits in a folder of that name."""
    if "tidl32" in path.relative_to(root).parts:
        return 32
    if bits is not None:
        return bits
    parts = (root.resolve() / path.relative_to(root)).parts[:-1]
    return next((int(match[1]) for part in reversed(parts) if (match := _BITS.fullmatch(part))), None)


def _tables(root: Path, files: Iterable[Path], bits: int | None, wanted: Source | None) -> list[_Table]:
    found = []
    for path in files:
        for kind, pattern in _FILES.items():
            match = pattern.search(path.name)
            if match is None or wanted not in (None, kind):
                continue
            width = _width(root, path, bits)
            if width is None:
                raise TraceError(f"nothing in the path of {path} says at how many bits it was compiled: give bits=8 or bits=16.")
            if width != 32:
                found.append(_Table(path, kind, subgraph_of(match["subgraph"]), width))
    if not found:
        what = "" if wanted is None else f" of source {wanted!r}"
        raise TraceError(f"{root} holds no times of layers{what}. {_WHERE}")
    if len({table.source for table in found}) > 1:
        raise TraceError(f"{root} holds estimates and a board's measurements: say source='estimate' or source='board'.")
    seen: dict[tuple[str, int], Path] = {}
    for table in found:
        other = seen.setdefault((table.subgraph, table.bits), table.path)
        if other != table.path:
            raise TraceError(
                f"{other} and {table.path} are both of subgraph {table.subgraph} at {table.bits} bits: give the folder of one "
                "model and one run."
            )
    return found


def _rows(table: _Table, clock_mhz: float | None) -> list[dict[str, Any]]:
    path = table.path
    lines = _lines(path)
    header = next((i for i, line in enumerate(lines) if line.strip()), None)
    if header is None:
        raise TraceError(f"{path} is empty: compile or infer again.")
    cells = ["".join(cell.split()).lower() for cell in next(csv.reader([lines[header]]))]
    places = {to: cells.index(name) for to, names in _COLUMNS[table.source].items() for name in names if name in cells}
    missing = [_COLUMNS[table.source][to][0] for to in _NEEDED[table.source] if to not in places]
    if missing:
        raise TraceError(
            f"{path} has no column {missing[0]!r}; its first line is {lines[header].strip()[:80]!r}. It is not one of TIDL's "
            "tables of layers, or of a version that the kit does not know."
        )
    if table.source == "board" and clock_mhz is None:
        raise TraceError(f"{path} counts cycles: give clock_mhz=, the C7x's clock on that board (TI's inspector takes 1000).")
    kind = cells.index("lyrtype") if "lyrtype" in cells else None
    found: dict[int, dict[str, Any]] = {}
    for line, row in enumerate(csv.reader(lines[header + 1 :]), header + 2):
        where = f"{path}, line {line}"
        first = row[places["number"]].strip() if len(row) > places["number"] else ""
        # below the rows stands their sum
        if not any(map(str.strip, row)) or (not first[:1].isdigit() and not first.startswith("-")):
            continue
        values: dict[str, Any] = {
            to: _value(row, place, where, cells[place], needed=to in _NEEDED[table.source]) for to, place in places.items()
        }
        number = values["number"]
        if not isinstance(number, float) or number != int(number):
            raise TraceError(f"{where}: {first!r} is not a layer's number.")
        values["number"] = int(number)
        if int(number) in found:
            raise TraceError(f"{where}: layer {int(number)} has a row already: keep one run of the network.")
        if clock_mhz is not None and table.source == "board":
            values["µs"] = float(values["cycles"]) / clock_mhz
        values |= {"subgraph": table.subgraph, "source": table.source}
        if kind is not None and len(row) > kind:
            values["type"] = row[kind].strip()
        found[int(number)] = values
    if not found:
        raise TraceError(f"{path} has no rows of layers: it is cut off. Compile or infer again.")
    return [found[number] for number in sorted(found)]


def _value(row: Sequence[str], place: int, where: str, column: str, *, needed: bool) -> float:
    text = row[place].strip() if place < len(row) else ""
    if not text and not needed:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or (value < 0.0 and column not in ("lyrnum", "layer")):
        raise TraceError(
            f"{where}: {text!r} in the column {column!r} is not a number of 0 or more: the file is damaged or cut off."
        )
    return value


def _logged(files: Iterable[Path]) -> Mapping[str, dict[int, tuple[str, str]]]:
    """Types and names of the tensors that layers make, by subgraph and layer: the first three columns of ``netLog.txt``."""
    found: dict[str, dict[int, tuple[str, str]]] = {}
    for path in files:
        match = _LOG.search(path.name)
        if match is None:
            continue
        for line in _lines(path):
            cells = [cell.strip() for cell in line.split("|")]
            if len(cells) >= 3 and cells[0].isascii() and cells[0].isdigit() and len(cells[0]) <= 6:
                found.setdefault(subgraph_of(match["subgraph"]), {}).setdefault(int(cells[0]), (cells[1], cells[2]))
    return found


def _lines(path: Path) -> list[str]:
    file_size(path, _MAX_BYTES)
    with explained(path, "read", TraceError):
        return path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
