"""The user's own case: a model with its weights file, and a folder of labelled images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from qkit.errors import DataError, QkitError
from qkit.zoo.case import Case
from qkit.zoo.classes import map_folders, read_classes
from qkit.zoo.splits import stratified_order
from qkit.zoo.usermodel import FALLBACK_PRESET, Preprocessing, categories, is_torchvision, preset, user_model
from qkit.zoo.vision import load_torchvision

logger = logging.getLogger(__name__)

_EVALUATION_FOLDERS = ("val", "evaluation", "validation")
_CALIBRATION_FOLDERS = ("train", "calibration")

#: An image's path and the name of the class folder that it lies in.
Sample = tuple[Path, str]


def user_case(
    model: str | nn.Module,
    weights: str | Path | None,
    data: str | Path,
    *,
    classes: str | Path | Sequence[str] | None = None,
    calibration_data: str | Path | None = None,
    weights_tag: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    expected: float | None = None,
    batch_size: int = 32,
    calibration_images: int = 256,
    limit: int | None = None,
    seed: int = 0,
) -> Case:
    """Make a `Case` of a model, a weights file and a folder of images.

    Nothing is downloaded, and no pickled code is run.

    Parameters
    ----------
    model
        A torchvision classification model such as ``"resnet50"``, a factory ``"package.module:function"``, or
        a module.
    weights
        A state dict: ``.safetensors``, or a file of ``torch.save``. ``None`` only if the factory or module
        brings its own.
    data
        A folder with one folder of images per class. If it has a ``val``, ``validation`` or ``evaluation``
        folder of classes, that one is evaluated on, and its ``train`` or ``calibration`` folder calibrates;
        else its images are split.
    classes
        Names of the model's outputs in order, as `read_classes` takes them, if they are not the folders'
        names in alphabetical order.
    calibration_data
        Another folder of classes to calibrate with.
    weights_tag
        Which torchvision weights' preprocessing and class names to use, such as ``"IMAGENET1K_V1"``.
    preprocessing
        Makes a float tensor (3, H, W) of a PIL image; or the name of the torchvision model whose
        preprocessing to take. ``None``: the one of `model`, or of resnet50 for a factory or a module.
    model_arguments
        Keyword arguments for the builder or factory, such as ``{"transform_input": True}``, which
        torchvision's own weights of googlenet and inception_v3 were trained with.
    expected
        The float top-1, as a fraction, that the model is known to have on these images.
    batch_size
        Images a batch, of both loaders.
    calibration_images
        At most so many images calibrate, and no more than a quarter of them where one folder is split.
    limit
        At most so many images in either loader: a stratified, seeded choice.
    seed
        Of the split and the choice.

    Raises
    ------
    QkitError
        Naming the file, tensor or class that is missing or does not fit. An unreadable image raises it when
        its batch is loaded.
    """
    _check_positive(batch_size=batch_size, calibration_images=calibration_images, limit=limit)
    network = user_model(model, weights, model_arguments)
    transform = _preprocessing(model, preprocessing, weights_tag)
    calibration, evaluation = _samples(Path(data), calibration_data, calibration_images, seed)
    calibration, evaluation = calibration[:limit], evaluation[:limit]

    outputs = _count_outputs(network, _load(evaluation[0][0], transform))
    folders = sorted({folder for _, folder in (*calibration, *evaluation)})
    known = None if classes is None else read_classes(classes)
    metadata = categories(model, weights_tag) if isinstance(model, str) and is_torchvision(model) else ()
    mapping, names = map_folders(folders, outputs, known, metadata)

    loaders = [
        DataLoader(
            Images([(path, mapping[folder]) for path, folder in part], transform),
            batch_size=batch_size,
            generator=torch.Generator(),  # else each pass would draw from the user's global one
        )
        for part in (calibration, evaluation)
    ]
    name = model if isinstance(model, str) else type(model).__name__
    return Case(
        name=name,
        model=network,
        calibration=loaders[0],
        evaluation=loaders[1],
        expected=expected,
        classes=names,
        description=f"{name} with the weights {weights} on {len(evaluation)} images of {data}; "
        f"{len(calibration)} others calibrate.",
    )


class Images(Dataset[tuple[Tensor, int]]):
    """Images from files: ``dataset[i]`` is the preprocessed image (3, H, W) and its class.

    Parameters
    ----------
    samples
        Paths and classes.
    transform
        Makes a float tensor of a PIL image in RGB.
    """

    def __init__(self, samples: Sequence[tuple[Path, int]], transform: Preprocessing) -> None:
        self.samples = list(samples)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return _load(path, self.transform), label


def _load(path: Path, transform: Preprocessing) -> Tensor:
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"The image {path} cannot be read ({error}): repair or remove it.") from error
    return transform(rgb)


def _preprocessing(model: str | nn.Module, chosen: str | Preprocessing | None, tag: str | None) -> Preprocessing:
    if chosen is not None and not isinstance(chosen, str):
        return chosen
    if chosen is not None:
        return preset(chosen, tag)
    if isinstance(model, str) and is_torchvision(model):
        return preset(model, tag)
    logger.warning(
        "No preprocessing was given for a model that is not torchvision's: that of %s is used. "
        "Pass preprocessing= if the model was trained with another one.",
        FALLBACK_PRESET,
    )
    return preset(FALLBACK_PRESET, tag)


def _samples(
    data: Path, calibration_data: str | Path | None, calibration_images: int, seed: int
) -> tuple[list[Sample], list[Sample]]:
    """Calibration and evaluation images, each in a stratified order."""
    evaluation_folder = _split_folder(data, _EVALUATION_FOLDERS)
    calibration_folder = Path(calibration_data) if calibration_data is not None else _split_folder(data, _CALIBRATION_FOLDERS)
    if evaluation_folder is None and calibration_data is None:
        # one folder for both; a lone `train` folder is that one folder
        return _split(calibration_folder or data, calibration_images, seed)
    if calibration_folder is None:
        return _split(evaluation_folder or data, calibration_images, seed)
    calibration = _ordered(calibration_folder, seed)[:calibration_images]
    evaluation = _ordered(evaluation_folder or data, seed)
    if {path.resolve() for path, _ in calibration} & {path.resolve() for path, _ in evaluation}:
        raise DataError(f"{calibration_folder} and {evaluation_folder or data} share images: calibrate on other ones.")
    logger.info(
        "%d images of %s calibrate, %d of %s evaluate.",
        len(calibration),
        calibration_folder,
        len(evaluation),
        evaluation_folder or data,
    )
    return calibration, evaluation


def _split(folder: Path, calibration_images: int, seed: int) -> tuple[list[Sample], list[Sample]]:
    samples = _ordered(folder, seed)
    count = min(calibration_images, len(samples) // 4)
    if count == 0:
        raise DataError(f"{folder} has {len(samples)} images, too few to split: 4 are the least, hundreds make sense.")
    logger.info(
        "%s has no folders of its own for calibration and evaluation: a stratified choice (seed %d) of %d of "
        "its images calibrates and the other %d evaluate.",
        folder,
        seed,
        count,
        len(samples) - count,
    )
    return samples[:count], samples[count:]


def _ordered(folder: Path, seed: int) -> list[Sample]:
    samples = _scan(folder)
    folders = sorted({name for _, name in samples})
    order = stratified_order([folders.index(name) for _, name in samples], seed)
    return [samples[i] for i in order]


def _scan(root: Path) -> list[Sample]:
    if not root.is_dir():
        raise DataError(f"The image folder {root} does not exist.")
    folders = _subfolders(root)
    if not folders:
        raise DataError(f"{root} has no class folders: put the images of each class into a folder of its own.")
    extensions = load_torchvision().datasets.folder.IMG_EXTENSIONS
    samples: list[Sample] = []
    for folder in folders:
        images = sorted(
            path
            for path in folder.rglob("*")
            # notebook checkpoints and the shadow files of other systems are no images
            if path.suffix.lower() in extensions and not any(p.startswith(".") for p in path.relative_to(root).parts)
        )
        if not images:
            raise DataError(f"The class folder {folder} has no images ({', '.join(extensions)}): fill it or remove it.")
        samples += [(path, folder.name) for path in images]
    return samples


def _split_folder(root: Path, names: Sequence[str]) -> Path | None:
    # "train" may also be a class, whose folder holds images and no further folders
    return next((root / name for name in names if (root / name).is_dir() and _subfolders(root / name)), None)


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


@torch.no_grad()
def _count_outputs(model: nn.Module, image: Tensor) -> int:
    try:
        output = model(image.unsqueeze(0))
    except Exception as error:
        raise QkitError(
            f"{type(model).__name__} cannot take one preprocessed image of shape {tuple(image.shape)}: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise QkitError(f"{type(model).__name__} returns {shape} for one image; a classifier returns (1, classes).")
    return output.shape[1]


def _check_positive(**numbers: int | None) -> None:
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise QkitError(f"{name} has to be at least 1, not {number}.")
