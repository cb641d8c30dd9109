"""A decoder with transposed convolutions, plain and in groups: a scale for each output channel, and the engine agrees."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.engines.compare import compare
from qkit.engines.onnx import runtime as onnxruntime


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(1, 12, 3, 2, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.grouped = nn.Sequential(nn.ConvTranspose2d(12, 6, 4, 2, 1, groups=3), nn.BatchNorm2d(6), nn.ReLU())
        self.depthwise = nn.Sequential(nn.ConvTranspose2d(6, 6, 3, 1, 1, groups=6, bias=False), nn.BatchNorm2d(6), nn.ReLU6())
        self.plain = nn.ConvTranspose2d(6, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.depthwise(self.grouped(self.down(x))))


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(0)
    model = Decoder()
    for _ in range(4):
        model(torch.randn(8, 1, 16, 16))
    with torch.no_grad():  # channels of unlike ranges
        model.grouped[1].weight *= torch.logspace(-2, 0, 6)
        model.depthwise[0].weight /= torch.logspace(-2, 0, 6)[:, None, None, None]
    return model.eval()


def study_of(model: nn.Module, scheme: str) -> qkit.Study:
    draw = torch.Generator().manual_seed(1)
    data = [(torch.randn(8, 1, 16, 16, generator=draw), torch.randint(0, 2, (8, 16, 16), generator=draw)) for _ in range(2)]
    study = qkit.Study(model, data, data, scheme=scheme)
    study.calibrate(progress=False)
    return study


def test_scales_are_those_of_the_output_channels(decoder: Decoder) -> None:
    study = study_of(decoder, "int8")
    assert not [op for op in study.graph.operations if op.kind == "batchnorm"]
    assert not study.graph.notes
    for name, groups in (("grouped", 3), ("depthwise", 6)):
        conv, norm = getattr(decoder, name)[:2]
        factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).detach().reshape(groups, 1, -1, 1, 1)
        weight = conv.weight.detach().reshape(groups, -1, *conv.weight.shape[1:]) * factor
        own = weight.abs().amax((1, 3, 4)).flatten() / 127
        torch.testing.assert_close(study.plan[f"{name}.0.weight"].params.scale, own, rtol=1e-6, atol=0.0)
    assert study.plan["plain.weight"].params.scale.shape == (2,)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor"])
def test_the_engine_computes_the_same(decoder: Decoder, scheme: str, tmp_path: Path) -> None:
    study = study_of(decoder, scheme)
    study.export(tmp_path / "decoder.onnx")
    table = compare(study, onnxruntime.lane(tmp_path / "decoder.onnx", precise=True)).table()
    assert ((table["equal inputs", "same"] + table["equal inputs", "one"]) >= 0.999).all()
    study.diagnose(progress=False, batches=1)
