"""What layers take on a device: a table of microseconds by layer and width that somebody measured or estimated.

Nothing is filled in. A table that does not say what a layer takes at a width that the search chooses between is refused, with the
names; what the device does not run as a step of its own is told by `absent` or by a row of 0 µs.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from qkit.errors import QkitError
from qkit.files import read_text
from qkit.listing import few

#: What a layer's cost is counted in.
Unit = Literal["multiply-accumulates", "µs"]
#: Names of the columns, in lower case with single spaces, those first that are taken first.
_LAYER = ("layer", "layer name", "name", "tap", "node")
_BITS = ("bits", "bit", "width", "bit width", "bitwidth")
_TIME = ("µs", "us", "usec", "microseconds", "microsecond", "time µs", "time us", "time microseconds", "time")
_CURE = 'Give the columns "layer", "bits" and "µs", a row for each layer at each width.'
_WIDTH = re.compile(r"(?:u?int)?(\d{1,2})(?:\.0*)?(?: ?-?bits?)?")


@dataclass(frozen=True, eq=False)
class Costs:
    """Microseconds of layers by width, for :func:`qkit.mixed.search`.

    Attributes
    ----------
    times
        Microseconds of a sample, by the table's name of the layer and bits.
    source
        What the table is called in messages.
    names
        The table's names by tap, for taps that it calls otherwise: a layer that has several rows of one width takes their sum.
    absent
        Microseconds of a layer that the table does not name; None where that is an error.
    """

    times: Mapping[str, Mapping[int, float]]
    source: str = "the table"
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    absent: float | None = None

    @classmethod
    def load(
        cls,
        table: Costs | str | Path | pd.DataFrame | Mapping[str, Mapping[int, float]],
        *,
        names: Mapping[str, str | Iterable[str]] | None = None,
        absent: float | None = None,
    ) -> Costs:
        """Read a table.

        Parameters
        ----------
        table
            A CSV file or a frame with columns for the layer ("layer" or "name"), the width in bits ("bits") and microseconds
            ("µs", "us", "microseconds", "time"), other columns are left alone; or microseconds by layer and bits:
            ``{"conv1": {8: 12.0, 16: 21.5}}``.
        names
            The table's name of a layer by tap, or its names where it has the layer in parts, which are added. A tap that the
            table names itself needs none. :meth:`qkit.Study.mixed` finds them.
        absent
            Microseconds of layers that the table does not name, 0 where the device runs them within another; by default a
            layer without a row is an error.

        Raises
        ------
        QkitError
            If a column, a width or a time is missing, a time is negative or not a number, or a layer has two rows of one width.
        """
        if absent is not None:
            absent = _time(absent, "absent")
        if isinstance(table, Costs):
            costs = table
        elif isinstance(table, pd.DataFrame):
            rows = zip(range(1, len(table) + 1), table.to_numpy(dtype=object).tolist(), strict=True)
            costs = cls(_times([str(name) for name in table.columns], rows, "the table", "row"))
        elif isinstance(table, Mapping):
            costs = cls(_of_mapping(table))
        elif isinstance(table, str | Path):
            costs = _of_file(Path(table))
        else:
            raise QkitError(f"costs are a CSV file, a pandas frame or a mapping, not {type(table).__name__}. {_CURE}")
        return replace(
            costs,
            names=costs.names if names is None else {tap: _listed(name) for tap, name in names.items()},
            absent=costs.absent if absent is None else absent,
        )

    def named(self, tap: str) -> tuple[str, ...]:
        """The table's names of a tap; none where it does not know it."""
        return tuple(name for name in dict.fromkeys((tap, *self.names.get(tap, ()))) if name in self.times)

    def __repr__(self) -> str:
        widths = sorted({bits for times in self.times.values() for bits in times})
        return f"Costs({self.source}: µs of {len(self.times)} layers at {', '.join(map(str, widths))} bits)"


