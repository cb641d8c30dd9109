"""Read a user's weights file without running any code of it, and put it into a model."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from qkit.errors import QkitError

_WRAPPERS = ("state_dict", "model_state_dict", "model")


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or from one that ``torch.save`` wrote.

    A state dict inside ``{"state_dict": ...}``, ``{"model_state_dict": ...}`` or ``{"model": ...}`` is
    unwrapped, and the ``module.`` that DataParallel puts before every name is taken off. Files of
    ``torch.save`` are read with ``weights_only=True``: tensors and plain containers only.
    `argparse.Namespace`, in which torchvision's reference scripts keep their arguments beside the weights, is
    a plain container too and is let through.

    Returns
    -------
    dict
        Name -> tensor on the CPU.

    Raises
    ------
    QkitError
        If the file is missing, damaged, needs code to be read, or holds something other than a state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise QkitError(f"The weights file {path} does not exist.")
    state = _unwrap(_read(path))
    if not state or not isinstance(state, Mapping):
        raise QkitError(f"{path} holds no state dict but {_kind(state)}: save one with torch.save(model.state_dict(), path).")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise QkitError(f"{path} holds no state dict: its entry {name!r} is {_kind(value)}, not a tensor.")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): value for name, value in state.items()}
    return dict(state)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load `state` into `model`; both must have the same tensors in the same shapes.

    Only ``num_batches_tracked`` may be missing, which evaluation does not use.

    Raises
    ------
    QkitError
        Naming the first tensor that does not fit.
    """
    wanted = model.state_dict()
    architecture = type(model).__name__
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            found, expected = tuple(state[name].shape), tuple(tensor.shape)
            raise QkitError(f"{source}: {name} has shape {found}, but {architecture} needs {expected}.")
    missing = [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")]
    if missing:
        raise QkitError(f"{source}: {missing[0]} of {architecture} is missing{_and_more(missing)}.")
    unknown = [name for name in state if name not in wanted]
    if unknown:
        raise QkitError(f"{source}: {unknown[0]} is no tensor of {architecture}{_and_more(unknown)}.")
    model.load_state_dict(state, strict=False)


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise QkitError(
            f"{path} cannot be read as plain tensors ({str(error).splitlines()[0]}): it is damaged, or holds "
            "Python objects, whose code qkit does not run. Save model.state_dict() alone."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise QkitError(f"{path} cannot be read as weights ({type(error).__name__}: {error}).") from error


def _unwrap(content: Any) -> Any:
    if not isinstance(content, Mapping):
        return content
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}" if value is not None and not isinstance(value, Mapping) else "nothing"


def _and_more(names: list[str]) -> str:
    return f", and {len(names) - 1} more" if len(names) > 1 else ""
