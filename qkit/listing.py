"""Names in a sentence."""

from __future__ import annotations

from collections.abc import Iterable


def few(names: Iterable[str], most: int = 4) -> str:
    """The first of the names, and how many more there are."""
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")
