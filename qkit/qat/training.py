"""A small trainer for notebooks; any training loop of your own does as well."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import length_hint
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import DataError, QkitError
from qkit.execution.loading import as_batch, batches, seeded, targets_tensor
from qkit.progress import Bar
from qkit.qat.qat_module import QatModule

logger = logging.getLogger(__name__)

#: Momentum of the optimizer that `fit` makes.
_MOMENTUM = 0.9


@dataclass(frozen=True)
class Fit:
    """What a training was like.

    Attributes
    ----------
    losses
        Mean loss of every whole epoch.
    scores
        Score after every whole epoch, where one was asked for.
    planned
        Epochs that were asked for; more than there are losses after an interrupt.
    """

    losses: tuple[float, ...]
    scores: tuple[float, ...]
    planned: int

    def table(self) -> pd.DataFrame:
        """A row per epoch."""
        columns: dict[str, Sequence[float]] = {"loss": self.losses, **({"score": self.scores} if self.scores else {})}
        return pd.DataFrame(columns, index=pd.RangeIndex(len(self.losses), name="epoch"))

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"losses": list(self.losses), "scores": list(self.scores), "planned": self.planned}

    def __repr__(self) -> str:
        done = f"Fit({len(self.losses)} of {self.planned} epochs"
        if not self.losses:
            return f"{done})"
        score = f", score {self.scores[0]:.4g} -> {self.scores[-1]:.4g}" if self.scores else ""
        return f"{done}, loss {self.losses[0]:.4g} -> {self.losses[-1]:.4g}{score})"

    def _repr_html_(self) -> str:
        return f"<p>{self!r}</p>{self.table().to_html(float_format='{:.4f}'.format)}"


def fit(
    module: QatModule,
    loader: Iterable[Any],
    *,
    epochs: int | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    lr: float = 1e-3,
    weight_decay: float = 1e-4,
    schedule: Any = None,
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
    evaluate: Iterable[Any] | Callable[[nn.Module], float] | None = None,
    device: torch.device | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Fit:
    """Train the module in place, and leave it in evaluation mode.

    An interrupt keeps what was learnt so far, and says so; calling again goes on with the next epoch.

    Parameters
    ----------
    loader
        Iterable of ``(inputs, targets)``, iterated once an epoch; shuffled if the loader shuffles.
    epochs
        By default those that `qkit.qat.wrap` was told.
    optimizer
        SGD with momentum 0.9, rate `lr` and `weight_decay` by default; learned steps do not decay.
    schedule
        A learning rate scheduler of that optimizer, stepped after every epoch; by default the rate goes to 0 on a cosine,
        batch by batch.
    loss
        ``loss(outputs, targets)``, a scalar.
    evaluate
        A loader to take the top-1 accuracy on after each epoch, or ``evaluate(module)``, a number.
    device
        Where to train; where the module is by default.
    seed
        Of order and dropout. All random states come back as they were.

    Raises
    ------
    QkitError, DataError
        If it is no `QatModule`, nothing in it can be trained, the loader is empty or gives no targets, or the loss is not
        finite.
    """
    if not isinstance(module, QatModule):
        raise QkitError(f"fit() trains what qkit.qat.wrap() returns, not a {type(module).__name__}.")
    if epochs is not None and epochs < 1:
        raise QkitError(f"epochs={epochs}: train for at least one.")
    if schedule is not None and optimizer is None:
        raise QkitError("a schedule belongs to an optimizer: pass that too.")
    if not any(p.requires_grad for p in module.parameters()):
        raise QkitError("every parameter of the module is frozen (requires_grad=False): there is nothing to train.")
    batches(loader)  # refuses what cannot be iterated more than once
    count = module.schedule.total_epochs if epochs is None else epochs
    if device is not None:
        module.to(device)
    place = next(module.parameters()).device
    if optimizer is None:
        groups = [
            {"params": [p for p in module.model.parameters() if p.requires_grad], "weight_decay": weight_decay},
            {"params": list(module.quantizers.parameters()), "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD([group for group in groups if group["params"]], lr, momentum=_MOMENTUM)
    each = length_hint(loader) or None
    cosine = None
    if schedule is None and each is not None:
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, count * each)
    losses: list[float] = []
    scores: list[float] = []
    generators = [place] if place.type == "cuda" else []
    with (
        seeded(loader, seed),
        torch.random.fork_rng(generators),
        Bar("training", None if each is None else count * each, unit="batch", show=progress) as bar,
    ):
        if generators:
            torch.cuda.manual_seed(seed)
        try:
            for _ in range(count):
                losses.append(_epoch(module, loader, optimizer, cosine, loss, place, bar))
                if schedule is not None:
                    schedule.step()
                if evaluate is not None:
                    module.eval()
                    scores.append(float(evaluate(module)) if callable(evaluate) else top1(module, evaluate))
        except KeyboardInterrupt:
            logger.warning(
                "the training was interrupted after %d of %d epochs: the module keeps what it has learnt.", len(losses), count
            )
    module.eval()
    return Fit(tuple(losses), tuple(scores), count)


def _epoch(
    module: QatModule, loader: Iterable[Any], optimizer: torch.optim.Optimizer, cosine: Any,
    loss: Callable[[Any, Any], Tensor], place: torch.device, bar: Bar,
) -> float:  # fmt: skip
    """One pass over the loader; the mean loss of its samples."""
    begun = module.clock.ran
    module.train()
    if begun and not module.clock.counts:
        module.epoch += 1
    total = samples = 0.0
    for item in loader:
        batch = as_batch(item)
        if batch.targets is None:
            raise DataError("training needs targets: pass a loader of pairs (inputs, targets).")
        inputs = (x.to(place, non_blocking=True) if isinstance(x, Tensor) else x for x in batch.inputs)
        targets = batch.targets.to(place, non_blocking=True) if isinstance(batch.targets, Tensor) else batch.targets
        optimizer.zero_grad()
        value = loss(module(*inputs), targets)
        if not math.isfinite(found := float(value.detach())):
            raise DataError(
                f"the loss is {found} in epoch {module.epoch}: the training diverges. Take a smaller learning rate, and look at "
                "the inputs."
            )
        value.backward()
        optimizer.step()
        if cosine is not None and cosine.last_epoch < cosine.T_max:
            cosine.step()
        total, samples = total + found * batch.size, samples + batch.size
        bar.update()
    if not samples:
        raise DataError("the training loader gave no batch: pass at least one.")
    return total / samples


@torch.no_grad()
def top1(module: nn.Module, loader: Iterable[Any]) -> float:
    """Share of the samples whose greatest output is that of their class."""
    place = next(module.parameters()).device
    hits: list[Tensor] = []
    for batch in batches(loader):
        outputs = module(*(x.to(place) if isinstance(x, Tensor) else x for x in batch.inputs))
        hits.append(outputs.argmax(1).cpu() == targets_tensor(batch.targets, batch.size).cpu())
    if not hits:
        raise DataError("the loader to evaluate on gave no batch: pass at least one.")
    return torch.cat(hits).double().mean().item()
