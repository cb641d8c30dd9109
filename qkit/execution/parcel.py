"""What goes to a worker and comes back, as bytes: graphs, data, metrics, plans and scores.

Plain pickle, and cloudpickle where that is installed: it also takes functions and classes of a notebook. Tensors go without
the rest of the storage that they are a view of, and those of a GPU arrive on the GPU that the worker computes on.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

try:
    from cloudpickle import CloudPickler as _Base
except ModuleNotFoundError:
    from pickle import Pickler as _Base

#: The GPU that tensors arrive on.
_arriving: ContextVar[torch.device | None] = ContextVar("arriving", default=None)


class _Pickler(_Base):  # type: ignore[misc]  # one of two classes
    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is Tensor and obj.device.type != "meta":
            if obj.device.type != "cpu":
                return _placed, (obj.detach().cpu(), obj.device.type)
            if obj.untyped_storage().nbytes() > obj.nbytes:
                return obj.detach().clone().__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if isinstance(obj, torch.device) and obj.type not in ("cpu", "meta"):
            return _device, (obj.type,)
        inherited = getattr(super(), "reducer_override", None)
        return NotImplemented if inherited is None else inherited(obj)


def dumps(value: Any) -> bytes:
    """The value as bytes.

    Raises
    ------
    Exception
        Whatever pickle raises of what cannot be pickled.
    """
    out = io.BytesIO()
    _Pickler(out, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return out.getvalue()


def loads(data: bytes, device: torch.device | None = None) -> Any:
    """The value again; what was on a GPU is on `device`, or on the process's current GPU."""
    with _onto(device):
        return pickle.loads(data)  # noqa: S301  # what this very program wrote


@contextmanager
def _onto(device: torch.device | None) -> Iterator[None]:
    token = _arriving.set(device)
    try:
        yield
    finally:
        _arriving.reset(token)


def _device(kind: str) -> torch.device:
    return _arriving.get() or torch.device(kind)


def _placed(tensor: Tensor, kind: str) -> Tensor:
    return tensor.to(_device(kind))
