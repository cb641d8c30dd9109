"""The cells of the table: a network under a scheme, treated in one way, with one seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qkit.ptq import STEPS

#: Networks that qkit brings, the hostile one first since it is the one that loses.
BUNDLED = ("mobilenet_v2_hostile", "mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small")
FLOAT = "float"
SCHEMES = (FLOAT, "int16", "int8-per-tensor", "int8", "int8-power-of-two")
#: Those that torchao's grids can be compared with: it has no power-of-two scales.
PEER_SCHEMES = ("int8-per-tensor", "int8")
#: Each step of post-training calibration without the others.
ALONE = tuple(f"only {step}" for step in STEPS)
TREATMENTS = ("plain", "ptc", "mixed", "qat", "ptc + qat", "torchao", "torchao qat", *ALONE)
#: What can be done with images to calibrate and none to train.
UNTRAINED = ("plain", "ptc", "mixed", "torchao", *ALONE)


@dataclass(frozen=True)
class Cell:
    """One entry.

    Attributes
    ----------
    network
        Name in the zoo, or of a torchvision model.
    scheme
        "float" or a preset's name.
    treatment
        One of `TREATMENTS`.
    seed
        Of the split into calibration and evaluation images, and of training.
    """

    network: str
    scheme: str
    treatment: str
    seed: int

    @property
    def id(self) -> str:
        """Its name in the file of finished cells."""
        return f"{self.network}/{self.scheme}/{self.treatment}/{self.seed}"


def cells(networks: Sequence[str], schemes: Sequence[str], treatments: Sequence[str], seeds: int) -> list[Cell]:
    """All cells that make sense: the cheap treatments first, and one seed after the other, so that a cut run has columns."""
    return [
        Cell(network, scheme, treatment, seed)
        for group in (("plain", "ptc", "mixed", "qat", "ptc + qat", "torchao"), ("torchao qat",), ALONE)
        for seed in range(seeds)
        for network, scheme, treatment in _combinations(networks, schemes, [t for t in treatments if t in group])
    ]


def _combinations(networks: Sequence[str], schemes: Sequence[str], treatments: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    for network in networks:
        for scheme in dict.fromkeys((FLOAT, *schemes)):
            for treatment in treatments:
                if _fits(scheme, treatment):
                    yield network, scheme, treatment


def _fits(scheme: str, treatment: str) -> bool:
    if scheme in (FLOAT, "int16"):
        return treatment == "plain"
    return scheme in PEER_SCHEMES or not treatment.startswith("torchao")
