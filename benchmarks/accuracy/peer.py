"""The same model, images and grids through torchao's PT2E flow.

Its XNNPACK quantizer has the grids that the kit's "int8" and "int8-per-tensor" have: symmetric weights from -127 to 127 and
affine 8-bit activations, at the same places. Biases stay in float there. Ranges are torchao's own: its histogram observer's
after training, moving averages in training.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.accuracy.cells import PEER_SCHEMES, Cell
from benchmarks.accuracy.compute import MOMENTUM, Result, Settings
from benchmarks.accuracy.subjects import Subject, training_batches
from qkit.errors import MissingExtra
from qkit.execution.loading import seeded


def peer(cell: Cell, subject: Subject, settings: Settings) -> Result:
    """The evaluation images under torchao's flow, after training or without."""
    if cell.scheme not in PEER_SCHEMES:
        raise ValueError(f"torchao has no grids like those of {cell.scheme}")
    per_channel = cell.scheme == "int8"
    if cell.treatment == "torchao":
        return scores(posttraining(subject.model, subject.calibration, per_channel=per_channel), subject.evaluation), {}
    if subject.train is None:
        raise ValueError(f"{cell.network} has no images to train on")
    loader = training_batches(subject.train)
    trained, losses = trained_on_grids(subject.model, loader, settings, cell.seed, per_channel=per_channel)
    return scores(trained, subject.evaluation), {"losses": losses}


def posttraining(model: nn.Module, calibration: Iterable[Any], *, per_channel: bool) -> nn.Module:
    """`prepare_pt2e`, a pass over the calibration images, `convert_pt2e`."""
    flow, _ = _torchao()
    prepared = flow.prepare_pt2e(_exported(model, calibration), _quantizer(per_channel=per_channel, training=False))
    with torch.no_grad():
        for inputs, _ in calibration:
            prepared(inputs)
    return flow.convert_pt2e(prepared)  # type: ignore[no-any-return]


def trained_on_grids(
    model: nn.Module, loader: Any, settings: Settings, seed: int, *, per_channel: bool
) -> tuple[nn.Module, list[float]]:
    """`prepare_qat_pt2e`, training as `qkit.qat.fit` does it, `convert_pt2e`; the network and the mean loss of every epoch.

    The same batches in the same order, optimizer, learning rates and epochs at which batch norms and grids freeze.
    """
    flow, pt2e = _torchao()
    prepared = flow.prepare_qat_pt2e(_exported(model, loader), _quantizer(per_channel=per_channel, training=True))
    pt2e.move_exported_model_to_train(prepared)
    rate, decay = settings.rate, settings.weight_decay
    optimizer = torch.optim.SGD(prepared.parameters(), rate, momentum=MOMENTUM, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs * len(loader))
    half = settings.epochs // 2
    norms = max(half - 1, 0) if settings.freeze_norms_at is None else settings.freeze_norms_at
    losses = []
    with seeded(loader, seed):
        for epoch in range(settings.epochs):
            if epoch == norms:
                _freeze_norms(prepared)
            if epoch == half + 1:
                prepared.apply(pt2e.disable_observer)
            total = count = 0.0
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(prepared(inputs), targets)
                loss.backward()
                optimizer.step()
                schedule.step()
                total, count = total + loss.item() * len(targets), count + len(targets)
            losses.append(total / count)
    pt2e.move_exported_model_to_eval(prepared)
    return flow.convert_pt2e(prepared), losses


def debugged(model: nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    """torchao's numeric debugger on one batch: float and its int8 model with a logger at every node, both run and compared.

    Raises
    ------
    MissingExtra
        Without torchao.
    """
    flow, pt2e = _torchao()
    exported = _exported(model, [(x, None)])
    reference = pt2e.prepare_for_propagation_comparison(exported)
    prepared = flow.prepare_pt2e(exported, _quantizer(per_channel=True, training=False))
    with torch.no_grad():
        prepared(x)
    actual = pt2e.prepare_for_propagation_comparison(flow.convert_pt2e(prepared))

    @torch.no_grad()
    def compared() -> dict[Any, list[Any]]:
        reference(x)
        actual(x)
        found = pt2e.compare_results(*(pt2e.extract_results_from_loggers(m) for m in (reference, actual)))
        # a logger keeps what it has seen, and errors are computed when they are read
        errors = {key: [result.sqnr for result in summary.results] for key, summary in found.items()}
        for m in (reference, actual):
            for logger in m.modules():
                if hasattr(logger, "stats"):
                    logger.stats.clear()
        return errors

    return compared


@torch.no_grad()
def scores(model: nn.Module, evaluation: Iterable[Any]) -> np.ndarray:
    """Per image whether its class comes out on top, float64 (N,)."""
    return torch.cat([model(inputs).argmax(1) == targets for inputs, targets in evaluation]).double().numpy()


def _exported(model: nn.Module, loader: Iterable[Any]) -> nn.Module:
    example = next(iter(loader))[0]
    program = torch.export.export(copy.deepcopy(model), (example,), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    return program.module()


def _quantizer(*, per_channel: bool, training: bool) -> Any:
    from torchao.testing.pt2e._xnnpack_quantizer import XNNPACKQuantizer, get_symmetric_quantization_config

    config = get_symmetric_quantization_config(is_per_channel=per_channel, is_qat=training)
    return XNNPACKQuantizer().set_global(config)


def _freeze_norms(module: Any) -> None:
    """Batch norms use the statistics that they have."""
    for node in module.graph.nodes:
        if node.target is torch.ops.aten.batch_norm.default:
            node.args = (*node.args[:5], False, *node.args[6:])
    module.recompile()


def _torchao() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torchao.quantization import pt2e
            from torchao.quantization.pt2e import quantize_pt2e
    except ImportError as error:
        raise MissingExtra("torchao is needed to compare with and is not installed: `pip install torchao==0.18.0`.") from error
    logging.getLogger("torchao").setLevel(logging.ERROR)
    return quantize_pt2e, pt2e
