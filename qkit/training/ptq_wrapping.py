"""From a model to a module that is calibrated where it would be trained."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from qkit.epochs import check_epochs
from qkit.errors import QkitError
from qkit.graph import DEVIATION, Graph, build
from qkit.graph.structures import map_tensors
from qkit.quant.calibration import check_weights
from qkit.quant.estimators import Observation
from qkit.quant.histogram import Histogram
from qkit.quant.schemes import Scheme, scheme_of
from qkit.training.ptq_module import PtqModule
from qkit.training.settings import Settings

logger = logging.getLogger(__name__)


def calibrating(
    model: nn.Module,
    example_inputs: Tensor | tuple[Any, ...],
    *,
    scheme: str | Scheme = "int8",
    method: str = "mse",
    weight_method: str = "minmax",
    percentile: float = 99.99,
    methods: Mapping[str, str] | None = None,
    observer_epochs: int = 1,
    norm_epochs: int = 0,
    bias_epochs: int = 1,
    bias_factor: float | None = None,
    device: torch.device | str | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
) -> PtqModule:
    """A copy of the model that is calibrated by forward passes in training mode: see `PtqModule`.

    Parameters
    ----------
    model
        Trained, in float32; it is not changed.
    example_inputs
        One batch, from which shapes are taken.
    scheme
        A preset's name or a `Scheme`.
    method, weight_method, percentile, methods
        Estimators of ranges, as of `qkit.Study.calibrate`.
    observer_epochs
        Epochs in which ranges are observed; at least 1.
    norm_epochs
        Epochs after these in which folded batch norms are re-estimated under quantization.
    bias_epochs
        Epochs after these in which biases are corrected against the float network.
    bias_factor
        Share of what is missing by which every batch moves them, above 0 and up to 1: an exponential mean, for which 0.01 takes
        hundreds of batches. None, the default, for the mean over all samples: one epoch of few batches does.
    device
        Where to run; the model's own by default.
    leaf_modules
        Module classes or paths to keep out of the trace.

    Raises
    ------
    QkitError
        If an option makes no sense.
    GraphError, DataError, PlanError
        If the model cannot be traced, is not float32, has weights that are not finite, or the scheme or a method is unknown.
    """
    for name, epochs in (("observer_epochs", observer_epochs), ("norm_epochs", norm_epochs), ("bias_epochs", bias_epochs)):
        check_epochs(name, epochs, 1 if name == "observer_epochs" else 0)
    number = isinstance(bias_factor, (int, float)) and not isinstance(bias_factor, bool)
    if bias_factor is not None and not (number and 0.0 < bias_factor <= 1.0):
        raise QkitError(f"bias_factor={bias_factor!r} has to be above 0 and at most 1, or None for means over all samples.")
    rules = scheme_of(scheme)
    graph = build(model, example_inputs, device=device, leaf_modules=leaf_modules)
    settings = Settings(
        observer_epochs, norm_epochs, bias_epochs, bias_factor, rules, method, weight_method, percentile,
        None if methods is None else dict(methods), graph.leaf_modules,
    )  # fmt: skip
    check_weights(graph)
    if graph.unexplained > DEVIATION:
        logger.warning(
            "The folded graph differs from the model by %.1e relative: distrust it until you know why.", graph.deviation
        )
    settings.plan(graph, _pretended(graph))  # refuses now what it would refuse after an epoch
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    example = map_tensors(given, lambda x: x.detach().cpu().clone())
    return PtqModule(copy.deepcopy(model).to(graph.device), graph, example, settings)


def _pretended(graph: Graph) -> dict[str, Observation]:
    """Observations of -1 and 1 everywhere: whether a plan can be made at all does not depend on the data."""
    ends = Histogram.of(torch.tensor([-1.0, 1.0]))
    found = {}
    for op in graph.operations:
        if op.quantized:
            ones = np.ones(op.shape[op.channel_axis] if op.shape else 1, np.float32)
            found[op.name] = Observation(ends, (-1.0,), (1.0,), -ones, ones)
    return found
