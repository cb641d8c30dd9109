"""From finished cells to rows: seeds pooled, losses against float and against torchao paired image by image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.accuracy.cells import ALONE, FLOAT, SCHEMES, TREATMENTS
from benchmarks.accuracy.pool import pooled
from benchmarks.accuracy.store import unpacked
from qkit.execution.statistics import Interval
from qkit.ptq import STEPS

#: Pooled, and seed by seed.
Difference = tuple[Interval, tuple[float, ...]]
Records = Mapping[str, dict[str, Any]]

#: Most that may be lost against float, as a share.
TARGETS = {"ptc": 0.005, "ptc + qat": 0.003}
#: What of the kit is compared with what of torchao.
RIVALS = (("plain", "torchao"), ("ptc", "torchao"), ("qat", "torchao qat"), ("ptc + qat", "torchao qat"))


@dataclass(frozen=True)
class Row:
    """A network under a scheme, treated in one way, over all seeds.

    Attributes
    ----------
    exact, score
        Means over the seeds of float's and of the cell's top-1.
    loss
        Against float, paired and pooled.
    losses
        Seed by seed.
    seconds
        Of one core, the median.
    met
        Whether the mean loss is within the target; None where there is none.
    more
        What the cells have to say.
    """

    network: str
    scheme: str
    treatment: str
    exact: float
    score: float
    loss: Interval
    losses: tuple[float, ...]
    seconds: float
    met: bool | None
    more: tuple[Mapping[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "network": self.network,
            "scheme": self.scheme,
            "treatment": self.treatment,
            "float": self.exact,
            "score": self.score,
            "loss": self.loss.to_dict(),
            "losses": list(self.losses),
            "seconds": self.seconds,
            "met": self.met,
        }


class Table:
    """Records of finished cells, seen as rows."""

    def __init__(self, records: Records) -> None:
        self._cells: dict[tuple[str, str, str], dict[int, dict[str, Any]]] = {}
        for record in records.values():
            if "error" not in record:
                key = record["network"], record["scheme"], record["treatment"]
                self._cells.setdefault(key, {})[record["seed"]] = record
        self.keys = sorted(
            (key for key in self._cells if key[1] in SCHEMES), key=lambda k: (k[0], SCHEMES.index(k[1]), TREATMENTS.index(k[2]))
        )

    def of(self, network: str, scheme: str, treatment: str) -> dict[int, dict[str, Any]]:
        """Records by seed."""
        return self._cells.get((network, scheme, treatment), {})

    @property
    def networks(self) -> list[str]:
        """Those that have a float score."""
        return list(dict.fromkeys(network for network, scheme, _ in self.keys if scheme == FLOAT))

    def difference(
        self, network: str, first: tuple[str, str], second: tuple[str, str]
    ) -> tuple[Interval, tuple[float, ...]] | None:
        """How much the second (scheme and treatment) scores less than the first, pooled, and seed by seed."""
        one, other = self.of(network, *first), self.of(network, *second)
        floats = self.of(network, FLOAT, "plain")
        seeds = sorted(one.keys() & other.keys() & floats.keys())
        if not seeds:
            return None
        parts = [(floats[seed]["ids"], _hits(one[seed]) - _hits(other[seed])) for seed in seeds]
        return pooled(parts), tuple(float(differences.mean()) for _, differences in parts)

    def row(self, network: str, scheme: str, treatment: str) -> Row | None:
        """The row, where float and the cell have a seed in common."""
        found = self.difference(network, (FLOAT, "plain"), (scheme, treatment))
        if found is None:
            return None
        loss, losses = found
        cells, floats = self.of(network, scheme, treatment), self.of(network, FLOAT, "plain")
        seeds = sorted(cells.keys() & floats.keys())
        target = None if scheme == "int16" else TARGETS.get(treatment)
        return Row(
            network,
            scheme,
            treatment,
            fmean(_hits(floats[seed]).mean() for seed in seeds),
            fmean(_hits(cells[seed]).mean() for seed in seeds),
            loss,
            losses,
            median(cells[seed]["seconds"]["processor"] for seed in seeds),
            None if target is None else loss.value <= target + 1e-12,
            tuple(cells[seed].get("more", {}) for seed in seeds),
        )

    def rows(self, networks: Sequence[str] | None = None) -> list[Row]:
        """All rows but those of single steps."""
        keys = [key for key in self.keys if key[2] not in ALONE and (networks is None or key[0] in networks)]
        return [row for key in keys if (row := self.row(*key)) is not None]

    def rivals(self) -> list[dict[str, Any]]:
        """The kit against torchao: by how much it scores more."""
        found = []
        for network in self.networks:
            for scheme in SCHEMES:
                for own, other in RIVALS:
                    gain = self.difference(network, (scheme, own), (scheme, other))
                    if gain is not None:
                        entry = {"network": network, "scheme": scheme, "qkit": own, "torchao": other}
                        found.append({**entry, "gain": gain[0], "gains": gain[1]})
        return found

    def steps(self) -> list[dict[str, Any]]:
        """What each step of calibration did to the score, in sequence and alone: means over seeds, and how often it stayed."""
        found = []
        for network, scheme, treatment in self.keys:
            if treatment != "ptc":
                continue
            cells = self.of(network, scheme, "ptc")
            for step in STEPS:
                told = [e for r in cells.values() for e in r["more"]["steps"] if e["step"] == step]
                alone = self.difference(network, (scheme, f"only {step}"), (scheme, "plain"))
                found.append(
                    {
                        "network": network,
                        "scheme": scheme,
                        "step": step,
                        "seeds": len(cells),
                        "tried": len(told),
                        "kept": sum(e["kept"] for e in told),
                        "gain": fmean(e["gain"]["value"] for e in told) if told else None,
                        "least": min((e["gain"]["value"] for e in told), default=None),
                        "most": max((e["gain"]["value"] for e in told), default=None),
                        "alone": None if alone is None else alone[0],
                    }
                )
        return found


def _hits(record: dict[str, Any]) -> np.ndarray:
    return unpacked(record["hits"], record["n"])
