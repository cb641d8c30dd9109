"""Lanes: their values against plain torch, what is computed how often, and what stays in memory for how long."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import READS, Mixed, mixed_network, plain_layer, plain_run, quantized_bias
from torch import Tensor, nn

from qkit.errors import DataError, PlanError
from qkit.execution.lanes import Frontier, Lane, finish_value, run_lanes, run_to
from qkit.execution.observing import observe
from qkit.graph import Graph, build
from qkit.graph.operation import Operation
from qkit.quant.calibration import make_plan
from qkit.quant.grids import QuantParams
from qkit.quant.plan import FLOAT, Codes, Plan
from qkit.quant.schemes import PRESETS, Scheme


@cache
def setting() -> tuple[Mixed, Graph, Tensor]:
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    model = mixed_network()
    return model, build(model, x), x


@cache
def plan_of(name: str) -> Plan:
    _, graph, x = setting()
    scheme = PRESETS[name.removesuffix(", activations per channel")]
    if scheme.name != name and scheme.activation is not None:
        scheme = Scheme(name, scheme.weight, replace(scheme.activation, per_channel=True), scheme.bias_bits)
    return make_plan(graph, observe(graph, [x], progress=False), scheme, method="minmax")


def observed(lanes: list[Lane], x: Tensor) -> dict[str, dict[str, Tensor]]:
    """Every lane's value of every tap, by lane and tap."""
    _, graph, _ = setting()
    seen: dict[str, dict[str, Tensor]] = {lane.name: {} for lane in lanes}

    def look(op: Operation, values: Mapping[str, Tensor]) -> None:
        for lane, value in values.items():
            seen[lane][op.name] = value.clone()

    run_lanes(graph, lanes, (x,), observe=look)
    return seen


def steps_apart(a: Tensor, b: Tensor, plan: Plan, tap: str) -> Tensor:
    """Difference in whole steps of the tap's grid."""
    p = plan.grids[tap].params
    scale = p.scale if p.axis is None else p.scale.view([-1 if d == p.axis else 1 for d in range(a.ndim)])
    steps = (a.double() - b.double()) / scale.double()
    assert float((steps - steps.round()).abs().max()) < 1e-2, "values are not on the grid"
    return steps.round().abs().long()


def test_the_network_is_what_the_plain_version_says() -> None:
    _, graph, x = setting()
    assert graph.taps == tuple(READS)
    plain = plain_run(setting()[0], x, FLOAT)
    torch.testing.assert_close(plain["classify"], setting()[0](x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*PRESETS, "int8, activations per channel"])
@pytest.mark.parametrize("reads", [None, "float"], ids=["lane", "local"])
def test_every_layer_equals_plain_fake_quantization(name: str, reads: str | None) -> None:
    """From equal inputs; another order of float32 summation may carry a value across a tie, by one step."""
    model, _, x = setting()
    plan = plan_of(name)
    seen = observed([Lane("float"), Lane("q", plan, reads)], x)
    inputs = seen[reads or "q"] | {"x": x}
    differing = total = 0
    for tap in READS:
        steps = steps_apart(seen["q"][tap], plain_layer(model, tap, inputs, plan), plan, tap)
        assert int(steps.max()) <= 1, tap
        if tap in {"input", ":cat"}:
            assert not steps.any(), f"{tap} sums nothing, so there is no order to differ in"
        differing, total = differing + int(steps.sum()), total + steps.numel()
    wide = plan.grids["stem"].params.bits > 8
    # a float32 sum is off by about 1e-7 of its range: 0.01 steps of 65536, 0.00005 of 256
    assert differing / total < (0.01 if wide else 0.0005)


@pytest.mark.parametrize("name", PRESETS)
def test_output_equals_the_plain_network(name: str) -> None:
    model, graph, x = setting()
    plan = plan_of(name)
    outputs = run_lanes(graph, [Lane("float"), Lane("q", plan)], (x,))
    plain = plain_run(model, x, plan)["classify"]
    torch.testing.assert_close(outputs["float"], model(x).detach(), rtol=1e-4, atol=1e-5)
    step = float(plan.grids["classify"].params.scale)
    assert float((outputs["q"] - plain).abs().mean()) < 0.5 * step
    assert float((outputs["q"] - plain).abs().max()) < 2.5 * step


