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
    for batch in track(batches(loader, limit), "gradients", unit="batch", show=progress):
        step = batch.size if graph.fixed_batch is not None else _TOGETHER
        for at in range(0, batch.size, step):
            part = map_tensors(batch.inputs, partial(_some, size=batch.size, at=at, step=step))
            for tensor, cost in _costs(graph, part, plan, metric, generator, classes=classes).items():
                rows[tensor].append(cost)
    if not any(rows.values()):
        raise DataError("the loader gave no batch: pass at least one.")
    found = {tensor: np.concatenate(parts) for tensor, parts in rows.items() if parts}
    return GradientRanking(found, "cross-entropy" if classes else "squared error")


def _some(x: Tensor, *, size: int, at: int, step: int) -> Tensor:
    return x[at : at + step] if x.ndim and x.shape[0] == size else x


@dataclass(eq=False)
class _Seen:
    """An operation's values on the way forth: what it reads, its sum before the activation, and after it."""

    read: Sequence[Any]
    before: Tensor
    after: Tensor


def _costs(
    graph: Graph, inputs: tuple[Any, ...], plan: Plan, metric: Metric, generator: torch.Generator, *, classes: bool
) -> dict[str, np.ndarray]:
    """By tensor, one value a sample."""
    with execution(graph.device, inference=False), torch.enable_grad():
        output, seen = _forth(graph, inputs, plan)
        outputs = [y for y in float_tensors(part_of(output, metric.output, name=metric.name)) if y.requires_grad]
        if not outputs:
            raise QkitError(
                "the network's output has no gradient, so that its tensors cannot be ranked by it: use mode='only', which "
                "measures."
            )
        sums: dict[str, Tensor] = {}
        for draw in range(_DRAWS):
            vectors = [_vector(y.detach(), generator, classes=classes) for y in outputs]
            wanted = [value.after for value in seen.values()] + [value.before for value in seen.values()]
            gradients = torch.autograd.grad(outputs, wanted, vectors, retain_graph=draw + 1 < _DRAWS, allow_unused=True)
            for (name, value), after, before in zip(seen.items(), gradients[: len(seen)], gradients[len(seen) :], strict=True):
                for tensor, product in _products(graph, graph.operation(name), value, after, before, plan).items():
                    half = product.square() / (2.0 * _DRAWS)
                    sums[tensor] = sums[tensor] + half if tensor in sums else half
    return {tensor: cost.cpu().numpy() for tensor, cost in sums.items()}


def _forth(graph: Graph, inputs: tuple[Any, ...], plan: Plan) -> tuple[Any, dict[str, _Seen]]:
    seen: dict[str, _Seen] = {}

    def look(op: Operation, read: Sequence[Any], before: Any, after: Any) -> None:
        if isinstance(after, Tensor) and after.requires_grad and (op.name in plan.grids or op.weight in plan.grids):
            seen[op.name] = _Seen(read, before, after)

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


def _products(
    graph: Graph, op: Operation, value: _Seen, after: Tensor | None, before: Tensor | None, plan: Plan
) -> dict[str, Tensor]:
    """Of the operation's tap and of its weight: gradient times error, summed within every sample, float64 (N,)."""
    found = {}
    with torch.no_grad():
        if op.name in plan.grids and op.quantized and after is not None:
            exact = value.after.detach()
            rounded = finish_value(op, exact.clone(), plan.params(op.name), (), None)
            found[op.name] = _by_sample(after * (rounded - exact))
        if op.weight is not None and op.weight in plan.grids and before is not None:
            error = lane_weight(graph, plan, op.weight) - graph.weights[op.weight]
            read = [x.detach() if isinstance(x, Tensor) else x for x in value.read]
            added = operate(op, read, error, None if op.bias is None else torch.zeros_like(graph.biases[op.bias]))
            found[op.weight] = _by_sample(before * added)
    return found


def _by_sample(x: Tensor) -> Tensor:
    return x.double().reshape(len(x), -1).sum(1)
