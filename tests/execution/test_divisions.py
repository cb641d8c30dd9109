"""Quotients of quantized tensors: what becomes of 0 / 0, in the lanes, in what the kit says, and in the scores."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit.engines.onnx.exporting import export
from qkit.errors import DataError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.metrics import NAMED, score_batch
from qkit.execution.plan_checks import zero_divisors
from qkit.graph import build
from qkit.quant.plan import FLOAT


class Quotient(nn.Module):
    """A division by what is mostly tiny beside its greatest value."""

    def __init__(self, added: float = 0.0) -> None:
        super().__init__()
        self.added = added
        self.above, self.below, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        below = (4 * self.below(x)).exp()
        return self.head(
            (torch.nn.functional.hardshrink(self.above(x), 0.2) / (below + self.added if self.added else below)).mean((2, 3))
        )


@pytest.fixture(scope="module")
def study() -> qkit.Study:
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Quotient().eval()
    study = qkit.Study(model, [torch.randn(8, 3, 8, 8, generator=generator) for _ in range(2)])
    study.calibrate("minmax", progress=False)
    return study


def values(study: qkit.Study, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    run_lanes(study.graph, [Lane("int8", study.plan)], (x,), observe=lambda op, v: found.update({op.name: v["int8"].clone()}))
    return found


def test_no_number_becomes_the_least_code(study: qkit.Study) -> None:
    found = values(study, study.calibration[0])
    (op,) = (op for op in study.graph.operations if op.divisor is not None)
    above, below = (found[study.graph.operations[i].tap] for i in op.inputs)
    assert study.graph.operations[op.divisor] is study.graph.operations[op.inputs[1]]
    exact = above / below
    grid = study.plan.params(op.name)
    assert bool(exact.isnan().any() and exact.isinf().any())
    # torch's own fake quantization agrees, where the processor turns NaN into the least integer
    wanted = torch.fake_quantize_per_tensor_affine(
        exact.nan_to_num(nan=-math.inf), float(grid.scale), int(grid.zero_point), grid.qmin, grid.qmax
    )
    torch.testing.assert_close(found[op.name], wanted, rtol=1e-6, atol=0.0)
    assert bool((found[op.name][exact.isnan()] == grid.lo).all())


def test_nan_of_the_input_stays_and_is_no_score(study: qkit.Study) -> None:
    x = study.calibration[0].clone()
    x[0, 0, 0, 0] = math.nan
    assert bool(values(study, x)["head"][0].isnan().any())
    broken = qkit.Study(study.model, study.calibration, [x])
    with pytest.raises(DataError, match=r"\b1\b.*\b8\b.*NaN"):
        broken.evaluate(("int8",), progress=False)
    with pytest.raises(DataError, match="NaN"):
        score_batch(NAMED["top1"], torch.tensor([[0.0, math.nan]]), torch.tensor([1]), None, 1)


def test_a_divisor_that_rounds_to_zero_is_said(study: qkit.Study) -> None:
    seen = torch.cat([(4 * study.model.below(x)).exp() for x in study.calibration])
    half = 0.5 * float(study.plan.params(":exp").scale)
    (remark,) = (remark for remark in study.remarks if ":exp" in remark)
    assert f"{100 * float((seen <= half).double().mean()):.0f}" in remark
    spared = study.with_plan(study.plan.without([":exp"]))
    assert not any(":exp" in remark for remark in spared.remarks)
    assert zero_divisors(study.graph, spared.plan, study.observe()) == {}
    assert all(math.isfinite(interval.value) for interval in (study.evaluate(progress=False)[n] for n in ("float", "int8")))
    assert study.verdict().narrow is not None


@pytest.mark.slow
def test_onnx_runtime_makes_the_same_of_it(study: qkit.Study, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from qkit.engines.compare import compare
    from qkit.engines.onnx import runtime as onnxruntime
    from qkit.engines.onnx.session import saturates

    study.export(tmp_path / "net.onnx")
    table = compare(study, onnxruntime.lane(tmp_path / "net.onnx", precise=True), progress=False).table()
    assert float(table["equal inputs", "more"].drop(":div").max()) == 0.0
    if saturates():  # an x86 processor, whose NaN is the least integer
        assert float(table.loc[":div"]["equal inputs", "more"]) == 0.0


class Norms(nn.Module):
    """Norms by hand with an epsilon that no float32 near 1 has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.zeros(1, 4, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        norm = x.norm(dim=(2, 3), keepdim=True)
        response = x + self.weight * (x * (norm / (norm.mean(1, keepdim=True) + 1e-12))) + self.bias
        middle = x - x.mean(1, keepdim=True)
        return (
            x / (x.norm(dim=1, keepdim=True) + 1e-12),
            x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-12),
            middle / torch.sqrt(x.var(1, keepdim=True, unbiased=False) + 1e-12),
            response,
        )


@pytest.mark.slow
def test_norms_of_nothing_are_nothing_in_the_file_too(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    ort = pytest.importorskip("onnxruntime")
    graph = build(Norms().eval(), torch.randn(2, 4, 5, 5))
    assert sum(op.kind == "norm" for op in graph.operations) == 4
    export(graph, FLOAT, tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for found in session.run(None, {session.get_inputs()[0].name: torch.zeros(2, 4, 5, 5).numpy()}):
        assert (found == 0.0).all()


@pytest.mark.slow
@pytest.mark.parametrize("added", [1e-15, 1e-5])
def test_a_guard_is_in_the_file(added: float, tmp_path: Path) -> None:
    """torch's exporter leaves an addition of 1e-15 out, and with it what keeps 0 / 0 from being no number."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from qkit.engines.compare import compare
    from qkit.engines.onnx import runtime as onnxruntime

    torch.manual_seed(0)
    study = qkit.Study(Quotient(added).eval(), [torch.randn(8, 3, 8, 8)])
    found = values(study, study.calibration[0])
    assert zero_divisors(study.graph, study.plan, study.observe()) == {}
    assert bool((found[":div"][(found[":exp"] == 0) & (found[":hardshrink"] == 0)] == 0).all())
    study.export(tmp_path / "net.onnx")
    found = compare(study, onnxruntime.lane(tmp_path / "net.onnx", precise=True), progress=False)
    assert found.taps[":div"].local.largest <= 1
