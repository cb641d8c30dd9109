"""``import qkit`` brings no notebook, engine, plotting or compiler packages with it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = (
    "IPython ipywidgets anywidget matplotlib torchvision sklearn onnx onnxruntime onnxscript torchao jinja2 dask typer rich numba "
    "llvmlite PIL"
).split()


def modules_after(statement: str) -> set[str]:
    return {name.partition(".")[0] for name in modules_of(statement)}


def test_import_is_light() -> None:
    by_torch = modules_after("import torch, pandas, scipy.stats, tqdm.auto, safetensors.torch")
    found = modules_after("from qkit import *")
    assert "torch" in found
    assert not (set(HEAVY) & found) - by_torch
    assert not {"numba", "matplotlib", "jinja2", "typer", "torchvision"} & found


@pytest.mark.slow
def test_names_are_loaded_when_they_are_used() -> None:
    assert not {"torch", "numpy", "pandas", "scipy"} & modules_after("import qkit")
    assert not {"torch", "numpy", "pandas", "scipy"} & modules_after("import qkit; qkit.errors.QkitError; dir(qkit)")
    assert {"qkit.execution.lanes", "torch"} <= modules_of("import qkit; qkit.observe")


def test_every_public_name_is_there_and_documented() -> None:
    import qkit

    for name in qkit.__all__:
        assert getattr(qkit, name).__doc__, name


@pytest.mark.slow
def test_parts_come_when_they_are_asked_for() -> None:
    assert not {
        name
        for name in modules_of("from qkit import *")
        if name.startswith(("qkit.qat", "qkit.ptq", "qkit.mixed", "qkit.surgery"))
    }
    import qkit

    assert qkit.qat.wrap
    assert qkit.ptq.STEPS
    assert qkit.mixed.search
    assert qkit.surgery.lite
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        qkit.nothing  # noqa: B018


def test_another_qkit_in_the_environment_is_told(tmp_path):
    told = [sys.executable, "-W", "always", "-c", "import qkit"]
    assert subprocess.run(told, capture_output=True, text=True, check=True).stderr == ""
    beside = tmp_path / "qkit-0.4.9.dist-info"
    beside.mkdir()
    (beside / "METADATA").write_text("Metadata-Version: 2.1\nName: qkit\nVersion: 0.4.9\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    ran = subprocess.run(told, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": paths})
    assert "qkit 0.4.9" in ran.stderr
    assert "pip uninstall" in ran.stderr


def modules_of(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
