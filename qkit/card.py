"""The answer on a card: a headline, a bar for every score, and a few questions with their answers, as a piece of HTML.

In a notebook its style takes the surrounding colours of text and page, and so reads in light and in dark; the page of a report
has the same bars in a banner of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from qkit.style import Units

#: What a bar stands for, which decides its colour: float's score, the score as it is, the score with the remedy.
Role = Literal["float", "before", "after"]

#: Borders by verdict; they keep 3 to 1 against white and against black pages.
_TINTS: Mapping[str, str] = {
    "no-degradation": "#2a8a63", "quantization": "#c26100", "not-quantization": "#cf4339", "both": "#cf4339",
    "inconclusive": "#5c7fa8",
}  # fmt: skip
_STYLE = Markup("""
.qkit-card { border: 1px solid var(--tint); border-left-width: 8px; border-radius: 8px; padding: .7em 1.1em .6em; margin: .4em 0;
  max-width: 60rem; background: color-mix(in srgb, var(--tint) 8%, transparent); line-height: 1.45; }
.qkit-card .headline { font-size: 1.35em; font-weight: 650; margin: 0 0 .5em; }
.qkit-card .headline code { font-size: .6em; font-weight: 400; opacity: .75; margin-left: .4em; background: none;
  color: inherit; }
.qkit-card dl.answers { display: block; margin: .6em 0 0; }
.qkit-card dl.answers > div { display: grid; grid-template-columns: minmax(7em, 10em) minmax(0, 1fr); gap: .2em .9em;
  padding: .25em 0; border-top: 1px solid color-mix(in srgb, var(--tint) 25%, transparent); }
.qkit-card dt { font-weight: 600; margin: 0; float: none; width: auto; text-align: left; }
.qkit-card dd { margin: 0; float: none; width: auto; overflow-wrap: anywhere; }
.qkit-details summary { cursor: pointer; margin: .3em 0; }
.qkit-details li, .qkit-details p { max-width: 60rem; margin: .25em 0; line-height: 1.45; }
@media (max-width: 560px) { .qkit-card dl.answers > div { grid-template-columns: minmax(0, 1fr); } }
""")
#: Of the bars, for notebooks and pages alike.
BAR_STYLE = Markup("""
.bars { display: grid; grid-template-columns: max-content minmax(6em, 1fr) max-content; gap: .3em .8em; align-items: center; }
.bars .track { position: relative; height: 1.05em; border-radius: 3px;
  background: color-mix(in srgb, currentColor 10%, transparent); }
.bars .fill { position: absolute; inset: 0 auto 0 0; border-radius: 3px; min-width: 2px; }
.bars .float { background: #71809a; } .bars .before { background: #d0660a; } .bars .after { background: #2a8a63; }
.bars .range { position: absolute; top: 50%; height: 0; border-top: 2px solid currentColor; opacity: .8; }
.bars .figure { font-variant-numeric: tabular-nums; } .bars .figure small { opacity: .8; }
@media (max-width: 560px) {
  .bars { grid-template-columns: minmax(0, 1fr) max-content; grid-auto-flow: dense; gap: .1em .8em; }
  .bars .track { grid-column: 1 / -1; margin-bottom: .35em; }
}
@media print { .bars .fill { -webkit-print-color-adjust: exact; print-color-adjust: exact; } }
""")


@dataclass(frozen=True)
class Bar:
    """One score with its interval, in units of the score; `loss` is what is lost against float, None for float itself."""

    label: str
    role: Role
    score: float
    low: float
    high: float
    loss: float | None = None


def bars(shown: Sequence[Bar], units: Units) -> Markup:
    """The bars below each other on one scale that begins at 0; "" where there are none.

    Shares reach to 100 %; other scores to the greatest of them. A score whose sign is kept changed, since lower is better, is
    drawn as it is measured, so a longer bar is worse there, which its label says.
    """
    if not shown:
        return Markup("")
    sign = -1.0 if units.lower else 1.0
    ends = [sign * value for bar in shown for value in (bar.score, bar.low, bar.high) if math.isfinite(value)]
    top = 1.0 if units.percent and not units.lower else max([*ends, 0.0]) or 1.0
    bottom = min([*ends, 0.0])
    parts = [Markup('<div class="bars" role="group" aria-label="scores">')]
    for bar in shown:
        places = sorted(100.0 * min(max((sign * v - bottom) / (top - bottom), 0.0), 1.0) for v in (bar.low, bar.high))
        width = 100.0 * min(max((sign * bar.score - bottom) / (top - bottom), 0.0), 1.0)
        lost = "" if bar.loss is None else f"{units.loss(-bar.loss, sign=True)} {units.points}".strip()
        parts.append(
            Markup(
                '<span class="label">{}</span><span class="track" aria-hidden="true">'
                '<span class="fill {}" style="width:{:.2f}%"></span>'
                '<span class="range" style="left:{:.2f}%;width:{:.2f}%"></span></span>'
                '<span class="figure"><b>{}</b> <small>{}</small></span>'
            ).format(bar.label, bar.role, width, places[0], places[1] - places[0], units.score(bar.score), lost)
        )
    parts.append(Markup("</div>"))
    if units.lower:
        parts.append(Markup("<p><small>{}</small></p>").format("Shorter is better."))
    return Markup("").join(parts)


def card(verdict: str, headline: str, drawn: Markup, answers: Mapping[str, str], details: Sequence[Markup] = ()) -> Markup:
    """The card for a cell of a notebook, style included; `details` fold away under it."""
    rows = Markup("").join(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(term, said) for term, said in answers.items())
    below = Markup("")
    if details:
        inside = Markup("").join(details)
        below = Markup('<details class="qkit-details"><summary>Details</summary>{}</details>').format(inside)
    return Markup(
        '<style>{}{}</style><div class="qkit-card" style="--tint:{}"><p class="headline">{} <code>{}</code></p>{}'
        '<dl class="answers">{}</dl></div>{}'
    ).format(_STYLE, BAR_STYLE, _TINTS.get(verdict, "#5c7fa8"), headline, verdict, drawn, rows, below)
