"""The wrapped network as a module: schedule, saving, copies, wrappers, and the user's model left alone."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
import socket
from datetime import timedelta

import pytest
import torch
from small_networks import Mixed
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.errors import DataError, QkitError
from qkit.qat import QatModule, wrap

TARGETS = torch.arange(8) % 5


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)


def train_batch(module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(module(images), TARGETS)
    loss.backward()
    optimizer.step()
    return loss.item()


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.fixture
def module(mixed: Mixed, images: Tensor, plan_for) -> QatModule:
    return wrap(mixed, images, total_epochs=6, plan=plan_for(mixed, "int8"))


def test_parameters_have_the_names_of_the_users(mixed: Mixed, module: QatModule) -> None:
    assert {name.removeprefix("model.") for name, _ in module.named_parameters()} == dict(mixed.named_parameters()).keys()
    inner = {name.removeprefix("model."): value for name, value in module.state_dict().items() if name.startswith("model.")}
    assert same(inner, dict(mixed.state_dict()))
    assert isinstance(module.model, Mixed)


def test_the_users_model_is_never_changed(mixed: Mixed, images: Tensor) -> None:
    mixed.train()
    mixed.stem.weight.requires_grad_(False)
    before, modes = state_of(mixed), [m.training for m in mixed.modules()]
    random = torch.get_rng_state()
    module = wrap(mixed, images, total_epochs=2, learn_steps=True)
    assert torch.equal(torch.get_rng_state(), random)
    optimizer = optimizer_of(module)
    for _ in range(2):
        module.train()
        train_batch(module, optimizer, images)
    module.eval()
    module.study([images], metric="agreement")
    assert same(before, state_of(mixed))
    assert modes == [m.training for m in mixed.modules()]
    assert mixed.relu6.inplace
    assert all(p.grad is None for p in mixed.parameters())
    assert module.float_model().relu6.inplace
    assert type(module.float_model()) is Mixed


def test_frozen_parameters_stay_frozen(mixed: Mixed, images: Tensor) -> None:
    mixed.stem.weight.requires_grad_(False)
    mixed.stem_norm.requires_grad_(False)
    module = wrap(mixed, images, total_epochs=2)
    optimizer = optimizer_of(module)
    module.train()
    train_batch(module, optimizer, images)
    assert torch.equal(module.model.stem.weight, mixed.stem.weight)
    assert torch.equal(module.model.stem_norm.weight, mixed.stem_norm.weight)
    assert not torch.equal(module.model.side.weight, mixed.side.weight)


@pytest.mark.parametrize("optimizer_type", [torch.optim.SGD, torch.optim.AdamW])
def test_a_loop_with_scheduler_learns(module: QatModule, images: Tensor, optimizer_type: type) -> None:
    optimizer = optimizer_type(module.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=30, cycle_momentum=False)
    losses = []
    for _ in range(6):
        module.train()
        for _ in range(5):
            losses.append(train_batch(module, optimizer, images))
            scheduler.step()
        module.eval()
        module(images)
    assert losses[-1] < 0.8 * losses[0]


def test_the_schedule(module: QatModule, images: Tensor) -> None:
    """Of six epochs: norms frozen from 2, grids from 4, as TI has it."""
    optimizer = optimizer_of(module)
    for epoch in range(6):
        module.train()
        assert module.epoch == epoch
        before = state_of(module)
        train_batch(module, optimizer, images)
        after = state_of(module)
        norms = [name for name in after if "running" in name or "tracked" in name]
        grids = [name for name in after if name.startswith("quantizers") and name.endswith(("scale", "zero_point", "lo", "hi"))]
        assert norms
        assert grids
        moved = {name for name in after if not torch.equal(after[name], before[name])}
        assert moved.isdisjoint(norms) == (epoch >= 2)
        assert moved.isdisjoint(grids) == (epoch >= 4)
        assert (module.norms_frozen, module.ranges_frozen) == (epoch >= 2, epoch >= 4)
        module.eval()
        before = state_of(module)
        module(images)
        assert same(before, state_of(module)), "evaluation changes nothing"


def test_learned_steps_freeze_where_that_is_asked_for(mixed: Mixed, images: Tensor) -> None:
    module = wrap(mixed, images, total_epochs=4, learn_steps=True, freeze_ranges_at=2)
    optimizer = optimizer_of(module)
    plans = []
    for _ in range(4):
        module.train()
        train_batch(module, optimizer, images)
        plans.append(module.plan())
    assert len(plans[0].diff(plans[1])) == len(plans[0].grids)
    assert plans[2] == plans[3] != plans[0]
    assert all(p.grad is not None for p in module.parameters())
    default = wrap(mixed, images, total_epochs=4, learn_steps=True)
    assert default.schedule.freeze_ranges_at == 4


def test_epochs_are_counted_by_training_batches(module: QatModule, images: Tensor) -> None:
    assert module.epoch == 0
    for _ in range(3):  # twice in a row, and after an evaluation, without a batch between
        module.train()
        module.train()
        module.eval()
        module(images)
    assert module.epoch == 0
    module.train()
    module(images)
    module.eval()
    module.train()
    assert module.epoch == 1


def test_more_epochs_than_planned_are_remarked_on_once(mixed: Mixed, images: Tensor, caplog) -> None:
    module = wrap(mixed, images, total_epochs=2)
    with caplog.at_level(logging.WARNING, "qkit.qat.qat_module"):
        for _ in range(5):
            module.train()
            module(images)
    (said,) = (text for record in caplog.records if "module.epoch" in (text := record.getMessage()))
    assert re.findall(r"\d+", said) == ["3", "2"]


def test_an_epoch_that_is_set_counts_alone(module: QatModule, images: Tensor) -> None:
    for epoch in (0, 3, 5, 1):
        module.epoch = epoch
        for _ in range(2):
            module.train()
            module(images)
            module.eval()
        assert module.epoch == epoch
        assert module.ranges_frozen == (epoch >= 4)
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(QkitError, match="epoch"):
            module.epoch = wrong


@pytest.mark.parametrize("learned", [False, True], ids=["followed", "learned"])
@pytest.mark.parametrize("done", [0, 1, 3])
def test_a_saved_state_continues_identically(mixed: Mixed, images: Tensor, plan_for, learned: bool, done: int) -> None:
    def fresh() -> tuple[QatModule, torch.optim.Optimizer]:
        made = wrap(mixed, images, total_epochs=4, plan=plan_for(mixed, "int8"), learn_steps=learned)
        return made, optimizer_of(made)

    def epochs(module: QatModule, optimizer: torch.optim.Optimizer, numbers: range) -> None:
        for number in numbers:
            module.train()
            torch.manual_seed(number)  # of dropout
            for _ in range(2):
                train_batch(module, optimizer, images)
            module.eval()

    module, optimizer = fresh()
    epochs(module, optimizer, range(done))
    buffer = io.BytesIO()
    torch.save({"module": module.state_dict(), "optimizer": optimizer.state_dict()}, buffer)
    epochs(module, optimizer, range(done, 4))
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, other_optimizer = fresh()
    other.load_state_dict(saved["module"])
    other_optimizer.load_state_dict(saved["optimizer"])
    epochs(other, other_optimizer, range(done, 4))
    assert other.epoch == module.epoch == 3
    assert same(state_of(module), state_of(other))
    assert torch.equal(module(images), other(images))
    assert module.plan() == other.plan()


def test_a_state_saved_before_the_first_batch(mixed: Mixed, images: Tensor) -> None:
    module, other = (wrap(mixed, images, total_epochs=4, scheme="int8-symmetric") for _ in range(2))
    module.train()
    module(images)
    module.eval()
    other.load_state_dict(module.state_dict())
    other.eval()
    assert torch.equal(module(images), other(images))
    assert module.plan() == other.plan()


def test_copies_and_pickles_are_independent(module: QatModule, images: Tensor) -> None:
    optimizer = optimizer_of(module)
    module.train()
    train_batch(module, optimizer, images)
    module.eval()
    expected = module(images).detach()
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(images), expected)
        copied.train()
        train_batch(copied, optimizer_of(copied), images)
        assert copied.epoch == 1
    assert module.epoch == 0
    assert torch.equal(module(images), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="DataParallel passes through only where there is no GPU")
def test_data_parallel_passes_through(module: QatModule, images: Tensor) -> None:
    parallel = nn.DataParallel(module)
    parallel.train()
    optimizer = optimizer_of(parallel)
    assert train_batch(parallel, optimizer, images) > 0
    assert module.epoch == 0
    parallel.eval()
    assert torch.equal(parallel(images), module(images))


def test_replicas_share_clock_and_grids(mixed: Mixed, images: Tensor) -> None:
    """As DataParallel makes them: shallow copies, the first of which shares the module's storages."""
    module = wrap(mixed, images, total_epochs=4).train()
    replica = _replica(module)
    replica(images)
    module.train()
    assert module.epoch == 1
    assert module.quantizers["grid/stem"].ready
    module.eval()
    assert torch.isfinite(module(images)).all()


