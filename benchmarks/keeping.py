"""Ctrl-C in a benchmark that goes on from what it has written."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def keeping(results: Path) -> Iterator[None]:
    """Around the work: an interrupt ends the process with code 130, and says where the results are."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted; {results} keeps what was done: run the same again to go on.", file=sys.stderr)
        raise SystemExit(130) from None
