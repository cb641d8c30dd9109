"""Files: whole or as they were, whatever fails and whoever writes; names of files that no two tensors share."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from torch import nn

from qkit import PlanError, QkitError, Study, files
from qkit.commands import config, notebooks, tensorfiles
from qkit.engines import traces
from qkit.engines.plan_files import encodings, ranges
from qkit.engines.plan_files.json_file import read_json
from qkit.engines.traces import Manifest
from qkit.engines.traces.names import layer_infos
from qkit.execution.capture import capture
from qkit.figures.drawing import Picture
from qkit.graph.door.model_files import load_program
from qkit.progress import listening
from qkit.quant.plan import Plan
from qkit.report import read as read_report
from qkit.zoo import checkpoints
from qkit.zoo.classes import read_classes

posix = pytest.mark.skipif(sys.platform == "win32", reason="limits, modes and devices of POSIX")


@cache
def study() -> Study:
    torch.manual_seed(0)
    made = Study(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval(), [torch.randn(4, 3, 8, 8)])
    made.calibrate(progress=False)
    return made


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below the folder, hidden files too."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


#: What the system says of a disk, or of a file, that can take no more.
FULL = {errno.ENOSPC, errno.EFBIG}


def number(refused: pytest.ExceptionInfo[QkitError]) -> int | None:
    """The system's error that an error of the kit tells of."""
    failure = refused.value.__cause__
    while failure is not None and not isinstance(failure, OSError):
        failure = failure.__cause__
    # libraries in other languages leave the number out
    return errno.ENOENT if isinstance(failure, FileNotFoundError) else failure and failure.errno


def explanation(code: int) -> str:
    """What the kit says of an error of the system, and what to do."""
    return files.reason(OSError(code, os.strerror(code)))


@contextlib.contextmanager
def full_disk(room: int = 100) -> Iterator[None]:
    """No file may grow beyond so many bytes: the system's own error in the middle of a write, whoever writes."""
    import resource

    limit, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))


