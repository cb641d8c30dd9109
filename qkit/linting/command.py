"""What ``qkit lint`` looks at: a model by name, and a batch of noise of the size that it takes."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from qkit.errors import QkitError

#: Of the bundled networks, and of all others where nothing else is said.
BUNDLED_SIZE, DEFAULT_SIZE = "1x3x32x32", "1x3x224x224"


def model_and_batch(model: str, weights: Path | None = None, input_size: str | None = None) -> tuple[nn.Module, Tensor, bool]:
    """The model that `model` names, a batch for it, and whether its weights are trained ones.

    Parameters
    ----------
    model
        A bundled network's name, a torchvision name, or ``package.module:function`` that makes the model.
    weights
        A state dict; without one, a torchvision network gets random weights.
    input_size
        Such as "1x3x224x224", batch first; the bundled networks' own or `DEFAULT_SIZE` if None.

    Raises
    ------
    QkitError
        If there is no such model, or if `input_size` is no size.
    """
    from qkit import zoo
    from qkit.zoo.usermodel import categories, is_torchvision, user_model

    bundled = model in zoo.names()
    size = _size(input_size or (BUNDLED_SIZE if bundled else DEFAULT_SIZE))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        batch = torch.rand(size)
        if bundled and weights is None:
            return zoo.load(model).model, batch, True
        if weights is None and is_torchvision(model):
            categories(model)  # refuses a name that there is not, and says which come near
            built: nn.Module = zoo.load_torchvision().models.get_model(model, weights=None)
            return built.eval(), batch, False
        return user_model(zoo.build(model) if bundled else model, weights), batch, True


def _size(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", text):
        raise QkitError(f"--input-size {text!r} is no size: give the batch's shape, such as {DEFAULT_SIZE}.")
    return tuple(int(n) for n in text.split("x"))
