"""What people reported about integers: products that saturate in pairs, sums and biases beyond 32 bits, per-channel scales, engines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.engines import traces
from qkit.engines.compare import compare


def labelled(model: nn.Module, count: int, shape: tuple[int, ...], seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Images with the classes that the float network gives them."""
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return [(part, model(part).argmax(1)) for part in x.split(100)]


def calibrated(model: nn.Module, data: list[tuple[Tensor, Tensor]], scheme: str | qkit.Scheme = "int8") -> qkit.Study:
    study = qkit.Study(model, data, data, metric="top1", scheme=scheme)
    study.calibrate("minmax", progress=False)
    return study


@pytest.fixture(scope="module")
def binary_like() -> tuple[nn.Module, qkit.Study]:
    """All weights of the classifier near the ends of their grid: sums of two products exceed 16 bits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10)).eval()
    with torch.no_grad():
        model[0].bias += 2.0
        w = model[4].weight
        w.copy_(torch.sign(w) * (1.0 + 0.05 * torch.rand(w.shape)))
    return model, calibrated(model, labelled(model, 200, (1, 8, 8)))


@torch.no_grad()
def classifier(model: nn.Module, study: qkit.Study, *, saturated: bool) -> Tensor:
    """The classifier's codes of the first batch in int64, each two products added in 16 bits if `saturated`."""
    plan = study.plan
    source, weight, out = (plan[name].params for name in ("0", "4.weight", "4"))
    codes = study.capture(lanes=("int8",), batches=1)["0"].int8.codes
    unsigned = F.max_pool2d(codes.float(), 2).to(torch.int64).flatten(1) - int(source.qmin)
    w = (model[4].weight.double() / weight.scale.double().reshape(-1, 1)).round().clamp(-127, 127).to(torch.int64)
    pairs = unsigned[:, None, 0::2] * w[None, :, 0::2] + unsigned[:, None, 1::2] * w[None, :, 1::2]
    if saturated:
        pairs = pairs.clamp(-32768, 32767)
    total = pairs.sum(-1) - (int(source.zero_point) - int(source.qmin)) * w.sum(1)[None]
    y = total.double() * float(source.scale) * weight.scale.double().reshape(1, -1) + model[4].bias.double()
    return ((y / float(out.scale)).round() + int(out.zero_point)).clamp(int(out.qmin), int(out.qmax))


def test_products_that_saturate_in_pairs_are_named_at_their_layer(
    binary_like: tuple[nn.Module, qkit.Study], tmp_path: Path
) -> None:
    model, study = binary_like
    exact, broken = (classifier(model, study, saturated=s) for s in (False, True))
    ours = study.capture(lanes=("int8",), batches=1)["4"].int8.codes
    assert float((exact - ours).abs().max()) <= 1
    assert float((exact != broken).double().mean()) > 0.5, "the case is a case"

    def change(tap: str, array: np.ndarray) -> np.ndarray:
        if tap not in ("4", "output"):
            return array
        return broken.numpy().astype(array.dtype).reshape(array.shape)

    traces.write(study, tmp_path / "trace", lane="int8", frames=100, per_frame=False, change=change)
    lane = traces.read(tmp_path / "trace", study)
    assert lane.alignment.ok
    assert compare(study, lane).first == "4"
    found = study.diagnose(batches=1, engine=lane, check_export=False, progress=False)
    (cause,) = [c for c in found.causes if c.kind == "engine-mismatch"]
    assert (cause.layer, cause.remedy.kind) == ("4", "fix-engine")
    (fault,) = compare(study, lane).faults.values()
    assert fault.kind == "accumulator"
    assert "pairs" in fault.words


def test_a_trace_of_the_simulations_own_codes_agrees(binary_like: tuple[nn.Module, qkit.Study], tmp_path: Path) -> None:
    study = binary_like[1]
    traces.write(study, tmp_path / "trace", lane="int8", frames=100, per_frame=False)
    lane = traces.read(tmp_path / "trace", study)
    assert not compare(study, lane).first
    found = study.diagnose(batches=1, engine=lane, check_export=False, progress=False)
    assert not [c for c in found.causes if c.kind == "engine-mismatch"]


def test_sums_that_wrap_are_those_of_int64_and_the_width_that_holds_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 6)).eval()
    data = labelled(model, 200, (3, 8, 8))
    scheme = replace(qkit.PRESETS["int8"], name="16-bit sums", accumulator_bits=16)
    study = calibrated(model, data, scheme)
    plan = study.plan
    source, weight, out = (plan[name].params for name in ("0", "3.weight", "3"))
    with torch.no_grad():
        q = study.capture(lanes=("int8",), batches=1)["0"].int8.codes.to(torch.int64).flatten(1) - int(source.zero_point)
        w = (model[3].weight.double() / weight.scale.double().reshape(-1, 1)).round().clamp(-127, 127).to(torch.int64)
        step = float(source.scale) * weight.scale.double()
        total = q @ w.T + (model[3].bias.double() / step).round().to(torch.int64)
    wrapped = (total + 32768) % 65536 - 32768
    assert (wrapped != total).any()
    want = ((wrapped.double() * step / float(out.scale)).round() + int(out.zero_point)).clamp(-128, 127)
    got = study.capture(lanes=("int8",), batches=1)["3"].int8.codes
    assert float((got == want).double().mean()) > 0.99
    found = study.diagnose(check_export=False, progress=False)
    assert (found.causes[0].kind, found.causes[0].remedy.kind) == ("accumulator-overflow", "wider-accumulator")
    bits = study.apply(found.causes[0].remedy).plan.accumulator_bits
    assert bits is not None
    assert 2 ** (bits - 1) > int(total.abs().max())