def grids_used(graph: Graph, op: Operation, plan: Plan) -> tuple[Any, ...]:
    """What quantization does at a step, said again: output, weight, and the bias where input and weight have grids."""
    output = plan.grids.get(op.name)
    weight = plan.grids.get(op.weight or "")
    source = plan.grids.get(graph.operations[op.inputs[0]].tap or "") if op.inputs else None
    bias = (source and source.params, plan.bias_bits) if weight and op.bias and source else None
    return output and output.params, weight and weight.params, bias


def expected_counts(graph: Graph, lanes: list[Lane]) -> Counter[str]:
    """How many different values each step has over the lanes: a value is its history."""
    counts: Counter[str] = Counter()
    history: dict[int, list[int]] = {}
    numbers: dict[Any, int] = {}
    for op in graph.operations:
        own = []
        for i, lane in enumerate(lanes):
            key = (op.index, grids_used(graph, op, lane.plan), tuple(history[j][i] for j in op.inputs))
            own.append(numbers.setdefault(key, len(numbers)))
        history[op.index] = own
        counts[op.name] = len(set(own))
    return counts


def dependents(graph: Graph, first: str) -> set[str]:
    """Names of the step and of all that read it, directly or not."""
    reached: set[int] = set()
    for op in graph.operations:
        if op.name == first or reached.intersection(op.inputs):
            reached.add(op.index)
    return {graph.operations[i].name for i in reached}


def executed_by(lanes: list[Lane]) -> Counter[str]:
    _, graph, x = setting()
    executed: Counter[str] = Counter()
    run_lanes(graph, lanes, (x,), executed=executed)
    return executed


def test_a_lane_identical_to_float_costs_nothing() -> None:
    names = [op.name for op in setting()[1].operations]
    assert executed_by([Lane("float"), Lane("too"), Lane("three", Plan(name="other"))]) == Counter(names)
    plan = plan_of("int8")
    copied = Plan.from_dict(plan.to_dict())
    assert executed_by([Lane("a", plan), Lane("b", copied)]) == Counter(names)


@pytest.mark.parametrize("tap", READS)
def test_a_lane_that_differs_at_one_tap_computes_what_depends_on_it(tap: str) -> None:
    graph, plan = setting()[1], plan_of("int8")
    once = Counter(op.name for op in graph.operations)
    assert executed_by([Lane("float"), Lane("only", plan.only([tap]))]) == once + Counter(dependents(graph, tap))
    edited = plan.with_range(tap, -0.1, 0.1)
    extra = dependents(graph, tap) | {s.name for s in graph.operations if s.bias and graph.operations[s.inputs[0]].tap == tap}
    assert executed_by([Lane("int8", plan), Lane("edited", edited)]) == once + Counter(extra)


def test_an_only_sweep_costs_the_sum_of_the_tails() -> None:
    graph, plan = setting()[1], plan_of("int8")
    lanes = [Lane(s.name, plan.only([n for n in (s.name, s.weight) if n in plan.grids])) for s in graph.operations if s.quantized]
    expected = Counter(s.name for s in graph.operations)
    for lane in lanes:
        expected += Counter(dependents(graph, lane.name))
    assert executed_by([Lane("float"), *lanes]) == expected
    assert sum(expected.values()) < 0.75 * (len(lanes) + 1) * len(graph.operations)


@given(st.data())
@settings(deadline=None, max_examples=25)
def test_any_lanes_compute_each_distinct_value_once_and_equal_themselves_alone(data: st.DataObject) -> None:
    _, graph, x = setting()
    lanes = [Lane("float")]
    for i in range(data.draw(st.integers(1, 4), label="lanes")):
        plan = plan_of(data.draw(st.sampled_from(["int8", "int16", "int8-power-of-two"])))
        kept = data.draw(st.sets(st.sampled_from(sorted(plan.grids))), label="kept")
        lanes.append(Lane(f"lane {i}", plan.only(kept)))
    executed: Counter[str] = Counter()
    outputs = run_lanes(graph, lanes, (x,), executed=executed)
    assert executed == expected_counts(graph, lanes)
    for lane in lanes:
        assert torch.equal(outputs[lane.name], run_lanes(graph, [lane], (x,))[lane.name])


