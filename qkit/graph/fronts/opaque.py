"""What is never looked into: modules that the user keeps in float, and functions that no trace can follow.

For torch.export each is one operator that gives tensors of known shapes; in the graph it is the module or function itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qkit.errors import GraphError
from qkit.graph.normal_form.batch import PRIMES
from qkit.graph.structures import flatten, rebuild


class _ATensor:
    """Stands for a tensor among the values of a call; a class, since it stays the same one when it is pickled."""


#: Calls by the number that stands for them in a trace.
_calls: dict[int, OpaqueCall] = {}


class OpaqueCall:
    """One call of a module or function, as ``call(tensors)``.

    Attributes
    ----------
    __name__
        What it is called in notes.
    is_module
        Whether it is a module that was kept out of the trace.
    macs
        Multiply-accumulates a sample that torch counts inside.
    """

    def __init__(self, name: str, function: Callable[..., Any], batch: int) -> None:
        self.__name__ = name
        self.is_module = isinstance(function, nn.Module)
        self.function = function
        self.batch = batch
        self.macs = 0
        self._spec: Any = None
        self._output: Any = None
        self._given: list[Any] = []
        self._values: list[Any] = []
        self.outputs: list[tuple[tuple[int, ...], torch.dtype]] = []
        self.key = len(_calls)
        _calls[self.key] = self

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """The call's value; while torch.export traces, as an operator that it can follow."""
        if torch.compiler.is_exporting():
            return self._traced(args, kwargs)
        given = [v for _, v in flatten((args, kwargs))[0] if isinstance(v, Tensor)]
        before = [tensor.clone() for tensor in given]
        with FlopCounterMode(display=False) as counter:
            result = self.function(*args, **kwargs)
        self.macs = counter.get_total_flops() // 2 // max(self.batch, 1)
        if not all(torch.equal(a, b) for a, b in zip(given, before, strict=True)):
            raise GraphError(
                f"{self.__name__}, which is not looked into, changes its input in place; lanes share tensors, so give it a copy "
                "(x.clone())."
            )
        found, self._output = flatten(result)
        self._values = [value for _, value in found]
        self.outputs = [(tuple(v.shape), v.dtype) for v in self._values if isinstance(v, Tensor)]
        return result

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given, self._spec = flatten((args, kwargs))
        self._given = [value for _, value in given]
        tensors = iter(torch.ops.qkit.opaque([v for v in self._given if isinstance(v, Tensor)], self.key))
        self._given = [_ATensor if isinstance(v, Tensor) else v for v in self._given]
        return rebuild(self._output, [next(tensors) if isinstance(v, Tensor) else v for v in self._values])

    def __call__(self, tensors: list[Tensor], key: int = 0, *, function: Callable[..., Any] | None = None) -> list[Tensor]:
        """The call's tensors, from those that it takes; of another function, where one is given."""
        rest = iter(tensors)
        args, kwargs = rebuild(self._spec, [next(rest) if v is _ATensor else v for v in self._given])
        found, _ = flatten((function or self.function)(*args, **kwargs))
        return [value for _, value in found if isinstance(value, Tensor)]

    def shapes(self, batch: int) -> Iterator[tuple[tuple[int, ...], torch.dtype]]:
        """Shapes of what comes out at another batch."""
        for shape, dtype in self.outputs:
            yield (batch, *shape[1:]) if shape and shape[0] == self.batch else shape, dtype


@torch.library.custom_op("qkit::opaque", mutates_args=())
def _opaque(tensors: list[Tensor], key: int) -> list[Tensor]:
    return [value.clone() for value in _calls[key](tensors)]


@_opaque.register_fake
def _(tensors: list[Tensor], key: int) -> list[Tensor]:
    known = next((int(t.shape[0]) for t in tensors if t.ndim and int(t.shape[0]) in PRIMES), None)
    call = _calls[key]
    return [tensors[0].new_empty(shape, dtype=dtype) for shape, dtype in call.shapes(known or call.batch)]


def call_of(key: int) -> OpaqueCall:
    """The call of that number."""
    return _calls[key]


class Kept(nn.Module):
    """Stands in the place of a module that is never looked into."""

    def __init__(self, module: nn.Module, batch: int) -> None:
        super().__init__()
        self._kept = [module]  # in a list, so that its parameters are none of the trace's
        self._batch = batch
        self._recorded: list[OpaqueCall] = []
        self._replayed = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output."""
        if torch.compiler.is_exporting():
            call = self._recorded[self._replayed % len(self._recorded)]
            self._replayed += 1
        else:
            call = OpaqueCall(type(self._kept[0]).__name__, self._kept[0], self._batch)
            self._recorded.append(call)
        return call.run(*args, **kwargs)


@contextmanager
def kept(model: nn.Module, paths: frozenset[str], batch: int) -> Iterator[None]:
    """Within this, the modules at these paths are opaque; those inside another are part of it."""
    outer = [p for p in paths if p and not any(p != q and p.startswith(f"{q}.") for q in paths)]
    originals = {path: model.get_submodule(path) for path in outer}
    try:
        for path, module in originals.items():
            model.set_submodule(path, Kept(module, batch))
        yield
    finally:
        for path, module in originals.items():
            model.set_submodule(path, module)
