"""Bias correction and batch-norm re-estimation, against what torch's own modules and a plain capture say."""

from __future__ import annotations

import copy

import pytest
import torch
from small_networks import conv_with_norm, mixed_network, rounded_by_torch
from torch import Tensor, nn
from torch.nn import functional as F

import qkit
from qkit.execution.lanes import Lane, lane_bias, run_lanes
from qkit.execution.loading import batches
from qkit.graph import build
from qkit.ptq.corrections import correct_biases, reestimate_norms
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import Plan
from qkit.quant.schemes import Scheme

LOW = Scheme(
    "low", QuantSpec(bits=4, symmetric=True, signed=True, per_channel=False, narrow=True), QuantSpec(bits=6), bias_bits=None
)


def means(study: qkit.Study, plan: Plan) -> dict[str, Tensor]:
    """Per tap, how far the mean of every channel is from float's, by one plain run of both lanes."""
    seen = {}

    def look(op, values):
        axes = [d for d in range(values["float"].ndim) if d != op.channel_axis]
        seen[op.name] = (values["lane"].double() - values["float"].double()).mean(axes)

    (x,) = [batch.inputs[0] for batch in batches(study.calibration)]
    run_lanes(study.graph, [Lane("float"), Lane("lane", plan)], (x,), observe=look)
    return seen


@pytest.fixture
def study() -> qkit.Study:
    torch.manual_seed(0)
    return qkit.Study(mixed_network(), [torch.randn(32, 3, 16, 16)], metric="agreement", scheme=LOW)


def test_means_behind_the_activations_are_floats(study: qkit.Study) -> None:
    plan = study.plan.weights_only()
    before = means(study, plan)
    corrected = correct_biases(study.graph, plan, list(batches(study.calibration)), iterations=8, progress=False)
    after = means(study, corrected)
    for tap in ("stem", "depthwise", "project", "side", "classify"):
        # `project` is read by a join with a clamp of its own: its mean is float's before that
        assert float(after[tap].abs().max()) < 0.1 * float(before[tap].abs().max()) + 1e-4, tap
    assert set(corrected.corrections) == {"stem", "depthwise", "project", "side", "classify"}
    assert float(after["classify"].abs().max()) < 1e-4
    assert plan.corrections == {}


def test_what_has_accumulated_is_corrected_not_the_own_rounding_alone(study: qkit.Study) -> None:
    plan = study.plan.weights_only()
    cal = list(batches(study.calibration))
    corrected = correct_biases(study.graph, plan, cal, progress=False)
    only_own = plan.only(["classify.weight"])
    own = correct_biases(study.graph, only_own, cal, progress=False).corrections["classify"]
    # the last layer's own rounding asks for another correction than what it inherits together with it
    last = Plan(plan.grids, plan.bias_bits, corrections={"classify": own})
    assert float(means(study, last)["classify"].abs().max()) > 10 * float(means(study, corrected)["classify"].abs().max())


def test_one_linear_layer_equals_the_formula() -> None:
    torch.manual_seed(1)
    layer, x = nn.Linear(12, 5), torch.randn(50, 12) + 1.0
    study = qkit.Study(nn.Sequential(layer), [x], metric="agreement", scheme=LOW)
    plan = study.plan.weights_only()
    corrected = correct_biases(study.graph, plan, list(batches([x])), progress=False)
    error = rounded_by_torch(layer.weight, plan["0.weight"].params) - layer.weight
    expected = -(error.double() @ x.double().mean(0))  # Nagel et al. 2019, equation 16
    torch.testing.assert_close(torch.tensor(corrected.corrections["0"], dtype=torch.float64), expected, atol=1e-5, rtol=1e-4)


def test_a_bias_is_what_the_lane_computes_with(study: qkit.Study) -> None:
    study = study.with_scheme("int8")
    corrected = correct_biases(study.graph, study.plan, list(batches(study.calibration)), progress=False)
    op = study.graph.operation("classify")
    bias = lane_bias(study.graph, op, corrected)
    source, weight = corrected.params("average"), corrected.params("classify.weight")
    scale = source.scale.double() * weight.scale.double()
    wanted = study.graph.biases["classify.bias"].double() + torch.tensor(corrected.corrections["classify"], dtype=torch.float64)
    torch.testing.assert_close(bias.double(), torch.round(wanted / scale) * scale, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("per_channel", [True, False])
def test_norms_are_what_torch_estimates_anew(per_channel: bool) -> None:
    conv, norm, x = conv_with_norm()
    model = nn.Sequential(conv, norm).eval()
    graph = build(model, x)
    spec = QuantSpec(bits=3 if per_channel else 4, symmetric=True, signed=True, per_channel=per_channel, narrow=True)
    plan = _plan(graph, x, spec)
    anew = reestimate_norms(graph, plan, list(batches([x])), progress=False)
    (name,) = plan.grids
    p = plan[name].params
    quantized = rounded_by_torch(graph.weights[name], p)
    # torch's way: the quantized convolution, a fresh norm behind it that sees the same images, then its affine part
    fresh = copy.deepcopy(norm)
    fresh.reset_running_stats()
    with torch.no_grad():
        expected = fresh.train()(F.conv2d(x, quantized))
    old, found = (run_lanes(graph, [Lane("lane", each)], (x,))["lane"] for each in (plan, anew))
    torch.testing.assert_close(found.mean((0, 2, 3)), expected.mean((0, 2, 3)), atol=1e-4, rtol=1e-4)
    apart, before = (float((y.std((0, 2, 3)) / expected.std((0, 2, 3)) - 1.0).abs().max()) for y in (found, old))
    assert before > 0.002
    # with scales per channel the factors are exact; on one grid the scaled codes are rounded again
    assert apart < (1e-3 if per_channel else before)
    if per_channel:
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
        codes = anew.codes(name).tensor.float()
        torch.testing.assert_close(codes * p.scale.view(-1, 1, 1, 1), quantized, atol=1e-6, rtol=1e-6)


def _plan(graph, x: Tensor, spec: QuantSpec) -> Plan:
    from qkit.execution.observing import observe
    from qkit.quant.calibration import make_plan

    return make_plan(graph, observe(graph, [x], progress=False), Scheme("weights", spec, None))


def test_layers_without_a_norm_are_left_alone(study: qkit.Study) -> None:
    anew = reestimate_norms(study.graph, study.plan, list(batches(study.calibration)), progress=False)
    assert set(anew.diff(study.plan)) == {"stem.weight", "depthwise.weight"}
    assert set(anew.corrections) == {"stem", "depthwise"}
