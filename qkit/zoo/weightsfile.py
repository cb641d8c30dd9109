"""Read a weights file as plain tensors and containers: no code in it is run, whatever it holds."""

from __future__ import annotations

import argparse
import collections
import errno
import pathlib
import pickle
import re
import types
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from qkit import files
from qkit.errors import QkitError

#: The end of the name of a file that says in which of several files a tensor is.
INDEX = ".index.json"

_SAVE = "save the weights alone, with torch.save(model.state_dict(), path)"
#: Suffixes of files that hold weights in forms of other libraries.
_FOREIGN = {
    ".onnx": "an ONNX file, which is a network with its weights: give it as the model, without weights",
    ".pt2": "an exported program, which is a network with its weights: give it as the model, without weights",
    ".h5": "a file of Keras", ".keras": "a file of Keras", ".tflite": "a TFLite file", ".pb": "a file of TensorFlow",
    ".msgpack": "a file of Flax", ".npz": "an archive of NumPy", ".npy": "an array of NumPy", ".gguf": "a GGUF file",
}  # fmt: skip


def read_content(path: Path) -> Any:
    """What the file holds: ``.safetensors``, what ``torch.save`` wrote, or an index of several such files.

    Files of ``torch.save`` are read as tensors and plain containers only. Let through with them, as plain containers too: what
    training scripts keep beside weights, namespaces of arguments, paths and NumPy's numbers.

    Raises
    ------
    QkitError
        If the file is missing or damaged, or if it could be read only by running code; the class is named.
    """
    with files.explained(path, "read"):
        if path.is_dir():
            raise QkitError(f"{path} is a folder: name the weights file in it.")
        if not path.is_file():
            raise QkitError(f"The weights file {path} does not exist.")
    if path.suffix.lower() in _FOREIGN:
        raise QkitError(f"{path} is {_FOREIGN[path.suffix.lower()]}: it holds no weights of a PyTorch module.")
    return _shards(path) if path.name.endswith(INDEX) else _one(path)


def is_torchscript(path: Path) -> bool:
    """Whether the file is an archive of TorchScript: such a one has its code in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(re.fullmatch(r"[^/]+/(code/.*|constants\.pkl)", name) for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _one(path: Path) -> Any:
    if is_torchscript(path):
        raise QkitError(f"{path} is a TorchScript program and not a file of weights: of the module that it was made of, {_SAVE}.")
    try:
        if path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_plain()), warnings.catch_warnings():
            # on kinds of pickles: they are read, or refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise QkitError(f"{path} cannot be read as .safetensors ({error}): it is damaged, or is another kind of file.") from error
    # torch's own words advise to read the file by running its code: none of them are passed on
    except Exception as error:
        raise QkitError(f"{path} {_why(error)}.") from error


def _why(error: Exception) -> str:
    """Why torch did not read the file, and what to do."""
    named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error)) or re.search(r"GLOBAL ['\"]?([\w.]+)", str(error))
    if named is not None:
        what = named.group(1)
        whole = " (a whole module)" if what.startswith("torch.nn.modules.") else ""
        return (
            f"holds Python objects of {what}{whole}, whose code is not run when a file is read: where that code is at hand, "
            + _SAVE
        )
    if isinstance(error, pickle.UnpicklingError):
        return (
            "cannot be read as plain tensors: it is damaged, or holds Python objects, whose code is not run. Where it can be "
            "loaded, " + _SAVE
        )
    # torch seeks to where a file that was cut short has nothing
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        return f"cannot be read: {files.reason(error, 'read')}".removesuffix(".")
    return f"cannot be read as weights ({type(error).__name__}): it is damaged, cut short, or not a file of torch.save"


def _plain() -> list[Any]:
    """Classes without code of their own to run, which scripts save beside the weights."""
    kinds = {type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"}
    numbers: list[Any] = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    # and under the names that files of NumPy 1 have for them
    numbers += [(function, f"numpy.core.multiarray.{function.__name__}") for function in numbers]
    return [
        argparse.Namespace, types.SimpleNamespace, collections.defaultdict, pathlib.PosixPath, pathlib.PurePosixPath,
        list, dict, set, int, float, str, np.dtype, np.ndarray, *kinds, *numbers,
    ]  # fmt: skip


def _shards(path: Path) -> dict[str, Any]:
    """The tensors of all files that an index names, which lie beside it."""
    index = files.read_json(path, "an index of weights files")
    try:
        places = {str(name): str(file) for name, file in index["weight_map"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise QkitError(
            f"{path} is not an index of weights files: it is JSON with an object weight_map, tensor to file."
        ) from error
    found: dict[str, Any] = {}
    for file in dict.fromkeys(places.values()):
        if Path(file).name != file or file in ("", ".", "..") or "\\" in file:
            raise QkitError(f"{path} names the file {file!r}, which is not beside it: put all parts into one folder.")
        part = path.parent / file
        if not part.is_file():
            raise QkitError(f"{path} names the file {file}, which is missing: put it beside the index.")
        content = _one(part)
        if not isinstance(content, Mapping):
            raise QkitError(f"{part} holds a {type(content).__name__} and not tensors by name.")
        for name in (name for name, place in places.items() if place == file):
            if name not in content:
                raise QkitError(f"{part} has no tensor {name!r}, though {path.name} says so: one of them is of another network.")
            found[name] = content[name]
    return found
