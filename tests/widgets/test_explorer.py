"""The layer explorer without a page: the table is the capture's, and every layer leads to its range, weights and maps."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
from small_networks import READS
from studies import fresh_study, kept, nothing_runs, small_study

from qkit import GraphError, QkitError, Study
from qkit.execution.capture import Capture
from qkit.style import decibels, plain, share
from qkit.widgets import Explorer


@cache
def captured() -> Capture:
    return small_study().capture(progress=False)


def explorer(study: Study | None = None, **options: Any) -> Explorer:
    return kept(Explorer(small_study() if study is None else study, **options))


def shown() -> Explorer:
    return explorer(capture=captured())


def column(made: Explorer, head: str, what: str = "values") -> list[Any]:
    at = [each["head"] for each in made.table.columns].index(head)
    return [row[what][at] for row in made.table.rows]


def words(made: Explorer) -> str:
    """What stands in the detail's place where there is nothing to draw."""
    (child,) = made._detail.children
    return str(child.value)


FIGURES = {" SQNR": "sqnr", " local": "local sqnr", " mean error": "mean error", " max error": "max error",
           " clipped": "clipped", " used": "used"}  # fmt: skip


def test_rows_are_the_captures_table() -> None:
    made, table = shown(), captured().table()
    assert made.capture is captured()
    assert [row["name"] for row in made.table.rows] == list(table.index) == list(READS)
    assert column(made, "layer", "texts") == list(READS)
    assert column(made, "kind", "texts") == list(table["tap", "kind"])
    assert column(made, "shape", "texts")[0] == "3×16×16"
    assert column(made, "MACs") == list(table["tap", "macs"])
    assert column(made, "rms") == list(table["float", "rms"])
    for lane in ("int16", "int8"):
        for head, figure in FIGURES.items():
            assert column(made, lane + head) == [plain(value) for value in table[lane, figure]], (lane, figure)
    assert column(made, "int8 SQNR", "texts") == [decibels(value) for value in table["int8", "sqnr"]]
    assert column(made, "int8 clipped", "texts") == [share(value) for value in table["int8", "clipped"]]
    assert made.table.columns[made.table.limit_column]["head"] == "int8 local"
    json.dumps([made.table.rows, made.table.columns, made.table.charts], allow_nan=False)


def test_charts_draw_columns_that_there_are() -> None:
    made = shown()
    assert [chart["name"] for chart in made.table.charts] == ["SQNR", "mean error", "greatest error", "clipped", "used"]
    heads = [each["head"] for each in made.table.columns]
    lines = [(heads[line["column"]], line["label"]) for line in made.table.charts[0]["lines"]]
    assert lines == [
        ("int16 SQNR", "int16, accumulated"), ("int16 local", "int16, local"),
        ("int8 SQNR", "int8, accumulated"), ("int8 local", "int8, local"),
    ]  # fmt: skip
    assert [chart["log"] for chart in made.table.charts] == [False, True, True, True, False]
    looks = {(line["role"], line["shape"], line["dash"]) for line in made.table.charts[0]["lines"]}
    assert len(looks) == 4, "no two lines look alike"


def test_the_noisiest_layer_is_chosen_first() -> None:
    made = shown()
    local = captured().table()["int8", "local sqnr"]
    assert made.selected == made.table.selected == local.idxmin()


def test_captures_in_the_background_by_itself() -> None:
    study = small_study()
    made = explorer(study)
    assert made.capture is None
    assert [row["name"] for row in made.table.rows] == list(READS), "the structure is known at once"
    assert [each["head"] for each in made.table.columns] == ["layer", "kind", "shape"]
    assert made.table.charts == []
    waiting = made._note.value
    assert not re.search(r"\d", waiting)
    assert made._again.layout.display == "none", "nothing was edited"
    made.wait()
    assert made.error == ""
    assert made.capture is not None
    assert made.capture.table().equals(captured().table())
    assert column(made, "int8 SQNR") == [plain(value) for value in captured().table()["int8", "sqnr"]]
    assert re.search(r"\b8\b", made._note.value)
    assert made._note.value != waiting
    other = shown()
    other.wait()
    assert made.selected == other.selected
    twice = explorer(study, batches=2)
    twice.wait()
    assert twice.capture is not None
    assert twice.capture.samples == 16


def test_a_layer_chosen_before_the_capture_stays_chosen() -> None:
    made = explorer()
    made.select("project")
    made.wait()
    assert made.selected == "project"


