"""``import qkit`` brings no notebook, engine, plotting or compiler packages with it."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "IPython ipywidgets anywidget matplotlib torchvision sklearn onnx onnxruntime onnxscript torchao jinja2 dask typer rich numba "
    "llvmlite PIL"
).split()


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_import_is_light() -> None:
    by_torch = modules_after("import torch, pandas, scipy.stats, tqdm.auto, safetensors.torch")
    found = modules_after("import qkit")
    assert "qkit" in found
    assert not (set(HEAVY) & found) - by_torch
    assert not {"numba", "matplotlib", "jinja2", "typer", "torchvision"} & found


def test_every_public_name_is_there_and_documented() -> None:
    import qkit

    for name in qkit.__all__:
        assert getattr(qkit, name).__doc__, name
