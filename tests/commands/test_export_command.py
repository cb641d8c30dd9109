"""``qkit export``: files of every format, read back by the kit and by others, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from command_cases import OWN, Run

from qkit import Plan, Study
from qkit.commands.export import FORMATS, format_of
from qkit.errors import QkitError


def test_every_json_format_at_once_and_a_plan_that_is_taken_again(data: Run, run: Run, folder: Path) -> None:
    names = ("p.plan.json", "r.ranges.json", "e.encodings", "o.tidl.json")
    code, told = data("export", *OWN, "--scheme", "int8-symmetric", *(word for name in names for word in ("--out", name)))
    assert code == 0
    assert [entry["format"] for entry in told["written"]] == ["plan", "ranges", "encodings", "tidl"]
    assert all(entry["bytes"] == Path(entry["path"]).stat().st_size for entry in told["written"])
    plan = Plan.load("p.plan.json")
    b = plan["b"].params
    ranges = json.loads(Path("r.ranges.json").read_text())["tensors"]["b"]
    assert (ranges["min"], ranges["max"]) == (pytest.approx(float(b.lo)), pytest.approx(float(b.hi)))
    encodings = {entry["name"]: entry for entry in json.loads(Path("e.encodings").read_text())["activation_encodings"]}
    assert np.float32(encodings["b"]["scale"][0]) == np.float32(b.scale)
    assert json.loads(Path("o.tidl.json").read_text())["tensor_bits"] == 8
    # the plan, edited, goes into the next run instead of a calibrated one
    plan.with_range("b", -64.0, 64.0).save("edited.json")
    code, _ = data("export", *OWN, "--plan", "edited.json", "--out", "again.plan.json")
    assert code == 0
    assert Plan.load("again.plan.json") == Plan.load("edited.json")
    assert Plan.load("again.plan.json")["b"].params != b


def test_the_onnx_file_runs_elsewhere_and_agrees(data: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    code, told = data("export", *OWN, "--out", "net.onnx")
    assert code == 0
    assert re.search(r"\b6 taps\b.*\b100\.000 ?%", told["written"][0]["checked"])
    monkeypatch.syspath_prepend(folder)
    import usernet

    calibration, evaluation = usernet.loaders()
    study = Study(usernet.make(), calibration, evaluation)
    study.calibrate("mse")
    x = evaluation[0][0]
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # processors without VNNI saturate otherwise
    session = runtime.InferenceSession("net.onnx", options, providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    mine = study.capture(("float", "int8"), keep=["head"])["head"].int8
    assert mine.scale is not None
    steps = np.abs(found - mine.values[: len(x)].numpy()) / float(mine.scale)
    assert steps.max() <= 1.01, "rounding of ties apart, the same codes"
    assert torch.is_tensor(mine.codes)


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("a.onnx", None, "onnx"),
        ("A.ONNX", None, "onnx"),
        ("a.encodings.json", None, "encodings"),
        ("a.json", "plan", "plan"),
        ("a.json", "encodings", "encodings"),
        ("a.tidl.json", "tidl", "tidl"),
        ("a.txt", "prototxt", "prototxt"),
    ],
)
def test_the_format_follows_from_the_name(name: str, given: object, expected: str) -> None:
    assert format_of(Path(name), given) == expected  # type: ignore[arg-type]
    assert expected in FORMATS


def test_a_name_that_says_nothing_or_something_else() -> None:
    with pytest.raises(QkitError, match=r"'a\.json' .*--format onnx\|tidl"):
        format_of(Path("a.json"), None)
    with pytest.raises(QkitError, match=r"'a\.onnx' .*\bonnx\b.*--format .*\bplan\b"):
        format_of(Path("a.onnx"), "plan")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "a.json"], r"'a\.json' .*--format onnx\|tidl"),
        (["--out", "a.prototxt"], r"--format prototxt\b.*--prototxt FILE\b"),
        (["--out", "a.plan.json", "--ptc"], r"--ptc\b.*\bweights\b"),
        (["--out", "a.plan.json", "--plan", "nowhere.json"], "nowhere.json"),
        (["--out", "a.encodings", "--names", "usernet.py"], r"\busernet\.py\b.*\btap\b"),
        (["--out", "usernet.py/a.onnx"], r"usernet\.py/a\.onnx\b"),
        (["--out", "a.onnx", "--opset", "11"], "opset=11"),
        (["--out", "a.tidl.json", "--scheme", "int4-weights"], r"\bTIDL .*\b8\b.*\b16\b"),
    ],
)
def test_bad_use_is_one_line(arguments: list[str], said: str, run: Run, folder: Path) -> None:
    if "a.onnx" in arguments:
        pytest.importorskip("onnxscript")
    code, out, warned = run("export", *OWN, *arguments)
    assert (code, out) == (2, "")
    assert re.search(said, " ".join(warned.split()))
    assert "Traceback" not in warned
    assert not [path for path in folder.iterdir() if path.name.startswith("a.")]
