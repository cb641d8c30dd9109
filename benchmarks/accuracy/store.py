"""Finished cells as JSON lines, each with the version of the code that made it."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import qkit

_PACKAGE = Path(qkit.__file__).parent
#: Folders and files of the kit that decide about a score, by treatment; the rest (widgets, reports) does not.
_CORE = ("*.py", "quant/*.py", "execution/*.py", "zoo/digits.py", "zoo/splits.py", "zoo/models.py")
_OF = {"ptc": ("ptq/*.py",), "mixed": ("mixed/*.py",), "qat": ("qat/*.py",), "ptc + qat": ("ptq/*.py", "qat/*.py")}
_NOT = {"cli.py", "__main__.py", "editing.py", "progress.py", "errors.py", "__init__.py"}


@functools.cache
def version(treatment: str) -> str:
    """A digest of the source that the treatment runs."""
    key = "ptc" if treatment.startswith("only ") else treatment
    own = () if key.startswith("torchao") else _OF.get(key, ())
    patterns = ("zoo/digits.py", "zoo/splits.py", "zoo/models.py") if key.startswith("torchao") else (*_CORE, *own)
    files = sorted({path for pattern in patterns for path in _PACKAGE.glob(pattern) if path.name not in _NOT})
    digest = hashlib.blake2b(digest_size=5)
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def packed(hits: np.ndarray) -> str:
    """Zeros and ones as hexadecimal digits, four images each; the last ones are filled up with zeros."""
    if not np.isin(hits, (0.0, 1.0)).all():
        raise ValueError("hits are zeros and ones")
    return np.packbits(hits.astype(np.uint8)).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """Inverse of `packed`, float64 (N,)."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))[:count].astype(np.float64)


def read(file: Path) -> dict[str, dict[str, Any]]:
    """Records by id, of each the last one; a line that an interrupt cut short is none."""
    found = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            record = json.loads(line)
            found[record["id"]] = record
        except (ValueError, KeyError, TypeError):
            continue
    return found


def append(file: Path, record: dict[str, Any]) -> None:
    """Add a line; one that was cut short is closed first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    text = file.read_bytes() if file.exists() else b""
    with file.open("ab") as out:
        out.write((b"\n" if text and not text.endswith(b"\n") else b"") + json.dumps(record, default=float).encode() + b"\n")


def compact(file: Path, keep: Iterable[dict[str, Any]]) -> None:
    """Rewrite the file with these records alone, in order of their ids."""
    lines = [json.dumps(record, default=float) + "\n" for record in sorted(keep, key=lambda record: record["id"])]
    file.write_text("".join(lines), encoding="utf-8")


def usable(record: dict[str, Any] | None, settings: dict[str, Any], *, current: bool = False) -> bool:
    """Whether a finished cell need not be computed: it has no error, the same settings and, if asked for, today's code."""
    if record is None or "error" in record or record.get("settings") != settings:
        return False
    return not current or record.get("version") == version(record["treatment"])


def versions(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Versions of the code by treatment, where there is more than one."""
    found: dict[str, set[str]] = {}
    for record in records:
        found.setdefault(record["treatment"], set()).add(record.get("version", "?"))
    return {treatment: sorted(seen) for treatment, seen in found.items() if len(seen) > 1}
