"""JSON files of other tools, read with the name of what is wrong in them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qkit import files
from qkit.errors import PlanError

_REQUIRED: Any = object()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number")


def read_json(path: str | Path, what: str) -> Entry:
    """The file's object.

    Raises
    ------
    PlanError
        If it cannot be read, is no JSON, has a key twice or a number that is not finite.
    """
    data = files.read_json(path, what, error=PlanError, object_pairs_hook=_unique, parse_constant=_refuse)
    if not isinstance(data, dict):
        raise PlanError(f"{path} cannot be read as {what}: it holds a {type(data).__name__}, not an object.")
    return Entry(data, str(path))


@dataclass(frozen=True)
class Entry:
    """An object of a JSON file, and what to call it."""

    data: Mapping[str, Any]
    name: str

    def error(self, text: str) -> PlanError:
        """What is wrong with it."""
        return PlanError(f"{self.name}: {text}.")

    def get(self, key: str, kinds: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """The value of that key and those kinds; whole numbers and truth values are told apart."""
        value = self.data.get(key, default)
        if value is _REQUIRED:
            raise self.error(f"it has no {key!r}")
        allowed = kinds if isinstance(kinds, tuple) else (kinds,)
        if key in self.data and (not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)):
            raise self.error(f"its {key!r} is {str(value)[:40]!r}")
        return value

    def numbers(self, key: str, default: Any = _REQUIRED) -> list[float]:
        """One number or several."""
        value = self.get(key, (int, float, list), default)
        values = value if isinstance(value, list) else [value]
        for number in values:
            if isinstance(number, bool) or not isinstance(number, (int, float)) or abs(number) > 1e300 or math.isnan(number):
                raise self.error(f"its {key!r} holds {str(number)[:40]!r}")
        if not values:
            raise self.error(f"its {key!r} is empty")
        return [float(number) for number in values]

    def whole(self, key: str, default: Any = _REQUIRED) -> list[int]:
        """One whole number or several, such as 3 or 3.0."""
        values = self.numbers(key, default)
        if any(number != int(number) or abs(number) > 2**53 for number in values):
            raise self.error(f"its {key!r} is no whole number")
        return [int(number) for number in values]

    def entry(self, key: str) -> Entry:
        """The object of that key; empty where there is none."""
        return Entry(self.get(key, dict, {}), f"{self.name}, {key}")

    def items(self) -> Iterator[tuple[str, Entry]]:
        """Its objects by name."""
        for name, value in self.data.items():
            if not isinstance(value, dict):
                raise self.error(f"{name!r} is {str(value)[:40]!r}")
            yield name, Entry(value, f"{self.name}, {name}")

    def only(self, *keys: str) -> None:
        """Raise for any other key."""
        unknown = sorted(set(self.data) - set(keys))
        if unknown:
            raise self.error(f"it has an unknown {unknown[0]!r}; there are {', '.join(keys)}")
