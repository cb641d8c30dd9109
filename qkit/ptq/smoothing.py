"""Smoothing: scales folded between norms and the linear layers that read them.

A few channels of a layer norm's output may reach far beyond all others, and share one step with them. With ::

    s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)

for every channel j, the norm's weight and bias are divided by s and the columns of the linear layers behind it multiplied by s:
no float result changes, and what was hard to quantize in the activation is shared out between activation and weight (Xiao et al.
2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", section 4.1, equation 4).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qkit.errors import GraphError
from qkit.graph import Graph, build, deviation, run_float
from qkit.graph.operation import Operation
from qkit.graph.smoothing import norm_constants, readers_of
from qkit.ptq.channels import Refusals
from qkit.ptq.equalization import DEVIATION, LIMIT, example_inputs
from qkit.quant.estimators import Observation

#: How much of the difficulty goes from the activations to the weights; the paper's choice for most networks.
ALPHA = 0.5
#: A column of weights counts for no less than this share of the widest one.
_LEAST = 1e-5


@dataclass(frozen=True, eq=False)
class Smoothed:
    """The answer of :func:`smooth`.

    Attributes
    ----------
    model
        A copy of the model with scales folded in.
    factors
        By norm, what its channels were divided by, float64 (C,).
    skipped
        By norm, why it was left as it is.
    deviation
        Greatest difference of the float output from the model's, relative to its greatest magnitude.
    """

    model: nn.Module
    factors: Mapping[str, np.ndarray]
    skipped: Mapping[str, str]
    deviation: float


def smooth(
    model: nn.Module,
    graph: Graph,
    seen: Mapping[str, Observation],
    *,
    alpha: float = ALPHA,
    example: Tensor | tuple[Any, ...] | None = None,
) -> Smoothed:
    """A copy of the model with scales between its norms and the linear layers that read them; its float output is verified.

    Parameters
    ----------
    model, graph
        The model, and its own graph (`study.model`, `study.graph`).
    seen
        What was observed at the taps (`study.observe()`).
    alpha
        From 0, all channels of the weights alike, to 1, all channels of the activations alike.
    example
        A batch to verify with; random numbers of the shapes that the graph was built with by default.

    Raises
    ------
    GraphError
        If `alpha` is not from 0 to 1, or the new model's output differs.
    """
    if not 0.0 <= alpha <= 1.0:
        raise GraphError(f"alpha={alpha!r} has to be from 0 to 1.")
    open_norms, skipped = norms(model, graph)
    factors = {tap: factors_of(graph, tap, seen[tap], alpha) for tap in open_norms}
    copied, deviated = divided(model, graph, factors, example=example) if factors else (copy.deepcopy(model), 0.0)
    return Smoothed(copied, factors, skipped, deviated)


def norms(model: nn.Module, graph: Graph) -> tuple[dict[str, tuple[Operation, ...]], dict[str, str]]:
    """The linear layers behind each norm that scales can be folded into, by the norm's tap; and of the others why not."""
    refusals = Refusals(model, graph)
    modules = dict(model.named_modules(remove_duplicate=False))
    found, skipped = {}, {}
    for op in graph.operations:
        if op.kind != "norm":
            continue
        readers = readers_of(graph, op)
        refused = next((f"{reader.name} {why}" for reader in readers if (why := refusals.of(reader)[1]) is not None), None)
        if not readers:
            skipped[op.name] = "it has no weight of its own, or not linear layers alone read it"
        elif refused is not None:
            skipped[op.name] = refused
        elif not _owns(modules.get(op.layer), op, refusals):
            skipped[op.name] = f"{op.layer} computes with more than its weight and bias, or shares them"
        else:
            found[op.name] = readers
    return found, skipped


def _owns(module: nn.Module | None, op: Operation, refusals: Refusals) -> bool:
    """Whether the norm's numbers are the module's own parameters as they stand."""
    if module is None or refusals.reason(module, op.layer) is not None:
        return False
    own = [p for p in (getattr(module, "weight", None), getattr(module, "bias", None)) if isinstance(p, Tensor)]
    constants = norm_constants(op) or ()
    return len(own) == len(constants) and all(torch.equal(p.detach().cpu(), c.cpu()) for p, c in zip(own, constants, strict=True))


def factors_of(graph: Graph, tap: str, seen: Observation, alpha: float = ALPHA) -> np.ndarray:
    """The factors of a norm's channels, float64 (C,), their geometric mean 1: within 1/`LIMIT` and `LIMIT` of each other."""
    weights = (graph.weights[reader.weight or ""] for reader in readers_of(graph, graph.operation(tap)))
    columns = torch.stack([weight.detach().abs().amax(0) for weight in weights]).amax(0).double().cpu().numpy()
    reach = np.maximum(np.abs(seen.channel_min), np.abs(seen.channel_max)).astype(np.float64)
    used = reach > 0.0
    if not used.any() or not columns.max() > 0.0:
        return np.ones(len(reach))
    columns = np.maximum(columns, _LEAST * columns.max())
    factors = np.ones(len(reach))
    factors[used] = reach[used] ** alpha / columns[used] ** (1.0 - alpha)
    factors[used] /= np.exp(np.log(factors[used]).mean())
    return np.clip(factors, 1.0 / LIMIT, LIMIT)


def divided(
    model: nn.Module,
    graph: Graph,
    factors: Mapping[str, Iterable[float]],
    *,
    example: Tensor | tuple[Any, ...] | None = None,
) -> tuple[nn.Module, float]:
    """A copy of the model in which each norm's channels are divided by its factors, and how far its float output is from before.

    Raises
    ------
    GraphError
        If factors cannot be folded in there, are not one a channel, or the new model's output differs.
    """
    open_norms, skipped = norms(model, graph)
    copied = copy.deepcopy(model)
    modules: dict[str, Any] = dict(copied.named_modules(remove_duplicate=False))
    with torch.no_grad():
        for tap, values in factors.items():
            if tap not in open_norms:
                raise GraphError(f"no scales can be folded in at {tap}: {skipped.get(tap, 'it is not a norm of this network')}.")
            _fold(modules, graph.operation(tap), open_norms[tap], torch.tensor(tuple(values), dtype=torch.float64))
    inputs = example_inputs(graph, example)
    new = build(copied, inputs, device=graph.device, leaf_modules=graph.leaf_modules)
    found = deviation(run_float(new, inputs), run_float(graph, inputs))
    if found > DEVIATION:
        raise GraphError(
            f"scales at {', '.join(factors)} change the output of {graph.model_name} by {found:.1e} relative, more than "
            f"{DEVIATION:g}: the graph is not of this model as it is now, or something between norm and layer depends on values "
            "that no trace shows. Build the graph anew; if that does not help, freeze these norms to have them skipped."
        )
    return copied, found


def _fold(modules: Mapping[str, Any], op: Operation, readers: Sequence[Operation], by: Tensor) -> None:
    norm = modules[op.layer]
    if by.shape != norm.weight.shape:
        raise GraphError(f"{op.name} has {norm.weight.numel()} channels, and {by.numel()} factors were given.")
    for part in (norm.weight, getattr(norm, "bias", None)):
        if part is not None:
            part.copy_(part.double() / by.to(part.device))
    for reader in readers:
        weight = modules[reader.layer].weight
        weight.copy_(weight.double() * by.to(weight.device))
