"""Taking nested values apart and putting them together again: what a model is called with, and what it returns.

A *container* is a dict or another mapping, a tuple, a list, a namedtuple or a dataclass; transformers' ``ModelOutput`` is a
mapping and a dataclass at once. Everything else is a *leaf*: tensors, numbers, strings, None, and objects that are opaque here.
The order of the leaves is that of the containers, and a :class:`Spec` holds all that is needed to rebuild but the leaves.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from qkit.errors import GraphError

#: A way into a nested value: keys of mappings and names of fields in text, positions in sequences as integers.
Path = tuple[Hashable, ...]


@dataclass(frozen=True)
class Spec:
    """How leaves go together. Two values of the same structure have equal specs.

    Attributes
    ----------
    kind
        "leaf", "mapping", "fields" (a dataclass), "named" (a namedtuple) or "sequence" (a tuple or a list).
    cls
        Class of the container; None for a leaf.
    keys
        Keys of a mapping, or names of fields.
    parts
        Specs of what is inside, in order.
    factory
        Of a `defaultdict`.
    """

    kind: str
    cls: type | None = None
    keys: tuple[Any, ...] = ()
    parts: tuple[Spec, ...] = ()
    factory: Callable[[], Any] | None = None

    @property
    def size(self) -> int:
        """Number of leaves."""
        return 1 if self.kind == "leaf" else sum(part.size for part in self.parts)


_LEAF = Spec("leaf")


def flatten(value: Any) -> tuple[list[tuple[Path, Any]], Spec]:
    """Leaves of a nested value, each with the path to it, and the spec to rebuild it from; see `rebuild`."""
    found: list[tuple[Path, Any]] = []
    return found, _flatten(value, (), found)


def rebuild(spec: Spec, leaves: Sequence[Any]) -> Any:
    """The nested value of that structure with these leaves; containers have the classes that they had.

    Dataclasses are filled without running their ``__init__``, which may compute or check.

    Raises
    ------
    GraphError
        If there are more or fewer leaves than the structure has, or a mapping's class cannot be made from its items.
    """
    if len(leaves) != spec.size:
        raise GraphError(f"{spec.size} values are needed to rebuild the structure, not {len(leaves)}.")
    return _rebuild(spec, iter(leaves))


def map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """A copy of the structure with `function` applied to every tensor; all other leaves are the same objects."""
    leaves, spec = flatten(value)
    return rebuild(spec, [function(leaf) if isinstance(leaf, Tensor) else leaf for _, leaf in leaves])


def fresh(value: Any) -> Any:
    """The structure with every tensor copied and detached: a model may write to what it is given."""
    return map_tensors(value, lambda tensor: tensor.detach().clone())


def float_tensors(value: Any) -> list[Tensor]:
    """All floating tensors of a nested value, in order; also those in dataclasses and in transformers' outputs."""
    return [leaf for _, leaf in flatten(value)[0] if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def path_text(path: Path, *, start: str = "") -> str:
    """A path as a person writes it: ``boxes``, ``features[1].mean``; text keys follow a dot, all others are in brackets."""
    text = start
    for key in path:
        text += (f".{key}" if text else key) if isinstance(key, str) else f"[{key!r}]"
    return text


def unique(names: Sequence[str]) -> list[str]:
    """The names, the second of a kind with ``#2`` behind it."""
    seen: dict[str, int] = {}
    made = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        made.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return made


def _flatten(value: Any, path: Path, found: list[tuple[Path, Any]]) -> Spec:
    kind = _kind(value)
    if kind == "leaf":
        found.append((path, value))
        return _LEAF
    if kind == "mapping":
        keys = tuple(value.keys())
        inside = [value[key] for key in keys]
    elif kind == "fields":
        keys = tuple(field.name for field in fields(value) if hasattr(value, field.name))
        inside = [getattr(value, key) for key in keys]
    else:
        keys, inside = tuple(getattr(value, "_fields", ())), list(value)
    steps = keys or range(len(inside))
    parts = tuple(_flatten(part, (*path, step), found) for step, part in zip(steps, inside, strict=True))
    return Spec(kind, type(value), keys, parts, getattr(value, "default_factory", None) if kind == "mapping" else None)


def _kind(value: Any) -> str:
    if isinstance(value, (Tensor, torch.Size, torch.nn.Module)):
        return "leaf"
    if isinstance(value, Mapping):
        return "mapping"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "named"
    if isinstance(value, (tuple, list)):
        return "sequence"
    return "fields" if is_dataclass(value) and not isinstance(value, type) else "leaf"


def _rebuild(spec: Spec, leaves: Iterator[Any]) -> Any:
    if spec.kind == "leaf":
        return next(leaves)
    parts = [_rebuild(part, leaves) for part in spec.parts]
    cls: Any = spec.cls
    if spec.kind == "sequence":
        return cls(parts)
    if spec.kind == "named":
        return cls._make(parts)
    if spec.kind == "fields":
        made = object.__new__(cls)
        for key, part in zip(spec.keys, parts, strict=True):
            object.__setattr__(made, key, part)  # also of a frozen one
        return made
    return _mapping(spec, dict(zip(spec.keys, parts, strict=True)))


def _mapping(spec: Spec, items: dict[Any, Any]) -> Any:
    cls: Any = spec.cls
    if cls is dict:
        return items
    try:
        if issubclass(cls, defaultdict):
            return cls(spec.factory, items)
        # a ModelOutput takes its keys as arguments, and has them as attributes too
        by_field: bool = is_dataclass(cls)
        return cls(**items) if by_field else cls(items)
    except (TypeError, ValueError) as error:
        raise GraphError(
            f"a {cls.__name__} cannot be made again from its items {', '.join(map(repr, items))} ({error}): use a plain dict."
        ) from error
