"""What lint finds, and how it is shown: as a compiler's lines, a table, a page, plain numbers."""

from __future__ import annotations

import html
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

Severity = Literal["error", "warning", "note"]

SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

#: Lines of one rule that the text shows, by severity, before it counts the rest; the table has them all, errors are never cut.
MOST_LINES: dict[Severity, int] = {"warning": 5, "note": 2}

_INSTALLED = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib"))

_COLUMNS = ("severity", "rule", "layer", "file", "line", "message", "cure")


@dataclass(frozen=True)
class Finding:
    """One thing to know about a model.

    Attributes
    ----------
    rule
        A fixed string, such as "data-dependent-control-flow" or "convolution-without-batchnorm"; `RULES` has them all.
    severity
        "error": shown to keep `qkit.Study` from taking the model, or from computing what it does; "warning": likely to cost
        accuracy, or suspected; "note": good to know.
    message
        What was found, with its figures.
    cure
        What to do about it.
    layer
        Path of the module, "" for the model itself.
    file, line
        Of the user's code: the line to blame, or the line that runs the layer. None where there is none.
    """

    rule: str
    severity: Severity
    message: str
    cure: str
    layer: str = ""
    file: str | None = None
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{_shown(self.file)}:{self.line}: " if self.file is not None else ""
        layer = f"{self.layer}: " if self.layer else ""
        return f"{where}{self.severity}: {layer}{self.message} {self.cure} [{self.rule}]"


#: Every rule and what it is about.
RULES: dict[str, str] = {
    "assert": "an assert on a traced value",
    "data-dependent-control-flow": "a branch or loop that depends on a tensor's data or shape",
    "untraceable-call": "a call that takes concrete values and was given traced ones",
    "item-assignment": "a write to elements of a traced tensor",
    "buffer-changed-in-forward": "a buffer, or other state, that a pass in evaluation mode changes",
    "data-dependent-shape": "a result whose shape depends on the data",
    "frozen-control-flow": "a decision that the trace makes once, and differently from the model",
    "side-effect": "something that happens while tracing and not when the graph runs",
    "different-result": "the traced graph computes something else than the model",
    "convolution-without-batchnorm": "a convolution that no norm is folded into",
    "norm-not-folded": "a norm that no layer takes in: an operation of its own",
    "depthwise-spread": "a depthwise convolution whose channels' ranges are far apart",
    "replaceable-activation": "an activation that lite models replace by ReLU",
    "squeeze-and-excitation": "a gate per channel, computed from the pooled tensor",
    "weight-decay": "how the optimizer treats the parameters",
    "shared-module": "a module or parameter that is used more than once",
    "float-layer": "a layer that stays float in every lane",
    "large-pool": "a pool with a large window",
    "kernel-size": "a convolution with a large or an even kernel",
    "non-finite": "weights that are not finite",
}


