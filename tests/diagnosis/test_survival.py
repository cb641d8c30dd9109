"""What is offered survives its export, and what does not is said: ONNX Runtime on files that the kit wrote."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

import qkit
from qkit.diagnosis import survival
from qkit.diagnosis.survival import check_exports
from qkit.quant.plan import Plan

pytest.importorskip("onnxruntime")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Linear(8 * 64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x).relu().flatten(1))


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    torch.manual_seed(0)
    net = Net().eval()
    images = [torch.randn(32, 3, 8, 8) for _ in range(3)]
    data = [(x, net(x).argmax(1).detach()) for x in images]
    made = qkit.Study(net, data, data)
    made.calibrate(progress=False)
    return made


def test_a_sound_plan_survives(study: qkit.Study) -> None:
    (found,) = check_exports(study, {"it": study.plan}, tolerance=0.01)
    assert found.survives
    assert found.samples == 64
    assert found.lost is not None
    assert abs(found.lost.value) <= 0.01
    assert found.engine.endswith(__import__("onnxruntime").__version__)


def test_a_file_that_computes_something_else_does_not(study: qkit.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written from a plan whose first range is cut to a hundredth; the network as it is goes through the same."""
    from qkit.engines import onnx

    right = onnx.export

    def wrong(of: qkit.Study, plan: Plan, path: object, **how: object) -> object:
        spoilt = plan.with_range("a", 0.0, 0.01) if plan is not of.plan else plan
        return right(of, spoilt, path, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(onnx, "export", wrong)
    other = dataclasses.replace(study.plan)
    found, base = check_exports(study, {"it": other}, tolerance=0.01)
    assert not found.survives
    assert found.lost is not None
    assert found.lost.value > 0.1
    assert base.survives


def test_a_plan_that_cannot_be_written_is_said_with_the_reason(study: qkit.Study) -> None:
    per_channel = qkit.QuantSpec(bits=8, symmetric=False, signed=False, per_channel=True)
    low, high = torch.zeros(8), torch.ones(8)
    plan = study.plan.with_range("a", low, high, spec=per_channel, axis=1)
    found = check_exports(study, {"it": plan}, tolerance=0.01)[0]
    assert not found.survives
    assert found.samples == 0
    assert "a" in found.reason


def test_without_the_engine_nothing_is_said(study: qkit.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survival, "installed", lambda: "")
    assert check_exports(study, {"it": study.plan}, tolerance=0.01) == []
