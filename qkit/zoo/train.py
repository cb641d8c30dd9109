"""Train the zoo's checkpoints on the digits, reproducibly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from tqdm.auto import tqdm

from qkit.errors import QkitError
from qkit.zoo.digits import digits, loader
from qkit.zoo.models import build

_OPTIMIZERS = ("sgd", "adam", "adamw")


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint is made; the fields are written to its card.

    Parameters
    ----------
    epochs, batch_size
        Passes over the training images, and images a step.
    optimizer
        ``"sgd"`` (Nesterov momentum 0.9), ``"adam"``, or ``"adamw"``, which is Adam with the decay apart from the gradient.
    learning_rate
        At the start; a cosine schedule takes it to 0.
    weight_decay
        L2 penalty on every parameter, depthwise weights, biases and batch norm included.
    """

    epochs: int = 30
    batch_size: int = 32
    optimizer: str = "sgd"
    learning_rate: float = 0.03
    weight_decay: float = 1e-3


_TRANSFORMER = Recipe(optimizer="adamw", learning_rate=2e-3, weight_decay=0.05)

#: Name of a checkpoint -> how the one that is shipped was made, with seed 0.
RECIPES: dict[str, Recipe] = {
    "mobilenet_v2_lite": Recipe(),
    "mobilenet_v2_hostile": Recipe(optimizer="adam", learning_rate=0.03, weight_decay=0.0),
    "resnet_small": Recipe(),
    "vgg_small": Recipe(),
    "inception_small": Recipe(),
    "deit_small": _TRANSFORMER,
    "swin_small": _TRANSFORMER,
    "mobilevit_small": _TRANSFORMER,
}


def train(name: str, seed: int = 0, recipe: Recipe | None = None, samples: int | None = None) -> nn.Module:
    """Train `name` from random weights; the same seed, versions and kind of CPU give the same weights.

    Runs on one thread, because the order of a sum depends on the number of threads, and leaves torch's thread
    count and global random generator as they were.

    Parameters
    ----------
    name
        One of `qkit.zoo.names`.
    seed
        Of weights, order of the batches and dropout. The split of the digits does not depend on it.
    recipe
        Instead of the one in `RECIPES`.
    samples
        Only the first so many training images, for a quick trial.

    Returns
    -------
    nn.Module
        In evaluation mode.

    Raises
    ------
    QkitError
        If the name or the recipe's optimizer is not known.
    """
    model = build(name, seed)
    recipe = recipe or RECIPES[name]
    images, labels = (tensor[:samples] for tensor in digits().train.tensors)
    with _single_threaded(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _fit(model, TensorDataset(images, labels), recipe, torch.Generator().manual_seed(seed), name)
    model.eval()
    return model


def scores(model: nn.Module) -> dict[str, float]:
    """Top-1 of `model` on the three splits of the digits, as fractions."""
    splits = digits()
    return {split: top1(model, getattr(splits, split)) for split in ("train", "calibration", "evaluation")}


@torch.no_grad()
def top1(model: nn.Module, dataset: TensorDataset) -> float:
    """Fraction of `dataset` that `model`, which has to be in evaluation mode, puts into the right class."""
    hits: list[Tensor] = [model(inputs).argmax(1) == targets for inputs, targets in loader(dataset)]
    return torch.cat(hits).double().mean().item()


def with_epochs(name: str, epochs: int | None) -> Recipe:
    """The recipe of `name`, with another number of epochs if one is given."""
    if name not in RECIPES:
        raise QkitError(f"There is no recipe for {name!r}; there are {', '.join(RECIPES)}.")
    return RECIPES[name] if epochs is None else replace(RECIPES[name], epochs=epochs)


def _fit(model: nn.Module, dataset: TensorDataset, recipe: Recipe, order: torch.Generator, name: str) -> None:
    # the last, smaller batch is dropped: batch norm's statistics of a handful of images are noise
    batches: DataLoader[Any] = DataLoader(dataset, batch_size=recipe.batch_size, shuffle=True, drop_last=True, generator=order)
    if len(batches) == 0:
        raise QkitError(f"{len(dataset)} training images do not fill one batch of {recipe.batch_size}: take more.")
    optimizer = _optimizer(model, recipe)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(batches))
    model.train()
    progress = tqdm(range(recipe.epochs), desc=name, unit="epoch")
    for _ in progress:
        for inputs, targets in batches:
            optimizer.zero_grad()
            loss = functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            schedule.step()
        progress.set_postfix(loss=f"{loss.item():.4f}")


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    raise QkitError(f"The recipe's optimizer {recipe.optimizer!r} is not one of {', '.join(_OPTIMIZERS)}.")


@contextmanager
def _single_threaded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
