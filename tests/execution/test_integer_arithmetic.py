"""The lanes against integer arithmetic: codes in, integer accumulator, requantization, codes out.

A lane computes in float32 on dequantized values. Its sums carry a rounding error, so an exact result that lies nearer to the
middle between two codes than that error may come out as the neighbour. Everything else has to be equal. How near is a matter
of the float32 format: roundings behave like independent ones, so a sum of K products is off by less than about
``sqrt(K) * 2**-24`` of the sum of the products' magnitudes (Higham and Mary 2019, "A New Approach to Probabilistic Rounding
Error Analysis"), which is computed here in integers as well; three more roundings are those of bias, scale and reciprocal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import READS, Mixed, mixed_network
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qkit.execution.lanes import Lane, quantize_weight, run_lanes
from qkit.execution.observing import observe
from qkit.graph import Graph, build
from qkit.graph.operation import Operation
from qkit.quant.calibration import make_plan
from qkit.quant.grids import QuantParams, QuantSpec
from qkit.quant.plan import Plan
from qkit.quant.schemes import PRESETS, Scheme

UNIT = 2.0**-24
AFFINE = QuantSpec(bits=8, symmetric=False)
SCHEMES = {
    **PRESETS,
    "affine weights": Scheme("affine weights", AFFINE, AFFINE),
    "affine weights per channel": Scheme("affine weights per channel", replace(AFFINE, per_channel=True), AFFINE),
    "unsigned": Scheme("unsigned", PRESETS["int8"].weight, QuantSpec(bits=8, symmetric=False, signed=False)),
    "accumulators of 14 bits": replace(PRESETS["int8"], name="14", accumulator_bits=14),
    "accumulators of 15 bits, per tensor": replace(PRESETS["int8-per-tensor"], name="15", accumulator_bits=15),
    "int16 power of two": PRESETS["int8-power-of-two"].at_bits(16),
    "int16 affine weights": Scheme("affine", replace(AFFINE, bits=16), replace(AFFINE, bits=16), 64),
}
WIDE = [name for name, scheme in SCHEMES.items() if scheme.activation.bits == 16]


@dataclass(frozen=True)
class Exact:
    """A layer's output in steps of its grid, not yet rounded, and how far float32 arithmetic may be from it."""

    operations: np.ndarray
    error: np.ndarray
    #: Greatest magnitude that an integer accumulator can reach on the way, and a bound on float32's integers.
    accumulator: int = 0


def integers(values: Tensor, params: QuantParams) -> np.ndarray:
    """Codes less the zero point, int64, of values that lie on the grid."""
    scale = params.scale.double()
    if params.axis is not None:
        scale = scale.view([-1 if d == params.axis else 1 for d in range(values.ndim)])
    steps = (values.double() / scale).numpy()
    codes = np.rint(steps)
    assert np.abs(steps - codes).max() < 1e-2, "the values are not on the grid"
    return codes.astype(np.int64)


def clamped_codes(operations: np.ndarray, params: QuantParams, bounds: tuple[float, float]) -> np.ndarray:
    """Codes: rounded to even, clamped to the activation's bounds and to the grid."""
    scale, zero = float(params.scale), int(params.zero_point)
    low, high = (np.rint(b / scale) for b in bounds)
    return np.clip(np.clip(np.rint(operations), low, high) + zero, params.qmin, params.qmax)


