"""``qkit capture``: what is in the files, against torch's own forward pass and arithmetic; what is refused; interrupts."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from command_cases import OWN, Run

from qkit import Study
from qkit.commands import tensorfiles
from qkit.engines import traces
from qkit.errors import QkitError


@pytest.fixture
def net(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(folder)
    import usernet

    return usernet


def floats(net: Any, count: int) -> dict[str, np.ndarray]:
    """The taps of the user's network by torch alone, over the first evaluation samples."""
    model, x = net.make(), torch.cat([pair[0] for pair in net.loaders()[1]])[:count]
    with torch.no_grad():
        a = model.a(x)
        b = model.b(a)
        joined = torch.relu(b + a)
        return {"input": x.numpy(), "a.0": a.numpy(), "b": b.numpy(), "head": model.head(joined.mean((2, 3))).numpy()}


def test_a_folder_holds_what_the_network_computes(data: Run, net: Any, folder: Path) -> None:
    code, told = data("capture", *OWN, "--samples", "11", "--out", "t")
    assert code == 0
    index = json.loads(Path("t/index.json").read_text())
    assert index["samples"] == told["samples"] == 11, "from two batches, the second in part"
    assert set(told["taps"]) == set(index["taps"])
    for tap, expected in floats(net, 11).items():
        entry = index["taps"][tap]["lanes"]
        written = np.load(Path("t") / entry["float"]["values"], allow_pickle=False)
        assert written.dtype == np.float32
        np.testing.assert_allclose(written, expected, atol=1e-5)
        for lane, dtype in (("int16", np.int16), ("int8", np.int8)):
            codes = np.load(Path("t") / entry[lane]["codes"], allow_pickle=False)
            values = np.load(Path("t") / entry[lane]["values"], allow_pickle=False)
            assert codes.dtype == dtype
            assert list(codes.shape) == entry[lane]["shape"] == list(expected.shape)
            scale, zero = np.float32(entry[lane]["scale"]), entry[lane]["zero_point"]
            np.testing.assert_array_equal((codes.astype(np.float32) - zero) * scale, values)
            assert entry[lane]["qmin"] <= codes.min() <= codes.max() <= entry[lane]["qmax"]
            # 8 bits and 16 of the whole network are not far from float here
            assert np.abs(values - expected).mean() < (0.1 if lane == "int8" else 0.001)
    table = pd.read_csv("t/errors.csv", index_col=0)
    noise = np.load("t/values/int8/head.npy").astype(np.float64) - np.load("t/float/head.npy")
    sqnr = 10 * np.log10(np.square(np.load("t/float/head.npy").astype(np.float64)).sum() / np.square(noise).sum())
    assert table.loc["head", "int8 sqnr"] == pytest.approx(sqnr, abs=1e-3)
    assert json.loads(Path("t/errors.json").read_text()) == told["errors"]
    assert told["bytes"] == sum(path.stat().st_size for path in Path("t").rglob("*") if path.is_file())
    assert sorted(told["files"]) == sorted(str(path) for path in Path("t").rglob("*") if path.is_file())


@pytest.mark.parametrize("lane", ["float", "int8", "int16"])
def test_each_lane_reads_back_as_a_trace(lane: str, data: Run, net: Any) -> None:
    assert data("capture", *OWN, "--samples", "4", "--out", "t")[0] == 0
    calibration, evaluation = net.loaders()
    study = Study(net.make(), calibration, evaluation)
    study.calibrate("mse")
    read = traces.read(Path("t") / lane, study)
    assert read.alignment.ok, read.alignment
    assert set(read.taps) == set(study.graph.taps)
    assert (read.name, read.bits) == (lane, {"float": 32, "int8": 8, "int16": 16}[lane])
    mine = study.capture(("float", "int16", "int8"), keep=["b"])["b"][lane]
    theirs = read.tensor("b")
    if lane == "float":
        torch.testing.assert_close(theirs.values, mine.values[:4])
    else:
        assert mine.codes is not None
        assert torch.equal(theirs.codes, mine.codes[:4])
        assert theirs.params is not None
        assert torch.equal(theirs.params.scale, mine.scale)


def test_an_archive_holds_the_same(data: Run) -> None:
    assert data("capture", *OWN, "--samples", "5", "--out", "t")[0] == 0
    assert data("capture", *OWN, "--samples", "5", "--out", "t.npz")[0] == 0
    with np.load("t.npz", allow_pickle=False) as archive:
        index = json.loads(str(archive["index"]))
        assert index["samples"] == 5
        for tap, described in index["taps"].items():
            entry = described["lanes"]["int8"]
            name = Path(json.loads(Path("t/index.json").read_text())["taps"][tap]["lanes"]["int8"]["codes"]).name
            np.testing.assert_array_equal(archive[entry["codes"]], np.load(Path("t/int8") / name))
            np.testing.assert_array_equal(archive[entry["values"]], np.load(Path("t/values/int8") / name))
            np.testing.assert_array_equal(archive[f"float/{tap}"], np.load(Path("t/float") / name))
            assert archive[f"int8/{tap}/scale"] == np.float32(entry["scale"])
            assert archive[f"int8/{tap}/zero_point"] == entry["zero_point"]
    assert Path("t.errors.csv").read_text() == Path("t/errors.csv").read_text()
    assert not [path for path in Path().iterdir() if path.name.startswith(".t")], "nothing is left beside it"