def times_of(costs: Costs, layers: Mapping[str, tuple[tuple[str, ...], tuple[int, ...]]], inputs: Iterable[str]) -> tuple[
    dict[str, dict[int, float]], list[str]
]:  # fmt: skip
    """Microseconds of layers at the widths that are asked for, and what a reader has to know of them.

    Parameters
    ----------
    layers
        By name: the taps that a layer is made of, and its widths.
    inputs
        Taps of the network's inputs. They cost nothing where the table leaves them out.

    Raises
    ------
    QkitError
        If the table names no layer of the network, leaves some out, or lacks a width of one.
    """
    taps = [tap for of_layer, _ in layers.values() for tap in of_layer]
    named = {tap: names for tap in taps if (names := costs.named(tap))}
    if not named:
        raise QkitError(
            f"{costs.source} names no layer of the network: it has {few(costs.times)}, the network {few(taps)}. Call layers "
            "by the network's names, or give layer_map."
        )
    times = Counter(name for names in named.values() for name in names)
    several = [name for name, count in times.items() if count > 1]
    if several:
        both = [tap for tap, names in named.items() if several[0] in names]
        raise QkitError(
            f"{costs.source}: {several[0]!r} is the name of several layers ({few(both)}): its time would count more than once. "
            "Give each a name of its own."
        )
    free = {tap for tap in inputs if tap in taps and tap not in named}
    missing = [tap for tap in taps if tap not in named and tap not in free]
    if missing and costs.absent is None:
        raise QkitError(
            f"{costs.source} has no row for {len(missing)} of {len(taps)} layers: {few(missing)}. Add their rows, or say "
            "absent=0.0 if the device runs them within other layers."
        )
    found: dict[str, dict[int, float]] = {}
    lacking: dict[int, list[str]] = {}
    for layer, (of_layer, widths) in layers.items():
        found[layer] = {}
        for bits in widths:
            parts = []
            for tap in of_layer:
                rows = [costs.times[name] for name in named.get(tap, ())]
                if any(bits not in row for row in rows):
                    lacking.setdefault(bits, []).append(tap)
                parts += [row.get(bits, 0.0) for row in rows]
                parts += [costs.absent or 0.0] if tap not in named and tap not in free else []
            found[layer][bits] = math.fsum(parts)
    if lacking:
        said = "; ".join(f"at {bits} bits none of {few(without)}" for bits, without in lacking.items())
        raise QkitError(f"{costs.source} lacks times: {said}. Measure these layers at that width too, and add the rows.")
    remarks = []
    if free:
        remarks.append(f"{costs.source} has no time of the network's input ({few(sorted(free))}): it counts as 0 µs.")
    if missing:
        remarks.append(f"{costs.source} does not name {len(missing)} layers, {costs.absent:g} µs each: {few(missing)}.")
    if foreign := [name for name in costs.times if name not in times]:
        remarks.append(f"{costs.source} names {len(foreign)} layers that the plan does not have, left out: {few(foreign)}.")
    return found, remarks


def _listed(names: str | Iterable[str]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names)


def _of_file(path: Path) -> Costs:
    text = read_text(path, "a table of costs").removeprefix("\ufeff")
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    lines = [
        (number, row)
        for number, row in enumerate(csv.reader(io.StringIO(text), delimiter=delimiter), 1)
        if any(map(str.strip, row))
    ]
    if not lines:
        raise QkitError(f"{path} is empty. {_CURE}")
    return Costs(_times(lines[0][1], lines[1:], path.name, "line"), path.name)


def _of_mapping(table: Mapping[Any, Any]) -> dict[str, dict[int, float]]:
    for layer, by_bits in table.items():
        if not isinstance(layer, str) or not isinstance(by_bits, Mapping):
            raise QkitError(f"costs of {layer!r}: give microseconds by bits, such as {{'conv1': {{8: 12.0, 16: 21.5}}}}.")
    rows = [[layer, bits, time] for layer, by_bits in table.items() for bits, time in by_bits.items()]
    return _times(["layer", "bits", "µs"], enumerate(rows, 1), "the mapping", "entry")


def _times(header: list[str], rows: Iterable[tuple[int, list[Any]]], source: str, what: str) -> dict[str, dict[int, float]]:
    layer, width, time = (_column(header, names, source) for names in (_LAYER, _BITS, _TIME))
    found: dict[str, dict[int, float]] = {}
    for number, row in rows:
        where = f"{source}, {what} {number}"
        if len(row) != len(header):
            raise QkitError(f"{where} has {len(row)} cells, the header {len(header)}. Write numbers with a decimal point.")
        name = "" if row[layer] is None or row[layer] != row[layer] else str(row[layer]).strip()
        if not name:
            raise QkitError(f"{where} names no layer. {_CURE}")
        bits = _bits(row[width], where)
        if bits in found.setdefault(name, {}):
            raise QkitError(f"{where}: {name!r} has a time at {bits} bits already. Keep one row, of several runs their mean.")
        found[name][bits] = _time(row[time], f"{where}, {name!r}")
    if not found:
        raise QkitError(f"{source} has no rows. {_CURE}")
    return found


def _column(header: list[str], names: tuple[str, ...], source: str) -> int:
    plain = [re.sub(r"[\s_()\[\]-]+", " ", name.lower().replace("\N{GREEK SMALL LETTER MU}", "µ")).strip() for name in header]
    for name in names:
        if plain.count(name) > 1:
            raise QkitError(f"{source} has the column {name!r} more than once. Keep one.")
        if name in plain:
            return plain.index(name)
    raise QkitError(f"{source} has no column {names[0]!r}: its columns are {few(map(repr, header), 8)}. {_CURE}")


def _bits(value: Any, where: str) -> int:
    match = _WIDTH.fullmatch(str(value).strip().lower())
    if match is None or not 1 <= int(match[1]) <= 64:
        raise QkitError(f"{where}: {value!r} is not a width. Give a whole number of bits, such as 8 or 16.")
    return int(match[1])


def _time(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, str | Real) else float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or number < 0.0:
        raise QkitError(f"{where}: {value!r} is not a time. Give microseconds, 0 or more, with a decimal point.")
    return number
