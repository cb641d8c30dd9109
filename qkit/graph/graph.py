"""The network as an integer engine sees it: a list of steps, with a tap at every tensor that the engine would hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from qkit.errors import GraphError
from qkit.graph.entry import Entry
from qkit.graph.share import Share, share_of
from qkit.graph.step import Step


@dataclass(frozen=True, eq=False)
class Graph:
    """The folded network: `steps` in execution order, `weights` and `biases` by name, all on one device.

    Attributes
    ----------
    deviation
        Greatest difference between this graph's float output and the model's on the example batch, relative to the output's
        greatest magnitude.
    leaf_modules
        What was kept in float on the user's word.
    front
        The way the network came in: "export", "fx", "onnx" or "pt2".
    remarks
        What has to be said of the way from the model to the graph.
    entry
        How it takes a batch.
    fixed_batch
        The only batch size that it runs at; None where the batch is open.
    """

    steps: tuple[Step, ...]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    model_name: str
    device: torch.device
    entry: Entry
    deviation: float = 0.0
    last_use: Mapping[int, int] = field(default_factory=dict)
    leaf_modules: tuple[type[nn.Module] | str, ...] = ()
    front: str = "export"
    remarks: tuple[str, ...] = ()
    fixed_batch: int | None = None

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps in execution order."""
        return tuple(step.name for step in self.steps if step.quantized)

    def step(self, tap: str) -> Step:
        """The step with that name.

        Raises
        ------
        GraphError
            If there is none; suggests the nearest names.
        """
        for step in self.steps:
            if tap in (step.name, step.weight):
                return step
        near = [name for name in self.taps if tap and (tap in name or name in tap)][:5] or list(self.taps[:5])
        raise GraphError(f"there is no tap {tap!r} in {self.model_name}; did you mean one of {', '.join(near)}?")

    @property
    def notes(self) -> dict[str, str]:
        """What stays float, or is simulated in float inside, by step name."""
        return {step.name: step.note for step in self.steps if step.note}

    @cached_property
    def share(self) -> Share:
        """How much of the network is computed on integers."""
        return share_of(self.steps)

    def __repr__(self) -> str:
        kinds = Counter(step.kind for step in self.steps if step.quantized)
        floats = sum(step.kind == "float" for step in self.steps)
        listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return f"Graph({self.model_name}: {len(self.taps)} taps ({listed}), {floats} operations stay float)"