def convolve(x: np.ndarray, w: np.ndarray, stride: int, padding: int, groups: int) -> np.ndarray:
    """Integer convolution, NCHW and OIHW, int64."""
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    windows = np.lib.stride_tricks.sliding_window_view(x, w.shape[2:], axis=(2, 3))[:, :, ::stride, ::stride]
    n, c, h, v = windows.shape[:4]
    grouped = windows.reshape(n, groups, c // groups, h, v, *w.shape[2:])
    kernels = w.reshape(groups, w.shape[0] // groups, *w.shape[1:])
    return np.einsum("ngchvij,gocij->ngohv", grouped, kernels).reshape(n, w.shape[0], h, v)


def weighted(
    x: np.ndarray, source: QuantParams, layer: nn.Module, weight: np.ndarray, params: QuantParams, out: QuantParams, plan: Plan
) -> Exact:
    """A convolution or linear layer: integer sum, integer bias on the same grid, one multiplier per channel."""
    step = source.scale.double().numpy() * params.scale.double().numpy() * np.ones(weight.shape[0])
    bias = np.rint(layer.bias.detach().double().numpy() / step)
    bias = np.clip(bias, -(2.0 ** (plan.bias_bits - 1)), 2.0 ** (plan.bias_bits - 1) - 1).astype(np.int64)
    if isinstance(layer, nn.Linear):
        sums, magnitude, shape = x @ weight.T, np.abs(x) @ np.abs(weight.T), (1, -1)
    else:
        how = layer.stride[0], layer.padding[0], layer.groups
        sums, magnitude, shape = convolve(x, weight, *how), convolve(np.abs(x), np.abs(weight), *how), (1, -1, 1, 1)
    sums, magnitude = sums + bias.reshape(shape), magnitude + np.abs(bias).reshape(shape)
    if plan.accumulator_bits is not None:
        half = 2 ** (plan.accumulator_bits - 1)
        sums = (sums + half) % (2 * half) - half
    multiplier = (step / float(out.scale)).reshape(shape)
    return Exact(sums * multiplier, (np.sqrt(weight[0].size) + 3) * UNIT * magnitude * multiplier, int(magnitude.max()))


def exact_layer(model: Mixed, tap: str, values: Mapping[str, Tensor], plan: Plan, weight: Tensor | None) -> Exact:
    """The layer of `tap` in integer arithmetic, from its inputs' codes."""
    out = plan.grids[tap].params
    sources = [(integers(values[name], plan.grids[name].params), plan.grids[name].params) for name in READS[tap]]
    if tap == ":add":
        parts = [x * (float(p.scale) / float(out.scale)) for x, p in sources]
        return Exact(sum(parts), 3 * UNIT * sum(map(np.abs, parts)))
    if tap == ":cat":
        (x, p), (side, q) = sources
        n, c, h, w = x.shape
        pooled = x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5)) * (float(p.scale) / float(out.scale))
        both = np.concatenate([pooled, side * (float(q.scale) / float(out.scale))], 1)
        return Exact(both, 3 * UNIT * np.abs(both))
    (x, p) = sources[0]
    if tap == "average":
        n, c, h, w = x.shape
        blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
        factor = float(p.scale) / float(out.scale) / 4
        return Exact(blocks.sum((3, 5)) * factor, 5 * UNIT * np.abs(blocks).sum((3, 5)) * factor)
    layer = getattr(model, tap)
    if tap in {"stem", "depthwise"}:
        layer = fuse_conv_bn_eval(layer, getattr(model, f"{tap}_norm"))
    grid = plan.grids[f"{tap}.weight"].params
    assert weight is not None
    return weighted(x.reshape(len(x), -1) if tap == "classify" else x, p, layer, integers(weight, grid), grid, out, plan)


BOUNDS = {"stem": (0.0, 6.0), "depthwise": (0.0, np.inf), ":add": (0.0, np.inf)}


@dataclass
class Count:
    """Elements compared, those within reach of the middle between two codes, and those that differ."""

    elements: int = 0
    ties: int = 0
    differing: int = 0


def compare(codes: np.ndarray, exact: Exact, params: QuantParams, bounds: tuple[float, float], count: Count) -> None:
    """Assert that codes differ from the exact ones nowhere but at ties, and there by one."""
    expected = clamped_codes(exact.operations, params, bounds)
    to_middle = np.abs(np.abs(exact.operations - np.floor(exact.operations)) - 0.5)
    tie = to_middle <= exact.error
    differs = codes != expected
    assert np.abs(codes - expected).max() <= 1
    assert not (differs & ~tie).any(), f"off by one where the middle is {to_middle[differs & ~tie].min():.2g} steps away"
    count.elements += codes.size
    count.ties += int(tie.sum())
    count.differing += int(differs.sum())


@cache
def setting(scheme: str, seed: int) -> tuple[Mixed, Graph, Plan, dict[str, Tensor], Tensor]:
    """Network, graph, plan, and the lane's values by tap."""
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) * 1.5
    model = mixed_network(seed)
    graph = build(model, x)
    plan = make_plan(graph, observe(graph, [x], progress=False), SCHEMES[scheme], method="percentile", percentile=99.9)
    seen: dict[str, Tensor] = {}

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        seen[op.name] = values["lane"].clone()

    run_lanes(graph, [Lane("lane", plan)], (x,), observe=look)
    return model, graph, plan, seen, x


def check(scheme: str, seed: int, tap: str, count: Count) -> Exact:
    model, graph, plan, seen, _ = setting(scheme, seed)
    op = graph.operation(tap)
    params = plan.grids[tap].params
    weight = quantize_weight(graph.weights[op.weight], plan.grids[op.weight].params) if op.weight else None
    exact = exact_layer(model, tap, seen, plan, weight)
    codes = integers(seen[tap], params) + int(params.zero_point)
    assert params.qmin <= codes.min()
    assert codes.max() <= params.qmax
    compare(codes, exact, params, BOUNDS.get(tap, (-np.inf, np.inf)), count)
    return exact


def exact_in_float32(exact: Exact, scheme: str) -> bool:
    """Whether powers of two as scales make float32's own sums integers: then there is nothing to round before the end."""
    return "power-of-two" in scheme and exact.accumulator < 2**24


