"""What every plant is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from benchmarks.faults.setup import Images, Setup
from benchmarks.faults.truth import NOT_QUANTIZATION, QUANTIZATION, Mark, NoSite
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantSpec
from qkit.quant.schemes import Scheme

#: Lanes in which faults that keep the float function show; the others show in all.
FIXED_POINT = ("int16", "int8")
EVERYWHERE = ("own", "float", "int16", "int8")


@dataclass(frozen=True)
class Bench:
    """What is at hand while planting.

    Attributes
    ----------
    images
        Calibration images, correctly prepared.
    graph
        The sound network's steps, for names alone.
    random
        Of the case.
    """

    images: Images
    graph: Graph
    random: Random


#: Edits a setup in place at a site with a factor of the ladder.
Apply = Callable[[Setup, Bench, str, float], Mark]


@dataclass(frozen=True)
class Probe:
    """A rule to rank sites by."""

    spec: QuantSpec
    weight: bool = False


@dataclass(frozen=True)
class Plant:
    """One form of a fault.

    Attributes
    ----------
    kind, form
        ``kind/form`` is its name.
    sites
        Where it can be planted, in execution order; ``("",)`` for the whole network.
    apply
        Plants it.
    ladder
        Factors from harmless to ruinous.
    schemes, method
        What it is planted under: one of the presets, by the case's seed, and how activation ranges are chosen.
    needs
        Trait of the architecture without which there is no site.
    verdicts, synonyms
        See `Fault`.
    lanes
        Where its effect is looked for when it is dosed.
    keeps_float
        Whether the model's own score must stay.
    twin
        What the sound twin has in its place, say the same width under another rule; by default nothing.
    twin_loss
        The twin may lose this much in 8 bits against float: what it loses is not the fault's.
    knows_expected
        Whether the user states the score of the sound model.
    probe
        A rule which, put on one tensor alone, shows by score how much can be lost there; sites are tried in that order. Some
        rules cost so little at most places that sites drawn blindly would rarely show the fault.
    """

    kind: str
    form: str
    sites: Callable[[Setup, Bench], list[str]]
    apply: Apply
    ladder: tuple[float, ...]
    schemes: tuple[str, ...] = ("int8",)
    method: str = "mse"
    needs: str | None = None
    verdicts: tuple[str, ...] = (QUANTIZATION,)
    synonyms: tuple[str, ...] = ()
    lanes: tuple[str, ...] = FIXED_POINT
    keeps_float: bool = True
    twin: Apply | None = None
    twin_loss: float = 0.015
    knows_expected: bool = False
    probe: Probe | None = None

    @property
    def name(self) -> str:
        """``kind/form``."""
        return f"{self.kind}/{self.form}"


def elsewhere(kind: str, form: str, sites: Callable[[Setup, Bench], list[str]], apply: Apply, ladder: tuple[float, ...],
              **rest: object) -> Plant:  # fmt: skip
    """A plant that is not quantization: it shows in every lane, and need not keep the float function."""
    return Plant(
        kind, form, sites, apply, ladder,
        **{"verdicts": (NOT_QUANTIZATION,), "lanes": EVERYWHERE, "keeps_float": False, "knows_expected": True, **rest},  # type: ignore[arg-type]
    )  # fmt: skip


def anywhere(setup: Setup, bench: Bench) -> list[str]:
    """The whole network is the site."""
    return [""]


def override(scheme: Scheme, tensor: str, spec: QuantSpec | None) -> Scheme:
    """The scheme with a rule for one tensor."""
    return Scheme(**{**vars(scheme), "overrides": {**scheme.overrides, tensor: spec}})


def names_of(op: Operation) -> frozenset[str]:
    """Names that count as the step."""
    return frozenset((op.name, op.layer))


def step_of(bench: Bench, name: str) -> Operation:
    """The step of a tap or weight.

    Raises
    ------
    NoSite
        If there is none of that name.
    """
    for op in bench.graph.operations:
        if name in (op.name, op.weight):
            return op
    raise NoSite(f"no step is called {name}")
