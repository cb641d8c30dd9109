"""A network with its images: the bundled ones, split anew for every seed, or the user's own folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from qkit import zoo
from qkit.zoo.digits import CALIBRATION, EVALUATION, digits, loader
from qkit.zoo.splits import stratified_order

#: Torchvision's weights that the published figures were measured with.
IMAGENET_TAG = "IMAGENET1K_V1"
BATCH = 32


@dataclass(frozen=True, eq=False)
class Subject:
    """What a cell is computed from.

    Attributes
    ----------
    model
        In float and in evaluation mode.
    calibration, evaluation
        Loaders of pairs.
    ids
        Which image each evaluation sample is, alike for all seeds.
    train
        Images that the network was trained on, or None.
    """

    model: nn.Module
    calibration: Any
    evaluation: Any
    ids: list[Any]
    train: TensorDataset | None


@dataclass(frozen=True)
class Source:
    """Where networks and images come from.

    Attributes
    ----------
    imagenet
        A folder of images as `qkit.zoo.user_case` takes it, or None for the bundled networks and digits.
    weights
        Files by network; torchvision's own (which it downloads once) for the others.
    limit
        At most so many evaluation images.
    images
        At most so many calibration images.
    """

    imagenet: Path | None = None
    weights: Mapping[str, Path] = field(default_factory=dict)
    limit: int | None = None
    images: int = CALIBRATION

    def subject(self, network: str, seed: int) -> Subject:
        """The network with the images of that seed."""
        if self.imagenet is not None:
            return _from_folder(self, network, seed)
        calibration, evaluation, ids = splits(seed)
        return Subject(
            zoo.load(network).model,
            loader(_first(calibration, self.images)),
            loader(_first(evaluation, self.limit)),
            ids[: self.limit],
            digits().train,
        )


def splits(seed: int) -> tuple[TensorDataset, TensorDataset, list[int]]:
    """The 997 digits that no network was trained on: 256 to calibrate, 741 to evaluate, and which ones the latter are.

    Seed 0 is the split that the checkpoints' cards were measured on; others draw anew, by class, from the same 997.
    """
    shipped = digits()
    images, labels = (torch.cat(pair) for pair in zip(shipped.evaluation.tensors, shipped.calibration.tensors, strict=True))
    order = list(range(len(labels))) if seed == 0 else stratified_order(labels.tolist(), seed)
    evaluation, calibration = order[:EVALUATION], order[EVALUATION:]
    return _taken(images, labels, calibration), _taken(images, labels, evaluation), evaluation


def training_batches(train: TensorDataset, batch: int = BATCH) -> DataLoader[Any]:
    """Shuffled batches; `qkit.qat.fit` seeds the order."""
    return DataLoader(train, batch_size=batch, shuffle=True, drop_last=True, generator=torch.Generator())


def _taken(images: torch.Tensor, labels: torch.Tensor, order: Sequence[int]) -> TensorDataset:
    return TensorDataset(images[order], labels[order])


def _first(dataset: TensorDataset, count: int | None) -> TensorDataset:
    return TensorDataset(*(tensor[:count] for tensor in dataset.tensors))


def _from_folder(source: Source, network: str, seed: int) -> Subject:
    case = zoo.user_case(
        network,
        source.weights.get(network) or _torchvisions_own(network),
        source.imagenet,  # type: ignore[arg-type]
        weights_tag=IMAGENET_TAG,
        calibration_images=source.images,
        seed=seed,
    )
    evaluation = case.evaluation
    if source.limit is not None:
        dataset = torch.utils.data.Subset(evaluation.dataset, range(min(source.limit, len(evaluation.dataset))))
        evaluation = DataLoader(dataset, batch_size=evaluation.batch_size, generator=torch.Generator())
    samples = case.evaluation.dataset.samples[: source.limit]
    ids = [str(path.relative_to(source.imagenet)) for path, _ in samples]
    return Subject(case.model, case.calibration, evaluation, ids, None)


def _torchvisions_own(network: str) -> Path:
    """The file that torchvision keeps its weights in, downloaded where it is not there yet."""
    from qkit.vision import load_torchvision

    entry = load_torchvision().models.get_model_weights(network)[IMAGENET_TAG]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    file = folder / Path(entry.url).name
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(entry.url, str(file), hash_prefix=file.stem.rpartition("-")[2])
    return file
