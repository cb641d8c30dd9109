"""From the options to a network, its data, and a study of both."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkit.commands.options import BUNDLED, DEFAULT_MODEL, DataOptions, GridOptions, MachineOptions, ModelOptions, WorkerOptions
from qkit.errors import DataError, QkitError

if TYPE_CHECKING:
    from torch import nn

    from qkit.execution.loading import Batch
    from qkit.study import Study
    from qkit.zoo.case import Case

#: Suffixes of weights.
_WEIGHTS = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
#: Options of single images, which a folder has and loaders have not.
_OF_IMAGES = (
    "classes", "calibration_data", "weights_tag", "preprocessing", "size", "mean", "std", "pixel_range", "layout", "channels",
    "calibration_images", "limit",
)  # fmt: skip
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


@dataclass(frozen=True)
class Source:
    """A network with its data, and whether the kit brought both."""

    case: Case
    bundled: bool
    metric: str | None = None


def use_threads(machine: MachineOptions) -> None:
    """Set the number of CPU threads, where one is given."""
    if machine.threads is not None:
        import torch

        torch.set_num_threads(machine.threads)


@contextlib.contextmanager
def on_workers(options: WorkerOptions) -> Iterator[None]:
    """Within this, plans are scored on the workers that are asked for; they go when it ends.

    Raises
    ------
    QkitError
        If there is no such cluster.
    """
    from qkit.execution import pool
    from qkit.execution.parallel import using

    if options.dask is not None:
        with pool.dask(options.dask) as client, using(client.get_executor()):
            yield
    elif (options.workers or 1) > 1:
        with contextlib.closing(pool.workers(options.workers)) as found, using(found):
            yield
    else:
        yield


def load(model: ModelOptions, data: DataOptions) -> Source:
    """The network and its data.

    Raises
    ------
    QkitError
        If there is no such network, options do not go together, or data and weights do not fit.
    """
    name = named(model, data)
    with working_folder():
        if data.data is None:
            return _bundled(name, model, data)
        if not _is_factory(data.data):
            return Source(_images(name, model, data), bundled=False, metric=data.metric)
        return Source(_own_data(name, model, data), bundled=False, metric=data.metric)


def named(model: ModelOptions, data: DataOptions | None = None) -> str:
    """The network's name; the default one where nothing is said of any.

    Raises
    ------
    QkitError
        If weights or data are given and no network; or if the name is a file's that is no network, or of a kind that is not read.
    """
    if model.model is None:
        given = "--weights" if model.weights is not None else "--data" if data is not None and data.data is not None else None
        if given is not None:
            raise QkitError(f"{given} goes with --model: name the network, a torchvision name or package.module:function.")
        return DEFAULT_MODEL
    from qkit.zoo.programfile import program_path

    if program_path(model.model) is not None:
        if model.weights is not None:
            raise QkitError(f"--weights does not go with {model.model}: the file is a network with its weights.")
        if model.argument:
            raise QkitError(f"--argument does not go with {model.model}: the file is a network that is built already.")
    elif Path(model.model).suffix.lower() in _WEIGHTS or os.path.isfile(model.model):  # noqa: PTH113  # and no error
        raise QkitError(
            f"{model.model} is a file of weights and does not say what network they belong to: name that with --model (a "
            f"torchvision name, or package.module:function) and the file with --weights {model.model}."
        )
    return model.model


def network(model: ModelOptions) -> nn.Module | str:
    """The module where it is the kit's own with other weights, else its name."""
    name = named(model)
    if name not in BUNDLED:
        return name
    from qkit import zoo

    return zoo.build(name)


@contextlib.contextmanager
def working_folder() -> Iterator[None]:
    """The user's own modules are found in the working directory: first while they are loaded, and last from then on.

    First, as for any script, so that ``model:make`` is the user's; last afterwards, so that a file of theirs named like a
    package does not take its place when the kit loads that.
    """
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path and "" not in sys.path:
            sys.path.append(folder)


def make_study(source: Source, grids: GridOptions, machine: MachineOptions) -> Study:
    """A study of the source, not calibrated.

    Raises
    ------
    QkitError
        If the scheme is none that there is, or model and data do not fit.
    """
    from qkit.study import Study

    case = source.case
    scheme = grids.scheme or ("int8-per-tensor" if source.bundled else None)
    study = Study(
        case.model, case.calibration, case.evaluation, metric=source.metric, scheme=scheme, expected=case.expected,
        device=machine.device,
    )  # fmt: skip
    # they were logged when the weights were read; this is for the reports
    return study.with_remarks(case.remarks)