def test_what_is_there_stays(run: Run, data: Run, folder: Path) -> None:
    one = ("capture", *OWN, "--tap", "input", "--samples", "1")
    assert run(*one, "--out", "t")[0] == 0
    Path("t/int8/notes.txt").write_text("mine")
    code, said, warned = run(*one, "--out", "t")
    assert (code, said) == (2, "")
    assert re.search(r"\bt .*--force", warned)
    assert data("capture", *OWN, "--tap", "head", "--samples", "1", "--out", "t", "--force", "--lane", "int4")[0] == 0
    left = {path.relative_to("t").as_posix() for path in Path("t").rglob("*") if path.is_file()}
    assert "int8/notes.txt" in left
    assert not [name for name in left if "input" in name or "int16" in name], "the earlier capture's own files are gone"
    for name in ("theirs", "hostile"):
        Path(name).mkdir()
        Path(name, "keep.txt").write_text("mine")
    assert "theirs" in run(*one, "--out", "theirs", "--force")[2]
    Path("hostile/index.json").write_text(
        json.dumps({"format": tensorfiles.FORMAT, "files": ["../theirs/keep.txt"], "lanes": [".."]})
    )
    assert run(*one, "--out", "hostile", "--force")[0] == 0
    assert Path("theirs/keep.txt").read_text() == "mine", "nothing outside the folder is removed"
    Path("x.npz").write_text("mine")
    assert re.search(r"x\.npz .*--force", run(*one, "--out", "x.npz")[2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--tap", "hed"], r"\btap .*\bNet .*'hed'.*\bhead\b"),
        (["--tap", "z*"], r"\btap .*\bNet .*'z\*'"),
        (["--lane", "int9000x"], r"\blane 'int9000x'"),
        (["--max-mib", "0.001"], r"--max-mib 0\.001\b"),
        (["--out", "usernet.py"], r"\busernet\.py .*\bfile\b"),
        (["--out", "usernet.py/t"], r"usernet\.py/t\b"),
        (["--samples", "0"], "'--samples'"),
    ],
)
def test_bad_use_writes_nothing(arguments: list[str], said: str, run: Run, folder: Path) -> None:
    code, out, warned = run("capture", *OWN, *arguments)
    assert (code, out) == (2, "")
    assert re.search(said, " ".join(warned.split()))
    assert {path.name for path in folder.iterdir()} <= {"usernet.py", "__pycache__"}


def test_an_interrupt_keeps_the_batches_before_it(data: Run, net: Any) -> None:
    # the first batch is looked at, and then the capture's own: its third is interrupted
    net_late = ("--model", "usernet:make", "--data", "usernet:late")
    code, told = data("capture", *net_late, "--samples", "32", "--out", "t")
    assert code == 130
    assert told["interrupted"]
    index = json.loads(Path("t/index.json").read_text())
    assert index["samples"] == told["samples"] == 16
    for tap, expected in floats(net, 16).items():
        written = np.load(Path("t") / index["taps"][tap]["lanes"]["float"]["values"])
        np.testing.assert_allclose(written, expected, atol=1e-5)


def test_a_batch_that_was_interrupted_half_way_is_cut_off(net: Any, tmp_path: Path) -> None:
    """Ctrl-C between two taps of a batch: no file has more samples than the others."""
    study = Study(net.make(), net.loaders()[0])
    asked = 0

    class Stopping(dict[str, Any]):
        def __getitem__(self, lane: str) -> Any:
            nonlocal asked
            asked += 1
            if asked == 9:
                os.kill(os.getpid(), signal.SIGINT)
            return super().__getitem__(lane)

    target = tmp_path / "t"
    plans = Stopping({"int8": study.plan})
    made = tensorfiles.write(study.graph, study.evaluation, plans, study.graph.taps, target, samples=32)
    assert made.interrupted
    assert 0 < made.samples < 32
    arrays = [np.load(path) for path in target.rglob("*.npy")]
    assert len(arrays) == 3 * len(study.graph.taps)
    assert {len(array) for array in arrays} == {made.samples}


def test_memory_holds_a_batch(net: Any, tmp_path: Path) -> None:
    study = Study(net.make(), net.loaders()[0])
    study.calibrate()
    alive: list[int] = []

    class Counting:
        def __iter__(self) -> Iterator[torch.Tensor]:
            for batch in net.batches(3, count=12):
                yield batch
                alive.append(made_bytes(tmp_path / "t"))

    def made_bytes(folder: Path) -> int:
        return sum(path.stat().st_size for path in folder.rglob("*.npy"))

    target = tmp_path / "t"
    made = tensorfiles.write(study.graph, Counting(), {"int8": study.plan}, study.graph.taps, target, samples=10**6)
    assert made.samples == 96
    assert not made.interrupted
    growth = np.diff(alive)
    assert (growth > 0).all(), "every batch is on disk before the next one is asked for"
    needed = tensorfiles.bytes_needed(study.graph, {"int8": study.plan}, study.graph.taps, 96)
    assert needed <= made_bytes(target) <= needed + 200 * len(list(target.rglob("*.npy")))


def test_two_taps_of_one_file_name_do_not_meet(tmp_path: Path) -> None:
    class Twins(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.A = torch.nn.Linear(2, 2)
            self.a = torch.nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(torch.relu(self.A(x)))

    x = torch.randn(3, 2)
    study = Study(Twins().eval(), [x])
    made = tensorfiles.write(study.graph, [x], {}, study.graph.taps, tmp_path / "t", samples=3)
    names = [path.name.lower() for path in made.files if path.suffix == ".npy"]
    assert len(set(names)) == len(names) == len(study.graph.taps)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QkitError, match=re.escape(str(tmp_path / "file" / "t"))):
        tensorfiles.check_target(tmp_path / "file" / "t", force=False)
