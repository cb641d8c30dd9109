"""The report in text and tables, for a terminal, a pull request or an issue."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qkit.report.contents.data import Report
from qkit.report.text import sections, tables
from qkit.report.text.captions import sentences
from qkit.report.text.summary import QUESTIONS
from qkit.report.text.terms import FURTHER_BARS, GLOSSARY
from qkit.style import number


def text(value: object) -> str:
    """Words that markdown leaves as they are, on one line."""
    line = " ".join(str(value).split())
    line = re.sub(r"([\\`*|])", r"\\\1", line)
    # brackets are brackets unless they make a link
    line = re.sub(r"\](?=[(\[:])", r"\\]", line)
    # inside a word an underscore is only an underscore
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    return line.replace("&", "&amp;").replace("<", "&lt;")


def code(value: object) -> str:
    """A name as code, whatever signs it holds."""
    line = " ".join(str(value).split()).replace("|", "\\|") or " "
    fence = "`" * (max((len(run) for run in re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if len(fence) > 1 else f"`{line}`"


def _table(table: tables.Table) -> str:
    grouped = len({column.group for column in table.columns if column.group}) > 1
    heads = [text(f"{column.group} {column.head}".strip() if grouped else column.head) for column in table.columns]
    cells = [[code(cell.text) if cell.name else text(cell.text) for cell in row] for row in table.rows]
    return rows(heads, cells, [not column.words for column in table.columns])


def rows(heads: list[str], cells: list[list[str]], right: list[bool] | None = None) -> str:
    """A table of texts that are markdown already; `right` says which columns are flush right."""
    right = [False] * len(heads) if right is None else right
    widths = [max(3, *(len(line[i]) for line in (heads, *cells))) for i in range(len(heads))]

    def row(texts: list[str]) -> str:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(texts, widths, right, strict=True)]
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join([row(heads), row(rule), *map(row, cells)])


def _on_integers(model: Mapping[str, Any]) -> str:
    """How much of the arithmetic is on integers; nothing where a report from before does not say it."""
    return f", {100 * model['integer_macs']:.1f} % of them on integers" if "integer_macs" in model else ""


def render(report: Report) -> str:
    """The report's text."""
    model, verdict = report.model, report.verdict
    parts = [
        f"# {text(report.title)}",
        f"{text(model['name'])}, scheme {text(report.settings['scheme'])}, {model['taps']} layers, {model['weights']} weights, "
        f"{number(model['macs'])} MACs per sample{_on_integers(model)}. {text(report.environment['date'])}.",
        f"## Verdict: {verdict['verdict']}",
        "\n".join(f"- **{text(question)}** {text(report.summary[key])}" for key, question in QUESTIONS.items()),
        f"Why: {text(verdict['reason'])}",
        f"What it means: {text(verdict['meaning'])}",
        f"What to do next: {text(verdict['then'])}",
    ]
    words = sentences(report)
    parts += ["## Scores", text(words["scores"]), _table(tables.scores(report))]
    parts += _diagnosis(report, words) + _layers(report, words) + _beside(report, words) + _behind(report, words)
    return "\n\n".join(part for part in parts if part) + "\n"


def _diagnosis(report: Report, words: dict[str, str]) -> list[str]:
    found = report.diagnosis
    if found is None:
        return []
    parts = ["## Diagnosis", text(words["diagnosis"])]
    for i, cause in enumerate(tables.causes(report), 1):
        parts.append(
            f"{i}. **{text(cause['kind'])}** at {code(cause['layer'])}: {text(cause['evidence'])} {text(cause['remedy'])} "
            f"({text(cause['facts'])})"
        )
    if report.tried:
        parts += ["### Remedies, before and after", text(words["tried"]), _table(sections.tried(report))]
    if found["remedies"]:
        parts.append("What to do, in this order: " + " ".join(text(remedy["text"]) for remedy in found["remedies"]))
    return [*parts, text(found["qat"]), *map(text, found["remarks"])]


def _layers(report: Report, words: dict[str, str]) -> list[str]:
    parts = ["## Sensitivity: each layer alone", text(words["sensitivity"])]
    if report.sensitivity is not None:
        parts.append(_table(tables.sensitivity(report, tables.bars_shown(report) or FURTHER_BARS)))
    parts += ["## The worst layers", text(words["worst"])]
    for i, entry in enumerate(report.worst, 1):
        facts = [f"- {text(term)}: {text(figures)}" for term, figures in tables.facts(report, entry)]
        parts += [f"### {i}. {code(entry['tap'])}", f"Here because {text(tables.rules(report, entry))}.", "\n".join(facts)]
    parts += ["Histograms and feature maps are in the page and in the JSON. " + text(words["images"])] if report.worst else []
    return parts


def _beside(report: Report, words: dict[str, str]) -> list[str]:
    parts = []
    if report.treatment is not None:
        parts += ["## Post-training calibration", text(words["treatment"]), _table(sections.treatment(report))]
    if report.mixed is not None:
        parts += ["## Mixed precision", text(words["mixed"]), _table(sections.mixed(report))]
    for entry in report.engines:
        said = [f"- {code(tap)}: {text(reason)}" for tap, reason in entry["reasons"].items()]
        said += [f"- {text(note)}" for note in entry["notes"]]
        said += [f"- Not written by the engine: {', '.join(map(code, entry['missing']))}."] if entry["missing"] else []
        parts += [f"## Against a real engine: {text(entry['lane'])}", text(entry["summary"]), "\n".join(said)]
        parts.append(_table(sections.engine(entry)))
    return parts


def _behind(report: Report, words: dict[str, str]) -> list[str]:
    parts = ["## All layers", text(f"{words['layers']} SQNR in dB. {words['infinite']}".strip())]
    parts.append(_table(tables.layers(report, minor=False)))
    parts += ["## Weights", text(words["weights"]) if words["weights"] else _table(tables.weights(report))]
    parts += ["## Lint", text(words["lint"])]
    listed = sections.findings(report)
    parts += [_table(listed)] if listed.rows else []
    parts += ["## The plan", text(words["plan"])]
    grids = sections.plan(report)
    parts += [_table(grids)] if grids.rows else []
    parts.append("## What stays float, and remarks")
    parts += [text(words["notes"])] if words["notes"] else []
    remarks = [f"- {text(remark)}" for remark in report.remarks]
    remarks += [f"- {code(name)}: {text(note)}" for name, note in report.notes.items()]
    parts += ["\n".join(remarks)] if remarks else []
    parts += ["## Data", "\n".join(f"- {text(name)}: {text(value)}" for name, value in sections.data(report))]
    about = [f"- {text(name)}: {text(value)}" for name, value in (report.settings | report.environment).items()]
    parts += ["## Settings and environment", "\n".join(about)]
    parts += ["## How to get this report again", _fenced(report.reproduce, "python")]
    if report.command:
        parts += ["On the command line, with your own model and data in their places:", _fenced(f"{report.command}\n", "sh")]
    return [*parts, "## Terms", "\n".join(f"- **{text(term)}**: {text(said)}" for term, said in GLOSSARY.items())]


def _fenced(lines: str, language: str) -> str:
    # a fence longer than any run of backticks inside
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", lines)), default=0))
    return f"{fence}{language}\n{lines}{fence}"
