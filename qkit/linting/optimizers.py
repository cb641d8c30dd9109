"""How an optimizer treats a model's parameters: weight decay keeps channels' ranges together, and its lack lets them part."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import nn, optim

from qkit.errors import DataError
from qkit.graph.table import KINDS, WEIGHTED, module_operation
from qkit.linting.finding import Finding

#: Decay below this is as good as none: recipes that quantize well use 1e-4 and more.
LEAST_DECAY = 1e-4

_NAMES = 3
_DECOUPLED = ("AdamW", "SGDW", "Adafactor", "NAdamW", "RAdamW")


def weight_decay(model: nn.Module, optimizer: optim.Optimizer) -> list[Finding]:
    """Groups with next to no decay, parameters that the optimizer does not hold, and optimizers whose steps adapt.

    Raises
    ------
    DataError
        If `optimizer` is none, or holds none of the model's parameters.
    """
    if not isinstance(optimizer, optim.Optimizer):
        raise DataError(f"optimizer= takes a torch.optim.Optimizer, not {type(optimizer).__name__}.")
    kinds = _kinds(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not held & names.keys():
        raise DataError(
            f"the optimizer holds {len(held)} parameters, and none of them is {type(model).__name__}'s: make it from "
            "this very model's "
            "parameters(), after the model was moved or copied."
        )
    found = [_adaptive(optimizer)] if _adapts(optimizer) else []
    for number, group in enumerate(optimizer.param_groups):
        mine = [names[id(p)] for p in group["params"] if id(p) in names]
        decay = group.get("weight_decay")
        if mine and not (decay is not None and float(decay) >= LEAST_DECAY):
            found.append(_without_decay(number, len(optimizer.param_groups), mine, decay, kinds))
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in held]
    if missing:
        found.append(
            Finding(
                "weight-decay",
                "warning",
                f"the optimizer does not hold {len(missing)} of the model's trainable parameters: {_by_kind(missing, kinds)}.",
                "Add them to a group, or freeze them with requires_grad_(False) if that is meant.",
            )
        )
    return found


def _without_decay(number: int, groups: int, names: list[str], decay: Any, kinds: Mapping[str, str]) -> Finding:
    which = f"group {number} of {groups}" if groups > 1 else "the optimizer"
    amount = "has no weight decay" if not decay else f"has a weight decay of {float(decay):g}, less than {LEAST_DECAY:g}"
    weights = any(kinds[name] not in {"biases", "norm parameters"} for name in names)
    why = "nothing keeps the ranges of channels together" if weights else "biases and scales may grow, and with them the ranges"
    return Finding(
        "weight-decay",
        "warning",
        f"{which} {amount}, on {len(names)} parameters: {_by_kind(names, kinds)}; {why}.",
        f"Set weight_decay={LEAST_DECAY:g} or more for all parameters, depthwise weights, biases and batch norms too.",
    )


def _adaptive(optimizer: optim.Optimizer) -> Finding:
    name = type(optimizer).__name__
    decoupled = name in _DECOUPLED or any(group.get("decoupled_weight_decay") for group in optimizer.param_groups)
    how = (
        "its decay is decoupled from the adapted steps, which holds ranges better than an L2 term"
        if decoupled
        else "its decay is an L2 term that the adapted steps divide away"
    )
    return Finding(
        "weight-decay",
        "note" if decoupled else "warning",
        f"{name} adapts its step to every single weight, which lets channels' ranges grow apart; {how}.",
        "Train, or at least finish, with SGD and momentum" + ("." if decoupled else ", or use AdamW with a decay of 1e-2."),
    )


def _adapts(optimizer: optim.Optimizer) -> bool:
    name = type(optimizer).__name__.lower()
    return any(part in name for part in ("adam", "adagrad", "adadelta", "rmsprop", "adafactor"))


def _kinds(model: nn.Module) -> dict[str, str]:
    kinds = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            kinds[full] = _kind(module, name)
    return kinds


def _kind(module: nn.Module, name: str) -> str:
    kind = _operation(module)
    if kind in {"batchnorm", "norm"}:
        return "norm parameters"
    if name.endswith("bias"):
        return "biases"
    groups = getattr(module, "groups", 1)
    if isinstance(groups, int) and groups > 1 and groups == getattr(module, "in_channels", 0):
        return "depthwise weights"
    return "weights" if kind in WEIGHTED else "other parameters"


def _operation(module: nn.Module) -> str | None:
    """Kind of the torch layer that the module is or is derived from, also where it has a forward of its own."""
    for base in type(module).__mro__:
        if base.__module__.startswith("torch.nn.modules") and issubclass(base, nn.Module):
            return KINDS.get(module_operation(base) or "")
    return None


def _by_kind(names: list[str], kinds: Mapping[str, str]) -> str:
    sorted_names: dict[str, list[str]] = defaultdict(list)
    for name in names:
        sorted_names[kinds[name]].append(name)
    return "; ".join(
        f"{len(of)} {kind} ({', '.join(of[:_NAMES])}{', …' if len(of) > _NAMES else ''})" for kind, of in sorted_names.items()
    )