def test_local_lanes_cost_one_step_each_and_change_nothing_behind() -> None:
    graph, plan = setting()[1], plan_of("int8")
    x = setting()[2]
    executed: Counter[str] = Counter()
    lanes = [Lane("float"), Lane("local", plan, reads="float"), Lane("int8", plan)]
    outputs = run_lanes(graph, lanes, (x,), executed=executed)
    assert outputs.keys() == {"float", "int8"}
    for name in outputs:
        assert torch.equal(outputs[name], run_lanes(graph, [Lane(name, FLOAT if name == "float" else plan)], (x,))[name])
    # the input is equal in the local and the int8 lane; a step without a grid costs a local lane nothing
    assert executed == Counter({s.name: 1 + (s.quantized and s.kind != "input") + 1 for s in graph.operations})


def test_local_lane_reads_whichever_lane_it_is_told() -> None:
    x = setting()[2]
    plan = plan_of("int8")
    seen = observed([Lane("float"), Lane("int16", plan_of("int16")), Lane("local", plan, reads="int16")], x)
    inputs = seen["int16"] | {"x": x}
    for tap in READS:
        steps = steps_apart(seen["local"][tap], plain_layer(setting()[0], tap, inputs, plan), plan, tap)
        assert int(steps.max()) <= 1
        assert float(steps.double().mean()) < 0.001


def test_values_die_after_their_last_reader_in_every_lane() -> None:
    _, graph, x = setting()
    last = {i: i for i in range(len(graph.operations))}
    for op in graph.operations:
        last |= dict.fromkeys(op.inputs, op.index)
    made: list[tuple[int, str, weakref.ref[Tensor]]] = []
    order = ["float", "int8", "int16"]

    def watch(op: Operation, y: Tensor, params: QuantParams | None, lanes: tuple[str, ...], reference: Tensor | None) -> Tensor:
        value = finish_value(op, y, params, lanes, reference)
        alive = {(i, lane) for i, lane, ref in made if ref() is not None}
        finished = {(op.index, lane) for lane in order[: order.index(lanes[0])]}
        assert alive == {(i, lane) for i, lane, _ in made if i < op.index <= last[i]} | finished
        made.append((op.index, lanes[0], weakref.ref(value)))
        return value

    lanes = [Lane("float"), Lane("int8", plan_of("int8")), Lane("int16", plan_of("int16"))]
    run_lanes(graph, lanes, (x,), finish=watch)
    assert len(made) == 3 * len(READS)
    assert not [(i, lane) for i, lane, ref in made if ref() is not None]


def test_a_deep_chain_holds_two_values_a_lane() -> None:
    model = nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(25)))
    x = torch.randn(1, 2, 4, 4)
    graph = build(model, x)
    plan = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int8"])
    made: list[weakref.ref[Tensor]] = []
    most = 0

    def watch(op: Operation, y: Tensor, params: QuantParams | None, lanes: tuple[str, ...], reference: Tensor | None) -> Tensor:
        nonlocal most
        made.append(weakref.ref(y))
        most = max(most, sum(ref() is not None for ref in made))
        return finish_value(op, y, params, lanes, reference)

    run_lanes(graph, [Lane("float"), Lane("int8", plan)], (x,), finish=watch)
    assert most == 4


