"""The card: bars in proportion, figures in the metric's unit, words escaped."""

from __future__ import annotations

import math
import re

import pytest
from markupsafe import Markup

from qkit.card import Bar, bars, card
from qkit.style import Units

SHARES = Units(percent=True)


def widths(html: str) -> list[float]:
    return [float(found) for found in re.findall(r'class="fill \w+" style="width:([\d.]+)%"', html)]


def test_shares_are_drawn_up_to_all() -> None:
    shown = [Bar("float", "float", 0.9, 0.85, 0.95), Bar("int8", "before", 0.225, 0.2, 0.25, 0.675)]
    html = bars(shown, SHARES)
    assert widths(html) == [90.0, 22.5]
    assert "<b>90.00 %</b>" in html
    assert "−67.50 points" in html
    assert re.findall(r'class="range" style="left:([\d.]+)%;width:([\d.]+)%"', html) == [("85.00", "10.00"), ("20.00", "5.00")]


def test_scores_where_lower_is_better_are_drawn_as_measured() -> None:
    """Kept as -0.2 and -0.8 metres: the longer bar is the worse one, and the page says so."""
    units = Units(percent=False, unit="m", lower=True)
    html = bars([Bar("float", "float", -0.2, -0.25, -0.15), Bar("int8", "before", -0.8, -1.0, -0.7, 0.6)], units)
    assert widths(html) == [20.0, 80.0]
    assert "<b>0.2000 m</b>" in html
    assert "<small>Shorter" in html


@pytest.mark.parametrize("values", [(0.0, 0.0), (-3.0, 2.0), (math.inf, 1.0), (1e300, 1e-300)])
def test_any_score_gives_a_width_from_0_to_100(values: tuple[float, float]) -> None:
    html = bars([Bar(str(i), "float", v, v, v) for i, v in enumerate(values)], Units(percent=False, unit="dB"))
    assert len(widths(html)) == 2
    assert all(0.0 <= width <= 100.0 for width in widths(html))


def test_without_scores_there_are_no_bars() -> None:
    assert bars([], SHARES) == ""


def test_words_are_escaped() -> None:
    html = card("quantization", "It is <b>", bars([], SHARES), {"a<b>": "c & d"}, [Markup("<p>{}</p>").format("<i>")])
    assert "It is &lt;b&gt;" in html
    assert "a&lt;b&gt;" in html
    assert "c &amp; d" in html
    assert "&lt;i&gt;" in html