def test_a_bias_of_billions_of_steps_keeps_its_value() -> None:
    """One filter's weights are next to nothing, and its bias takes more than 32 bits on their scale."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    x = torch.rand(16, 3, 6, 6)
    with torch.no_grad():
        model[0].weight[1] *= 1e-9
        model[0].bias[1] = 5.0
    for scheme in ("int8", "int8-symmetric"):
        study = qkit.Study(model, [x], metric="closeness", scheme=scheme)
        plan = study.calibrate("minmax", progress=False)
        steps = 5.0 / (float(plan["input"].params.scale) * float(plan["0.weight"].params.scale[1]))
        assert steps <= 2**31 - 1
        got = study.capture(batches=1)["0"].int8.values[:, 1]
        assert float((got - 5.0).abs().max()) <= 0.51 * float(plan["0"].params.scale)


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_pairs_of_a_convolution_are_told_in_either_order(last: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        model[0].bias += 1.0
        w = model[2].weight
        w.copy_(torch.sign(w) * (1.0 + 0.05 * torch.rand(w.shape)))
    study = calibrated(model, labelled(model, 100, (3, 8, 8)))
    source, weight, out = (study.plan[name].params for name in ("0", "2.weight", "2"))
    with torch.no_grad():
        unsigned = study.capture(lanes=("int8",), batches=1)["0"].int8.codes.double() - int(source.qmin)
        zero = int(source.zero_point) - int(source.qmin)
        columns = F.unfold(F.pad(unsigned, (1, 1, 1, 1), value=zero), 3)  # (N, 6 * 9, 64), channels first
        codes = (w.double() / weight.scale.double().reshape(-1, 1, 1, 1)).round().clamp(-127, 127)
        if last:
            columns = columns.unflatten(1, (6, 9)).transpose(1, 2).flatten(1, 2)
            codes = codes.permute(0, 2, 3, 1)
        k = codes.flatten(1)
        products = k[None, :, :, None] * columns[:, None]
        total = (products[:, :, 0::2] + products[:, :, 1::2]).clamp(-32768, 32767).sum(2) - zero * k.sum(1)[None, :, None]
        step = float(source.scale) * weight.scale.double().reshape(1, -1, 1)
        y = total * step + model[2].bias.double().reshape(1, -1, 1)
        broken = ((y / float(out.scale)).round() + int(out.zero_point)).clamp(int(out.qmin), int(out.qmax)).reshape(100, 5, 8, 8)

    def change(tap: str, array: np.ndarray) -> np.ndarray:
        return broken.numpy().astype(array.dtype).reshape(array.shape) if tap == "2" else array

    traces.write(study, tmp_path / "trace", lane="int8", frames=100, per_frame=False, change=change)
    found = compare(study, traces.read(tmp_path / "trace", study))
    assert found.first == "2"
    assert found.faults["2"].kind == "accumulator"
    assert ("channels last" if last else "channels first") in found.faults["2"].words


def test_a_depthwise_convolution_under_one_scale_is_named() -> None:
    """A filter that takes differences of smooth images has weights forty times as large as the others, and no larger output."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.ReLU(),
        nn.Conv2d(12, 8, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).eval()
    with torch.no_grad():
        model[1].weight[0] = torch.tensor([[0.0, 0.0, 0.0], [0.0, 40.0, -40.0], [0.0, 0.0, 0.0]])
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(300, 3, 1, 1, generator=draw) + 0.02 * torch.randn(300, 3, 8, 8, generator=draw)
    with torch.no_grad():
        y = model(x).argmax(1)
    data = list(zip(x.split(100), y.split(100), strict=True))
    study = calibrated(model, data, "int8-per-tensor")
    found = study.diagnose(check_export=False, progress=False)
    assert found.verdict.name == "quantization"
    top = found.causes[0]
    assert (top.kind, top.layer, top.remedy.kind) == ("weight-channel-imbalance", "1", "per-channel-weights")
    assert top.gain is not None
    assert top.gain.low > 0.0
    assert study.apply(top.remedy).plan["1.weight"].params.scale.shape == (12,)


def test_the_file_keeps_what_was_calibrated(tmp_path: Path) -> None:
    """Codes of ONNX Runtime on the exported file, per-channel weights with a filter of zeros among them."""
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, groups=3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).eval()
    with torch.no_grad():
        model[0].weight[2] = 0.0
        model[0].bias[2] = 0.3
    data = labelled(model, 100, (3, 8, 8))
    study = calibrated(model, data)
    study.export(tmp_path / "net.onnx")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # processors without VNNI saturate otherwise
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), options, providers=["CPUExecutionProvider"])
    (out,) = session.run(None, {session.get_inputs()[0].name: data[0][0].numpy()})
    ours = study.capture(lanes=("int8",), batches=1)["3"].int8.values.flatten(1)
    off = (torch.from_numpy(out) - ours).abs() / float(study.plan["3"].params.scale)
    assert float(off.max()) <= 1.01
    assert float((off < 0.5).double().mean()) > 0.95
