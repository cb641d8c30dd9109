"""One cell: the network treated, and every evaluation image right or wrong."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import qkit
from benchmarks.accuracy.cells import ALONE, FLOAT, Cell
from benchmarks.accuracy.store import packed
from benchmarks.accuracy.subjects import Source, Subject, training_batches
from qkit.execution.lanes import Lane, run_lanes
from qkit.qat import fit, wrap
from qkit.quant.plan import Plan
from qkit.study import Study

#: Steps of post-training calibration that change the model or its ranges: training starts from these and finds its own codes
#: and biases.
BEFORE_TRAINING = ("equalization", "absorption", "ranges", "weight-clipping")


@dataclass(frozen=True)
class Settings:
    """What the cells have in common; `benchmarks.accuracy.choose` says how those of training were chosen."""

    epochs: int = 12
    rate: float = 1e-4
    weight_decay: float = 1e-4
    learn_steps: bool = False
    freeze_norms_at: int | None = None

    def of(self, treatment: str) -> dict[str, Any]:
        """Those that the treatment depends on."""
        every = asdict(self)
        training = ("epochs", "rate", "weight_decay", "freeze_norms_at")
        names = {"qat": (*training, "learn_steps"), "ptc + qat": (*training, "learn_steps"), "torchao qat": training}
        return {name: every[name] for name in names.get(treatment, ())}


#: Of the optimizer that `qkit.qat.fit` makes.
MOMENTUM = 0.9
Result = tuple[np.ndarray, dict[str, Any]]


def compute(cell: Cell, source: Source, settings: Settings, device: str | None = None) -> dict[str, Any]:
    """The cell's JSON-ready record: what is right, the seconds of the treatment, and what else it had to say."""
    subject = source.subject(cell.network, cell.seed)
    started, used = time.perf_counter(), time.process_time()
    hits, more = _treated(cell, subject, settings, device)
    seconds = {"wall": time.perf_counter() - started, "processor": time.process_time() - used}
    record = {"id": cell.id, **asdict(cell), "n": len(hits), "hits": packed(hits)}
    if cell.scheme == FLOAT:
        record["ids"] = subject.ids
    return {**record, "seconds": seconds, **({"more": more} if more else {})}


def _treated(cell: Cell, subject: Subject, settings: Settings, device: str | None) -> Result:
    if cell.treatment.startswith("torchao"):
        from benchmarks.accuracy.peer import peer

        return peer(cell, subject, settings)
    scheme = "int8" if cell.scheme == FLOAT else cell.scheme
    study = Study(subject.model, subject.calibration, subject.evaluation, metric="top1", scheme=scheme, device=device)
    if cell.scheme == FLOAT:
        return _scores(study, qkit.FLOAT), {}
    study.calibrate(progress=False)
    if cell.treatment in ALONE:
        return _ptc(study, cell, settings)
    treatments: Mapping[str, Callable[[Study, Cell, Settings], Result]] = {
        "plain": lambda study, *_: (_scores(study, study.plan), {}),
        "ptc": _ptc,
        "mixed": _mixed,
    }
    if cell.treatment in treatments:
        return treatments[cell.treatment](study, cell, settings)
    return _trained(study, cell, settings, subject, device)


def _scores(study: Study, plan: Plan) -> np.ndarray:
    return study.evaluate({"lane": plan}, progress=False).lanes["lane"]


def _ptc(study: Study, cell: Cell, settings: Settings) -> Result:
    steps = (cell.treatment.removeprefix("only "),) if cell.treatment in ALONE else None
    treated = study.ptc(steps, progress=False)
    assert treated.treatment is not None
    told = treated.treatment.to_dict()
    return treated.treatment.scores.lanes["after"], {key: told[key] for key in ("steps", "fitted", "held_out", "remarks")}


def _mixed(study: Study, cell: Cell, settings: Settings) -> Result:
    found = study.mixed(progress=False)
    told = {"layers": len(found.layers), "of": len(found.costs), "share": found.share, "scored": found.scored}
    return _scores(study, found.plan), {**told, "remarks": list(found.remarks)}


def _trained(study: Study, cell: Cell, settings: Settings, subject: Subject, device: str | None) -> Result:
    """Training on the grids, from the plain study or from what calibration made of it."""
    if subject.train is None:
        raise qkit.QkitError(f"{cell.network} has no images to train on: leave the treatment {cell.treatment!r} out.")
    start = study
    if cell.treatment != "qat":
        start = study.ptc(BEFORE_TRAINING, progress=False)
    trained, losses = train(start, settings, subject.train, cell.seed, device)
    loss, share = on_images(trained, trained.calibration)
    return _scores(trained, trained.plan), {"calibration": {"loss": loss, "top1": share}, "losses": losses}


def train(
    start: Study, settings: Settings, images: torch.utils.data.TensorDataset, seed: int, device: str | None = None
) -> tuple[Study, list[float]]:
    """The study after training on the images, and the mean loss of every epoch."""
    example = next(iter(start.calibration))[0]
    module = wrap(
        start.model.to(device or "cpu"),
        example.to(device or "cpu"),
        total_epochs=settings.epochs,
        scheme=start.scheme,
        plan=start.plan,
        learn_steps=settings.learn_steps,
        freeze_norms_at=settings.freeze_norms_at,
    )
    told = fit(
        module,
        training_batches(images),
        lr=settings.rate,
        weight_decay=settings.weight_decay,
        device=device,
        seed=seed,
        progress=False,
    )
    return module.study(start.calibration, start.evaluation, start.metric), list(told.losses)


@torch.no_grad()
def on_images(study: Study, loader: Iterable[Any]) -> tuple[float, float]:
    """Cross-entropy and top-1 of the study's lane on the images."""
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    for inputs, labels in loader:
        outputs.append(run_lanes(study.graph, [Lane("lane", study.plan)], (inputs,))["lane"].cpu())
        targets.append(labels)
    found, wanted = torch.cat(outputs), torch.cat(targets)
    return float(F.cross_entropy(found, wanted)), float((found.argmax(1) == wanted).double().mean())


def quiet() -> None:
    """For a process that does nothing but cells: one thread, and no remarks, which the records hold."""
    torch.set_num_threads(1)
    # a GPU's short floats would be one more quantization
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
