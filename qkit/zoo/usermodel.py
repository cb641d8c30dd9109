"""Build the user's own network: a torchvision architecture with a weights file, or what a factory returns."""

from __future__ import annotations

import difflib
import importlib
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qkit.errors import QkitError
from qkit.zoo.statefile import load_state, read_state
from qkit.zoo.vision import load_torchvision

logger = logging.getLogger(__name__)

#: Turns a PIL image into the model's input, a float tensor (3, H, W).
Preprocessing = Callable[[Any], Tensor]

FALLBACK_PRESET = "resnet50"


def user_model(model: str | nn.Module, weights: str | Path | None, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Build `model` and load `weights` into it, in evaluation mode.

    Parameters
    ----------
    model
        The name of a torchvision classification model, whose number of classes is read off the weights; or a
        factory as ``package.module:function``, which is imported and called; or a module that is already
        there.
    weights
        A file as `read_state` takes it. May be ``None`` only for a factory or a module that brings its own.
    arguments
        Keyword arguments for torchvision's builder or for the factory.

    Raises
    ------
    QkitError
        If there is no such model or factory, or if the weights do not fit; the tensor is named.
    """
    state = None if weights is None else read_state(weights)
    source = str(weights)
    if isinstance(model, nn.Module):
        built = model
    elif ":" in model:
        built = _from_factory(model, dict(arguments or {}))
    elif state is None:
        raise QkitError(f"Give the weights file of {model}: qkit downloads none, and random weights have no accuracy.")
    else:
        built = _from_torchvision(model, state, source, dict(arguments or {}))
    if state is not None:
        load_state(built, state, source)
    return built.eval()


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


def is_torchvision(model: str | nn.Module) -> bool:
    """Whether `model` is a name rather than a factory or a module."""
    return isinstance(model, str) and ":" not in model


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
        close = difflib.get_close_matches(name, known, n=5) or known
        raise QkitError(
            f"torchvision has no classification model {name!r}; it has {', '.join(close)}. "
            "A model of your own is given as package.module:function."
        )


def _from_torchvision(name: str, state: Mapping[str, Tensor], source: str, arguments: dict[str, Any]) -> nn.Module:
    _check_name(name)
    arguments.setdefault("num_classes", _count_classes(name, state, source, arguments))
    with torch.random.fork_rng(devices=[]):
        return _call(name, arguments)


def _count_classes(name: str, state: Mapping[str, Tensor], source: str, arguments: dict[str, Any]) -> int:
    # the classifier's tensors are those whose shape depends on the number of classes; "meta" takes no memory
    with torch.device("meta"):
        shapes = [
            {key: tensor.shape for key, tensor in _call(name, {**arguments, "num_classes": n}).state_dict().items()}
            for n in (10, 11)
        ]
    classifier = [key for key in shapes[0] if shapes[0][key] != shapes[1][key]]
    for key in classifier:
        if key in state and state[key].ndim == len(shapes[0][key]):
            return state[key].shape[0]
    raise QkitError(f"{source} has no {classifier[-1]}, the last layer of {name}: it holds another model's weights.")


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
