"""Writing a report to a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from qkit.errors import QkitError
from qkit.files import prepare, write_text
from qkit.report.contents.data import Report


def check_path(path: str | Path) -> Path:
    """The path, its folder made; called before the measurements, so that they are not lost to a mistyped name.

    Raises
    ------
    QkitError
        If the suffix is unknown, or no file can be written there.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise QkitError(f"{path.name!r} has {found}: a report is written as {', '.join(_WRITERS)}.")
    return prepare(path)


def write(report: Report, path: str | Path) -> Path:
    """Write the report as its suffix says; the file is there as a whole or not at all. Returns the path.

    ==========  ============================================================================================================
    ``.html``   one self-contained page: pictures inside, nothing is loaded from anywhere
    ``.md``     the same in text and tables
    ``.json``   `Report.to_dict`: strict JSON with a ``format`` number; infinities are the strings "inf" and "-inf"
    ``.csv``    the table of layers, a row per tap. Columns are "<group> <figure>", such as ``float rms`` and ``int8 sqnr``;
                their units are in `qkit.report.text.terms.UNITS` (and in the JSON under ``units``): SQNR in dB, ``clipped`` and
                ``used`` as shares from 0 to 1, errors and scales in the tensor's own units, infinities as ``inf``
    ==========  ============================================================================================================

    Raises
    ------
    QkitError
        As `check_path`, or if the file cannot be written.
    """
    path = check_path(path)
    write_text(path, _WRITERS[path.suffix.lower()](report))
    return path


def layer_columns(report: Report) -> pd.DataFrame:
    """The table of layers with flat column names, and every layer's loss when it is quantized alone."""
    flat = report.layers.copy()
    pairs: Any = report.layers.columns.tolist()
    flat.columns = pd.Index([figure if group == "tap" else f"{group} {figure}" for group, figure in pairs])
    if report.sensitivity is not None:
        for column in ("loss", "loss low", "loss high"):
            flat[f"alone {column}"] = report.sensitivity[column].reindex(flat.index)
    return flat


def _csv(report: Report) -> str:
    return layer_columns(report).to_csv(lineterminator="\n")


def _json(report: Report) -> str:
    return dump(report.to_dict()) + "\n"


def dump(value: Any, depth: int = 0) -> str:
    """Strict JSON, a line for each entry of an object; lists of plain values stay on one line, which tools for differences like.

    Raises
    ------
    ValueError
        If a number is infinite or none.
    """
    inner, outer = "\n" + " " * (depth + 1), "\n" + " " * depth
    if isinstance(value, dict) and value:
        rows = (f"{json.dumps(str(key), ensure_ascii=False)}: {dump(entry, depth + 1)}" for key, entry in value.items())
        return "{" + inner + f",{inner}".join(rows) + outer + "}"
    if isinstance(value, list) and any(isinstance(entry, (dict, list)) for entry in value):
        return "[" + inner + f",{inner}".join(dump(entry, depth + 1) for entry in value) + outer + "]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def _html(report: Report) -> str:
    from qkit.report.page.html import render

    return render(report)


def _markdown(report: Report) -> str:
    from qkit.report.text.markdown import render

    return render(report)


_WRITERS: dict[str, Callable[[Report], str]] = {".html": _html, ".md": _markdown, ".json": _json, ".csv": _csv}
