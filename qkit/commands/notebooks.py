"""A copy of the kit's notebooks to work in, which never takes away what a person has changed in it.

The folder keeps a list of what was copied (``.qkit-notebooks.json``: names and hashes). A file that is as it was copied is
brought up to date; one that was changed since stays, and that is said.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from qkit import files
from qkit.errors import QkitError

_PACKAGE = Path(__file__).resolve().parent.parent
#: Where the notebooks are: in the installed package, or in the checkout.
SOURCES = (_PACKAGE / "notebooks", _PACKAGE.parent / "notebooks")
LISTED = ".qkit-notebooks.json"
#: What is copied: the notebooks, and what they may need beside them. The tools that run and check them stay, and
#: so does what the notebooks wrote, in ``out``.
SUFFIXES = (".ipynb", ".png", ".jpg", ".svg", ".csv", ".json", ".md", ".npz")


@dataclass(frozen=True)
class Copied:
    """What copying did, by names relative to the folder.

    Attributes
    ----------
    new, updated, same
        Copied for the first time; brought up to date; left, since there is nothing new.
    kept
        Changed by the user since, and therefore left although the kit's are different.
    replaced
        Changed by the user, and written over because that was asked for.
    """

    folder: Path
    new: tuple[str, ...]
    updated: tuple[str, ...]
    same: tuple[str, ...]
    kept: tuple[str, ...]
    replaced: tuple[str, ...]


def find() -> Path:
    """The folder of the kit's own notebooks.

    Raises
    ------
    QkitError
        If there is none.
    """
    for folder in SOURCES:
        if any(folder.glob("*.ipynb")):
            return folder
    raise QkitError(f"the notebooks are not in {' or '.join(map(str, SOURCES))}: install qkit again.")


def copy(target: Path, *, overwrite: bool = False, source: Path | None = None) -> Copied:
    """Copy the notebooks into a folder.

    Parameters
    ----------
    overwrite
        Also over files that were changed since they were copied.

    Raises
    ------
    QkitError
        If the folder cannot be written, or is that of the kit's own notebooks.
    """
    origin = find() if source is None else source
    if target.resolve() == origin.resolve() or origin.resolve() in target.resolve().parents:
        raise QkitError(f"{target} is where the kit's own notebooks are: name another folder.")
    done: dict[str, list[str]] = {key: [] for key in ("new", "updated", "same", "kept", "replaced")}
    with files.explained(target):
        target.mkdir(parents=True, exist_ok=True)
        known = _listed(target)
        for path in _files(origin):
            name = path.relative_to(origin).as_posix()
            place = target / name
            if place.is_symlink() or not place.parent.resolve().is_relative_to(target.resolve()):
                raise QkitError(f"{place} is a link, or lies behind one: nothing is written there. Name another folder.")
            what = _state(path, place, known.get(name), overwrite=overwrite)
            done[what].append(name)
            if what in ("new", "updated", "replaced"):
                files.write_bytes(place, path.read_bytes(), parents=True)
            if what != "kept":
                known[name] = _hash(path)
        files.write_json(target / LISTED, {"copied": known})
    return Copied(target, **{key: tuple(names) for key, names in done.items()})


def _state(ours: Path, theirs: Path, copied: str | None, *, overwrite: bool) -> str:
    if not theirs.exists():
        return "new"
    found, wanted = _hash(theirs), _hash(ours)
    if found == wanted:
        return "same"
    if found == copied:
        return "updated"
    return "replaced" if overwrite else "kept"


def _files(origin: Path) -> list[Path]:
    return sorted(
        path
        for path in origin.rglob("*")
        if path.is_file()
        and path.suffix.lower() in SUFFIXES
        and not any(part.startswith((".", "_")) or part == "out" for part in path.relative_to(origin).parts)
    )


def _listed(target: Path) -> dict[str, str]:
    """What was copied before; a list that cannot be read counts as none, so that every file there is the user's."""
    try:
        copied = json.loads((target / LISTED).read_text(encoding="utf-8"))["copied"]
        return {str(name): str(digest) for name, digest in copied.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
