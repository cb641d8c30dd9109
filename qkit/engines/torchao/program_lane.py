"""A quantized graph module as a lane: its integers at the kit's taps.

The program is interpreted node by node. Codes are taken where they are made (the quantize operation behind a tap, or a quantized
tensor of torch's own), so that nothing that later overwrites a tensor in place can reach them; what is read in float is copied
at once, for the same reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.engines.torchao.nodes import is_quantize, places
from qkit.errors import DataError, GraphError, PlanError
from qkit.execution.loading import batches
from qkit.graph import Graph
from qkit.graph.running import execution
from qkit.listing import few
from qkit.quant.grids import QuantParams, dequantize


@dataclass(frozen=True, eq=False)
class ProgramLane:
    """A PT2E-converted or FX-quantized network as an `EngineLane`; see there."""

    name: str
    bits: int
    notes: tuple[str, ...]
    program: fx.GraphModule
    sources: Mapping[fx.Node, str]
    graph: Graph

    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        """The lane's batches over the loader.

        Raises
        ------
        DataError
            If the program does not run on a batch, such as one of another size than it was exported with.
        """
        device = next((t.device for t in (*self.program.parameters(), *self.program.buffers())), torch.device("cpu"))
        for batch in batches(loader, limit):
            reader = _Reader(self.program, self.sources)
            inputs = [_placed(x, device) for x in batch.inputs]
            try:
                with execution(device):
                    outputs = reader.run(*inputs)
            except (DataError, PlanError):
                raise
            except Exception as error:
                shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
                reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
                raise DataError(
                    f"{self.name} does not run on inputs of shape {shapes}: {reason} A program that was exported for one batch "
                    "size takes no other; export it with dynamic_shapes, or leave the last, smaller batch out (drop_last=True)."
                ) from error
            order = (op.name for op in self.graph.operations if op.name in reader.taps)
            yield EngineBatch(batch, {name: reader.taps[name] for name in order}, outputs)


def program_lane(program: fx.GraphModule, graph: Graph, name: str) -> ProgramLane:
    """The lane of a converted program.

    Raises
    ------
    GraphError
        If the program is none, holds no integers, or no tap of the graph is in it.
    """
    if not isinstance(program, fx.GraphModule):
        raise GraphError(
            f"a converted program is a torch.fx.GraphModule, not a {type(program).__name__}: pass what convert_pt2e or "
            "convert_fx returned."
        )
    found, missing = places(graph, program)
    sources: dict[fx.Node, str] = {}
    floats: list[str] = []
    for op in graph.operations:
        place = found.get(op.index)
        if place is None or not op.quantized:
            continue
        codes = [user for user in place.final.users if is_quantize(user)]
        sources[codes[0] if codes else place.final] = op.name
        if not codes:
            floats.append(op.name)
    if not sources:
        raise GraphError(f"no tap of {graph.model_name} is in this program: is it the same network?")
    modules = dict(program.named_modules(remove_duplicate=False))
    opaque = any(
        hasattr(modules.get(str(n.target)), "zero_point") for n in program.graph.nodes if n.op == "call_module"
    )  # quantized modules of torch's own
    if not opaque and not any(is_quantize(node) for node in program.graph.nodes):
        raise GraphError(f"{name} has no quantize operation: convert the prepared program first (convert_pt2e).")
    notes = []
    if missing:
        notes.append(f"{len(missing)} taps are not in the program, fused away, folded or replaced: {few(missing)}")
    if floats and not opaque:
        notes.append(f"{len(floats)} taps are float in the program: {few(floats)}")
    return ProgramLane(name, _width(sources), tuple(notes), program, sources, graph)


def _width(sources: Mapping[fx.Node, str]) -> int:
    """The commonest width of the activations."""
    widths: Counter[int] = Counter()
    for node in sources:
        kind = next((a for a in (*node.args, *node.kwargs.values()) if isinstance(a, torch.dtype)), None)
        if is_quantize(node) and kind is not None:
            widths[16 if kind in {torch.int16, torch.uint16} else 8] += 1
    return widths.most_common(1)[0][0] if widths else 8


class _Reader(fx.Interpreter):
    """Runs the program and keeps what is at the taps."""

    def __init__(self, program: fx.GraphModule, sources: Mapping[fx.Node, str]) -> None:
        super().__init__(program)
        self.sources = sources
        self.taps: dict[str, EngineTensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The node's value, kept if it is a tap's."""
        value = super().run_node(n)
        name = self.sources.get(n)
        if name is not None and isinstance(value, Tensor):
            self.taps[name] = self._tensor(n, value)
        return value

    def _tensor(self, node: fx.Node, value: Tensor) -> EngineTensor:
        if value.is_quantized:
            return _native(value)
        if not is_quantize(node):
            return EngineTensor(value.detach().float().clone().cpu())
        args, _ = self.fetch_args_kwargs_from_env(node)
        params = _grid(args, value)
        if params is None:  # wider than the kit's grids: an int32 tensor
            return EngineTensor(args[0].detach().float().clone().cpu())
        codes = value.detach().cpu()
        return EngineTensor(dequantize(codes, params), codes, params)


def _grid(args: tuple[Any, ...], codes: Tensor) -> QuantParams | None:
    """The grid of a quantize operation ``(x, scale, zero point, [axis,] least, greatest, dtype)``."""
    scale, zero, *rest = args[1:]
    numbers = [x for x in rest if isinstance(x, int) and not isinstance(x, bool)]
    scale, zero = torch.as_tensor(scale, dtype=torch.float32).cpu(), torch.as_tensor(zero).to(torch.int32).cpu()
    axis = numbers[0] if len(numbers) == 3 else None
    if axis is None:
        scale, zero = scale.reshape(()), zero.reshape(())
    low, high = numbers[-2:]
    if codes.dtype not in {torch.int8, torch.uint8, torch.int16, torch.uint16}:
        return None
    return QuantParams(scale, zero, low, high, axis)


def _native(value: Tensor) -> EngineTensor:
    """A quantized tensor of torch's own."""
    codes = value.int_repr().detach().cpu()
    bounds = torch.iinfo(codes.dtype)
    if codes.dtype not in {torch.int8, torch.uint8} or value.qscheme() not in {
        torch.per_tensor_affine,
        torch.per_tensor_symmetric,
    }:
        return EngineTensor(value.dequantize().detach().float().cpu())
    scale = torch.tensor(value.q_scale(), dtype=torch.float32)
    params = QuantParams(scale, torch.tensor(value.q_zero_point(), dtype=torch.int32), bounds.min, bounds.max)
    return EngineTensor(dequantize(codes, params), codes, params)


def _placed(x: Any, device: torch.device) -> Any:
    """An input on the device; images in the memory layout of the kit's lanes, so that float sums add up in the same order."""
    if not isinstance(x, Tensor):
        return x
    layout = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return x.to(device).contiguous(memory_format=layout)