@contextlib.contextmanager
def no_rename() -> Iterator[None]:
    def broken(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", broken)
        yield


# Every kind of writer


def _notebooks(folder: Path) -> None:
    sources = [folder.parent / name for name in ("first", "second")]
    new = not sources[0].exists()
    for source in sources if new else ():
        source.mkdir()
        (source / "a.ipynb").write_text(source.name * 100)
    notebooks.copy(folder / "copy", source=sources[0 if new else 1])


def _capture(folder: Path, name: str, force: bool = True) -> None:
    made = study()
    inputs = [torch.randn(2, 3, 8, 8)]
    with listening(lambda *_: None):
        tensorfiles.write(made.graph, inputs, {"int8": made.plan}, made.graph.taps, folder / name, samples=2, force=force)


def _picture(path: Path) -> None:
    figure = Figure()
    figure.add_subplot().plot([0, 1])
    Picture(figure, "a line").save(path)


#: Writers that replace what they wrote earlier.
WRITERS: dict[str, Callable[[Path], object]] = {
    "plan": lambda folder: study().plan.save(folder / "plan.json"),
    "ranges": lambda folder: ranges.write(study().plan, folder / "ranges.json"),
    "encodings": lambda folder: encodings.write(study().plan, folder / "encodings.json"),
    "manifest": lambda folder: Manifest(name="x" * 200).save(folder / "trace.json"),
    "picture": lambda folder: _picture(folder / "picture.png"),
    "picture in text": lambda folder: _picture(folder / "picture.svg"),
    "configuration": lambda folder: config.write(folder / "qkit.toml", config.mark() + "# …\n" * 100),
    "checkpoint": lambda folder: checkpoints.save(nn.Linear(9, 9), "net", {"scores": {"evaluation": 1.0}}, folder),
    "notebooks": _notebooks,
    "captured folder": lambda folder: _capture(folder, "t"),
    "captured archive": lambda folder: _capture(folder, "t.npz"),
}


@posix
@pytest.mark.parametrize("fault", [full_disk, no_rename])
@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_write_that_fails_leaves_the_earlier_file(kind: str, fault: Any, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    WRITERS[kind](folder)
    before = tree(folder)
    assert before
    with fault(), pytest.raises(QkitError, match="folder") as refused:
        WRITERS[kind](folder)
    assert number(refused) in FULL
    assert tree(folder) == before
    WRITERS[kind](folder)


@posix
@pytest.mark.parametrize("fault", [full_disk, no_rename])
@pytest.mark.parametrize("kind", ["npy", "npz", "raw", "tidl", "reference"])
def test_a_trace_that_fails_leaves_nothing(kind: Any, fault: Any, tmp_path: Path) -> None:
    inputs = [torch.randn(2, 3, 8, 8)]
    with fault(), pytest.raises(traces.TraceError, match="trace") as refused:
        traces.write(study(), tmp_path / "trace", kind=kind, lane="int8", inputs=inputs, frames=2)
    assert number(refused) in FULL
    assert tree(tmp_path) == {}
    traces.write(study(), tmp_path / "trace", kind=kind, lane="int8", inputs=inputs, frames=2)
    before = tree(tmp_path)
    with pytest.raises(
        traces.TraceError, match=rf"{re.escape(str(tmp_path / 'trace'))} .*\b{next((tmp_path / 'trace').iterdir()).name}\b"
    ):
        traces.write(study(), tmp_path / "trace", kind=kind, inputs=inputs, frames=1)
    assert tree(tmp_path) == before


def _kept(folder: Path, batches: int = 2) -> Any:
    inputs = [torch.full((2, 3, 8, 8), float(k)) for k in range(batches)]
    plans = {"int8": study().plan}
    return capture(
        study().graph, inputs, plans, limit=None, keep="all", folder=folder, memory_budget=0, progress=False
    )  # fmt: skip


@posix
@pytest.mark.parametrize("fault", [full_disk, no_rename])
def test_kept_tensors_that_cannot_be_written(fault: Any, tmp_path: Path) -> None:
    with fault(), pytest.raises(QkitError, match=r"kept.*\.safetensors ") as refused:
        _kept(tmp_path / "kept")
    assert number(refused) in FULL
    assert not list((tmp_path / "kept").iterdir())
    _kept(tmp_path / "kept")


def test_a_failing_capture_takes_its_files_away(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(QkitError, match="shape"):
        capture(
            study().graph, [torch.ones(1, 3, 8, 8), torch.ones(1, 9, 8, 8)], {}, limit=None, keep="all", folder=tmp_path,
            memory_budget=0, progress=False,
        )  # fmt: skip
    assert tree(tmp_path) == {"notes.txt": b"mine"}


def test_two_captures_do_not_share_a_folder(tmp_path: Path) -> None:
    first = _kept(tmp_path)
    tap = study().graph.taps[0]
    before, values = tree(tmp_path), first[tap].float.values.clone()
    with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path))} .*\.safetensors"):
        _kept(tmp_path, batches=3)
    assert tree(tmp_path) == before
    assert torch.equal(first[tap].float.values, values)
    for path in tmp_path.iterdir():
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path))}\S+\.safetensors "):
        first[tap]
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path))}\S+\.safetensors ") as refused:
        first[tap]
    assert number(refused) == errno.ENOENT


def test_a_capture_that_comes_between_is_refused_too(tmp_path: Path) -> None:
    """Both began when the folder was empty."""

    class Meanwhile:
        def __iter__(self) -> Iterator[torch.Tensor]:
            _kept(tmp_path)
            yield torch.ones(2, 3, 8, 8)

    with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path))}\S+\.safetensors ") as refused:
        capture(study().graph, Meanwhile(), {"int8": study().plan}, keep="all", folder=tmp_path, memory_budget=0, progress=False)
    assert number(refused) == errno.EEXIST
    assert len(list(tmp_path.iterdir())) == 2 * len(study().graph.taps)


# What a capture's --force replaces


