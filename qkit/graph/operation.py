"""One operation of the engine: what a graph is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qkit.graph import table

#: Kinds that end in a grid of their own.
QUANTIZED = frozenset(
    "input constant conv conv-transpose linear batchnorm add mul concat pool activation norm matmul resize".split()
)


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation of the engine.

    Attributes
    ----------
    index
        Position in `Graph.operations`.
    name
        Unique; the tap's name if the operation has a grid of its own (see DESIGN: module path, ``path:op``, ``input``).
    kind
        One of `QUANTIZED`, or "keep" (shares its input's grid), "float" (stays float), "meta" (no tensor), "output".
    layer
        Path of the module that the operation is in.
    inputs
        Indices of the operations that it reads.
    argument
        Position of the model's argument that it stands for, or None.
    call
        ``call(*values)``, for weighted operations ``call(value, weight, bias)``; returns a fresh tensor where `quantized`.
    tap
        Name of the tap whose grid the output is on, None where it is float.
    weight
        Name of its weight in `Graph.weights`, or None; `bias` likewise in `Graph.biases`.
    norm
        Path of the batch norm that is folded into the weight, or that the operation itself is; None where there is none.
    weight_axis
        Output-channel axis of the weight, None where a grid per channel is impossible.
    act
        Bounds of the fused activation.
    shape, channel_axis
        Of the output on the example batch; () where there is no single tensor.
    macs
        Multiply-accumulates per sample.
    note
        What a person should know: why it stays float, or what is simulated in float inside.
    elements
        Floating-point numbers per sample that it gives, in all its tensors.
    computed
        Whether weight or bias are computed from parameters, not parameters as they stand.
    folded
        What is folded into them, in order: `qkit.graph.normal_form.fixed_norms.Recipe.how`.
    divisor
        Index of the operation whose value it divides by, None where there is none or it is kept from zero.
    origin
        Which call of the forward gives its value: ``path:function#k``, the k-th of that function in that module; "" if unknown.
    groups
        Of a grouped transposed convolution: its weight here is (outputs, inputs / groups, ...), 1 for every other.
    """

    index: int
    name: str
    kind: str
    layer: str
    inputs: tuple[int, ...]
    call: Callable[..., Any]
    tap: str | None = None
    weight: str | None = None
    bias: str | None = None
    norm: str | None = None
    weight_axis: int | None = 0
    act: table.Bounds = table.UNBOUNDED
    shape: tuple[int, ...] = ()
    channel_axis: int = 1
    argument: int | None = None
    macs: int = 0
    note: str | None = None
    elements: int = 0
    computed: bool = False
    folded: tuple[str, ...] = ()
    groups: int = 1
    divisor: int | None = None
    origin: str = ""

    @property
    def quantized(self) -> bool:
        """Whether its output has a grid of its own."""
        return self.kind in QUANTIZED

    @property
    def terms(self) -> int:
        """Products that each element of its output is the sum of; 1 where it multiplies nothing."""
        return max(-(-self.macs // max(self.elements, 1)), 1)

    def __repr__(self) -> str:
        return f"Step({self.index}: {self.name}, {self.kind}, {'x'.join(map(str, self.shape))})"