def test_any_lanes_may_be_given() -> None:
    capture = small_study().capture(("float", "int4", "int8", "int16"), batches=2, progress=False)
    made = explorer(capture=capture)
    assert column(made, "int4 SQNR") == [plain(value) for value in capture.table()["int4", "sqnr"]]
    assert made.table.columns[made.table.limit_column]["head"] == "int16 local"
    assert len({(line["role"], line["shape"]) for line in made.table.charts[1]["lines"]}) == 3


def test_float_alone_can_be_explored() -> None:
    capture = small_study().capture(("float",), progress=False)
    made = explorer(capture=capture)
    assert column(made, "rms") == list(capture.table()["float", "rms"])


def test_no_error_at_all_is_infinite_and_not_missing() -> None:
    study = small_study()
    study = study.with_plan(study.plan.without(["input"]))
    made = explorer(study, capture=study.capture(progress=False))
    assert column(made, "int8 SQNR")[0] == "inf"
    assert column(made, "int8 SQNR", "texts")[0] == "∞"
    assert column(made, "int8 clipped")[0] in (0.0, None)
    assert made.selected != "input"
    json.dumps(made.table.rows, allow_nan=False)
    assert made._repr_mimebundle_()["image/png"].startswith(b"\x89PNG")


def test_selecting_links_table_tuner_and_weights() -> None:
    made = shown()
    made.select("side")
    assert made.selected == made.table.selected == "side"
    assert made.tuner.tensor == "side"
    assert made._detail.children == (made.tuner,)
    assert "conv, 4×8×8" in made._about.value
    made.table.selected = "stem"  # as the page does
    assert made.selected == "stem"
    assert made.tuner.tensor == "stem"
    made.select("project.weight")
    assert made.selected == "project", "a weight stands for its layer"
    assert made.tuner.tensor == "project.weight", "and is opened"


def test_layers_that_are_not_there_are_refused() -> None:
    made = shown()
    before = made.selected
    with pytest.raises(GraphError, match="nowhere"):
        made.select("nowhere")
    assert made.selected == before
    made.table.rows = made.table.rows[1:]
    with pytest.raises(QkitError, match=r"^input\b.*capture"):
        made.select("input")
    assert made.error == ""
    made.table.selected = "nowhere"  # as no page should do
    assert "nowhere" in made.error
    made.select("stem")
    assert made.error == ""


def test_weights_are_shown_channel_by_channel() -> None:
    for scheme in ("int8", "int8-per-tensor"):
        study = small_study(scheme)
        made = explorer(study, capture=study.capture(progress=False))
        made._view.value = "weights per channel"
        for layer, channels in (("stem", 8), ("depthwise", 8), ("side", 4), ("classify", 5)):
            made.select(layer)
            assert made._detail.children == (made._weights,)
            strip = np.frombuffer(made.strip.ranges, np.float32).reshape(5, channels)
            weight = study.graph.weights[f"{layer}.weight"].flatten(1)
            params = study.plan[f"{layer}.weight"].params
            np.testing.assert_array_equal(strip[0], weight.amin(1).numpy())
            np.testing.assert_array_equal(strip[1], weight.amax(1).numpy())
            for row, part in zip(strip[2:], (params.lo, params.hi, params.scale), strict=True):
                np.testing.assert_array_equal(row, np.broadcast_to(part.numpy().astype(np.float32), channels))
            peaks = weight.abs().amax(1)
            assert f"{float(peaks.max() / peaks.min()):.3g}" in made._weight_facts.value
            zero = int((peaks <= params.scale / 2).sum())
            assert f"{zero} of {channels}" in made._weight_facts.value
            assert f"{layer}.weight" in made.strip.title
            one = "one step for all" if scheme == "int8-per-tensor" else "one step per channel"
            assert one in made._weight_facts.value


def test_the_weights_grid_is_that_of_the_edited_plan() -> None:
    made = shown()
    made.tuner.tensor = "side.weight"
    made.tuner.set_range(-0.01, 0.01)
    made._view.value = "weights per channel"
    made.select("side")
    strip = np.frombuffer(made.strip.ranges, np.float32).reshape(5, -1)
    np.testing.assert_allclose(strip[3], 0.01, rtol=1e-3)


def test_what_a_layer_does_not_have_is_said() -> None:
    study = small_study()
    study = study.with_plan(study.plan.without(["side", "side.weight"]))
    made = explorer(study, capture=study.capture(progress=False))
    made.select("side")
    assert re.search(r"\boutput\b.*\bgrid\b", words(made))
    made._view.value = "weights per channel"
    assert re.search(r"\bfloat\b", made._weight_facts.value)
    assert made._tune_weight.disabled
    made.select(":add")
    assert re.search(r"\bweight\b", words(made))
    assert "grid" not in words(made)
    made.select("stem")
    assert not made._tune_weight.disabled
    assert made.error == ""


