"""A session of ONNX Runtime: what goes in, what comes out, and what it really runs after its optimizations."""

from __future__ import annotations

import functools
import platform
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qkit.engines.onnx.file_program import package
from qkit.errors import DataError, QkitError
from qkit.files import explained

#: ONNX Runtime's setting that keeps pairs of 8-bit products from saturating on x86 processors without VNNI.
PRECISE = "session.x64quantprecision"
#: ONNX Runtime's levels of graph optimizations by the kit's names.
LEVELS = {"none": "ORT_DISABLE_ALL", "basic": "ORT_ENABLE_BASIC", "extended": "ORT_ENABLE_EXTENDED", "all": "ORT_ENABLE_ALL"}
_DTYPES = {"float": torch.float32, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A session, and what it runs: inputs as (name, dimensions, type), nodes as (outputs, operator, inputs)."""

    session: Any
    inputs: tuple[tuple[str, tuple[int | None, ...], str], ...]
    positions: Mapping[str, int]
    nodes: tuple[tuple[tuple[str, ...], str, tuple[str, ...]], ...]
    saturated: Mapping[str, int]

    @property
    def kinds(self) -> Counter[str]:
        """How often it runs each operator."""
        return Counter(kind for _, kind, _ in self.nodes)

    @property
    def batch_size(self) -> int | None:
        """Where the file fixes it."""
        return self.inputs[0][1][0] if self.inputs and self.inputs[0][1] else None


def prepare(
    model: Any, tensors: Iterable[str], name: str, *, level: str, disable: Sequence[str] = (), threads: int = 1,
    precise: bool = False,
) -> Prepared:  # fmt: skip
    """A session whose outputs are the file's and, behind them, `tensors`.

    Raises
    ------
    QkitError
        If ONNX Runtime does not take the file.
    """
    import onnx

    onnxruntime = package("onnxruntime")

    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    positions = {value.name: i for i, value in enumerate(tapped.graph.output)}
    for tensor in tensors:
        if tensor not in positions:
            positions[tensor] = len(positions)
            tapped.graph.output.append(onnx.ValueInfoProto(name=tensor))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVELS[level])
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    if precise:
        options.add_session_config_entry(PRECISE, "1")
        _part(tapped)
    with explained(tempfile.gettempdir()), tempfile.TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        options.optimized_model_filepath = str(optimized)
        try:
            session = onnxruntime.InferenceSession(
                tapped.SerializeToString(), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(disable)
            )
            final = onnx.load(str(optimized))
        except Exception as error:
            raise QkitError(f"ONNX Runtime does not take {name}: {str(error).splitlines()[0]}") from error
    nodes = tuple((tuple(n.output), n.op_type, tuple(n.input)) for n in final.graph.node)
    inputs = tuple(
        (value.name, tuple(d if isinstance(d, int) and d > 0 else None for d in value.shape), value.type)
        for value in session.get_inputs()
    )
    return Prepared(session, inputs, positions, nodes, _saturated(model, final))


def _part(model: Any) -> None:
    """Give every reader of 8-bit constants its own, in place: the precise mode names new ones after them, and fails on two."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == tensor.INT8}
    nodes = list(model.graph.node)
    made = {node.output[0]: node for node in nodes if node.op_type == "DequantizeLinear" and node.input[0] in constants}
    outputs = {value.name for value in model.graph.output}
    counts: Counter[str] = Counter()

    def own(tensor: Any, name: str) -> Any:
        counts[name] += 1
        copy = type(tensor)()
        copy.CopyFrom(tensor)
        copy.name = f"{name}#part{counts[name]}"
        return copy

    def constant(name: str) -> str:
        model.graph.initializer.append(own(constants[name], name))
        return str(model.graph.initializer[-1].name)

    del model.graph.node[:]
    for node in nodes:
        for i, name in enumerate(node.input):
            if name in made:
                copy = own(made[name], name)
                copy.output[0] = node.input[i] = copy.name
                copy.input[:] = [constant(source) if source in constants else source for source in copy.input]
                model.graph.node.append(copy)
            elif name in constants and node.op_type != "DequantizeLinear":
                node.input[i] = constant(name)
        if node.output[0] not in made or node.output[0] in outputs:
            model.graph.node.append(node)


def _saturated(model: Any, final: Any) -> dict[str, int]:
    """By node, how many bias entries did not fit when the optimizer made int32 of float biases."""
    from onnx import numpy_helper

    before = {tensor.name for tensor in model.graph.initializer}
    fresh = {t.name: t for t in final.graph.initializer if t.name not in before and t.data_type == 6}
    makers = {node.output[0]: node for node in final.graph.node}
    found = {}
    for node in final.graph.node:
        for name in () if node.op_type == "DequantizeLinear" else node.input:
            maker = makers.get(name)
            source = maker.input[0] if maker is not None and maker.op_type == "DequantizeLinear" else name
            if source in fresh:
                codes = numpy_helper.to_array(fresh[source]).astype(np.int64)
                count = int((np.abs(codes) >= 2**31 - 128).sum())
                if count:
                    found[node.name] = count
    return found


@functools.cache
def saturates() -> bool:
    """Whether this is an x86 processor whose products of unsigned and signed 8-bit integers saturate, as far as can be told."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    try:
        flags = next(line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if line.startswith("flags"))
    except (OSError, StopIteration):
        return False
    return not {"avx512_vnni", "avx_vnni"} & set(flags.split())


def fed(value: Any, name: str, dims: tuple[int | None, ...], kind: str) -> np.ndarray:
    """An input in the file's layout.

    Raises
    ------
    DataError
        If it is no tensor of the file's type and shape, in either layout.
    """
    if not isinstance(value, Tensor) or value.dtype != _DTYPES.get(kind.removeprefix("tensor(").removesuffix(")")):
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise DataError(f"the file's input {name!r} is a {kind}, the batch has {found}.")
    if not _fits(value.shape, dims):
        last = value.movedim(1, -1) if value.ndim > 2 else value
        if not _fits(last.shape, dims):
            wanted = tuple("?" if d is None else d for d in dims)
            raise DataError(f"the file's input {name!r} has shape {wanted}, the batch has {tuple(value.shape)}.")
        value = last
    array: np.ndarray = value.detach().cpu().contiguous().numpy()
    return array


def _fits(shape: Sequence[int], dims: Sequence[int | None]) -> bool:
    """Whether the shape is that of the file's input, but for the batch size."""
    return len(shape) == len(dims) and all(d is None or d == s for s, d in zip(shape[1:], dims[1:], strict=True))


def parts(feeds: Mapping[str, np.ndarray], count: int, size: int) -> Iterator[dict[str, np.ndarray]]:
    """The batch in pieces of the size that the file fixes, the last one filled up with its last sample."""
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)
        yield {name: array[rows] for name, array in feeds.items()}
