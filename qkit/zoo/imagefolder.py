"""The user's own case: a model with its weights file, and a folder of labelled images."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from qkit.errors import DataError, QkitError
from qkit.files import explained
from qkit.graph.door.model_files import network as opened
from qkit.listing import few
from qkit.progress import track
from qkit.vision import load_torchvision
from qkit.zoo.case import Case
from qkit.zoo.classes import map_folders, read_classes
from qkit.zoo.preprocessing import Channels, ImageOptions, Layout, Preprocessing, from_options, from_preset
from qkit.zoo.programfile import Signature, program_path, signature
from qkit.zoo.splits import stratified_order
from qkit.zoo.usermodel import FALLBACK_PRESET, categories, is_torchvision, preset, user_model

logger = logging.getLogger(__name__)

_EVALUATION_FOLDERS = ("val", "evaluation", "validation")
_CALIBRATION_FOLDERS = ("train", "calibration")

#: An image's path and the name of the class folder that it lies in.
Sample = tuple[Path, str]


def user_case(
    model: str | Path | nn.Module,
    weights: str | Path | None,
    data: str | Path,
    *,
    classes: str | Path | Sequence[str] | None = None,
    calibration_data: str | Path | None = None,
    weights_tag: str | None = None,
    preprocessing: str | Preprocessing | None = None,
    size: int | str | Sequence[int] | None = None,
    mean: float | str | Sequence[float] | None = None,
    std: float | str | Sequence[float] | None = None,
    pixel_range: int | None = None,
    layout: Layout | None = None,
    channels: Channels | None = None,
    weights_key: str | None = None,
    model_arguments: Mapping[str, Any] | None = None,
    expected: float | None = None,
    batch_size: int | None = None,
    calibration_images: int = 256,
    limit: int | None = None,
    skip_corrupt: bool = False,
    seed: int = 0,
) -> Case:
    """Make a `Case` of a model, a weights file and a folder of images.

    Nothing is downloaded, and no pickled code is run.

    Parameters
    ----------
    model
        A torchvision classification model such as ``"resnet50"``, a factory ``"package.module:function"``, an ``.onnx`` or
        ``.pt2`` file, or a module.
    weights
        A checkpoint: ``.safetensors``, a file of ``torch.save``, or the index of several. ``None`` only if the factory or module
        brings its own, and for files, which have theirs.
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
    size, mean, std, pixel_range, layout, channels
        As `qkit.zoo.preprocessing.ImageOptions` has them. With a torchvision model or its name in `preprocessing` they replace
        those parts of its preprocessing; for other models they are the preprocessing. The size of an ``.onnx`` or ``.pt2`` file
        is the file's where that is fixed.
    weights_key
        Which weights of a file with several to take, such as ``"model_ema"``; by default averaged ones before raw ones.
    model_arguments
        Keyword arguments for the builder or factory, such as ``{"transform_input": True}``, which
        torchvision's own weights of googlenet and inception_v3 were trained with.
    expected
        The float top-1, as a fraction, that the model is known to have on these images.
    batch_size
        Images a batch, of both loaders; 32, or the size that a file's network is fixed to, by default.
    calibration_images
        At most so many images calibrate, and no more than a quarter of them where one folder is split.
    limit
        At most so many images in either loader: a stratified, seeded choice.
    skip_corrupt
        Leave out images that cannot be read, which the case's remarks count; every image is read once for it.
    seed
        Of the split and the choice.

    Raises
    ------
    QkitError
        Naming the file, tensor or class that is missing or does not fit. An unreadable image raises it when
        its batch is loaded, which names all that there are.
    """
    _check_positive(batch_size=batch_size, calibration_images=calibration_images, limit=limit)
    options = ImageOptions(size, mean, std, pixel_range, layout, channels)
    network = user_model(model, weights, model_arguments, weights_key=weights_key)
    file = program_path(model)
    said = None if file is None else signature(file)
    transform = _preprocessing(model, preprocessing, weights_tag, options, said)
    calibration, evaluation = _samples(Path(data), calibration_data, calibration_images, seed)
    folders = sorted({folder for _, folder in (*calibration, *evaluation)})
    calibration, evaluation = calibration[:limit], evaluation[:limit]
    remarks = network.remarks
    if skip_corrupt:
        bad = unreadable([path for path, _ in (*calibration, *evaluation)])
        calibration, evaluation = ([s for s in part if s[0] not in bad] for part in (calibration, evaluation))
        if not calibration or not evaluation:
            raise DataError(f"No image of {data} is left: {_listed(bad)}.")
        if bad:
            remarks = (*remarks, f"{len(bad)} images cannot be read and are left out: {_listed(bad)}.")
    known = None if classes is None else read_classes(classes)
    image = _load(evaluation[0][0], transform)
    fixed = None
    if isinstance(network.model, nn.Module):
        outputs = _count_outputs(network.model, image.unsqueeze(0))
    else:
        fixed = _fixed_batch(network.model, said, image)
        images = image.expand(fixed or 1, *image.shape)
        outputs = (None if said is None else said.classes) or _count_outputs(opened(network.model, (images,)), images)
    batch_size = batch_size or fixed or 32
    if fixed is not None and batch_size == fixed > 1:
        calibration, evaluation = _whole(calibration, fixed, str(model)), _whole(evaluation, fixed, str(model))
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
    name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    return Case(
        name=name,
        model=network.model,
        calibration=loaders[0],
        evaluation=loaders[1],
        expected=expected,
        classes=names,
        description=f"{name}{'' if weights is None else f' with the weights {weights}'} on {len(evaluation)} images of {data}; "
        f"{len(calibration)} others calibrate.",
        remarks=remarks,
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
        try:
            return _load(path, self.transform), label
        except DataError as error:
            bad = unreadable([path for path, _ in self.samples])
            if len(bad) < 2:
                raise
            raise DataError(
                f"{len(bad)} of {len(self)} images cannot be read: {_listed(bad)}. Repair or remove them, or leave them out by "
                "--skip-corrupt (skip_corrupt=True)."
            ) from error


def unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """Images that cannot be read, and why not; each is read whole."""
    bad = {}
    for path in track(paths, "reading images", unit="image"):
        try:
            _read(path)
        except DataError as error:
            bad[path] = str(error.__cause__ or error)
    return bad


def _listed(bad: Mapping[Path, str]) -> str:
    return few([f"{path.parent.name}/{path.name} ({why})" for path, why in bad.items()], most=20)


def _load(path: Path, transform: Preprocessing) -> Tensor:
    return transform(_read(path))


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return _eight_bits(image, path).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(
            f"The image {path} cannot be read ({error}): repair or remove it, or leave out what cannot be read by --skip-corrupt "
            "(skip_corrupt=True)."
        ) from error


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """The picture with 8 bits a channel: Pillow's own conversion makes all above 255 white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise DataError(f"The image {path} has pixels of 32 bits, whose white is not known: save it with 8 bits a channel.")
    return image


