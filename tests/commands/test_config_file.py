"""The configuration file: what wins, what is refused, and that a run can be repeated from what it wrote."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from command_cases import OWN, Run
from hypothesis import given
from hypothesis import strategies as st

from qkit import cli
from qkit.commands import config

KEYS = st.dictionaries(
    st.from_regex(r"[a-z][a-z-]{0,8}", fullmatch=True),
    st.one_of(
        st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False),
        st.text(st.characters(exclude_categories=("Cs",))), st.lists(st.text(st.characters(exclude_categories=("Cs",))), max_size=3),
    ),
    max_size=5,
)  # fmt: skip


@given(KEYS)
def test_what_is_written_is_the_toml_of_it(values: dict[str, object]) -> None:
    assert tomllib.loads(config.toml(values)) == values


def test_the_command_line_wins_over_the_table_and_that_over_defaults(data: Run, folder: Path) -> None:
    (folder / "qkit.toml").write_text(
        '[defaults]\nmodel = "usernet:make"\ninput-size = "1x3x8x8"\nthreads = 1\n[lint]\ninput_size = "2x3x9x9"\nout = "lint.json"\n'
    )
    code, found = data("lint", "--config", "qkit.toml")
    assert code == 0
    assert found["model"] == "Net"
    assert (folder / "lint.json").is_file()
    assert data("config", "lint", "--from", "qkit.toml")[1]["lint"]["input-size"] == "2x3x9x9"
    assert data("lint", "--config", "qkit.toml", "--input-size", "1x3x16x16", "--out", "other.json")[0] == 0
    assert (folder / "other.json").is_file()


def test_a_run_is_repeated_from_the_configuration_that_it_wrote(data: Run, folder: Path) -> None:
    arguments = ("capture", *OWN, "--scheme", "int8-symmetric", "--tap", "a*", "--tap", "head", "--samples", "3", "--no-values")
    code, first = data(*arguments, "--out", "tensors", "--write-config", "run.toml")
    assert code == 0
    code, second = data("capture", "--config", "run.toml", "--force")
    assert code == 0
    assert second == first
    kept = tomllib.loads((folder / "run.toml").read_text())["capture"]
    assert kept["tap"] == ["a*", "head"]
    assert kept["values"] is False
    assert "plan" not in kept, "what has no value is left out"
    code, other = data("capture", "--config", "run.toml", "--force", "--samples", "2", "--write-config", "run.toml")
    assert (code, other["samples"]) == (0, 2)
    assert tomllib.loads((folder / "run.toml").read_text())["capture"]["samples"] == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[lint]\nmodle = 'x'", ["[lint]", "option 'modle'", "'model'"]),
        ("[defaults]\nsheme = 'int8'", ["[defaults]", "option 'sheme'", "'scheme'"]),
        ("[lint]\nscheme = 'int8'", ["[lint]", "option 'scheme'"]),
        ("[lnt]\nmodel = 'x'", ["[lnt]", "command", "'lint'"]),
        ("[diagnose]\nbatches = 0", ["[diagnose] batches = 0", "equal to 1"]),
        ("[lab]\nport = 70000", ["[lab] port = 70000", "65535"]),
        ("[diagnose]\nbatches = '4'", ["[diagnose] batches = '4'", "integer"]),
        ("[diagnose]\nbatches = true", ["[diagnose] batches = True", "integer"]),
        ("[diagnose]\nbatches = 4.0", ["[diagnose] batches = 4.0", "integer"]),
        ("[diagnose]\ntolerance = 'small'", ["[diagnose] tolerance = 'small'", "number"]),
        ("[diagnose]\ntolerance = true", ["[diagnose] tolerance = True", "number"]),
        ("[diagnose]\ntolerance = nan", ["[diagnose] tolerance = nan", "equal to"]),
        ("[report]\nsensitivity = 'no'", ["[report] sensitivity = 'no'", "boolean"]),
        ("[report]\nsensitivity = 1", ["[report] sensitivity = 1", "boolean"]),
        ("[report]\nout = ['a.html', 3]", ["[report] out = ['a.html', 3]", "string", "(value 2)"]),
        ("[report]\ncompare = ['a.json']", ["[report] compare = ['a.json']", "(value 2)", "OLD NEW"]),
        ("[report]\ncompare = ['a', 'b', 'c']", ["[report] compare = ['a', 'b', 'c']", "2 items", "OLD NEW"]),
        ("[report]\ntitle = 2026-01-31", ["[report] title = datetime.date(2026, 1, 31)", "string"]),
        ("[demo]\nnetwork = 'resnet81'", ["[demo] network = 'resnet81'", "'mobilenet_v2_hostile'", "'inception_small'"]),
        ("[lint]\nmodel = ['a', 'b']", ["[lint] model = ['a', 'b']", "string"]),
        ("[lint]\nconfig = 'other.toml'", ["[lint]", "option 'config'"]),
        ("model = 'x'", ["table"]),
        ("[lint", ["TOML"]),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line(text: str, said: list[str], run: Run, folder: Path) -> None:
    (folder / "qkit.toml").write_text(text)
    code, out, warned = run("lint", "--config", "qkit.toml")
    assert (code, out) == (2, "")
    assert [part for part in said if part not in " ".join(warned.split())] == []
    assert "qkit.toml" in warned
    assert "Traceback" not in warned


def test_an_option_that_can_be_repeated_takes_one_value_too(folder: Path) -> None:
    (folder / "qkit.toml").write_text('[defaults]\nout = "one"\n[capture]\ntap = "a*"\nlane = ["int8", "float"]\n')
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    taken = commands["capture"].make_context("capture", ["--config", "qkit.toml"]).params
    assert (taken["tap"], taken["lane"], taken["out"]) == (["a*"], ["int8", "float"], Path("one"))
    assert commands["report"].make_context("report", ["--config", "qkit.toml"]).params["out"] == [Path("one")]


def test_a_file_that_is_not_there(run: Run) -> None:
    code, _, warned = run("lint", "--config", "nowhere.toml")
    assert code == 2
    assert "nowhere.toml" in warned


def test_a_file_of_somebody_else_is_not_written_over(run: Run, folder: Path) -> None:
    (folder / "pyproject.toml").write_text("[project]\n")
    code, _, warned = run("lint", "--model", "usernet:make", "--input-size", "1x3x8x8", "--write-config", "pyproject.toml")
    assert code == 2
    assert re.search(r"\bpyproject\.toml\b.*\bqkit\b", warned)
    assert (folder / "pyproject.toml").read_text() == "[project]\n"


def test_the_template_has_every_option_and_is_taken_as_it_is(run: Run, data: Run, folder: Path) -> None:
    code, said, _ = run("config")
    assert code == 0
    (folder / "qkit.toml").write_text(said)
    parsed = tomllib.loads(said)
    effective = data("config", "--from", "qkit.toml")[1]
    assert effective == data("config")[1]
    assert set(parsed) == set(effective) == {"demo", "lab", "diagnose", "lint", "capture", "report", "export"}
    for command, options in effective.items():
        assert parsed[command] == {key: value for key, value in options.items() if value is not None}
        assert all(f"\n# {key} =" in said for key, value in options.items() if value is None)
    assert data("config", "lint", "diagnose")[1].keys() == {"lint", "diagnose"}
    assert run("config", "lnt")[0] == 2


def test_a_run_as_a_line_of_shell_is_the_run(run: Run, folder: Path) -> None:
    """The line that goes into reports, given to the command again, makes the same options."""
    seen: list[dict[str, object]] = []
    lines: list[str] = []
    command = typer.main.get_command(cli.app).commands["report"]  # type: ignore[attr-defined]

    def invoke(arguments: list[str]) -> None:
        context = command.make_context("report", list(arguments))
        seen.append(dict(context.params))
        lines.append(config.line(context))

    invoke(["--model", "a b:c", "--out", "x.html", "--out", "y.json", "--no-sensitivity", "--batches", "3", "--images", "-q"])
    invoke(shlex.split(lines[0])[2:])
    assert seen[0] == seen[1]
    assert lines[0] == lines[1]
    assert lines[0].startswith("qkit report --model 'a b:c'")
