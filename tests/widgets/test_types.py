"""The types that the JavaScript is checked against (`qkit/widgets/types.d.ts`), held to what Python sends."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import gesture, ruined_diagnosis, ruined_study, small_study

from qkit.widgets import CalibrationPanel, Explorer, GraphView, Guide, Tuner, canvas
from qkit.widgets.canvas import Canvas
from qkit.widgets.graph_canvas import GraphCanvas
from qkit.widgets.layer_chart import LayerTable
from qkit.widgets.map_view import FeatureMaps, MapPlot
from qkit.widgets.panel import Frame
from qkit.widgets.stepper import Stepper
from qkit.widgets.strip import ChannelStrip

SOURCE = Path(canvas.__file__).with_name("types.d.ts").read_text(encoding="utf-8")
INTERFACES = {
    name: dict(re.findall(r"^ {2}(\w+\??): (.+);$", body, re.MULTILINE))
    for name, body in re.findall(r"^export interface (\w+) \{\n(.*?)^\}", SOURCE, re.MULTILINE | re.DOTALL)
}
ALIASES = dict(re.findall(r"^export type (\w+) = (.+);$", SOURCE, re.MULTILINE))
PRIMITIVES: dict[str, tuple[type, ...]] = {"string": (str,), "boolean": (bool,), "number": (int, float), "DataView": (bytes,)}


def parts(kind: str, mark: str) -> list[str]:
    """What stands between the marks that are in no brackets."""
    found, depth = [""], 0
    for letter in kind:
        depth += (letter in "([") - (letter in ")]")
        if letter == mark and not depth:
            found.append("")
        else:
            found[-1] += letter
    return [part.strip() for part in found]


def fits(value: Any, kind: str) -> bool:
    """Whether a value is of a type, as far as types.d.ts uses TypeScript."""
    if len(choices := parts(kind, "|")) > 1:
        return any(fits(value, choice) for choice in choices)
    if kind.endswith("[]"):
        return isinstance(value, list) and all(fits(item, kind[:-2]) for item in value)
    if kind.startswith("("):
        return fits(value, kind[1:-1])
    if kind.startswith("["):
        kinds = parts(kind[1:-1], ",")
        return isinstance(value, list) and len(value) == len(kinds) and all(map(fits, value, kinds))
    if kind.startswith('"'):
        return value == kind[1:-1]
    if kind == "null":
        return value is None
    if kind in PRIMITIVES:
        whole = not (isinstance(value, float) and math.isnan(value))  # JSON has no NaN
        return isinstance(value, PRIMITIVES[kind]) and isinstance(value, bool) == (kind == "boolean") and whole
    if kind in ALIASES:
        return fits(value, ALIASES[kind])
    fields = INTERFACES[kind]
    needed = {name for name in fields if not name.endswith("?")}
    return isinstance(value, dict) and set(value) == needed and all(fits(value[name], fields[name]) for name in needed)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1.0, "2"], "[number, number]"),
        ([1, 2, 3], "[number, number]"),
        ([[1, None]], '(number | "inf")[][]'),
        (True, "number"),
        (1, "boolean"),
        (float("nan"), "number"),
        ({"lo": 0.0, "hi": 1.0, "scale": 1.0}, "Grid"),
        ({"lo": 0.0, "hi": 1.0, "scale": 1.0, "codes": 2, "more": 1}, "Grid"),
        ({"lo": 0.0}, "Grid | NoGrid"),
        ("green", "Colour"),
    ],
)
def test_what_is_of_another_type_does_not_fit(value: Any, kind: str) -> None:
    assert not fits(value, kind)


def test_the_style_sheet_has_the_colours() -> None:
    roles = {choice.strip('"') for choice in parts(ALIASES["Colour"], "|")}
    assert set(re.findall(r"--qkit-(\w+):", canvas.style_sheet())) == roles


@pytest.fixture(scope="module")
def canvases() -> Iterator[dict[str, list[Canvas]]]:
    """Canvases by class, as the widgets fill them."""
    study = small_study()
    capture = study.capture(progress=False)
    tuner = Tuner(study, "depthwise", batches=1)
    fresh = Tuner(study, "stem.weight", batches=1)
    tuner.set_range(0.0, 0.5)
    tuner.wait()
    several = Tuner(study, "weights: conv", batches=1)
    several.choose("percentile", 99.0)
    measured, calibration, maps = Explorer(study, capture=capture), CalibrationPanel(study, batches=1), FeatureMaps()
    unmeasured = LayerTable()
    unmeasured.show([], {}, {})
    maps.show(capture["stem"], 1)
    graph = GraphView(study, capture=capture)
    graph.selected = "depthwise"
    graph.wait()
    graph.colour("local", "int8", against="int16", beside=True)
    measured.strip.show(np.array([-1.0, -2.0]), np.array([1.0, 3.0]), None)
    tables = [measured.table, calibration.table, unmeasured]
    guide = Guide(ruined_study(), ruined_diagnosis())
    guide.step = 2
    yield {
        "LayerTable": [LayerTable(), *tables],
        "GraphCanvas": [GraphCanvas(), graph.canvas],
        "MapPlot": [MapPlot(), maps.plot],
        "Tuner": [fresh, tuner, several],
        "ChannelStrip": [ChannelStrip(), measured.strip],
        "Stepper": [Stepper(), guide.stepper],
    }
    for each in (fresh, tuner, several, measured, calibration, maps, guide, graph):
        each.close()


@pytest.mark.parametrize("name", ["GraphCanvas", "LayerTable", "MapPlot", "Tuner", "ChannelStrip", "Stepper"])
def test_traits_are_of_the_types_that_the_page_expects(name: str, canvases: dict[str, list[Canvas]]) -> None:
    for made in canvases[name]:
        assert type(made).__name__ == name
        own = set(made.trait_names(sync=True)) - set(Frame().trait_names(sync=True))
        assert own == set(INTERFACES[name])
        for trait in own:
            assert fits(getattr(made, trait), INTERFACES[name][trait]), f"{trait}: {getattr(made, trait)!r}"


def test_the_canvases_are_filled(canvases: dict[str, list[Canvas]]) -> None:
    _, tuner, several = canvases["Tuner"]
    assert tuner.ghost, "there is a grid to compare with"
    assert tuner.marks
    assert tuner.score["lines"]
    assert tuner.measured_rows
    assert several.group
    assert several.kinds
    for table in canvases["LayerTable"][1:3]:
        assert table.rows
        assert table.charts
    assert canvases["MapPlot"][1].scales
    graph = canvases["GraphCanvas"][1]
    assert all((graph.boxes, graph.edges, graph.shares, graph.facts, graph.pictures, graph.actions, graph.legend["ticks"]))


@pytest.mark.parametrize(("end", "reply"), [("hi", "Figures"), ("middle", "Refused")])
def test_answers_to_a_gesture_are_of_the_types_that_the_page_expects(end: str, reply: str) -> None:
    tuner = Tuner(small_study(), "depthwise", batches=1)
    (answer,) = gesture(tuner, "drag", end, 1.0, seq=3)
    assert fits(answer, reply), answer
    assert fits(answer, "Reply")
    tuner.close()
