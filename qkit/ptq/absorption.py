"""High-bias absorption: what channels always exceed zero by moves on into the next layer's bias.

Equalization can leave channels whose pre-activations lie far above zero, and a range that is wide because of them. Where
channel c exceeds c_c ≥ 0 practically always, ReLU does nothing between, so c_c may be taken from the layer's bias and given to
the next layer's as W₂ c (Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section
4.1.3). The batch norm says how far: its outputs have mean β and deviation |γ|, so that ::

    c = max(0, β - 3 |γ|)

is exceeded by 99.87 % of a normal distribution. Without a batch norm it is the least value that was seen on calibration data.
The next layer must not pad with zeros: at the border a padded zero is no longer worth what its neighbours are.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from qkit.errors import DataError, GraphError
from qkit.graph import Graph, build, deviation, run_float
from qkit.graph.operation import Operation
from qkit.ptq.balance import grouped
from qkit.ptq.channels import WEIGHTED, Channels, Layer
from qkit.ptq.equalization import make_affine
from qkit.quant.estimators import Observation
from qkit.quant.memory import by_channel

#: Deviations below the mean that a channel is taken to exceed always.
DEVIATIONS = 3.0


@dataclass(frozen=True, eq=False)
class Absorbed:
    """The answer of :func:`absorb`.

    Attributes
    ----------
    model
        A copy of the model with other biases.
    amounts
        By tap, what was taken from its channels' biases, float64 (C,), none negative.
    readers
        By tap, the layer whose bias took it up.
    skipped
        By tap, why nothing was taken.
    notes
        Other changes of the model.
    deviation
        Greatest difference of the float output from the model's on the batch, relative to its greatest magnitude: not zero
        where an activation falls below what was taken.
    """

    model: nn.Module
    amounts: Mapping[str, np.ndarray]
    readers: Mapping[str, str]
    skipped: Mapping[str, str]
    notes: tuple[str, ...]
    deviation: float

    def table(self) -> pd.DataFrame:
        """A row per layer that gave: the layer that took it up, how many channels, and the greatest amount."""
        rows = [
            {"tap": tap, "reader": self.readers[tap], "channels": int((c > 0).sum()), "of": len(c), "greatest": float(c.max())}
            for tap, c in self.amounts.items()
        ]
        return pd.DataFrame(rows, columns=["tap", "reader", "channels", "of", "greatest"]).set_index("tap")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers; without the model."""
        return {
            "model": type(self.model).__name__,
            "amounts": {tap: amounts.tolist() for tap, amounts in self.amounts.items()},
            "readers": dict(self.readers),
            "skipped": dict(self.skipped),
            "notes": list(self.notes),
            "deviation": self.deviation,
        }

    def __repr__(self) -> str:
        first = (
            f"Absorbed({type(self.model).__name__}: {len(self.amounts)} layers gave to the next, {len(self.skipped)} skipped, "
            f"deviation {self.deviation:.1e})"
        )
        return "\n".join([first, *(f"  {tap}: {why}" for tap, why in self.skipped.items()), *(f"  {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(repr(self))}</pre>{self.table().to_html()}"


def absorb(
    model: nn.Module,
    graph: Graph,
    batch: Tensor | tuple[Any, ...],
    *,
    observations: Mapping[str, Observation] | None = None,
    deviations: float = DEVIATIONS,
) -> Absorbed:
    """A copy of the model in which biases that channels always exceed zero by have moved on to the next layer.

    Equalize first: what is equalized has other biases.

    Parameters
    ----------
    model, graph
        The model, and its own graph.
    batch
        Calibration inputs on which the float output's change is measured.
    observations
        What calibration saw of this graph's taps (`study.observe()`), for layers without batch norm; they are skipped without.
    deviations
        How many of them a channel's mean has to lie above zero.

    Raises
    ------
    DataError
        If `deviations` is negative.
    GraphError
        If an observation does not have the layer's channels.
    """
    if not deviations >= 0.0:
        raise DataError(f"deviations={deviations!r} has to be at least 0.")
    inputs = batch if isinstance(batch, tuple) else (batch,)
    channels = Channels(model, graph)
    layers = {layer.op.index: layer for layer in channels.layers}
    copied = copy.deepcopy(model)
    modules = dict(copied.named_modules(remove_duplicate=False))
    amounts: dict[str, np.ndarray] = {}
    readers: dict[str, str] = {}
    skipped: dict[str, str] = {}
    notes: list[str] = []
    for layer in channels.layers:
        name = layer.op.name
        reader = _reader(graph, layer, layers)
        taken = reader if isinstance(reader, str) else _amount(modules, layer, observations, deviations)
        index = taken if isinstance(taken, str) else _columns(graph, layer, reader)
        if isinstance(reader, str) or isinstance(taken, str) or isinstance(index, str):
            skipped[name] = str(index)
            continue
        with torch.no_grad():
            notes += [*_give(modules, layer.op, taken), *_take(modules, reader.op, taken[index])]
        amounts[name], readers[name] = taken, reader.op.name
    new = build(copied, inputs, device=graph.device, leaf_modules=graph.leaf_modules)
    changed = deviation(run_float(new, inputs), run_float(graph, inputs))
    return Absorbed(copied, amounts, readers, skipped, tuple(notes), changed)


def _reader(graph: Graph, layer: Layer, layers: Mapping[int, Layer]) -> Layer | str:
    """The layer that alone reads this one's output, through operations that keep the grid; else why there is none."""
    op = layer.op
    if layer.refusal is not None:
        return f"it {layer.refusal}"
    if op.act != (0.0, np.inf):
        return "it has no ReLU of its own, so that no part of its output is cut at zero"
    path = _path(graph, op)
    if isinstance(path, str):
        return path
    reader = layers.get(path[-1].index)
    if reader is None or reader.refusal is not None:
        return f"its output is read by {path[-1].name}, which {reader.refusal if reader else 'is a call of a function'}"
    if reader.op.kind == "conv-transpose":
        return f"its output is read by {reader.op.name}, a transposed convolution, in which pixels get unlike numbers of terms"
    if _pads_with_zeros(reader.module):
        return f"its output is read by {reader.op.name}, which pads with zeros: they would not be worth what is taken"
    return reader


def _path(graph: Graph, op: Operation) -> list[Operation] | str:
    """The operations from a layer to the one that alone reads it, which is the last."""
    path = [op]
    while True:
        readers = [s for s in graph.operations if path[-1].index in s.inputs and s.kind != "meta"]
        if len(readers) != 1:
            return f"its output is read by {len(readers)} operations: {', '.join(s.name for s in readers)}"
        path.append(readers[0])
        if path[-1].kind in WEIGHTED:
            return path
        if path[-1].kind != "keep":
            return f"its output is read by {path[-1].name}, which is no layer with weights"


def _pads_with_zeros(module: Any) -> bool:
    if not hasattr(module, "padding") or module.padding_mode != "zeros":
        return False
    if module.padding == "same":
        return any(k > 1 for k in module.kernel_size)
    return module.padding != "valid" and any(module.padding)


def _amount(
    modules: Mapping[str, nn.Module], layer: Layer, observations: Mapping[str, Observation] | None, deviations: float
) -> np.ndarray | str:
    """What each channel exceeds zero by practically always; why it is not known, or nothing, else."""
    op = layer.op
    if op.norm is not None:
        norm: Any = modules[op.norm]
        if norm.weight is None:
            return (
                f"no channel's mean lies {deviations:g} deviations above zero (the batch norm is not affine: all means are zero)"
            )
        found = (norm.bias.detach().double() - deviations * norm.weight.detach().double().abs()).cpu().numpy()
        why = f"no channel's mean lies {deviations:g} deviations above zero"
    elif observations is None or op.name not in observations:
        return "it has no batch norm, and there are no observations of its output: pass observations=study.observe()"
    else:
        found = observations[op.name].channel_min.astype(np.float64)
        why = "every channel was seen at zero or near it"
        if found.shape != (len(layer.writes),):
            raise GraphError(
                f"{op.name} has {len(layer.writes)} channels, its observation {len(found)}: observe this graph's own taps."
            )
    found = np.maximum(found, 0.0)
    return found if (found > 0).any() else why


def _columns(graph: Graph, layer: Layer, reader: Layer | str) -> np.ndarray | str:
    """Of each column of the reader the channel that it reads; tried with channels that are constant, which must come through."""
    path = _path(graph, layer.op)
    assert not isinstance(path, str)
    assert not isinstance(reader, str)
    op, count = layer.op, len(layer.writes)
    shape = [1] * len(op.shape)
    shape[op.channel_axis] = count
    value = torch.arange(1.0, count + 1, device=graph.device).view(shape).expand(op.shape).contiguous()
    axis = len(path[-2].shape) - 1 if reader.op.kind == "linear" else 1
    fails = f"on its way to {reader.op.name} its channels do not come through as they are (padding, or channels mixed)"
    values: dict[int, Any] = {op.index: value}
    try:
        for at in path[1:-1]:
            values[at.index] = at.call(*(_given(graph, i, values) for i in at.inputs))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return fails
    rows = by_channel(values[path[-2].index], axis)
    if not torch.equal(rows, rows[:, :1].expand_as(rows)) or bool((rows < 1).any()):
        return fails
    index: np.ndarray = rows[:, 0].long().cpu().numpy() - 1
    return index


def _given(graph: Graph, index: int, values: Mapping[int, Any]) -> Any:
    if index in values:
        return values[index]
    op = graph.operations[index]
    return op.call(*(_given(graph, i, values) for i in op.inputs))


def _give(modules: Mapping[str, nn.Module], op: Operation, amount: np.ndarray) -> list[str]:
    """Take the amount from the layer's bias, or its batch norm's."""
    path = op.norm or op.layer
    module: Any = modules[path]
    notes = _with_bias(module, path)
    module.bias.sub_(torch.from_numpy(amount).to(module.bias.device))
    return notes


def _take(modules: Mapping[str, nn.Module], op: Operation, amount: np.ndarray) -> list[str]:
    """Give the layer what its columns made of the amount: in its bias, or as a lower mean in its batch norm."""
    module: Any = modules[op.layer]
    weight = grouped(module.weight.double(), module).sum(3)
    columns = torch.from_numpy(amount).to(weight.device).view(weight.shape[0], -1, 1)
    moved = torch.bmm(weight, columns).flatten()
    if op.norm is not None:
        norm: Any = modules[op.norm]
        norm.running_mean.sub_(moved)
        return []
    notes = _with_bias(module, op.layer)
    module.bias.add_(moved)
    return notes


def _with_bias(module: Any, path: str) -> list[str]:
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
        return [f"{path} was given a weight and a bias"] if make_affine(module) else []
    if module.bias is not None:
        return []
    outputs: Sequence[int] = (getattr(module, "out_channels", 0) or getattr(module, "out_features", 0),)
    module.bias = nn.Parameter(module.weight.new_zeros(outputs))
    return [f"{path} was given a bias"]