@dataclass(frozen=True)
class Lint:
    """The answer of :func:`qkit.lint`.

    Attributes
    ----------
    findings
        Errors first, then warnings, then notes, each in the order of execution.
    model_name
        The model's class.
    traced
        Whether `qkit.Study` takes the model as it is.
    remarks
        What will be folded, what has to be said of how the model came, and what could not be looked at.
    front
        The way in that takes it: "export" (torch.export), "fx" (torch.fx), "onnx" or "pt2"; None where none does.
    """

    findings: tuple[Finding, ...]
    model_name: str
    traced: bool
    remarks: tuple[str, ...] = ()
    front: str | None = None

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that have to be mended before a study."""
        return self.of("error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that are likely to cost accuracy, or suspected to stop a trace."""
        return self.of("warning")

    @property
    def notes(self) -> tuple[Finding, ...]:
        """Findings that are good to know."""
        return self.of("note")

    @property
    def ok(self) -> bool:
        """Whether there are no errors."""
        return not self.errors

    def of(self, kind: str) -> tuple[Finding, ...]:
        """Findings of a rule or of a severity.

        Raises
        ------
        KeyError
            If there is no such rule or severity.
        """
        if kind not in RULES and kind not in SEVERITIES:
            raise KeyError(f"{kind!r} is neither a severity ({', '.join(SEVERITIES)}) nor a rule ({', '.join(RULES)})")
        return tuple(f for f in self.findings if kind in (f.rule, f.severity))

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    def table(self) -> pd.DataFrame:
        """A row per finding: severity, rule, layer, file, line (nullable integer), message, cure."""
        frame = pd.DataFrame([f.to_dict() for f in self.findings], columns=list(_COLUMNS))
        return frame.astype({"line": "Int64"})

    def to_dict(self) -> dict[str, Any]:
        """Plain strings, numbers and lists."""
        return {
            "model": self.model_name,
            "traced": self.traced,
            "front": self.front,
            "ok": self.ok,
            "counts": {severity: len(self.of(severity)) for severity in SEVERITIES},
            "findings": [f.to_dict() for f in self.findings],
            "remarks": list(self.remarks),
        }

    def summary(self) -> str:
        """One line: counts, and whether a study takes the model."""
        counts = ", ".join(f"{len(self.of(s))} {s}{'' if len(self.of(s)) == 1 else 's'}" for s in SEVERITIES)
        return f"{self.model_name}: {counts}; {taken(self.front, traced=self.traced)}"

    def shown(self) -> tuple[tuple[Finding, ...], dict[tuple[Severity, str], int]]:
        """Findings for reading, of one severity and rule at most `MOST_LINES`, and how many more there are of which."""
        seen: Counter[tuple[Severity, str]] = Counter()
        kept = []
        for finding in self.findings:
            key = finding.severity, finding.rule
            seen[key] += 1
            if seen[key] <= MOST_LINES.get(finding.severity, len(self.findings)):
                kept.append(finding)
        return tuple(kept), {key: n - MOST_LINES[key[0]] for key, n in seen.items() if n > MOST_LINES.get(key[0], n)}

    def __str__(self) -> str:
        kept, more = self.shown()
        lines = []
        for i, finding in enumerate(kept):
            lines.append(str(finding))
            key = finding.severity, finding.rule
            if key in more and key not in {(f.severity, f.rule) for f in kept[i + 1 :]}:
                lines.append(f"{finding.severity}: … {more[key]} more of {finding.rule}; .table() lists all")
        return "\n".join([*lines, *self.remarks, self.summary()])

    def __repr__(self) -> str:
        return f"Lint({self.summary()})"

    def _repr_html_(self) -> str:
        kept, more = self.shown()
        head = "".join(f"<th>{column}</th>" for column in ("severity", "rule", "layer", "where", "message", "cure"))
        rows = "".join(
            "<tr>"
            + "".join(
                f"<td style='text-align: left'>{html.escape(cell)}</td>"
                for cell in (f.severity, f.rule, f.layer, where(f), f.message, f.cure)
            )
            + "</tr>"
            for f in kept
        )
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if kept else ""
        rest = [f"{n} more of {rule} ({severity}); .table() lists all" for (severity, rule), n in more.items()]
        return (
            "".join(f"<p>{html.escape(line)}</p>" for line in (self.summary(), *self.remarks))
            + table
            + "".join(f"<p>{html.escape(line)}</p>" for line in rest)
        )


def taken(front: str | None, *, traced: bool) -> str:
    """Whether a study takes the model, and by which way in, in words."""
    if not traced:
        return "qkit.Study does not take it as it is"
    ways = {
        "export": " through torch.export",
        "fx": " through torch.fx",
        "onnx": " from its ONNX file",
        "pt2": " as it was exported",
    }
    return f"qkit.Study takes it{ways.get(front or '', '')}"


def where(finding: Finding) -> str:
    """``file:line`` of a finding, as people read it; "" without a file."""
    return "" if finding.file is None else f"{_shown(finding.file)}:{finding.line}"


def ordered(findings: list[Finding]) -> tuple[Finding, ...]:
    """Errors, warnings, notes; in each the order is kept, and what is said twice is said once."""
    unique = dict.fromkeys(findings)
    return tuple(f for severity in SEVERITIES for f in unique if f.severity == severity)


def moved(finding: Finding, site: tuple[str, int] | None) -> Finding:
    """The finding at another place."""
    return replace(finding, file=site[0], line=site[1]) if site else finding


def _shown(file: str | None) -> str:
    """The path from the working directory on, or from the folder of installed packages on, where it lies in one of them."""
    path = Path(file or "")
    for folder in (Path.cwd(), *_INSTALLED):
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)
