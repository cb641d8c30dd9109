"""From a picture to a network's input: size, channels, range, normalization and layout."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qkit.errors import QkitError
from qkit.zoo.programfile import Shape, shown

logger = logging.getLogger(__name__)

#: Turns a PIL image into the model's input, a float tensor (3, H, W).
Preprocessing = Callable[[Any], Tensor]
Layout = Literal["nchw", "nhwc"]
Channels = Literal["rgb", "bgr", "gray"]
#: Mean and deviation of ImageNet's pictures, red, green and blue from 0 to 1, which most published networks are trained with.
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class ImageOptions:
    """How pictures are prepared, as far as the user says it; None for what is not said.

    Attributes
    ----------
    size
        Height and width: 224, "224", "224x320" or (224, 320).
    mean, std
        Subtracted from the values and dividing them: one number or one per channel, as numbers or as "0.485,0.456,0.406". In
        units of 0 to 1, and of 0 to 255 with that `pixel_range`; in the order of `channels`.
    pixel_range
        1 or 255: what white is, before `mean` and `std`.
    layout
        "nchw", or "nhwc" for a network that takes (images, height, width, channels).
    channels
        "rgb", "bgr" or "gray".
    """

    size: int | str | Sequence[int] | None = None
    mean: float | str | Sequence[float] | None = None
    std: float | str | Sequence[float] | None = None
    pixel_range: int | None = None
    layout: Layout | None = None
    channels: Channels | None = None

    @property
    def given(self) -> bool:
        """Whether anything is said."""
        return any(getattr(self, item.name) is not None for item in fields(self))


@dataclass(frozen=True)
class Prepared:
    """A preprocessing in numbers; calling it on a PIL image gives the float tensor.

    The picture is resized so that it just covers `size` times `zoom`, and its middle of that `size` is cut out.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pixel_range: int = 1
    layout: Layout = "nchw"
    channels: Channels = "rgb"
    zoom: float = 1.0
    interpolation: str = "bilinear"

    def __call__(self, image: Image.Image) -> Tensor:
        picture = self._cut(image.convert("L" if self.channels == "gray" else "RGB"))
        values = torch.from_numpy(np.asarray(picture).copy()).reshape(*self.size, -1).permute(2, 0, 1).contiguous()
        if self.channels == "bgr":
            values = values.flip(0)
        values = values.float() if self.pixel_range == 255 else values.float() / 255
        mean, std = (torch.tensor(numbers).reshape(-1, 1, 1) for numbers in (self.mean, self.std))
        values = (values - mean) / std
        return values.permute(1, 2, 0).contiguous() if self.layout == "nhwc" else values

    def _cut(self, image: Image.Image) -> Image.Image:
        (width, height), (rows, columns) = image.size, self.size
        least = (round(rows * self.zoom), round(columns * self.zoom))
        # in whole numbers as torchvision has them: the side that just covers is exact, the other is cut down
        if least[0] * width >= least[1] * height:
            new = (max(least[1], int(least[0] * width / height)), least[0])
        else:
            new = (least[1], max(least[0], int(least[1] * height / width)))
        if new != image.size:
            image = image.resize(new, Image.Resampling[self.interpolation.upper()])
        left, top = round((new[0] - columns) / 2), round((new[1] - rows) / 2)
        return image.crop((left, top, left + columns, top + rows))


def from_preset(preset: Any, options: ImageOptions, shape: Shape | None, name: str) -> Preprocessing:
    """Torchvision's preprocessing of a model with the parts that are given, or that a file says, in place of its own.

    Parameters
    ----------
    shape, name
        As `from_options` takes them.

    Raises
    ------
    QkitError
        As `from_options` raises it.
    """
    if not options.given and shape is None:
        made: Preprocessing = preset
        return made
    crop, resized = preset.crop_size[0], preset.resize_size[0]
    layout, channels, fixed = _checked(options, shape, name)
    pixel_range = _range(options)
    mean, std = (tuple(numbers) for numbers in (preset.mean, preset.std))
    if channels == "bgr":
        mean, std = mean[::-1], std[::-1]
    if pixel_range == 255:
        mean, std = tuple(255 * m for m in mean), tuple(255 * s for s in std)
    given = _normalization(options, channels, pixel_range)
    if given is None and channels == "gray":
        raise QkitError("gray images need a mean and a std of one number (--mean, --std): the preset's are of three channels.")
    size = fixed or (crop, crop)
    mean, std = given or (mean, std)
    return Prepared(size, mean, std, pixel_range, layout, channels, resized / crop, preset.interpolation.value)


def from_options(options: ImageOptions, shape: Shape | None, name: str) -> Prepared:
    """The preprocessing that the options say, with what a file says of its input.

    Parameters
    ----------
    shape
        Of the network's input, where known.
    name
        Of the network, for errors.

    Raises
    ------
    QkitError
        If a size is neither given nor known, or if an option contradicts the file, another option, or is none that there is.
    """
    layout, channels, size = _checked(options, shape, name)
    if size is None:
        says = "does not say what size its images have" if shape is None else f"takes images of any size ({shown(shape)})"
        raise QkitError(f"{name} {says}: give size (--size), such as 224 or 224x320 for height and width.")
    pixel_range = _range(options)
    normalization = _normalization(options, channels, pixel_range) or _assumed(channels, pixel_range, name)
    return Prepared(size, *normalization, pixel_range, layout, channels)