def _replica(module: nn.Module) -> nn.Module:
    replica = module._replicate_for_data_parallel()
    replica._buffers = dict(module._buffers)
    for name, parameter in module._parameters.items():
        setattr(replica, name, parameter)
    replica._modules = {name: None if child is None else _replica(child) for name, child in module._modules.items()}
    return replica


@pytest.mark.parametrize("learned", [False, True], ids=["followed", "learned"])
def test_distributed_data_parallel(mixed: Mixed, images: Tensor, learned: bool) -> None:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("torch was built without gloo")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    module = wrap(mixed, images, total_epochs=4, learn_steps=learned, freeze_ranges_at=2)
    single = copy.deepcopy(module)
    store = distributed.TCPStore("127.0.0.1", port, 1, True, timeout=timedelta(seconds=30))
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(module)
        for network in (parallel, single):
            optimizer = optimizer_of(network)
            for epoch in range(4):
                network.train()
                torch.manual_seed(epoch)
                train_batch(network, optimizer, images)
        assert module.epoch == 3
        assert same(state_of(module), state_of(single))
    finally:
        distributed.destroy_process_group()


def test_autocast_is_switched_off_inside(module: QatModule, images: Tensor, caplog) -> None:
    module.eval()
    expected = module(images)
    with caplog.at_level(logging.WARNING, "qkit.qat.qat_module"), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(module(images), expected)
        module(images)
    assert caplog.text.count("autocast") == 1


