"""The accuracy benchmark's own machinery: splits, pooling of seeds, resuming, tables, and the way to the user's own images."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import report, run, store
from benchmarks.accuracy.cells import ALONE, BUNDLED, SCHEMES, TREATMENTS, Cell, cells
from benchmarks.accuracy.compute import Settings
from benchmarks.accuracy.pool import pooled
from benchmarks.accuracy.rows import Table
from benchmarks.accuracy.subjects import Source, splits
from qkit import zoo
from qkit.execution.statistics import paired_interval
from qkit.vision import load_torchvision
from qkit.zoo.digits import digits


@pytest.fixture(autouse=True)
def as_it_was():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    assert logging.root.manager.disable == logging.NOTSET


def images_of(dataset):
    return {image.numpy().tobytes() for image in dataset.tensors[0]}


def test_no_seed_touches_the_training_images_and_seed_0_is_the_shipped_split():
    shipped = digits()
    for seed in range(4):
        calibration, evaluation, ids = splits(seed)
        assert (len(calibration), len(evaluation), len(set(ids))) == (256, 741, 741)
        # a scan may be there twice, but not on both sides of a split
        everything = images_of(shipped.calibration) | images_of(shipped.evaluation)
        assert images_of(calibration) | images_of(evaluation) == everything
        assert evaluation.tensors[1].bincount().sub(74).abs().max() <= 3
    calibration, evaluation, ids = splits(0)
    assert torch.equal(evaluation.tensors[0], shipped.evaluation.tensors[0])
    assert torch.equal(calibration.tensors[1], shipped.calibration.tensors[1])
    assert splits(1)[2] != splits(2)[2] != ids


def test_an_id_is_the_same_image_under_every_seed():
    first, second = (dict(zip(s[2], s[1].tensors[0], strict=True)) for s in (splits(0), splits(2)))
    common = sorted(first.keys() & second.keys())
    assert len(common) > 500
    assert all(torch.equal(first[i], second[i]) for i in common)


def test_cells_are_those_that_make_sense():
    every = cells(BUNDLED, SCHEMES, TREATMENTS, 3)
    assert len({cell.id for cell in every}) == len(every)
    assert {c.treatment for c in every if c.scheme in ("float", "int16")} == {"plain"}
    assert not any(c.treatment.startswith("torchao") for c in every if c.scheme == "int8-power-of-two")
    whole = [c for c in every if c.scheme == "int8" and c.network == "vgg_small" and c.seed == 2]
    assert {c.treatment for c in whole} == set(TREATMENTS)
    # all seeds of the columns that answer the question come before the steps one by one
    assert max(i for i, c in enumerate(every) if c.treatment == "ptc") < min(
        i for i, c in enumerate(every) if c.treatment in ALONE
    )


def differences(seed, n=741, share=0.03):
    generator = np.random.default_rng(seed)
    return generator.choice([1.0, 0.0, -1.0], n, p=[share, 1 - 1.5 * share, share / 2])


@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.01, 0.2]))
def test_a_single_seed_is_the_paired_interval(seed, share):
    d = differences(seed, share=share)
    first, second = (d > 0).astype(float), (d < 0).astype(float)
    expected, found = paired_interval(first, second), pooled([(range(741), d)])
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_the_same_images_again_tell_nothing_more_and_others_do():
    d = differences(1)
    one = pooled([(range(741), d)])
    thrice = pooled([(range(741), d)] * 3)
    assert (thrice.value, thrice.low, thrice.high, thrice.n) == pytest.approx((one.value, one.low, one.high, 741))
    others = pooled([(range(741), d), (range(741, 1482), differences(2))])
    together = pooled([(range(1482), np.concatenate([d, differences(2)]))])
    assert (others.low, others.high, others.n) == pytest.approx((together.low, together.high, 1482))
    still = pooled([(splits(seed)[2], np.zeros(741)) for seed in range(3)])
    assert still.n > 900
    assert -0.0037 < still.low < -0.002
    assert still.high == pytest.approx(-still.low)


def test_pooled_intervals_cover_the_mean_of_all_images():
    # images' differences are drawn anew each time; every seed takes 741 of the 997, as the benchmark does
    generator = np.random.default_rng(5)
    p = np.array([0.01, 0.96, 0.03])
    hits = 0
    for _ in range(400):
        image = generator.choice([1.0, 0.0, -1.0], 997, p=p)
        seeds = []
        for _ in range(3):
            order = generator.permutation(997)[:741]
            seeds.append((order.tolist(), image[order]))
        found = pooled(seeds)
        hits += found.low <= p[0] - p[2] <= found.high
    assert 0.92 <= hits / 400 <= 0.99


def test_what_cannot_be_pooled_is_an_error():
    with pytest.raises(ValueError, match="no seeds"):
        pooled([])
    with pytest.raises(ValueError, match="shorter"):
        pooled([(range(3), np.zeros(2))])


@given(st.lists(st.sampled_from([0.0, 1.0]), max_size=40))
def test_hits_are_packed_without_loss(hits):
    assert store.unpacked(store.packed(np.array(hits)), len(hits)).tolist() == hits


def test_only_hits_are_packed():
    with pytest.raises(ValueError, match="hits"):
        store.packed(np.array([0.5]))


def fake(cell, right, n=8, ids=None, **more):
    hits = np.zeros(n)
    hits[:right] = 1.0
    record = {"id": cell.id, **cell.__dict__, "n": n, "hits": store.packed(hits), "seconds": {"wall": 2.0, "processor": 1.0}}
    record |= {"ids": list(ids or range(n))} if cell.scheme == "float" else {}
    return record | ({"more": more} if more else {})


def test_a_run_goes_on_where_it_was_cut(tmp_path, monkeypatch):
    todo = cells(["resnet_small"], ["int8"], ["plain", "ptc"], 2)
    ran = []

    def compute(cell, source, settings, device):
        ran.append(cell.id)
        if cell.treatment == "ptc" and cell.seed == 1 and ran.count(cell.id) == 1:
            raise ValueError("broken")
        return fake(cell, 5)

    monkeypatch.setattr(run, "compute", compute)
    out = tmp_path / "there" / "cells.jsonl"
    first = (todo[:2], out, Source(), Settings())
    assert run.run(*first) == 2
    with out.open("a") as file:
        file.write('{"id": "cut sho')
    assert run.run(todo, out, Source(), Settings()) == len(todo) - 2
    records = store.read(out)
    assert set(records) == {c.id for c in todo}
    assert records["resnet_small/int8/ptc/1"]["error"] == "ValueError: broken"
    assert run.run(todo, out, Source(), Settings()) == 1  # what failed is tried again
    assert run.run(todo, out, Source(), Settings()) == 0
    # other settings of training are none of calibration's
    assert run.run(todo, out, Source(), Settings(epochs=3)) == 0
    assert Settings(epochs=3).of("qat") != Settings().of("qat")
    assert run.run(todo, out, Source(limit=4), Settings()) == len(todo)
    assert run.run(todo, out, Source(limit=4), Settings(), fresh=True) == len(todo)
    monkeypatch.setattr(store, "version", lambda treatment: "new" if treatment == "ptc" else "old")
    assert run.run(todo, out, Source(limit=4), Settings()) == 0
    assert run.run(todo, out, Source(limit=4), Settings(), stale=True) == len(todo)
    assert run.run(todo, out, Source(limit=4), Settings(), stale=True) == 0
    store.compact(out, store.read(out).values())
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == sorted(c.id for c in todo)


def test_versions_depend_on_what_a_treatment_runs():
    assert len({store.version(t) for t in ("plain", "ptc", "mixed", "qat", "ptc + qat", "torchao")}) == 6
    assert store.version("only ranges") == store.version("ptc")


def hand_written():
    records = []
    for seed, ids in ((0, range(8)), (1, range(2, 10))):
        for scheme, treatment, right, more in (
            ("float", "plain", 7, {}),
            ("int8", "plain", 3, {}),
            ("int8", "ptc", 7, {"steps": [step("equalization", True, 0.5), step("ranges", seed == 0, 0.0)]}),
            ("int8", "mixed", 6, {"share": 0.25 + 0.5 * seed}),
            ("int8", "qat", 4 + seed, {"calibration": {"loss": 1.0}}),
            ("int8", "ptc + qat", 6, {"calibration": {"loss": 0.5}}),
            ("int8", "torchao", 3, {}),
            ("int8", "only ranges", 4, {}),
        ):
            cell = Cell("net", scheme, treatment, seed)
            records.append(fake(cell, right, ids=ids, **more) | {"version": str(seed)})
    failed = Cell("net", "int8", "torchao qat", 0)
    records.append({"id": failed.id, **failed.__dict__, "error": "ValueError: no"})
    return {record["id"]: record for record in records}


def step(name, kept, gain):
    return {"step": name, "kept": kept, "gain": {"value": gain, "low": gain, "high": gain}}


def test_rows_of_hand_written_records():
    table = Table(hand_written())
    plain = table.row("net", "int8", "plain")
    assert (plain.exact, plain.score, plain.losses) == (7 / 8, 3 / 8, (0.5, 0.5))
    assert plain.loss.value == pytest.approx(0.5)
    assert plain.loss.n == 10
    assert plain.met is None
    assert table.row("net", "int8", "ptc").met is True
    trained = table.row("net", "int8", "ptc + qat")
    assert trained.losses == (1 / 8, 1 / 8)
    assert trained.met is False
    assert table.row("net", "int8", "torchao qat") is None
    assert table.row("net", "int8", "qat").losses == (3 / 8, 2 / 8)
    gains = {(e["qkit"], e["torchao"]): e["gain"].value for e in table.rivals()}
    assert gains == {("plain", "torchao"): 0.0, ("ptc", "torchao"): pytest.approx(0.5)}
    steps = {e["step"]: e for e in table.steps()}
    assert (steps["equalization"]["kept"], steps["ranges"]["kept"], steps["ranges"]["seeds"]) == (2, 1, 2)
    assert steps["absorption"]["gain"] is None
    assert steps["ranges"]["alone"].value == pytest.approx(1 / 8)


def test_published_figures_stand_apart(tmp_path):
    text = report.write(hand_written(), tmp_path, "by hand")
    measured, _, published = text.partition("**As published, on ImageNet; not measured here**")
    for figure in ("72.938", "72.476", "76.13", "75.052"):
        assert figure in published
        assert figure not in measured
    data = json.loads((tmp_path / "scores.json").read_text())
    assert {row["network"] for row in data["rows"]} == {"net"}
    assert data["errors"] == {"net/int8/torchao qat/0": "ValueError: no"}
    assert "missed" in measured
    assert "50% in 16 bits" in measured
    assert "several versions" in text
    assert (tmp_path / "table.md").read_text() == text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--networks", "alexnet"], r"^alexnet: .*\bmobilenet_v2_hostile\b.*--imagenet"),
        (["--imagenet", "there", "--treatments", "qat"], r"^qat: .*--imagenet .*\bptc\b"),
        (["--tables"], r"\bcells\.jsonl .*--tables"),
    ],
)
def test_wrong_arguments_are_said(tmp_path, arguments, words):
    with pytest.raises(SystemExit, match=words):
        command.main([*arguments, "--out", str(tmp_path)])


@pytest.mark.slow
def test_a_bundled_network_through_the_command(tmp_path, capsys):
    options = ["--quick", "--networks", "resnet_small", "--schemes", "int8", "--out", str(tmp_path)]
    command.main([*options, "--treatments", "plain", "only equalization"])
    assert "resnet_small" in capsys.readouterr().out
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert {(row["scheme"], row["treatment"]) for row in rows} == {("float", "plain"), ("int8", "plain")}
    assert all(abs(row["loss"]["value"]) < 0.03 and row["float"] > 0.95 for row in rows)


@pytest.mark.slow
def test_the_users_own_folder_and_weights(tmp_path):
    # the way that ImageNet would take, with made-up images and random weights
    generator = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("n01", "n02", "n03"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(generator.integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    weights = tmp_path / "weights.pth"
    torch.save(load_torchvision().models.mobilenet_v2(num_classes=3).state_dict(), weights)
    options = ["--imagenet", str(tmp_path / "images"), "--networks", "mobilenet_v2", "--weights", f"mobilenet_v2={weights}"]
    command.main([*options, "--treatments", "plain", "--schemes", "int8", "--seeds", "1", "--limit", "5", "--out", str(tmp_path)])
    records = store.read(tmp_path / "cells.jsonl")
    assert not any("error" in record for record in records.values()), records
    assert len(records) == 2
    assert {record["n"] for record in records.values()} == {5}
    ids = records["mobilenet_v2/float/plain/0"]["ids"]
    assert len(ids) == 5
    assert all(i.startswith("val/n0") for i in ids)
    rows = json.loads((tmp_path / "scores.json").read_text())["rows"]
    assert [row["network"] for row in rows] == ["mobilenet_v2", "mobilenet_v2"]


def test_networks_are_in_the_zoo():
    assert set(BUNDLED) <= set(zoo.names())