def test_force_replaces_what_the_capture_lists_and_nothing_else(tmp_path: Path) -> None:
    _capture(tmp_path, "t")
    (tmp_path / "t" / "int8" / "notes.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(QkitError, match=r"\bt .*--force"):
        _capture(tmp_path, "t", force=False)
    assert tree(tmp_path) == before
    _capture(tmp_path, "t")
    assert (tmp_path / "t" / "int8" / "notes.txt").read_text() == "mine"
    assert set(tree(tmp_path)) == set(before)
    # a file of one's own, of a name that the capture needs
    index = tmp_path / "t" / "index.json"
    listed = json.loads(index.read_text())
    listed["files"].remove("int8/0.npy")
    index.write_text(json.dumps(listed))
    before = tree(tmp_path)
    with pytest.raises(QkitError, match=r"int8.0\.npy "):
        _capture(tmp_path, "t")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("moves", [1, 10, 25])
def test_a_move_that_fails_half_way_is_undone(moves: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _capture(tmp_path, "t")
    before, plain, count = tree(tmp_path), os.replace, 0

    def failing(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == moves:
            raise OSError(errno.EIO, "Input/output error")
        plain(*arguments, **options)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(QkitError, match=re.escape(str(tmp_path / "t"))) as refused:
        _capture(tmp_path, "t")
    assert number(refused) == errno.EIO
    assert count > moves or moves == 1
    assert tree(tmp_path) == before


def test_force_and_archives(tmp_path: Path) -> None:
    (tmp_path / "t.errors.csv").write_text("mine")
    (tmp_path / "u.npz").write_text("mine")
    before = tree(tmp_path)
    for name in ("t.npz", "u.npz"):
        for force, said in ((False, ".*--force"), (True, "(?!.*--force)")):
            with pytest.raises(QkitError, match=rf"{re.escape(str(tmp_path / name[0]))}\.\S+ {said}"):
                _capture(tmp_path, name, force=force)
    assert tree(tmp_path) == before
    (tmp_path / "t.errors.csv").unlink()
    _capture(tmp_path, "t.npz")
    (tmp_path / "t.npz").rename(tmp_path / "v.npz")
    (tmp_path / "v.errors.csv").write_text("mine")
    with pytest.raises(QkitError, match=r"v\.errors\.csv .*\bv\.npz\b"):
        _capture(tmp_path, "v.npz")
    (tmp_path / "v.errors.csv").unlink()
    _capture(tmp_path, "v.npz")


@posix
def test_a_capture_does_not_leave_its_folder_by_links(tmp_path: Path) -> None:
    _capture(tmp_path, "t")
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "t" / "int8").rename(elsewhere)
    (tmp_path / "t" / "int8").symlink_to(elsewhere)
    before = tree(tmp_path)
    with pytest.raises(QkitError, match=r"int8.\S+ "):
        _capture(tmp_path, "t")
    assert tree(tmp_path) == before


# The writing itself


@posix
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_a_plain_write(mask: int, mode: int, tmp_path: Path) -> None:
    old = os.umask(mask)
    try:
        files.write_text(tmp_path / "new", "x")
        (tmp_path / "plain").write_text("x")
        checkpoints.save(nn.Linear(1, 1), "net", {}, tmp_path)
    finally:
        os.umask(old)
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {mode}
    (tmp_path / "new").chmod(0o640)
    files.write_text(tmp_path / "new", "y")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


@posix
def test_links_stay(tmp_path: Path) -> None:
    deep = tmp_path / "deep"
    deep.mkdir()
    (deep / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("deep/real.json")
    (tmp_path / "dangling.json").symlink_to("deep/later.json")
    (tmp_path / "loop.json").symlink_to("loop.json")
    files.write_text(tmp_path / "link.json", "new")
    files.write_text(tmp_path / "dangling.json", "new")
    assert (deep / "real.json").read_text() == (deep / "later.json").read_text() == "new"
    assert all((tmp_path / name).is_symlink() for name in ("link.json", "dangling.json"))
    with pytest.raises(QkitError, match=r"loop\.json") as refused:
        files.write_text(tmp_path / "loop.json", "new")
    assert number(refused) == errno.ELOOP
    assert (tmp_path / "loop.json").is_symlink()
    _capture(tmp_path, "deep/t.npz")
    (tmp_path / "t.npz").symlink_to("deep/t.npz")
    _capture(tmp_path, "t.npz")
    assert (tmp_path / "t.npz").is_symlink()


@posix
def test_devices_and_pipes_are_written_to(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    files.write_text(f"/dev/fd/{writing}", "through")
    os.close(writing)
    assert os.read(reading, 100) == b"through"
    os.close(reading)
    if Path("/dev/full").exists():
        with pytest.raises(PlanError, match="/dev/full ") as refused:
            study().plan.save("/dev/full")
        assert number(refused) == errno.ENOSPC
        assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_the_block_leaves_the_file(stop: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def half() -> None:
        with files.writing(path) as temporary:
            temporary.write_text("half")
            raise stop

    def half_a_folder() -> None:
        with files.filling(tmp_path / "new" / "folder") as place:
            (place / "half").touch()
            raise stop

    for block in (half, half_a_folder):
        with pytest.raises(stop):
            block()
    assert tree(tmp_path / "new") == {}
    assert path.read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", "new"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("nowhere/a.json", errno.ENOENT),
        ("file/a.json", errno.ENOTDIR),
        ("folder", errno.EISDIR),
        ("x" * 300, errno.ENAMETOOLONG),
    ],
)
def test_paths_that_cannot_be_written(name: str, code: int, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for write in (
        lambda path: files.write_text(path, "x"), lambda path: files.prepare(path, parents=False), study().plan.save,
    ):  # fmt: skip
        with pytest.raises(QkitError, match=re.escape(str(tmp_path / name))) as refused:
            write(tmp_path / name)
        assert number(refused) == code
        assert explanation(code) in str(refused.value)
    assert set(tree(tmp_path)) == {"file", "folder"}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_the_system_says_when_a_file_is_made(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", broken)
    for write in (lambda path: files.write_text(path, "x"), files.prepare):
        with pytest.raises(QkitError, match=r"a\.txt ") as refused:
            write(tmp_path / "a.txt")
        assert number(refused) == code
        assert explanation(code) in str(refused.value)


@contextlib.contextmanager
def somebody() -> Iterator[Path]:
    """An open folder outside root's own, and, where this is root, the rights of nobody."""
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)
        (folder / "closed").mkdir()
        (folder / "closed" / "a.json").write_text("{}")
        (folder / "read-only.txt").write_text("old")
        (folder / "read-only.txt").chmod(0o444)
        (folder / "closed").chmod(0o000)
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            if user == 0:
                os.seteuid(0)
            (folder / "closed").chmod(0o700)


@posix
def test_what_one_may_not_write_or_read() -> None:
    with somebody() as folder:
        for path in (folder / "read-only.txt", folder / "closed" / "a.json", folder / "closed" / "deeper" / "new.json"):
            for write in (lambda path: files.write_text(path, "new", parents=True), files.prepare):
                with pytest.raises(QkitError, match=re.escape(str(path))) as refused:
                    write(path)
                assert number(refused) == errno.EACCES
        assert (folder / "read-only.txt").read_text() == "old"
        for target in ("t", "t.npz"):
            with pytest.raises(QkitError, match=re.escape(str(folder / "closed"))) as refused:
                tensorfiles.check_target(folder / "closed" / target, force=False)
            assert number(refused) == errno.EACCES
        for read in READERS.values():
            with pytest.raises(QkitError, match=re.escape(str(folder / "closed"))) as refused:
                read(folder / "closed" / "a.json")
            assert number(refused) == errno.EACCES


def test_pictures_of_no_format(tmp_path: Path) -> None:
    for name in ("a", "a.tap"):
        with pytest.raises(QkitError, match=r"\.png"):
            _picture(tmp_path / name)


# Reading


READERS: dict[str, Callable[[Path], object]] = {
    "plan": Plan.load,
    "json of other tools": lambda path: read_json(path, "names"),
    "ranges": lambda path: ranges.read(path, study().graph),
    "encodings": lambda path: encodings.read(path, study().graph),
    "manifest": Manifest.load,
    "report": read_report,
    "configuration": lambda path: config.values(path, "lint"),
    "card": checkpoints.read_card,
    "classes": read_classes,
    "program": load_program,
    "layer infos": lambda path: layer_infos([path.with_name("layer_info.txt")]),
    "npy": traces.formats.npy,
    "npz": traces.formats.npz,
}


@pytest.mark.parametrize("kind", list(READERS))
@pytest.mark.parametrize("damage", ["missing", "folder", "denied", "too long"])
def test_what_cannot_be_read(kind: str, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if damage == "too long":
        with pytest.raises(QkitError, match=r"(xxx|layer_info)"):
            READERS[kind](tmp_path / f"{'x' * 300}.json")
        return
    for name in ("a.json", "layer_info.txt"):
        if damage == "folder":
            (tmp_path / name).mkdir()
        elif damage == "denied":
            (tmp_path / name).write_text("{}")

    if damage == "denied":
        import builtins
        import io

        plain = io.open

        def denied(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(str(tmp_path)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return plain(path, *arguments, **options)

        monkeypatch.setattr(io, "open", denied)
        monkeypatch.setattr(builtins, "open", denied)
    with pytest.raises(QkitError, match=r"(a\.json|layer_info\.txt)"):
        READERS[kind](tmp_path / "a.json")


# Names

#: Names that one file system or another would take for one another, or for something else.
NAMES = [
    "a:add", "a_add", "a.add", "a/add", "a\\add", "A:add", "a:Add", "a", "A", "aa", "AA", "Aa", "aA", ".", "..", "...", ".a", "a.",
    "con", "CON", "con.0", "nul", "NUL", "com1", "lpt9.x", "conv", "~", "a~", "a~1", "A~1", "%", "%3a", "%3A", ":", "a%", "*", "?",
    " ", "a ", "é", "e\u0301", "ß", "ss", "SS", "İ", "i", "I", "ı", "\0", "\n", "x" * 300, "X" * 300, "x" * 301, "é" * 100,
    "layer1.0.conv1", "Mixed_5b.branch1x1.BatchNorm", "mixed_5b.branch1x1.batchnorm",
]  # fmt: skip


def _check_names(names: list[str]) -> None:
    made = [files.file_name(name) for name in names]
    assert len({name.casefold() for name in made}) == len(names)
    for name, file in zip(names, made, strict=True):
        assert 0 < len(file) <= 160
        assert file.isascii()
        assert not set(file) & set('/\\:*?"<>| \0')
        assert not file.startswith(".")
        assert not file.endswith(".")
        assert files.named(file) == (file if "~~" in file else name)


def test_no_two_names_have_one_file() -> None:
    _check_names(NAMES)
    assert files.file_name("layer1.0.conv1") == "layer1.0.conv1"


@settings(max_examples=100, deadline=None)
@given(names=st.lists(st.one_of(st.text(min_size=1), st.text("aA.~%:1", min_size=1, max_size=5)), unique=True, max_size=8))
@example(names=["aA", "Aa"])
@example(names=["%~", "~%"])
def test_no_two_names_have_one_file_whatever_they_are(names: list[str]) -> None:
    _check_names(names)


@settings(max_examples=100, deadline=None)
@given(file=st.one_of(st.text(max_size=20), st.text("abAB%~3af.1", max_size=12)))
@example(file="%ff")
@example(file="foo~1")
@example(file="a%3A")
def test_names_of_other_files_are_themselves(file: str) -> None:
    assert files.named(file) == file or files.file_name(files.named(file)) == file


def test_no_two_taps_share_a_file(tmp_path: Path) -> None:
    """Each tap's own numbers come back, by every way of writing them."""
    model = nn.Sequential()
    for name in ("a:add", "a_add", "A", "a", "x" * 300, "X" * 300, "con", "a/codes", "~"):
        model.add_module(name, nn.Conv2d(2, 2, 1))
    x = torch.randn(2, 2, 3, 3)
    made = Study(model.eval(), [x])
    taps = made.graph.taps
    assert len(taps) == 10
    kept = capture(made.graph, [x], {}, keep="all", folder=tmp_path / "kept", memory_budget=0, progress=False)
    truth = {tap: kept[tap].float.values.numpy() for tap in taps}
    with torch.no_grad():
        assert (torch.from_numpy(truth["~"]) - model(x)).abs().max() < 1e-5
    assert len({array.tobytes() for array in truth.values()}) == len(taps)
    tensorfiles.write(made.graph, [x], {"int8": made.plan}, taps, tmp_path / "t", samples=2)
    tensorfiles.write(made.graph, [x], {"int8": made.plan}, taps, tmp_path / "t.npz", samples=2)
    index = json.loads((tmp_path / "t" / "index.json").read_text())
    lowered = [path.relative_to(tmp_path).as_posix().lower() for path in tmp_path.rglob("*")]
    assert len(set(lowered)) == len(lowered)
    with np.load(tmp_path / "t.npz") as archive:
        names = json.loads(str(archive["index"]))["taps"]
        assert len(set(archive.files)) == len(archive.files)
        for tap in taps:
            np.testing.assert_array_equal(np.load(tmp_path / "t" / index["taps"][tap]["lanes"]["float"]["values"]), truth[tap])
            np.testing.assert_array_equal(archive[names[tap]["lanes"]["float"]["values"]], truth[tap])
            np.testing.assert_array_equal(
                archive[names[tap]["lanes"]["int8"]["codes"]],
                np.load(tmp_path / "t" / index["taps"][tap]["lanes"]["int8"]["codes"]),
            )
    for kind in ("npy", "npz", "raw", "tidl"):
        folder = traces.write(made, tmp_path / kind, kind=kind, inputs=[x], frames=2)  # type: ignore[arg-type]
        back = traces.read(folder, made, progress=False)
        for tap in taps:
            np.testing.assert_allclose(back.tensor(tap).values.numpy(), truth[tap], atol=1e-6)
