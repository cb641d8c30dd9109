"""The same code on the CPU and on a GPU, and models that lie in several places."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from attention_networks import NETWORKS, attention_network
from small_networks import READS, mixed_network
from torch import Tensor, nn

from qkit.errors import DataError
from qkit.execution import integer_forms
from qkit.execution.capture import capture
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import observe
from qkit.graph import build
from qkit.graph.operation import Operation
from qkit.graph.running import execution
from qkit.quant.calibration import make_plan
from qkit.quant.plan import Plan
from qkit.quant.schemes import PRESETS, scheme_of
from qkit.study import Study

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")


def margin(outputs: Tensor, targets: Any) -> Tensor:
    """A continuous score: the target's logit less the mean."""
    index = torch.as_tensor(targets).to(outputs.device)
    return outputs.gather(1, index[:, None])[:, 0] - outputs.mean(1)


def batches(device: str = "cpu") -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(4)
    x, y = torch.randn(24, 3, 16, 16, generator=draw), torch.randint(0, 5, (24,), generator=draw)
    return [(x.to(device), y.to(device)) for x, y in zip(x.split(8), y.split(8), strict=True)]


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), None], ids=str)
def test_everything_on_the_cpu_by_name(device: Any) -> None:
    study = Study(mixed_network(), batches(), batches(), metric=margin, device=device)
    assert study.graph.device == torch.device("cpu")
    study.calibrate("minmax", progress=False)
    assert study.evaluate(progress=False).n == 24
    assert study.capture(progress=False).table().shape[0] == len(READS)
    assert {t.device.type for t in (*study.graph.weights.values(), *study.graph.biases.values())} == {"cpu"}


def test_a_model_on_several_devices_is_refused_by_both_names() -> None:
    model = mixed_network()
    model.classify.to("meta")
    with pytest.raises(DataError, match=r"Mixed\b.*\bcpu, meta\b.*device="):
        build(model, batches()[0][0])


def test_a_buffer_elsewhere_counts_too() -> None:
    model = mixed_network()
    model.stem_norm.running_mean = model.stem_norm.running_mean.to("meta")
    with pytest.raises(DataError, match=r"Mixed\b.*\bcpu, meta\b.*device="):
        build(model, batches()[0][0])


@pytest.mark.parametrize("device", [None, "cpu"])
def test_a_model_without_numbers_is_refused_by_tensor(device: str | None) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(DataError, match=r"\b0\.weight\b.*\bmeta\b.*checkpoint"):
        build(model, batches()[0][0], device=device)


@pytest.mark.parametrize("device", ["meta", "gpu", "cuda:99", "xpu:0"])
def test_a_device_that_is_not_there_is_refused_by_name(device: str) -> None:
    with pytest.raises(DataError, match=f"device='{device}'"):
        build(mixed_network(), batches()[0][0], device=device)


def matmul_precision() -> Any:
    """Torch's switch for TF32 in matrix products, under its name of this version."""
    settings: Any = torch.backends.cuda.matmul
    return getattr(settings, "fp32_precision", None) or settings.allow_tf32


@pytest.mark.parametrize("precision", ["highest", "high"])
def test_execution_on_a_gpu_is_plain_float32_and_leaves_the_settings_as_they_were(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    try:
        cudnn = torch.backends.cudnn
        before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul_precision()
        with execution(torch.device("cuda")):
            assert not cudnn.allow_tf32
            assert cudnn.deterministic
            assert matmul_precision() in {"ieee", False}
            assert torch.is_inference_mode_enabled()
        assert before == (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic, matmul_precision())
        assert torch.get_float32_matmul_precision() == precision
        assert torch.is_grad_enabled()
    finally:
        torch.set_float32_matmul_precision("highest")


@needs_cuda
def test_float_lane_on_a_gpu_equals_the_models_output_on_the_cpu() -> None:
    model, (x, _) = mixed_network(), batches()[0]
    expected = model(x).detach()
    for given in (model, copy.deepcopy(model).cuda()):
        graph = build(given, x, device="cuda")
        assert graph.device.type == "cuda"
        assert graph.deviation < 1e-4
        output = run_lanes(graph, [Lane("float")], (x,))["float"]
        assert output.device.type == "cuda"
        assert float((output.cpu() - expected).abs().max() / expected.abs().max()) < 1e-4
    assert next(model.parameters()).device.type == "cpu"


@needs_cuda
def test_matrix_products_on_a_gpu_are_as_exact_as_on_the_cpu_whatever_the_user_allows() -> None:
    model, x = nn.Sequential(nn.Linear(512, 256), nn.Conv2d(4, 4, 3)), torch.randn(2, 4, 16, 512)
    with torch.no_grad():
        expected = model.double()(x.double())
    torch.set_float32_matmul_precision("high")
    try:
        output = run_lanes(build(model.float(), x, device="cuda"), [Lane("float")], (x,))["float"]
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")
    # TF32's 10 bits of mantissa would leave about 3e-4
    assert float((output.cpu().double() - expected).abs().max() / expected.abs().max()) < 5e-6


@needs_cuda
def test_random_state_of_the_gpu_stays() -> None:
    before = torch.cuda.get_rng_state()
    build(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout()), batches()[0][0], device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)


