"""What TIDL calls the tensors: from its layer_info.txt, a .json file, or names by tap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import qkit
from qkit.engines.tidl import layer_names
from qkit.graph import Graph


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> Graph:
    return qkit.Study(Net().eval(), [torch.randn(2, 3, 8, 8)]).graph


def test_layer_info_gives_data_ids(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "subgraph_0_tidl_net.bin.layer_info.txt"
    path.write_text("0 0 input\n1 7 stem\n2 9 something_else\n3 12 head\n")
    assert layer_names(path, graph) == {"input": "dataId 0", "stem": "dataId 7", "head": "dataId 12"}


def test_json_and_mappings(graph: Graph, tmp_path: Path) -> None:
    path = tmp_path / "names.json"
    path.write_text(json.dumps({"stem": "conv_1", "nowhere": "x"}))
    assert layer_names(path, graph) == layer_names({"stem": "conv_1"}, graph) == {"stem": "conv_1"}


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.json", "[1]"), ("b.json", '{"stem": 1}'), ("c.txt", "stem"), ("layer_info.txt", "0 1 foreign"), ("d.json", "{")],
)
def test_files_that_are_no_map_are_named(graph: Graph, tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(qkit.QkitError, match=name if name != "layer_info.txt" else "foreign"):
        layer_names(tmp_path / name, graph)


def test_a_file_that_is_not_there(graph: Graph, tmp_path: Path) -> None:
    with pytest.raises(qkit.QkitError, match="gone"):
        layer_names(tmp_path / "gone.txt", graph)
