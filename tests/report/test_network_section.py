"""The network in the report: every operation, coloured by losses where there are any that are no chance, else by errors."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from qkit import QkitError
from qkit.report.page import html
from qkit.report.page.network import picture
from qkit.report.reading import from_dict
from qkit.style import decibels, units_of


def titles(svg: str) -> dict[str, str]:
    """Figure by box, from the drawing's titles."""
    return dict(re.findall(r"<title>(.*?)\n[^<]*: (.*?)</title>", svg, re.DOTALL))


def without_losses(report):
    swept = report.sensitivity.assign(**{"loss low": -1.0})
    return dataclasses.replace(report, sensitivity=swept)


def test_it_is_coloured_by_propagated_error_where_no_loss_is_sure(report):
    made = picture(without_losses(report))
    found = titles(str(made.svg))
    errors = report.layers[report.narrow, "sqnr"]
    assert {name: found[name] for name in errors.index} == {name: f"{decibels(value)} dB" for name, value in errors.items()}
    assert set(found) == {entry["name"] for entry in report.network}


def test_it_is_coloured_by_losses_where_one_is_sure(report):
    swept = report.sensitivity.assign(**{"loss": 0.25, "loss low": 0.2})
    found = titles(str(picture(dataclasses.replace(report, sensitivity=swept)).svg))
    units = units_of(report.metric)
    assert {found[name] for name in swept.index} == {f"{units.loss(0.25)} {units.points}"}


def test_it_is_on_the_page_with_its_legend(report):
    page = html.render(report)
    section = page[page.index('<section id="network">') :].partition("</section>")[0]
    assert 'class="network"' in section
    assert section.count('class="key"') >= 1
    assert "var(--qkit-narrow)" in page


def test_a_report_without_a_network_has_no_section(report):
    bare = dataclasses.replace(report, network=())
    assert picture(bare) is None
    assert 'id="network"' not in html.render(bare)


def test_it_is_read_back_and_cycles_are_refused(report):
    data = json.loads(json.dumps(report.to_dict()))
    assert from_dict(data).network == report.network
    data["network"][1]["inputs"] = [1]
    with pytest.raises(QkitError, match="network"):
        from_dict(data)


def test_the_drawing_keeps_the_page_small(report):
    assert len(picture(report).svg) < 20_000
