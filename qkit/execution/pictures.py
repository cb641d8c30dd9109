"""Samples of a loader as pictures, by their number in the data: what flipped, what set a range.

Only the samples that are asked for are kept, however many the loader gives.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.errors import QkitError
from qkit.execution.loading import samples_at
from qkit.progress import track

__all__ = ["Look", "class_names", "images_of", "look_of"]

#: Pixels of a picture's longer side, beyond which it is thinned out.
_MOST_PIXELS = 192


@dataclass(frozen=True)
class Look:
    """How inputs become pictures: multiplied by `std` and added to `mean`, as numbers of a channel each.

    Without both, the least and the greatest value of every picture are black and white.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise QkitError("mean= and std= go together: give both, as the images were normalized.")

    def picture(self, sample: Tensor) -> np.ndarray | None:
        """A sample (C, H, W), or with its channels last, as uint8 (H, W, 3); None where it is not an image."""
        if sample.ndim != 3:
            return None
        values = sample.detach().cpu().double().numpy()
        if values.shape[0] > 4 and values.shape[-1] <= 4:
            values = np.moveaxis(values, -1, 0)
        values = values[:3] if len(values) >= 3 else values[:1]
        every = -(-max(values.shape[1:]) // _MOST_PIXELS)
        values = np.nan_to_num(values[:, ::every, ::every])
        if self.mean is None or self.std is None:
            least, most = float(values.min()), float(values.max())
            shown = (values - least) / max(most - least, 1e-12)
        else:
            mean, std = (_per_channel(numbers, len(values)) for numbers in (self.mean, self.std))
            shown = values * std + mean
            # pixels from 0 to 255 are normalized by numbers of that size
            shown = shown / 255.0 if max(*self.mean, *self.std) > 1.5 else shown
        pixels = (255.0 * np.clip(shown, 0.0, 1.0)).round().astype(np.uint8)
        return np.ascontiguousarray(np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1))


def _per_channel(numbers: Sequence[float], channels: int) -> np.ndarray:
    if len(numbers) not in (1, channels):
        raise QkitError(f"mean= and std= have {len(numbers)} numbers, the images have {channels} channels: give one for each.")
    return np.asarray(numbers, float).reshape(-1, 1, 1)


def look_of(loader: Any, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None) -> Look:
    """Mean and standard deviation as given, or those of the data set's own transform; else neither.

    Raises
    ------
    QkitError
        If only one of the two is given.
    """
    if mean is None and std is None:
        found = _normalization(_data_set(loader))
        return Look() if found is None else Look(*found)
    return Look(None if mean is None else _numbers(mean), None if std is None else _numbers(std))


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(float(x) for x in torch.as_tensor(values, dtype=torch.float64).flatten())


def _data_set(loader: Any) -> Any:
    """The data set itself, behind subsets of it."""
    found = getattr(loader, "dataset", loader)
    for _ in range(8):
        inner = getattr(found, "dataset", None)
        if inner is None or hasattr(found, "classes"):
            break
        found = inner
    return found


def _normalization(holder: Any, depth: int = 4) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The last mean and standard deviation in a data set's transform, such as torchvision's ``Normalize`` in a ``Compose``."""
    mean, std = getattr(holder, "mean", None), getattr(holder, "std", None)
    if mean is not None and std is not None and not callable(mean):
        return _numbers(mean), _numbers(std)
    inner = getattr(holder, "transforms", None)
    parts = list(inner) if isinstance(inner, (list, tuple)) else [inner, getattr(holder, "transform", None)]
    parts += [getattr(holder, "preprocessing", None)]
    for part in reversed(parts):
        if part is not None and depth:
            found = _normalization(part, depth - 1)
            if found is not None:
                return found
    return None


def class_names(loader: Any, given: Sequence[str] | None = None) -> tuple[str, ...]:
    """Names of the classes: those given, or the data set's own `classes`; none where there are neither."""
    names = given if given is not None else getattr(_data_set(loader), "classes", ())
    return tuple(str(name) for name in names) if isinstance(names, (list, tuple)) else ()


def images_of(
    loader: Iterable[Any], numbers: Iterable[int], look: Look, *, limit: int | None = None, progress: bool = True
) -> dict[int, np.ndarray]:
    """Pictures of the samples with these numbers, uint8 (H, W, 3); those that are no images are left out.

    The loader is read up to the last of them.

    Raises
    ------
    DataError
        If the loader ends before.
    """
    wanted = {int(number) for number in numbers}
    found: dict[int, np.ndarray] = {}
    samples = samples_at(loader, wanted, limit)
    for number, tensors in track(samples, "looking up images", unit="image", show=progress):
        first = next(iter(tensors.values()), None)
        picture = None if first is None else look.picture(first)
        if picture is not None:
            found[number] = picture
    return found
