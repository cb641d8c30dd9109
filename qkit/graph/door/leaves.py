"""Modules that stay in float since the user said so."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from torch import nn

from qkit.errors import GraphError


def as_leaves(leaf_modules: Iterable[type[nn.Module] | str]) -> tuple[type[nn.Module] | str, ...]:
    """What a user gave as `leaf_modules`; a class or a path alone will do."""
    return (leaf_modules,) if isinstance(leaf_modules, (str, type)) else tuple(leaf_modules)


def leaf_paths(model: nn.Module, leaf_modules: Iterable[type[nn.Module] | str]) -> frozenset[str]:
    """Paths of the modules that `leaf_modules` names by class or by path.

    Raises
    ------
    GraphError
        If it names what the model does not have.
    """
    named = dict(model.named_modules(remove_duplicate=False))
    paths = [path for path in named if path]
    found: set[str] = set()
    for leaf in leaf_modules:
        if isinstance(leaf, type) and issubclass(leaf, nn.Module):
            found |= {path for path in paths if isinstance(named[path], leaf)}
        elif not isinstance(leaf, str):
            raise GraphError(f"leaf_modules holds {leaf!r}: give module classes or module paths.")
        elif leaf in named:
            found.add(leaf)
        else:
            near = difflib.get_close_matches(leaf, paths, 3, 0.0)
            raise GraphError(
                f"leaf_modules names {leaf!r}, which {type(model).__name__} does not have; it has {', '.join(near)}."
            )
    return frozenset(found)
