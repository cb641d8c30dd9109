"""The page: whole, self-contained, and right in every state that has little or nothing to show."""

from __future__ import annotations

import dataclasses
import math
import re
import sys

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt
from report_cases import HOSTILE, Small, image_batches, tiny_study
from report_pages import Page, pictures, words_of
from torch import nn

from qkit import Scheme, Study
from qkit.diagnosis.meanings import VERDICTS
from qkit.report import make
from qkit.report.page import html
from qkit.report.text import markdown, tables
from qkit.report.text.captions import sentences
from qkit.report.text.terms import GLOSSARY

SECTIONS = [
    "scores", "depth", "network", "sensitivity", "worst", "layers", "weights", "lint", "plan", "remarks", "about", "reproduce", "terms",
]  # fmt: skip


def _page(report) -> Page:
    text = html.render(report)
    page = Page(text)
    assert page.errors == []
    assert page.addresses == [a for a in page.addresses if a.startswith(("data:image/svg+xml;base64,", "#"))]
    assert not re.search(r"https?://|@import|url\(", text)
    assert page.scripts == 1
    assert not any(name.startswith("on") for name in page.attributes)
    assert len(set(page.ids)) == len(page.ids)
    assert [a[1:] for a in page.addresses if a.startswith("#")] == SECTIONS
    assert set(SECTIONS) <= set(page.ids)
    for image, picture in zip(page.images, pictures(page), strict=True):
        assert image["alt"]
        assert len(list(picture.iter("{http://www.w3.org/2000/svg}path"))) > 5
        assert not [k for node in picture.iter() for k, v in node.attrib.items() if k.endswith("href") and not v.startswith("#")]
        for word in words_of(picture):
            assert "mathdefault" not in word
            assert "nan" not in word
    assert "nan" not in page.text.lower().split()
    # as a word of a sentence it is one; as a value it is a figure that was forgotten
    shown = page.text.replace("batches=None", "")
    for said in report.summary.values():
        shown = shown.replace(" ".join(said.split()), "")
    assert "None" not in re.findall(r"\w+", shown)
    _text(report)
    return page


def _text(report) -> str:
    text = markdown.render(report)
    rendered = MarkdownIt("commonmark").enable("table").render(text)
    assert "<script" not in rendered
    assert rendered.count("<table>") == text.count("\n| -") + text.count("\n|--")
    return text


@pytest.fixture(scope="module")
def page(report) -> Page:
    return _page(report)


@pytest.fixture(scope="module")
def drawing(report) -> dict:
    return html.all_pictures(report)


@pytest.fixture
def drawn(drawing, monkeypatch) -> None:
    """The pictures drawn once, for tests that change words only."""
    monkeypatch.setattr(html, "all_pictures", lambda _: drawing)


def test_page_says_everything(report, page):
    assert f"{100 * report.model['integer_macs']:.1f} %" in page.text
    for words in (report.title, report.verdict["reason"], report.verdict["meaning"], report.verdict["then"], "quantized"):
        assert words in page.text
    assert all(term in page.text and said in page.text for term, said in GLOSSARY.items())
    assert len(page.images) == 2 + sum(2 if e["weight"] else 1 for e in report.worst)
    assert all(entry["tap"] in page.text for entry in report.worst)
    assert report.settings["plan fingerprint"] in page.text


def test_tables_of_the_page(report, page):
    scores = page.cells["table-scores"]
    assert [row[0] for row in scores[1:]] == ["float", "int16", "int8"]
    assert scores[1][1] == f"{100 * report.scores.loc['float', 'score']:.2f} %"
    layers = page.cells["table-layers"]
    assert [row[1] for row in layers[2:]] == list(report.layers.index)
    assert len({len(row) for row in layers}) == 1
    at = layers[1].index("local SQNR")
    assert layers[0][at] == "int8"
    assert [row[at] for row in layers[2:]] == [f"{v:.1f}" for v in report.layers["int8", "local sqnr"]]
    assert [row[0] for row in page.cells["table-weights"][2:]] == list(report.weights.index)


def test_pictures_name_layers_and_lanes(report, page):
    losses, bars, *_ = (words_of(picture) for picture in pictures(page))
    assert {"int16", "int8"} <= set(losses)
    assert set(report.sensitivity.index) <= set(bars)
    assert all(said in page.text for said in ("int8, accumulated", "int8, local", "int8, weight"))


def test_pictures_follow_light_and_dark(page):
    for picture in pictures(page):
        styles = "".join(node.text or "" for node in picture.iter("{http://www.w3.org/2000/svg}style"))
        assert "prefers-color-scheme:dark" in styles
        defined = set(re.findall(r"(--[a-z-]+):", styles))
        used = {v for node in picture.iter() for v in re.findall(r"var\((--[a-z-]+)\)", node.get("style", ""))}
        assert used
        assert used <= defined


