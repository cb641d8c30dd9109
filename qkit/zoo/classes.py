"""Which output of the model is which class folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qkit import files
from qkit.errors import DataError
from qkit.listing import few

#: The names that one output goes by, the preferred one last.
Aliases = tuple[str, ...]


def read_classes(source: str | Path | Sequence[str]) -> list[Aliases]:
    """Read the names of a model's outputs, in order.

    Parameters
    ----------
    source
        A sequence of names; or a comma-separated list; or a text file with a name a line; or a JSON file with
        a list of names, with ``{"0": name}`` (also ``{"0": [id, name]}``, as ImageNet's class index has it)
        or with ``{name: 0}``.

    Raises
    ------
    DataError
        If the file is missing or is none of these.
    """
    if not isinstance(source, (str, Path)):
        return [(str(name),) for name in source]
    path = Path(source)
    if isinstance(source, str) and "," in source:
        return [(name.strip(),) for name in source.split(",") if name.strip()]
    with files.explained(path, "read", DataError):
        if not path.is_file():
            raise DataError(f"The class names {source} are neither a file nor a comma-separated list.")
    text = files.read_text(path, "class names", error=DataError)
    try:
        if path.suffix.lower() != ".json":
            return [(line.strip(),) for line in text.splitlines() if line.strip()]
        return _from_json(json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} does not list class names ({error}): expected a JSON list, an object of indices 0 to n-1, or lines of text."
        ) from error


def map_folders(
    folders: Sequence[str], outputs: int, classes: Sequence[Aliases] | None, metadata: Sequence[str] = ()
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Map each class folder to an output of the model.

    Parameters
    ----------
    folders
        Names of the folders, in alphabetical order.
    outputs
        How many the model has.
    classes
        What the user says their names are; every folder has to be among them.
    metadata
        Names from torchvision's metadata; used if `classes` is ``None`` and every folder is among them. Case,
        and underscores or hyphens for spaces, make no difference.

    Returns
    -------
    tuple
        Folder -> output, and the names of all outputs.

    Raises
    ------
    DataError
        If a folder has no output, or more than one; it is named.
    """
    if classes is not None:
        if len(classes) != outputs:
            raise DataError(f"{len(classes)} class names were given, but the model has {outputs} outputs.")
        return _by_name(folders, classes), tuple(aliases[-1] for aliases in classes)
    if len(metadata) == outputs and not _unknown(folders, named := [(name,) for name in metadata]):
        return _by_name(folders, named), tuple(metadata)
    if len(folders) == outputs:
        return {folder: i for i, folder in enumerate(folders)}, tuple(folders)
    raise DataError(
        f"There are {len(folders)} class folders ({few(map(repr, folders), 8)}), but the model has {outputs} outputs: "
        "pass classes=, a file or a comma-separated list with the names of the model's outputs in order."
    )


def _from_json(content: Any) -> list[Aliases]:
    if isinstance(content, list):
        return [_aliases(entry) for entry in content]
    if not isinstance(content, Mapping) or not content:
        raise TypeError("it is neither a list nor an object")
    if all(isinstance(value, int) for value in content.values()):
        content = {index: name for name, index in content.items()}
    by_index = {int(index): _aliases(entry) for index, entry in content.items()}
    return [by_index[i] for i in range(len(content))]


def _aliases(entry: Any) -> Aliases:
    return tuple(str(name) for name in entry) if isinstance(entry, list) else (str(entry),)


def _by_name(folders: Sequence[str], classes: Sequence[Aliases]) -> dict[str, int]:
    if unknown := _unknown(folders, classes):
        raise DataError(f"The class folders {few(map(repr, unknown), 8)} are none of the model's classes: rename or remove them.")
    index = _index(classes)
    mapping = {}
    for folder in folders:
        found = index[_normal(folder)]
        if len(found) > 1:
            raise DataError(f"The class folder {folder!r} fits the outputs {found}, which have one name: pass classes=.")
        mapping[folder] = found[0]
    return mapping


def _unknown(folders: Sequence[str], classes: Sequence[Aliases]) -> list[str]:
    index = _index(classes)
    return [folder for folder in folders if _normal(folder) not in index]


def _index(classes: Sequence[Aliases]) -> dict[str, list[int]]:
    index: dict[str, list[int]] = {}
    for i, aliases in enumerate(classes):
        for name in {_normal(alias) for alias in aliases}:
            index.setdefault(name, []).append(i)
    return index


def _normal(name: str) -> str:
    return name.casefold().replace("_", " ").replace("-", " ").strip()
