"""Reading a report's JSON back, with every part checked before it is believed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

import pandas as pd

from qkit.errors import QkitError
from qkit.figures import tensors
from qkit.files import read_json
from qkit.quant.plan import Plan
from qkit.report.contents import samples
from qkit.report.contents.data import FORMAT, Report

_AGAIN = "make the report again with this version of qkit"
_INFINITE = {"inf": float("inf"), "-inf": float("-inf")}


def schema() -> dict[str, Any]:
    """The form of a report's JSON as JSON Schema 2020-12, for any validator: every part, with its description and unit."""
    from pydantic.json_schema import GenerateJsonSchema

    from qkit.report.form import Document

    return {"$schema": GenerateJsonSchema.schema_dialect, **Document.model_json_schema()}


def read(path: str | Path) -> Report:
    """A report from the JSON file that `qkit.report.write` made of it.

    Raises
    ------
    QkitError
        If the file cannot be read, is no report, is of another format version, or a part is missing or not what
        `schema` says; the message names the part.
    """
    path = Path(path)
    data = read_json(path, "a report", cure=f"Name the .json file of a report, or {_AGAIN}.", parse_constant=_refuse)
    try:
        return from_dict(data)
    except QkitError as error:
        raise QkitError(f"{path.name}: {error}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} stands for a number, which strict JSON does not have")


def from_dict(data: Any) -> Report:
    """Inverse of :meth:`Report.to_dict`.

    Raises
    ------
    QkitError
        As `read`.
    """
    if not isinstance(data, dict) or "format" not in data or "verdict" not in data:
        raise QkitError("this is no degradation report of qkit: it has no format and no verdict.")
    if data["format"] != FORMAT:
        raise QkitError(f"the report is of format {data['format']!r}, this version reads {FORMAT}: {_AGAIN}.")
    from qkit.forms import checked
    from qkit.report.form import Document

    checked(data, Document, cure=_AGAIN)
    _agree(data)
    layers = _frame({tap: _flat(row) for tap, row in data["layers"].items()}, "tap", two_levels=True)
    for column in layers.columns:
        if column[1] == "zero point":
            layers[column] = layers[column].astype("Int64")
    weights = _frame({name: _flat(row) for name, row in data["weights"].items()}, "weight", two_levels=True)
    swept = data["sensitivity"]
    return Report(
        **{name: data[name] for name in _AS_THEY_ARE},
        model=_figures(data["model"]),
        metric=_figures(data["metric"]),
        verdict=_figures(data["verdict"]),
        scores=_frame(data["scores"], "lane"),
        lanes=tuple(data["lanes"]),
        layers=layers,
        weights=weights,
        sensitivity=None if swept is None else _frame(swept, "layer"),
        diagnosis=_figures(data["diagnosis"]),
        worst=tuple(_figures(data["worst"])),
        remarks=tuple(data["remarks"]),
        per_sample=None if data["per_sample"] is None else samples.decode(data["per_sample"]),
        tried=tuple(_figures(data["tried"])),
        maps=_figures(data["maps"]),
        treatment=_figures(data["treatment"]),
        mixed=_figures(data["mixed"]),
        engines=tuple(_figures(data["engines"])),
        names=data.get("names", {}),
        network=tuple(data.get("network", ())),
    )


_AS_THEY_ARE = (
    "title", "layer_samples", "notes", "environment", "settings", "reproduce", "command", "narrow", "summary", "data", "plan",
    "lint",
)  # fmt: skip


def _figures(value: Any) -> Any:
    """Nested data with the infinities of `plain` as numbers again; words stay words."""
    if isinstance(value, dict):
        return {key: _figures(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_figures(entry) for entry in value]
    return _INFINITE.get(value, value) if isinstance(value, str) else value


def _flat(row: dict[str, dict[str, Any]]) -> dict[tuple[str, str], Any]:
    return {(group, name): value for group, figures in row.items() for name, value in figures.items()}


def _frame(rows: dict[str, dict[Any, Any]], index: str, *, two_levels: bool = False) -> pd.DataFrame:
    """A frame of rows by name: numbers as float64 or int64, words as objects."""
    columns = list(next(iter(rows.values()), {}))
    frame = pd.DataFrame(index=pd.Index(list(rows), name=index, dtype=object))
    made = {}
    for column in columns:
        values = [_figures(row[column]) for row in rows.values()]
        words = any(isinstance(value, str) for value in values) or all(value is None for value in values)
        whole = all(isinstance(value, int) and not isinstance(value, bool) for value in values)
        kind = object if words and column not in _NUMBERS_ALL_MISSING else "int64" if whole else "float64"
        made[column] = pd.Series(values, index=frame.index, dtype=kind)
    frame = pd.DataFrame(made, index=frame.index)
    if two_levels:
        frame.columns = pd.MultiIndex.from_tuples(columns) if columns else pd.MultiIndex.from_arrays([[], []])
    return frame


_NUMBERS_ALL_MISSING: frozenset[Any] = frozenset()


def _agree(data: dict[str, Any]) -> None:
    """What the schema cannot say: names that have to be found elsewhere."""
    lanes = ["float", *data["lanes"]]
    if data["narrow"] not in data["lanes"]:
        raise QkitError(f"narrow is {data['narrow']!r}, which is none of the lanes {', '.join(data['lanes'])}; {_AGAIN}.")
    if list(data["scores"]) != lanes:
        raise QkitError(f"scores has the lanes {', '.join(data['scores'])}, not {', '.join(lanes)}; {_AGAIN}.")
    for part in ("layers", "weights"):
        columns = None
        for name, row in data[part].items():
            found = [(group, figure) for group, figures in row.items() for figure in figures]
            if part == "layers" and list(row) != ["tap", *lanes]:
                raise QkitError(f"{part}/{name} has the groups {', '.join(row)}, not tap, {', '.join(lanes)}; {_AGAIN}.")
            if columns is not None and found != columns:
                raise QkitError(f"{part}/{name} has other columns than the entries before it; {_AGAIN}.")
            columns = found
    for number, operation in enumerate(data["network"]):
        if any(source >= number for source in operation["inputs"]):
            raise QkitError(f"network/{operation['name']} reads an operation that does not come before it; {_AGAIN}.")
    if data["per_sample"] is not None:
        for lane in lanes:
            scores = data["per_sample"].get(lane)
            if scores is None or len(scores) != data["metric"]["samples"]:
                count = "none" if scores is None else len(scores)
                raise QkitError(
                    f"per_sample/{lane} has {count} scores where {data['metric']['samples']} samples were scored; {_AGAIN}."
                )
    for entry in data["worst"]:
        if entry["tap"] not in data["layers"]:
            raise QkitError(f"worst names {entry['tap']!r}, which is none of the layers; {_AGAIN}.")
        seen = entry["histogram"]
        if seen is not None and (not seen["counts"] or len(seen["edges"]) != len(seen["counts"]) + 1):
            raise QkitError(f"worst: {entry['tap']} has {len(seen['counts'])} counts and {len(seen['edges'])} edges; {_AGAIN}.")
    for tap, entry in (data["maps"] or {}).items():
        try:
            tensors.arrays(entry)
        except ValueError as error:
            raise QkitError(f"maps/{tap} is no image of shape {entry['shape']} ({error}); {_AGAIN}.") from error
    # codes are a hash here, which no plan takes
    grids = {name: {k: v for k, v in grid.items() if k != "codes"} for name, grid in data["plan"]["grids"].items()}
    try:
        Plan.from_dict({**data["plan"], "grids": grids})
    except QkitError as error:
        raise QkitError(f"plan/{error}") from error
