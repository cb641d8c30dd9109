"""The chart of all layers: places against the figures, states with little to show, hostile names, and hundreds of layers."""

from __future__ import annotations

import dataclasses
import re
import time
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_cases import HOSTILE
from report_pages import Page

from qkit.report import Report, write
from qkit.report.page import html
from qkit.report.page.chart import ORDERS, chart, ticks


def groups(report: Report) -> list[ET.Element]:
    root = ET.fromstring(str(chart(report).svg))
    return [node for node in root.iter("g") if node.get("class") == "layer"]


def test_a_group_for_every_layer_with_its_figures(report):
    found = groups(report)
    assert [group.get("data-name") for group in found] == list(report.layers.index)
    assert [group.get("data-order") for group in found] == [str(i) for i in range(len(found))]
    for group in found:
        row = report.layers.loc[group.get("data-name")]
        assert float(group.get("data-local")) == pytest.approx(row["int8", "local sqnr"], rel=1e-5)
        assert float(group.get("data-sqnr")) == pytest.approx(row["int8", "sqnr"], rel=1e-5)
        assert float(group.get("data-loss")) == pytest.approx(report.sensitivity["loss"][group.get("data-name")], rel=1e-5)
        title = group.find("title").text.splitlines()
        assert title[0] == group.get("data-name")
        assert f"int8: local {row['int8', 'local sqnr']:.1f} dB, accumulated {row['int8', 'sqnr']:.1f} dB" in title


def test_places_are_those_of_the_axis(report):
    """Positions read back through the axis' own ticks give the figures."""
    svg = ET.fromstring(str(chart(report).svg))
    axis = {}
    for line, text in zip(svg.findall("line"), svg.findall("text[@class='tick']"), strict=False):
        if float(line.get("y1")) < 280:  # below it is the axis of the losses
            axis[float(text.text.replace("−", "-"))] = float(line.get("y1"))
    (low, y_low), (high, y_high) = min(axis.items()), max(axis.items())
    for group in groups(report):
        dots = {node.get("class"): float(node.get("cy")) for node in group.findall("circle")}
        for lane, role in (("int8", "narrow"), ("int16", "wide")):
            value = low + (dots[role] - y_low) / (y_high - y_low) * (high - low)
            assert value == pytest.approx(report.layers.loc[group.get("data-name"), (lane, "sqnr")], abs=0.6)
    xs = [float(re.match(r"translate\(([\d.]+) 0\)", group.get("transform"))[1]) for group in groups(report)]
    assert np.allclose(np.diff(xs), float(svg.get("data-column")), atol=0.11)
    assert xs[0] == pytest.approx(float(svg.get("data-left")), abs=0.11)


def test_worst_layers_are_numbered(report):
    ranks = {
        g.get("data-name"): g.find("text[@class='rank']").text
        for g in groups(report)
        if g.find("text[@class='rank']") is not None
    }
    assert ranks == {entry["tap"]: str(i) for i, entry in enumerate(report.worst, 1)}


def test_infinite_figures_go_to_the_top_and_missing_ones_away(report):
    layers = report.layers.copy()
    layers.loc["second", ("int8", "sqnr")] = np.inf
    layers.loc["last", ("int8", "local sqnr")] = np.nan
    found = {g.get("data-name"): g for g in groups(dataclasses.replace(report, layers=layers, sensitivity=None))}
    heights = {n: next(float(c.get("cy")) for c in g.findall("circle") if c.get("class") == "narrow") for n, g in found.items()}
    assert heights["second"] == min(heights.values())
    assert found["second"].get("data-sqnr") == "inf"
    assert found["last"].get("data-local") is None
    assert len(found["last"].findall("path")) == len(found["second"].findall("path")) - 1
    assert "∞" in found["second"].find("title").text
    assert not [g for g in found.values() if g.find("rect[@class='loss sure']") is not None]


