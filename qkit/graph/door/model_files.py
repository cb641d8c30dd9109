"""Networks in files: an ONNX file, or a program of torch.export, as the module that runs it."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from qkit.errors import GraphError
from qkit.files import explained
from qkit.graph.door.arguments import leaves
from qkit.graph.door.arrival import arrive, is_file
from qkit.graph.onnx_file import OnnxNetwork, read_onnx

#: What sizes in a program's text are made of: numbers, names of symbols, and arithmetic.
_CHARACTERS = re.compile(r"[\w\s+\-*/(),.<>=&|~%']*")
_ARITHMETIC = frozenset(
    "Symbol Integer Rational Float Add Mul Pow Max Min Mod Abs FloorDiv CleanDiv CeilDiv IntTrueDiv FloatTrueDiv PythonMod "
    "ModularIndexing ToFloat TruncToInt CeilToInt FloorToInt RoundToInt PowByNatural FloatPow Where Eq Ne Lt Le Gt Ge And Or Not "
    "Equality Unequality LessThan GreaterThan StrictLessThan StrictGreaterThan".split()
)

#: Where torch keeps the bytes of a tensor, where it unpickles, and what it links in (torch/export/pt2_archive/constants.py, and
#: torch.export.load for files older than torch 2.8).
_NUMBERS = re.compile(r"(^|/)data/(weights/weight_|constants/tensor_)\d+$")
_PICKLES = re.compile(r"(^|/)data/(weights|constants|sample_inputs)/|\.pt$|(^|/)serialized_(state_dict|constants)\.json$")
_LIBRARIES = re.compile(r"(^|/)data/aotinductor/")


def network(model: object, inputs: tuple[Any, ...]) -> nn.Module:
    """The module to analyse: that of a file or program, or the model itself.

    Parameters
    ----------
    inputs
        One batch, which gives an ONNX file's inputs the sizes that it leaves open.

    Raises
    ------
    GraphError
        If the file cannot be read, or `model` is none.
    """
    found = arrive(model).model
    if isinstance(found, ExportedProgram):
        return _module(found)
    if not is_file(found):
        assert isinstance(model, nn.Module)
        return model
    path = Path(os.fspath(found))
    opened = _module(load_program(path)) if path.suffix.lower() == ".pt2" else load_onnx(path, inputs)
    opened.file_name = path.name  # type: ignore[assignment]
    return opened


def _module(program: ExportedProgram) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return program.module()


def load_onnx(path: Path, inputs: tuple[Any, ...]) -> nn.Module:
    """The module that runs an ONNX file's nodes; `origin_of` has what the file calls its parts.

    The batch is open even where the file has fixed it, if its nodes allow that.
    """
    names = input_names(path)
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        given = dict(inputs[0])
    else:
        given = dict(zip(names, (leaf.value for leaf in leaves(inputs, {})[0]), strict=False))
    shapes = {name: tuple(x.shape) for name, x in given.items() if isinstance(x, Tensor) and name in names}
    batch = next((shape[0] for shape in shapes.values() if shape), None)
    opened = {name: (-1, *shape[1:]) if shape[:1] == (batch,) else shape for name, shape in shapes.items()}
    try:
        network = read_onnx(path, shapes=opened)
    except GraphError:
        network = read_onnx(path, shapes=shapes)
    network.module.origin = network  # type: ignore[assignment]
    return network.module


def input_names(path: Path) -> list[str]:
    """Names of an ONNX file's inputs, initializers left out."""
    from qkit.graph.onnx_file.file_loading import load

    graph = load(path)[0].graph
    known = {tensor.name for tensor in graph.initializer}
    return [value.name for value in graph.input if value.name not in known]


def origin_of(model: object) -> OnnxNetwork | None:
    """What an ONNX file calls the parts of the module that was made of it; None for every other module."""
    found = getattr(model, "origin", None)
    return found if isinstance(found, OnnxNetwork) else None


def load_program(path: Path) -> ExportedProgram:
    """A program that ``torch.export.save`` wrote; nothing in the file is run as code.

    Raises
    ------
    GraphError
        If there is no such file, it is damaged or of another kind, or it holds Python objects other than tensors.
    """
    try:
        with explained(path, "read", GraphError), zipfile.ZipFile(path) as archive:
            plain = _plain_numbers(archive)
            for name, content in _members(archive):
                if name not in plain:
                    _check(path, name, content)
    except zipfile.BadZipFile as error:
        raise GraphError(f"{path} is no program of torch.export, or damaged: write it with torch.export.save.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(path)
    except Exception as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise GraphError(
            f"{path} cannot be loaded by torch {torch.__version__} ({said}): export it anew with this version of torch."
        ) from error


def _members(archive: zipfile.ZipFile, ending: str = "") -> Iterator[tuple[str, bytes]]:
    """Name and content of each member, names in lower case: torch finds a member whatever its case."""
    for entry in archive.infolist():
        name = entry.filename.lower()
        if not entry.is_dir() and name.endswith(ending):
            yield name, archive.read(entry)


def _plain_numbers(archive: zipfile.ZipFile) -> set[str]:
    """Members that torch reads as the bytes of a tensor and never as a pickle, by what the archive's own lists say of them."""
    plain, pickled = set(), set()
    for listed, content in _members(archive, "s_config.json"):
        folder = listed[: listed.rfind("/") + 1]
        try:
            entries = list(json.loads(content)["config"].values())
            named = [(folder + str(entry["path_name"]).lower(), bool(entry["use_pickle"])) for entry in entries]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        plain |= {name for name, by_pickle in named if not by_pickle and _NUMBERS.search(name)}
        pickled |= {name for name, by_pickle in named if by_pickle}
    return plain - pickled


def _check(path: Path, name: str, content: bytes) -> None:
    """Refuse what torch would run while it loads: pickled objects other than tensors, sizes that are no arithmetic, libraries."""
    if _LIBRARIES.search(name):
        raise GraphError(f"{path} holds compiled code ({name}), which is not run: write the program with torch.export.save.")
    if _PICKLES.search(name) and not name.endswith("s_config.json"):
        try:
            torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        except Exception as error:
            raise GraphError(
                f"{path} holds Python objects in {name}, whose code is not run: export the program without custom objects."
            ) from error
    else:
        try:
            document = json.loads(content)
        except (ValueError, UnicodeDecodeError):
            return
        for text in _sizes(document):
            if not _is_arithmetic(text):
                raise GraphError(f"{path} has a size that is no arithmetic in {name} ({text[:40]!r}): the file is not read.")


def _is_arithmetic(text: str) -> bool:
    """Whether a size's text calls nothing but arithmetic: torch has it evaluated."""
    called = re.findall(r"(\w+)\s*\(", text)
    attributes = "__" in text or re.search(r"\.\s*[A-Za-z_]", text)
    return _CHARACTERS.fullmatch(text) is not None and not attributes and all(name in _ARITHMETIC for name in called)


def _sizes(document: Any, key: str = "") -> Iterator[str]:
    if isinstance(document, dict):
        for name, value in document.items():
            yield from _sizes(value, name)
    elif isinstance(document, list):
        for value in document:
            yield from _sizes(value, key)
    elif isinstance(document, str) and "expr" in key:
        yield document
