"""Buffers and other state that a forward pass changes: the answer to a batch may then depend on the batches before it."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qkit.graph.buffers import watched
from qkit.graph.door.copying import copy_of
from qkit.graph.door.user_source import function_at
from qkit.graph.structures import float_tensors
from qkit.linting.finding import Finding, Severity
from qkit.linting.probe_notes import Site
from qkit.listing import few

#: Greatest relative difference of two passes that is none.
_SAME = 1e-6
_NAMES = 4


@dataclass(frozen=True)
class State:
    """What a pass in evaluation mode changes.

    Attributes
    ----------
    changed
        How, by the path of the buffer or attribute.
    buffers
        Those of them that are registered buffers.
    matters
        Whether a second pass over the same batch gives another answer.
    """

    changed: dict[str, str] = field(default_factory=dict)
    buffers: frozenset[str] = frozenset()
    matters: bool = False


def state_of(model: nn.Module, run: Callable[[nn.Module], Any]) -> State:
    """What two passes of a copy of the model change and answer.

    Parameters
    ----------
    run
        Given the copy, calls it once on the batch; draws the same random numbers every time.
    """
    copied = copy_of(model)
    buffers = {name for name, _ in copied.named_buffers(remove_duplicate=False)}
    with torch.no_grad(), watched(copied) as changes:
        first = [tensor.clone() for tensor in float_tensors(run(copied))]
    second = float_tensors(run(copied))
    return State(dict(changes.found), frozenset(buffers & changes.found.keys()), differ(first, second))


def changed_state(model: nn.Module, state: State) -> list[Finding]:
    """A finding for every module that changes buffers of its own, and other state where the answer depends on it."""
    paths = [path for path in state.changed if path in state.buffers or state.matters]
    owned: dict[str, list[str]] = defaultdict(list)
    modules = dict(model.named_modules(remove_duplicate=False))
    for path in paths:
        owner = path.rpartition(".")[0]
        while owner and owner not in modules:
            owner = owner.rpartition(".")[0]
        owned[owner].append(path)
    return [_finding(modules[owner], owner, names, state) for owner, names in owned.items()]


def _finding(module: nn.Module, owner: str, names: list[str], state: State) -> Finding:
    severity: Severity = "warning" if state.matters else "note"
    listed = few(names, _NAMES)
    what = "buffer" if all(name in state.buffers for name in names) else "state"
    said = f"forward changes the {what}{'s' if len(names) > 1 and what == 'buffer' else ''} {listed} in evaluation mode"
    why = (
        "and a second pass over the same batch gives another answer: scores depend on the order of the images, and an engine "
        "has to keep it too. The study's passes all start from the values that the model was handed over with."
        if state.matters
        else "which changes no answer to this batch."
    )
    cure = "Change it in training mode only (if self.training:), or take it as an input and return it."
    prefix = f"{owner}." if owner else ""
    sites = [site for name in names if (site := _site(module, name.removeprefix(prefix).split("[")[0].split(".")[0])) is not None]
    file, line = sites[0] if sites else (None, None)
    return Finding("buffer-changed-in-forward", severity, f"{said}, {why}", cure, owner, file, line)


def _site(module: nn.Module, name: str) -> Site | None:
    """The line of forward that writes to ``self.<name>``; None where it is written elsewhere."""
    found = function_at(type(module).forward)
    if found is None or type(module).__module__.startswith("torch.nn."):
        return None
    tree, file = found
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
            targets: list[ast.expr] = node.targets if isinstance(node, ast.Assign) else [node.target]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _changes(node.func.attr):
            targets = [node.func.value]
        else:
            continue
        if any(_is_own(target, name) for target in targets):
            return file, node.lineno
    return None


def _changes(method: str) -> bool:
    in_place = method.endswith("_") and not method.endswith("__")
    return in_place or method in {"append", "extend", "insert", "pop", "update", "clear", "remove"}


def _is_own(target: ast.expr, name: str) -> bool:
    """Whether it is ``self.<name>``, or an element or a view of it."""
    while isinstance(target, (ast.Subscript, ast.Call)) or (isinstance(target, ast.Attribute) and not _is_self(target.value)):
        target = target.func if isinstance(target, ast.Call) else target.value
    return isinstance(target, ast.Attribute) and target.attr == name and _is_self(target.value)


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def differ(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two passes over the same batch gave other answers."""
    if len(first) != len(second) or any(a.shape != b.shape for a, b in zip(first, second, strict=True)):
        return True
    pairs = [(a, b) for a, b in zip(first, second, strict=True) if a.numel()]
    return any(float((a - b).abs().max()) > _SAME * max(float(a.abs().max()), 1e-30) for a, b in pairs)
