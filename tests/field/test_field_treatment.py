"""What people reported about treatments: equalization across ReLU6, and training on the grids that does not survive conversion."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.qat import wrap


def bounded(act: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), act(), nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1))
    with torch.no_grad():
        model[0].weight *= torch.logspace(-1, 1.5, 8)[:, None, None, None]
        model[0].bias.uniform_(0.0, 4.0)
        model[2].weight /= torch.logspace(-1, 1.5, 8)[:, None, None]
        gain = torch.logspace(-1.5, 1.5, 6)
        model[2].weight *= gain[:, None, None, None]
        model[2].bias *= gain
        model[4].weight /= gain[:, None, None]
    return model.eval()


def spread(weight: Tensor) -> float:
    """Widest output channel over the narrowest."""
    widths = weight.detach().flatten(1).abs().amax(1)
    return float(widths.max() / widths.min())


def test_equalization_leaves_what_a_relu6_bounds() -> None:
    """Scaled channels meet the bound elsewhere: the float network must compute what it did, and ReLU6 must not become ReLU."""
    model = bounded(nn.ReLU6)
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        before, inner = model(x), model[:2](x)
    assert float((inner == 6.0).double().mean()) > 0.02, "the bound is in use"
    study = qkit.Study(model, [x], metric="closeness", scheme="int8-per-tensor")
    treated = study.ptc(["equalization"], progress=False)
    after = treated.capture(lanes=("float",), batches=1)
    got = after[[t for t in after.taps if t != "output"][-1]].float.values
    torch.testing.assert_close(got, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert any(isinstance(m, nn.ReLU6) for m in treated.model.modules())
    assert torch.equal(treated.graph.weights["0.weight"], model[0].weight.detach())
    assert spread(treated.graph.weights["2.weight"]) < 0.2 * spread(model[2].weight), "what no bound forbids is evened out"


def test_with_relu_the_same_network_is_equalized() -> None:
    model = bounded(nn.ReLU)
    x = torch.randn(16, 3, 8, 8)
    with torch.no_grad():
        before = model(x)
    study = qkit.Study(model, [x], metric="closeness", scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    treated = study.ptc(["equalization"], progress=False)
    after = treated.capture(lanes=("float",), batches=1)
    got = after[[t for t in after.taps if t != "output"][-1]].float.values
    torch.testing.assert_close(got, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert spread(treated.graph.weights["0.weight"]) < 0.2 * spread(model[0].weight)


Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def learnt() -> tuple[nn.Module, Batches, Batches]:
    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32)[:, None] / 16, torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    fit = list(zip(x[:800].split(50), y[:800].split(50), strict=True))
    test = list(zip(x[1000:1700].split(100), y[1000:1700].split(100), strict=True))
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12, eps=1e-3, momentum=0.03), nn.ReLU(),
        nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(192, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for _ in range(10):
        for a, b in fit:
            optimizer.zero_grad()
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
    return model.eval(), fit, test


def test_training_on_the_grids_survives_conversion(learnt: tuple[nn.Module, Batches, Batches], tmp_path: Path) -> None:
    """The module in evaluation mode, the lane of its study and the exported file in ONNX Runtime give the same classes."""
    runtime = pytest.importorskip("onnxruntime")
    model, fit, test = learnt
    study = qkit.Study(model, fit, test, metric="top1", scheme="int8-per-tensor")
    study.calibrate("minmax", progress=False)
    module = wrap(study, total_epochs=2, anyway=True)
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(module.parameters(), 0.02, momentum=0.9)
    for _ in range(2):
        module.train()
        for x, y in fit:
            optimizer.zero_grad()
            F.cross_entropy(module(x), y).backward()
            optimizer.step()
    module.eval()
    with torch.no_grad():
        ours = torch.cat([module(x).argmax(1) for x, _ in test])
    truth = torch.cat([y for _, y in test])
    accuracy = float((ours == truth).double().mean())
    assert accuracy > 0.9
    trained = module.study()
    lane = trained.evaluate({"trained": trained.plan}, progress=False)["trained"].value
    assert lane == pytest.approx(accuracy, abs=2 / len(truth))
    trained.export(tmp_path / "net.onnx")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # processors without VNNI saturate otherwise
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    file = torch.cat([torch.from_numpy(session.run(None, {name: x.numpy()})[0]).argmax(1) for x, _ in test])
    assert float((file == truth).double().mean()) == pytest.approx(accuracy, abs=3 / len(truth))


def test_switching_between_training_and_evaluation_keeps_the_users_settings(learnt: tuple[nn.Module, Batches, Batches]) -> None:
    """Epsilon and momentum of norms and the rate of dropout are the user's, and evaluation changes no statistics."""
    model, fit, _ = learnt
    study = qkit.Study(model, fit[:2], fit[:2], metric="top1")
    study.calibrate("minmax", progress=False)
    module = wrap(study, total_epochs=4, anyway=True)
    for _ in range(2):
        module.train()
        module.eval()
    inner = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert (inner[0].eps, inner[0].momentum) == (1e-3, 0.03)
    x = fit[0][0]
    with torch.no_grad():
        first, second = module(x), module(x)
    assert torch.equal(first, second)
    ran = {n: b.clone() for n, b in module.state_dict().items() if "running" in n}
    assert ran
    with torch.no_grad():
        module(x)
    assert all(torch.equal(b, module.state_dict()[n]) for n, b in ran.items())
    module.train()
    raw = model[0](x).detach()
    name = next(n for n in ran if n.endswith("1.running_mean"))
    module(x)
    moved, distance = module.state_dict()[name] - ran[name], raw.mean((0, 2, 3)) - ran[name]
    assert float((moved @ distance) / (distance @ distance)) == pytest.approx(0.03, rel=0.1), "the user's momentum, not 0.1"
    assert (model[1].eps, model[1].momentum, model[8].p) == (1e-3, 0.03, 0.2)
