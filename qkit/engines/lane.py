"""What a real engine computed, as a lane: tensors by tap, batch by batch, on the same inputs as the kit's own lanes.

An engine's lane is not executed by the kit's graph. It is either run by the engine (`qkit.engines.onnx.runtime`) or read from
what the engine wrote (`qkit.engines.traces`). Either way a batch of it is a mapping of taps to tensors, and whatever compares
lanes takes both kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from qkit.execution.loading import Batch
from qkit.quant.grids import QuantParams

__all__ = ["EngineBatch", "EngineLane", "EngineTensor"]


@dataclass(frozen=True, eq=False)
class EngineTensor:
    """One tensor of a batch as the engine holds it.

    Attributes
    ----------
    values
        Real numbers, float32, in the layout of the kit's tap (NCHW).
    codes
        The engine's integers, the same shape; None where it computed in float or wrote real numbers only.
    params
        Their grid; None without codes.
    """

    values: Tensor
    codes: Tensor | None = None
    params: QuantParams | None = None


@dataclass(frozen=True, eq=False)
class EngineBatch:
    """A batch of an engine's lane.

    Attributes
    ----------
    batch
        Inputs and targets that it belongs to.
    taps
        By tap name, what the engine holds there; taps that it fuses away or does not write are missing.
    outputs
        The network's outputs in the structure of the model's, or None where the engine did not write them.
    """

    batch: Batch
    taps: Mapping[str, EngineTensor]
    outputs: Any = None


class EngineLane(Protocol):
    """An engine's execution of the same network.

    Attributes
    ----------
    name
        Shown in tables, such as "onnxruntime int8".
    bits
        Width of its activations: 32 for float, 16, 8.
    notes
        What a reader has to know: taps that are missing and why, assumptions about layout or scale.
    """

    name: str
    bits: int
    notes: tuple[str, ...]

    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        """The lane's batches over the loader."""
        ...
