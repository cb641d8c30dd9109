"""What a calibration in place of training was told, and what it learns when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from torch import nn

from qkit.graph import Graph
from qkit.quant.calibration import make_plan
from qkit.quant.estimators import Observation
from qkit.quant.plan import Plan
from qkit.quant.schemes import Scheme

Phase = Literal["observers", "norms", "biases", "done"]


@dataclass(frozen=True)
class Settings:
    """What `qkit.training.calibrating` was told; a saved state is of the same.

    Attributes
    ----------
    observer_epochs, norm_epochs, bias_epochs
        How many epochs of training mode ranges, batch norms and biases are learnt in, in this order.
    bias_factor
        Share by which a batch moves the biases; None for means over all samples.
    scheme
        Grid rules.
    method, weight_method, percentile, methods
        As of `qkit.Study.calibrate`.
    leaf_modules
        Kept out of the trace.
    """

    observer_epochs: int
    norm_epochs: int
    bias_epochs: int
    bias_factor: float | None
    scheme: Scheme
    method: str
    weight_method: str
    percentile: float
    methods: Mapping[str, str] | None
    leaf_modules: tuple[type[nn.Module] | str, ...]

    @property
    def total_epochs(self) -> int:
        """Epochs until all is learnt."""
        return self.observer_epochs + self.norm_epochs + self.bias_epochs

    def phase(self, epoch: int) -> Phase:
        """What is learnt in that epoch."""
        if epoch < self.observer_epochs:
            return "observers"
        if epoch < self.observer_epochs + self.norm_epochs:
            return "norms"
        return "biases" if epoch < self.total_epochs else "done"

    def plan(self, graph: Graph, seen: Mapping[str, Observation]) -> Plan:
        """The plan that follows from what was seen."""
        return make_plan(
            graph, seen, self.scheme, method=self.method, weight_method=self.weight_method, percentile=self.percentile,
            methods=self.methods,
        )  # fmt: skip

    def told(self) -> dict[str, str]:
        """In words, to compare with those of a saved state."""
        return {name: repr(value) for name, value in asdict(self).items() if name != "leaf_modules"}
