"""What a pipeline relies on: exit codes, JSON alone on standard output, bars in terminals only, interrupts."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from command_cases import OWN, Run

QUICK = ("--no-diagnose", "--no-sensitivity")


def test_two_reports_guard_a_pipeline(run: Run, data: Run, folder: Path) -> None:
    code, told = data("report", *OWN, *QUICK, "--out", "old.json", "--out", "old.md")
    assert code == 0
    assert told["reports"] == ["old.json", "old.md"]
    assert told["scores"]["samples"] == 32
    assert data("report", *OWN, *QUICK, "--scheme", "int4-weights", "--method", "minmax", "--out", "new.json")[0] == 0
    old, new = (json.loads(Path(name).read_text()) for name in ("old.json", "new.json"))
    assert "qkit report --model usernet:make --data usernet:loaders" in old["command"]

    def loss(report: dict[str, dict[str, dict[str, float]]], lane: str) -> float:
        return report["scores"][lane]["loss"]

    grown = 100 * (loss(new, new["lanes"][-1]) - loss(old, old["lanes"][-1]))
    code, same = data("report", "--compare", "old.json", "old.json", "--max-loss", "0")
    assert (code, same["exceeded"]) == (0, False)
    code, told = data("report", "--compare", "old.json", "new.json", "--max-loss", f"{max(grown + 0.5, 0.0)}", "--out", "c.md")
    assert code == (1 if told["unreadable"] else 0)
    assert Path("c.md").read_text().startswith("# ")
    if grown > 1:
        assert run("report", "--compare", "old.json", "new.json", "--max-loss", f"{grown - 0.5}")[0] == 1
    code, said, _ = run("report", "--compare", "old.json", "new.json")
    assert code == 0, "nothing is guarded without --max-loss"
    assert "Verdict" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compare", "old.json"], r"--compare\b.*\b2\b"),
        (["--compare", "nowhere.json", "nowhere.json"], "nowhere.json"),
        (["--compare", "usernet.py", "usernet.py"], "usernet.py"),
        (["--compare", "a.json", "b.json", "--out", "c.html"], r"\.md\b.*\.json\b"),
        (["--compare", "a.json", "b.json", *OWN], r"--compare\b.*--(model|data)\b"),
        (["--max-loss", "1"], r"--max-loss\b.*--compare OLD NEW"),
        ([*OWN, "--out", "report.pdf"], r"\.pdf\b"),
    ],
)
def test_bad_use_of_report_is_exit_code_2(arguments: list[str], said: str, run: Run) -> None:
    code, out, warned = run("report", *arguments)
    assert (code, out) == (2, "")
    assert re.search(said, " ".join(warned.split()))
    assert "Traceback" not in warned


def test_a_loss_beyond_what_is_allowed_is_exit_code_1(data: Run, run: Run, folder: Path) -> None:
    code, told = data("diagnose", *OWN, "--scheme", "int4-weights", "--budget", "12")
    lost = 100 * told["loss8"]["value"]
    assert code == 0
    assert run("diagnose", *OWN, "--scheme", "int4-weights", "--budget", "12", "--fail-on-loss", f"{lost + 1}")[0] == 0
    code, said, _ = run("diagnose", *OWN, "--scheme", "int4-weights", "--budget", "12", "--fail-on-loss", "0")
    assert code == (1 if lost > 0 else 0)
    assert re.search(r"\b0 points\b", said)


def test_an_interrupted_evaluation_writes_no_report(run: Run, folder: Path) -> None:
    code, said, _ = run("report", "--model", "usernet:make", "--data", "usernet:late", *QUICK, "--out", "r.json")
    assert code == 130
    assert "verdict" not in said
    assert not Path("r.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("options", "bars"), [((), True), (("--quiet",), False)])
def test_bars_are_drawn_in_terminals_and_not_with_quiet(options: tuple[str, ...], bars: bool, folder: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    arguments = ["capture", *OWN, "--samples", "2", "--out", "t", "--json", *options]
    environment = {key: value for key, value in os.environ.items() if key != "QKIT_PROGRESS"}
    with subprocess.Popen(
        [sys.executable, "-m", "qkit", *arguments], stdout=subprocess.PIPE, stderr=theirs, cwd=folder, env=environment
    ) as process:
        os.close(theirs)
        drawn = b""
        while True:
            try:
                some = os.read(ours, 4096)
            except OSError:
                break
            if not some:
                break
            drawn += some
        assert process.stdout is not None
        told = json.loads(process.stdout.read())
    os.close(ours)
    assert process.returncode == 0
    assert told["samples"] == 2
    assert (b"calibrating" in drawn or b"capturing" in drawn) == bars
