"""The still picture: columns that cut no box, SVG that is well formed whatever names hold, and the same in matplotlib."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from qkit.figures.network.blocks import Network, Node
from qkit.figures.network.drawing import column_count, columns, draw, key, svg
from qkit.figures.network.layout import layout
from qkit.figures.network.quantities import paint, quantities
from qkit.style import Units

LOCAL = quantities(Units(percent=True))["local"]
NAMES = ["input", *(f"features.{i}.conv{k}" for i in range(12) for k in range(3)), "head<script>&\"'"]
NETWORK = Network(tuple(Node(name, "conv", (i - 1,) if i else ()) for i, name in enumerate(NAMES)))
VALUES = {name: 10.0 + i for i, name in enumerate(NAMES)}
OPENED = frozenset({"features", "features.3"})
PLACES = layout(NETWORK, OPENED)
PAINTED = paint(PLACES, NETWORK, LOCAL, VALUES)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_columns_cut_no_box_and_lose_none(count: int) -> None:
    found = columns(PLACES, count)
    assert 1 <= len(found) <= count
    assert all(low < high for low, high in pairwise(found.cuts))
    shown = [box for box in PLACES.boxes if not box.opened]
    for box in shown:
        top, bottom = list(found)[found.of(box.top)]
        assert top <= box.top
        assert box.top + box.height <= bottom
    assert {found.of(box.top) for box in shown} == set(range(len(found)))


def test_every_box_is_drawn_once_with_its_name_and_figure() -> None:
    tree = ET.fromstring(str(svg(PLACES, PAINTED)))
    titles = [group.findtext("title") or "" for group in tree.iter("g") if group.find("rect[@class='frame']") is None]
    wanted = [f"{box.key}\n{LOCAL.name}: {text}" for box, text in zip(PLACES.boxes, PAINTED.texts, strict=True) if not box.opened]
    assert sorted(titles) == sorted(wanted)
    words = ["".join(text.itertext()) for text in tree.iter("text")]
    assert any(LOCAL.words(VALUES["input"]) in word for word in words)


def test_hostile_names_stay_words() -> None:
    text = svg(PLACES, PAINTED, label='<img src="x">')
    assert isinstance(text, Markup)
    assert "<script" not in text
    assert "<img" not in text


def test_strength_of_the_colour_grows_with_the_share() -> None:
    tree = ET.fromstring(str(svg(PLACES, PAINTED)))
    strengths = {}
    for group in tree.iter("g"):
        fill = group.find("rect[@class='worse']")
        if fill is not None:
            strengths[(group.findtext("title") or "").split("\n")[0]] = float(fill.get("style", "").split("*")[1].rstrip(")"))
    assert len(strengths) == sum(not box.opened for box in PLACES.boxes)
    order = sorted(strengths, key=strengths.__getitem__)
    shares = {box.key: share for box, share in zip(PLACES.boxes, PAINTED.shares, strict=True)}
    assert [shares[name] for name in order] == sorted(shares[name] or 0.0 for name in strengths)


def test_the_legend_names_the_ends() -> None:
    text = str(key(PAINTED))
    assert all(words in text for _, words in PAINTED.legend)


def test_a_small_picture_is_a_small_text() -> None:
    assert len(svg(PLACES, PAINTED)) < 12_000
    assert column_count(PLACES, 3.0) > column_count(PLACES, 0.5)


def test_matplotlib_draws_every_box() -> None:
    ax = Figure().add_subplot()
    assert draw(PLACES, PAINTED, ax=ax) is ax
    shown = [box for box in PLACES.boxes if not box.opened]
    assert len(ax.texts) == 2 * len(shown)
    assert {PLACES.boxes[0].title} <= {text.get_text() for text in ax.texts}
