"""Work on a GPU that is the same for every batch, recorded once and played again: launching it costs more than small layers take.

A network of a hundred operations in five lanes is a thousand kernels, each of which takes Python some 30 microseconds to launch
and the GPU often less to run. A CUDA graph launches them all at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from qkit.graph.running import execution
from qkit.graph.structures import Spec, flatten, map_tensors, rebuild
from qkit.quant.plan import Plan

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

#: Batches that run as they are: the first compiles kernels and fills caches.
_PLAIN = 1


class Replayed(Generic[_Result]):
    """A function of a batch's inputs that does the same on every batch of one shape.

    On a GPU the first batch runs as it is, the second is recorded, and from then on the recording is played; what cannot be
    recorded (an operation that waits for the device), and every other device, runs as it is each time. A batch of another shape
    runs as it is too. The tensors of a played result are those of the one before: use or copy them before the next batch.
    Recorded work keeps its memory until this is given up.

    Parameters
    ----------
    function
        Of the inputs; what else it reads never changes. It is called under the settings of `qkit.graph.running.execution`.
    possible
        Whether it may be recorded: not where it hands tensors to the host itself.
    """

    def __init__(self, function: Callable[[tuple[Any, ...]], _Result], device: torch.device, *, possible: bool = True) -> None:
        self._function = function
        self._device = device
        self._shape: Any = None
        self._batches = 0
        self._played: tuple[torch.cuda.CUDAGraph, list[Any], _Result] | None = None
        self._held: list[Any] = []
        self._possible = possible and device.type == "cuda"

    def __call__(self, inputs: tuple[Any, ...]) -> _Result:
        """What the function gives for these inputs."""
        if not self._possible:
            return self._function(inputs)
        leaves, structure = flatten(inputs)
        values = [value for _, value in leaves]
        shape = structure, [(v.shape, v.dtype, v.stride()) if isinstance(v, Tensor) else v for v in values]
        self._shape = shape if self._shape is None else self._shape
        if shape != self._shape:
            return self._function(inputs)
        self._batches += 1
        if self._batches <= _PLAIN:
            return self._function(inputs)
        with execution(self._device):
            if self._played is None:
                self._record(values, structure)
            if self._played is None:
                return self._function(inputs)
            graph, places, result = self._played
            for place, value in zip(places, values, strict=True):
                if isinstance(place, Tensor):
                    place.copy_(value, non_blocking=True)
            graph.replay()
        return result

    def _record(self, values: list[Any], structure: Spec) -> None:
        places = [v.to(self._device, copy=True) if isinstance(v, Tensor) else v for v in values]
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize(self._device)
        token = _held.set([])
        try:
            # a failed recording leaves torch on its own stream; other threads, such as a loader's, go on allocating
            with (
                torch.cuda.stream(torch.cuda.current_stream(self._device)),
                torch.cuda.graph(graph, stream=torch.cuda.Stream(self._device), capture_error_mode="thread_local"),
            ):
                result = self._function(rebuild(structure, places))
            self._held = _held.get() or []
        except RuntimeError as error:
            # the operations have run without being recorded on the first batch, so that this is about recording alone
            logger.warning(
                "the batches cannot be recorded and run one kernel after the other, which takes longer where layers are small "
                "(an operation that waits for the device, or too little memory: %s).", error,
            )  # fmt: skip
            self._possible = False
            torch.cuda.synchronize(self._device)
            _end_of_recording(self._device)
            return
        finally:
            _held.reset(token)
        self._played = graph, places, result


def _end_of_recording(device: torch.device) -> None:
    """Tell torch's random generator that nothing is recorded any more: a recording that failed does not."""
    with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=torch.cuda.Stream(device), capture_error_mode="thread_local"):
        torch.zeros(1, device=device)


def can_be_recorded(plans: Iterable[Plan]) -> bool:
    """Whether lanes of these plans can be: integer forms make tables and multipliers on the host as they go."""
    return all(plan.arithmetic.in_float for plan in plans)


#: What the work that is being recorded reads besides its inputs; None where nothing is.
_held: ContextVar[list[Any] | None] = ContextVar("qkit_recorded", default=None)


def recording() -> bool:
    """Whether work is being recorded in this thread."""
    return _held.get() is not None


def hold(tensors: Any) -> Any:
    """The tensors, which recorded work keeps alive from now on: it reads them where they are."""
    held = _held.get()
    if held is not None:
        held.append(tensors)
    return tensors


def copied(result: _Result, device: torch.device) -> _Result:
    """A result that the next batch does not overwrite."""
    return map_tensors(result, Tensor.clone) if device.type == "cuda" else result
