"""A private copy of a model, with plain weights, in evaluation mode."""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm

from qkit.errors import GraphError
from qkit.graph.door.wrappers import innermost, wrapped


def copy_of(model: nn.Module) -> nn.Module:
    """A copy of the model that shares nothing with it: in evaluation mode, without gradients, its weights plain tensors.

    Wrappers inside the model are left out (see `qkit.graph.door.wrappers.unwrap_inside` for what is said of them). Parametrized
    weights, and those of ``torch.nn.utils.weight_norm``, ``spectral_norm`` and ``prune``, are replaced by their values of
    evaluation mode. A ``forward`` compiled by ``module.forward = torch.compile(module.forward)`` is the class's own again.

    Raises
    ------
    GraphError
        If the model cannot be copied; names what keeps it from that.
    """
    # what is here already is not copied: a wrapper's copy is that of what it holds, and weights that hooks compute are leaves
    memo: dict[int, Any] = {id(weight): weight.detach().clone() for weight in _computed_weights(model)}
    try:
        for module in reversed([*model.modules()]):
            if wrapped(module) is not None:
                memo[id(module)] = copy.deepcopy(innermost(module)[0], memo)
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:
        raise GraphError(f"{type(model).__name__} cannot be copied ({_first_line(error)}): {_cure(model)}") from error
    _evaluate(copied)
    with torch.no_grad():
        for module in list(copied.modules()):
            _own_forward(module)
            _without_hooks(module)
            _without_parametrizations(module)
            if "_guards_fn" in dict(module.named_children()):
                module._guards_fn = _Unguarded()
    return copied.requires_grad_(False)


class _Unguarded(nn.Module):
    """In the place of a program's checks of its inputs: they ask for the batch that it was exported with."""

    def forward(self, *inputs: Any) -> None:
        """Let anything through."""


def _evaluate(model: nn.Module) -> None:
    with contextlib.suppress(NotImplementedError):  # a module of torch.export: its mode is that of the export
        model.eval()


def _hooked(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of weights that a hook from before parametrizations may compute, each with the kind of the hook."""
    names = [name for name, _ in module.named_parameters(recurse=False)]
    for name in names:
        base, _, kind = name.rpartition("_")
        if isinstance(vars(module).get(base), Tensor):  # no parameter itself: something computes it
            if kind == "g" and f"{base}_v" in names:
                yield base, "weight_norm"
            elif kind == "orig" and hasattr(module, f"{base}_mask"):
                yield base, "prune"
            elif kind == "orig" and hasattr(module, f"{base}_u"):
                yield base, "spectral_norm"


def _computed_weights(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        yield from (vars(module)[name] for name, _ in _hooked(module))


def _without_hooks(module: nn.Module) -> None:
    """Replace weights that hooks compute by their values; in place. What only looks like such a hook stays."""
    remove: dict[str, Callable[..., Any]] = {
        "weight_norm": remove_weight_norm,
        "spectral_norm": remove_spectral_norm,
        "prune": prune.remove,
    }
    for name, kind in list(_hooked(module)):
        try:
            remove[kind](module, name)
        except ValueError:
            continue  # the user's own names


def _without_parametrizations(module: nn.Module) -> None:
    """Replace parametrized tensors (weight norm, spectral norm, …) by their values; in place."""
    if not parametrize.is_parametrized(module):
        return
    lists: Any = module.parametrizations
    values: dict[str, Tensor] = {name: getattr(module, name).detach().clone() for name in lists}
    parameters = {name for name in lists if any(True for _ in lists[name].parameters(recurse=False))}
    # not remove_parametrizations: it edits the class, which the user's model shares
    plain = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = plain
    for name, value in values.items():
        if name in parameters:
            module.register_parameter(name, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(name, value)


def _own_forward(module: nn.Module) -> None:
    """Take a compiled ``forward`` off the instance: it runs the module that it was compiled from, not the copy."""
    compiled: Any = vars(module).get("forward")
    if hasattr(compiled, "_torchdynamo_orig_callable"):
        method = inspect.unwrap(compiled)
        if getattr(method, "__func__", method) is type(module).forward:
            del module.forward


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _cure(model: nn.Module) -> str:
    """What to change so that the model can be copied: names the first attribute that cannot be."""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _INTERNALS or isinstance(value, nn.Module):
                continue
            where = f"{path}.{name}" if path else name
            if isinstance(value, Tensor) and not value.is_leaf:
                return f"{where} holds a computed tensor. Remove it, or keep it detached ({where} = {where}.detach())."
            try:
                copy.deepcopy(value)
            except Exception:
                return f"{where} holds a {type(value).__name__}, which cannot be copied. Remove it before the analysis."
    return "remove what keeps computed tensors in it, for example with torch.nn.utils.remove_weight_norm."


_INTERNALS = frozenset(vars(nn.Module()))