def test_finish_is_told_who_shares_and_what_the_reference_is() -> None:
    _, graph, x = setting()
    plan = plan_of("int8")
    calls: dict[str, list[tuple[tuple[str, ...], bool, bool]]] = {}

    def note(op: Operation, y: Tensor, params: QuantParams | None, lanes: tuple[str, ...], reference: Tensor | None) -> Tensor:
        calls.setdefault(op.name, []).append((lanes, params is not None, reference is not None))
        return finish_value(op, y, params, lanes, reference)

    run_lanes(graph, [Lane("float"), Lane("a", plan), Lane("b", plan.only(["average"]))], (x,), finish=note)
    assert calls["stem"] == [(("float", "b"), False, False), (("a",), True, True)]
    assert calls["average"] == [(("float",), False, False), (("a",), True, True), (("b",), True, True)]
    assert calls["classify"] == [(("float",), False, False), (("a",), True, True), (("b",), False, True)]


@pytest.mark.parametrize("name", ["float", "int8", "int16"])
def test_a_run_continued_at_any_step_equals_the_whole(name: str) -> None:
    _, graph, x = setting()
    lane = Lane("lane", FLOAT if name == "float" else plan_of(name))
    whole = run_lanes(graph, [lane], (x,))["lane"]
    last = {i: max([i, *(s.index for s in graph.operations if i in s.inputs)]) for i in range(len(graph.operations))}
    behind: Frontier | None = None
    for index in range(len(graph.operations)):
        first: Counter[str] = Counter()
        rest: Counter[str] = Counter()
        frontier = run_to(graph, lane, (x,), index, executed=first)
        assert set(frontier.values) == {i for i in range(index) if last[i] >= index}
        assert frontier.nbytes == sum(v.data.numel() * 4 for v in frontier.values.values())
        assert torch.equal(run_lanes(graph, [lane], (x,), start=frontier, executed=rest)["lane"], whole)
        assert set(first) == {s.name for s in graph.operations[:index]}
        assert first + rest == Counter(s.name for s in graph.operations)
        if behind is not None:
            op: Counter[str] = Counter()
            onward = run_to(graph, lane, (x,), index, start=behind, executed=op)
            assert set(op) == {graph.operations[index - 1].name}
            assert all(torch.equal(onward.values[i].data, v.data) for i, v in frontier.values.items())
        behind = frontier


def test_a_frontier_serves_many_lanes_and_is_not_written_to() -> None:
    _, graph, x = setting()
    plan = plan_of("int8")
    index = graph.operation(":add").index
    frontier = run_to(graph, Lane("base", plan), (x,), index)
    before = {i: v.data.clone() for i, v in frontier.values.items()}
    lanes = [Lane("base", plan), Lane("spared", plan.without([":cat"])), Lane("edited", plan.with_range(":add", 0, 0.5))]
    outputs = run_lanes(graph, lanes, None, start=frontier)
    for lane in lanes:
        assert torch.equal(outputs[lane.name], run_lanes(graph, [lane], (x,))[lane.name])
    assert all(torch.equal(v.data, before[i]) for i, v in frontier.values.items())


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided", "expanded"])
def test_inputs_in_any_memory_layout_are_read_and_left_alone(layout: str) -> None:
    _, graph, x = setting()
    given_x = {
        "contiguous": lambda: x.clone(),
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
        "strided": lambda: torch.stack([x, x], -1).flatten(3)[..., ::2],
        "expanded": lambda: x[:1].expand(4, -1, -1, -1),
    }[layout]()
    kept = given_x.clone()
    lanes = [Lane("float"), Lane("int8", plan_of("int8"))]
    outputs = run_lanes(graph, lanes, (given_x,))
    same = run_lanes(graph, lanes, (kept.contiguous(),))
    assert torch.equal(given_x, kept)
    assert all(torch.equal(outputs[n], same[n]) for n in outputs)


def test_no_gradients_and_weights_untouched() -> None:
    _, graph, x = setting()
    before = {name: w.clone() for name, w in (*graph.weights.items(), *graph.biases.items())}
    output = run_lanes(graph, [Lane("int8", plan_of("int8"))], (x.clone().requires_grad_(),))["int8"]
    assert not output.requires_grad
    assert torch.is_grad_enabled()
    assert all(torch.equal(w, before[name]) for name, w in (*graph.weights.items(), *graph.biases.items()))


