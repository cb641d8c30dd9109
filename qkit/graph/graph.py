"""The network as an integer engine sees it: a list of operations, with a tap at every tensor that the engine would hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from qkit.errors import GraphError
from qkit.graph.door.entry import Entry
from qkit.graph.operation import Operation
from qkit.graph.share import Share, share_of


@dataclass(frozen=True, eq=False)
class Graph:
    """The folded network: `operations` in execution order, `weights` and `biases` by name, all on one device.

    Attributes
    ----------
    deviation
        Greatest difference between this graph's float output and the model's on the example batch, relative to the output's
        greatest magnitude.
    own_error
        How far the model's float32 output is from its own in float64, relative; found only where `deviation` is large, else 0.
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
    nodes
        Of an ONNX file, by operation: the node that makes its tensor, such as "Conv node 'conv1'".
    """

    operations: tuple[Operation, ...]
    weights: Mapping[str, Tensor]
    biases: Mapping[str, Tensor]
    model_name: str
    device: torch.device
    entry: Entry
    deviation: float = 0.0
    own_error: float = 0.0
    last_use: Mapping[int, int] = field(default_factory=dict)
    leaf_modules: tuple[type[nn.Module] | str, ...] = ()
    front: str = "export"
    remarks: tuple[str, ...] = ()
    fixed_batch: int | None = None
    nodes: Mapping[str, str] = field(default_factory=dict)

    @property
    def taps(self) -> tuple[str, ...]:
        """Names of the taps in execution order."""
        return tuple(op.name for op in self.operations if op.quantized)

    def operation(self, tap: str) -> Operation:
        """The operation with that name.

        Raises
        ------
        GraphError
            If there is none; suggests the nearest names.
        """
        for op in self.operations:
            if tap in (op.name, op.weight):
                return op
        near = [name for name in self.taps if tap and (tap in name or name in tap)][:5] or list(self.taps[:5])
        raise GraphError(f"there is no tap {tap!r} in {self.model_name}; did you mean one of {', '.join(near)}?")

    @property
    def unexplained(self) -> float:
        """The deviation as far as the model's own rounding does not explain it: what the graph is to blame for."""
        return 0.0 if self.own_error else self.deviation

    @property
    def notes(self) -> dict[str, str]:
        """What stays float, or is simulated in float inside, by operation name."""
        return {op.name: op.note for op in self.operations if op.note}

    @cached_property
    def share(self) -> Share:
        """How much of the network is computed on integers."""
        return share_of(self.operations)

    def __repr__(self) -> str:
        kinds = Counter(op.kind for op in self.operations if op.quantized)
        floats = sum(op.kind == "float" for op in self.operations)
        listed = ", ".join(f"{n} {kind}" for kind, n in kinds.items())
        return f"Graph({self.model_name}: {len(self.taps)} taps ({listed}), {floats} operations stay float)"
