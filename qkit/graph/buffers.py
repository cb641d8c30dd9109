"""State that a forward pass changes: buffers, and tensors and numbers that modules keep as plain attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkit.graph.door.copying import copy_of
from qkit.graph.structures import flatten, path_text

_INTERNALS = frozenset(vars(nn.Module()))
_NUMBERS = (bool, int, float)


@dataclass(frozen=True, eq=False)
class _Seen:
    """A value at one time: the object, the count of writes to it, and what it held (not of parameters, which are large)."""

    value: Any
    version: int | None = None
    held: Tensor | None = None


@dataclass
class Changes:
    """What a pass changed, by path: "updated in place", "replaced", "added" or "removed"; filled when the watch ends."""

    found: dict[str, str] = field(default_factory=dict)


def changed_buffers(model: nn.Module, run: Callable[[nn.Module], Any]) -> dict[str, str]:
    """Which state of the model a pass in evaluation mode writes to; the model itself does not change.

    Parameters
    ----------
    model
        Copied, put in evaluation mode, without wrappers (see `qkit.graph.door.copying.copy_of`).
    run
        Given the copy, calls it once on a batch.

    Returns
    -------
    dict
        By path, as ``norm.running_mean`` or ``block.history[0]``: "updated in place" (also when what was written is what it
        held), "replaced" by another tensor or number, "added" or "removed". A tensor that forward keeps and never reads is
        "added" or "replaced" too.
    """
    copied = copy_of(model)
    cuda = sorted({t.device.index for t in (*copied.parameters(), *copied.buffers()) if t.device.type == "cuda"})
    with torch.random.fork_rng(cuda), torch.no_grad(), watched(copied) as changes:
        run(copied)
    return changes.found


@contextmanager
def watched(model: nn.Module) -> Iterator[Changes]:
    """Note what is changed in the model's state meanwhile; changes stay, so give a copy.

    Seen are registered buffers, tensors and numbers in plain attributes (also in lists, dicts and dataclasses there), and
    parameters, of these only writes that torch counts: one through ``.data`` is not.
    """
    before = _state(model)
    changes = Changes()
    yield changes
    after = _state(model, copies=False)
    for path in (*before, *(path for path in after if path not in before)):
        how = _difference(before.get(path), after.get(path))
        if how is not None:
            changes.found[path] = how


def _state(model: nn.Module, *, copies: bool = True) -> Mapping[str, _Seen]:
    """All state by path; None is no state, so that an attribute that gets its tensor in the first pass is "added"."""
    seen: dict[str, _Seen] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        seen[path] = _Seen(parameter, _version(parameter))
    for path, buffer in model.named_buffers(remove_duplicate=False):
        seen[path] = _tensor(buffer, copies)
    for path, module in model.named_modules(remove_duplicate=False):
        for name, value in vars(module).items():
            if name in _INTERNALS or not _may_hold_state(value):
                continue
            for way, leaf in flatten(value)[0]:
                key = path_text((name, *way), start=path)
                if isinstance(leaf, Tensor):
                    seen.setdefault(key, _tensor(leaf, copies))
                elif isinstance(leaf, _NUMBERS):
                    seen.setdefault(key, _Seen(leaf))
    return seen


def _may_hold_state(value: Any) -> bool:
    """Whether an attribute is looked into: not other mappings, which may read from a file."""
    return isinstance(value, (Tensor, *_NUMBERS, dict, list, tuple)) or is_dataclass(value)


def _tensor(tensor: Tensor, copies: bool) -> _Seen:
    held = tensor.detach().clone() if copies and tensor.layout is torch.strided else None
    return _Seen(tensor, _version(tensor), held)


def _version(tensor: Tensor) -> int | None:
    """How often the tensor was written to, as torch counts it; None for tensors of inference mode, which have no count."""
    return None if tensor.is_inference() else tensor._version


def _difference(before: _Seen | None, after: _Seen | None) -> str | None:
    if before is None or after is None:
        return "added" if before is None else "removed"
    if not isinstance(before.value, Tensor):
        same = type(before.value) is type(after.value) and (before.value == after.value or before.value != before.value)
        return None if same else "replaced"
    if before.value is not after.value:
        return "replaced"
    if before.version != after.version or (before.held is not None and not _same(before.held, after.value)):
        return "updated in place"
    return None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether both hold the same, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(((a == b) | (a.isnan() & b.isnan())).all())


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Afterwards the model's buffers and its modules' plain attributes are as they were, whatever its forward wrote to.

    Lists and dicts in attributes have the entries again that they had; what is inside of those is not looked at.
    """
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    registered = [(module, dict(module._buffers), set(module._non_persistent_buffers_set)) for module in model.modules()]
    attributes = [(module, {k: v for k, v in vars(module).items() if not k.startswith("_")}) for module in model.modules()]
    containers = [(v, v.copy()) for _, known in attributes for v in known.values() if type(v) in {list, dict}]
    try:
        yield
    finally:
        for container, entries in containers:
            if isinstance(container, list):
                container[:] = entries
            else:
                container.clear()
                container.update(entries)
        for module, names, passing in registered:
            module._buffers.clear()
            module._buffers.update(names)
            module._non_persistent_buffers_set = passing
        for module, known in attributes:
            for name in [k for k in vars(module) if not k.startswith("_") and k not in known]:
                delattr(module, name)
            for name, value in known.items():
                if vars(module).get(name) is not value:
                    setattr(module, name, value)
        with torch.no_grad():
            for module, name, buffer, values in buffers:
                if getattr(module, name, None) is not buffer:
                    setattr(module, name, buffer)
                if not torch.equal(buffer, values):
                    buffer.copy_(values)
