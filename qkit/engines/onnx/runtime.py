"""ONNX Runtime as a lane: a file's tensors by tap, as the engine's own kernels compute them.

What ONNX Runtime computes depends on its graph optimizations: they turn Q/DQ around an operation into integer kernels, and some
change results. A tap is therefore taken at the quantized tensor, which integer kernels write anyway: asking for it leaves
the kernels as they are, which is checked (`OnnxLane.kernels`, `OnnxLane.deviation`); asking for the tensor in front of it would
not.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from qkit.closing import Closeable
from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.engines.onnx.exporting import FORMAT, PREFIX
from qkit.engines.onnx.file_program import require
from qkit.engines.onnx.onnx_files import metadata, read
from qkit.engines.onnx.session import LEVELS, Prepared, fed, parts, prepare, saturates
from qkit.engines.onnx.taps import TapTensor, foreign_taps, own_taps
from qkit.engines.onnx.weights import foreign_plan
from qkit.errors import DataError, QkitError
from qkit.execution.loading import Batch, batches
from qkit.graph import Graph
from qkit.graph.structures import flatten
from qkit.listing import few
from qkit.quant.grids import dequantize
from qkit.quant.plan import Plan

Optimization = Literal["none", "basic", "extended", "all"]
#: The step of the optimizer that turns float biases into int32, where they may saturate.
BIAS_STEP = "WeightBiasQuantization"
_FLOAT_KERNELS = frozenset({"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"})
#: Nodes that only move numbers or change their form.
_MOVES = frozenset({"Transpose", "Reshape", "Identity", "Flatten", "MaxPool", "NhwcMaxPool", "ReorderInput", "ReorderOutput"})


def lane(
    path: str | Path,
    *,
    graph: Graph | None = None,
    taps: Sequence[str] | Literal["all"] | None = "all",
    optimization: Optimization = "all",
    disable: Sequence[str] = (),
    threads: int = 1,
    precise: bool = False,
    name: str | None = None,
) -> OnnxLane:
    """An ONNX file as a lane on the CPU: float, 8 or 16 bits, made by the kit or not.

    Parameters
    ----------
    path
        The file. Weights that it keeps in other files are refused.
    graph
        ``study.graph``, to find the taps in a file that the kit did not make: by module paths in the nodes' names. Without it
        such a file's quantized tensors go by their own names.
    taps
        Those to yield: all, some, or None for the outputs alone.
    optimization
        ONNX Runtime's graph optimizations; "all", its default, is what is deployed. "none" computes every operation in float
        between Q and DQ.
    disable
        Steps of its optimizer to leave out, such as "WeightBiasQuantization".
    threads
        For ONNX Runtime.
    precise
        Keep pairs of 8-bit products from saturating on x86 processors without VNNI, at some cost (``session.x64quantprecision``).
    name
        Shown in tables; by default "onnxruntime" and the plan's name or the file's.

    Raises
    ------
    MissingExtra
        Without the extra ``onnx``.
    QkitError
        If the file cannot be read or run, or a tap is not in it.
    """
    require("onnx", "onnxruntime")
    if optimization not in LEVELS:
        raise QkitError(f"optimization is {', '.join(LEVELS)}, not {optimization!r}.")
    if threads < 1:
        raise QkitError(f"threads={threads}: give at least one.")
    model = read(path)
    contents = metadata(model, PREFIX)
    plan = None
    if contents:
        if contents.get("format") != FORMAT:
            raise QkitError(f"{path}: its qkit metadata are of format {contents.get('format')!r}, not {FORMAT}: export it again.")
        plan = Plan.from_dict(contents.get("plan", {}))
        found = own_taps(model, contents, plan, graph)
    else:
        found = foreign_taps(model, graph)
        plan = None if graph is None else foreign_plan(model, graph, found, Path(path).stem)
    chosen = _chosen(found.taps, taps, path)
    title = name or f"onnxruntime {plan.name if plan is not None else Path(path).stem}"
    made = OnnxLane(
        title, _bits(found.taps.values()), (), Path(path), plan, chosen, optimization, tuple(disable), threads, precise, model,
        contents.get("outputs", 0 if len(model.graph.output) == 1 else list(range(len(model.graph.output)))),
    )  # fmt: skip
    said = contents.get("notes", [])
    notes = [str(note) for note in said] if isinstance(said, list) else []
    return replace(made, notes=(*found.notes, *notes, *_engine_notes(made)))


def _chosen(
    found: Mapping[str, TapTensor], taps: Sequence[str] | Literal["all"] | None, path: str | Path
) -> dict[str, TapTensor]:
    if taps == "all":
        return dict(found)
    names = () if taps is None else (taps,) if isinstance(taps, str) else tuple(taps)
    unknown = [tap for tap in names if tap not in found]
    if unknown:
        raise QkitError(f"{path} has no tap {unknown[0]!r}; it has {', '.join(list(found)[:5]) or 'none'}, …")
    return {tap: found[tap] for tap in found if tap in names}


def _bits(taps: Iterable[TapTensor]) -> int:
    widths = Counter(8 if t.params.bits <= 8 else 16 for t in taps if t.params is not None)
    return widths.most_common(1)[0][0] if widths else 32


@dataclass(frozen=True, eq=False)
class OnnxLane(Closeable):
    """An ONNX file run by ONNX Runtime; an `EngineLane`. Made by `lane`.

    It holds a session of ONNX Runtime until it is closed; to run it then raises `QkitError`.

    Attributes
    ----------
    name, bits, notes
        See `EngineLane`.
    path
        Of the file.
    plan
        That the file carries; in files that the kit did not make, the one that its integers amount to, where a graph is given.
    taps
        By tap, where it is in the file.
    optimization, disable, threads, precise
        As given to `lane`.
    model
        The file as an ``onnx.ModelProto``; left as it is.
    structure
        The outputs with indices in the places of tensors.
    """

    name: str
    bits: int
    notes: tuple[str, ...]
    path: Path
    plan: Plan | None
    taps: Mapping[str, TapTensor]
    optimization: Optimization
    disable: tuple[str, ...]
    threads: int
    precise: bool
    model: Any
    structure: Any

    def _release(self) -> None:
        vars(self).pop("_prepared", None)

    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        """The lane's batches over the loader, on the CPU.

        Raises
        ------
        DataError
            If a batch does not fit the file's inputs.
        QkitError
            If ONNX Runtime cannot run it.
        """
        for batch in batches(loader, limit):
            yield self._batch(batch, self._prepared)

    def deviation(self, loader: Iterable[Any], *, limit: int | None = 1) -> float:
        """Greatest difference that yielding the taps makes to the outputs, against the file run as it is."""
        bare, most = self._prepare(()), 0.0
        for batch in batches(loader, limit):
            pairs = zip(self._outputs(batch, self._prepared), self._outputs(batch, bare), strict=True)
            most = max([most, *(float(np.abs(a.astype(np.float64) - b).max()) for a, b in pairs if a.size)])
        return most

    @property
    def kernels(self) -> dict[str, int]:
        """Operators that ONNX Runtime runs for this lane after its optimizations, and how often: QLinearConv, QGemm, Conv, …"""
        return dict(self._prepared.kinds)

    @functools.cached_property
    def _prepared(self) -> Prepared:
        return self._prepare(place.tensor for place in self.taps.values())

    def _prepare(self, tensors: Iterable[str]) -> Prepared:
        self._check_open()
        return prepare(
            self.model, tensors, self.path.name, level=self.optimization, disable=self.disable, threads=self.threads,
            precise=self.precise,
        )  # fmt: skip

    @property
    def unsaturated(self) -> OnnxLane | None:
        """The same with products that do not saturate; None where they do not, as far as can be told."""
        return replace(self, precise=True) if _may_saturate(self) else None

    def kernel(self, tap: str) -> str:
        """The operator that computes the tap: an integer one, "QLinearConv", or a float one between DQ and Q, "Conv"."""
        makers = {name: (kind, inputs) for outputs, kind, inputs in self._prepared.nodes for name in outputs}
        name = self.taps[tap].tensor
        while name in makers and makers[name][0] in {"QuantizeLinear", "Transpose", "Identity"} and makers[name][1]:
            name = makers[name][1][0]
        return makers[name][0] if name in makers else "input"

    def _outputs(self, batch: Batch, prepared: Prepared) -> list[np.ndarray]:
        """The file's own outputs, without taps."""
        return self._execute(batch, prepared)[: len(self.model.graph.output)]

    def _batch(self, batch: Batch, prepared: Prepared) -> EngineBatch:
        arrays = self._execute(batch, prepared)
        count = len(self.model.graph.output)
        taps = {}
        for tap, place in self.taps.items():
            array = arrays[prepared.positions[place.tensor]]
            taps[tap] = _tensor(array, place, tap)
        return EngineBatch(batch, taps, _filled(self.structure, arrays[:count]))

    def _execute(self, batch: Batch, prepared: Prepared) -> list[np.ndarray]:
        feeds = {}
        given = [value for _, value in flatten(batch.inputs)[0]]
        for i, (name, dims, kind) in enumerate(prepared.inputs):
            if i >= len(given):
                raise DataError(f"{self.path.name} takes an input {name!r} that the batch of {len(given)} does not have.")
            feeds[name] = fed(given[i], name, dims, kind)
        size = prepared.batch_size
        try:
            if size is None or size == batch.size:
                return list(prepared.session.run(None, feeds))
            pieces = [prepared.session.run(None, part) for part in parts(feeds, batch.size, size)]
        except Exception as error:
            raise QkitError(f"ONNX Runtime cannot run {self.path.name} on a batch: {str(error).splitlines()[0]}") from error
        return [np.concatenate(arrays)[: batch.size] for arrays in zip(*pieces, strict=True)]

    def __repr__(self) -> str:
        optimizations = f"optimizations {self.optimization!r}" + (f" without {', '.join(self.disable)}" if self.disable else "")
        return f"OnnxLane({self.name!r}: {self.path.name}, {len(self.taps)} taps, {self.bits} bits, {optimizations})"


