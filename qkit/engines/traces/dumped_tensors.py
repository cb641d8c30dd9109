"""Tensors of a trace: what the device wrote, frame by frame, before anything is known about where it belongs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qkit.engines.traces.formats import Stored, TraceError
from qkit.engines.traces.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Part:
    """One or several frames of a tensor: an array, or the rows that several cores wrote, one below the other.

    Attributes
    ----------
    stored
        The arrays, and `shapes` how each is to be seen.
    axis
        Along which they are concatenated.
    """

    stored: tuple[Stored, ...]
    shapes: tuple[tuple[int, ...], ...]
    axis: int = 0

    @classmethod
    def of(cls, stored: Stored) -> Part:
        """One array as it is."""
        return cls((stored,), (stored.shape,))

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole."""
        sizes = list(self.shapes[0])
        sizes[self.axis] = sum(shape[self.axis] for shape in self.shapes)
        return tuple(sizes)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the numbers, in the machine's byte order."""
        return self.stored[0].dtype.newbyteorder("=")

    def read(self) -> np.ndarray:
        """The whole array."""
        arrays = [stored.read().reshape(shape) for stored, shape in zip(self.stored, self.shapes, strict=True)]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, self.axis)


@dataclass(frozen=True, eq=False)
class TraceTensor:
    """One tensor of a trace over all frames.

    Attributes
    ----------
    name
        As the device calls it.
    parts
        In the order of the frames; each `batched` (its first axis counts samples) or one sample.
    layout
        Axes of a sample as stored, without N: "CHW", "HWC"; None where nothing was said.
    tap
        The kit's name, where a manifest says it.
    step, zero_point
        Of integers: value = (q - zero point) × step; None where they are not known.
    note
        What was assumed.
    """

    name: str
    parts: tuple[Part, ...]
    batched: bool
    layout: str | None = None
    tap: str | None = None
    step: tuple[float, ...] | None = None
    zero_point: tuple[int, ...] = (0,)
    note: str = ""

    @property
    def dims(self) -> tuple[int, ...]:
        """Shape of one sample as stored."""
        shape = self.parts[0].shape
        return shape[1:] if self.batched else shape

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples in each part."""
        return tuple(part.shape[0] if self.batched else 1 for part in self.parts)

    @property
    def frames(self) -> int:
        """Samples in all parts."""
        return sum(self.counts)

    @property
    def size(self) -> int:
        """Elements of one sample."""
        return math.prod(self.dims)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Of the numbers as stored, in the machine's byte order."""
        return self.parts[0].dtype

    @property
    def is_integer(self) -> bool:
        """Whether it holds codes."""
        return self.dtype.kind in "iu"

    def take(self, frames: Sequence[int], positions: np.ndarray | None = None) -> np.ndarray:
        """Numbers of these frames as stored: (frames, elements), or only the elements at `positions` of the flat sample."""
        rows = self.rows(frames)
        out = np.empty((len(frames), self.size if positions is None else len(positions)), self.dtype)
        for number, row in enumerate(rows):
            out[number] = row if positions is None else row[positions]
        return out

    def rows(self, frames: Sequence[int]) -> list[np.ndarray]:
        """These frames' samples, flat; in memory only where they are looked at, unless the file is compressed."""
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        where = np.searchsorted(starts, np.asarray(frames), side="right") - 1
        flats = {i: np.asarray(self.parts[i].read()).reshape(self.counts[i], self.size) for i in map(int, np.unique(where))}
        return [flats[int(i)][frame - int(starts[i])] for i, frame in zip(where, frames, strict=True)]


@dataclass(frozen=True, eq=False)
class Trace:
    """What a device wrote.

    Attributes
    ----------
    tensors
        In the order in which they were found.
    frames
        Samples that every tensor has.
    manifest
        What was said about it.
    kind
        How it was read: "manifest", "npy", "npz", "tidl", "reference".
    notes
        What was assumed in reading.
    """

    tensors: tuple[TraceTensor, ...]
    frames: int
    manifest: Manifest
    kind: str
    notes: tuple[str, ...] = ()


def checked(tensors: Sequence[TraceTensor], manifest: Manifest, kind: str, notes: Sequence[str] = ()) -> Trace:
    """The trace of these tensors, if they agree on the number of frames and each on its own shape.

    Raises
    ------
    TraceError
        If there is no tensor, or a frame's file is missing or of another shape or dtype.
    """
    if not tensors:
        raise TraceError(f"the folder holds no tensor in the form {kind!r}: see docs/traces.md for the forms.")
    names = [tensor.name for tensor in tensors]
    for name in names:
        if names.count(name) > 1:
            raise TraceError(f"{name!r} is there twice: give its tensors different names in the manifest.")
    frames = max(tensor.frames for tensor in tensors)
    for tensor in tensors:
        for part in tensor.parts[1:]:
            first = tensor.parts[0]
            if part.dtype != first.dtype or part.shape[tensor.batched :] != first.shape[tensor.batched :]:
                raise TraceError(
                    f"{tensor.name}: {part.stored[0].label} holds {part.dtype} {part.shape}, {first.stored[0].label} "
                    f"{first.dtype} {first.shape}; all frames have to agree."
                )
        if tensor.frames != frames:
            raise TraceError(
                f"{tensor.name} has {tensor.frames} frames, others have {frames}: files are missing, or its first axis is "
                "no batch."
            )
    return Trace(tuple(tensors), frames, manifest, kind, tuple(dict.fromkeys(notes)))
