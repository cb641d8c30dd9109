"""The docs: code that runs, words that are all explained, links that lead somewhere, and a site that builds."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

import qkit
from qkit.diagnosis.candidates import OUTSIDE, CauseKind
from qkit.diagnosis.remedies import RemedyKind
from qkit.diagnosis.verdict import VerdictName

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HOWTO = sorted(path for path in (DOCS / "howto").glob("*.md") if path.name != "index.md")
PAGES = [path for path in DOCS.rglob("*.md") if not {"generated", "notebooks"} & set(path.relative_to(DOCS).parts)]
CAUSES = (DOCS / "causes.md").read_text(encoding="utf-8")
#: Made by the build, not kept.
BUILT = ("generated/", "notebooks/")


@pytest.fixture(scope="module", autouse=True)
def _tools() -> Any:
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


def sections(text: str) -> dict[str, str]:
    """By the heading of the third level, its text."""
    _, *rest = re.split(r"^### (.+)$", text, flags=re.MULTILINE)
    return {
        title.strip(): re.split(r"^## ", body, flags=re.MULTILINE)[0] for title, body in zip(rest[::2], rest[1::2], strict=True)
    }


def pictures(text: str) -> list[str]:
    return re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)


def blocks(path: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("path", HOWTO, ids=lambda path: path.stem)
def test_the_code_of_a_how_to_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = blocks(path)
    assert found, f"{path.name} shows no code"
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        exec(compile(block, path.name, "exec"), names)
    # without a check of its own a page's code has at least to come to a study
    assert isinstance(names["study"], qkit.Study)


@pytest.mark.parametrize("path", HOWTO, ids=lambda path: path.stem)
def test_the_code_of_a_how_to_names_what_there_is(path: Path) -> None:
    for block in blocks(path):
        compile(block, path.name, "exec")
        for module, name in re.findall(r"^from (qkit[\w.]*) import (\w+)$", block, re.MULTILINE):
            assert hasattr(importlib.import_module(module), name) or importlib.import_module(f"{module}.{name}")
        for method in re.findall(r"\bstudy\.(\w+)\(", block):
            assert hasattr(qkit.Study, method), f"{path.name}: study.{method}"


def test_every_how_to_is_listed() -> None:
    listed = (DOCS / "howto" / "index.md").read_text(encoding="utf-8")
    assert all(f"\n{path.stem}\n" in listed for path in HOWTO)
    assert len(HOWTO) >= 12


def test_every_cause_has_a_section_with_a_picture_and_a_source() -> None:
    explained = sections(CAUSES)
    for kind in get_args(CauseKind):
        body = explained[kind]
        shown = pictures(body)
        assert shown, f"{kind} has no picture"
        assert all((DOCS / picture).stat().st_size > 3_000 for picture in shown), kind
        for word in ("**Source**", "**Look for**", "confirmed by" if "confirmed by" in body.lower() else "Found by"):
            assert word.lower() in body.lower(), f"{kind} says nothing of {word}"
        named = {*re.findall(r"\(#([\w-]+)\)", body)} & {*get_args(RemedyKind)}
        assert named, f"{kind} names no remedy"
        assert (kind in OUTSIDE) == (CAUSES[: CAUSES.index(f"### {kind}\n")].count("\n## ") == 2), (
            f"{kind} stands in the wrong part"
        )


def test_every_remedy_has_a_section_with_a_picture_and_a_source() -> None:
    explained = sections(CAUSES)
    for kind in get_args(RemedyKind):
        body = explained[kind]
        referred = [name for name in re.findall(r"\(#([\w-]+)\)", body) if name in get_args(CauseKind)]
        shown = [*pictures(body), *(picture for name in referred for picture in pictures(explained[name]))]
        assert shown, f"{kind} has no picture, and refers to no cause that has one"
        assert "Source" in body or kind == "fix-input"


def test_no_section_explains_a_word_that_is_none() -> None:
    assert set(sections(CAUSES)) == {*get_args(CauseKind), *get_args(RemedyKind)}


def test_every_picture_of_a_cause_is_shown_and_compact() -> None:
    kept = list((DOCS / "causes").iterdir())
    assert len(kept) >= len(get_args(CauseKind))
    assert {f"causes/{path.name}" for path in kept} == set(pictures(CAUSES))
    assert all(path.stat().st_size < 90_000 for path in kept)


def test_sources_are_listed_and_used() -> None:
    listed = CAUSES.split("## Sources")[1]
    known = {(match[1], match[2]) for match in re.finditer(r"^- ([A-Z]\w+).*? (\d{4}),", listed, re.MULTILINE)}
    used = {(match[1], match[2]) for match in re.finditer(r"\[([A-Z]\w+)[^\]]* (\d{4})\]\(#sources\)", CAUSES)}
    assert used == known


def test_the_vocabulary_lists_every_word() -> None:
    page = (DOCS / "reference" / "vocabulary.md").read_text(encoding="utf-8")
    for word in (*get_args(CauseKind), *get_args(RemedyKind), *get_args(VerdictName), *qkit.PRESETS):
        assert f"`{word}`" in page, word


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = path if not target else (path.parent / target).resolve()
        if str(file.relative_to(ROOT)).removeprefix("docs/").startswith(BUILT):
            continue
        assert file.is_file(), f"{path.name}: {link}"
        if anchor and anchor != "figures":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}, link


@pytest.mark.slow
def test_the_reference_has_every_public_name() -> None:
    from sitetools import reference

    text = "\n".join(reference.texts().values())
    for name in qkit.__all__:
        assert re.search(rf"qkit(\.\w+)*\.{name}$", text, re.MULTILINE), f"qkit.{name} is on no page"
    for module in reference.MODULES:
        for name in reference.public(importlib.import_module(module)):
            assert re.search(rf"^{name}\n~+$", text, re.MULTILINE), f"{module}.{name} is on no page"


def test_the_commands_page_has_every_command_and_option() -> None:
    from sitetools import commands
    from typer.testing import CliRunner

    from qkit.cli import app

    page = commands.page()
    said = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERM": "dumb"}).output
    listed = re.findall(r"^[│ ]*([a-z][a-z-]+) {2,}\S", said, re.MULTILINE)
    assert {"demo", "diagnose", "report", "lint"} <= set(listed)
    for name in listed:
        assert f"\n## qkit {name}\n" in page, name
    for option in ("--model", "--data", "--tolerance", "--no-sensitivity", "--verbose"):
        assert option in page


def test_links_of_copies_are_put_right(tmp_path: Path) -> None:
    from sitetools import links

    root = tmp_path.resolve()
    moved = {root / "README.md": root / "docs" / "index.md"}
    text = "[a](../README.md#x) ![b](../docs/p.png) [c](02.ipynb) [d](#here) [e](https://a.b/c) [f](../data/x.csv)"
    found = links.relinked(text, root / "notebooks", root / "docs" / "notebooks", moved)
    expected = (
        "[a](../index.md#x) ![b](../p.png) [c](../../notebooks/02.ipynb) [d](#here) [e](https://a.b/c) [f](../../data/x.csv)"
    )
    assert found == expected


def test_copies_of_notebooks_keep_outputs_and_lose_widgets(tmp_path: Path) -> None:
    from sitetools import notebooks

    widget = "application/vnd.jupyter.widget-view+json"
    output = {"output_type": "display_data", "data": {widget: {"model_id": "1"}, "image/png": "aaaa"}, "metadata": {}}
    cell = {"cell_type": "code", "source": "x", "outputs": [output], "metadata": {}, "execution_count": 1}
    words = {"cell_type": "markdown", "source": ["see [b](b.ipynb)"], "metadata": {}}
    document = {"cells": [words, cell], "metadata": {"widgets": {"a": 1}}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "a.ipynb").write_text(json.dumps(document), encoding="utf-8")
    goal = tmp_path / "docs" / "notebooks"
    made = json.loads(notebooks.copies(tmp_path, goal, {tmp_path.resolve() / "b.ipynb": goal.resolve() / "b.ipynb"})["a.ipynb"])
    assert made["cells"][0]["source"] == "see [b](b.ipynb)"
    assert made["cells"][1]["outputs"][0]["data"] == {"image/png": "aaaa"}
    assert "widgets" not in made["metadata"]
    assert json.loads((tmp_path / "a.ipynb").read_text(encoding="utf-8")) == document, "the notebook itself stays"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    # any proxy but none: what wants the network fails
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", str(DOCS), str(tmp_path / "site")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    page = (tmp_path / "site" / "causes.html").read_text(encoding="utf-8")
    assert page.count("<math") >= 12, "formulas are drawn by the browser itself"
    for html in (tmp_path / "site").rglob("*.html"):
        text = html.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(https?://[^\"]+)\"", text)
        assert not fetched, f"{html.name} fetches {fetched[0]}"
