"""What cases there are: described by data alone, so that a worker can build each by itself."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from benchmarks.faults.plants import ALL, BY_NAME, CONTROLS, Plant
from benchmarks.faults.truth import KINDS

Split = Literal["develop", "report", "few"]
Group = Literal["single", "two", "control"]

#: Architecture -> what plants may need of it.
ARCHITECTURES: dict[str, frozenset[str]] = {
    "mobilenet_v2_lite": frozenset(("depthwise", "add")),
    "resnet_small": frozenset(("add",)),
    "vgg_small": frozenset(),
    "inception_small": frozenset(("concat",)),
}
#: Score that a fault of that strength has to cost, as a fraction; the dose is sought until it does.
STRENGTHS: dict[str, float] = {"weak": 0.05, "medium": 0.1, "strong": 0.3}
#: One site in so many is for development, and never in the report.
DEVELOP_EVERY = 3

#: Pairs of a fault of quantization and one that is not, for cases with two faults.
_WITH = (
    "batchnorm-statistics/mean",
    "preprocessing/both-offset",
    "batchnorm-statistics/small-variance",
    "preprocessing/inverted",
)
_PAIRED = (
    "weight-outlier/one",
    "range-too-wide/tap",
    "weight-channel-imbalance/dead-channel",
    "activation-outlier/spikes",
    "range-too-narrow/tap",
    "activation-channel-imbalance/wide-channels",
)
#: Architectures of the small part, in turn by kind: mostly the quick ones.
_QUICK = (
    "vgg_small",
    "resnet_small",
    "vgg_small",
    "mobilenet_v2_lite",
    "resnet_small",
    "vgg_small",
    "resnet_small",
    "inception_small",
)
_SCHEMES = ("int8", "int8-symmetric", "int8-per-tensor", "int8-weights-int16-activations", "int8-per-channel-power-of-two")
_METHODS = ("mse", "minmax", "percentile", "moving-average")


@dataclass(frozen=True)
class CaseSpec:
    """One case.

    Attributes
    ----------
    split, group
        Where it belongs.
    architecture
        Of the sound network.
    plants
        Names of the plants; of the harmless change for a control.
    strength
        A key of `STRENGTHS`; "none" for controls.
    seed
        Of everything random: sites, images, jitter. Differs between the splits.
    scheme, method
        For controls; plants have their own.
    """

    split: str
    group: str
    architecture: str
    plants: tuple[str, ...]
    strength: str
    seed: int
    scheme: str = ""
    method: str = ""

    @property
    def id(self) -> str:
        """Unique, and stable from run to run."""
        tail = f":{self.scheme}:{self.method}" if self.scheme else ""
        return f"{self.split}:{self.group}:{self.architecture}:{'+'.join(self.plants)}:{self.strength}:{self.seed}{tail}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds planted; none for a control."""
        return () if self.group == "control" else tuple(BY_NAME[name].kind for name in self.plants)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the id."""
        return {"id": self.id, **asdict(self), "plants": list(self.plants)}


def sites_of(sites: Sequence[str], split: str) -> list[str]:
    """The sites of a split: every third is for development. Fewer than three are shared, told apart by seed and jitter."""
    if len(sites) < DEVELOP_EVERY:
        return list(sites)
    return [site for i, site in enumerate(sites) if (i % DEVELOP_EVERY == 0) == (split == "develop")]


def stable_seed(*parts: object) -> int:
    """A seed from anything, the same on every machine."""
    return zlib.crc32("|".join(map(str, parts)).encode())


def forms(kind: str, architecture: str) -> list[Plant]:
    """The forms of a kind that this architecture has sites for."""
    traits = ARCHITECTURES[architecture]
    return [p for p in ALL if p.kind == kind and (p.needs is None or p.needs in traits)]


def cases(split: str) -> list[CaseSpec]:
    """All cases of a split, in a fixed order."""
    return [*_single(split), *_two(split), *_controls(split)]


def _single(split: str) -> list[CaseSpec]:
    found = []
    for kind in KINDS:
        homes = [a for a in ARCHITECTURES if forms(kind, a)]
        for home, architecture in enumerate(homes):
            # a kind at home in one architecture alone gets all of its cases there
            rounds = len(ARCHITECTURES) // len(homes)
            for turn in range(rounds):
                for level, strength in enumerate(STRENGTHS):
                    if split == "develop" and (home + turn + len(kind)) % len(STRENGTHS) != level:
                        continue
                    options = forms(kind, architecture)
                    plant = options[(home + turn + level) % len(options)]
                    seed = stable_seed(split, kind, architecture, strength, turn) % 100_000
                    found.append(CaseSpec(split, "single", architecture, (plant.name,), strength, seed))
    return found


def _two(split: str) -> list[CaseSpec]:
    found = []
    count = 16 if split == "develop" else 48
    homes = list(ARCHITECTURES)
    for number in range(count):
        architecture = homes[number % len(homes)]
        first = _PAIRED[(number // len(homes)) % len(_PAIRED)]
        second = _WITH[(number + number // len(homes)) % len(_WITH)]
        seed = stable_seed(split, "two", number) % 100_000
        found.append(CaseSpec(split, "two", architecture, (first, second), "medium", seed))
    return found


def _controls(split: str) -> list[CaseSpec]:
    found = []
    count = 16 if split == "develop" else 48
    homes, changes = list(ARCHITECTURES), list(CONTROLS)
    for number in range(count):
        turn = number // len(homes)
        scheme, method = _SCHEMES[(number + turn) % len(_SCHEMES)], _METHODS[(number // 2 + turn) % len(_METHODS)]
        seed = stable_seed(split, "control", number) % 100_000
        change = changes[(number + turn) % len(changes)]
        found.append(CaseSpec(split, "control", homes[number % len(homes)], (change,), "none", seed, scheme, method))
    return found


def stratified(specs: Sequence[CaseSpec]) -> list[CaseSpec]:
    """One single-fault case a kind, on architectures in turn, two with two faults, and two controls."""
    found = []
    for number, kind in enumerate(KINDS):
        mine = [s for s in specs if s.group == "single" and s.kinds == (kind,)]
        at_home = [s for s in mine if s.architecture == _QUICK[number % len(_QUICK)]] or mine
        found.append(next((s for s in at_home if s.strength == "strong"), at_home[0]))
    for group in ("two", "control"):
        found += [s for s in specs if s.group == group][1:3]
    return found
