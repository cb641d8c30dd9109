"""Handwritten digits as small RGB images, split for training, calibration and evaluation."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from qkit.errors import QkitError
from qkit.zoo.folders import find
from qkit.zoo.splits import stratified_order

CLASSES = tuple(str(digit) for digit in range(10))
#: Edge of the square images in pixels, after the upsampling from 8.
SIZE = 32
#: Of the scans, from 0 (paper) to 1 (ink), rounded; normalised images have values from -0.86 to 2.
MEAN, STD = 0.3, 0.35
CALIBRATION, EVALUATION = 256, 741


@dataclass(frozen=True)
class Digits:
    """The three splits; each a ``TensorDataset`` of images (float32, 3×32×32) and labels (int64)."""

    train: TensorDataset
    calibration: TensorDataset
    evaluation: TensorDataset


def digits(seed: int = 0) -> Digits:
    """Split the 1797 digits into 800 for training, 256 for calibration and 741 for evaluation.

    The images are scans of digits written by 43 people (E. Alpaydin and C. Kaynak, Optical Recognition of
    Handwritten Digits, UCI Machine Learning Repository, 1998, CC BY 4.0), 8×8 with 17 grey levels. They are
    upsampled bilinearly to 32×32, repeated on three channels, and normalised with `MEAN` and `STD`.

    Parameters
    ----------
    seed
        Of the stratified split. The checkpoints in the zoo were all trained with 0.

    Raises
    ------
    QkitError
        If their file is missing or damaged.
    """
    images, labels = _scans()
    order = torch.tensor(stratified_order(labels.tolist(), seed))
    evaluation, calibration, train = order.split([EVALUATION, CALIBRATION, len(order) - EVALUATION - CALIBRATION])
    return Digits(*(TensorDataset(images[part], labels[part]) for part in (train, calibration, evaluation)))


def loader(dataset: TensorDataset, batch_size: int = 64) -> DataLoader[Any]:
    """Batches in the data set's own order, the same in every pass."""
    # with a generator of its own: a loader without one draws from the user's global generator at every pass
    return DataLoader(dataset, batch_size=batch_size, shuffle=False, generator=torch.Generator())


def _scans() -> tuple[Tensor, Tensor]:
    file = find("digits.npz")
    if file is None:
        raise QkitError("data/digits.npz, the images of the bundled networks, is missing: restore it, or install the kit again.")
    try:
        with np.load(file, allow_pickle=False) as held:
            scans, labels = held["images"], held["labels"]
    except (OSError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise QkitError(f"{file} cannot be read ({type(error).__name__}: {error}): restore it.") from error
    grey = torch.from_numpy(scans).float().unsqueeze(1) / 16
    large = functional.interpolate(grey, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    images = ((large - MEAN) / STD).expand(-1, 3, -1, -1).contiguous()
    return images, torch.from_numpy(labels).long()