def _engine_notes(lane: OnnxLane) -> list[str]:
    """What the session says about itself."""
    without = f", without {', '.join(lane.disable)}" if lane.disable else ""
    notes = [f"ONNX Runtime's optimizations: {lane.optimization}{without}"]
    prepared = lane._prepared
    if prepared.saturated:
        total = sum(prepared.saturated.values())
        many = len(prepared.saturated)
        notes.append(
            f"ONNX Runtime's optimizer ({BIAS_STEP}) made int32 of float biases, which {total} of them do not fit, in {many} "
            f"layers: {few(list(prepared.saturated))}. That is a fault of the engine, not of the grids: pass "
            f"disable=({BIAS_STEP!r},), or give these layers' inputs or weights a coarser grid"
        )
    floats = [tap for tap, place in lane.taps.items() if place.params is not None and lane.kernel(tap) in _FLOAT_KERNELS]
    if floats:
        notes.append(
            f"{len(floats)} layers on grids run in float between dequantizing and quantizing, since ONNX Runtime has no integer "
            f"kernel for them here: {few(floats)}"
        )
    blocks = prepared.kinds["MatMulNBits"]
    if blocks:
        notes.append(
            f"ONNX Runtime's optimizer made MatMulNBits of {blocks} matrix products with weights of 8 bits or fewer and a wider "
            "input, which rounds that input to 8 bits in blocks; the session option session.qdq_matmulnbits_accuracy_level at 1 "
            "rules that out, and so does exporting the file with qkit"
        )
    if lane.taps:
        bare = Counter(kind for _, kind, _ in lane._prepare(()).nodes if kind not in _MOVES)
        own = Counter(kind for _, kind, _ in prepared.nodes if kind not in _MOVES)
        if own != bare:
            changed = ", ".join(
                f"{kind} {bare[kind]} to {own[kind]}" for kind in sorted({*own, *bare}) if own[kind] != bare[kind]
            )
            notes.append(f"yielding the taps changes what ONNX Runtime runs ({changed}); taps=None runs the file as deployed")
    if _may_saturate(lane):
        notes.append(
            "this processor adds pairs of 8-bit products in 16 bits (it has no VNNI instructions), where they saturate: weights "
            "of full 8 bits may give other sums here than on others; precise=True rules that out"
        )
    return notes


