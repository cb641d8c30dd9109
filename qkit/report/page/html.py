"""The report as one self-contained page."""

from __future__ import annotations

import functools
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qkit.card import BAR_STYLE, Bar, bars
from qkit.figures.tensors import channels_caption, histogram_caption, maps_caption
from qkit.report.contents.data import Report
from qkit.report.page.chart import chart
from qkit.report.page.network import SVG_RULES
from qkit.report.page.network import picture as network_picture
from qkit.report.page.pictures import all_pictures
from qkit.report.text import sections, tables
from qkit.report.text.captions import sentences
from qkit.report.text.summary import QUESTIONS
from qkit.report.text.terms import GLOSSARY
from qkit.style import number, units_of


@functools.cache
def _environment() -> Environment:
    loader = PackageLoader("qkit.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters |= {
        "number": number,
        "histogram_caption": histogram_caption,
        "channels_caption": channels_caption,
        "maps_caption": maps_caption,
    }
    return environment


def render(report: Report) -> str:
    """The page's text."""
    pictures = all_pictures(report)
    worst = [
        {
            "entry": entry,
            "facts": tables.facts(report, entry),
            "why": tables.rules(report, entry),
            "pictures": drawn,
            "maps": (report.maps or {}).get(entry["tap"]),
        }
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
        worst=worst,
        words=sentences(report),
        glossary=GLOSSARY,
        questions=QUESTIONS,
        bars=bars(score_bars(report), units_of(report.metric)),
        bar_style=BAR_STYLE,
        sections=[(anchor, head) for anchor, head, there in _sections(report) if there],
        chart=chart(report),
        network=network_picture(report),
        network_rules=SVG_RULES,
        tried=sections.tried(report),
        treatment=sections.treatment(report),
        mixed=sections.mixed(report),
        engines=[{"entry": entry, "table": sections.engine(entry)} for entry in report.engines],
        lint=sections.findings(report),
        plan=sections.plan(report),
        plan_json=sections.plan_json(report),
        data=sections.data(report),
    )  # fmt: skip


def score_bars(report: Report) -> list[Bar]:
    """Float's score, the lane's as it is, and the score with all remedies, where they were measured."""
    figures: Any = report.scores
    exact, lane = ({k: float(v) for k, v in figures.loc[name].items()} for name in ("float", report.narrow))
    shown = [
        Bar("float", "float", exact["score"], exact["low"], exact["high"]),
        Bar(f"{report.narrow}, as it is", "before", lane["score"], lane["low"], lane["high"], lane["loss"]),
    ]
    together = next((row for row in report.tried if row["what"] == "all"), None)
    if together is not None:
        score = together["score"]
        label, lost = f"{report.narrow}, with the remedy", together["loss"]["value"]
        shown.append(Bar(label, "after", score["value"], score["low"], score["high"], lost))
    return shown


def _sections(report: Report) -> list[tuple[str, str, bool]]:
    """Anchors and heads of the page's sections, and whether they are there."""
    return [
        ("scores", "Scores", True),
        ("diagnosis", "Diagnosis", report.diagnosis is not None),
        ("depth", "Layer by layer", True),
        ("network", "Network", bool(report.network)),
        ("sensitivity", "Sensitivity", True),
        ("worst", "Worst layers", True),
        ("treatment", "Post-training calibration", report.treatment is not None),
        ("mixed", "Mixed precision", report.mixed is not None),
        ("engines", "Engine", bool(report.engines)),
        ("layers", "All layers", True),
        ("weights", "Weights", True),
        ("lint", "Lint", True),
        ("plan", "Plan", True),
        ("remarks", "Remarks", True),
        ("about", "Data and settings", True),
        ("reproduce", "Reproduce", True),
        ("terms", "Terms", True),
    ]
