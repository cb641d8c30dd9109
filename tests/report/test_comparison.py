"""Two reports compared: figures against arithmetic on the scores, what is not alike is said, and what the guard lets pass."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re

import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from report_cases import HOSTILE, Small, image_batches, tiny_study

from qkit import QkitError, Study
from qkit.execution.scores import Scores
from qkit.execution.statistics import Interval, paired_interval
from qkit.report import Comparison, Report, compare, make, write
from qkit.report.comparing.comparison import CHANGES, UNPAIRED, judged


def scored(report: Report, *, misses: int, fingerprint: str | None = "a", wide: int = 0, n: int = 200, **changes) -> Report:
    """The report with other scores: float right everywhere, the lanes wrong on their first so many samples."""
    lanes = {"float": np.ones(n), "int16": np.ones(n), "int8": np.ones(n)}
    lanes["int16"][:wide], lanes["int8"][:misses] = 0, 0
    evaluation = {**report.data["evaluation"], "fingerprint": fingerprint, "samples": n}
    return dataclasses.replace(
        report, scores=Scores("top1", lanes).table(), per_sample=lanes, data={**report.data, "evaluation": evaluation},
        metric={**report.metric, "samples": n}, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def edited(study) -> Report:
    """The same study on the same images, with one range spoilt."""
    other = study.with_plan(study.plan.with_range("second", -0.1, 0.1))
    return make(other, title="A small network", worst=1, sensitivity=False, progress=False)


def test_signature_is_the_agreed_one():
    assert str(inspect.signature(compare)).startswith("(old: 'Report | str | Path', new: 'Report | str | Path', *, tolerance: ")
    assert inspect.signature(compare).parameters["tolerance"].default is None
    assert dataclasses.is_dataclass(Comparison)
    assert Comparison.__dataclass_params__.frozen


def test_the_same_report_has_not_changed(report):
    found = compare(report, report)
    assert (found.paired, found.alike, found.unreadable) == (True, True, "")
    assert (found.layers, found.grids, found.appeared, found.gone, found.differences) == ((), (), (), (), ())
    assert [lane.change.value for lane in found.lanes] == [0.0, 0.0, 0.0]
    assert not found.exceeds(0.0)
    assert not any(why in found.how for why in UNPAIRED.values())


def test_paired_figures(report):
    old, new = scored(report, misses=10), scored(report, misses=18, wide=2)
    found = compare(old, new)
    assert found.paired
    assert [lane.lane for lane in found.lanes] == ["float", "int16", "int8"]
    judged = found.judged
    assert judged.change == paired_interval(new.per_sample["int8"], old.per_sample["int8"])
    assert judged.change.value == pytest.approx(-0.04)
    assert (judged.old_loss.value, judged.new_loss.value) == (pytest.approx(0.05), pytest.approx(0.09))
    assert judged.growth.value == pytest.approx(0.04)
    assert judged.growth.low > 0
    assert found.lanes[1].growth.value == pytest.approx(0.01)
    table = found.table()
    assert table.loc["int8", "change"] == pytest.approx(-0.04)
    assert np.isnan(table.loc["float", "growth"])
    assert any("95.00 % → 91.00 %, −4.00 points" in line and CHANGES["worse"] in line for line in found.lines())


def test_unpaired_figures_are_wider(report):
    old, new = scored(report, misses=10), scored(report, misses=18)
    paired = compare(old, new).judged
    for other, why in (
        (scored(report, misses=18, fingerprint="b"), "other-images"),
        (scored(report, misses=18, fingerprint=None), "unknown-images"),
        (dataclasses.replace(new, per_sample=None), "no-samples"),
        (scored(report, misses=18, n=201), "other-number"),
    ):
        found = compare(old, other)
        assert not found.paired
        assert UNPAIRED[why] in found.how
        assert found.judged.change.low < paired.change.low
        assert found.judged.change.high > paired.change.high
        assert found.judged.change.value == pytest.approx(paired.change.value, abs=1e-3)
        # Newcombe's ends from the two scores' own intervals
        a, b = (Interval(*(r.scores.loc["int8", c] for c in ("score", "low", "high")), n=200) for r in (old, other))
        low = b.value - a.value - np.hypot(b.value - b.low, a.high - a.value)
        assert found.judged.change.low == pytest.approx(low)


@pytest.mark.parametrize(
    ("old", "new", "n", "word"),
    [
        (10, 10, 1000, "same"),
        (60, 10, 1000, "better"),
        (10, 60, 1000, "worse"),
        (1, 1, 40, "perhaps-same"),
        (1, 2, 40, "unclear"),
    ],
)
def test_changes_in_words(report, old, new, n, word):
    found = compare(scored(report, misses=old, n=n), scored(report, misses=new, n=n))
    assert judged(found.judged.change, found.tolerance) == word
    line = next(line for line in found.lines() if line.startswith("int8:"))
    assert line.partition(";")[0].rpartition("]: ")[2] == CHANGES[word]


def test_guard(report):
    old = scored(report, misses=10)
    assert compare(old, scored(report, misses=12)).judged.growth.value == pytest.approx(0.01)
    assert not compare(old, scored(report, misses=12)).exceeds(0.01)
    assert compare(old, scored(report, misses=13)).exceeds(0.01)
    assert not compare(old, scored(report, misses=0)).exceeds(0.0)
    assert compare(old, scored(report, misses=11)).exceeds(0.0)
    for wrong in (-0.1, float("nan"), float("inf")):
        with pytest.raises(QkitError, match="max_loss"):
            compare(old, old).exceeds(wrong)


def test_guard_fails_where_nothing_can_be_read(report):
    old, other = scored(report, misses=10), scored(report, misses=10)
    metric = dataclasses.replace(other, metric={**other.metric, "name": "top5"})
    found = compare(old, metric)
    assert found.exceeds(1.0)
    assert re.search(r"\btop1\b.*\btop5\b", found.unreadable)
    assert found.unreadable in found.lines()[1]
    assert not found.paired
    scores = other.scores.copy()
    scores.loc["int8", "loss"] = float("nan")
    found = compare(old, dataclasses.replace(other, scores=scores))
    assert found.exceeds(1.0)
    assert re.search(r"\bnew\b", found.unreadable)
    assert not re.search(r"\bold\b", found.unreadable)
    assert found.unreadable in found.lines()[1]


@pytest.mark.parametrize("tolerance", [0.0, -1.0, float("nan")])
def test_tolerance_out_of_range(report, tolerance):
    with pytest.raises(QkitError, match="tolerance"):
        compare(report, report, tolerance=tolerance)


def test_an_edited_range_shows(report, edited):
    found = compare(report, edited)
    assert found.paired
    assert found.alike
    assert [grid.tensor for grid in found.grids] == ["second"]
    assert re.search(r"\bmse\b", found.grids[0].old)
    assert re.search(r"\bmanual\b", found.grids[0].new)
    first = found.layers[0]
    assert first.tap == "second"
    assert first.old_local == report.layers.loc["second", ("int8", "local sqnr")]
    assert first.new_local == edited.layers.loc["second", ("int8", "local sqnr")] < first.old_local
    unchanged = {change.tap for change in found.layers}
    assert not unchanged & {"input", "first.0"}, "nothing changed before the edited layer"
    assert found.causes_new is None
    assert any("diagnosis" in line for line in found.lines())


def test_settings_that_differ_are_said():
    base = make(tiny_study(scheme="int8"), worst=0, sensitivity=False, progress=False)
    other_scheme = make(tiny_study(scheme="int4-weights"), worst=0, sensitivity=False, progress=False)
    found = compare(base, other_scheme)
    assert not found.alike
    assert found.judged.lane == "int8 → int4"
    assert {"scheme", "judged lane", "weights"} <= {d.what for d in found.differences if d.matters}
    first = [line.strip() for line in found.lines() if any(line.strip() == str(d) for d in found.differences)]
    assert first == [str(d) for d in found.differences if d.matters]
    less = make(Study(Small(), image_batches(), image_batches(3)), batches=1, worst=0, sensitivity=False, progress=False)
    found = compare(base, less)
    said = {d.what: d for d in found.differences}
    assert (said["evaluation samples"].old, said["evaluation samples"].new) == ("32", "16")
    assert not found.alike
    images = [(x + 1, y) for x, y in image_batches()]
    moved = make(Study(Small(), images, images), worst=0, sensitivity=False, progress=False)
    said = {d.what: d for d in compare(base, moved).differences}
    assert said["evaluation data"].matters
    versions = dataclasses.replace(base, environment={**base.environment, "torch": "9.9"})
    found = compare(base, versions)
    assert found.alike
    assert "torch: " in found.lines()[-1]


def test_other_networks_are_compared_by_name(report):
    layers = report.layers.rename(index={"second": "third"})
    found = compare(report, dataclasses.replace(report, layers=layers, model={**report.model, "macs": 7}))
    assert found.appeared == ("third",)
    assert found.gone == ("second",)
    assert not found.alike


def test_causes_come_and_go(report):
    def cause(kind: str, layer: str) -> dict[str, str]:
        return {"kind": kind, "layer": layer}

    old = dataclasses.replace(report, diagnosis={"causes": [cause("weight-outlier", "a"), cause("bias-shift", "b")]})
    new = dataclasses.replace(report, diagnosis={"causes": [cause("bias-shift", "b"), cause("insufficient-bits", "")]})
    found = compare(old, new)
    assert found.causes_new == (("insufficient-bits", ""),)
    assert found.causes_gone == (("weight-outlier", "a"),)
    said = " ".join(found.lines())
    assert re.search(r"\binsufficient-bits\b.*\bweight-outlier\b.*\ba\.", said), "those that came stand first"
    assert "bias-shift" not in said
    same = compare(old, old)
    assert (same.causes_new, same.causes_gone) == ((), ())
    assert not any("diagnosis" in line or "bias-shift" in line for line in same.lines())


def test_verdicts(report):
    worse = dataclasses.replace(report, verdict={**report.verdict, "verdict": "quantization"})
    before = report.verdict["verdict"]
    assert before != "quantization"
    assert compare(report, worse).verdicts == (before, "quantization")
    assert any(f"{before} → quantization" in line for line in compare(report, worse).lines())


def test_files_are_compared_like_reports(report, edited, tmp_path):
    paths = [write(made, tmp_path / f"{i}.json") for i, made in enumerate((report, edited))]
    assert compare(*paths).to_dict() == compare(report, edited).to_dict() == compare(str(paths[0]), edited).to_dict()
    with pytest.raises(QkitError, match=r"gone\.json"):
        compare(tmp_path / "gone.json", report)


def test_forms(report, edited):
    found = compare(report, edited)
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["lanes"][-1]["lane"] == "int8"
    assert data["grids"][0]["tensor"] == "second"
    text = MarkdownIt("commonmark").enable("table").render(found.to_markdown())
    assert text.count("<table>") == 3
    assert "int8" in repr(found)
    assert "<table" in found._repr_html_()
    assert str(found) == "\n".join(found.lines())


def test_hostile_words_stay_words(report, edited):
    renamed = edited.layers.rename(index=lambda tap: tap + HOSTILE)
    grids = {name + HOSTILE: grid for name, grid in edited.plan["grids"].items()}
    other = dataclasses.replace(
        edited,
        title=HOSTILE,
        layers=renamed,
        plan={**edited.plan, "grids": grids},
        settings={**edited.settings, "scheme": HOSTILE},
    )
    found = compare(report, other)
    assert "<script" not in found._repr_html_()
    tokens = MarkdownIt("commonmark").enable("table").parse(found.to_markdown())
    assert not [t for t in tokens if t.type == "html_block"]
    inline = [c for t in tokens if t.type == "inline" for c in t.children]
    assert not [c for c in inline if c.type in ("html_inline", "link_open", "image")]


def test_a_lane_without_intervals_is_no_obstacle(report):
    scores = report.scores.astype(float).copy()
    scores[["low", "loss low"]] = -np.inf
    scores[["high", "loss high"]] = np.inf
    odd = dataclasses.replace(report, scores=scores, per_sample=None)
    found = compare(odd, odd)
    assert not found.exceeds(0.0)
    json.dumps(found.to_dict(), allow_nan=False)
    assert isinstance(found.table(), pd.DataFrame)
