"""The small trainer: it trains, keeps what it has, and leaves random states alone."""

from __future__ import annotations

import json
import logging
import random
import re

import numpy as np
import pytest
import torch
from small_networks import Mixed
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from qkit.errors import DataError, QkitError
from qkit.progress import listening
from qkit.qat import QatModule, fit, wrap


@pytest.fixture
def data(images: Tensor) -> TensorDataset:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(48, 3, 16, 16, generator=generator)
    return TensorDataset(x, (x.mean((1, 2, 3)) * 40).long().clamp(-2, 2) + 2)


@pytest.fixture
def module(mixed: Mixed, images: Tensor) -> QatModule:
    return wrap(mixed, images, total_epochs=3, scheme="int8")


def loader_of(data: TensorDataset, **options) -> DataLoader:
    return DataLoader(data, batch_size=16, **{"shuffle": True, **options})


def test_it_trains_for_the_planned_epochs(module: QatModule, data: TensorDataset) -> None:
    result = fit(module, loader_of(data), lr=0.02, evaluate=loader_of(data, shuffle=False), progress=False)
    assert len(result.losses) == len(result.scores) == result.planned == 3
    assert result.losses[-1] < result.losses[0]
    assert module.epoch == 2
    assert not module.training
    with torch.no_grad():
        truth = (module(data.tensors[0]).argmax(1) == data.tensors[1]).double().mean().item()
    assert result.scores[-1] == truth
    assert result.table().shape == (3, 2)
    assert json.loads(json.dumps(result.to_dict()))["losses"] == list(result.losses)
    assert repr(result).startswith("Fit(3 of 3 epochs, loss ")
    assert "<table" in result._repr_html_()


def test_it_is_a_plain_loop(module: QatModule, data: TensorDataset, mixed: Mixed, images: Tensor) -> None:
    """The same numbers as SGD with momentum and a cosine, written out."""
    result = fit(module, loader_of(data), lr=0.02, weight_decay=1e-3, seed=7, progress=False)
    other = wrap(mixed, images, total_epochs=3, scheme="int8")
    loader = loader_of(data)
    optimizer = torch.optim.SGD(other.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    torch.manual_seed(7)
    losses = []
    for _ in range(3):
        other.train()
        total = 0.0
        for x, y in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(other(x), y)
            loss.backward()
            optimizer.step()
            cosine.step()
            total += loss.item() * len(x)
        losses.append(total / len(data))
    assert result.losses == tuple(losses)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def test_random_states_come_back_and_seeds_repeat(mixed: Mixed, images: Tensor, data: TensorDataset) -> None:
    def run(seed: int, loader: DataLoader) -> tuple[float, ...]:
        module = wrap(mixed, images, total_epochs=2)
        return fit(module, loader, lr=0.01, seed=seed, progress=False).losses

    generator = torch.Generator().manual_seed(3)
    loader = loader_of(data, generator=generator)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), generator.get_state()  # noqa: NPY002
    first = run(0, loader)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist(), generator.get_state()  # noqa: NPY002
    assert torch.equal(states[0], after[0])
    assert states[1:3] == after[1:3]
    assert torch.equal(states[3], after[3])
    assert first == run(0, loader)
    assert first != run(1, loader)


def test_learned_steps_do_not_decay(mixed: Mixed, images: Tensor) -> None:
    """Without a gradient, decay alone moves: all weights, and no step."""
    module = wrap(mixed, images, total_epochs=1, learn_steps=True).train()
    module(images)
    steps = [q.step.clone() for q in module.quantizers.values()]
    weight = module.model.side.weight.clone()
    batch = [(images, torch.arange(8) % 5)]
    fit(module, batch, lr=0.1, weight_decay=0.1, loss=lambda outputs, targets: 0.0 * outputs.sum(), progress=False)
    assert all(torch.equal(q.step, step) for q, step in zip(module.quantizers.values(), steps, strict=True))
    torch.testing.assert_close(module.model.side.weight, weight * 0.99)


def test_own_optimizer_schedule_and_loss(module: QatModule, data: TensorDataset) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    seen: list[bool] = []

    def score(network: nn.Module) -> float:
        seen.append(network.training)
        return 0.5

    result = fit(
        module, loader_of(data), epochs=2, optimizer=optimizer, schedule=schedule, evaluate=score, progress=False,
        loss=lambda outputs, targets: F.multi_margin_loss(outputs, targets),
    )  # fmt: skip
    assert result.scores == (0.5, 0.5)
    assert seen == [False, False]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def test_one_batch_a_list_and_going_on(module: QatModule, data: TensorDataset) -> None:
    batch = [tuple(tensor[:8] for tensor in data.tensors)]
    fit(module, batch, epochs=2, progress=False)
    assert module.epoch == 1
    fit(module, batch, epochs=1, progress=False)
    assert module.epoch == 2
    assert module.norms_frozen
    module.epoch = 1  # counted by hand from here on
    fit(module, batch, epochs=2, progress=False)
    assert module.epoch == 3


def test_an_interrupt_keeps_what_was_learnt(module: QatModule, data: TensorDataset, caplog) -> None:
    before = module.model.side.weight.clone()
    ticks = []

    def stop(what: str, done: int, total: int | None) -> None:
        ticks.append((what, total))
        if done == 4:
            raise KeyboardInterrupt

    with listening(stop), caplog.at_level(logging.WARNING, "qkit.qat.training"):
        result = fit(module, loader_of(data), lr=0.01)
    assert len(result.losses) == 1
    assert result.planned == 3
    (said,) = (record.getMessage() for record in caplog.records)
    assert re.findall(r"\d+", said) == ["1", "3"]
    assert set(ticks) == {("training", 9)}
    assert not torch.equal(module.model.side.weight, before)
    assert not module.training


def test_bad_input(module: QatModule, mixed: Mixed, data: TensorDataset) -> None:
    loader = loader_of(data)
    with pytest.raises(QkitError, match=r"qkit\.qat\.wrap.*Mixed"):
        fit(mixed, loader)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch"):
        fit(module, [], progress=False)
    with pytest.raises(DataError, match="targets"):
        fit(module, [data.tensors[0][:4]], progress=False)
    with pytest.raises(DataError, match="once"):
        fit(module, iter(loader), progress=False)
    with pytest.raises(QkitError, match="epochs=0"):
        fit(module, loader, epochs=0)
    module.model.requires_grad_(False)
    with pytest.raises(QkitError, match="requires_grad"):
        fit(module, loader, progress=False)
    module.model.requires_grad_(True)
    with pytest.raises(QkitError, match="optimizer"):
        fit(module, loader, schedule=object())
    with pytest.raises(DataError, match=r"\bnan\b.*epoch 0"):
        fit(module, loader, loss=lambda a, b: F.cross_entropy(a, b) * float("nan"), progress=False)