def test_rendering_touches_no_global_state(report, monkeypatch):
    import matplotlib as mpl

    pyplot = "matplotlib.pyplot" in sys.modules
    monkeypatch.setitem(mpl.rcParams, "font.size", 31.0)
    monkeypatch.setitem(mpl.rcParams, "text.usetex", True)
    before = dict(dict.items(mpl.rcParams))  # reading the backend through rcParams itself would choose one
    assert _page(report).images
    assert dict(dict.items(mpl.rcParams)) == before
    assert ("matplotlib.pyplot" in sys.modules) == pyplot


def test_rendering_is_repeatable(report):
    assert html.render(report) == html.render(report)


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize("verdict", list(VERDICTS))
def test_every_verdict_has_its_banner(report, verdict):
    words = VERDICTS[verdict]
    changed = {"verdict": verdict, "headline": words.headline, "meaning": words.meaning, "then": words.then}
    other = dataclasses.replace(report, verdict=report.verdict | changed)
    text = html.render(other)
    assert f'class="banner {verdict}"' in text
    assert f".banner.{verdict}" in text or verdict == "inconclusive"
    assert words.headline in Page(text).text
    assert words.then in Page(text).text
    assert f"## Verdict: {verdict}" in _text(other)


def test_hostile_names_stay_words(report):
    """Names of layers, lanes, metrics and classes reach every place of the page without becoming markup."""
    renamed = {name: f"{name}{HOSTILE}" for name in report.layers.index}
    worst = tuple(e | {"tap": renamed[e["tap"]], "note": HOSTILE} for e in report.worst)
    other = dataclasses.replace(
        report,
        title=HOSTILE,
        model=report.model | {"name": HOSTILE},
        metric=report.metric | {"name": HOSTILE, "percent": False},
        layers=report.layers.rename(index=renamed),
        sensitivity=report.sensitivity.rename(index=renamed),
        weights=report.weights.rename(index=lambda w: w + HOSTILE),
        worst=worst,
        notes={HOSTILE: HOSTILE},
        remarks=(HOSTILE,),
        settings=report.settings | {"scheme": HOSTILE},
        reproduce=HOSTILE,
    )
    page = _page(other)
    assert page.text.count("<script>alert(1)</script>") > 20
    assert [row[1] for row in page.cells["table-layers"][2:]] == [name.strip() for name in other.layers.index]
    text = _text(other)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    assert not [t for t in tokens if t.type == "html_block"]
    inline = [c for t in tokens if t.type == "inline" for c in t.children]
    assert not [c for c in inline if c.type in ("html_inline", "link_open", "image")]
    assert any("<script>alert(1)</script>" in c.content for c in inline)


def test_hostile_module_names_come_through():
    model = nn.Sequential()
    name = "a<b>&'|`x"
    model.add_module(name, nn.Conv2d(3, 4, 3))
    model.add_module("out", nn.Flatten())
    made = make(Study(model, [torch.randn(4, 3, 5, 5)]), worst=1, progress=False)
    assert name in made.layers.index
    assert name in [row[1] for row in _page(made).cells["table-layers"]]


def test_without_sensitivity():
    made = make(tiny_study(), sensitivity=False, worst=1, progress=False)
    page = _page(made)
    assert "sensitivity=False" in made.settings["sensitivity"]
    assert sentences(made)["sensitivity"] in page.text
    assert "table-sensitivity" not in page.cells
    assert not any("loss alone" in cell for cell in page.cells["table-layers"][1])
    assert sentences(made)["sensitivity"] in _text(made).replace("\\", "")


def test_without_weights_and_with_one_layer():
    study = Study(nn.Sequential(nn.ReLU()), [torch.randn(8, 3, 4, 4)], metric="agreement")
    made = make(study, worst=1, progress=False)
    assert len(made.weights) == 0
    page = _page(made)
    assert sentences(made)["weights"]
    assert sentences(made)["weights"] in page.text
    assert "table-weights" not in page.cells
    _says_agreement(made, page)


def test_one_linear_layer():
    made = make(Study(nn.Linear(3, 2), [(torch.randn(9, 3), torch.randint(0, 2, (9,)))]), worst=1, progress=False)
    assert len(_page(made).cells["table-layers"]) - 2 == len(made.layers) == 2


def test_agreement_is_not_called_accuracy():
    study = Study(Small(), [x for x, _ in image_batches()], metric="agreement")
    made = make(study, worst=1, progress=False)
    assert any("agreement" in remark for remark in made.remarks)
    sure = study.evaluate(("float", "int16", "int8"), progress=False).confident("int8")
    assert any("not accuracy" in remark and f"int8 {100 * sure.value:.2f} %" in remark for remark in made.remarks)
    _says_agreement(made, _page(made))


