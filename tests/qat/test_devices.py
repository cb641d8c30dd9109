"""The same training on the CPU and on GPUs."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import Mixed
from torch import Tensor, nn
from torch.nn import functional as F

from qkit.graph.running import execution
from qkit.qat import QatModule, fit, wrap

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def steps_apart(a: QatModule, b: QatModule, x: Tensor, y: Tensor) -> float:
    p = a.plan()["classify"].params
    return float(((a(x).detach().cpu() - b(y).detach().cpu()) / p.scale).abs().round().max())


@needs_cuda
@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor", "int8-power-of-two", "int16"])
@pytest.mark.parametrize("learned", [False, True], ids=["followed", "learned"])
def test_a_gpu_computes_what_the_cpu_does(mixed: Mixed, images: Tensor, plan_for, scheme: str, learned: bool) -> None:
    plan = plan_for(mixed, scheme)
    options = {"total_epochs": 4, "plan": plan, "learn_steps": learned}
    here, there = wrap(mixed, images, **options), wrap(copy.deepcopy(mixed).cuda(), images.cuda(), **options)
    assert all(t.is_cuda for t in (*there.parameters(), *there.buffers()))
    with execution(torch.device("cuda")):
        assert there.eval().plan() == here.eval().plan() == plan
        assert steps_apart(here, there, images, images.cuda()) <= 2 * (1 if scheme != "int16" else 64)
    targets = torch.arange(8) % 5
    for module, x in ((here, images), (there, images.cuda())):
        module.train()
        module.model.drop.p = 0.0
        with torch.backends.cudnn.flags(allow_tf32=False, deterministic=True):
            F.cross_entropy(module(x), targets.to(x.device)).backward()
    for (name, p), q in zip(here.named_parameters(), there.parameters(), strict=True):
        scale = float(p.grad.abs().max()) + 1e-4
        assert float((p.grad - q.grad.cpu()).abs().max()) < 0.1 * scale, name
    moved = there.plan().diff(here.plan())
    for name, (a, b) in moved.items():
        torch.testing.assert_close(a.params.scale, b.params.scale, rtol=1e-2, atol=0.0, msg=name)


@needs_cuda
def test_moving_saving_and_fitting_on_a_gpu(mixed: Mixed, images: Tensor) -> None:
    module = wrap(mixed, images, total_epochs=3, scheme="int8-symmetric", learn_steps=True)
    batch = [(images, torch.arange(8) % 5)]
    result = fit(module, batch, lr=0.01, device="cuda", evaluate=batch, progress=False)
    assert len(result.losses) == 3
    assert next(module.parameters()).is_cuda
    other = wrap(mixed, images, total_epochs=3, scheme="int8-symmetric", learn_steps=True)
    other.load_state_dict(module.state_dict())
    assert other.plan() == module.plan()
    study = module.study([images], metric="agreement")
    assert study.graph.device.type == "cuda"
    assert study.plan == module.plan()


@needs_two
@pytest.mark.parametrize("learned", [False, True], ids=["followed", "learned"])
def test_replicas_on_two_gpus(mixed: Mixed, images: Tensor, learned: bool) -> None:
    module = wrap(mixed, images, total_epochs=4, learn_steps=learned).cuda()
    parallel = nn.DataParallel(module, device_ids=[0, 1])
    optimizer = torch.optim.SGD(parallel.parameters(), 0.01)
    targets = (torch.arange(8) % 5).cuda()
    for epoch in range(4):
        parallel.train()
        assert module.epoch == epoch
        optimizer.zero_grad()
        F.cross_entropy(parallel(images.cuda()), targets).backward()
        assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in module.parameters())
        optimizer.step()
    parallel.eval()
    with torch.no_grad():
        apart = (parallel(images.cuda()) - module(images.cuda())).cpu() / module.plan()["classify"].params.scale
    assert float(apart.abs().round().max()) <= 2
