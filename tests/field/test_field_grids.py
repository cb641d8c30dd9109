"""What people reported about grids: folded norms, concatenations, the output's own grid in the file, one image out of line, BGR."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

import qkit

Batches = list[tuple[Tensor, Tensor]]


@torch.no_grad()
def labelled(model: nn.Module, x: Tensor) -> Batches:
    """The images with the classes that the float network gives them."""
    return [(part, model(part).argmax(1)) for part in x.split(100)]


def calibrated(model: nn.Module, fit: Batches, test: Batches | None = None, scheme: str = "int8") -> qkit.Study:
    study = qkit.Study(model, fit, fit if test is None else test, metric="top1", scheme=scheme)
    study.calibrate("minmax", progress=False)
    return study


def with_norms() -> nn.Module:
    """Norms whose factors spread over three decades; what is behind evens them out again."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        gain = torch.logspace(-2.0, 1.0, 12)
        model[1].weight.copy_(gain)
        model[1].running_var.uniform_(0.5, 2.0)
        model[1].bias.normal_(0.0, 0.2)
        model[1].bias *= gain
        model[3].weight /= gain.reshape(1, -1, 1, 1)
    return model


def test_a_folded_norm_spreads_the_weights_and_one_scale_for_all_is_named() -> None:
    model = with_norms()
    data = labelled(model, torch.randn(300, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    folded = fuse_conv_bn_eval(model[0], model[1]).weight.detach()
    each, whole = calibrated(model, data), calibrated(model, data, scheme="int8-per-tensor")
    torch.testing.assert_close(each.plan["0.weight"].params.scale, folded.flatten(1).abs().amax(1) / 127, rtol=1e-5, atol=0.0)
    assert float(whole.plan["0.weight"].params.scale) == pytest.approx(float(folded.abs().max()) / 127, rel=1e-5)
    found = whole.diagnose(check_export=False, progress=False)
    assert found.verdict.name == "quantization"
    top = found.causes[0]
    assert (top.kind, top.layer, top.remedy.kind) == ("activation-channel-imbalance", "0", "cross-layer-equalization")
    assert found.best_loss is not None
    assert found.best_loss.value < 0.02


def test_a_channel_without_variance_keeps_what_the_norm_adds() -> None:
    """Weights and variance next to nothing, as in a well-known Inception checkpoint: the channel is its norm's bias."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU()).eval()
    with torch.no_grad():
        model[0].weight[1] *= 1e-9
        model[1].running_var[1] = 1e-14
        model[1].bias[1] = 0.7
    x = torch.randn(8, 3, 6, 6)
    for scheme in ("int8", "int8-per-tensor", "int8-per-channel-power-of-two"):
        study = qkit.Study(model, [x], scheme=scheme)
        plan = study.calibrate("minmax", progress=False)
        got = study.capture(batches=1)["0"].int8.values[:, 1]
        assert float((got - 0.7).abs().max()) <= 0.51 * float(plan["0"].params.scale)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), 6.0 * torch.relu(self.b(x))], 1))


def test_a_concatenation_brings_its_inputs_onto_one_grid() -> None:
    torch.manual_seed(0)
    study = qkit.Study(Joined().eval(), [torch.randn(8, 3, 6, 6)])
    plan = study.calibrate("minmax", progress=False)
    (join,) = (op for op in study.graph.operations if op.kind == "concat")
    captured = study.capture(batches=1)
    parts = [captured[study.graph.operations[i].name].int8.values for i in join.inputs]
    p = plan[join.name].params
    want = torch.fake_quantize_per_tensor_affine(torch.cat(parts, 1), float(p.scale), int(p.zero_point), p.qmin, p.qmax)
    assert float((captured[join.name].int8.values - want).abs().max()) <= 1e-6 + 1.01 * float(p.scale)
    assert float((captured[join.name].int8.values == want).double().mean()) > 0.99
    ends = [(float(captured[n].float.values.min()), float(captured[n].float.values.max())) for n in (join.name,)]
    assert float(p.lo) <= ends[0][0] + float(p.scale)
    assert float(p.hi) >= ends[0][1] - float(p.scale)


def test_the_file_has_a_grid_for_the_networks_output(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    study = qkit.Study(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), [torch.randn(8, 3, 6, 6)])
    plan = study.calibrate("minmax", progress=False)
    study.export(tmp_path / "net.onnx")
    graph = onnx.load(tmp_path / "net.onnx").graph
    (last,) = (node for node in graph.node if graph.output[0].name in node.output)
    assert last.op_type == "DequantizeLinear"
    (scale,) = (onnx.numpy_helper.to_array(t) for t in graph.initializer if t.name == last.input[1])
    assert float(scale) == pytest.approx(float(plan["2"].params.scale), rel=1e-6)


def classifier(x: Tensor) -> nn.Module:
    """A network to which all classes are equally likely on these images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(48, 6),
    ).eval()  # fmt: skip
    with torch.no_grad():
        logits = model(x)
        model[6].weight /= logits.std(0).reshape(-1, 1)
        model[6].bias.copy_((model[6].bias - logits.mean(0)) / logits.std(0))
    return model


def test_one_hot_pixel_in_the_calibration_images_widens_the_range_and_is_named() -> None:
    x = torch.randn(600, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = classifier(x)
    test = labelled(model, x[300:])
    hot = x[:300].clone()
    hot[7, :, 3, 3] = 2000.0
    study = calibrated(model, labelled(model, hot), test)
    assert float(study.plan["input"].params.scale) > 5.0
    found = study.diagnose(check_export=False, progress=False)
    assert (found.verdict.name, found.causes[0].kind, found.causes[0].layer) == (
        "not-quantization",
        "calibration-mismatch",
        "input",
    )
    fixed = study.apply(found.causes[0].remedy)
    assert float(fixed.plan["input"].params.scale) < 0.1
    scores = fixed.evaluate(progress=False)
    assert scores["int8"].value > study.evaluate(("int8",), progress=False)["int8"].value + 0.5
    assert scores.loss("int16").value < 0.01, "other widths have the new ranges too"
    clipped = study.choose("input", "percentile", percentile=99.9)
    assert float(clipped["input"].params.hi) < 10.0, "as good: what one pixel in a thousand has does not count"


def test_red_for_blue_is_named() -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(600, 3, 8, 8, generator=draw) * torch.tensor([0.5, 1.0, 2.0]).reshape(1, 3, 1, 1)
    x += torch.tensor([-2.0, 0.0, 2.0]).reshape(1, 3, 1, 1)
    model = classifier(x)
    right = labelled(model, x[300:])
    swapped = [(a.flip(1), y) for a, y in right]
    study = calibrated(model, labelled(model, x[:300]), swapped)
    found = study.diagnose(check_export=False, progress=False)
    assert (found.causes[0].kind, found.causes[0].layer) == ("preprocessing", "input")
    with torch.no_grad():
        lost = 1.0 - sum(float((model(a).argmax(1) == y).double().sum()) for a, y in swapped) / 300
    assert found.causes[0].gain is not None
    assert found.causes[0].gain.value == pytest.approx(lost, abs=0.02)
