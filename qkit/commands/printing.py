"""What the commands show: tables for a terminal, JSON that is strict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from qkit.execution.scores import Scores
    from qkit.execution.statistics import Interval

#: Colours of the verdicts, and of lint's severities.
VERDICTS = {"no-degradation": "green", "quantization": "yellow", "not-quantization": "red", "both": "red", "inconclusive": "cyan"}
SEVERITIES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def strict(value: Any) -> Any:
    """Nested data as strict JSON has them: infinities as strings, NaN as None."""
    from qkit.style import plain

    return plain(value)


def score_table(scores: Scores) -> Table:
    """A row per lane: score and loss with their intervals."""
    units = scores.units

    def shown(interval: Interval, *, loss: bool = False) -> tuple[str, str]:
        show = units.loss if loss else units.score
        return show(interval.value), units.interval(interval.low, interval.high, loss=loss)

    from qkit.execution.metrics import metric_label

    title = f"{metric_label(scores.metric)} on {scores.n} images, 95 % intervals"
    table = Table(title=title, caption=" ".join(scores.notes) or None, caption_justify="left")
    for name in ("lane", "score", "interval", f"loss ({units.points})" if units.points else "loss", "interval of the loss"):
        table.add_column(name, justify="left" if name == "lane" else "right")
    for lane in scores.lanes:
        loss = shown(scores.loss(lane), loss=True) if lane != "float" else ("–", "")
        table.add_row(lane, *shown(scores[lane]), *loss)
    return table


def size(count: int) -> str:
    """Bytes for a reader."""
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{max(count / 1024, 0.1):.1f} KiB"
