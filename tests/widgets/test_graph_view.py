"""The network's picture without a page: boxes and colours as the page gets them, measuring, opening, comparing."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from studies import fresh_study, kept, nothing_runs, small_study

from qkit import GraphError, QkitError, Study
from qkit.execution.capture import Capture
from qkit.style import decibels
from qkit.widgets import Explorer, GraphView


@cache
def captured() -> Capture:
    return small_study().capture(progress=False)


def graph_view(study: Study | None = None, **options: Any) -> GraphView:
    return kept(GraphView(small_study() if study is None else study, **options))


def shown() -> GraphView:
    return graph_view(capture=captured())


def ask(view: GraphView, event: str, **message: str) -> None:
    """What the page sends."""
    view._asked(view.canvas, {"event": event, **message}, [])


def texts(view: GraphView) -> dict[str, str]:
    return {box["key"]: text for box, text in zip(view.canvas.boxes, view.canvas.texts, strict=True)}


def test_boxes_have_the_captures_figures() -> None:
    view, table = shown(), captured().table()
    found = texts(view)
    for name, value in table["int8", "sqnr"].items():
        assert found[str(name)] == f"{decibels(value)} dB"
    assert view.canvas.missing == ""
    assert [node[0] for node in view.canvas.nodes] == [node.name for node in view.network.nodes]
    worst = min(table.index, key=lambda name: table.loc[name, ("int8", "sqnr")])
    shares = {box["key"]: share for box, share in zip(view.canvas.boxes, view.canvas.shares, strict=True)}
    assert shares[worst] == [1.0]


def test_it_captures_by_itself_when_nothing_is_given() -> None:
    with nothing_runs():
        view = graph_view()
        assert view.canvas.doing
        assert set(view.canvas.missing.split(", ")) == {"int8"}
        assert {share for of_box in view.canvas.shares for share in of_box} == {None}
    view.wait()
    assert view.error == ""
    assert view.canvas.doing == view.canvas.missing == ""
    assert texts(view)["stem"] == texts(shown())["stem"]


def test_what_is_missing_is_measured_when_asked_for() -> None:
    view = shown()
    view.canvas.figure = "loss"
    assert view.canvas.missing == "int8"
    ask(view, "measure")
    view.wait()
    assert view.canvas.missing == ""
    swept = small_study().sensitivity("only", progress=False)
    losses = swept.table()["loss"]
    found = texts(view)
    assert all(found[name] == view.quantities["loss"].words(value) for name, value in losses.items())
    view.colour("gradient")
    view.measure()
    view.wait()
    assert sum(text == "1." for text in texts(view).values()) == 1


def test_a_measurement_can_be_cancelled() -> None:
    view = shown()
    view.colour("loss")
    with nothing_runs():
        ask(view, "measure")
        assert view.canvas.doing
        ask(view, "cancel")
        view.wait()
    assert view.canvas.doing == ""
    assert view.canvas.missing == "int8"


def test_results_that_are_there_are_taken() -> None:
    swept = small_study().sensitivity("only", progress=False)
    ranking = small_study().sensitivity("gradient", progress=False)
    view = graph_view(capture=captured(), sensitivity=swept, ranking=ranking)
    for figure in view.quantities:
        view.colour(figure)
        assert view.canvas.missing == "", figure
    with pytest.raises(QkitError, match="only"):
        view.take(sensitivity=small_study().sensitivity("except", progress=False))


def test_two_lanes_as_difference_and_side_by_side() -> None:
    view, table = shown(), captured().table()
    view.colour("local", "int8", against="int16")
    apart = table.loc["stem", ("int8", "local sqnr")] - table.loc["stem", ("int16", "local sqnr")]
    assert texts(view)["stem"].startswith(decibels(apart))
    assert view.canvas.legend["signed"]
    assert all(len(of_box) == 1 for of_box in view.canvas.shares)
    view.colour("local", "int8", against="int16", beside=True)
    assert all(len(of_box) == 2 for of_box in view.canvas.shares)
    assert not view.canvas.legend["signed"]
    view.colour("macs", against="int16")
    assert all(len(of_box) == 1 for of_box in view.canvas.shares), "the same in all lanes"


def test_two_plans_are_compared() -> None:
    study = small_study()
    narrow = study.plan.with_range("depthwise", 0.0, 0.03)
    view = graph_view(lanes={"as is": study.plan, "narrow": narrow})
    view.wait()
    view.colour("local", "narrow", against="as is")
    shares = {box["key"]: share[0] for box, share in zip(view.canvas.boxes, view.canvas.shares, strict=True)}
    assert shares["depthwise"] == 1.0
    assert all(share == 0 for key, share in shares.items() if key in ("input", "stem", "side") and share is not None)


def test_a_lane_is_added_and_measured_alone() -> None:
    view = shown()
    view.add_lane("narrow", small_study().plan.with_range("depthwise", 0.0, 0.03))
    view.colour("local", "narrow", against="int8")
    assert view.canvas.missing == "narrow"
    view.measure()
    view.wait()
    assert view.canvas.missing == ""
    for name in ("narrow", "float"):
        with pytest.raises(QkitError, match=name):
            view.add_lane(name, small_study().plan)


def test_bits_are_those_of_the_plan() -> None:
    view = shown()
    view.colour("bits", "int16")
    assert texts(view)["stem"] == "16 bits"
    view.colour("bits", "int8")
    assert texts(view)["stem"] == "8 bits"


@pytest.mark.parametrize(
    ("options", "word"),
    [({"figure": "colour"}, "colour"), ({"lanes": ("float",)}, "float"), ({"lanes": ("int99",)}, "99")],
)
def test_what_does_not_exist_is_an_error(options: dict[str, Any], word: str) -> None:
    with pytest.raises(QkitError, match=word):  # noqa: PT012 # a lane is made when it is needed
        view = graph_view(**options)
        view.wait()
        if view.error:
            raise QkitError(view.error)


def test_unknown_lanes_and_blocks_are_errors_and_change_nothing() -> None:
    view = shown()
    with pytest.raises(QkitError, match="int3"):
        view.colour("local", "int3")
    with pytest.raises(QkitError, match="nowhere"):
        view.unfold("nowhere")
    with pytest.raises(GraphError, match="nowhere"):
        view.select("nowhere")
    view.canvas.lane = "int3"  # as a page that is out of date would
    assert "int3" in view.error
    assert view.canvas.lane == "int8"
    ask(view, "fly")
    assert "fly" in view.error


# blocks


@cache
def deep_study() -> Study:
    """Two levels of blocks."""
    import torch
    from torch import nn

    def block() -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))

    torch.manual_seed(1)
    model = nn.Sequential()
    model.add_module("body", nn.Sequential(block(), block()))
    model.add_module("head", nn.Conv2d(3, 2, 1))
    made = Study(model.eval(), [torch.randn(4, 3, 6, 6)])
    made.calibrate("minmax", progress=False)
    return made


def keys(view: GraphView) -> list[str]:
    return [box["key"] for box in view.canvas.boxes if not box["opened"]]


def test_blocks_open_and_close() -> None:
    view = graph_view(deep_study(), figure="macs")
    ask(view, "level", key="none")
    assert keys(view) == ["input", "body", "head", "output"]
    ask(view, "toggle", key="body")
    assert keys(view) == ["input", "body.0", "body.1", "head", "output"]
    ask(view, "toggle", key="body.1")
    assert keys(view) == ["input", "body.0", "body.1.0", "body.1.2", "head", "output"]
    ask(view, "level", key="all")
    assert len(keys(view)) == len(view.network.nodes)
    view.fold("body")
    assert keys(view) == ["input", "body", "head", "output"]
    view.unfold("body.0")
    assert "body.0.0" in keys(view)
    macs = {op.name: op.macs for op in deep_study().graph.operations}
    view.fold()
    assert int(re.sub(r"\D", "", texts(view)["body"])) == sum(macs[name] for name in macs if name.startswith("body"))


def test_choosing_what_is_hidden_opens_what_is_around_it() -> None:
    view = graph_view(deep_study(), figure="macs")
    view.fold()
    ask(view, "reveal", key="body.1.2")
    assert view.selected == view.canvas.selected == "body.1.2"
    assert "body.1.2" in keys(view)
    assert "body.0" in keys(view), "the other block stays closed"
    view.select("body.0.2.weight")
    assert view.selected == "body.0.2"


# the chosen box


def test_the_chosen_box_has_its_figures_and_pictures() -> None:
    view = shown()
    view.selected = "depthwise"
    view.wait()
    facts = dict(view.canvas.facts)
    assert facts["layer"] == "depthwise"
    assert facts["weight"] == "depthwise.weight"
    assert f"{decibels(captured().table().loc['depthwise', ('int8', 'local sqnr')])} dB" in facts.values()
    assert len(view.canvas.pictures) == 2
    assert all(picture.startswith("<svg") and "var(--qkit-" in picture for picture in view.canvas.pictures)
    assert [action for action, _ in view.canvas.actions] == ["range", "weight", "maps"]


def test_of_two_choices_the_last_has_the_pictures() -> None:
    view = shown()
    view.selected = "depthwise"
    view.selected = "stem"
    view.wait()
    assert dict(view.canvas.facts)["layer"] == "stem"
    assert len(view.canvas.pictures) == 2
    view.selected = ""
    view.wait()
    assert view.canvas.facts == view.canvas.pictures == view.canvas.actions == []


def test_opening_leads_to_tuner_weight_and_maps() -> None:
    view = shown()
    ask(view, "open", key="depthwise", action="")
    assert view.error == ""
    assert view.tuner.tensor == "depthwise"
    assert view._detail.children == (view.tuner,)
    ask(view, "open", key="depthwise", action="weight")
    assert view.tuner.tensor == "depthwise.weight"
    ask(view, "open", key="stem", action="maps")
    view.wait()
    assert view._detail.children == (view._maps,)
    ask(view, "open", key=":flatten", action="")
    assert ":flatten" in view.error
    view.tuner.set_range(-1.0, 1.0)
    view.tuner.wait()
    assert view.plan == view.tuner.plan != small_study().plan
    assert view.study.plan == view.plan


def test_whoever_listens_opens_it_instead() -> None:
    view, seen = shown(), []
    view.on_open(lambda name, action: seen.append((name, action)))
    ask(view, "open", key="stem", action="maps")
    assert seen == [("stem", "maps")]
    assert view._detail.children == ()


def test_the_explorer_shows_it_and_follows() -> None:
    made = kept(Explorer(small_study(), capture=captured()))
    made._view.value = "graph"
    made.wait()
    assert made._graph is not None
    assert made._graph.selected == made.selected
    made.select("stem")
    assert made._graph.selected == "stem"
    made._graph.selected = "classify"
    assert made.selected == "classify"
    made._graph.look("depthwise", "weight")
    assert made._view.value == "weights per channel"
    assert made.selected == "depthwise"
    assert made.error == ""
    made.wait()


# files, stand-in, closing


def test_overlay_is_written_with_the_names_of_a_files_nodes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    view = shown()
    ends = [onnx.helper.make_tensor_value_info(name, 1, [1]) for name in ("x", "stem")]

    def file(out: str) -> Path:
        ends[1].name = out
        graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], [out], name="first")], "net", ends[:1], ends[1:])
        onnx.save(onnx.helper.make_model(graph), tmp_path / f"{out}.onnx")
        return tmp_path / f"{out}.onnx"

    made = view.overlay(tmp_path / "colours.json", onnx=file("stem"))
    assert json.loads((tmp_path / "colours.json").read_text()) == made
    assert list(made["results"]) == ["first"]
    assert made["results"]["first"]["value"] == captured().table().loc["stem", ("int8", "sqnr")]
    with pytest.raises(QkitError, match=r"other\.onnx"):
        view.overlay(onnx=file("other"))
    every = view.overlay()
    finite = captured().table()["int8", "sqnr"]
    assert set(every["results"]) == set(finite[finite < math.inf].index)
    view.colour("loss")
    with pytest.raises(QkitError, match="measure"):
        view.overlay()


def test_table_picture_and_repr_stand_in() -> None:
    view = shown()
    summary = view.summary()
    assert list(summary.index) == keys(view)
    assert summary.loc["stem"].iloc[-1] == texts(view)["stem"]
    assert view.png().startswith(b"\x89PNG")
    assert re.search(rf"\b{len(view.network.nodes)}\b", repr(view))


def test_closed_it_lets_go_and_keeps_the_plan() -> None:
    study = fresh_study()
    view = GraphView(study, capture=study.capture(progress=False))
    view.selected = "stem"
    view.wait()
    view.close()
    assert view.plan == study.plan
    assert view.values.captures == {}
    with pytest.raises(QkitError):
        view.colour("local")
    view.close()


def test_graph_view_of_a_study() -> None:
    view = kept(small_study().graph_view(capture=captured(), figure="local"))
    assert isinstance(view, GraphView)
    assert view.canvas.figure == "local"