BAD_INPUTS = {
    "another dtype": ((torch.zeros(1, 3, 16, 16, dtype=torch.uint8),), r"torch\.uint8.*float"),
    "another rank": ((torch.zeros(3, 16, 16),), r"\(3, 16, 16\).*\(4, 3, 16, 16\)"),
    "other channels": ((torch.zeros(1, 1, 16, 16),), r"\(1, 1, 16, 16\)"),
    "an empty batch": ((torch.zeros(0, 3, 16, 16),), "empty"),
    "no tensor": (([1.0],), r"input\b.*\blist\b"),
    "nothing": ((), r"\bbatch\b.*\b0\b"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_inputs_that_do_not_fit(case: str) -> None:
    inputs, message = BAD_INPUTS[case]
    with pytest.raises(DataError, match=message):
        run_lanes(setting()[1], [Lane("float")], inputs)


def test_two_lanes_of_one_name() -> None:
    with pytest.raises(PlanError, match=r"\ba, a\b"):
        run_lanes(setting()[1], [Lane("a"), Lane("a", plan_of("int8"))], (setting()[2],))


def test_a_plan_of_another_model_is_refused_by_the_weight_it_does_not_fit() -> None:
    plan = plan_of("int8")
    wrong = plan.with_grid("stem.weight", plan.grids["side.weight"])
    with pytest.raises(PlanError, match=r"^stem\.weight\b.*\b4 channels.*\(8, 3, 3, 3\)"):
        run_lanes(setting()[1], [Lane("a", wrong)], (setting()[2],))


@torch.no_grad()
def test_codes_are_what_the_lane_computes_with() -> None:
    model, graph, x = setting()
    plan = plan_of("int8")
    grid = plan["project.weight"]
    weight = model.project.weight.detach()
    up = torch.floor(weight / grid.params.scale.view(-1, 1, 1, 1)) + 1
    codes = Codes(up.clamp(grid.params.qmin, grid.params.qmax).to(torch.int8))
    rounded = plan.with_grid("project.weight", replace(grid, codes=codes))
    assert rounded != plan
    assert list(rounded.diff(plan)) == ["project.weight"]
    seen = observed([Lane("nearest", plan), Lane("codes", rounded)], x)
    source = seen["codes"]["depthwise"]
    bias = quantized_bias(model.project.bias, plan, "depthwise", "project")
    expected = torch.fake_quantize_per_tensor_affine(
        nn.functional.conv2d(source, codes.tensor.float() * grid.params.scale.view(-1, 1, 1, 1), bias),
        *(getattr(plan["project"].params, key) for key in ("scale", "zero_point", "qmin", "qmax")),
    )
    assert torch.equal(seen["codes"]["depthwise"], seen["nearest"]["depthwise"])
    assert not torch.equal(seen["codes"]["project"], seen["nearest"]["project"])
    assert float(steps_apart(seen["codes"]["project"], expected, plan, "project").abs().max()) <= 1
    assert rounded.with_range("project.weight", -1.0, 1.0).codes("project.weight") is None
    with pytest.raises(PlanError, match=r"codes.*\(2,\).*\(8, 8, 1, 1\)"):
        run_lanes(graph, [Lane("bad", plan.with_grid("project.weight", replace(grid, codes=Codes(torch.ones(2)))))], (x,))


def test_a_layer_without_bias_is_corrected_all_the_same() -> None:
    layer = nn.Sequential(nn.Conv2d(3, 2, 1, bias=False))
    x = torch.randn(2, 3, 4, 4)
    graph = build(layer, x)
    name = graph.taps[-1]
    plan = make_plan(graph, observe(graph, [x], progress=False), PRESETS["int8"])
    lanes = [
        Lane("plain", plan.only([f"{name}.weight"])),
        Lane("moved", replace(plan.only([f"{name}.weight"]), corrections={name: (1.0, -2.0)})),
    ]
    outputs = run_lanes(graph, lanes, (x,))
    difference = outputs["moved"] - outputs["plain"]
    torch.testing.assert_close(difference, torch.tensor([1.0, -2.0]).view(1, 2, 1, 1).expand(2, 2, 4, 4))
