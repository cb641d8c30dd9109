"""A trace as a lane: what a device wrote, by tap and batch, beside what the kit simulates."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qkit.engines.lane import EngineBatch, EngineTensor
from qkit.engines.traces.aligned import Alignment, Match
from qkit.engines.traces.alignment import CHECK, align
from qkit.engines.traces.dumped_tensors import Trace, TraceTensor
from qkit.engines.traces.formats import MAX_BYTES, TraceError
from qkit.engines.traces.manifest import Manifest, check_samples
from qkit.engines.traces.names import Names
from qkit.engines.traces.signatures import cut_batch, squeezed
from qkit.engines.traces.trace_folders import Kind, scan
from qkit.errors import DataError, PlanError
from qkit.execution.loading import batches
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import MIN_SCALE, QuantParams, dequantize
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.study import Study

logger = logging.getLogger(__name__)

#: A tensor of an 8-bit engine has at most this many values; fewer elements than `_ENOUGH` say nothing.
_LEVELS, _ENOUGH = 256, 1024


class TraceLane:
    """A device's tensors as an engine's lane (see :class:`qkit.engines.lane.EngineLane`). Made by :func:`read`.

    Attributes
    ----------
    name, bits, notes
        As every engine's lane has them.
    alignment
        What the tensors are, and what does not fit. The lane runs only if ``alignment.ok``.
    trace, graph
        What was read, and the network.
    """

    def __init__(self, graph: Graph, trace: Trace, alignment: Alignment, name: str, bits: int, notes: Sequence[str]) -> None:
        self.graph, self.trace, self.alignment = graph, trace, alignment
        self.name, self.bits, self.notes = name, bits, tuple(notes)
        self._tensors = {tensor.name: tensor for tensor in trace.tensors}

    @property
    def frames(self) -> int:
        """How many frames, that is samples, there are."""
        return len(self.alignment.samples)

    @property
    def samples(self) -> tuple[int, ...]:
        """The sample that each frame belongs to."""
        return self.alignment.samples

    @property
    def taps(self) -> tuple[str, ...]:
        """Taps that the trace has tensors for, in execution order."""
        return tuple(self.alignment.matches)

    def tensor(self, tap: str, frames: Sequence[int] | None = None) -> EngineTensor:
        """A tap's tensor of these frames, by default of all.

        Raises
        ------
        MisalignedTraceError
            If the trace is not aligned.
        TraceError
            If it has no such tap, or a number is NaN or infinite.
        """
        self.alignment.require()
        if tap not in self.alignment.matches:
            op = self.graph.operation(tap)
            raise TraceError(f"the trace {self.name!r} has no tensor for {op.name}; it has {', '.join(self.taps[:5])}, ….")
        wanted = range(self.frames) if frames is None else frames
        match = self.alignment.matches[tap]
        return engine_tensor(self._tensors[match.tensor], self.graph.operation(tap), match, wanted)

    def run(self, loader: Iterable[Any], *, limit: int | None = None) -> Iterator[EngineBatch]:
        """The lane's batches over the loader that the frames' samples are from; samples without a frame are left out of them.

        Raises
        ------
        MisalignedTraceError
            If the trace is not aligned: nothing is scored from it.
        DataError
            If the loader has none of the samples.
        """
        self.alignment.require()
        frame_of = {sample: frame for frame, sample in enumerate(self.samples)}
        start = found = 0
        for batch in batches(loader, limit):
            rows = [i for i in range(batch.size) if start + i in frame_of]
            frames = [frame_of[start + i] for i in rows]
            start += batch.size
            if rows:
                found += len(rows)
                taps = {tap: self.tensor(tap, frames) for tap in self.taps}
                yield EngineBatch(cut_batch(batch, rows), taps, self._outputs(taps))
            if found == len(frame_of):
                return
        if not found:
            raise DataError(
                f"none of the loader's {start} samples has a frame in {self.name}: pass the one that the device was given."
            )
        if limit is None:
            lost = self.frames - found
            logger.warning("%s: %d of %d frames belong to samples that the loader lacks.", self.name, lost, self.frames)

    def _outputs(self, taps: Mapping[str, EngineTensor]) -> Any:
        """The network's outputs from its last taps; None where the trace lacks one, or more than a reshape lies behind it."""

        def value(op: Operation) -> Any:
            if op.quantized:
                return taps[op.name].values if op.name in taps else None
            if op.kind not in ("keep", "output") or not op.inputs:
                return None
            arguments = [value(self.graph.operations[i]) for i in op.inputs]
            return None if any(a is None for a in arguments) else op.call(*arguments)

        with torch.inference_mode():
            return value(self.graph.operations[-1])

    def __repr__(self) -> str:
        state = "" if self.alignment.ok else ", misaligned: see .alignment"
        taps = f"{len(self.taps)} of {len(self.graph.taps)} taps"
        return f"TraceLane({self.name}: {self.frames} frames, {taps}, {self.bits} bits{state})"

    def _repr_html_(self) -> str:
        return self.alignment._repr_html_()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, without the tensors."""
        return {
            "name": self.name, "bits": self.bits, "notes": list(self.notes), "frames": self.frames, "taps": list(self.taps),
            "alignment": self.alignment.to_dict(),
        }  # fmt: skip


def engine_tensor(tensor: TraceTensor, op: Operation, match: Match, frames: Sequence[int]) -> EngineTensor:
    """A trace's tensor in the kit's layout, with what was wrong undone."""
    mend, (dims, _) = match.mend, squeezed(op)
    raw = tensor.take(frames)
    if mend.swap:
        raw = raw.byteswap()
    if mend.dtype is not None:
        raw = raw.view(mend.dtype)
    order = tuple(range(len(dims))) if mend.order is None or len(mend.order) != len(dims) else mend.order
    stored = raw.reshape(len(frames), *(dims[axis] for axis in order))
    ours = stored.transpose(0, *(1 + order.index(axis) for axis in range(len(dims)))).reshape(len(frames), *op.shape[1:])
    axis = op.channel_axis % len(op.shape)
    if mend.channels is not None:
        ours = ours.take(mend.channels, axis)
    step_size = tensor.step if mend.step is None else mend.step
    zero_point = tensor.zero_point if mend.zero_point is None else mend.zero_point
    low, high = op.act if mend.clamp else (-np.inf, np.inf)
    if tensor.is_integer and step_size is not None and mend.factor == 1.0:
        params = _params(step_size, zero_point, ours.dtype, axis, tensor.name)
        if params is not None:
            codes = torch.from_numpy(np.ascontiguousarray(ours))
            values = dequantize(codes, params)
            if mend.clamp:
                values = values.clamp(low, high)
                bounds = [params.zero_point + torch.round(bound / params.scale) for bound in (max(low, -1e30), min(high, 1e30))]
                wide = codes.to(torch.int32)
                view = [1] * wide.ndim
                view[axis] = -1
                least, most = (b.clamp(params.qmin, params.qmax).to(torch.int32) for b in bounds)
                least, most = (b if b.ndim == 0 else b.view(view) for b in (least, most))
                codes = torch.minimum(torch.maximum(wide, least), most).to(params.dtype)
            return EngineTensor(values, codes.to(params.dtype), params)
    reals = ours.astype(np.float64)
    if tensor.is_integer:
        shape = [1] * reals.ndim
        shape[axis] = -1
        zero, scale = (np.asarray(n, np.float64) for n in (zero_point, step_size or (1.0,)))
        zero, scale = (n.reshape(shape) if n.size > 1 else n for n in (zero, scale))
        reals = (reals - zero) * scale
    reals = np.clip(reals / mend.factor, low, high)
    with np.errstate(over="ignore"):
        values = torch.from_numpy(np.ascontiguousarray(reals.astype(np.float32)))
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise TraceError(f"{tensor.name}: {bad} of {values.numel()} numbers of frames {list(frames)[:3]}… are NaN or infinite.")
    return EngineTensor(values)


def _params(
    step: tuple[float, ...], zero: tuple[int, ...], dtype: np.dtype[Any], axis: int, name: str
) -> QuantParams | None:  # fmt: skip
    """The grid of 8- and 16-bit codes; None for wider ones, which the kit's grids are not."""
    if dtype.itemsize > 2:
        return None
    info = np.iinfo(dtype)
    per_channel = len(step) > 1
    zeros = zero * len(step) if len(zero) == 1 else zero
    scale = torch.tensor(step if per_channel else step[0], dtype=torch.float64).clamp(min=MIN_SCALE).float()
    try:
        return QuantParams(
            scale,
            torch.tensor(zeros if per_channel else zeros[0], dtype=torch.int32),
            int(info.min),
            int(info.max),
            axis if per_channel else None,
        )
    except PlanError as error:
        raise TraceError(f"{name}: its scale and zero point are no grid of {dtype.name}: {error}") from error


