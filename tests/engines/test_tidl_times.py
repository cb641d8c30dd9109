"""TIDL's times of layers, from folders made as tidlrunner writes them: estimates, a board's cycles, names, and what is broken."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qkit
from qkit.engines.tidl import layer_names, layer_times
from qkit.engines.traces.names import layer_ids
from qkit.graph import Graph
from qkit.mixed import Costs
from qkit.study import Study

#: As TI's inspector reads it: blanks around names, a misspelt column, memories named by operand.
ESTIMATE = (
    " lyrNum , LyrType,procTime(us),kernelOnlyCycles,coreLoopCycles,LayerCycles,   IOcyles,inVol(KB),outVol(KB),wtVol(KB),"
    " srcMem-IN, dstMem-IN,srcMem-OUT,dstMem-OUT, srcMem-WT, dstMem-WT\n"
)
#: As TI's runtime prints it: every cell ends in a comma, and below stands a sum.
BOARD = " Layer,   Layer Cycles,kernelOnlyCycles, coreLoopCycles,LayerSetupCycles,\n"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act, self.head = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.stem(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def study() -> Study:
    x = torch.randn(8, 3, 8, 8)
    return qkit.Study(Net().eval(), [x], [x], scheme="int8")


@pytest.fixture(scope="module")
def graph(study: Study) -> Graph:
    return study.graph


def estimate(rows: list[tuple[int, str, float]]) -> str:
    return ESTIMATE + "".join(
        f"{n}, {kind}, {time}, 10, 8, {int(1000 * time)}, 5, 1.5, 2, ,DDR,L2,L2,MSMC,DDR,L2\n" for n, kind, time in rows
    )


def model_folder(root: Path, bits: int, factor: float, *, subgraph: int = 0) -> Path:
    """``<bits>bits/net`` with an estimate and names."""
    folder = root / f"{bits}bits" / "net"
    made = folder / "artifacts" / "tempDir"
    (made / f"subgraph_{subgraph}").mkdir(parents=True, exist_ok=True)
    kinds = ("TIDL_ConvolutionLayer", "TIDL_PoolingLayer", "TIDL_InnerProductLayer")
    rows = [(n, kind, factor * n) for n, kind in enumerate(kinds, 1)]
    (made / f"subgraph_{subgraph}" / f"tempDir_subgraph_{subgraph}_tidl_net_1.csv").write_text(estimate(rows))
    (made / f"subgraph_{subgraph}_tidl_net.bin.layer_info.txt").write_text(
        "0 0 input\n1 4 /stem/Conv_output_0\n2 5 :mean\n3 6 /head/Gemm_output_0\n"
    )
    return folder


def test_estimates_of_two_widths_feed_the_search(study: Study, tmp_path: Path) -> None:
    model_folder(tmp_path, 8, 1.5)
    model_folder(tmp_path, 16, 4.0)
    table = layer_times(tmp_path, study.graph)
    assert list(table["layer"]) == ["stem", ":mean", "head"] * 2
    assert list(table["bits"]) == [8] * 3 + [16] * 3
    assert list(table["µs"]) == [1.5, 3.0, 4.5, 4.0, 8.0, 12.0]
    assert list(table["cycles"][:3]) == [1500.0, 3000.0, 4500.0]
    assert (table["input KB"].iloc[0], table["output KB"].iloc[0]) == (1.5, 2.0)
    assert np.isnan(table["weights KB"]).all()
    assert list(table["name"][:2]) == ["/stem/Conv_output_0", ":mean"]
    assert table["type"].iloc[0] == "TIDL_ConvolutionLayer"
    assert set(table["source"]) == {"estimate"}
    mixed = study.mixed(costs=table, budget=4, progress=False)
    assert dict(mixed.costs) == {"input": 0.0, "stem": 2.5, ":mean": 5.0, "head": 7.5}
    assert Costs.load(table).times["head"] == {8: 4.5, 16: 12.0}


def test_without_a_graph_layers_keep_their_names(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, 8, 1.0)
    table = layer_times(folder)
    assert list(table["layer"]) == ["/stem/Conv_output_0", ":mean", "/head/Gemm_output_0"]


def test_names_from_the_log_or_the_number(graph: Graph, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, 8, 1.0)
    made = folder / "artifacts" / "tempDir"
    (made / "subgraph_0_tidl_net.bin.layer_info.txt").unlink()
    assert layer_times(folder, graph)["layer"][0] == "subgraph 0, layer 1"
    (made / "subgraph_0_tidl_net.bin_netLog.txt").write_text(
        "Num|TIDL Layer Name               |Out Data Name      |Group |#Ins\n"
        + 60 * "-"
        + "\n    0|TIDL_DataLayer|input|0|-1\n    1|TIDL_ConvolutionLayer   |/stem/Conv_output_0 |1|1\n"
    )
    assert list(layer_times(folder, graph)["layer"])[:2] == ["stem", "subgraph 0, layer 2"]


def test_a_tensor_behind_an_activation_is_its_layers(graph: Graph, study: Study, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    folder = model_folder(tmp_path, 8, 1.0)
    (folder / "artifacts" / "tempDir" / "subgraph_0_tidl_net.bin.layer_info.txt").write_text("1 4 /act/Relu_output_0\n")
    assert layer_times(folder, graph)["layer"][0] == "/act/Relu_output_0"
    (folder / "model").mkdir()
    torch.onnx.export(study.model, (torch.randn(1, 3, 8, 8),), folder / "model" / "net.onnx", dynamo=False)
    assert layer_times(folder, graph)["layer"][0] == "stem"
    assert layer_times(folder, graph)["name"][0] == "/act/Relu_output_0"
    assert layer_names(folder, graph) == {"stem": "dataId 4"}


def test_a_boards_cycles_become_microseconds(graph: Graph, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, 16, 1.0)
    (folder / "tidl_trace_subgraph_0_perf.csv").write_text(
        BOARD + "     1,          81811,          48850,          49277,           7779,\n"
        "     3,          34063,          16700,          17307,           7379,\n Sum of Layer Cycles 115874 \n"
    )
    with pytest.raises(qkit.QkitError, match="source="):
        layer_times(folder, graph, clock_mhz=1000)
    with pytest.raises(qkit.QkitError, match="clock_mhz="):
        layer_times(folder, graph, source="board")
    table = layer_times(folder, graph, source="board", clock_mhz=500)
    assert list(table["layer"]) == ["stem", "head"]
    assert list(table["µs"]) == [81811 / 500, 34063 / 500]
    assert list(table["bits"]) == [16, 16]
    assert list(layer_times(folder, graph, source="estimate")["µs"]) == [1.0, 2.0, 3.0]


def test_the_32_bits_of_an_analysis_are_left_out(graph: Graph, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, 8, 1.0)
    inner = model_folder(folder / "tidl32", 8, 7.0)
    (inner / "artifacts" / "tempDir" / "subgraph_0_tidl_net.bin.layer_info.txt").write_text("1 9 other\n")
    assert list(layer_times(folder, graph)["µs"]) == [1.0, 2.0, 3.0]
    assert layer_names(folder, graph)["stem"] == "dataId 4"


def test_layer_names_of_a_folder_count_subgraphs(graph: Graph, tmp_path: Path) -> None:
    folder = model_folder(tmp_path, 8, 1.0)
    info = folder / "artifacts" / "tempDir" / "subgraph_1_tidl_net.bin.layer_info.txt"
    (folder / "artifacts" / "tempDir" / "subgraph_0_tidl_net.bin.layer_info.txt").write_text("1 4 stem\n")
    assert layer_names(folder, graph) == {"stem": "dataId 4"}
    info.write_text("1 4 head\n")
    assert layer_names(folder, graph) == {"stem": "subgraph 0, dataId 4", "head": "subgraph 1, dataId 4"}
    assert layer_ids([info]) == {"1": {1: "head"}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("\n\n", "empty"),
        ("layer,time\n1,2\n", "lyrnum"),
        (ESTIMATE, "cut off"),
        (ESTIMATE.replace("procTime(us)", "procTime(ms)") + "1, T, 2\n", r"proctime\(us\)"),
        (ESTIMATE + "1, T, fast, 1\n", "line 2.*fast"),
        (ESTIMATE + "1, T, -3.0, 1\n", "line 2"),
        (ESTIMATE + "1, T, 3.0, 1\n2, T\n", "line 3"),
        (ESTIMATE + "1x, T, 3.0, 1\n", "line 2"),
        (ESTIMATE + "1.5, T, 3.0, 1\n", "number"),
        (ESTIMATE + "1, T, 3.0, 1\n1, T, 3.0, 1\n", "layer 1 has a row already"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, text: str, said: str) -> None:
    folder = model_folder(tmp_path, 8, 1.0)
    (folder / "artifacts" / "tempDir" / "subgraph_0" / "tempDir_subgraph_0_tidl_net_1.csv").write_text(text)
    with pytest.raises(qkit.QkitError, match=f"tempDir_subgraph_0.*{said}"):
        layer_times(folder)


def test_folders_that_lack_something(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(qkit.QkitError, match="gone"):
        layer_times(tmp_path / "gone")
    with pytest.raises(qkit.QkitError, match=r"perf\.csv"):
        layer_times(tmp_path)
    with pytest.raises(qkit.QkitError, match=r"layer_info\.txt"):
        layer_names(tmp_path, graph)
    folder = model_folder(tmp_path / "a", 8, 1.0)
    with pytest.raises(qkit.QkitError, match="'board'"):
        layer_times(folder, source="board")
    plain = tmp_path / "plain"
    (folder.parent).rename(plain)
    with pytest.raises(qkit.QkitError, match="bits="):
        layer_times(plain)
    assert list(layer_times(plain, bits=16)["bits"]) == [16] * 3
    with pytest.raises(qkit.QkitError, match="clock_mhz"):
        layer_times(plain, bits=8, clock_mhz=0.0)
    model_folder(tmp_path / "b", 8, 1.0)
    model_folder(tmp_path / "b" / "again", 8, 1.0)
    with pytest.raises(qkit.QkitError, match="both of subgraph 0"):
        layer_times(tmp_path / "b")


def test_two_runs_that_name_layers_differently_are_not_mixed(tmp_path: Path) -> None:
    folder = model_folder(tmp_path, 8, 1.0)
    other = folder / "other_subgraph" / "subgraph_0_tidl_net.bin.layer_info.txt"
    other.parent.mkdir()
    other.write_text("1 4 else\n")
    with pytest.raises(qkit.QkitError, match="one model"):
        layer_times(folder)


def inspector(performance: object, *, bits: object = 8, source: str | None = None) -> dict[str, object]:
    """A ``modelinspector.json`` with two layers, the first without figures, as the inspector nests it."""
    layers = [
        {"layer_id": 0, "layer_type": "TIDL_DataLayer", "layer_name": "input", "performance": None},
        {
            "layer_id": 1,
            "layer_type": "TIDL_ConvolutionLayer",
            "layer_name": "conv_fused",
            "onnx_mapping": {"onnx_node_names": ["/stem/Conv", "/act/Relu"], "mapping_type": "fusion"},
            "performance": performance,
        },
    ]
    metadata = {} if source is None else {"performance_source": source}
    return {"metadata": metadata, "runtime": {"subgraphs": {"tidl_0": {"subgraph_id": 0, "tensor_bits": bits, "layers": layers}}}}


def test_the_inspectors_json(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "modelinspector.json"
    memory = {"l2_kb": 3.0, "msmc_kb": 0.5, "ddr_kb": None, "total_kb": 3.5}
    path.write_text(json.dumps(inspector({"proctime_us": 12.5, "layer_cycles": 12500.0, "memory": memory})))
    row = layer_times(path, graph).iloc[0]
    assert len(layer_times(path, graph)) == 1
    assert (row["layer"], row["bits"], row["µs"], row["cycles"], row["L2 KB"]) == ("stem", 8, 12.5, 12500.0, 3.0)
    assert (row["name"], row["number"], row["subgraph"], row["source"]) == ("conv_fused", 1, "0", "estimate")
    assert np.isnan(row["DDR KB"])
    assert layer_times(path)["layer"][0] == "conv_fused"
    board = inspector({"proctime_us": None, "layer_cycles": 3000, "memory": {}}, bits="Unknown", source="evm_hardware")
    path.write_text(json.dumps(board))
    with pytest.raises(qkit.QkitError, match="bits="):
        layer_times(path, graph)
    with pytest.raises(qkit.QkitError, match="clock_mhz="):
        layer_times(path, graph, bits=16)
    row = layer_times(path, graph, bits=16, clock_mhz=750).iloc[0]
    assert (row["µs"], row["bits"], row["source"]) == (4.0, 16, "board")


@pytest.mark.parametrize(
    "data",
    [
        [],
        {"runtime": 3},
        {"runtime": {"subgraphs": {"tidl_0": []}}},
        inspector(None),
        inspector({"proctime_us": -1.0}),
        inspector({"proctime_us": "fast"}),
        inspector({"proctime_us": True}),
        {
            "runtime": {
                "subgraphs": {"tidl_0": {"tensor_bits": 8, "layers": 2 * [{"layer_id": 1, "performance": {"proctime_us": 1.0}}]}}
            }
        },
    ],
)
def test_a_json_that_is_not_the_inspectors(tmp_path: Path, data: object) -> None:
    path = tmp_path / "modelinspector.json"
    path.write_text(json.dumps(data))
    with pytest.raises(qkit.QkitError, match="modelinspector"):
        layer_times(path)
    path.write_text("{")
    with pytest.raises(qkit.QkitError, match="modelinspector"):
        layer_times(path)
