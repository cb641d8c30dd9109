"""Running a graph: how a batch gets in, under which settings of torch, and what one operation gives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.errors import DataError
from qkit.graph.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.table import UNBOUNDED

#: Kinds of operations whose sums run up in an accumulator.
ACCUMULATING = frozenset({"conv", "conv-transpose", "linear"})


def operate(op: Operation, values: Sequence[Any], weight: Tensor | None = None, bias: Tensor | None = None) -> Any:
    """What an operation gives on the values that it reads, before the activation fused into it, and before any grid.

    Parameters
    ----------
    weight, bias
        Those that it computes with, in float or on a grid, where it has any.
    """
    return op.call(*values) if op.weight is None else op.call(values[0], weight, bias)


def run_float(graph: Graph, inputs: tuple[Any, ...]) -> Any:
    """The graph's float output."""
    with execution(graph.device):
        return walk_float(graph, inputs)


def walk_float(
    graph: Graph, inputs: tuple[Any, ...], look: Callable[[Operation, Sequence[Any], Any, Any], None] | None = None
) -> Any:
    """The graph's float output, under the settings of torch that hold.

    Parameters
    ----------
    look
        ``look(op, read, before, after)``: what every operation reads, and gives before and after the activation fused into it.
    """
    values: dict[int, Any] = {}
    given = place_inputs(graph, inputs)
    for op in graph.operations:
        read = [given[op.argument]] if op.argument is not None else [values[i] for i in op.inputs]
        weight = None if op.weight is None else graph.weights[op.weight]
        bias = None if op.bias is None else graph.biases[op.bias]
        y = operate(op, read, weight, bias)
        # hardtanh is clamp, with a gradient of one kernel instead of four
        values[op.index] = z = y if op.act == UNBOUNDED else F.hardtanh(y, *op.act)
        if look is not None:
            look(op, read, y, z)
        for i in {*op.inputs, op.index}:
            if graph.last_use[i] <= op.index and op.kind != "output":
                values.pop(i, None)
    return values[graph.operations[-1].index]


#: These settings are the process's: one thread at a time computes with them.
_TURNS = threading.RLock()


@contextmanager
def execution(device: torch.device, *, inference: bool = True) -> Iterator[None]:
    """No gradients, and on a GPU plain float32 and repeatable kernels: TF32 alone would cost more than int16 does.

    With `inference`, what is computed can never take gradients.
    """
    with torch.inference_mode() if inference else torch.no_grad():
        if device.type == "cuda":
            with (
                _TURNS,
                nullcontext() if device.index is None else torch.cuda.device(device),
                torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
                _products(tf32=False),
            ):
                yield
        else:
            yield


@contextmanager
def tensor_cores(device: torch.device) -> Iterator[None]:
    """TF32 for convolutions and matrix products on a GPU, inside `execution`: only for operands that it holds exactly."""
    if device.type != "cuda":
        yield
        return
    with (
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True),
        _products(tf32=True),
    ):
        yield


@contextmanager
def _products(*, tf32: bool) -> Iterator[None]:
    """Matrix products with or without TF32, which ``torch.set_float32_matmul_precision("high")`` allows."""
    settings: Any = torch.backends.cuda.matmul
    # from torch 2.9 on there is a second switch, and reading the first fails for users who have set the second
    newer = hasattr(settings, "fp32_precision")
    switch, wanted = ("fp32_precision", "tf32" if tf32 else "ieee") if newer else ("allow_tf32", tf32)
    before = getattr(settings, switch)
    setattr(settings, switch, wanted)
    try:
        yield
    finally:
        setattr(settings, switch, before)


def place_inputs(graph: Graph, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs on the graph's device, checked against what the graph was built with.

    Raises
    ------
    DataError
        On another number of inputs, another dtype, rank, or channel count.
    """
    values = graph.entry.values(inputs)
    fixed = graph.fixed_batch
    known = [leaf.value for leaf in graph.entry.leaves if leaf.is_tensor]
    if fixed is not None and any(x.shape[:1] != k.shape[:1] for x, k in zip(values, known, strict=True)):
        raise DataError(
            f"{graph.model_name} computes with a batch of {fixed} and takes no other; this one is {tuple(values[0].shape)}. Use "
            f"batches of {fixed} (drop_last=True), or export the network with an open batch."
        )
    for op in graph.operations:
        if op.argument is None:
            continue
        x = values[op.argument]
        if op.kind != "input":
            continue
        if not isinstance(x, Tensor):
            raise DataError(f"{op.name} is a {type(x).__name__}, the model takes a torch.Tensor: collate the batch into tensors.")
        if x.dtype != torch.float32:
            raise DataError(
                f"{op.name} is {x.dtype}; the model takes torch.float32. Convert it where it is loaded (x.float(), and the "
                "normalization that the model was trained with)."
            )
        if x.ndim != len(op.shape) or (x.ndim > 1 and x.shape[op.channel_axis] != op.shape[op.channel_axis]):
            raise DataError(f"{op.name} has shape {tuple(x.shape)}, the graph was built for {tuple(op.shape)}: check the loader.")
        if x.numel() == 0:
            raise DataError(f"{op.name} is empty (shape {tuple(x.shape)}): drop empty batches.")
    return tuple(x.to(graph.device, non_blocking=True) if isinstance(x, Tensor) else x for x in values)