def _says_agreement(made, page: Page) -> None:
    said = sentences(made)["scores"]
    assert re.match(r"agreement\b.*\bfloat\b", said, re.IGNORECASE)
    assert said in page.text
    assert "Top-1" not in page.text


def squared_distance(outputs, targets):
    return -(outputs - 1).square().sum(1)


def test_metric_that_is_no_share():
    made = make(tiny_study(metric=squared_distance, expected=-4.0), worst=1, progress=False, tolerance=0.5)
    assert made.metric["percent"] is False
    page = _page(made)
    assert "squared_distance" in page.text
    assert "points" not in " ".join(cell for row in page.cells["table-scores"] for cell in row)
    assert not any("%" in cell for row in page.cells["table-scores"] for cell in row[1:] if row[0] != "lane")
    assert re.search(r"\b0\.5\b", sentences(made)["scores"])
    assert sentences(made)["scores"] in page.text


def test_one_sample_has_no_interval():
    study = Study(Small(), [(torch.randn(1, 3, 8, 8), torch.tensor([1]))], metric=squared_distance)
    made = make(study, worst=1, progress=False)
    assert math.isinf(made.scores.loc["int8", "loss high"])
    page = _page(made)
    assert "−∞ to ∞" in " ".join(cell for row in page.cells["table-scores"] for cell in row)


def test_float_everywhere():
    """Lanes that quantize nothing are identical: no error, no worst layer, no sensitivity, and the page says so."""
    study = tiny_study(scheme=Scheme("nothing", None, None, bias_bits=None))
    made = make(study, worst=1, progress=False)
    assert made.worst == ()
    assert np.isposinf(made.layers["int8", "sqnr"].astype(float)).all()
    page = _page(made)
    for part in ("infinite", "worst"):
        assert sentences(made)[part]
        assert sentences(made)[part] in page.text
    for lane in made.lanes:
        (remark,) = (remark for remark in made.remarks if re.match(rf"{lane}\b.*\bfloat\b", remark))
        assert remark in page.text
    assert "∞" in [row[5] for row in page.cells["table-layers"]] + [row[4] for row in page.cells["table-layers"]]


def test_constant_tensors():
    """A dead layer: its histogram is one value, its grid has no use, its SQNR is infinite."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
        model[3].weight.zero_()
    study = Study(model, [torch.randn(8, 3, 4, 4)], metric="agreement")
    made = make(study, worst=9, progress=False)
    page = _page(made)
    assert sentences(made)["infinite"].startswith("∞")
    assert sentences(made)["infinite"] in page.text
    entry = html_entry(study, "0")
    assert entry["histogram"]["min"] == entry["histogram"]["max"] == 0.0
    both = dataclasses.replace(made, worst=(entry, html_entry(study, "3")))
    page = _page(both)
    assert len(page.images) == 2 + 4


def html_entry(study: Study, tap: str) -> dict:
    from qkit.figures.entries import describe

    return describe(study.graph, study.plan, tap, study.observe(), ["local sqnr"])


@pytest.mark.usefixtures("drawn")
def test_no_notes_and_no_remarks(report):
    bare = dataclasses.replace(report, notes={}, remarks=())
    assert sentences(bare)["notes"]
    assert sentences(bare)["notes"] in _page(bare).text
    assert sentences(report)["notes"] == ""


def test_notes_are_shown():
    class Softened(Small):
        def forward(self, x):
            return torch.special.erf(super().forward(x))

    study = Study(Softened(), image_batches())
    made = make(study, sensitivity=False, worst=1, progress=False)
    assert made.notes
    page = _page(made)
    assert all(name in page.text and note in page.text for name, note in made.notes.items())


def test_activations_without_a_grid():
    from qkit import PRESETS

    scheme = dataclasses.replace(PRESETS["int8"], name="weights only", activation=None)
    made = make(tiny_study(scheme=scheme), worst=6, progress=False)
    bare = [entry for entry in made.worst if entry["grid"] is None]
    assert bare
    page = _page(made)
    for entry in bare:
        said = dict(tables.facts(made, entry))["Output's grid"]
        assert "float" in said
        assert said in page.text


def test_activations_with_a_grid_per_channel():
    from qkit import PRESETS, QuantSpec

    scheme = dataclasses.replace(PRESETS["int8"], name="channels", activation=QuantSpec(8, symmetric=False, per_channel=True))
    made = make(tiny_study(scheme=scheme), worst=6, progress=False)
    assert made.to_dict()["layers"]["second"]["int8"]["zero point"] is None
    said = dict(tables.facts(made, made.worst[0]))["Output's grid"]
    assert re.search(r"\bchannel\b", said)
    assert said in _page(made).text
