"""What cases there are, described by data alone."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.faults.cases import sites_of, stable_seed
from benchmarks.faults.engine.controls import CONTROLS
from benchmarks.faults.engine.plants import FORMS, KINDS, LEVELS, Form

NETWORKS = ("vgg_small", "resnet_small", "inception_small", "mobilenet_v2_lite", "mobilenet_v2_hostile")
#: Schemes that cost these networks next to nothing, so that what is lost is the engine's: weights have scales per channel.
SCHEMES = ("int8", "int8-symmetric", "int8", "int8-per-channel-power-of-two")
#: Traces from files: other images, another network, and a right one.
TRACES = ("other order", "another network", "right")
_REPORT_TRACES, _DEVELOP_TRACES = 4, 2


@dataclass(frozen=True)
class EngineSpec:
    """One case.

    Attributes
    ----------
    split, group
        "develop" or "report"; "fault", "control" or "trace".
    network, scheme, bits
        What runs, and the engine's width.
    kind, form
        Of the fault; of a control or a trace, its name twice.
    level
        How strong, where that can be chosen.
    seed
        Of images, site and dose.
    hides
        Whether the engine writes only some of its taps.
    """

    split: str
    group: str
    network: str
    scheme: str
    bits: int
    kind: str
    form: str
    level: str
    seed: int
    hides: bool = False

    @property
    def id(self) -> str:
        """Unique, and stable from run to run."""
        width = f"{self.scheme}@{self.bits}"
        return f"{self.split}:{self.group}:{self.network}:{width}:{self.kind}/{self.form}:{self.level}:{self.seed}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """As the benchmark of the diagnosis has them."""
        return (self.kind,)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the id."""
        return {"id": self.id, **asdict(self)}


def form_of(spec: EngineSpec) -> Form:
    """The form that a fault's case plants."""
    return next(f for f in FORMS if (f.kind, f.name) == (spec.kind, spec.form))


def cases(split: str) -> list[EngineSpec]:
    """All cases of a split: a fault a kind, network and level, sound engines, traces.

    Of the five networks each kind is planted in four, another one left out each time; development has one of the three levels.
    """
    return [*_faults(split), *_controls(split), *_traces(split)]


def _faults(split: str) -> list[EngineSpec]:
    found = []
    for k, kind in enumerate(KINDS):
        forms = [form for form in FORMS if form.kind == kind]
        for n, network in enumerate(NETWORKS):
            for v, level in enumerate(LEVELS):
                left_out = n == k % len(NETWORKS) if split == "report" else (n + k) % len(LEVELS) != v
                if left_out:
                    continue
                seed = stable_seed("engine", split, kind, network, level) % 100_000
                form = forms[(n + v) % len(forms)]
                bits = form.widths[n % len(form.widths)]
                scheme = SCHEMES[(n + 2 * v + k) % len(SCHEMES)]
                hides = (n + v + k) % 3 == 0
                found.append(EngineSpec(split, "fault", network, scheme, bits, kind, form.name, level, seed, hides))
    return found


def _controls(split: str) -> list[EngineSpec]:
    found = []
    for c, name in enumerate(CONTROLS):
        for n, network in enumerate(NETWORKS):
            left_out = n == c % len(NETWORKS) if split == "report" else (n + c) % 3 != 0
            if left_out:
                continue
            seed = stable_seed("engine", split, "control", name, network) % 100_000
            bits, scheme = (8, 16)[(n + c) % 4 == 3], SCHEMES[(n + c) % len(SCHEMES)]
            found.append(EngineSpec(split, "control", network, scheme, bits, name, name, "none", seed, (n + c) % 2 == 0))
    return found


def _traces(split: str) -> list[EngineSpec]:
    found = []
    for k, kind in enumerate(TRACES):
        for number in range(_REPORT_TRACES if split == "report" else _DEVELOP_TRACES):
            # the other way round in development, so that the splits share no network where that can be
            network = NETWORKS[(number + k + (0 if split == "report" else _REPORT_TRACES)) % len(NETWORKS)]
            seed = stable_seed("engine", split, kind, number) % 100_000
            found.append(EngineSpec(split, "trace", network, "int8", 8, kind, kind, "none", seed))
    return found


__all__ = ["KINDS", "LEVELS", "NETWORKS", "EngineSpec", "cases", "form_of", "sites_of"]
