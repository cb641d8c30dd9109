"""What stands beside the lanes' figures: data, remedies tried, treatment, mixed precision, engines, lint, plan, feature maps."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from report_cases import HOSTILE, PerturbedEngine, Small, image_batches, tiny_study
from report_pages import Page, pictures

import qkit
from qkit import Plan, Study
from qkit.figures.tensors import arrays
from qkit.report import make
from qkit.report.contents import samples
from qkit.report.contents.data import LEFT_OUT
from qkit.report.contents.facts import without_folders
from qkit.report.page import html
from qkit.report.text import markdown
from qkit.report.text.captions import sentences


@pytest.fixture(scope="module")
def page(full) -> Page:
    return Page(html.render(full))


@pytest.fixture(scope="module")
def text(full) -> str:
    return markdown.render(full)


def test_everything_has_its_section(full, page, text):
    assert page.errors == []
    for anchor in ("summary", "diagnosis", "treatment", "mixed", "engines", "lint", "plan", "about", "reproduce"):
        assert anchor in page.ids
    heads = dict(re.findall(r'<section id="(\w+)"[^>]*>\s*<h2>([^<:,]+)', html.render(full)))
    for anchor in ("treatment", "mixed", "engines", "lint", "plan", "about"):
        assert f"## {heads[anchor]}" in text
    assert "treatment" not in Page(html.render(dataclasses.replace(full, treatment=None, mixed=None, engines=()))).ids


def test_treatment_is_the_studys(full, page, text):
    steps = [row[0] for row in page.cells["table-treatment"][1:]]
    assert steps == [step["step"] for step in full.treatment["steps"]] == ["ranges", "bias-correction"]
    kept = {row[0]: row[1] for row in page.cells["table-treatment"][1:]}
    assert all(kept[s["step"]] == ("kept" if s["kept"] else "undone") for s in full.treatment["steps"])
    assert "study.ptc(['ranges', 'bias-correction'])" in full.reproduce
    assert full.command == "", "no command makes this report"
    before = f"{100 * full.treatment['before']['value']:.2f} %"
    assert before in full.summary["loss"]
    assert all(step in text for step in steps)


def test_mixed_precision_is_the_searchs(full, page):
    rows = page.cells["table-mixed"][1:]
    assert rows[0][0] == "found"
    assert {"none", "all", "first", "last"} <= {row[0] for row in rows}
    assert rows[0][1] == str(len(full.mixed["found"]["layers"]))
    assert all(layer in page.text for layer in full.mixed["found"]["layers"])


def test_an_engines_first_departure_is_named(full, page, text):
    """The engine of the fixture is off by three steps at one tap: no code there is equal, and it is listed first."""
    entry = full.engines[0]
    assert entry["first"] == "second"
    row = page.cells["table-engine-1"][2]
    assert row[0] == "second"
    assert row[2] == "0 %"
    assert "perturbed <engine>" in page.text
    assert "perturbed &lt;engine>" in text
    assert all(note.split(",")[0] in page.text for note in PerturbedEngine.notes)


def test_remedies_are_put_to_the_reports_samples():
    """Scores with each remedy are those of `evaluate` on its plan."""
    study = tiny_study(scheme="int8-per-tensor")
    study = study.with_plan(study.plan.with_range("second", -0.02, 0.02))
    found = study.diagnose(progress=False)
    made = make(study, diagnosis=found, worst=0, sensitivity=False, progress=False)
    assert len(made.tried) == sum(c.remedy.changes for c in found.causes) + bool(found.remedies)
    for row, cause in zip(made.tried, found.causes, strict=False):
        score = study.evaluate({"x": cause.remedy.plan(study.plan)}, progress=False)["x"]
        assert row["score"]["value"] == score.value
        assert row["gain"]["value"] == pytest.approx(score.value - made.scores.loc["int8", "score"])


def test_lint_is_that_of_qkit_lint(full, page, text):
    found = qkit.lint(Small(), image_batches()[0][0][:1])
    assert full.lint["counts"] == found.to_dict()["counts"]
    assert [f["rule"] for f in full.lint["findings"]] == [f.rule for f in found.findings]
    rules = {row[2] for row in page.cells["table-lint"][1:]}
    assert rules == {f.rule for f in found.findings}
    assert sum(int(row[1]) for row in page.cells["table-lint"][1:]) == len(found)
    assert all(rule in text for rule in rules)


def test_lint_may_be_left_out():
    made = make(tiny_study(), worst=0, sensitivity=False, lint=False, progress=False)
    assert made.lint is None
    assert "lint=False" in made.settings["lint"]
    assert made.settings["lint"] in Page(html.render(made)).text
    assert "lint=False" in made.reproduce


def test_plan_is_whole(full, page, text):
    assert [row[0] for row in page.cells["table-plan"][1:]] == list(full.plan["grids"])
    for name, grid in full.plan["grids"].items():
        row = next(row for row in page.cells["table-plan"][1:] if row[0] == name)
        assert row[1].startswith(f"{grid['spec']['bits']} bits")
        assert row[4].replace("−", "-") == f"{grid['qmin']} to {grid['qmax']}"
        assert f"`{name}`" in text
    source = html.render(full)
    inside = source.partition('<pre class="long"><code>')[2].partition("</code>")[0]
    import html as entities

    plan = Plan.from_dict(json.loads(entities.unescape(inside)))
    assert plan == Plan.from_dict(full.plan)


def test_codes_that_were_not_made_by_rounding_are_a_hash():
    study = tiny_study(scheme="int8-per-tensor").ptc(["adaptive-rounding"], progress=False)
    grid = study.plan["second.weight"]
    made = make(study, worst=0, sensitivity=False, progress=False)
    entry = made.plan["grids"]["second.weight"]
    if grid.codes is None:
        pytest.skip("adaptive rounding was undone on these random data")
    assert set(entry["codes"]) == {"shape", "sha256"}
    assert "plan.save" in Page(html.render(made)).text


def test_data_and_their_fingerprint(report):
    said = report.data
    assert said["calibration"]["samples"] == said["evaluation"]["samples"] == 32
    assert said["evaluation"]["shapes"] == [[3, 8, 8]]
    assert (said["evaluation"]["batches"], said["same"]) == (2, False)

    def of(batches) -> str:
        return samples.describe(Study(Small(), image_batches(), batches), None, progress=False)[0]["evaluation"]["fingerprint"]

    images = image_batches()
    assert of(images) == said["evaluation"]["fingerprint"]
    x, y = images[0]
    assert of([(x.clone(), y.clone()), images[1]]) == of(images)
    touched = x.clone()
    touched[3, 0, 0, 0] += 1e-6
    others = [[(touched, y), images[1]], [(x, y.flip(0)), images[1]], images[::-1], images[:1]]
    assert len({of(images), *map(of, others)}) == 5


def test_counts_of_batches():
    assert samples.batches_holding([16, 16, 9], 32) == 2
    assert samples.batches_holding([16, 16, 9], 41) == 3
    assert samples.batches_holding([16, 16, 9], 20) is None
    assert samples.batches_holding([], 1) is None


def test_scores_by_sample_are_those_of_the_study(study, report):
    scores = study.evaluate(progress=False)
    assert {lane: s.tolist() for lane, s in report.per_sample.items()} == {n: scores.lanes[n].tolist() for n in scores.lanes}
    encoded = samples.encode({"a": np.array([1.0, 0.0]), "b": np.array([0.5, -1.0])})
    assert encoded == {"a": "10", "b": [0.5, -1.0]}
    assert {n: v.tolist() for n, v in samples.decode(encoded).items()} == {"a": [1.0, 0.0], "b": [0.5, -1.0]}


def test_no_images_unless_asked_for(report, full):
    """Not one number of the feature maps, and the page says what was left out and how to get it."""
    assert report.maps is None
    page = Page(html.render(report))
    assert "images=True" in page.text
    assert report.settings["images"] == LEFT_OUT
    assert sentences(report)["images"] in page.text
    assert not any("Feature maps" in image["alt"] for image in page.images)
    assert full.maps
    shown = Page(html.render(full))
    assert sum("Feature maps" in image["alt"] for image in shown.images) == len(full.maps)
    assert sentences(full)["images"] in shown.text
    assert "images=True" not in sentences(full)["images"]
    assert "images=True" in full.reproduce


def test_feature_maps_are_the_networks():
    study = tiny_study(scheme="int8-per-tensor")
    made = make(study, worst=6, sensitivity=False, images=True, progress=False)
    model = study.model.eval()
    with torch.no_grad():
        exact = model.second(model.first(image_batches()[0][0]))[0].double().numpy()
    entry = made.maps["second"]
    floats, quantized = arrays(entry)
    assert np.allclose(floats, exact[entry["channels"]], atol=1e-5)
    tensors = study.capture(progress=False)["second"]
    assert np.array_equal(quantized, tensors.int8.values[0].numpy()[entry["channels"]])
    noise = ((tensors.int8.values[0] - tensors["float"].values[0]).double() ** 2).sum((1, 2)).numpy()
    ratio = 10 * np.log10((exact**2).sum((1, 2)) / noise)
    assert entry["channels"] == np.argsort(ratio, kind="stable")[:3].tolist()
    assert entry["sqnr"] == pytest.approx(sorted(ratio)[:3], abs=1e-3)
    assert "last" not in made.maps, "a vector has no positions"
    assert base64.b64decode(entry["float"])


def test_large_maps_are_thinned_out():
    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.conv(x)

    data = [(torch.rand(2, 1, 200, 40, generator=torch.Generator().manual_seed(0)), torch.zeros(2))]
    study = Study(Wide(), data, data, metric=lambda outputs, targets: outputs.flatten(1).mean(1))
    made = make(study, worst=3, sensitivity=False, images=True, progress=False)
    entry = made.maps["conv"]
    assert entry["shape"] == [2, 67, 40]
    assert entry["thinned"] == [3, 1]
    assert len(pictures(Page(html.render(made)))) >= 2


def test_the_command_is_one_the_command_line_takes(report):
    words = shlex.split(report.command)
    assert words[:2] == ["qkit", "report"]
    assert words[words.index("--scheme") + 1] == report.settings["scheme"]
    assert make(tiny_study(), worst=0, sensitivity=False, command="qkit demo", progress=False).command == "qkit demo"


def test_folders_of_this_machine_are_taken_out():
    said = without_folders(f"read {Path.home()}/x/y.npz and {sys.prefix}/lib, kept /layer/conv1")
    assert str(Path.home()) + "/" not in said.replace("/layer", "")
    assert sys.prefix not in said
    assert "/layer/conv1" in said


def test_hostile_words_in_every_part(full):
    data = json.loads(json.dumps(full.to_dict()))
    hostile = "<script>alert(1)</script>"

    def spoilt(value):
        if isinstance(value, dict):
            return {k: spoilt(v) for k, v in value.items()}
        if isinstance(value, list):
            return [spoilt(v) for v in value]
        return value + HOSTILE if isinstance(value, str) else value

    made = dataclasses.replace(
        full, treatment={**full.treatment, "remarks": [HOSTILE], "steps": [s | {"why": HOSTILE} for s in full.treatment["steps"]]},
        mixed={**full.mixed, "remarks": [HOSTILE], "found": full.mixed["found"] | {"layers": [HOSTILE]}},
        engines=tuple(spoilt({k: v for k, v in e.items() if k != "taps"}) | {"taps": {HOSTILE: next(iter(e["taps"].values()))}} for e in data["engines"]),
        lint=spoilt(data["lint"]), summary=spoilt(data["summary"]), command=HOSTILE, environment=spoilt(data["environment"]),
        tried=({**_tried(), "text": HOSTILE},), data=full.data,
    )  # fmt: skip
    page = Page(html.render(made))
    assert page.errors == []
    assert page.scripts == 1
    assert page.text.count(hostile) > 20
    from markdown_it import MarkdownIt

    assert "<script>alert" not in MarkdownIt("commonmark").enable("table").render(markdown.render(made))


def _tried() -> dict:
    figure = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 9}
    return {
        "what": "all", "cause": "", "layer": "", "remedy": "", "text": "", "before": figure, "score": figure, "gain": figure,
        "loss": figure,
    }  # fmt: skip