def read(
    folder: str | Path,
    study: Study | Graph,
    *,
    inputs: Iterable[Any] | None = None,
    manifest: Manifest | str | Path | None = None,
    kind: Kind = "auto",
    frames: int | None = None,
    samples: Sequence[int] | None = None,
    name: str | None = None,
    bits: int | None = None,
    mend: bool = True,
    check: int = CHECK,
    ignore: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    progress: bool = True,
) -> TraceLane:
    """Read a folder of a device's tensors as a lane, and find out whether it belongs to the network before it is believed.

    Parameters
    ----------
    folder
        See docs/traces.md for the forms.
    study
        Whose evaluation samples the frames are; or a graph, with `inputs`, without which contents are not compared.
    inputs
        Other batches that the device was given.
    manifest
        A `Manifest` or its file; by default ``trace.json`` in the folder where there is one.
    kind
        "manifest", "npy", "npz", "tidl", "reference" (float32 dumps under the layers' names), or "auto".
    frames
        Take so many frames at most.
    samples
        The sample that each frame belongs to; by default frame k belongs to sample k.
    name, bits
        Of the lane; by default the manifest's, the folder's name, and what the codes or the number of distinct values say.
    mend
        Undo what can be undone unambiguously, and say so in the notes; otherwise it is an error too.
    check
        Frames whose contents are compared with the kit's.
    ignore
        Tensors, by the device's name or by tap, to leave out.
    max_bytes
        Limit of one file, and of an archive's contents uncompressed.

    Returns
    -------
    TraceLane
        Its `alignment` says what was found. Where that is not `ok`, `run` raises `MisalignedTraceError`, and
        `qkit.diagnosis.engine_parting.causes_of_alignment` makes causes of it.

    Raises
    ------
    TraceError
        If a file is corrupt, cut off, too large, hostile, or nothing says what it holds.
    DataError
        If there are fewer samples than frames.
    """
    graph = study if isinstance(study, Graph) else study.graph
    loader = inputs if inputs is not None else None if isinstance(study, Graph) else study.evaluation
    plans: dict[str, Plan] = {} if isinstance(study, Graph) else {study.narrow: study.lane(study.narrow)}
    names = Names(graph)
    trace = scan(folder, names, kind=kind, manifest=manifest, max_bytes=max_bytes)
    if frames is not None:
        if frames < 1:
            raise DataError(f"at least one frame has to be taken, not {frames}.")
        trace = Trace(trace.tensors, min(frames, trace.frames), trace.manifest, trace.kind, trace.notes)
    told = trace.manifest.samples if samples is None else check_samples(list(samples))
    if told is not None and len(told) < trace.frames:
        raise TraceError(f"samples names {len(told)} samples, the trace has {trace.frames} frames.")
    alignment = align(
        graph, trace, names, loader, plans=plans, samples=told, mend=mend, check=check, ignore=ignore, progress=progress
    )
    width, guess = _bits(trace, bits)
    notes = [*trace.notes, *alignment.notes, *([guess] if guess else [])]
    label = name or trace.manifest.name or Path(folder).resolve().name
    return TraceLane(graph, trace, alignment, label, width, notes)


def _bits(trace: Trace, bits: int | None) -> tuple[int, str]:
    """Width of the activations, and what to say where it was guessed."""
    known = bits if bits is not None else trace.manifest.bits
    if known is not None:
        return known, ""
    widths = [8 * tensor.dtype.itemsize for tensor in trace.tensors if tensor.is_integer]
    if widths:
        return max(set(widths), key=widths.count), ""
    large = [tensor for tensor in trace.tensors if tensor.size >= _ENOUGH][:8]
    if large and all(len(np.unique(tensor.take([0]))) <= _LEVELS for tensor in large):
        return 8, "It holds real numbers of at most 256 values a tensor, and was taken for one of 8 bits."
    return 32, "It holds real numbers only, and was taken for a float engine's; bits= says otherwise."
