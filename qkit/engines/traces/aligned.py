"""What an alignment found: which tensor of the trace belongs to which tap, and what does not fit."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from qkit.engines.traces.formats import TraceError
from qkit.listing import few

ProblemKind = Literal[
    "unrelated", "non-finite", "shape", "layout", "frames", "channels", "wrong-tap", "scale", "no-scale", "zero-point", "sign",
    "byte-order", "pre-activation", "post-activation", "renamed", "unmatched", "duplicate", "constant", "differs", "no-tap",
]  # fmt: skip
#: So many notes of one kind are written out.
_EACH = 3
Severity = Literal["error", "mended", "note"]


@dataclass(frozen=True)
class Problem:
    """One thing about a trace that does not fit, or that a reader has to know.

    Attributes
    ----------
    tensor
        The device's name, "" for the whole trace.
    tap
        The kit's, "" where none is known.
    kind
        A word of `ProblemKind`.
    found
        What was found, in a sentence with its figures.
    remedy
        What to do.
    confidence
        0 to 1: how much of what the next best explanation leaves unexplained this one explains.
    severity
        "error": the lane does not run; "mended": undone, the lane runs; "note": the tensor is left out or merely remarkable.
    """

    tensor: str
    tap: str
    kind: ProblemKind
    found: str
    remedy: str
    confidence: float = 1.0
    severity: Severity = "error"

    def __str__(self) -> str:
        where = self.tensor or "the trace"
        return f"{where}: {self.found} {self.remedy}".rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "tensor": self.tensor, "tap": self.tap, "kind": self.kind, "found": self.found, "remedy": self.remedy,
            "confidence": self.confidence, "severity": self.severity,
        }  # fmt: skip


@dataclass(frozen=True)
class Mend:
    """What is undone in a tensor before it is compared; nothing by default.

    Attributes
    ----------
    order
        Order in which the sample's axes (those longer than 1) are stored, where it is not the tap's.
    channels
        For each channel of the tap, the trace's channel that holds it.
    dtype
        Integer type that the bytes are to be read as.
    swap
        Whether the bytes of each number are in the other order.
    step, zero_point
        The grid of the codes, where it is not what was said.
    factor
        What the real numbers are divided by.
    clamp
        Whether the tap's fused activation has to be applied.
    """

    order: tuple[int, ...] | None = None
    channels: tuple[int, ...] | None = None
    dtype: str | None = None
    swap: bool = False
    step: tuple[float, ...] | None = None
    zero_point: tuple[int, ...] | None = None
    factor: float = 1.0
    clamp: bool = False


@dataclass(frozen=True)
class Match:
    """A tensor of the trace and its tap.

    Attributes
    ----------
    tensor, tap
        Names.
    how
        "manifest", "exact", "normalised", "exporter" (by name), "content", or "name only" where contents were not compared.
    correlation
        Of the values with those of the kit's lane that they are most like; NaN where the signal is constant or nothing was
        compared.
    lane
        That lane.
    confidence
        In the match, by content: 0 to 1, see :class:`Problem`. NaN as before.
    mend
        What is undone.
    """

    tensor: str
    tap: str
    how: str
    correlation: float
    lane: str
    confidence: float
    mend: Mend = field(default_factory=Mend)


class MisalignedTraceError(TraceError):
    """A trace does not fit the network; `alignment` says where. Nothing is scored from it."""

    def __init__(self, message: str, alignment: Alignment) -> None:
        super().__init__(message)
        self.alignment = alignment


@dataclass(frozen=True, eq=False)
class Alignment:
    """What the tensors of a trace are.

    Attributes
    ----------
    matches
        By tap, in execution order.
    problems
        Errors first, then what was mended, then notes.
    missing
        Taps that the trace has no tensor for: fused on the device, or not written.
    samples
        The sample that each frame belongs to.
    checked
        Frames whose contents were compared; 0 where only names and shapes were.
    """

    matches: Mapping[str, Match]
    problems: tuple[Problem, ...]
    missing: tuple[str, ...]
    samples: tuple[int, ...]
    checked: int

    @property
    def ok(self) -> bool:
        """Whether the trace may be compared with the kit's lanes."""
        return not self.errors and bool(self.matches)

    @property
    def errors(self) -> tuple[Problem, ...]:
        """Problems that keep the lane from running."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def require(self) -> None:
        """Raise `MisalignedTraceError` unless `ok`."""
        if self.ok:
            return
        errors = self.errors
        more = f" {len(errors) - 1} more: see .alignment.table()." if len(errors) > 1 else ""
        first = str(errors[0]) if errors else "no tensor of it belongs to a tap."
        raise MisalignedTraceError(f"trace-alignment: {first}{more}", self)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the lane's figures has to know, in sentences."""
        alike: dict[tuple[str, str], list[Problem]] = {}
        for problem in self.problems:
            if problem.severity != "error":
                alike.setdefault((problem.severity, problem.kind), []).append(problem)
        found = []
        for problems in alike.values():
            # what holds for many is said once
            some = problems if len(problems) <= _EACH else problems[:1]
            more = f" So with {len(problems) - 1} more." if len(problems) > _EACH else ""
            found += [f"{p.tensor or 'All tensors'}: {p.found} {p.remedy}".rstrip() + more for p in some]
        if self.missing:
            found.append(f"The trace has no tensor for {len(self.missing)} taps (fused, or not written): {few(self.missing, 6)}.")
        if not self.checked:
            found.append("Names and shapes were compared, contents were not.")
        elif self.checked < len(self.samples):
            found.append(f"The contents of the first {self.checked} of {len(self.samples)} frames were compared.")
        elif self.checked == 1:
            found.append("There is one frame: that it is of the right sample was not checked.")
        return tuple(found)

    def table(self) -> pd.DataFrame:
        """A row per tensor with a tap: tap, how it was found, correlation, lane, confidence, and its problems."""
        by_tensor: dict[str, list[str]] = {}
        for problem in self.problems:
            by_tensor.setdefault(problem.tensor, []).append(f"{problem.kind} ({problem.severity})")
        rows = [
            {
                "tensor": m.tensor, "tap": m.tap, "by": m.how, "correlation": m.correlation, "like": m.lane,
                "confidence": m.confidence, "problems": ", ".join(by_tensor.pop(m.tensor, ())),
            }
            for m in self.matches.values()
        ]  # fmt: skip
        empty = {"tap": "", "by": "", "correlation": float("nan"), "like": "", "confidence": float("nan")}
        rows += [{"tensor": tensor or "(all)", **empty, "problems": ", ".join(kinds)} for tensor, kinds in by_tensor.items()]
        columns = ["tensor", "tap", "by", "correlation", "like", "confidence", "problems"]
        return pd.DataFrame(rows, columns=columns).set_index("tensor")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""

        def number(value: float) -> float | None:
            return None if value != value else value  # noqa: PLR0124  # NaN

        return {
            "ok": self.ok,
            "matches": [
                {
                    "tensor": m.tensor, "tap": m.tap, "by": m.how, "correlation": number(m.correlation), "like": m.lane,
                    "confidence": number(m.confidence),
                }
                for m in self.matches.values()
            ],
            "problems": [problem.to_dict() for problem in self.problems],
            "missing": list(self.missing),
            "samples": list(self.samples),
            "checked": self.checked,
        }  # fmt: skip

    def __str__(self) -> str:
        lines = [repr(self), *(f"{p.kind} ({p.severity}, {p.confidence:.2f}): {p}" for p in self.problems)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        counts = {name: sum(p.severity == name for p in self.problems) for name in ("error", "mended", "note")}
        listed = f"{counts['error']} errors, {counts['mended']} mended, {counts['note']} notes"
        what = "ok" if self.ok else "trace-alignment"
        return (
            f"Alignment({what}: {len(self.matches)} taps matched, {len(self.missing)} missing, {self.checked} frames; {listed})"
        )

    def _repr_html_(self) -> str:
        items = "".join(
            f"<li><b>{html.escape(p.kind)}</b> ({p.severity}, {p.confidence:.2f}): {html.escape(str(p))}</li>"
            for p in self.problems
        )
        table = self.table().to_html(float_format="{:.4f}".format)
        return f"<p>{html.escape(repr(self))}</p><ul>{items}</ul>{table}"