def _checked(options: ImageOptions, shape: Shape | None, name: str) -> tuple[Layout, Channels, tuple[int, int] | None]:
    """Layout, channels and size, as far as options and file say it; the two have to agree."""
    _check_choices(options)
    layout = options.layout or _guessed_layout(shape)
    rows, columns, count = (None, None, None) if shape is None else _parts(shape, layout)
    channels = _channels(options, count, name, shape, layout)
    if options.size is None:
        return layout, channels, None if rows is None or columns is None else (rows, columns)
    size = _size(options.size)
    if any(known not in (None, given) for known, given in zip((rows, columns), size, strict=True)):
        raise QkitError(f"{name} takes {shown(shape or ())} ({layout}), and size (--size) says {size[0]} x {size[1]}.")
    return layout, channels, size


def _assumed(channels: Channels, pixel_range: int, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if pixel_range == 255:
        return (0.0,), (1.0,)
    if channels == "gray":
        logger.warning(
            "No mean and std were given for %s: values are 0 to 1 as they are. Give --mean and --std if it has others.", name
        )
        return (0.0,), (1.0,)
    logger.warning(
        "No mean and std were given for %s: ImageNet's are used. Give --mean and --std if it was trained with others; "
        "--mean 0 --std 1 for values from 0 to 1.",
        name,
    )
    mean, std = IMAGENET
    return (mean[::-1], std[::-1]) if channels == "bgr" else (mean, std)


def _size(given: int | str | Sequence[int]) -> tuple[int, int]:
    if isinstance(given, str):
        found = re.fullmatch(r"\s*(\d+)\s*(?:[xX,]\s*(\d+)\s*)?", given)
        numbers = [int(n) for n in found.groups() if n is not None] if found else []
    else:
        numbers = [given] if isinstance(given, int) else list(given)
    if len(numbers) not in (1, 2) or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise QkitError(f"size (--size) {given!r} is neither a side such as 224 nor height x width such as 224x320.")
    return numbers[0], numbers[-1]


def _numbers(name: str, given: float | str | Sequence[float], channels: Channels) -> tuple[float, ...]:
    try:
        parts = (
            given.replace(",", " ").split() if isinstance(given, str) else [given] if isinstance(given, (int, float)) else given
        )
        numbers = tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise QkitError(f"{name} (--{name}) {given!r} is not a number, or one per channel such as 0.485,0.456,0.406.") from error
    count = 1 if channels == "gray" else 3
    if len(numbers) not in (1, count) or not all(np.isfinite(numbers)):
        raise QkitError(
            f"{name} (--{name}) {given!r} is not one number{'' if count == 1 else ' or three'}, for {channels} images."
        )
    return numbers


def _normalization(
    options: ImageOptions, channels: Channels, pixel_range: int
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and deviation; None if neither is given."""
    if options.mean is None and options.std is None:
        return None
    if options.mean is None or options.std is None:
        raise QkitError("mean and std (--mean, --std) go together: give both, --mean 0 or --std 1 for one that changes nothing.")
    mean, std = _numbers("mean", options.mean, channels), _numbers("std", options.std, channels)
    if min(std) <= 0:
        raise QkitError(f"std (--std) {options.std!r} is not above 0: values are divided by it.")
    if pixel_range == 1 and max(*map(abs, mean), *std) > 1:
        raise QkitError(
            f"mean {options.mean!r} and std {options.std!r} have a number above 1, but values are 0 to 1: divide them by 255, or "
            "add --range 255 (pixel_range=255) if the network takes 0 to 255."
        )
    if pixel_range == 255 and (any(0 < abs(m) < 1 for m in mean) or min(std) < 1):
        raise QkitError(
            f"mean {options.mean!r} and std {options.std!r} have a number below 1, but values are 0 to 255 with --range 255: "
            "multiply them by 255, or leave out --range."
        )
    return mean, std


def _range(options: ImageOptions) -> int:
    if options.pixel_range not in (None, 1, 255):
        raise QkitError(f"pixel_range (--range) {options.pixel_range!r} is neither 1 nor 255: it is what white is.")
    return options.pixel_range or 1


def _check_choices(options: ImageOptions) -> None:
    for name, given, known in (
        ("layout", options.layout, ("nchw", "nhwc")), ("channels", options.channels, ("rgb", "bgr", "gray")),
    ):  # fmt: skip
        if given not in (None, *known):
            raise QkitError(f"{name} (--{name}) {given!r} is none of {', '.join(known)}.")


def _guessed_layout(shape: Shape | None) -> Layout:
    # a file says its sizes and not which of them are channels; those of images are one or three
    return "nhwc" if shape is not None and shape[3] in (1, 3) and shape[1] not in (1, 3) else "nchw"


def _parts(shape: Shape, layout: Layout) -> tuple[int | None, int | None, int | None]:
    """Height, width and channels."""
    return (shape[2], shape[3], shape[1]) if layout == "nchw" else (shape[1], shape[2], shape[3])


def _channels(options: ImageOptions, count: int | None, name: str, shape: Shape | None, layout: Layout) -> Channels:
    if count not in (None, 1, 3):
        raise QkitError(
            f"{name} takes {count} channels ({shown(shape or ())}, {layout}), images have 1 or 3: say --layout if that is "
            "another one, or give loaders."
        )
    channels: Channels = options.channels or ("gray" if count == 1 else "rgb")
    if count is not None and count != (1 if channels == "gray" else 3):
        raise QkitError(f"{name} takes {count} channel{'s' if count > 1 else ''}, and channels (--channels) says {channels}.")
    return channels