def _preprocessing(
    model: str | Path | nn.Module,
    chosen: str | Preprocessing | None,
    tag: str | None,
    options: ImageOptions,
    said: Signature | None,
) -> Preprocessing:
    if chosen is not None and not isinstance(chosen, str):
        if options.given:
            raise QkitError("preprocessing= is a function here: size, mean, std and the like belong into it.")
        return chosen
    shape = None if said is None else said.image
    name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
    if chosen is None and isinstance(model, str) and is_torchvision(model):
        chosen = model
    if chosen is not None:
        return from_preset(preset(chosen, tag), options, shape, name)
    if tag is not None and (said is not None or options.given):
        raise QkitError(
            f"weights_tag (--weights-tag) chooses among torchvision's preprocessings, and {name} has none of them: name the "
            "model whose it is with preprocessing (--preprocessing)."
        )
    if said is not None or options.given:
        return from_options(options, shape, name)
    logger.warning(
        "No preprocessing was given for a model that is not torchvision's: that of %s is used. "
        "Pass preprocessing=, or size=, mean= and std= (--size --mean --std), if the model was trained with another one.",
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


def _whole(samples: list[Sample], batch: int, name: str) -> list[Sample]:
    """As many images as whole batches take, for a network that takes no other ones."""
    kept = samples[: len(samples) // batch * batch]
    if not kept:
        raise DataError(
            f"{name} takes batches of {batch} images, and there are {len(samples)}: give more, or another --batch-size."
        )
    if len(kept) < len(samples):
        logger.warning("%s takes batches of %d images: the last %d are left out.", name, batch, len(samples) - len(kept))
    return kept


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
    with explained(root, "read", DataError):
        if root.is_file():
            raise DataError(
                f"{root} is a file, not a folder of images per class. Other data come from a function that returns loaders "
                "(package.module:function)."
            )
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
def _fixed_batch(path: Path, said: Signature | None, image: Tensor) -> int | None:
    """The number of images that a file's network takes, where it really takes no other one.

    Many files have been written with one image and take any number of them all the same: that is tried.
    """
    fixed = None if said is None or said.image is None else said.image[0]
    if fixed is None:
        return None
    images = torch.stack([image * k / (fixed + 1) for k in range(1, fixed + 2)])
    try:
        together, alone = (opened(path, (part,))(part) for part in (images, images[:fixed]))
        same = together.shape[0] == fixed + 1 and torch.allclose(together[:fixed], alone, rtol=1e-3, atol=1e-4)
    except Exception as error:  # whatever a network does with a number of images that it is not made for
        logger.info("%s takes %d images at a time and no other number: %s", path, fixed, error)
        return fixed
    return None if same else fixed


@torch.no_grad()
def _count_outputs(model: nn.Module, images: Tensor) -> int:
    try:
        output = model(images)
    except Exception as error:
        raise QkitError(
            f"{type(model).__name__} cannot take one preprocessed image of shape {tuple(images.shape[1:])}: "
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
