"""What surgery did: the new model, every change, and what it could not change."""

from __future__ import annotations

import html
from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from qkit.execution.scores import Scores
from qkit.execution.statistics import Interval
from qkit.surgery.cost import LITE

_COLUMNS = ("rule", "before", "after", "exact", "reason", "file", "line")
_MOST_LINES = 8


@dataclass(frozen=True)
class Change:
    """One module that was replaced.

    Attributes
    ----------
    path
        Of the module, "" for the model itself.
    before, after
        What it was and what it is, as short text.
    rule
        A name of `qkit.surgery.RULES`.
    exact
        Whether the new module computes what the old one did, but for float rounding.
    """

    path: str
    before: str
    after: str
    rule: str
    exact: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and booleans."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.path or '(model)'}: {self.before} -> {self.after} [{self.rule}{', exact' if self.exact else ''}]"


@dataclass(frozen=True)
class Unchanged:
    """One operation that a rule speaks of and that was left as it is.

    Attributes
    ----------
    path
        Of the module that it is, or in whose forward it is called.
    what
        The module or the call, as short text.
    rule
        A name of `qkit.surgery.RULES`.
    reason
        Why it was left, and what to do.
    file, line
        Of the call; None for a module.
    """

    path: str
    what: str
    rule: str
    reason: str
    file: str | None = None
    line: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain strings and numbers."""
        return asdict(self)

    def __str__(self) -> str:
        where = f"{Path(self.file).name}:{self.line}: " if self.file is not None else ""
        return f"{where}{self.path or '(model)'}: {self.what} stays [{self.rule}]: {self.reason}"


@dataclass(frozen=True, eq=False)
class Surgery:
    """The answer of :func:`qkit.surgery.lite`.

    Attributes
    ----------
    model
        A copy of the model with the changes made.
    changes
        Every replaced module, in the order of `named_modules`.
    unchanged
        What the rules speak of and what could not be replaced.
    remarks
        What could not be looked at, and why.
    scores
        What the model scores as it was ("float") and with the changes ("lite"), both in float; None where no data were given.
    """

    model: nn.Module
    changes: tuple[Change, ...]
    unchanged: tuple[Unchanged, ...] = ()
    remarks: tuple[str, ...] = ()
    scores: Scores | None = None

    @cached_property
    def loss(self) -> Interval | None:
        """What the changes cost in float, expected of many such samples; None where it was not measured."""
        return None if self.scores is None else self.scores.expected_loss(LITE)

    @property
    def loose(self) -> int:
        """How many changes alter what the model computes."""
        return sum(not change.exact for change in self.changes)

    @property
    def needs_retraining(self) -> bool:
        """Whether the changes cost more than the metric's tolerance; without data, whether any alters what the model computes."""
        if self.scores is None or self.loss is None:
            return self.loose > 0
        return self.loss.value > self.scores.tolerance()

    @property
    def advice(self) -> str:
        """What has to happen before the model is used."""
        if not self.changes:
            return "Nothing was replaced; the model computes what it did."
        if not self.loose:
            return "Every change is exact: the model computes what it did, and no retraining is needed."
        what = f"{self.loose} of {len(self.changes)} changes alter what the model computes"
        if self.scores is None or self.loss is None:
            return f"{what}. Give lite your evaluation data (evaluation=) to see what that costs, before you retrain."
        cost = self.scores.units.amount(self.loss.value, self.loss.low, self.loss.high)
        cost = f"{what}, which costs {cost} in float on {self.scores.n} samples"
        return f"{cost}: retrain the model." if self.needs_retraining else f"{cost}: no retraining is needed."

    def table(self) -> pd.DataFrame:
        """A row per change, then a row per operation left as it is (no ``after``), indexed by path."""
        rows = [{**c.to_dict(), "reason": "", "file": None, "line": None} for c in self.changes]
        rows += [{**u.to_dict(), "before": u.what, "after": "", "exact": None} for u in self.unchanged]
        frame = pd.DataFrame(rows, columns=["path", *_COLUMNS])
        return frame.astype({"line": "Int64"}).set_index("path")

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, strings and numbers; without the model."""
        return {
            "model": type(self.model).__name__,
            "needs_retraining": self.needs_retraining,
            "changes": [change.to_dict() for change in self.changes],
            "unchanged": [item.to_dict() for item in self.unchanged],
            "remarks": list(self.remarks),
            "loss": None if self.loss is None else self.loss.to_dict(),
        }

    def __repr__(self) -> str:
        counts = Counter(change.rule for change in self.changes)
        listed = ", ".join(f"{n} {rule}" for rule, n in counts.items()) or "none"
        lines = [f"Surgery({type(self.model).__name__}: {len(self.changes)} changes ({listed})). {self.advice}"]
        lines += [f"  {item}" for item in self.unchanged[:_MOST_LINES]]
        if len(self.unchanged) > _MOST_LINES:
            lines.append(f"  and {len(self.unchanged) - _MOST_LINES} more left as they are; .table() has them all")
        lines += [f"  {remark}" for remark in self.remarks]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        remarks = "".join(f"<p>{html.escape(remark)}</p>" for remark in self.remarks)
        table = str(self.table().to_html(na_rep="")) if self.changes or self.unchanged else ""
        return f"<p><b>{html.escape(self.advice)}</b></p>{remarks}{table}"
