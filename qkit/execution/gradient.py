"""Which tensors matter, for all of them at once: from gradients, in a few passes.

Quantization adds an error D to a tensor. What that does to the loss is, to second order, ``1/2 E[(g . D)^2]``, where g is the
gradient of one sample's loss at a label drawn from the network's own output (the Fisher information stands for the Hessian). The
products are taken sample by sample: of an activation with its own rounding error, of a weight through what its error adds to the
layer's output, which is linear in it. So one backward pass serves all tensors.

Instead of single labels a vector with their gradients' covariance ``diag(p) - p p^T`` goes backward, which is
``sqrt(p) e - p (sqrt(p) . e)`` of a normal e: the expectation is the same, and sure networks, which hardly ever draw another
label, do not make it a lottery. Outputs that are no class scores have squared error, relative to their variance, in the place of
cross-entropy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from qkit.errors import DataError, QkitError
from qkit.execution.lanes import finish_value, lane_weight
from qkit.execution.loading import batches
from qkit.execution.measures import beliefs
from qkit.execution.metrics import Metric, part_of
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import execution, operate, walk_float
from qkit.graph.structures import float_tensors, map_tensors
from qkit.progress import track
from qkit.quant.plan import Plan

__all__ = ["GradientRanking", "rank_by_gradient"]

#: Samples that go through together, since all of their values stay for the way back.
_TOGETHER = 16
#: Random vectors that go backward for every sample.
_DRAWS = 2


@dataclass(frozen=True, eq=False)
class GradientRanking:
    """What every tensor's quantization is expected to cost.

    Attributes
    ----------
    costs
        By tensor of the plan, in execution order: rise of the loss, a sample each, float64 (N,).
    loss
        "cross-entropy" (in nats), or "squared error" (over the outputs' variance).
    """

    costs: Mapping[str, np.ndarray]
    loss: str

    @property
    def order(self) -> list[str]:
        """The tensors, the dearest first."""
        return sorted(self.costs, key=lambda tensor: -float(self.costs[tensor].mean()))

    def table(self) -> pd.DataFrame:
        """A row per tensor, the dearest first: ``cost``, its standard error, and its ``share`` of all costs."""
        total = sum(float(cost.mean()) for cost in self.costs.values()) or 1.0
        rows = {}
        for tensor in self.order:
            cost = self.costs[tensor]
            error = float(cost.std(ddof=1)) / len(cost) ** 0.5 if len(cost) > 1 else float("nan")
            rows[tensor] = {"cost": float(cost.mean()), "standard error": error, "share": float(cost.mean()) / total}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["cost", "standard error", "share"]).rename_axis("tensor")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, the dearest first."""
        return {"loss": self.loss, "tensors": {str(t): row for t, row in self.table().to_dict("index").items()}}

    def __repr__(self) -> str:
        first = ", ".join(self.order[:3])
        return f"GradientRanking({len(self.costs)} tensors by {self.loss}: {first}, …)"

    def _repr_html_(self) -> str:
        return str(self.table().head(20).to_html(float_format="{:.4g}".format))


def rank_by_gradient(
    graph: Graph,
    loader: Iterable[Any],
    plan: Plan,
    metric: Metric,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> GradientRanking:
    """Expected cost of every tensor of the plan, by itself, on a loader's samples.

    Takes about eight float passes over them.

    Parameters
    ----------
    metric
        Tells whether the outputs are class scores, and which of several is meant.
    limit
        Batches to take; None for all.
    seed
        Of the random vectors.

    Raises
    ------
    QkitError
        If the network's output has no gradient.
    DataError
        If the data are empty or do not fit.
    """
    generator = torch.Generator().manual_seed(seed)
    rows: dict[str, list[np.ndarray]] = {tensor: [] for tensor in plan.grids}
    classes = metric.among is not None
    with torch.no_grad():
        errors = {name: lane_weight(graph, plan, name) - weight for name, weight in graph.weights.items() if name in plan.grids}
    for batch in track(batches(loader, limit), "gradients", unit="batch", show=progress):
        step = batch.size if graph.fixed_batch is not None else _TOGETHER
        for at in range(0, batch.size, step):
            part = map_tensors(batch.inputs, partial(_some, size=batch.size, at=at, step=step))
            for tensor, cost in _costs(graph, part, plan, errors, metric, generator, classes=classes).items():
                rows[tensor].append(cost)
    if not any(rows.values()):
        raise DataError("the loader gave no batch: pass at least one.")
    found = {tensor: np.concatenate(parts) for tensor, parts in rows.items() if parts}
    return GradientRanking(found, "cross-entropy" if classes else "squared error")


def _some(x: Tensor, *, size: int, at: int, step: int) -> Tensor:
    return x[at : at + step] if x.ndim and x.shape[0] == size else x


@dataclass(frozen=True, eq=False)
class _Seen:
    """An operation on the way forth: its sum before the activation and its value after it, and the errors that are put to them.

    Attributes
    ----------
    before, after
        Those whose gradients are wanted.
    weight, tap
        What the weight's error adds before the activation, and the value's own rounding error after it; None where there is no
        grid.
    """

    before: Tensor
    after: Tensor
    weight: Tensor | None
    tap: Tensor | None


def _costs(
    graph: Graph, inputs: tuple[Any, ...], plan: Plan, errors: Mapping[str, Tensor], metric: Metric,
    generator: torch.Generator, *, classes: bool,
) -> dict[str, np.ndarray]:  # fmt: skip
    """By tensor, one value a sample."""
    with execution(graph.device, inference=False), torch.enable_grad():
        output, seen = _forth(graph, inputs, plan, errors)
        outputs = [y for y in float_tensors(part_of(output, metric.output, name=metric.name)) if y.requires_grad]
        if not outputs:
            raise QkitError(
                "the network's output has no gradient, so that its tensors cannot be ranked by it: use mode='only', which "
                "measures."
            )
        wanted = [value.after for value in seen.values()] + [value.before for value in seen.values()]
        sums: dict[str, Tensor] = {}
        for draw in range(_DRAWS):
            vectors = [_vector(y.detach(), generator, classes=classes) for y in outputs]
            gradients = torch.autograd.grad(outputs, wanted, vectors, retain_graph=draw + 1 < _DRAWS, allow_unused=True)
            for (name, value), after, before in zip(seen.items(), gradients[: len(seen)], gradients[len(seen) :], strict=True):
                for tensor, gradient, error in ((name, after, value.tap), (graph.operation(name).weight, before, value.weight)):
                    if tensor is not None and gradient is not None and error is not None:
                        half = _by_sample(gradient, error).square() / (2.0 * _DRAWS)
                        sums[tensor] = sums[tensor] + half if tensor in sums else half
    return {tensor: cost.cpu().numpy() for tensor, cost in sums.items()}


def _forth(
    graph: Graph, inputs: tuple[Any, ...], plan: Plan, errors: Mapping[str, Tensor]
) -> tuple[Any, dict[str, _Seen]]:
    seen: dict[str, _Seen] = {}

    def look(op: Operation, read: Sequence[Any], before: Any, after: Any) -> None:
        if not isinstance(after, Tensor) or not after.requires_grad:
            return
        with torch.no_grad():
            weight = tap = None
            if op.weight in errors:
                weight = operate(op, read, errors[op.weight], None if op.bias is None else torch.zeros_like(graph.biases[op.bias]))
            if op.quantized and op.name in plan.grids:
                tap = finish_value(op, after.detach().clone(), plan.params(op.name), (), None).sub_(after)
        if weight is not None or tap is not None:
            seen[op.name] = _Seen(before, after, weight, tap)

    return walk_float(graph, map_tensors(inputs, _leaf), look), seen


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


def _vector(y: Tensor, generator: torch.Generator, *, classes: bool) -> Tensor:
    """A random vector with the covariance of the loss's gradient at the output."""
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device)
    if classes and y.ndim == 2:
        p = beliefs(y)
        root = p.sqrt()
        return (root * noise - p * (root * noise).sum(1, keepdim=True)).to(y.dtype)
    spread = y.double().var(correction=0) if y.numel() > 1 else y.double().square().mean()
    return (noise / (spread.clamp_min(1e-30) * y[0].numel()).sqrt()).to(y.dtype)


def _by_sample(gradient: Tensor, error: Tensor) -> Tensor:
    """Their product, summed within every sample, float64 (N,); read in the order of memory where both have the same."""
    pair = [gradient, error]
    if error.ndim > 2 and not error.is_contiguous():
        pair = [x.movedim(1, -1) for x in pair]
    first, second = (x.reshape(len(x), 1, -1) for x in pair)
    return torch.bmm(first, second.mT).double()[:, 0, 0]
