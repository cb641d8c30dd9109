"""Which channels of the network have to be scaled alike for its float output to stay as it is.

Cross-layer equalization divides a tensor's channels by factors. What an operation makes of them is known of weighted layers,
whose rows and columns take factors up, and is *tried* for every other operation: the channels of random inputs are multiplied
by powers of two, which commute with rounding, so that an operation that lets factors through (a max pool, a flatten, a channel
shuffle, a concatenation, an add whose operands agree) returns exactly the same powers of two, each at the place that its
channel has gone to. Whatever fails that keeps its channels' factors at one, and the reason is kept.

Every channel of every tensor gets a *label*; equal labels have one factor. A pair of layers, a residual stage whose joins tie
many layers together, a concatenation read by four branches: all are sets of labels with their writers and readers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.memory import by_channel

WEIGHTED = frozenset({"conv", "conv-transpose", "linear"})
_JOINS = frozenset({"add", "concat"})
_TRIED = frozenset({"keep", "pool", "activation", "mul", "resize"}) | _JOINS
#: Questions to a tensor whose answers are the same whatever its factors.
_SHAPES = frozenset("size getattr dim ndimension numel shape".split())
#: Powers of two that a trial multiplies by: 2**0 to 2**31, and all channels at once by 2**±20.
_BASE = 32
_FAR = 20
_CURE = "qkit.surgery.lite, or ReLU in its place, would allow it"


@dataclass(frozen=True, eq=False)
class Labels:
    """The labels of a tensor's channels along one axis."""

    axis: int
    ids: np.ndarray


@dataclass(frozen=True, eq=False)
class Layer:
    """A weighted layer with the labels that it reads and writes; `refusal` says why its weights may not be changed."""

    op: Operation
    module: nn.Module | None
    reads: np.ndarray
    writes: np.ndarray
    refusal: str | None


