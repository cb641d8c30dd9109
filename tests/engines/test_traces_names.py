"""Names of tensors and files: TIDL's in all forms, the exporters', and file names that stay in their folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_cases import study

from qkit.engines.traces import TraceError
from qkit.engines.traces.names import Names, TidlName, layer_infos, natural, normal, scope, write_layer_info

sizes = st.integers(1, 70_000)


@settings(max_examples=60, deadline=None)
@given(
    name=st.builds(
        TidlName, data=st.integers(0, 99_999), channels=sizes, height=sizes, width=sizes, is_float=st.booleans(),
        batch=st.integers(1, 64), dim1=st.integers(1, 9), dim2=st.integers(1, 9), subgraph=st.integers(0, 12).map(str),
        core=st.none() | st.integers(1, 8),
    )
)  # fmt: skip
def test_tidl_names_come_back(name: TidlName) -> None:
    assert TidlName.parse(name.format()) == name
    plain = TidlName.parse(name.format("plain"))
    assert plain is not None
    assert (plain.data, plain.batch, plain.channels, plain.height, plain.width) == (
        name.data,
        name.batch,
        name.channels,
        name.height,
        name.width,
    )
    config = TidlName.parse(name.format("config"))
    assert config is not None
    assert (config.data, config.core, config.shape) == (name.data, name.core, (1, 1, 1, name.channels, name.height, name.width))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tidl_trace_subgraph_0_0029_0001_0001_00001_00512_00007x00007_float.bin", TidlName(29, 512, 7, 7, True)),
        ("tidl_trace_subgraph_3_29_2_1_1_64_14x7.y", TidlName(29, 64, 7, 14, False, batch=2, subgraph="3")),
        ("C7x_2_tidl_trace_subgraph_0_0001_0001_0001_00001_00003_00224x00056.y", TidlName(1, 3, 56, 224, False, core=2)),
        ("tidl_trace0012_00001_00064_00112x00056.y", TidlName(12, 64, 56, 112, False)),
        ("tidl_trace0012_00001_00064_00112x00056", TidlName(12, 64, 56, 112, False)),
        ("tidl_import_net.txt_0029_00512_00007x00007", TidlName(29, 512, 7, 7, False)),
        ("tidl_import_net.txt_0029_00512_00007x00007_float.bin", TidlName(29, 512, 7, 7, True)),
    ],
)
def test_documented_tidl_names(text: str, expected: TidlName) -> None:
    assert TidlName.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "conv1.npy",
        "tidl_trace_subgraph_0_1_1_1_1_1_7.y",
        "tidl_trace0012_00001_00064.y",
        "0029_00512_00007x00007",
        "xtidl_trace1_1_1_1x1.y",
        "tidl_trace1_1_" + "9" * 40 + "_1x1.y",
    ],
)
def test_other_names_are_not_tidls(text: str) -> None:
    assert TidlName.parse(text) is None


def test_the_shape_is_in_the_documented_order() -> None:
    name = TidlName.parse("tidl_trace_subgraph_0_0029_0002_0003_00004_00512_00007x00009.y")
    assert name is not None
    assert name.shape == (2, 3, 4, 512, 9, 7)


def test_layer_info(tmp_path: Path) -> None:
    path = tmp_path / "subgraph_2_tidl_net.bin.layer_info.txt"
    path.write_text("layerId dataId name\n0 1 /conv1/Conv_output_0\n1 7 a name with spaces\n\n")
    assert layer_infos([path, tmp_path / "other.txt"]) == {"2": {1: "/conv1/Conv_output_0", 7: "a name with spaces"}}
    path.write_text(write_layer_info({4: "x", 9: "y"}))
    assert layer_infos([path]) == {"2": {4: "x", 9: "y"}}
    path.write_text("0 1 x\n1 1 y\n")
    with pytest.raises(TraceError, match="line 2: dataId 1 is 'x' and 'y'"):
        layer_infos([path])
    path.write_text("0 1\n")
    with pytest.raises(TraceError, match="line 1"):
        layer_infos([path])


def test_frames_are_in_the_order_of_their_numbers() -> None:
    assert sorted(["frame_10", "frame_9", "frame_1", "a"], key=natural) == ["a", "frame_1", "frame_9", "frame_10"]
    assert sorted(["²", "1", "x"], key=natural)


def test_scopes_as_the_exporter_writes_them() -> None:
    assert scope("layer1.0.conv1") == "layer1/layer1.0/conv1"
    assert scope("features.1.conv.0.0") == "features/features.1/conv/conv.0/conv.0.0"


@pytest.mark.parametrize("network", ["resnet_small", "mobilenet_v2_lite"])
def test_every_tap_is_found_by_every_form_of_its_name(network: str) -> None:
    graph = study(network).graph
    names = Names(graph)
    for op in graph.operations:
        if op.quantized:
            assert names.find(op.name) == (op, "exact")
            assert names.find(normal(op.name))[0] is op
            assert names.find(op.name.replace(".", "_").replace(":", "_"))[0] is op
            if op.kind == "conv":
                written = f"/{scope(op.name)}/Conv_output_0"
                assert names.find(written)[0] is op
                assert names.find(written.replace("/", "_"))[0] is op
    assert names.find("/layer9/relu/Relu_output_0") == (None, "")
    assert names.find("") == (None, "")
