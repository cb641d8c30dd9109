"""The README's tour runs as it is printed, and what the text says of its results is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    study = names["study"]
    assert study.verdict().name == "quantization"
    worst = names["table"]["int8"]["local sqnr"].idxmin()
    assert worst == names["tap"].name, "the README shows the worst tap"
    spread = names["capture"].weights()["float", "channel spread"][f"{worst}.weight"]
    assert spread > 200, "the README says factors of hundreds"
    alone = study.sensitivity("only", layers=[worst]).effect(0)
    assert 0.45 < alone.value < 0.55, "the README says 50 points"
    assert names["diagnosis"].causes[0].layer == worst
    assert names["fixed"].verdict().name == "no-degradation"
    assert names["spread"].verdict().name == "no-degradation"
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000


def test_files_that_the_readme_names_are_there() -> None:
    root = Path(__file__).parent.parent
    table = README.split("| file | what it does |")[1].split("\n\n")[0]
    named = [name for name in re.findall(r"`([\w/.]+)`", table) if not name.startswith(("nn.", "."))]
    assert len(named) > 15
    missing = [name for name in named if not (root / "qkit" / name).exists()]
    assert not missing
    pictures = re.findall(r"\]\(([\w/.]+\.(?:png|md))\)", README)
    assert pictures
    assert all((root / picture).is_file() for picture in pictures)


def test_the_readme_lists_every_preset() -> None:
    from qkit import PRESETS

    assert all(f"`{preset}`" in README for preset in PRESETS)