def test_orders_without_sensitivity(report):
    assert [key for key, *_ in chart(report).orders] == list(ORDERS)
    assert "loss" not in [key for key, *_ in chart(dataclasses.replace(report, sensitivity=None)).orders]


def test_losses_that_are_none_have_an_axis_too(report):
    swept = report.sensitivity.assign(**{"loss": 0.0, "loss low": 0.0, "loss high": 0.0})
    assert len(groups(dataclasses.replace(report, sensitivity=swept))) == len(report.layers)


@given(st.floats(-200, 200), st.floats(0.01, 400), st.integers(2, 9))
def test_ticks_are_few_round_and_inside(low, span, most):
    found = ticks(low, low + span, most)
    assert len(found) <= most + 1
    assert all(low - 1e-6 * span <= tick <= low + span + 1e-6 * span for tick in found)
    if len(found) > 1:
        step = found[1] - found[0]
        assert step / 10 ** np.floor(np.log10(step) + 1e-9) == pytest.approx(1, abs=1e-6) or f"{step:.0e}"[0] in "125"
        assert np.allclose(np.diff(found), step)


def test_hostile_names_stay_words(report):
    renamed = {name: name + HOSTILE for name in report.layers.index}
    other = dataclasses.replace(
        report, layers=report.layers.rename(index=renamed), sensitivity=report.sensitivity.rename(index=renamed), worst=()
    )
    assert [g.get("data-name") for g in groups(other)] == [name.replace("\n", " ") for name in other.layers.index]
    assert "<script>" not in str(chart(other).svg)


def many(report: Report, count: int = 300, channels: int = 256) -> Report:
    """A report of a network of so many layers, with long names and a grid per channel everywhere."""
    names = [f"backbone.stage{i}.block.with.a.name.of.quite.some.length.conv{i}" for i in range(count)]
    times = -(-count // len(report.layers))
    layers = pd.concat([report.layers] * times).iloc[:count].set_axis(names)
    layers["tap", "weight"] = [f"{name}.weight" for name in names]
    weights = pd.concat([report.weights] * count).iloc[:count].set_axis([f"{name}.weight" for name in names])
    swept = pd.concat([report.sensitivity] * times).iloc[:count].set_axis(names)
    base = report.plan["grids"]["second.weight"]
    scales = [float(str(np.float32(x))) for x in np.random.default_rng(0).random(channels) * 1e-3]
    per_channel = {
        **base,
        "spec": {**base["spec"], "per_channel": True},
        "scale": scales,
        "zero_point": [0] * channels,
        "axis": 0,
    }
    grids = dict.fromkeys(names, report.plan["grids"]["second"]) | {f"{name}.weight": per_channel for name in names}
    worst = ({**report.worst[0], "tap": names[150]},)
    return dataclasses.replace(
        report, layers=layers, weights=weights, sensitivity=swept, worst=worst, plan={**report.plan, "grids": grids}
    )  # fmt: skip


def test_three_hundred_layers_stay_small_and_fast(report, tmp_path):
    made = many(report)
    sizes, begun = {}, time.process_time()
    for suffix in (".html", ".json", ".md", ".csv"):
        sizes[suffix] = write(made, tmp_path / f"r{suffix}").stat().st_size
    assert time.process_time() - begun < 20
    assert max(sizes.values()) < 3_000_000, sizes
    page = Page((tmp_path / "r.html").read_text())
    assert page.errors == []
    assert [row[1] for row in page.cells["table-layers"][2:]] == list(made.layers.index)
    shown = [g.find("text[@class='name']").text for g in groups(made)]
    assert max(map(len, shown)) <= 34
    assert len(set(shown)) == len(shown)
    assert len(page.cells["table-plan"]) - 1 == 600


def test_the_page_has_the_chart_once(report):
    text = html.render(report)
    assert text.count('<svg class="chart"') == 1
    assert text.count('<g class="layer"') == len(report.layers)
