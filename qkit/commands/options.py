"""Options that several commands have, in groups: each is written once, and a command names the groups that it takes.

A group is a frozen dataclass whose fields are typer's options; `qkit.commands.command` spreads them over a command's
signature. What an option is by default is None wherever that depends on something else, and its help says on what.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from qkit.errors import QkitError

#: Names that the libraries define and that help and choices show without importing them; a test holds them together.
SCHEMES = (
    "int8", "int8-per-tensor", "int8-symmetric", "int8-power-of-two", "int8-per-channel-power-of-two", "int16",
    "int8-weights-int16-activations", "int4-weights", "int8-full-integer",
)  # fmt: skip
METHODS = ("minmax", "moving-average", "percentile", "mse", "entropy")
BUNDLED = (
    "mobilenet_v2_lite", "mobilenet_v2_hostile", "resnet_small", "vgg_small", "inception_small", "deit_small", "swin_small",
    "mobilevit_small",
)  # fmt: skip
#: The bundled network that is taken where none is named.
DEFAULT_MODEL = "mobilenet_v2_hostile"

MODEL, DATA, GRIDS, OUTPUT, RUNNING = "Model", "Data", "Quantization", "Output", "Running"


def option(*names: str, panel: str, help: str, **more: Any) -> Any:  # noqa: A002  # typer's name for it
    """A typer option in a panel."""
    return typer.Option(*names, rich_help_panel=panel, help=help, **more)


@dataclass(frozen=True)
class ModelOptions:
    """Which network."""

    model: Annotated[
        str | None,
        option(
            panel=MODEL,
            metavar="NAME|package.module:function|FILE",
            help="A torchvision name such as resnet50 (with --weights), package.module:function that makes your own model "
            "(looked for in the working directory too), an .onnx or .pt2 file, or a bundled network: "
            f"{', '.join(BUNDLED)}. {DEFAULT_MODEL} by default.",
        ),
    ] = None
    weights: Annotated[
        Path | None,
        option(
            panel=MODEL,
            metavar="FILE",
            help="Checkpoint for it: .safetensors, a file of torch.save, or the .index.json of several. Prefixes such as module. "
            "are taken off. Read as plain tensors: no code in the file is run.",
        ),
    ] = None
    weights_key: Annotated[
        str | None,
        option(
            panel=MODEL,
            metavar="NAME",
            help="Which weights to take where the file has several, such as model or model_ema. By default the averaged ones "
            "(EMA), and that is said.",
        ),
    ] = None
    argument: Annotated[
        list[str] | None,
        option(
            panel=MODEL,
            metavar="NAME=VALUE",
            help="Argument for the function that builds the model, such as transform_input=true; can be repeated.",
        ),
    ] = None


@dataclass(frozen=True)
class DataOptions:
    """Which images calibrate and judge it."""

    data: Annotated[
        str | None,
        option(
            panel=DATA,
            metavar="FOLDER|package.module:function",
            help="A folder of images per class, or with such folders under train/ and val/; or package.module:function that "
            "returns (calibration loader, evaluation loader). A bundled network brings its own.",
        ),
    ] = None
    classes: Annotated[
        str | None,
        option(
            panel=DATA,
            metavar="FILE|LIST",
            help="Class names in the order of the model's outputs: a text or JSON file, or a comma list. Needed where the "
            "folders' names in alphabetical order are not those.",
        ),
    ] = None
    calibration_data: Annotated[
        Path | None, option(panel=DATA, metavar="FOLDER", help="Another folder of images per class to calibrate with.")
    ] = None
    weights_tag: Annotated[
        str | None,
        option(panel=DATA, metavar="TAG", help="torchvision's weights whose preprocessing to use, such as IMAGENET1K_V1."),
    ] = None
    preprocessing: Annotated[
        str | None, option(panel=DATA, metavar="NAME", help="torchvision model whose preprocessing to take instead.")
    ] = None
    size: Annotated[
        str | None,
        option(
            panel=DATA,
            metavar="N|HxW",
            help="Height and width of the images: 224 or 224x320. They are resized to cover it, and the middle is cut out. By "
            "default what the preprocessing or the model's file says.",
        ),
    ] = None
    mean: Annotated[
        str | None,
        option(
            panel=DATA,
            metavar="M|M,M,M",
            help="Subtracted from the values, which are 0 to 1, in the order of --channels: 0.485,0.456,0.406. Goes with --std.",
        ),
    ] = None
    std: Annotated[
        str | None, option(panel=DATA, metavar="S|S,S,S", help="Divides the values after that: 0.229,0.224,0.225.")
    ] = None
    pixel_range: Annotated[
        int | None,
        option(
            "--range",
            panel=DATA,
            metavar="1|255",
            help="Greatest value of a pixel: 255 for a network that takes 0 to 255, with --mean and --std in the same units. 1 "
            "by default.",
        ),
    ] = None
    layout: Annotated[
        Literal["nchw", "nhwc"] | None,
        option(panel=DATA, help="Order of an input's sizes. By default what the model's file says, else nchw."),
    ] = None
    channels: Annotated[
        Literal["rgb", "bgr", "gray"] | None,
        option(panel=DATA, help="Of the images as the network takes them. By default rgb, and gray for a file with one channel."),
    ] = None
    expected: Annotated[
        float | None,
        option(
            panel=DATA,
            min=0.0,
            max=1.0,
            help="The float score that you believe in, as a fraction: 0.7188. Missing it is a finding of its own.",
        ),
    ] = None
    metric: Annotated[
        Literal[
            "top1",
            "top5",
            "agreement",
            "closeness",
            "cross-entropy",
            "mean-iou",
            "psnr",
            "ssim",
            "absolute-error",
            "relative-error",
            "cosine",
            "characters",
        ]
        | None,
        option(
            panel=DATA,
            help="What is scored. By default the outputs choose: top1 for labelled classes, agreement with the float lane where "
            "there are no labels, closeness to its outputs where these are no class scores.",
        ),
    ] = None
    batch_size: Annotated[int | None, option(panel=DATA, min=1, help="Images a batch. 32 by default, 64 for bundled ones.")] = (
        None
    )
    calibration_images: Annotated[
        int | None, option(panel=DATA, min=1, help="Most images to calibrate with. 256 by default.")
    ] = None
    limit: Annotated[int | None, option(panel=DATA, min=1, help="Most images in either part. All by default.")] = None
    skip_corrupt: Annotated[
        bool, option(panel=DATA, help="Leave out images that cannot be read; how many is said on every result.")
    ] = False


@dataclass(frozen=True)
class GridOptions:
    """How it is quantized."""

    scheme: Annotated[
        str | None,
        option(
            panel=GRIDS,
            metavar="NAME",
            help=f"Grids: {', '.join(SCHEMES)}. By default int8, int8-per-tensor for the bundled networks, and the grids of a "
            "quantized file.",
        ),
    ] = None
    method: Annotated[
        str | None,
        option(
            panel=GRIDS,
            metavar="NAME",
            help=f"How ranges of activations are chosen: {', '.join(METHODS)}. By default mse, and a quantized file's own.",
        ),
    ] = None
    plan: Annotated[
        Path | None,
        option(
            panel=GRIDS,
            metavar="FILE",
            help="Take the grids of this plan, as diagnose --save-plan or export write it, instead of calibrated ones.",
        ),
    ] = None


@dataclass(frozen=True)
class MachineOptions:
    """Where it runs."""

    device: Annotated[
        str | None, option(panel=RUNNING, metavar="NAME", help="Where to compute, such as cuda. The CPU by default.")
    ] = None
    threads: Annotated[int | None, option(panel=RUNNING, min=1, help="CPU threads. torch's own choice by default.")] = None


@dataclass(frozen=True)
class WorkerOptions:
    """Who scores plans, of commands that score many."""

    workers: Annotated[
        int | None,
        option(
            panel=RUNNING,
            min=1,
            help="Processes that score plans. They share the CPU threads between them, and have a GPU each where there are "
            "several. Scores are the same. 1 by default.",
        ),
    ] = None
    dask: Annotated[
        str | None,
        option(
            panel=RUNNING,
            metavar="ADDRESS",
            help="Score plans on the workers of this Dask cluster: tcp://host:8786. They need qkit, your modules and your images "
            "under the same paths. Needs the extra dask.",
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.dask is not None:
            raise QkitError("--workers makes processes here, --dask takes a cluster's workers: give one of them.")


#: Evaluation batches, of commands that score.
Batches = Annotated[int | None, option(panel=DATA, min=1, help="Evaluation batches to score on. All by default.")]
Tolerance = Annotated[
    float | None,
    option(
        panel=GRIDS,
        min=0.0,
        help="Loss that still counts as close, in the metric's unit; 0.01 is one point of accuracy. By default one point, or 1 % "
        "of the float score.",
    ),
]