@needs_cuda
def test_histograms_and_ranges_agree() -> None:
    x, _ = batches()[0]
    on_cpu, on_gpu = (observe(build(mixed_network(), x, device=d), batches(), progress=False) for d in ("cpu", "cuda"))
    for tap in READS:
        a, b = on_cpu[tap].histogram, on_gpu[tap].histogram
        assert a.counts.sum() == b.counts.sum()
        assert (a.min, a.max) == pytest.approx((b.min, b.max), rel=1e-4, abs=1e-5)
        np.testing.assert_allclose(on_gpu[tap].channel_min, on_cpu[tap].channel_min, rtol=1e-3, atol=1e-5)
    assert np.array_equal(on_cpu["input"].histogram.counts, on_gpu["input"].histogram.counts)


def capture_on(device: str, plans: Mapping[str, Plan]) -> Any:
    x, _ = batches()[0]
    return capture(build(mixed_network(), x, device=device), batches(), plans, limit=None, keep="all", progress=False)


@needs_cuda
@pytest.mark.parametrize("scheme", PRESETS)
def test_capture_and_codes_agree(scheme: str) -> None:
    x, _ = batches()[0]
    graph = build(mixed_network(), x)
    plan = make_plan(graph, observe(graph, batches(), progress=False), PRESETS[scheme])
    on_cpu, on_gpu = capture_on("cpu", {"q": plan}), capture_on("cuda", {"q": plan})
    wide = plan.grids["stem"].params.bits > 8
    for tap in READS:
        a, b = on_cpu[tap]["q"].codes, on_gpu[tap]["q"].codes
        assert b.device.type == "cpu"
        apart = (a.int() - b.int()).abs()
        assert int(apart.max()) <= (30 if wide else 2)
        assert float((apart > 0).double().mean()) < (0.2 if wide else 0.01)
    a, b = on_cpu.table(), on_gpu.table()
    assert list(a.index) == list(b.index)
    np.testing.assert_allclose(a["q"]["sqnr"].to_numpy(float), b["q"]["sqnr"].to_numpy(float), atol=0.5)
    np.testing.assert_allclose(a["q"]["local sqnr"].to_numpy(float), b["q"]["local sqnr"].to_numpy(float), atol=0.1)
    np.testing.assert_allclose(a["float"]["rms"].to_numpy(float), b["float"]["rms"].to_numpy(float), rtol=1e-4)


@needs_cuda
def test_study_agrees() -> None:
    studies = [Study(mixed_network(), batches(d), batches(), metric=margin, device=d) for d in ("cpu", "cuda")]
    for study in studies:
        study.calibrate("mse", progress=False)
    a, b = (study.evaluate(progress=False) for study in studies)
    step = float(studies[0].plan.grids["classify"].params.scale)
    for lane, atol in {"float": 1e-4, "int16": 1e-3, "int8": 2 * step}.items():
        np.testing.assert_allclose(a.lanes[lane], b.lanes[lane], atol=atol)
    for mode in ("only", "except"):
        a, b = (study.sensitivity(mode, progress=False) for study in studies)
        assert [s.name for s in a.layers] == [s.name for s in b.layers]
        np.testing.assert_allclose(a.scores, b.scores, atol=3 * step)
    plan = studies[1].plan.with_range("side", -0.2, 0.2)
    assert studies[1].score(plan).value == pytest.approx(studies[0].score(plan).value, abs=2 * step)


@needs_cuda
def test_values_on_a_gpu_equal_torchs_fake_quantization() -> None:
    x, _ = batches()[0]
    graph = build(mixed_network(), x, device="cuda")
    plan = make_plan(graph, observe(graph, batches(), progress=False), PRESETS["int8"])
    seen: dict[str, Tensor] = {}

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        seen[op.name] = values["q"].clone()

    run_lanes(graph, [Lane("q", plan)], (x,), observe=look)
    p = plan.grids["input"].params
    expected = torch.fake_quantize_per_tensor_affine(x.cuda(), float(p.scale), int(p.zero_point), p.qmin, p.qmax)
    assert torch.equal(seen["input"], expected)
    assert all(value.device.type == "cuda" for value in seen.values())


@needs_cuda
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_integer_forms_give_the_cpus_numbers_from_equal_inputs(name: str, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = attention_network(name), torch.randn(4, 3, 16, 16)
    graph, there = build(model, x, device="cuda"), build(model, x)
    scheme = scheme_of("int8-full-integer")
    plan = make_plan(graph, observe(graph, [x], progress=False), scheme if bits == 8 else scheme.at_bits(bits))
    run, compared = integer_forms.run, []

    def both(op: Operation, values: Any, *rest: Any) -> Any:
        found = run(op, values, *rest)
        if found is not None:
            expected = run(there.operation(op.name), [v.cpu() if isinstance(v, Tensor) else v for v in values], *rest)
            assert found.is_cuda
            assert torch.equal(found.cpu(), expected), op.name
            compared.append(op.name)
        return found

    monkeypatch.setattr(integer_forms, "run", both)
    run_lanes(graph, [Lane("q", plan)], (x,))
    assert compared