@pytest.mark.parametrize("tap", [tap for tap in READS if tap != "input"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_layer_equals_integer_arithmetic(scheme: str, tap: str) -> None:
    count = Count()
    exact = check(scheme, 3, tap, count)
    assert exact.operations.std() > 1, "a layer of which nothing comes out would prove nothing"
    if scheme in WIDE:
        # 16 bits: at most a third of a step is in question, and few elements in a thousand use it
        assert exact.error.max() < 0.33
        assert count.differing <= max(2, 0.002 * count.elements)
    else:
        assert exact.error.max() < 0.001 + 0.001 * (tap == "classify")
        assert count.differing <= 2
        assert exact.accumulator < 2**31, "an int32 accumulator would not do"
    if exact_in_float32(exact, scheme):
        assert count.differing == 0


@given(st.integers(0, 10_000), st.sampled_from(sorted(SCHEMES)))
@settings(deadline=None, max_examples=15)
def test_network_equals_integer_arithmetic_for_any_weights(seed: int, scheme: str) -> None:
    count = Count()
    for tap in READS:
        if tap != "input":
            check(scheme, seed, tap, count)
    assert count.elements > 70_000
    assert count.differing <= (0.002 if scheme in WIDE else 0.0001) * count.elements
    setting.cache_clear()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_input_and_weight_codes_are_the_rounded_quotients(scheme: str) -> None:
    """In float64 from the float values: they may differ at a tie, within the error of one product with a rounded reciprocal."""
    _, graph, plan, seen, x = setting(scheme, 3)
    tensors = {"input": (x, seen["input"])}
    tensors |= {name: (w, quantize_weight(w, plan.grids[name].params)) for name, w in graph.weights.items()}
    count = Count()
    for name, (value, lane) in tensors.items():
        params = plan.grids[name].params
        scale, zero = params.scale.double(), params.zero_point
        if params.axis is not None:
            shape = [-1 if d == params.axis else 1 for d in range(value.ndim)]
            scale, zero = scale.view(shape), zero.view(shape)
        steps = (value.double() / scale).numpy()
        expected = np.clip(np.rint(steps) + zero.numpy(), params.qmin, params.qmax)
        codes = integers(lane, params) + zero.numpy()
        tie = np.abs(np.abs(steps - np.floor(steps)) - 0.5) <= 2 * UNIT * np.abs(steps)
        assert not ((codes != expected) & ~tie).any(), name
        assert np.abs(codes - expected).max() <= 1
        count.elements, count.differing = count.elements + codes.size, count.differing + int((codes != expected).sum())
    assert count.differing <= 0.001 * count.elements


@pytest.mark.parametrize("scheme", [name for name in SCHEMES if name not in WIDE])
def test_max_pool_moves_codes_and_changes_none(scheme: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    graph = build(nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Flatten(), nn.Dropout()).eval(), x)
    plan = make_plan(graph, observe(graph, [x], progress=False), SCHEMES[scheme])
    params = plan.grids["input"].params
    assert list(plan.grids) == ["input"]
    output = run_lanes(graph, [Lane("lane", plan)], (x,))["lane"]
    codes = np.clip(np.rint(x.double().numpy() / float(params.scale)) + int(params.zero_point), params.qmin, params.qmax)
    padded = np.pad(codes, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    pooled = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))[:, :, ::2, ::2].max((4, 5)).reshape(2, -1)
    differing = integers(output, params) + int(params.zero_point) != pooled
    assert differing.sum() <= 1


def test_narrow_accumulators_wrap_around() -> None:
    """What the comparison with wrapped integer sums compares is not the plain lane."""
    _, graph, plan, _, x = setting("accumulators of 14 bits", 3)
    lanes = {str(bits): replace(plan, accumulator_bits=bits) for bits in (14, 32, None)}
    outputs = run_lanes(graph, [Lane(name, each) for name, each in lanes.items()], (x,))
    assert torch.equal(outputs["32"], outputs["None"])
    assert not torch.equal(outputs["14"], outputs["None"])


def test_bias_saturates_where_its_integer_is_too_narrow() -> None:
    """16-bit grids on both sides leave a step so small that 32 bits do not hold the bias."""
    layer = nn.Linear(4, 3)
    with torch.no_grad():
        layer.weight.mul_(1e-3)
        layer.bias.copy_(torch.tensor([40.0, -40.0, 0.01]))
    x = torch.randn(64, 4) * 0.01
    graph = build(nn.Sequential(layer), x)
    wide = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int16"]).without(["0"])
    outputs = run_lanes(graph, [Lane("64", wide), Lane("32", replace(wide, bias_bits=32))], (x,))
    step = float(wide.grids["input"].params.scale) * wide.grids["0.weight"].params.scale.double().numpy()
    assert 40.0 / step[0] > 2**31
    limits = step * 2.0**31
    np.testing.assert_allclose(outputs["64"][:, :2], np.tile([40.0, -40.0], (64, 1)), rtol=1e-3)
    products = float((x.abs() @ layer.weight.detach().abs().T).max())
    np.testing.assert_allclose(outputs["32"][:, 0], limits[0], atol=2 * products)
    np.testing.assert_allclose(outputs["32"][:, 1], -limits[1], atol=2 * products)
