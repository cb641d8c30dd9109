"""Build the user's own network: a torchvision architecture with a weights file, what a factory returns, or a file that is one."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qkit.errors import QkitError
from qkit.vision import load_torchvision
from qkit.zoo.preprocessing import Preprocessing
from qkit.zoo.programfile import program_path
from qkit.zoo.statefile import Chosen, StateFile, choose, load_state, read_state

logger = logging.getLogger(__name__)

FALLBACK_PRESET = "resnet50"


@dataclass(frozen=True)
class UserModel:
    """The user's network.

    Attributes
    ----------
    model
        In evaluation mode; or the path of an ``.onnx`` or ``.pt2`` file, as a study takes it.
    remarks
        What was done to read its weights, a sentence each.
    """

    model: nn.Module | Path
    remarks: tuple[str, ...] = ()


def user_model(
    model: str | Path | nn.Module,
    weights: str | Path | None,
    arguments: Mapping[str, Any] | None = None,
    *,
    weights_key: str | None = None,
) -> UserModel:
    """Build `model` and load `weights` into it, in evaluation mode.

    Parameters
    ----------
    model
        The name of a torchvision classification model, whose number of classes is read off the weights; or a
        factory as ``package.module:function``, which is imported and called; or a module that is already
        there; or an ``.onnx`` or ``.pt2`` file, which has its weights in it.
    weights
        A file as `read_state` takes it. May be ``None`` only for a factory or a module that brings its own, and for a file.
    arguments
        Keyword arguments for torchvision's builder or for the factory.
    weights_key
        Which weights of the file to take, as `choose` takes it.

    Raises
    ------
    QkitError
        If there is no such model or factory, or if the weights do not fit; the tensor is named.
    """
    if weights is None and weights_key is not None:
        raise QkitError("weights_key (--weights-key) chooses within a weights file: give that with --weights.")
    path = program_path(model)
    if path is not None:
        return _from_file(path, weights, arguments)
    file = None if weights is None else read_state(weights)
    if isinstance(model, nn.Module):
        built = model
    elif ":" in str(model):
        built = _from_factory(str(model), dict(arguments or {}))
    elif file is None:
        _check_name(str(model))
        raise QkitError(f"Give the weights file of {model}: qkit downloads none, and random weights have no accuracy.")
    else:
        built = _from_torchvision(str(model), file, weights_key, dict(arguments or {}))
    if file is None:
        return UserModel(built.eval())
    chosen = choose(file, built.state_dict(), type(built).__name__, key=weights_key)
    load_state(built, chosen)
    return UserModel(built.eval(), chosen.remarks)


def preset(name: str, tag: str | None = None) -> Preprocessing:
    """Torchvision's own preprocessing of the model `name`, from its weights' metadata; nothing is downloaded.

    Parameters
    ----------
    name
        Of a torchvision classification model.
    tag
        Which of its weights, such as ``"IMAGENET1K_V1"``; ``None`` takes torchvision's default.

    Raises
    ------
    QkitError
        If there is no such model or entry.
    """
    transforms: Preprocessing = _entry(name, tag).transforms()
    return transforms


def categories(name: str, tag: str | None = None) -> tuple[str, ...]:
    """Class names in torchvision's metadata of the model `name`, in the order of its outputs."""
    return tuple(_entry(name, tag).meta.get("categories", ()))


def is_torchvision(model: str | Path | nn.Module) -> bool:
    """Whether `model` is a name rather than a factory, a file or a module."""
    return isinstance(model, str) and ":" not in model and program_path(model) is None


def _entry(name: str, tag: str | None) -> Any:
    models = load_torchvision().models
    _check_name(name)
    entries = models.get_model_weights(name)
    known = [entry.name for entry in entries]
    if tag is None and known:
        chosen = entries.DEFAULT
        logger.info("%s: preprocessing of torchvision's %s; weights_tag chooses among %s.", name, chosen.name, known)
        return chosen
    if tag not in known:
        raise QkitError(f"torchvision has no weights {tag!r} of {name}; it has {', '.join(known) or 'none'}.")
    return entries[tag]


def _check_name(name: str) -> None:
    models = load_torchvision().models
    known = models.list_models(module=models)
    if name not in known:
        close = difflib.get_close_matches(name, known, n=5)
        where = f"; did you mean {', '.join(close)}?" if close else ", and none with a name like that."
        raise QkitError(
            f"torchvision has no classification model {name!r}{where} "
            "A model of your own is given as package.module:function, or as an .onnx or .pt2 file."
        )


def _from_file(path: Path, weights: str | Path | None, arguments: Mapping[str, Any] | None) -> UserModel:
    for name, given in (("weights", weights), ("argument", arguments)):
        if given:
            raise QkitError(f"--{name} does not go with {path}: the file is a network with its weights.")
    return UserModel(path)


def _from_torchvision(name: str, file: StateFile, key: str | None, arguments: dict[str, Any]) -> nn.Module:
    _check_name(name)
    if "num_classes" not in arguments:
        arguments["num_classes"] = _count_classes(name, file, key, arguments)
    with torch.random.fork_rng(devices=[]):
        return _call(name, arguments)


def _count_classes(name: str, file: StateFile, key: str | None, arguments: dict[str, Any]) -> int:
    # the classifier's tensors are those whose shape depends on the number of classes; "meta" takes no memory
    with torch.device("meta"):
        built = [_call(name, {**arguments, "num_classes": n}) for n in (10, 11)]
    wanted, other = (network.state_dict() for network in built)
    classifier = [tensor for tensor in wanted if wanted[tensor].shape != other[tensor].shape]
    chosen: Chosen = choose(file, wanted, type(built[0]).__name__, key=key, free=classifier)
    return chosen.tensors[classifier[-1]].shape[0]


def _call(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        model: nn.Module = load_torchvision().models.get_model(name, weights=None, **arguments)
    except (TypeError, ValueError) as error:
        raise QkitError(f"torchvision does not build {name} with the arguments {arguments}: {error}.") from error
    return model


def _from_factory(path: str, arguments: dict[str, Any]) -> nn.Module:
    module_name, _, function = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), function)
    except Exception as error:  # whatever the user's module does while it is imported
        raise QkitError(f"The model factory {path} cannot be imported: {error}.") from error
    try:
        model = factory(**arguments)
    except Exception as error:
        raise QkitError(f"The model factory {path} failed: {type(error).__name__}: {error}.") from error
    if not isinstance(model, nn.Module):
        raise QkitError(f"The model factory {path} returned a {type(model).__name__}, not a torch.nn.Module.")
    return model