def calibrate(study: Study, grids: GridOptions) -> Study:
    """The study calibrated, or with the grids of a quantized network's file, or with the plan that is given."""
    if grids.method is not None:
        study.calibrate(grids.method)
    if grids.plan is None:
        study.plan  # noqa: B018  # calibrates, where no file brought its grids
        return study
    from qkit.quant.plan import Plan

    return study.with_plan(Plan.load(grids.plan))


def batches_of_images(study: Study, images: int, limit: int | None) -> int:
    """Batches that hold so many images, at most `limit`."""
    count = math.ceil(images / first_batch(study).size)
    return count if limit is None else min(count, limit)


def first_batch(study: Study) -> Batch:
    """The first one of the evaluation data."""
    from qkit.execution.loading import batches

    return next(iter(batches(study.evaluation)))


def _bundled(name: str, model: ModelOptions, data: DataOptions) -> Source:
    from qkit import zoo

    if name not in BUNDLED:
        raise QkitError(
            f"{name} needs data: name a folder of images per class with --data, or package.module:function that returns the "
            f"loaders. Of the networks that bring their own there are {', '.join(BUNDLED)}."
        )
    if model.argument:
        raise QkitError("--argument goes with a network of your own: the bundled ones take none.")
    if model.weights_key is not None and model.weights is None:
        raise QkitError("--weights-key goes with --weights: it chooses within that file.")
    _refuse(data, _OF_IMAGES, "goes with --data")
    case = zoo.load(name) if data.batch_size is None else zoo.load(name, data.batch_size)
    if model.weights is not None:
        from qkit.zoo.usermodel import user_model

        made = user_model(zoo.build(name), model.weights, weights_key=model.weights_key)
        case = replace(case, model=made.model, expected=None, remarks=made.remarks)
    if data.expected is not None:
        case = replace(case, expected=data.expected)
    return Source(case, bundled=True, metric=data.metric)


def _images(name: str, model: ModelOptions, data: DataOptions) -> Case:
    from qkit import zoo

    given = {k: v for k in ("batch_size", "calibration_images") if (v := getattr(data, k)) is not None}
    case = zoo.user_case(
        network(model), model.weights, data.data or "", classes=data.classes, calibration_data=data.calibration_data,
        weights_tag=data.weights_tag, preprocessing=data.preprocessing, size=data.size, mean=data.mean, std=data.std,
        pixel_range=data.pixel_range, layout=data.layout, channels=data.channels, weights_key=model.weights_key,
        model_arguments=_arguments(model), expected=data.expected, limit=data.limit,
        skip_corrupt=data.skip_corrupt, **given,
    )  # fmt: skip
    return case if case.name == name else replace(case, name=name)


def _own_data(name: str, model: ModelOptions, data: DataOptions) -> Case:
    """The network on loaders that a function of the user's returns."""
    from qkit.zoo.case import Case
    from qkit.zoo.usermodel import user_model

    _refuse(
        data,
        (*_OF_IMAGES, "batch_size"),
        f"goes with a folder of images, and {data.data} is a function that returns the loaders",
    )
    built = user_model(network(model), model.weights, _arguments(model), weights_key=model.weights_key)
    made = _call(data.data or "")
    pair = isinstance(made, tuple) and len(made) == 2
    calibration, evaluation = made if pair else (made, made)
    for loader in (calibration, evaluation):
        if not isinstance(loader, Iterable) or isinstance(loader, tuple):
            raise DataError(
                f"{data.data} returned a {type(made).__name__}: it returns (calibration loader, evaluation loader), or one "
                "loader for both."
            )
    said = f"{name} on what {data.data} returned."
    return Case(name, built.model, calibration, evaluation, data.expected, (), said, built.remarks)


def _call(path: str) -> Any:
    module, _, function = path.partition(":")
    try:
        factory: Any = importlib.import_module(module)
        for part in function.split("."):
            factory = getattr(factory, part)
    except Exception as error:  # whatever the user's module does while it is imported
        raise DataError(f"the data's function {path} cannot be imported: {error}.") from error
    try:
        return factory()
    except Exception as error:
        raise DataError(f"the data's function {path} failed: {type(error).__name__}: {error}.") from error


def _is_factory(text: str) -> bool:
    return _FACTORY.fullmatch(text) is not None and not os.path.exists(text)  # noqa: PTH110  # and no error


def _arguments(model: ModelOptions) -> dict[str, Any]:
    """``name=value``, the value as JSON where it is such, else as text."""
    found: dict[str, Any] = {}
    for text in model.argument or ():
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise QkitError(f"--argument {text!r} is not NAME=VALUE, such as transform_input=true.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _refuse(data: DataOptions, names: tuple[str, ...], why: str) -> None:
    for item in fields(data):
        if item.name in names and getattr(data, item.name) is not None:
            flag = "range" if item.name == "pixel_range" else item.name.replace("_", "-")
            raise QkitError(f"--{flag} {why}.")