class Channels:
    """Labels of all channels of a graph.

    Attributes
    ----------
    layers
        The weighted layers in execution order.
    taps
        Every operation's labels, by its index, where it has a tensor.
    """

    def __init__(self, model: nn.Module, graph: Graph, *, joins: bool = True) -> None:
        self._model, self._graph, self._joins = model, graph, joins
        self._parent: list[int] = []
        self._why: dict[int, str] = {}
        self._refusals = Refusals(model, graph)
        self._constants: dict[int, Any] = {}
        self._deferred: dict[int, Operation] = {}
        self._draw = torch.Generator().manual_seed(0)
        self.layers: list[Layer] = []
        self.taps: dict[int, Labels] = {}
        for op in graph.operations:
            self._walk(op)

    def root(self, label: int) -> int:
        """The label that stands for all that are equal to this one."""
        while self._parent[label] != label:
            self._parent[label] = self._parent[self._parent[label]]
            label = self._parent[label]
        return label

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """`root` of each."""
        return np.fromiter((self.root(int(label)) for label in labels), np.int64, len(labels))

    def pinned(self, label: int) -> str | None:
        """Why the label's factor has to be one; None if it is free."""
        return self._why.get(self.root(label))

    def _walk(self, op: Operation) -> None:
        sources = [self.taps[i] for i in self._flat(op)[1] if i in self.taps]
        if op.kind == "output":
            self._pin(sources, "is the network's output")
        elif op.kind == "meta":
            # a shape is the same whatever the factors; an index of the greatest or a comparison may not be
            if op.name.rpartition(":")[2].partition("#")[0] not in _SHAPES:
                self._pin(sources, f"is read by {op.name}, which depends on its values")
        elif op.kind in WEIGHTED:
            self._walk_weighted(op, sources)
        elif not op.shape and op.kind == "keep":
            self._deferred[op.index] = op  # a tuple's parts are tried one by one
        elif not op.shape:
            self._pin(sources, f"is read by {op.name}, which returns no single tensor")
        else:
            self._walk_other(op)

    def _walk_weighted(self, op: Operation, sources: Sequence[Labels]) -> None:
        module, refusal = self._refusals.of(op)
        channels = op.shape[op.channel_axis]
        shape = self._graph.operations[op.inputs[0]].shape
        axis = len(shape) - 1 if op.kind == "linear" else 1
        if module is not None and (op.inputs[0] in self._deferred or sources[0].axis != axis):
            refusal = refusal or "reads along another axis than its input's channels"
        if refusal is not None:
            self._pin(sources, f"is read by {op.name}, which {refusal}")
        writes = self._fresh(op.channel_axis, channels, None if refusal is None else f"comes from {op.name}, which {refusal}")
        if (bounded := clamped(op)) is not None:
            self._pin([writes], bounded)
        reads = sources[0] if refusal is None else self._fresh(axis, shape[axis], refusal)
        self.layers.append(Layer(op, module, reads.ids, writes.ids, refusal))
        self.taps[op.index] = writes

    def _walk_other(self, op: Operation) -> None:
        call, inputs = self._flat(op)
        sources = [self.taps[i] for i in inputs if i in self.taps]
        free = [labels for labels in sources if any(self.pinned(int(i)) is None for i in set(labels.ids))]
        why = self._refused(op, inputs) or clamped(op)
        if why is None and free:
            why = self._merge(op, inputs, free) or self._try(op, call, inputs)
            if why is None:
                return
            if op.kind == "keep":
                # it may have spread the channels over two axes, and a later operation may put them back: try both as one
                self._deferred[op.index] = op
                return
        if why is not None:
            self._pin(sources, why)
        reasons = (self.pinned(int(labels.ids[0])) for labels in sources if len(labels.ids))
        axis = min(op.channel_axis, len(op.shape) - 1)
        self.taps[op.index] = self._fresh(axis, op.shape[axis], next((r for r in reasons if r), f"comes from {op.name}"))

    def _flat(self, op: Operation) -> tuple[Callable[..., Any], tuple[int, ...]]:
        """The operation's function together with those of the deferred operations that it reads, and what all of them read."""
        parts = [self._flat(self._deferred[i]) if i in self._deferred else None for i in op.inputs]
        if not any(parts):
            return op.call, op.inputs

        def call(*values: Any) -> Any:
            rest = iter(values)
            return op.call(*(next(rest) if part is None else part[0](*(next(rest) for _ in part[1])) for part in parts))

        return call, tuple(i for part, own in zip(parts, op.inputs, strict=True) for i in (part[1] if part else (own,)))

    def _refused(self, op: Operation, inputs: tuple[int, ...]) -> str | None:
        if not inputs:
            return f"comes from {op.name}"
        if op.kind not in _TRIED:
            return f"is read by {op.name} ({op.kind}), which takes no factors"
        if op.kind in _JOINS and len(inputs) > 1 and not self._joins:
            return f"is joined with another tensor in {op.name} (joins=True scales all parts of a join alike)"
        return None

    def _merge(self, op: Operation, inputs: tuple[int, ...], free: Sequence[Labels]) -> str | None:
        """Ask of an add that all operands' channels have equal factors; of a product that one operand has none."""
        if op.kind == "mul" and len(free) > 1:
            return f"is multiplied by another scaled tensor in {op.name}"
        if op.kind != "add" or len(inputs) < 2:
            return None
        operands = [(self.taps[i], self._graph.operations[i].shape) for i in inputs if i in self.taps]
        if any(o.axis != free[0].axis or len(o.ids) != len(free[0].ids) or shape != op.shape for o, shape in operands):
            return f"is broadcast in {op.name}"
        for labels, _ in operands:
            for a, b in zip(free[0].ids, labels.ids, strict=True):
                self._union(int(a), int(b))
        return None

    def _try(self, op: Operation, call: Callable[..., Any], inputs: tuple[int, ...]) -> str | None:
        """Put the operation to trial and label its output's channels; returns why it failed, None if it did not."""
        sources = [self.taps[i] for i in inputs if i in self.taps]
        roots = sorted({self.root(int(i)) for labels in sources for i in labels.ids if self.pinned(int(i)) is None})
        codes = {root: code for code, root in enumerate(roots, 1)}
        digits = max(math.ceil(math.log(len(roots) + 1, _BASE) - 1e-9), 1)
        coded = [np.array([codes.get(int(r), 0) for r in self._roots_at(i)]) for i in inputs]
        try:
            values = [self._value(i) for i in inputs]
            plain = call(*values)
            scaled = [call(*self._scaled(inputs, values, [c // _BASE**d % _BASE for c in coded])) for d in range(digits)]
            # all by one great factor and by one small: a square would pass for another channel, a far bound would not be seen
            whole = {p: call(*self._scaled(inputs, values, [p * (c > 0) for c in coded])) for p in (-_FAR, _FAR)}
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
            return f"is read by {op.name}, which could not be tried apart from the network ({str(error).splitlines()[0]})"
        axes = (op.channel_axis, *(a for a in range(len(op.shape)) if a != op.channel_axis))
        for axis in axes if isinstance(plain, Tensor) and tuple(plain.shape) == op.shape else ():
            found = _codes(plain, scaled, axis)
            if found is None or found.max(initial=0) > len(roots):
                continue
            if all(torch.equal(other, _times(plain, p * (found > 0), axis)) for p, other in whole.items()):
                zero = self._fresh(axis, len(found), None)  # channels that are always zero may have any factor
                pinned = int(self._fresh(axis, 1, f"has a part in {op.name} whose factors are one").ids[0])
                ids = [int(z) if c < 0 else roots[c - 1] if c else pinned for c, z in zip(found, zero.ids, strict=True)]
                self.taps[op.index] = Labels(axis, np.array(ids, np.int64))
                return None
        if op.kind == "activation":
            return f"is read by {op.name}, which is not positively homogeneous: {_CURE}"
        return f"is read by {op.name}, which lets no factors through"

    def _roots_at(self, index: int) -> np.ndarray:
        return self.roots(self.taps[index].ids) if index in self.taps else np.empty(0, np.int64)

    def _scaled(self, inputs: tuple[int, ...], values: Sequence[Any], powers: Sequence[np.ndarray]) -> list[Any]:
        axes = [self.taps[i].axis if i in self.taps else None for i in inputs]
        return [v if a is None else _times(v, p, a) for v, p, a in zip(values, powers, axes, strict=True)]

    def _value(self, index: int) -> Any:
        """Something of the shape of the operation's value; its value itself where it is no floating tensor."""
        op = self._graph.operations[index]
        if index in self.taps:
            return torch.randn(op.shape, generator=self._draw).to(self._graph.device)
        if index not in self._constants:
            self._constants[index] = op.call(*(self._value(i) for i in op.inputs))
        return self._constants[index]

    def _fresh(self, axis: int, count: int, why: str | None) -> Labels:
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        if why is not None:
            self._why.update(dict.fromkeys(range(start, start + count), why))
        return Labels(axis, np.arange(start, start + count))

    def _pin(self, sources: Sequence[Labels], why: str) -> None:
        for labels in sources:
            for root in {self.root(int(i)) for i in labels.ids}:
                self._why.setdefault(root, why)

    def _union(self, a: int, b: int) -> None:
        a, b = self.root(a), self.root(b)
        if a != b:
            why = self._why.get(a) or self._why.get(b)
            self._parent[b] = a
            if why is not None:
                self._why[a] = why


def clamped(op: Operation) -> str | None:
    """Why the operation's fused activation forbids factors; None if it is none or ReLU."""
    low, high = op.act
    if low in (0.0, -math.inf) and high == math.inf:
        return None
    bounds = f"{'' if low == -math.inf else f'{low:g}'}..{'' if high == math.inf else f'{high:g}'}"
    return f"is clamped to {bounds} in {op.name}, which is not positively homogeneous: {_CURE}"


def _times(x: Tensor, power: np.ndarray, axis: int) -> Tensor:
    """`x` with its channels along `axis` times these powers of two."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return x * torch.exp2(torch.from_numpy(power).to(x.device, x.dtype)).view(shape)


def _codes(plain: Tensor, scaled: Sequence[Tensor], axis: int) -> np.ndarray | None:
    """The number that each channel was scaled by, -1 for channels that are all zero; None if they were not scaled as a whole."""
    rows = by_channel(plain, axis)
    peak, at = rows.abs().max(1) if rows.shape[1] else (rows.new_zeros(len(rows)), None)
    if at is None or not bool(torch.isfinite(peak).all()):
        return None
    live = peak > 0
    top = rows.gather(1, at[:, None]).squeeze(1)
    total = np.zeros(len(rows), np.int64)
    for digit, tensor in enumerate(scaled):
        other = by_channel(tensor, axis)
        ratio = torch.where(live, other.gather(1, at[:, None]).squeeze(1) / top, torch.ones_like(top))
        if not bool((ratio > 0).all()):
            return None
        power = torch.log2(ratio).round()
        if float(power.min()) < 0 or float(power.max()) >= _BASE or not torch.equal(other, rows * torch.exp2(power)[:, None]):
            return None
        total += power.long().cpu().numpy() * _BASE**digit
    return np.where(live.cpu().numpy(), total, -1)


class Refusals:
    """Tells of which layers the weights may be changed, and why not of the others."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self._graph = graph
        self._modules = dict(model.named_modules(remove_duplicate=False))
        named = list(model.named_parameters(remove_duplicate=False))
        self._owners = Counter(id(parameter) for _, parameter in named)
        self._calls = Counter(op.weight for op in graph.operations if op.weight is not None)
        self._others = {op.name for op in graph.operations if op.kind in {"constant", "meta"}}
        # a model that is frozen as a whole is one that is only used, not one of which a layer is to stay as it is
        self._some_train = any(parameter.requires_grad for _, parameter in named)

    def of(self, op: Operation) -> tuple[nn.Module | None, str | None]:
        """The operation's module, None if it has no plain one; and what keeps it from being changed, None if nothing does."""
        module = self._modules.get(op.layer)
        if module is not None and parametrize.is_parametrized(module):
            return None, "has a parametrized weight: torch.nn.utils.parametrize.remove_parametrizations makes it plain"
        weight = getattr(module, "weight", None)
        if module is not None and isinstance(weight, nn.Parameter) and self._owners[id(weight)] > 1:
            return module, f"shares its weight with another module ({op.layer}.weight)"
        if module is None or op.weight != f"{op.layer}.weight" or not isinstance(weight, Tensor):
            return None, "is a call of a function in a forward: make it a module"
        if op.computed or op.folded.count("batch") > 1 or not set(op.folded) <= {"batch", "scale", "inverse"}:
            return None, "computes with more than its weights say (in its forward, a hook or a subclass)"
        if self._calls[op.weight] > 1:
            return module, f"is called {self._calls[op.weight]} times with the same weight"
        norm = None if op.norm is None else self._modules.get(op.norm)
        if op.norm is not None and not isinstance(getattr(norm, "running_mean", None), Tensor):
            return module, f"is followed by a batch norm in {op.norm}, whose numbers have names of their own"
        for part, path in ((module, op.layer), (norm, op.norm)):
            if part is not None and (reason := self.reason(part, path or "")) is not None:
                return module, reason
        return module, None

    def reason(self, module: nn.Module, path: str) -> str | None:
        """What keeps the weight and bias of the module at that path from being changed, None if nothing does."""
        if parametrize.is_parametrized(module):
            return f"is followed by {path}, which is parametrized"
        for name in ("weight", "bias"):
            value = getattr(module, name, None)
            if value is None:
                continue
            if not isinstance(value, nn.Parameter):
                return f"computes its {name} as it runs ({path}.{name})"
            if self._owners[id(value)] > 1:
                return f"shares its {name} with another module ({path}.{name})"
            if not value.requires_grad and self._some_train:
                return f"is frozen ({path}.{name} takes no gradient, others do)"
            if f"{path}.{name}" in self._others:
                return f"has its {name} read elsewhere in a forward too ({path}.{name})"
        return None