def _may_saturate(lane: OnnxLane) -> bool:
    return lane.bits == 8 and not lane.precise and lane.optimization in {"extended", "all"} and saturates()


def _tensor(array: np.ndarray, place: TapTensor, tap: str) -> EngineTensor:
    if place.reshaped and array.ndim != len(place.shape):
        if math.prod(array.shape[1:]) != math.prod(place.shape[1:]):
            raise DataError(f"{tap} has shape {array.shape} in the file, not {place.shape}: it is another network.")
        array = array.reshape(-1, *place.shape[1:])
    order = _order(array.shape, place.shape, tap)
    if order is not None:
        array = np.transpose(array, order)
    if place.params is None:
        return EngineTensor(torch.from_numpy(np.array(array, dtype=np.float32)))
    # a number alone is one of numpy's own behind the addition
    codes = torch.from_numpy(np.asarray(array.astype(np.int32) + place.offset)).to(place.params.dtype)
    return EngineTensor(dequantize(codes, place.params), codes, place.params)


def _order(found: Sequence[int], wanted: Sequence[int], tap: str) -> tuple[int, ...] | None:
    """How to permute a tensor to the kit's layout; None where it has it already.

    Raises
    ------
    DataError
        If it has another shape in any layout.
    """
    if not wanted or tuple(found[1:]) == tuple(wanted[1:]):
        return None
    if len(found) == len(wanted) > 2 and (found[-1], *found[1:-1]) == tuple(wanted[1:]):
        return (0, len(found) - 1, *range(1, len(found) - 1))
    if math.prod(found[1:]) == math.prod(wanted[1:]):
        raise DataError(
            f"{tap} has shape {tuple(found)} in the file and {tuple(wanted)} in the model: the layout cannot be told."
        )
    raise DataError(f"{tap} has shape {tuple(found)} in the file, not {tuple(wanted)} as in the model: it is another network.")


def _filled(structure: Any, arrays: Sequence[np.ndarray]) -> Any:
    """The outputs in the model's structure.

    Raises
    ------
    QkitError
        If the file's metadata name outputs that it does not have.
    """
    if isinstance(structure, bool) or structure is None:
        return None
    if isinstance(structure, int):
        if not 0 <= structure < len(arrays):
            raise QkitError(f"the file's metadata name output {structure}, it has {len(arrays)}: export the model again.")
        return torch.from_numpy(np.array(arrays[structure]))
    if isinstance(structure, Mapping):
        return {key: _filled(value, arrays) for key, value in structure.items()}
    return tuple(_filled(value, arrays) for value in structure) if isinstance(structure, list) else None
