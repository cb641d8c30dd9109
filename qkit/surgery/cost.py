"""What surgery costs in float on data, before anything is retrained or quantized."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from qkit.errors import DataError
from qkit.execution.loading import batches
from qkit.execution.metrics import AnyMetric, choose, metric_of, score_batch
from qkit.execution.scores import Scores
from qkit.execution.statistics import Samples
from qkit.graph import Graph, build, run_float
from qkit.progress import track

#: The lane of the changed model.
LITE = "lite"


def measured(
    before: nn.Module, after: nn.Module, loader: Iterable[Any], metric: AnyMetric | None, *, progress: bool = True
) -> Scores:
    """Scores of the model as it was ("float") and with the changes (`LITE`), on the same samples, both in float.

    Raises
    ------
    DataError
        If the data are empty or do not fit.
    GraphError
        If the model cannot be traced.
    """
    graphs: list[Graph] = []
    found: dict[str, list[Samples]] = {"float": [], LITE: []}
    for batch in track(batches(loader), "surgery", unit="batch", show=progress):
        graphs = graphs or [build(model, batch.inputs) for model in (before, after)]
        exact, other = (run_float(graph, batch.inputs) for graph in graphs)
        if metric is None:
            metric, _ = choose(exact, batch.targets)
        metric = metric_of(metric)
        for name, outputs in (("float", exact), (LITE, other)):
            found[name].append(score_batch(metric, outputs, batch.targets, exact, batch.size))
    if metric is None:
        raise DataError("the evaluation loader gave no batch: pass at least one.")
    return Scores.of(metric_of(metric), {name: Samples.joined(rows) for name, rows in found.items()})
