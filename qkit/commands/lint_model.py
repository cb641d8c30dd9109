"""What ``qkit lint`` looks at: a model by name, and a batch of noise of the size that it takes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from qkit.errors import QkitError

#: Of the bundled networks, and of all others where nothing else is said.
BUNDLED_SIZE, DEFAULT_SIZE = "1x3x32x32", "1x3x224x224"


def model_and_batch(
    model: str, weights: Path | None = None, input_size: str | None = None, *, weights_key: str | None = None
) -> tuple[nn.Module, Tensor, bool]:
    """The model that `model` names, a batch for it, and whether its weights are trained ones.

    Parameters
    ----------
    model
        A bundled network's name, a torchvision name, ``package.module:function`` that makes the model, or an ``.onnx`` or
        ``.pt2`` file.
    weights
        A checkpoint; without one, a torchvision network gets random weights.
    input_size
        Such as "1x3x224x224", batch first; the bundled networks' own, the file's, or `DEFAULT_SIZE` if None.
    weights_key
        Which weights of a checkpoint with several to take.

    Raises
    ------
    QkitError
        If there is no such model, or if `input_size` is no size.
    """
    from qkit import zoo
    from qkit.graph.door.model_files import network as opened
    from qkit.zoo.programfile import program_path
    from qkit.zoo.usermodel import categories, is_torchvision, user_model

    bundled = model in zoo.names()
    file = program_path(model)
    usual = BUNDLED_SIZE if bundled else DEFAULT_SIZE if file is None else _size_of(file, input_size)
    size = _size(input_size or usual)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = torch.rand(size)
        if bundled and weights is None:
            made = zoo.load(model).model
            assert isinstance(made, nn.Module)
            return made, batch, True
        if weights is None and is_torchvision(model):
            categories(model)  # refuses a name that there is not, and says which come near
            built: nn.Module = zoo.load_torchvision().models.get_model(model, weights=None)
            return built.eval(), batch, False
        made = user_model(zoo.build(model) if bundled else model, weights, weights_key=weights_key).model
        return made if isinstance(made, nn.Module) else opened(made, (batch,)), batch, True


def _size_of(file: Path, given: str | None) -> str:
    """The shape that a file says of its input, with one image where the number of them is free."""
    from qkit.zoo.programfile import shown, signature

    if given is not None:
        return given
    inputs = signature(file).inputs
    if len(inputs) != 1 or inputs[0] is None or not all(inputs[0][1:]):
        says = "does not say" if not inputs or None in inputs else "has inputs of " + " and ".join(shown(s) for s in inputs if s)
        raise QkitError(f"{file} {says} what size its input has: give --input-size, such as {DEFAULT_SIZE}.")
    return "x".join(str(size or 1) for size in inputs[0])


def _size(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise QkitError(f"--input-size {text!r} is no size: give the batch's shape, such as {DEFAULT_SIZE}.")
    return tuple(int(n) for n in text.split("x"))
