"""Networks and data as a user gives them: functions, weights, files that are neither, and files that would run code."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_cases import OWN, Run
from torch import nn

from qkit.commands.source import working_folder

SMALL = ("--samples", "2", "--tap", "input", "--out", "t", "--lane", "float")


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("hacked"),)


def test_a_user_module_and_its_loaders(data: Run) -> None:
    code, told = data("capture", *OWN, *SMALL)
    assert (code, told["model"], told["samples"]) == (0, "usernet:make", 2)


def test_arguments_go_to_the_function(data: Run, run: Run) -> None:
    code, told = data("capture", *OWN, "--argument", "width=10", "--samples", "2", "--out", "t", "--lane", "float")
    assert code == 0
    assert told["errors"]["taps"]["a.0"]["tap"]["shape"] == "10x8x8"
    assert "--argument 'width'" in run("capture", *OWN, "--argument", "width", *SMALL, "--force")[2]
    assert re.search(r"usernet:make .*TypeError: .*'depth'", run("capture", *OWN, "--argument", "depth=1", *SMALL, "--force")[2])


def test_weights_go_into_the_users_module(data: Run, folder: Path) -> None:
    sys.path.insert(0, str(folder))
    import usernet

    model = usernet.make()
    nn.init.zeros_(model.head.weight)
    nn.init.constant_(model.head.bias, 3.0)
    torch.save({"state_dict": model.state_dict()}, "net.pth")
    code, told = data("capture", *OWN, "--weights", "net.pth", "--samples", "2", "--out", "t", "--lane", "float")
    assert code == 0
    assert told["errors"]["taps"]["head"]["float"] == {"min": 3.0, "max": 3.0, "rms": 3.0}


@pytest.mark.parametrize("bare", [True, False])
def test_a_file_that_runs_code_when_unpickled_does_not_run_it(bare: bool, run: Run, folder: Path) -> None:
    if bare:
        Path("net.pth").write_bytes(pickle.dumps({"a": Hostile()}))
    else:
        torch.save({"state_dict": {"a": Hostile()}}, "net.pth")
    code, said, warned = run("capture", *OWN, "--weights", "net.pth", *SMALL)
    assert (code, said) == (2, "")
    assert not Path("hacked").exists()
    assert "net.pth" in warned
    assert "Python objects" in " ".join(warned.split())
    assert "weights_only" not in warned
    assert "Traceback" not in warned
    # that it would have run
    if bare:
        pickle.loads(Path("net.pth").read_bytes())
        assert Path("hacked").exists()


def test_a_whole_pickled_module_is_refused_with_what_to_do(run: Run, folder: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)), "whole.pth")
    code, _, warned = run("capture", *OWN, "--weights", "whole.pth", *SMALL)
    assert code == 2
    said = " ".join(warned.split())
    assert re.search(r"whole\.pth .*torch\.nn\.modules\.container\.Sequential \(", said)
    assert "torch.save(model.state_dict(), path)" in said
    assert "weights_only" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "net.pth"], r"\bnet\.pth\b.*--model\b.*--weights net\.pth"),
        (["--model", "model.safetensors"], r"--model\b.*--weights model\.safetensors"),
        (["--model", "net.pt2"], r"\bnet\.pt2\b"),
        (["--model", "net.tflite"], r"net\.tflite .*\bTFLite\b.*\bONNX\b"),
        (["--model", "net.ts"], r"net\.ts .*\bTorchScript\b.*\bONNX\b"),
        (["--model", "empty.onnx", "--weights", "w.pth"], r"--weights .*\bempty\.onnx\b"),
        (["--model", "empty.onnx", "--argument", "a=1"], r"--argument .*\bempty\.onnx\b"),
        (["--model", "empty.onnx"], r"empty\.onnx .*--data\b"),
        (["--model", "usernet:make", "--data", "usernet:loaders", "--weights-key", "ema"], r"--weights-key\b.*--weights(?!-)"),
        (["--model", "vgg_small", "--weights-key", "ema"], r"--weights-key .*--weights(?!-)"),
        (["--model", "vgg_small", "--range", "255"], r"--range .*--data\b"),
        (["--model", "usernet:make", "--data", "usernet:loaders", "--size", "8"], r"--size .*\bfolder\b"),
        (["--data", "images"], r"--data .*--model\b"),
        (["--weights", "net.pth"], r"--weights .*--model\b"),
        (["--model", "resnet18"], r"\bresnet18 .*\bfolder\b.*--data\b"),
        (["--model", "resnet18", "--data", "usernet:loaders"], r"\bweights .*\bresnet18: "),
        (["--model", "usernet:nothing", "--data", "usernet:loaders"], r"\bmodel\b.*\busernet:nothing .*'nothing'"),
        (["--model", "usernet:make", "--data", "usernet:nothing"], r"\bdata\b.*\busernet:nothing .*'nothing'"),
        (["--model", "usernet:make", "--data", "usernet:wrong"], r"usernet:wrong .*\bint\b.*\(calibration\b"),
        (["--model", "usernet:make", "--data", "usernet:failing"], r"usernet:failing .*RuntimeError: no such disk"),
        (["--model", "usernet:wrong", "--data", "usernet:loaders"], r"usernet:wrong .*\bint\b.*torch\.nn\.Module"),
        (["--model", "usernet:make", "--data", "usernet:loaders", "--classes", "a,b"], r"--classes .*\bfolder\b"),
        (["--model", "vgg_small", "--classes", "a,b"], r"--classes .*--data\b"),
        (["--model", "vgg_small", "--argument", "a=1"], r"--argument .*\bnetwork\b"),
        (["--model", "broken:make", "--data", "usernet:loaders"], r"broken:make .*invalid syntax"),
    ],
)
def test_what_does_not_go_together_is_one_line(arguments: list[str], said: str, run: Run, folder: Path) -> None:
    Path("broken.py").write_text("def make(:\n")
    Path("empty.onnx").touch()
    code, out, warned = run("capture", *arguments, *SMALL)
    assert (code, out) == (2, "")
    assert re.search(said, " ".join(warned.split()))
    assert "Traceback" not in warned
    assert not Path("t").exists()


def test_the_working_directory_is_first_for_the_users_own_modules_and_last_otherwise(folder: Path) -> None:
    before = list(sys.path)
    with working_folder():
        assert sys.path[0] == str(folder)
    assert sys.path == [*before, str(folder)]
    with working_folder():
        pass
    assert sys.path == [*before, str(folder)], "once"


@pytest.mark.slow
def test_the_working_directory_is_searched_where_python_would_not(folder: Path) -> None:
    arguments = ["lint", "--model", "usernet:loud", "--input-size", "1x3x8x8", "--json"]
    done = subprocess.run([sys.executable, "-P", "-m", "qkit", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("{"), "what the model prints is not among the JSON"
    assert "a model that talks" in done.stderr
