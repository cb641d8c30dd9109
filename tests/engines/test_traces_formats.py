"""Files of a trace: what is read is what numpy wrote, and what is corrupt or hostile is an error that names the file."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qkit.engines.traces import Manifest, TraceError, formats

dtypes = st.sampled_from([np.dtype(name) for name in formats.DTYPES])
arrays = dtypes.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(max_dims=4, max_side=5), elements=None))
quiet = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quiet
@given(array=arrays, big=st.booleans(), fortran=st.booleans())
def test_npy_is_what_numpy_saved(tmp_path: Path, array: np.ndarray, big: bool, fortran: bool) -> None:
    stored = np.asarray(array, array.dtype.newbyteorder(">" if big else "<"), order="F" if fortran else "C")
    np.save(tmp_path / "a.npy", stored)
    found = formats.npy(tmp_path / "a.npy")
    assert found.shape == array.shape
    np.testing.assert_array_equal(found.read(), np.load(tmp_path / "a.npy"))


#: Any name is read but one with a step upwards, or with a backslash: no array's name is made a path, whatever it looks like.
tensor_names = st.text("abC/._:-0~ é", min_size=1, max_size=12).filter(lambda name: ".." not in name.split("/")[:-1])


@quiet
@given(arrays=st.dictionaries(tensor_names, arrays, min_size=1, max_size=4), packed=st.booleans())
@example(
    arrays={name: np.full(2, float(k)) for k, name in enumerate(["a:/0", "C:/0", "/a", "a/", "a:", ".", ".."])}, packed=False
)
@example(arrays={"a:/0": np.ones(3), "a.npy": np.zeros(1), "a": np.ones(1), "a..b/..c": np.ones(2)}, packed=True)
def test_npz_is_what_numpy_saved(tmp_path: Path, arrays: dict[str, np.ndarray], packed: bool) -> None:
    (np.savez_compressed if packed else np.savez)(tmp_path / "a.npz", **arrays)
    found = formats.npz(tmp_path / "a.npz")
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array)
        assert (found[name].offset is None) == packed


@quiet
@given(array=arrays, big=st.booleans())
def test_raw_is_the_bytes(tmp_path: Path, array: np.ndarray, big: bool) -> None:
    order = "big" if big else "little"
    dtype = formats.dtype_of(array.dtype.name, "a", order)
    (tmp_path / "a.bin").write_bytes(array.astype(dtype).tobytes())
    np.testing.assert_array_equal(formats.raw(tmp_path / "a.bin", dtype, array.shape).read(), array)


@pytest.mark.slow
@quiet
@given(array=arrays, cut=st.integers(1, 64), data=st.data())
def test_no_wrong_size_passes(tmp_path: Path, array: np.ndarray, cut: int, data: st.DataObject) -> None:
    whole = io.BytesIO()
    np.save(whole, array)
    bad = data.draw(st.sampled_from([whole.getvalue()[:-cut], whole.getvalue() + b"\0" * cut]))
    (tmp_path / "a.npy").write_bytes(bad)
    with pytest.raises(TraceError, match=r"a.npy"):
        formats.npy(tmp_path / "a.npy")
    raw = array.tobytes()
    (tmp_path / "a.bin").write_bytes(data.draw(st.sampled_from([raw[:-1], raw + b"\0"])))
    with pytest.raises(TraceError, match=r"a.bin"):
        formats.raw(tmp_path / "a.bin", array.dtype, array.shape)


@quiet
@given(garbage=st.binary(max_size=300), magic=st.booleans())
def test_garbage_is_an_error_that_names_the_file(tmp_path: Path, garbage: bytes, magic: bool) -> None:
    (tmp_path / "a.npy").write_bytes((b"\x93NUMPY\x01\x00" if magic else b"") + garbage)
    (tmp_path / "a.npz").write_bytes((b"PK\x03\x04" if magic else b"") + garbage)
    with pytest.raises(TraceError, match=r"a.npy"):
        formats.npy(tmp_path / "a.npy")
    with pytest.raises(TraceError, match=r"a.npz"):
        formats.npz(tmp_path / "a.npz")


def test_float32_is_not_read_as_float64(tmp_path: Path) -> None:
    np.ones((1, 4, 3, 3), "<f4").tofile(tmp_path / "a.bin")
    with pytest.raises(TraceError, match=r"a\.bin .*\b144\b.*\(1, 4, 3, 3\).*float64.*\b288\b.*int32 .*float32"):
        formats.raw(tmp_path / "a.bin", np.dtype("<f8"), (1, 4, 3, 3))


class Bomb:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    array = np.array([Bomb(mark)], object)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=array)
    (tmp_path / "b.npy").write_bytes(pickle.dumps(Bomb(mark)))
    for path, read in [("a.npy", formats.npy), ("b.npy", formats.npy), ("a.npz", formats.npz)]:
        with pytest.raises(TraceError):
            read(tmp_path / path)
    assert not mark.exists()


@pytest.mark.parametrize("dtype", ["complex64", "int64", "bool", "U3", [("a", "f4")]])
def test_other_numbers_are_refused(tmp_path: Path, dtype: object) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3, dtype))
    with pytest.raises(TraceError, match=rf"a\.npy .*{re.escape(str(np.dtype(dtype)))}.*int8, uint8, .*float64"):
        formats.npy(tmp_path / "a.npy")


@pytest.mark.parametrize("name", ["../evil.npy", "a/../../evil.npy", "..\\evil.npy", "C:\\evil.npy", "a\\b.npy"])
def test_zip_slip(tmp_path: Path, name: str) -> None:
    inside = io.BytesIO()
    np.save(inside, np.ones(3))
    folder = tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a.npz", "w") as archive:
        info = zipfile.ZipInfo()
        info.filename = name
        archive.writestr(info, inside.getvalue())
    with pytest.raises(TraceError, match=rf"a\.npz:{re.escape(repr(name))} .*\barchive\b"):
        formats.npz(folder / "a.npz")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.npz", "folder"]


def test_zip_bomb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros(30_000_000, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 200_000
    with pytest.raises(TraceError, match=r"a\.npz:'a\.npy' .*\b120000128\b.*\b1000000\b.*max_bytes="):
        formats.npz(tmp_path / "a.npz", max_bytes=1_000_000)


def test_many_small_members_are_a_bomb_too(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **{f"a{i}": np.zeros(100_000, np.float32) for i in range(5)})
    with pytest.raises(TraceError, match=r"a\.npz:'a2\.npy' .*\b1200384\b.*\b1000000\b.*max_bytes="):
        formats.npz(tmp_path / "a.npz", max_bytes=1_000_000)


def test_a_header_that_lies_about_the_size(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    said = r".*\b64 bytes\b.*\(1000000000, 1000000000\).*float32.*\b4000000000000000000 bytes"
    with pytest.raises(TraceError, match=rf"a\.npy {said}"):
        formats.npy(tmp_path / "a.npy")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.write(tmp_path / "a.npy")
    with pytest.raises(TraceError, match=rf"a\.npz:\S+ {said}"):
        formats.npz(tmp_path / "a.npz")


def test_a_damaged_member_is_found_when_it_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.random.default_rng(0).standard_normal(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[2000] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(bytes(data))
    with pytest.raises(TraceError, match=r"a\.npz"):
        formats.npz(tmp_path / "a.npz")["a"].read()


def test_a_file_that_shrinks_after_it_was_checked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(1000))
    stored = formats.npy(tmp_path / "a.npy")
    os.truncate(tmp_path / "a.npy", 500)
    with pytest.raises(TraceError, match=r"a\.npy "):
        stored.read()


def test_files_of_a_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out.npy"
    (inside / "deep").mkdir(parents=True)
    np.save(outside, np.ones(3))
    np.save(inside / "deep" / "a.npy", np.ones(3))
    (inside / "b.npy").symlink_to(inside / "deep" / "a.npy")
    assert [p.name for p in formats.files_in(inside)] == ["b.npy", "a.npy"]
    (inside / "c.npy").symlink_to(outside)
    with pytest.raises(TraceError, match=r"c\.npy .*\blink\b"):
        formats.files_in(inside)
    with pytest.raises(TraceError, match=r"out\.npy .*\bfolder\b"):
        formats.files_in(outside)


def test_too_large_empty_or_no_file(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(1000))
    with pytest.raises(TraceError, match=r"a\.npy .*\b8128 bytes\b.*\b100\b.*max_bytes="):
        formats.npy(tmp_path / "a.npy", max_bytes=100)
    (tmp_path / "b.npy").touch()
    with pytest.raises(TraceError, match=r"b\.npy .*\bempty\b"):
        formats.npy(tmp_path / "b.npy")
    os.mkfifo(tmp_path / "c.npy")
    with pytest.raises(TraceError, match=r"c\.npy (?!.*\bempty\b)"):
        formats.npy(tmp_path / "c.npy")


ENTRY = {"file": "a.bin", "tap": "conv1", "dtype": "int8", "shape": [1, 2, 3, 4], "scale": 0.5}


def manifest(**changes: object) -> dict[str, object]:
    return {"format": "qkit-trace", "version": 1, "tensors": [{**ENTRY, **changes}]}


def test_a_manifest_both_ways(tmp_path: Path) -> None:
    data = {
        **manifest(layout="NHWC", zero_point=[1, 2], scale=[0.5, 0.25], convention="divide"),
        "bits": 8,
        "samples": [3, 1],
        "name": "board",
        "defaults": {"byte_order": "big"},
    }
    made = Manifest.from_dict(data)
    made.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json") == made
    (entry,) = made.tensors
    assert entry.step == (2.0, 4.0)
    assert entry.byte_order == "big"
    assert (made.bits, made.samples, made.name) == (8, (3, 1), "board")
    (entry,) = Manifest.from_dict(manifest(byte_order=None, subgraph=3)).tensors
    assert (entry.byte_order, entry.subgraph) == ("little", "3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtpye": "int8"}, r"/dtpye .*\bdtype\b"),
        ({"dtype": "int64"}, r'/dtype .*"int64".*int8\|uint8'),
        ({"file": "../a.bin"}, r'/file .*"\.\./a\.bin".*\bfolder\b'),
        ({"file": "/etc/passwd"}, r'/file .*"/etc/passwd".*\bfolder\b'),
        ({"scale": 0}, r"/scale .*\b0\b.*\b0\b"),
        ({"scale": float("nan")}, r"/scale .*\bNaN\b.*\bfinite\b"),
        ({"scale": True}, r"/scale .*\btrue\b.*\bnumber\b"),
        ({"scale": []}, r"/scale .*\[\]"),
        ({"scale": [0.5, 0.5], "zero_point": [1, 2, 3]}, " has 2 scales and 3 zero points"),
        ({"shape": [1, 0]}, r"/shape/1 .*\b0\b.*\b1\b"),
        ({"shape": []}, r"/shape .*\[\]"),
        ({"shape": 3}, r"/shape .*\b3\b.*\btuple\b"),
        ({"shape": [1, 2, 3], "layout": "NCHW"}, " layout NCHW has 4 axes"),
        ({"layout": "CNHW"}, '/layout .*"CNHW"'),
        ({"layout": "NCCW"}, '/layout .*"NCCW".*once'),
        ({"convention": "times"}, "/convention .*\"times\".*'multiply'.*'divide'"),
        ({"byte_order": "middle"}, "/byte_order .*\"middle\".*'little'.*'big'"),
        ({"zero_point": 1.5}, r"/zero_point .*\b1\.5.*\binteger\b"),
        ({"tap": 3}, r"/tap .*\b3\b.*\bstring\b"),
        ({"tap": ""}, '/tap .*""'),
        ({"data_id": -1}, r"/data_id .*-1\b.*\b0\b"),
    ],
)
def test_a_wrong_manifest_is_an_error_that_says_what(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TraceError, match=f"^the manifest: tensors/0.*{message}"):
        Manifest.from_dict(manifest(**changes))


def test_a_wrong_default_is_named_where_it_stands():
    with pytest.raises(TraceError, match=r"^the manifest: defaults/dtype is "):
        Manifest.from_dict({**manifest(), "defaults": {"dtype": "int64"}})


@pytest.mark.parametrize(
    "data",
    [
        [],
        {},
        {"format": "qkit-trace", "version": 2},
        {**manifest(), "extra": 1},
        {**manifest(), "tensors": {}},
        {**manifest(), "bits": True},
        {**manifest(), "samples": [0, 0]},
        {**manifest(), "tensors": [3]},
    ],
)
def test_what_is_no_manifest(data: object, tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text(json.dumps(data))
    with pytest.raises(TraceError):
        Manifest.load(tmp_path / "m.json")


def test_no_json(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text("[" * 100_000)
    with pytest.raises(TraceError, match=r"m\.json .*\bmanifest\b"):
        Manifest.load(tmp_path / "m.json")
