"""A network with data, scheme and calibration, as a user would hand them to the kit: what plants edit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import qkit
from benchmarks.faults.networks import Network
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import Scheme

Batches = list[tuple[Tensor, Tensor]]
Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Images:
    """Images with their labels."""

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: Tensor) -> Images:
        """Those at the indices."""
        return Images(self.inputs[indices], self.targets[indices])

    def batches(self, size: int, transform: Transform | None = None) -> Batches:
        """As a loader gives them."""
        inputs = self.inputs if transform is None else transform(self.inputs)
        return list(zip(inputs.split(size), self.targets.split(size), strict=True))


def halves(images: Images, seed: int) -> tuple[Images, Images]:
    """Two disjoint halves, every class split evenly, by a seeded shuffle; each keeps the images' own order."""
    generator = torch.Generator().manual_seed(seed)
    first, second = [], []
    for label in images.targets.unique().tolist():
        members = torch.nonzero(images.targets == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        middle = (len(members) + label % 2) // 2
        first.append(members[:middle])
        second.append(members[middle:])
    return images.take(torch.cat(first).sort().values), images.take(torch.cat(second).sort().values)


def images_of(loader: Any) -> Images:
    """All of a loader's images."""
    pairs = list(loader)
    return Images(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))


@dataclass
class Setup:
    """What one case hands to `qkit.Study`.

    Attributes
    ----------
    model
        Owned by the setup: plants edit it in place.
    calibration, evaluation
        How the user prepares the images of either loader; None for as they should be.
    scheme, calibrate
        Arguments of the study and of its `calibrate`.
    edits
        Changes of the calibrated plan, in order: ``edit(study, plan) -> plan``.
    expected
        Float score that the user believes in, or None.
    by_class
        Whether the evaluation loader is sorted by class.
    batch_size
        Of both loaders.
    calibrated
        False for models that no range can be observed on: `diagnose` alone is called.
    scores
        Kept for doses that are compared with this setup as it is; copies start without.
    """

    model: nn.Module
    scheme: Scheme
    calibrate: dict[str, Any]
    calibration: Transform | None = None
    evaluation: Transform | None = None
    edits: list[Callable[[qkit.Study, Plan], Plan]] = field(default_factory=list)
    expected: float | None = None
    by_class: bool = False
    batch_size: int = 64
    calibrated: bool = True
    scores: dict[str, float] | None = None

    def copied(self) -> Setup:
        """An independent copy."""
        return Setup(
            copy.deepcopy(self.model),
            self.scheme,
            dict(self.calibrate),
            self.calibration,
            self.evaluation,
            list(self.edits),
            self.expected,
            self.by_class,
            self.batch_size,
            self.calibrated,
        )

    def network(self, images: Tensor) -> Network:
        """The model's structure, with statistics on images as this user's evaluation loader gives them."""
        return Network(self.model, images if self.evaluation is None else self.evaluation(images))

    def loaders(self, calibration: Images, evaluation: Images) -> tuple[Batches, Batches]:
        """What the user passes as calibration and evaluation data."""
        shown = evaluation.take(evaluation.targets.argsort(stable=True)) if self.by_class else evaluation
        return calibration.batches(self.batch_size, self.calibration), shown.batches(self.batch_size, self.evaluation)

    def study(self, calibration: Images, evaluation: Images) -> qkit.Study:
        """The study, calibrated and with its plan edited."""
        loaders = self.loaders(calibration, evaluation)
        study = qkit.Study(self.model, *loaders, scheme=self.scheme, expected=self.expected, metric="top1")
        if not self.calibrated:
            return study
        study.calibrate(progress=False, **self.calibrate)
        for edit in self.edits:
            study = study.with_plan(edit(study, study.plan))
        return study

    @torch.no_grad()
    def own_scores(self, calibration: Images, evaluation: Images) -> Tensor:
        """Per-image top-1 of the model exactly as it is handed over, mode and hooks included, (N,)."""
        model = copy.deepcopy(self.model)
        _, batches = self.loaders(calibration, evaluation)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            hits = [(model(x).nan_to_num(nan=-1e30).argmax(1) == y).double() for x, y in batches]
        return torch.cat(hits)


def lanes_of(study: qkit.Study) -> dict[str, Plan]:
    """Float, 16 bits, and the study's own plan."""
    return {"float": FLOAT, "int16": study.lane("int16"), "int8": study.plan}


def scores_of(setup: Setup, calibration: Images, evaluation: Images, study: qkit.Study | None = None) -> dict[str, float]:
    """Top-1 of the model as handed over ("own") and of the lanes; only "own" where the kit refuses the network."""
    scores = {"own": float(setup.own_scores(calibration, evaluation).mean())}
    if not setup.calibrated:
        return scores
    study = setup.study(calibration, evaluation) if study is None else study
    found = study.evaluate(lanes_of(study), progress=False)
    return scores | {name: found[name].value for name in found.lanes}
