"""The picture of an engine's comparison: shares as they are in the table, and the first tap that differs marked."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from qkit.engines.tap_comparison import Comparison, Steps, TapSums
from qkit.figures.engine import draw
from qkit.quant.plan import FLOAT


def sums(same: int, more: int, equal_more: int) -> TapSums:
    equal = Steps(same=same + more - equal_more, more=equal_more, far=equal_more)
    return TapSums("conv", Steps(same=same, more=more), equal, explained=equal.same)


@pytest.fixture
def comparison() -> Comparison:
    taps = {"stem": sums(1000, 0, 0), "middle": sums(600, 400, 300), "end": sums(500, 500, 0)}
    return Comparison("board", FLOAT, taps, 1, {}, (), ())


def test_lines_are_the_shares_and_the_first_is_marked(comparison: Comparison) -> None:
    ax = draw(comparison, ax=Figure().add_subplot())
    accumulated, local, first = ax.get_lines()
    np.testing.assert_allclose(accumulated.get_ydata(), [100, 60, 50])
    np.testing.assert_allclose(local.get_ydata(), [100, 70, 100])
    assert comparison.first == "middle"
    assert first.get_xdata()[0] == 1  # type: ignore[index]
    assert "middle" in str(first.get_label())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["stem", "middle", "end"]


def test_it_shows_itself(comparison: Comparison) -> None:
    picture = comparison.plot()
    assert picture.png().startswith(b"\x89PNG")
    assert "board" in repr(picture)