def test_double_moves_and_gradient_free_training_mode(module: QatModule, images: Tensor) -> None:
    module.to("cpu").train()
    with torch.no_grad():
        assert not module(images).requires_grad
    assert re.search(r"epoch\D+0\D+6\b", repr(module))


def test_inputs_of_another_kind_are_errors(module: QatModule, images: Tensor) -> None:
    module.eval()
    with pytest.raises(DataError, match=r"^input\b.*torch\.float16.*x\.float"):
        module(images.half())
    with pytest.raises(DataError, match=r"Mixed.*'x'"):
        module()
    assert torch.equal(module(x=images), module(images))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.layer(x) * scale


def test_an_input_that_the_trace_does_not_have_is_an_error() -> None:
    x = torch.randn(8, 4)
    module = wrap(Scaled(), x, total_epochs=2)
    assert module(x).shape == (8, 3)
    with pytest.raises(DataError, match="scale"):
        module(x, scale=2.0)


def test_evaluation_before_any_range_is_an_error(mixed: Mixed, images: Tensor) -> None:
    module = wrap(mixed, images, total_epochs=2).eval()
    with pytest.raises(DataError, match=r"^input\b.*train\(\)"):
        module(images)
    with pytest.raises(DataError, match=r"^input\b"):
        module.plan()
    with pytest.raises(DataError, match="calibration="):
        module.study()


def test_one_sided_tensors_stay_unsigned_and_powers_of_two_powers(mixed: Mixed, images: Tensor) -> None:
    module = wrap(mixed, images, total_epochs=6, scheme="int8-power-of-two")
    optimizer = optimizer_of(module)
    for _ in range(6):
        module.train()
        train_batch(module, optimizer, images * 2)
        train_batch(module, optimizer, images)
        plan = module.plan()
        for name in ("stem", "depthwise", ":add"):
            assert (plan[name].params.qmin, plan[name].params.qmax) == (0, 255)
        assert plan["classify"].params.qmin == -128
        for grid in plan.grids.values():
            assert torch.equal(torch.log2(grid.params.scale), torch.log2(grid.params.scale).round())
