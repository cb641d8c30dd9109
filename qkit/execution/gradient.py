"""Which tensors matter, for all of them at once: from gradients, in a few passes.

Quantization adds an error D to a tensor. What that does to the loss is, to second order, ``1/2 E[(g . D)^2]``, where g is the
gradient of one sample's loss at a label drawn from the network's own output (the Fisher information stands for the Hessian). The
products are taken sample by sample: of an activation with its own rounding error, of a weight through what its error adds to the
layer's output, which is linear in it. So one backward pass serves all tensors.

Instead of the gradients of single labels, vectors with their covariance go backward (`qkit.execution.directions`): networks that
are sure hardly ever draw another label, and would make it a lottery. Of such networks a few samples hold nearly all of the
expected cost. So a float pass tells first how sure each sample is; samples alike go together, and the unsure ones get more
vectors.

Outputs that are no class scores have squared error, relative to their variance, in the place of cross-entropy.
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
from qkit.execution.directions import class_vectors, shared_out, square_vectors, uncertainty
from qkit.execution.lanes import finish_value, lane_weight
from qkit.execution.loading import Batch, batches
from qkit.execution.measures import class_scores
from qkit.execution.metrics import Metric, part_of
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.graph.running import execution, operate, run_float, walk_float
from qkit.graph.structures import float_tensors, map_tensors
from qkit.progress import track
from qkit.quant.plan import Plan

__all__ = ["GradientRanking", "rank_by_gradient"]

#: Samples that go through together, since all of their values stay for the way back.
_TOGETHER = 16
#: Vectors that go backward for a sample, on average.
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

    Takes three to eight float passes over them.

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
    work = _Work(graph, plan, errors, metric, generator, classes=classes)
    for batch in track(batches(loader, limit), "gradients", unit="batch", show=progress):
        for tensor, cost in _of_batch(work, batch).items():
            rows[tensor].append(cost)
    if not any(rows.values()):
        raise DataError("the loader gave no batch: pass at least one.")
    found = {tensor: np.concatenate(parts) for tensor, parts in rows.items() if parts}
    return GradientRanking(found, "cross-entropy" if classes else "squared error")


@dataclass(frozen=True, eq=False)
class _Work:
    """What is the same for all batches; `errors` are those of the quantized weights."""

    graph: Graph
    plan: Plan
    errors: Mapping[str, Tensor]
    metric: Metric
    generator: torch.Generator
    classes: bool

    def outputs(self, output: Any) -> list[Tensor]:
        """The output that the metric looks at: its class scores, or all of its tensors."""
        part = part_of(output, self.metric.output, name=self.metric.name)
        return [class_scores(part)] if self.classes else float_tensors(part)


def _of_batch(work: _Work, batch: Batch) -> dict[str, np.ndarray]:
    """By tensor, one value a sample; in parts of samples that are about equally sure."""
    size = batch.size
    step = size if work.graph.fixed_batch is not None else _TOGETHER
    order = np.arange(size)
    weights = [1.0] * -(-size // step)
    if work.classes and size > step:
        unsure = np.sum([uncertainty(y) for y in work.outputs(run_float(work.graph, batch.inputs))], axis=0)
        order = np.argsort(-unsure, kind="stable")
        weights = [float(unsure[order[at : at + step]].sum()) for at in range(0, size, step)]
    found: dict[str, np.ndarray] = {}
    for at, draws in zip(range(0, size, step), shared_out(weights, _DRAWS), strict=True):
        chosen = order[at : at + step]
        part = map_tensors(batch.inputs, partial(_some, size=size, chosen=torch.from_numpy(chosen)))
        for tensor, cost in _costs(work, part, draws).items():
            found.setdefault(tensor, np.zeros(size))[chosen] = cost
    return found


def _some(x: Tensor, *, size: int, chosen: Tensor) -> Tensor:
    return x[chosen.to(x.device)] if x.ndim and x.shape[0] == size else x


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


def _costs(work: _Work, inputs: tuple[Any, ...], draws: int) -> dict[str, np.ndarray]:
    """By tensor, one value a sample."""
    graph, generator = work.graph, work.generator
    size = Batch(inputs).size
    with execution(graph.device, inference=False), torch.enable_grad():
        output, seen = _forth(work, inputs)
        outputs = [y for y in work.outputs(output) if y.requires_grad]
        if not outputs:
            raise QkitError(
                "the network's output has no gradient, so that its tensors cannot be ranked by it: use mode='only', which "
                "measures."
            )
        wanted = [value.after for value in seen.values()] + [value.before for value in seen.values()]
        vectors = class_vectors if work.classes else square_vectors
        columns = list(zip(*(vectors(y.detach(), draws, generator) for y in outputs), strict=True))
        sums: dict[str, Tensor] = {}
        for at, column in enumerate(columns):
            gradients = torch.autograd.grad(outputs, wanted, column, retain_graph=at + 1 < len(columns), allow_unused=True)
            for (name, value), after, before in zip(seen.items(), gradients[: len(seen)], gradients[len(seen) :], strict=True):
                for tensor, gradient, error in ((name, after, value.tap), (graph.operation(name).weight, before, value.weight)):
                    if tensor is not None and gradient is not None and error is not None:
                        half = _by_sample(gradient, error, size).square() / 2.0
                        sums[tensor] = sums[tensor] + half if tensor in sums else half
    return {tensor: cost.cpu().numpy() for tensor, cost in sums.items()}


def _forth(work: _Work, inputs: tuple[Any, ...]) -> tuple[Any, dict[str, _Seen]]:
    graph, plan, errors = work.graph, work.plan, work.errors
    seen: dict[str, _Seen] = {}

    def look(op: Operation, read: Sequence[Any], before: Any, after: Any) -> None:
        if not isinstance(after, Tensor) or not after.requires_grad:
            return
        with torch.no_grad():
            weight = tap = None
            if op.weight is not None and op.weight in errors:
                bias = None if op.bias is None else torch.zeros_like(graph.biases[op.bias])
                weight = operate(op, read, errors[op.weight], bias)
            if op.quantized and op.name in plan.grids:
                tap = finish_value(op, after.detach().clone(), plan.params(op.name), (), None).sub_(after)
        if weight is not None or tap is not None:
            seen[op.name] = _Seen(before, after, weight, tap)

    return walk_float(graph, map_tensors(inputs, _leaf), look), seen


def _leaf(x: Tensor) -> Tensor:
    return x.detach().clone().requires_grad_() if x.is_floating_point() else x


def _by_sample(gradient: Tensor, error: Tensor, size: int) -> Tensor:
    """Their product, summed within every sample, float64 (N,); read in the order of memory where both have the same.

    A first dimension of several times the samples is that of windows or heads, a sample's one after the other. Where it has
    nothing to do with the samples, the product of all is shared out, so that the squares add up to its square.
    """
    pair = [gradient, error]
    if error.ndim > 2 and not error.is_contiguous():
        pair = [x.movedim(1, -1) for x in pair]
    if error.ndim == 0 or len(error) % size:
        return (gradient.double() * error.double()).sum().expand(size).div(size**0.5)
    first, second = (x.reshape(size, 1, -1) for x in pair)
    return torch.bmm(first, second.mT).double()[:, 0, 0]
