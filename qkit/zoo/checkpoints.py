"""Checkpoints on disk: ``<name>.safetensors`` with the weights and ``<name>.json``, the card about them."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from qkit import files
from qkit.errors import QkitError
from qkit.zoo import folders
from qkit.zoo.case import Case
from qkit.zoo.digits import CLASSES, digits, loader
from qkit.zoo.models import build, names


def load(name: str, batch_size: int = 64) -> Case:
    """Load a trained checkpoint of the zoo with its calibration and evaluation digits.

    Parameters
    ----------
    name
        One of `qkit.zoo.names`.
    batch_size
        Images a batch, of both loaders.

    Raises
    ------
    QkitError
        If there is no such name (the known ones are listed), or if its files are missing or damaged.
    """
    model = build(name)
    weights = _find(name)
    card = read_card(weights.with_suffix(".json"))
    try:
        with files.explained(weights, "read"):
            model.load_state_dict(safetensors.torch.load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise QkitError(
            f"{weights} does not hold the weights of {name} ({error}): make it again with `python -m qkit.zoo train {name}`."
        ) from error
    model.eval()
    splits = digits()
    return Case(
        name=name,
        model=model,
        calibration=loader(splits.calibration, batch_size),
        evaluation=loader(splits.evaluation, batch_size),
        expected=card["scores"]["evaluation"],
        classes=CLASSES,
        description=card["description"],
    )


def save(model: nn.Module, name: str, card: dict[str, Any], folder: Path) -> Path:
    """Write `model`'s weights and its card into `folder`; returns the weights' path."""
    weights = folder / f"{name}.safetensors"
    stored = safetensors.torch.save({key: tensor.contiguous() for key, tensor in model.state_dict().items()})
    files.write_bytes(weights, stored, parents=True)
    files.write_text(weights.with_suffix(".json"), json.dumps(card, indent=2) + "\n")
    return weights


def read_card(path: Path) -> dict[str, Any]:
    """Read a checkpoint's card; a damaged or incomplete one is a `QkitError`."""
    card: dict[str, Any] = files.read_json(path, "a checkpoint's card", cure="Restore it.")
    try:
        float(card["scores"]["evaluation"]), str(card["description"])
    except (ValueError, KeyError, TypeError) as error:
        raise QkitError(f"The card {path} cannot be read ({type(error).__name__}: {error}): restore it.") from error
    return card


def versions() -> dict[str, str]:
    """Versions of the packages that a checkpoint's weights depend on."""
    return {package: version(package) for package in ("torch", "torchvision", "numpy")}


def _find(name: str) -> Path:
    path = folders.find(f"{name}.safetensors")
    if path is not None:
        return path
    looked = " or ".join(str(folder) for folder in folders.FOLDERS)
    raise QkitError(
        f"The weights of {name} are not in {looked}: train them with "
        f"`python -m qkit.zoo train {name} --out {folders.FOLDERS[1]}`. "
        f"The zoo has {', '.join(names())}."
    )
