"""torchvision loads with and without its compiled operators, and nothing is patched where they are there."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qkit import vision
from qkit.errors import QkitError

_IMPORT = """
import logging
logging.basicConfig(level=logging.INFO)
try:
    import torchvision
except RuntimeError as error:  # as in a notebook whose user tried first
    logging.info("ALONE: %s", error)
from qkit.vision import load_torchvision
torchvision = load_torchvision()
assert load_torchvision() is torchvision
torchvision.models.squeezenet1_1(num_classes=3)
from torchvision import datasets, transforms
"""


@pytest.mark.slow
def test_torchvision_loads_in_a_fresh_process_and_says_once_what_is_missing() -> None:
    result = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    # where torchvision loads by itself nothing may be patched
    assert result.stderr.count("torchvision.ops.nms") == result.stderr.count("ALONE")


def test_operators_that_load_are_not_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_C.so").touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(vision, "_operator_exists", lambda _name: bool(loaded))
    assert vision._why_operators_are_missing(tmp_path) is None
    assert loaded == [str(tmp_path / "_C.so")]


def test_nothing_is_declared_where_the_operators_are_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    vision.load_torchvision()
    real = sys.modules.pop("torchvision")
    declared = []
    monkeypatch.setattr(vision, "_declared", declared)
    monkeypatch.setattr(vision, "_why_operators_are_missing", lambda _package: None)
    monkeypatch.setattr(vision.importlib, "import_module", lambda _name: real)
    caplog.set_level(logging.INFO)
    try:
        assert vision.load_torchvision() is real
    finally:
        sys.modules["torchvision"] = real
    assert declared == []
    assert caplog.records == []


def test_a_library_that_does_not_load_gives_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vision, "_operator_exists", lambda _name: False)
    without = vision._why_operators_are_missing(tmp_path)
    assert without is not None
    assert "_C.so" not in without
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert "_C.so" in str(vision._why_operators_are_missing(tmp_path))


def test_a_missing_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(vision.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(QkitError, match="pip install torchvision"):
        vision.load_torchvision()
