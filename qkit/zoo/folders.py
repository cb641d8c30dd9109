"""Where the bundled networks and images are."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
#: In the installed package, then in the checkout.
FOLDERS = (_PACKAGE / "data", _PACKAGE.parent / "data")


def find(name: str) -> Path | None:
    """The file of that name; None where there is none."""
    return next((folder / name for folder in FOLDERS if (folder / name).is_file()), None)