def test_a_weight_leads_to_the_tuner() -> None:
    made = shown()
    made.select("project")
    made._view.value = "weights per channel"
    made._tune_weight.click()
    assert made._view.value == "range"
    assert made.tuner.tensor == "project.weight"
    assert made._detail.children == (made.tuner,)
    made.select("stem")
    assert made.tuner.tensor == "stem"


def test_feature_maps_are_those_of_the_chosen_layer() -> None:
    made = shown()
    made.select("side")
    made._view.value = "feature maps"
    made.wait()
    assert made._detail.children == (made.maps,)
    for name in ("side", ":cat", "classify"):
        made.select(name)
        made.wait()
        assert made.error == ""
        found = made.maps.maps
        assert found is not None
        whole = captured()[name]
        for lane in ("float", "int16", "int8"):
            np.testing.assert_array_equal(found.lanes[lane].ravel(), whole[lane].values[0].numpy().ravel())


def test_maps_of_a_layer_that_was_left_are_not_shown() -> None:
    made = shown()
    made._view.value = "feature maps"
    made.wait()
    with nothing_runs():
        made.select("side")
        made.select("stem")
        made._view.value = "range"
    made.wait()
    assert made._detail.children == (made.tuner,)
    assert made.tuner.tensor == "stem"


def test_maps_wait_for_the_capture() -> None:
    made = explorer()
    with nothing_runs():
        made.select("stem")
        made._view.value = "feature maps"
        assert re.search(r"\bcapture\b", words(made))
    made.wait()
    assert made._detail.children == (made.maps,)
    assert made.error == ""


def test_the_edited_plan_is_measured_on_demand() -> None:
    made = shown()
    assert made._again.layout.display == "none"
    made.select("stem")
    made.tuner.set_range(0.0, 0.5)
    assert made._again.layout.display == ""
    assert made.plan == made.tuner.plan != small_study().plan
    assert made.study.plan == made.plan
    made._again.click()
    made.wait()
    assert made.error == ""
    assert made.capture is not None
    assert made.capture.plans["int8"] == made.plan
    expected = fresh_study().with_plan(made.plan).capture(progress=False).table()
    assert column(made, "int8 SQNR") == [plain(value) for value in expected["int8", "sqnr"]]
    assert made._again.layout.display == "none"
    assert made.selected == "stem", "the choice stays"
    made.tuner.undo()
    assert made._again.layout.display == "", "now the table is that of another plan"


def test_an_edit_that_is_undone_from_another_layer_needs_no_measuring() -> None:
    made = shown()
    made.select("stem")
    made.tuner.set_range(0.0, 0.5)
    made.select("side")
    assert made._again.layout.display == ""
    made.tuner.undo()
    assert made.plan == small_study().plan
    assert made._again.layout.display == "none"


def test_looking_at_maps_does_not_throw_a_measurement_away() -> None:
    made = shown()
    made._view.value = "feature maps"
    made.wait()
    made.tuner.set_range(-0.5, 0.5)
    with nothing_runs():
        made.measure()
        made.select("project")
    made.wait()
    assert made.capture is not None
    assert made.capture.plans["int8"] == made.plan


def test_maps_are_back_when_a_measurement_is_cancelled() -> None:
    made = shown()
    made._view.value = "feature maps"
    made.wait()
    with nothing_runs():
        made.measure()
        made.select("project")
        made._cancel.click()
    made.wait()
    assert made.capture is captured()
    assert made._detail.children == (made.maps,)
    found = made.maps.maps
    assert found is not None
    np.testing.assert_array_equal(found.lanes["float"], captured()["project"].float.values[0].numpy())


def test_a_failing_capture_is_said_and_the_structure_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    study = fresh_study()

    def broken(*_: Any, **__: Any) -> None:
        raise QkitError("no <images>")

    monkeypatch.setattr(study, "capture", broken)
    made = explorer(study)
    made.wait()
    assert "no &lt;images&gt;" in made.error
    assert made.capture is None
    assert len(made.table.rows) == len(READS)
    made.select("stem")
    assert made.tuner.tensor == "stem"


def test_the_summary_is_the_table_as_it_reads() -> None:
    made = shown()
    frame = made.summary()
    assert list(frame.index) == list(READS)
    assert frame.index.name == "layer"
    assert list(frame["int8 SQNR"]) == [decibels(value) for value in captured().table()["int8", "sqnr"]]
    assert list(explorer().summary().columns) == ["kind", "shape"]
