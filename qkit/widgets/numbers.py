"""Figures as the widgets write them."""

from __future__ import annotations

import html
from collections.abc import Sequence

from qkit.execution.editing import Figures
from qkit.execution.layer_errors import ChannelErrors
from qkit.execution.statistics import Interval
from qkit.style import NOTHING, Units, decibels, number, share


def figure_rows(
    now: Figures,
    before: Figures | None = None,
    *,
    output: ChannelErrors | None = None,
    output_before: ChannelErrors | None = None,
) -> list[list[str]]:
    """The figures of a range, a row for each; with `before` the figures of another range in a third column.

    Parameters
    ----------
    output, output_before
        What the layer's output suffers, where that is known.
    """
    columns = [_output_figures(output) | _range_figures(now)]
    if before is not None:
        columns.append(_output_figures(output_before) | _range_figures(before))
    return [[name, *(column.get(name, NOTHING) for column in columns)] for name in columns[0]]


def _range_figures(f: Figures) -> dict[str, str]:
    return {
        "clipped": share(f.clipped),
        "rounding, clipping": f"{number(f.rounding, 3)}, {number(f.clipping, 3)}",
        "steps used": f"{f.used} of {f.steps}",
    }


def _output_figures(errors: ChannelErrors | None) -> dict[str, str]:
    if errors is None:
        return {}
    worst = "" if errors.worst_channel is None else f" #{errors.worst_channel}"
    lost = {} if errors.lost is None else {"channels at 0": f"{errors.lost} of {errors.channels}"}
    return {
        "layer's output": f"{decibels(errors.total)} dB",
        "worst channel": f"{decibels(errors.worst)} dB{worst}",
        "median channel": f"{decibels(errors.median)} dB",
        **lost,
    }


def score_words(score: Interval, units: Units) -> str:
    """A score with its interval."""
    return f"{units.score(score.value)} [{units.interval(score.low, score.high)}]"


def change_words(change: Interval, units: Units) -> str:
    """A gain or loss with sign and paired interval."""
    ends = f"{units.loss(change.low, sign=True)} to {units.loss(change.high, sign=True)}"
    return " ".join(part for part in (units.loss(change.value, sign=True), units.points, f"[{ends}]") if part)


def loss_words(loss: Interval, units: Units) -> str:
    """A loss with its interval."""
    return units.amount(loss.value, loss.low, loss.high)


def facts(rows: Sequence[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """A small table as HTML, its first column being names."""

    def cells(row: Sequence[str], tag: str) -> str:
        rest = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row[1:])
        return f'<tr><th scope="row">{html.escape(row[0])}</th>{rest}</tr>'

    head = cells(heads, "th") if heads else ""
    return f'<table class="qkit-facts">{head}{"".join(cells(row, "td") for row in rows)}</table>'
