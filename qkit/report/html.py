"""The report as one self-contained page."""

from __future__ import annotations

import functools

from jinja2 import Environment, PackageLoader, StrictUndefined

from qkit.report import tables
from qkit.report.data import Report
from qkit.report.formats import number
from qkit.report.pictures import all_pictures, channels_caption, histogram_caption
from qkit.report.sentences import sentences
from qkit.report.words import GLOSSARY, MOST_BARS


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("qkit.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {"number": number, "histogram_caption": histogram_caption, "channels_caption": channels_caption}
    return environment


def render(report: Report) -> str:
    """The page's text."""
    pictures = all_pictures(report)
    worst = [
        {"entry": entry, "facts": tables.facts(report, entry), "why": tables.rules(report, entry), "pictures": drawn}
        for entry, drawn in zip(report.worst, pictures["worst"], strict=True)
    ]
    template = _environment().get_template("degradation.html.j2")
    return template.render(
        report=report,
        verdict=report.verdict,
        pictures=pictures,
        scores=tables.scores(report),
        layers=tables.layers(report),
        causes=tables.causes(report),
        weights=tables.weights(report),
        sensitivity=tables.sensitivity(report),
        most_bars=MOST_BARS,
        worst=worst,
        words=sentences(report),
        glossary=GLOSSARY,
    )  # fmt: skip
