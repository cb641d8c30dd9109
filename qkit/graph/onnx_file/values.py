"""What a tensor of the file is while the file is read: known beforehand, or made by the module at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from qkit.graph.onnx_file.network import OnnxGrid


@dataclass(eq=False)
class Value:
    """A tensor of the file at the batches at which the file is tried out.

    `probes` holds one tensor where the value is the same at every batch, else one for each; on the meta device (shapes and
    dtypes only) where the value depends on the inputs' data.
    """

    name: str
    """Of the tensor in the file."""
    probes: tuple[Tensor, ...]
    known: bool
    """The values are known beforehand: initializers, and what is computed from them and from shapes."""
    slot: int = -1
    """Number of the value while the module runs; -1 for one that is known."""
    source: str | None = None
    """The initializer of the file that a constant holds."""
    permutation: tuple[int, ...] | None = None
    """Axis i of a constant is axis ``permutation[i]`` of its initializer."""
    codes: OnnxGrid | None = None
    """Set where the file holds integer codes and the module the numbers that they stand for."""
    grid: OnnxGrid | None = None
    """Set where the file has the numbers themselves, on a known grid: constants behind a DequantizeLinear."""
    integers: tuple[int, bool] | None = None
    """Bits, and whether signed, of the file's integer type, which torch may not have (uint16, int4)."""
    origin: Value | None = None
    """Of codes: the value that was quantized."""
    weight: bool = False
    """Used where an operation takes its weights."""
    _variants: dict[Any, Value] = field(default_factory=dict)

    @property
    def constant(self) -> bool:
        """Whether the value is known, and the same at every batch."""
        return self.known and len(self.probes) == 1

    def at(self, probe: int) -> Tensor:
        """The tensor at the probe's batch."""
        return self.probes[0] if len(self.probes) == 1 else self.probes[probe]

    def on_meta(self, probe: int) -> Tensor:
        """Shape and dtype that the module sees at the probe's batch."""
        return as_at_run_time(self.at(probe)).to("meta")

    def permuted(self, permutation: Sequence[int]) -> Value:
        """A constant with its axes in another order: one parameter, however often it is asked for."""
        order = tuple(permutation)
        before = self.permutation or tuple(range(len(order)))
        return self.variant(
            ("permuted", order), lambda x: x.permute(order).contiguous(), permutation=tuple(before[axis] for axis in order)
        )

    def variant(self, key: Any, change: Callable[[Tensor], Tensor], *, permutation: tuple[int, ...] | None = None) -> Value:
        """Another form of a constant (reshaped, say), with the name that it has in the file: one for each `key`."""
        if key not in self._variants:
            kept = self.permutation if permutation is None else permutation
            kept = None if kept is not None and kept == tuple(range(len(kept))) else kept
            made = replace(self, probes=(change(self.probes[0]),), permutation=kept, weight=False, _variants={})
            self._variants[key] = made
        return self._variants[key]


def as_at_run_time(tensor: Tensor) -> Tensor:
    """Floating-point tensors of any width as float32, as the module computes."""
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


def constant(name: str, tensor: Tensor) -> Value:
    """A value that is known and the same at every batch."""
    return Value(name, (tensor,), known=True)


@dataclass(frozen=True, eq=False)
class TorchCall:
    """One call of a torch function: how a node of the file is computed."""

    function: Callable[..., Any]
    operands: tuple[Value | None, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    codes: OnnxGrid | None = None
    """The grid of the first output, where the file holds integer codes there."""
    grid: OnnxGrid | None = None
    """The grid of the first output, where the file holds numbers of a known grid there."""


Planned = TorchCall | tuple[Value, ...]
"""What an operation's function makes of a node: a call, or its outputs where nothing is to compute."""
