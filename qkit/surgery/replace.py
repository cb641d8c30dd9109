"""The documented replacements of networks for fixed point ("lite" models), each listed, on a copy of the model."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import fx, nn

from qkit.errors import QkitError
from qkit.execution.metrics import AnyMetric
from qkit.surgery import blocks, convolutions, functional, pools
from qkit.surgery.aliases import Copy, written_to
from qkit.surgery.changes import Change, Surgery, Unchanged
from qkit.surgery.cost import measured
from qkit.surgery.rule import Outcome, Refused, Replacement, Rule


def _to_relu(kind: type[nn.Module]) -> Rule:
    def rule(module: nn.Module) -> Outcome:
        if not isinstance(module, kind):
            return None
        return Replacement(nn.ReLU(inplace=bool(getattr(module, "inplace", False))), "ReLU", exact=False)

    return rule


def _dropout(module: nn.Module) -> Outcome:
    if not isinstance(module, nn.Dropout) or not module.inplace:
        return None
    return Replacement(nn.Dropout(module.p), f"Dropout(p={module.p})", exact=True)


#: Rules by name, in the order in which they are tried: blocks first, since they hold what other rules speak of.
_RULES: Mapping[str, tuple[Rule, type[nn.Module] | None, str]] = {
    "squeeze-excitation": (blocks.squeeze_excitation, None, "a gate on channels computed from their means: the identity"),
    "convnext-block": (blocks.convnext_block, None, "layer norm and linear layers over permuted images: batch norm, 1×1 kernels"),
    "layer-norm-2d": (blocks.layer_norm_2d, None, "a layer norm over the channels of images: a batch norm"),
    "relu6": (_to_relu(nn.ReLU6), nn.ReLU6, "ReLU6: ReLU"),
    "silu": (_to_relu(nn.SiLU), nn.SiLU, "SiLU (swish): ReLU"),
    "hardswish": (_to_relu(nn.Hardswish), nn.Hardswish, "Hardswish: ReLU"),
    "hardsigmoid": (_to_relu(nn.Hardsigmoid), nn.Hardsigmoid, "Hardsigmoid: ReLU"),
    "gelu": (_to_relu(nn.GELU), nn.GELU, "GELU: ReLU"),
    "leaky-relu": (_to_relu(nn.LeakyReLU), nn.LeakyReLU, "LeakyReLU: ReLU"),
    "inplace-dropout": (_dropout, nn.Dropout, "a dropout in place, which ReLU cannot be trained with: out of place"),
    "max-pool": (pools.max_pool, nn.MaxPool2d, "a max pool over 5 and more: an exactly equal stack of small ones"),
    "avg-pool": (pools.avg_pool, nn.AvgPool2d, "an average pool over 5 and more: a stack of small ones"),
    "large-kernel": (convolutions.large_kernel, nn.Conv2d, "a kernel over 7: a stack of small ones, exact up to 13"),
    "even-kernel": (convolutions.even_kernel, nn.Conv2d, "an even kernel: an odd one with zeros at its end, exact"),
}

#: Every rule and what it does.
RULES: Mapping[str, str] = {name: text for name, (_, _, text) in _RULES.items()}


def lite(
    model: nn.Module,
    *,
    only: Iterable[str] | None = None,
    skip: Iterable[str] = (),
    evaluation: Iterable[Any] | None = None,
    metric: AnyMetric | None = None,
    progress: bool = True,
) -> Surgery:
    """Replace what fixed point handles badly, as vendors' "lite" models do.

    Every change keeps the shapes; most alter the function, and then the network may have to be trained on, for which weights
    are carried over as far as shapes allow: data tell. Calls within a forward cannot be replaced: they are listed in `unchanged`.

    Parameters
    ----------
    model
        Is copied and stays as it is.
    only
        Names of `RULES` to apply; all by default.
    skip
        Names of `RULES` to leave out. The insides of a squeeze-and-excitation that is skipped stay too.
    evaluation
        Batches on which the model is scored in float, as it was and with the changes: a ReLU6 that becomes a ReLU often costs
        nothing. Without them what the changes cost is not known.
    metric
        As of a :class:`qkit.Study`; the outputs choose where it is None.

    Returns
    -------
    Surgery
        The new model and what was changed; ``surgery.model`` has the mode, device and dtype of `model`.

    Raises
    ------
    QkitError
        If `model` is no module, or a rule's name is unknown.
    DataError
        If the evaluation data are empty or do not fit.

    Examples
    --------
    >>> surgery = lite(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6()))
    >>> surgery.changes[0].after
    'ReLU'
    """
    if not isinstance(model, nn.Module):
        raise QkitError(f"a torch.nn.Module is needed, not {type(model).__name__}; if it is a function that makes one, call it.")
    rules = _chosen(only, skip)
    try:
        made = copy.deepcopy(model)
    except RuntimeError as error:
        raise QkitError(
            f"{type(model).__name__} cannot be copied ({error}): remove what keeps computed tensors in it, for example with "
            "torch.nn.utils.remove_weight_norm."
        ) from error
    operation = _Operation(rules)
    made = operation.run(made)
    traced = functional.traced_with_lines(made)
    remarks: tuple[str, ...] = ()
    if isinstance(traced, str):
        found = functional.read_calls(made, frozenset(rules))
        remarks = (
            f"{type(model).__name__} cannot be traced ({traced}): calls in forwards were looked for by name in the source alone; "
            "qkit.lint names the lines that stop the trace.",
        )
    else:
        found = functional.traced_calls(traced, frozenset(rules))
        made = operation.unshare(made, traced)
    inside = operation.kept
    found = [item for item in found if not any(f"{item.path}.".startswith(f"{path}.") for path in inside)]
    scores = None
    if evaluation is not None and any(not change.exact for change in operation.changes):
        scores = measured(model, made, evaluation, metric, progress=progress)
    return Surgery(made, tuple(operation.changes), (*operation.unchanged, *found), remarks, scores)


def _chosen(only: Iterable[str] | None, skip: Iterable[str]) -> tuple[str, ...]:
    wanted = tuple(RULES) if only is None else _names(only, "only")
    left = _names(skip, "skip")
    return tuple(name for name in RULES if name in wanted and name not in left)


def _names(given: Iterable[str], argument: str) -> tuple[str, ...]:
    names = (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in RULES:
            near = difflib.get_close_matches(str(name), RULES, 1, 0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise QkitError(f"{argument}= names {name!r}, which is no rule: {hint}The rules are {', '.join(RULES)}.")
    return names


class _Operation:
    """One walk over the modules; a module that goes by several names is replaced once, by one module."""

    def __init__(self, rules: tuple[str, ...]) -> None:
        self.rules = rules
        self.changes: list[Change] = []
        self.unchanged: list[Unchanged] = []
        self.kept: set[str] = set()
        self._done: dict[nn.Module, nn.Module] = {}

    def run(self, module: nn.Module, path: str = "") -> nn.Module:
        """The module with everything below it replaced, or what takes its place."""
        if module in self._done:
            return self._done[module]
        self._done[module] = module
        made = self._replaced(module, path)
        self._done[module] = self._done[made] = made
        gate = "squeeze-excitation" not in self.rules and blocks.is_squeeze_excitation(made)
        if gate:
            self.kept.add(path)
            return made
        for name, child in list(made._modules.items()):
            if child is not None:
                made._modules[name] = self.run(child, f"{path}.{name}" if path else name)
        return made

    def unshare(self, model: nn.Module, traced: fx.GraphModule) -> nn.Module:
        """Follow replacements by a copy where the forward writes to what they return."""
        mine = {c.path: c for c in self.changes if c.after in {"ReLU", "Identity"}}
        names: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            names.setdefault(module, []).append(path)
        for path in written_to(traced, [name for c in mine for name in names[model.get_submodule(c)]]):
            old = model.get_submodule(path)
            new = Copy() if isinstance(old, nn.Identity) else nn.Sequential(old, Copy()).train(old.training)
            for name in names[old]:
                if not name:
                    return new
                parent, _, own = name.rpartition(".")
                model.get_submodule(parent)._modules[own] = new
            self.changes = [replace(c, after=f"{c.after}, copied") if c.path in names[old] else c for c in self.changes]
        return model

    def _replaced(self, module: nn.Module, path: str) -> nn.Module:
        for name in self.rules:
            rule, kind, _ = _RULES[name]
            # a subclass with a forward of its own computes something else
            if kind is not None and (not isinstance(module, kind) or type(module).forward is not kind.forward):
                continue
            outcome = rule(module)
            if isinstance(outcome, Refused):
                self.unchanged.append(Unchanged(path, _shown(module), name, f"{outcome.reason}."))
                return module
            if isinstance(outcome, Replacement):
                self.changes.append(Change(path, _shown(module), outcome.text, name, outcome.exact))
                made = outcome.module.train(module.training)
                for child in made.modules():
                    if child is not module and name in {"max-pool", "avg-pool", "large-kernel", "even-kernel"}:
                        self._done[child] = child
                return made
        return module


def _shown(module: nn.Module) -> str:
    """A leaf as it shows itself, of others the class."""
    return type(module).__name__ if any(True for _ in module.children()) else repr(module)
