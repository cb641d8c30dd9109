"""Reports read back: equal to what was written, and refused with the place named where they are damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from qkit import Plan, QkitError
from qkit.report import read, write
from qkit.report.page import html
from qkit.report.reading import from_dict


def damaged(path: Path, change: Any) -> Path:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def path(report, tmp_path) -> Path:
    return write(report, tmp_path / "report.json")


def test_what_is_read_is_what_was_written(report, full, tmp_path):
    for made in (report, full):
        again = read(write(made, tmp_path / "r.json"))
        assert again.to_dict() == made.to_dict()
        for frame in ("scores", "layers", "weights", "sensitivity"):
            pd.testing.assert_frame_equal(getattr(again, frame), getattr(made, frame), check_dtype=False, check_index_type=False)
        assert {k: v.tolist() for k, v in again.per_sample.items()} == {k: v.tolist() for k, v in made.per_sample.items()}


def test_what_is_read_makes_the_same_page(full, tmp_path):
    again = read(write(full, tmp_path / "r.json"))
    assert html.render(again) == html.render(full)
    for suffix in (".md", ".csv"):
        assert write(again, tmp_path / f"a{suffix}").read_text() == write(full, tmp_path / f"b{suffix}").read_text()


def test_the_plan_in_it_is_the_studys(study, report, path):
    plan = Plan.from_dict(json.loads(path.read_text())["plan"])
    assert plan == study.plan
    assert plan.name == study.plan.name


def test_no_such_file_and_no_text(tmp_path):
    with pytest.raises(QkitError, match=r"nowhere\.json cannot be read: there is no such file"):
        read(tmp_path / "nowhere.json")
    with pytest.raises(QkitError, match="cannot be read"):
        read(tmp_path)
    (tmp_path / "page.json").write_bytes(b"\xff\xfe\x00{")
    with pytest.raises(QkitError, match=r"page\.json cannot be read as a report: it is not text"):
        read(tmp_path / "page.json")


def test_cut_short(path):
    path.write_text(path.read_text()[:2000])
    with pytest.raises(QkitError, match=r"report\.json cannot be read as a report"):
        read(path)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_json_does_not_have(path, constant):
    path.write_text(path.read_text().replace('"deviation": ', f'"deviation": {constant}, "was": ', 1))
    with pytest.raises(QkitError, match=f"{constant} stands for a number"):
        read(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", '"report"', "{}", '{"format": 2}', "[" * 100_000])
def test_other_json_is_no_report(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(QkitError, match=r"other\.json.*(no degradation report|cannot be read)"):
        read(tmp_path / "other.json")


def test_other_versions_are_refused(path):
    for version in (1, 3, "2", None):
        with pytest.raises(QkitError, match=r"format .*, this version reads 2: make the report again"):
            read(damaged(path, lambda data, v=version: data.update(format=v)))


CHANGES = {
    "layers is missing": lambda d: d.pop("layers"),
    "verdict/reason is missing": lambda d: d["verdict"].pop("reason"),
    'verdict/verdict is "maybe"': lambda d: d["verdict"].update(verdict="maybe"),
    "scores/int8/loss is null": lambda d: d["scores"]["int8"].update(loss=None),
    'scores/int8/score is "high"': lambda d: d["scores"]["int8"].update(score="high"),
    "layers/second/int8/sqnr is true": lambda d: d["layers"]["second"]["int8"].update(sqnr=True),
    "layers/second/int8/scale is missing": lambda d: d["layers"]["second"]["int8"].pop("scale"),
    "metric/samples is 0, but should be greater than or equal to 1": lambda d: d["metric"].update(samples=0),
    "surprise should not be there": lambda d: d.update(surprise=1),
    "per_sample/int8 has 31 scores": lambda d: d["per_sample"].update(int8=d["per_sample"]["int8"][1:]),
    'per_sample/int8 is "2': lambda d: d["per_sample"].update(int8="2" + d["per_sample"]["int8"][1:]),
    "per_sample/int16 has none scores": lambda d: d["per_sample"].pop("int16"),
    "narrow is 'int4', which is none of the lanes": lambda d: d.update(narrow="int4"),
    "scores has the lanes": lambda d: d["scores"].pop("int16"),
    "layers/second has the groups": lambda d: d["layers"]["second"].pop("int16"),
    "worst names 'elsewhere'": lambda d: d["worst"][0].update(tap="elsewhere"),
    "worst: second has 159 counts and 161 edges": lambda d: d["worst"][0]["histogram"]["counts"].pop(),
    "plan/grids/second/qmin is missing": lambda d: d["plan"]["grids"]["second"].pop("qmin"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_damage_is_named(path, said):
    with pytest.raises(QkitError, match="make the report again") as caught:
        read(damaged(path, CHANGES[said]))
    assert f"report.json: {said}" in str(caught.value)


def test_plan_and_maps_are_checked_too(full):
    data = full.to_dict()
    data["plan"]["grids"]["second"]["scale"] = -1.0
    with pytest.raises(QkitError, match="plan/grids/second is no grid"):
        from_dict(data)
    data = full.to_dict()
    tap = next(iter(data["maps"]))
    for damage in ({"shape": [3, 9, 8]}, {"float": "AAAA"}, {"quantized": "no base64"}):
        with pytest.raises(QkitError, match=f"maps/{tap} is no image"):
            from_dict(data | {"maps": {tap: data["maps"][tap] | damage}})


def test_words_that_look_like_infinity_stay_words(report):
    data = report.to_dict()
    data["title"] = data["notes"]["inf"] = "inf"
    again = from_dict(data)
    assert again.title == "inf"
    assert again.notes == {"inf": "inf"}
    assert again.to_dict() == data
