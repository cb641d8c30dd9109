"""What boxes are coloured by: figures of a study, their place on the scale, and Model Explorer's file of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from small_networks import minmax_study

from qkit import Plan, QkitError, Study
from qkit.engines.onnx.node_names import node_names
from qkit.figures.network.blocks import Network, Node
from qkit.figures.network.filling import (
    bit_values,
    captured_values,
    gradient_values,
    loss_values,
    mac_values,
    network_of,
)
from qkit.figures.network.layout import layout
from qkit.figures.network.overlay import overlay
from qkit.figures.network.quantities import known, paint, paint_difference, paint_pair, quantities, scale_of
from qkit.quant.schemes import PRESETS
from qkit.style import NARROW_COLOUR, Units

QUANTITIES = quantities(Units(percent=True))
NETWORK = Network(
    (
        Node("input", "input"),
        Node("block.a", "conv", (0,), macs=10),
        Node("block.b", "conv", (1,), macs=30),
        Node("block:add", "add", (0, 2)),
        Node("head", "linear", (3,), macs=5),
    )
)
DECIBELS = {"input": 50.0, "block.a": 10.0, "block.b": 30.0, "head": math.inf}


@pytest.fixture(scope="module")
def study() -> Study:
    return minmax_study()


# from a study


def test_nodes_are_the_graphs_operations(study: Study) -> None:
    network = network_of(study.graph)
    assert set(study.graph.taps) <= {node.name for node in network.nodes}
    for node in network.nodes:
        op = study.graph.operation(node.name)
        assert [network.nodes[i].name for i in node.inputs] == [study.graph.operations[i].name for i in op.inputs]
        assert (node.kind, node.macs, node.weight or None) == (op.kind, op.macs, op.weight)


def test_values_are_those_of_the_results(study: Study) -> None:
    network, plan = network_of(study.graph), study.lane("int8")
    table = study.capture(progress=False).table()
    assert captured_values(table, "int8", "local") == table["int8", "local sqnr"].to_dict()
    swept = study.sensitivity("only", progress=False)
    assert loss_values(swept) == pytest.approx(swept.table()["loss"].to_dict())
    assert mac_values(network) == {op.name: op.macs for op in study.graph.operations if op.macs}
    assert set(bit_values(network, plan).values()) == {8.0}
    assert bit_values(network, Plan({}))["stem"] == math.inf
    wide = plan.with_range("stem", -1.0, 1.0, spec=PRESETS["int16"].activation)
    assert bit_values(network, wide)["stem"] == 8.0, "the weight still has 8"
    assert bit_values(network, wide.without(["stem.weight"]))["stem"] == 16.0


def test_places_by_gradient_follow_the_ranking(study: Study) -> None:
    ranking = study.sensitivity("gradient", progress=False)
    places = gradient_values(ranking, study.graph)
    assert sorted(places.values()) == list(range(1, len(places) + 1))
    cost = dict.fromkeys(places, 0.0)
    for tensor, costs in ranking.costs.items():
        cost[study.graph.operation(tensor).name] += float(costs.mean())
    assert max(cost, key=cost.__getitem__) == min(places, key=places.__getitem__)


# colours


def test_blocks_show_what_is_worst_in_them() -> None:
    places = layout(NETWORK)
    painted = paint(places, NETWORK, QUANTITIES["propagated"], DECIBELS)
    by_key = {box.key: (painted.shares[i], painted.texts[i]) for i, box in enumerate(places.boxes)}
    assert by_key["block"] == (1.0, "10.0 dB")
    assert by_key["input"] == (0.0, "50.0 dB")
    assert by_key["head"] == (0.0, "∞ dB"), "no error at all is the weakest colour"
    sums = paint(places, NETWORK, QUANTITIES["macs"], {"block.a": 10, "block.b": 30, "head": 5})
    block = [box.key for box in places.boxes].index("block")
    assert sums.texts[block] == "40"
    assert sums.shares[block] == 1.0


def test_what_is_missing_has_no_colour() -> None:
    places = layout(NETWORK, {"block"})
    painted = paint(places, NETWORK, QUANTITIES["local"], DECIBELS)
    add = [box.key for box in places.boxes].index("block:add")
    assert painted.shares[add] is None
    none = paint(places, NETWORK, QUANTITIES["local"], None)
    assert set(none.shares) == {None}
    assert none.legend == ()


def test_the_scale_stays_when_blocks_open() -> None:
    closed, opened = layout(NETWORK), layout(NETWORK, {"block"})
    legends = [paint(at, NETWORK, QUANTITIES["local"], DECIBELS).legend for at in (closed, opened)]
    assert legends[0] == legends[1]
    assert [text for _, text in legends[0]] == ["50.0 dB", "30.0 dB", "10.0 dB"]


@pytest.mark.parametrize("key", list(QUANTITIES))
def test_shares_and_values_go_both_ways(key: str) -> None:
    quantity = QUANTITIES[key]
    scale = scale_of(quantity, {"a": 1.0, "b": 7.0, "c": 4.0})
    assert (scale.share(1.0), scale.share(7.0)) == ((1.0, 0.0) if quantity.low else (0.0, 1.0))
    assert scale.value(scale.share(4.0)) == pytest.approx(4.0)


def test_a_layer_that_gains_is_as_weak_as_one_that_loses_nothing() -> None:
    scale = scale_of(QUANTITIES["loss"], {"a": -0.02, "b": 0.0, "c": 0.1})
    assert (scale.share(-0.02), scale.share(0.0), scale.share(0.1)) == (0.0, 0.0, 1.0)


@pytest.mark.parametrize(("key", "worse"), [("local", 1.0), ("loss", -1.0)])
def test_differences_are_signed_by_what_is_worse(key: str, worse: float) -> None:
    places = layout(NETWORK)
    a, b = {"input": 10.0, "head": 20.0}, {"input": 30.0, "head": 20.0}
    painted = paint_difference(places, NETWORK, QUANTITIES[key], a, b, ("int8", "int16"))
    shares = {box.key: share for box, share in zip(places.boxes, painted.shares, strict=True)}
    # fewer dB are worse, less loss is better
    assert shares == {"input": worse, "block": None, "head": 0.0}
    assert painted.signed
    assert "−20.0" in painted.texts[0] or "−2000.00" in painted.texts[0]


def test_equal_infinities_are_no_difference() -> None:
    places = layout(NETWORK)
    painted = paint_difference(
        places, NETWORK, QUANTITIES["local"], {"head": math.inf, "input": 20.0}, {"head": math.inf, "input": math.inf}, ("a", "b")
    )
    shares = {box.key: share for box, share in zip(places.boxes, painted.shares, strict=True)}
    assert shares["head"] == 0.0
    assert shares["input"] == 1.0


def test_side_by_side_shares_one_scale() -> None:
    places = layout(NETWORK)
    one, other = paint_pair(places, NETWORK, QUANTITIES["local"], {"input": 10.0}, {"input": 30.0}, ("int8", "int16"))
    assert (one.shares[0], other.shares[0]) == (1.0, 0.0)
    assert one.texts == other.texts
    assert one.texts[0] == "10.0 | 30.0 dB"
    assert set(paint_pair(places, NETWORK, QUANTITIES["local"], {}, None, ("a", "b"))[0].shares) == {None}


def test_unknown_figures_are_errors() -> None:
    with pytest.raises(QkitError, match="propagated"):
        known("colour", QUANTITIES)


# Model Explorer


def test_overlay_has_the_form_of_model_explorers_graph_node_data() -> None:
    made = overlay(QUANTITIES["propagated"], DECIBELS, name="qkit")
    assert json.loads(json.dumps(made, allow_nan=False)) == made
    # GraphNodeData: results by node, each with a number and a colour; a gradient with stops 0 and 1
    assert set(made) == {"name", "results", "gradient"}
    assert made["results"].keys() == {"input", "block.a", "block.b"}, "an infinite figure has no number"
    assert made["results"]["block.a"] == {"value": 10.0, "bgColor": NARROW_COLOUR}
    assert [item["stop"] for item in made["gradient"]] == [0.0, 1.0]
    # the least SQNR is the strongest, at both places
    assert made["gradient"][0]["bgColor"] == NARROW_COLOUR
    assert made["results"]["input"]["bgColor"] == made["gradient"][1]["bgColor"]


def test_overlay_of_losses_is_strong_at_its_upper_end() -> None:
    made = overlay(QUANTITIES["loss"], {"a": 0.0, "b": 0.1}, name="loss")
    assert made["gradient"][1]["bgColor"] == made["results"]["b"]["bgColor"] == NARROW_COLOUR


def test_overlay_names_nodes_of_the_file() -> None:
    made = overlay(QUANTITIES["local"], DECIBELS, name="x", nodes={"block.a": "Conv_7"})
    assert list(made["results"]) == ["Conv_7"]


def test_nodes_of_an_onnx_file_are_what_the_overlay_names(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    weight = onnx.numpy_helper.from_array(torch.randn(4, 3, 3, 3).numpy(), "w")
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w"], ["/stem/Conv_output_0"], name="/stem/Conv"),
        onnx.helper.make_node("Relu", ["/stem/Conv_output_0"], ["/stem/Relu_output_0"], name="/stem/Relu"),
        onnx.helper.make_node("GlobalAveragePool", ["/stem/Relu_output_0"], ["scores"]),
    ]
    ends = [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in
            (("image", ["n", 3, 8, 8]), ("scores", ["n", 4, 1, 1]))]  # fmt: skip
    graph = onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:], [weight])
    path = tmp_path / "net.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    study = Study(path, [torch.randn(2, 3, 8, 8)])
    study.calibrate("minmax", progress=False)
    values = captured_values(study.capture(progress=False).table(), "int8", "propagated")
    results = overlay(QUANTITIES["propagated"], values, name="qkit", nodes=node_names(path))["results"]
    # what Model Explorer's adapter calls an input, and a node that has no name
    makers = {"image": "[value] image", "/stem/Relu_output_0": "/stem/Relu", "scores": "node"}
    assert {name: entry["value"] for name, entry in results.items()} == {makers[tap]: value for tap, value in values.items()}


@pytest.mark.slow
def test_nodes_of_an_exported_file_are_what_the_overlay_names(study: Study, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    written = study.export(tmp_path / "net.onnx")
    values = captured_values(study.capture(progress=False).table(), "int8", "propagated")
    results = overlay(QUANTITIES["propagated"], values, name="qkit", nodes=node_names(written.path))["results"]
    nodes = {node.name: node for node in onnx.load(written.path).graph.node}
    finite = {tap for tap, value in values.items() if math.isfinite(value)}
    assert len(results) == len(set(written.taps) & finite)
    assert set(results) <= set(nodes)
    # the layers themselves, not what quantizes their outputs
    layers = {op.name for op in study.graph.operations if op.weight is not None} & finite
    assert {nodes[name].op_type for name in results if name in layers} == {"Conv", "Gemm"}
    assert layers <= set(results)


def test_nodes_without_a_name_or_with_one_that_is_taken_are_numbered(tmp_path: Path) -> None:
    # by model-explorer-onnx 0.4.2: its pass over names gives these to the same file
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("t0", "t4")]
    named = enumerate(("", "a", "", "a"))
    nodes = [onnx.helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=name) for i, name in named]
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "net", ends[:1], ends[1:])), tmp_path / "net.onnx")
    found = node_names(tmp_path / "net.onnx")
    assert [found[f"t{i}"] for i in range(5)] == ["[value] t0", "node", "a", "node_1", "a_1"]


def test_damaged_metadata_are_said(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"], name="relu")], "net", ends[:1], ends[1:])
    model = onnx.helper.make_model(graph)
    path = tmp_path / "net.onnx"
    onnx.helper.set_model_props(model, {"qkit.taps": '{"a": {"tensor": "y"}, "b": {"tensor": "gone"}}'})
    onnx.save(model, path)
    assert node_names(path) == {"x": "[value] x", "y": "relu", "relu": "relu", "a": "relu"}
    for taps in ("[1]", '{"a": 3}', "{"):
        onnx.helper.set_model_props(model, {"qkit.taps": taps})
        onnx.save(model, path)
        with pytest.raises(QkitError, match="corrupt"):
            node_names(path)
