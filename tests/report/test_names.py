"""What the taps are called elsewhere: nodes of the ONNX file as `onnx` reads it, layers by a map."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx_torch_files import exported_file
from report_cases import Small, image_batches

import qkit
from qkit.report import Report, make, read, write

OPTIONS = {"sensitivity": False, "lint": False, "progress": False}


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    torch.manual_seed(3)
    path = exported_file(Small(), (3, 8, 8), tmp_path_factory.mktemp("files") / "small.onnx")
    study = qkit.Study(path, image_batches(), image_batches())
    first = next(op.name for op in study.graph.operations if op.weight)
    return make(study, worst=2, layer_map={first: "layer 12"}, **OPTIONS), path


def test_nodes_are_those_that_onnx_reads(named: tuple[Report, Path]) -> None:
    report, path = named
    makers = {name: node for node in onnx.load(path).graph.node for name in node.output}
    assert {tap for tap in report.layers.index if tap in makers} == {t for t, names in report.names.items() if "node" in names}
    for tap, names in report.names.items():
        if "node" in names:
            assert names["node"].startswith(f"{makers[tap].op_type} ")
            assert (makers[tap].name or makers[tap].output[0]) in names["node"]


def test_names_are_in_every_form(named: tuple[Report, Path], tmp_path: Path) -> None:
    report, _ = named
    page, text, data = (write(report, tmp_path / f"r.{suffix}") for suffix in ("html", "md", "json"))
    tap = report.worst[0]["tap"]
    assert "layer 12" in page.read_text()
    assert report.names[tap]["node"].partition(" ")[0] in text.read_text()
    assert read(data).names == report.names


def test_reports_without_other_names_are_read(named: tuple[Report, Path], tmp_path: Path) -> None:
    import json

    data = json.loads(write(named[0], tmp_path / "r.json").read_text())
    del data["names"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    assert read(tmp_path / "old.json").names == {}
