"""Writing: every suffix, whole files only, nothing of this machine in them."""

from __future__ import annotations

import getpass
import io
import json
import os
import platform
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from markdown_it import MarkdownIt
from report_cases import Small, image_batches

import qkit
from qkit import QkitError, Study
from qkit.report import check_path, make, write
from qkit.report import writing as files
from qkit.report.text.terms import UNITS

SUFFIXES = (".html", ".md", ".json", ".csv")


def _strict(text: str):
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def written(report, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("written") / "made" / "on the way"
    paths = [write(report, folder / f"report{suffix}") for suffix in SUFFIXES]
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in paths)
    return {path.suffix: path.read_text(encoding="utf-8") for path in paths}


def test_json_is_strict_and_complete(report, written):
    data = _strict(written[".json"])
    assert data == report.to_dict()
    assert data["format"] == 2
    assert list(data["layers"]) == list(report.layers.index)
    second = data["layers"]["second"]
    assert second["tap"]["weight"] == "second.weight"
    assert second["int8"]["local sqnr"] == report.layers.loc["second", ("int8", "local sqnr")]
    assert isinstance(second["int8"]["zero point"], int)
    assert set(data["scores"]) == {"float", "int16", "int8"}


def test_csv_columns_and_values(report, written):
    table = pd.read_csv(io.StringIO(written[".csv"]), index_col="tap")
    assert list(table.columns[:4]) == ["kind", "shape", "weight", "macs"]
    assert {"float min", "float max", "float rms", "int8 sqnr", "int8 local sqnr", "int16 sqnr", "alone loss"} <= set(table)
    assert list(table.index) == list(report.layers.index)
    for column in ("int8 sqnr", "int16 local sqnr", "int8 scale", "int8 clipped"):
        group, figure = column.split(" ", 1)
        assert np.array_equal(table[column], report.layers[group, figure].astype(float))
    for column in table:
        figure = column.split(" ", 1)[1] if column.split(" ")[0] in ("float", "int8", "int16") else column
        assert figure in UNITS or figure.startswith("alone loss"), f"{column} has no unit"


def test_markdown_tables_parse(report, written):
    tokens = MarkdownIt("commonmark").enable("table").parse(written[".md"])
    tables, row = [], None
    for token in tokens:
        if token.type == "table_open":
            tables.append([])
        if token.type == "tr_open":
            row = []
            tables[-1].append(row)
        if token.type == "inline" and row is not None:
            row.append("".join(child.content for child in token.children))
        if token.type == "tr_close":
            row = None
    assert all(len({len(r) for r in table}) == 1 for table in tables)
    scores, sensitivity, layers, weights, lint, plan = tables
    assert {row[2] for row in lint[1:]} == {finding["rule"] for finding in report.lint["findings"]}
    assert [row[0] for row in plan[1:]] == list(report.plan["grids"])
    assert [r[0] for r in scores[1:]] == ["float", "int16", "int8"]
    assert [r[1] for r in layers[1:]] == list(report.layers.index)
    assert [r[0] for r in weights[1:]] == list(report.weights.index)
    assert [r[0] for r in sensitivity[1:]] == list(report.sensitivity.index)
    assert report.verdict["verdict"] in written[".md"]
    figures = written[".md"].partition("## Lint")[0]
    assert max(len(line) for line in figures.splitlines() if line.startswith("|")) < 180


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_nothing_of_the_machine_is_told(written, suffix):
    text = written[suffix]
    secrets = {platform.node(), os.sep + "tmp", str(Path.cwd()), str(Path.home()), str(Path(qkit.__file__).parent), sys.prefix}
    if getpass.getuser() != "root":
        secrets.add(getpass.getuser())
    for secret in secrets:
        assert len(secret) < 4 or secret not in text, f"{suffix} tells {secret}"


@pytest.mark.parametrize("name", ["report", "report.pdf", "report.htm", "report.html.gz", ".html"])
def test_unknown_suffixes_are_refused(tmp_path, report, name):
    for call in (lambda p: check_path(p), lambda p: write(report, p)):
        with pytest.raises(QkitError, match=r"\.html, \.md, \.json, \.csv"):
            call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_suffixes_may_be_upper_case(tmp_path, report):
    assert write(report, tmp_path / "REPORT.CSV").read_text().startswith("tap,")


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(QkitError, match="folder"):
        check_path(tmp_path / "file" / "report.html")
    with pytest.raises(QkitError, match="folder"):
        check_path(tmp_path / "file" / "deeper" / "report.html")
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(QkitError, match="is a folder"):
        check_path(tmp_path / "folder.html")


def test_check_path_makes_the_folder_and_no_file(tmp_path):
    path = check_path(str(tmp_path / "a" / "b" / "report.md"))
    assert path.parent.is_dir()
    assert list(path.parent.iterdir()) == []


def test_failed_write_leaves_the_old_file(tmp_path, report, monkeypatch):
    path = tmp_path / "report.json"
    path.write_text("the old one")

    def broken(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(QkitError, match="no space"):
        write(report, path)
    monkeypatch.undo()
    assert path.read_text() == "the old one"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_report_that_cannot_be_rendered_leaves_the_old_file(tmp_path, report, monkeypatch):
    path = tmp_path / "report.csv"
    path.write_text("the old one")

    def broken(report):
        raise RuntimeError("in the middle")

    monkeypatch.setitem(files._WRITERS, ".csv", broken)
    with pytest.raises(RuntimeError):
        write(report, path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.csv"]
    assert path.read_text() == "the old one"


def test_written_file_may_be_read_by_others(tmp_path, report):
    old = os.umask(0o022)
    try:
        path = write(report, tmp_path / "report.csv")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_study_writes_its_report(tmp_path):
    torch.manual_seed(3)
    study = Study(Small(), image_batches(), image_batches())
    made = study.report(tmp_path / "new" / "report.csv", worst=1, sensitivity=False, progress=False)
    assert (tmp_path / "new" / "report.csv").exists()
    assert made.sensitivity is None
    assert "alone loss" not in (tmp_path / "new" / "report.csv").read_text()


def test_import_of_qkit_stays_light():
    code = "import sys, qkit; print([m for m in ('matplotlib', 'jinja2', 'qkit.report') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_json_of_infinite_and_missing_figures(tmp_path):
    """Values on the grid already: no error, so infinite SQNR; an empty second plan column stays None."""
    model = torch.nn.Sequential(torch.nn.ReLU())
    study = Study(model, [torch.zeros(2, 3, 4, 4)], metric=lambda outputs, targets: outputs.flatten(1).sum(1))
    zeros = [(torch.zeros(2, 3, 4, 4), torch.zeros(2))]
    study = study.with_data(calibration=zeros, evaluation=zeros)
    made = make(study, tolerance=0.01, progress=False)
    data = _strict(write(made, tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["layers"]["input"]["int8"]["sqnr"] == "inf"
    assert data["layers"]["input"]["int8"]["cosine"] is None
    assert "inf" in write(made, tmp_path / "r.csv").read_text()
