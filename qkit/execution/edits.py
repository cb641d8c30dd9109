"""Edits of a plan: each made and written as code by the same few numbers, so that the two never part; undo and redo.

No widget is needed for any of it; the widgets are its front end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from qkit.errors import PlanError
from qkit.execution.editing import rule_of, suggestions
from qkit.quant.estimators import Method
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import Plan

if TYPE_CHECKING:
    from qkit.study import Study

__all__ = ["Chosen", "Edit", "History", "Ranged", "Reset", "Ruled", "Scaled", "choose"]


def choose(
    study: Study, tensors: Sequence[str], method: Method, *, percentile: float = 99.99, spec: QuantSpec | None = None,
    plan: Plan | None = None,
) -> Plan:  # fmt: skip
    """A plan in which these tensors have the ranges that a calibration method chooses; see `Study.choose`."""
    result = study.plan if plan is None else plan
    for tensor in tensors:
        rule = result[tensor].spec if spec is None else spec
        found = suggestions(study, tensor, rule, percentile)
        if method not in found:
            raise PlanError(f"{method} is not defined for the grid of {tensor}; there are {', '.join(found)}.")
        result = result.with_grid(tensor, found[method])
    return result


#: Several names as an expression in Python.
Listed = Callable[[Sequence[str]], str]


class Edit:
    """What makes a plan of the one before.

    Attributes
    ----------
    tensors
        Those whose grids it changes.
    whole
        Whether these grids are the same whatever they were before.
    """

    tensors: tuple[str, ...]
    whole = True

    def made(self, plan: Plan) -> Plan:
        """The plan after it."""
        raise NotImplementedError

    def code(self, after: Plan, names: Sequence[str], study: str, listed: Listed) -> list[str]:
        """The same in Python, for some of its tensors: lines that make ``plan`` of ``plan``."""
        raise NotImplementedError


@dataclass(frozen=True)
class Chosen(Edit):
    """Ranges by a calibration method, each tensor's by its own rule with these changes.

    Attributes
    ----------
    said
        A pattern or kind that means the tensors, for the code; "" for none.
    """

    study: Study
    tensors: tuple[str, ...]
    method: Method
    percentile: float = 99.99
    changes: tuple[tuple[str, object], ...] = ()
    said: str = ""

    def made(self, plan: Plan) -> Plan:
        """The plan after it."""
        for tensor in self.tensors:
            spec = rule_of(plan[tensor], **dict(self.changes))
            plan = choose(self.study, [tensor], self.method, percentile=self.percentile, spec=spec, plan=plan)
        return plan

    def code(self, after: Plan, names: Sequence[str], study: str, listed: Listed) -> list[str]:
        """A call of `Study.choose` for each rule."""
        rules: dict[QuantSpec, list[str]] = {}
        for name in names:
            rules.setdefault(after[name].spec, []).append(name)
        lines = []
        for spec, tensors in rules.items():
            options = f", percentile={self.percentile!r}" if self.method == "percentile" else ""
            # what the plan has before is what the study came with, unless it was changed on the way
            changed = any(self.study.plan[name].spec != spec for name in tensors)
            options += f", spec=qkit.{_spec_code(spec)}" if changed else ""
            which = repr(self.said) if self.said and set(tensors) == set(self.tensors) else listed(tensors)
            lines.append(f"plan = {study}.choose({which}, {self.method!r}{options}, plan=plan)")
        return lines


@dataclass(frozen=True)
class Ruled(Edit):
    """Another rule on the same ranges, see `Plan.with_rule`."""

    tensors: tuple[str, ...]
    changes: tuple[tuple[str, object], ...]
    whole = False

    def made(self, plan: Plan) -> Plan:
        """The plan after it."""
        return plan.with_rule(self.tensors, **dict(self.changes))  # type: ignore[arg-type]

    def code(self, after: Plan, names: Sequence[str], study: str, listed: Listed) -> list[str]:
        """A call of `Plan.with_rule`."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.changes)
        return [f"plan = plan.with_rule({listed(names)}, {options})"]


@dataclass(frozen=True)
class Ranged(Edit):
    """A range by hand: the tensor's, or one channel's."""

    tensor: str
    lo: float
    hi: float
    channel: int | None = None

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """The one."""
        return (self.tensor,)

    @property
    def whole(self) -> bool:  # type: ignore[override]
        """Other channels stay as they were."""
        return self.channel is None

    def made(self, plan: Plan) -> Plan:
        """The plan after it."""
        if self.channel is None:
            return plan.with_range(self.tensor, self.lo, self.hi)
        low, high = plan[self.tensor].params.lo, plan[self.tensor].params.hi
        low[self.channel], high[self.channel] = self.lo, self.hi
        return plan.with_range(self.tensor, low, high)

    def code(self, after: Plan, names: Sequence[str], study: str, listed: Listed) -> list[str]:
        """The range as numbers."""
        if self.channel is None:
            return _ranges(after, names)
        return [
            f"lo, hi = plan[{self.tensor!r}].params.lo, plan[{self.tensor!r}].params.hi",
            f"lo[{self.channel}], hi[{self.channel}] = {float(self.lo)!r}, {float(self.hi)!r}",
            f"plan = plan.with_range({self.tensor!r}, lo, hi)",
        ]


@dataclass(frozen=True)
class Scaled(Edit):
    """Both ends of every tensor's range times a factor."""

    tensors: tuple[str, ...]
    low: float
    high: float
    whole = False

    def made(self, plan: Plan) -> Plan:
        """The plan after it."""
        for name in self.tensors:
            params = plan[name].params
            plan = plan.with_range(name, params.lo * self.low, params.hi * self.high)
        return plan

    def code(self, after: Plan, names: Sequence[str], study: str, listed: Listed) -> list[str]:
        """A loop over the tensors."""
        return [
            f"for name in {listed(names)}:",
            "    params = plan[name].params",
            f"    plan = plan.with_range(name, params.lo * {self.low!r}, params.hi * {self.high!r})",
        ]


@dataclass(frozen=True)
class Reset(Edit):
    """Back to the first plan."""

    base: Plan

    @property
    def tensors(self) -> tuple[str, ...]:  # type: ignore[override]
        """All."""
        return tuple(self.base.grids)

    def made(self, plan: Plan) -> Plan:
        """The first plan."""
        return self.base

    def code(self, after: Plan, names: Sequence[str], study: str, listed: Listed) -> list[str]:
        """Nothing: the code begins with that plan."""
        return []


@dataclass(frozen=True)
class History:
    """Plans in the order in which they were made, which of them is the current one, and how each was made of the one before."""

    plans: tuple[Plan, ...]
    at: int = 0
    edits: tuple[Edit | None, ...] = ()

    @property
    def plan(self) -> Plan:
        """The current one."""
        return self.plans[self.at]

    @property
    def base(self) -> Plan:
        """The first one."""
        return self.plans[0]

    @property
    def previous(self) -> Plan:
        """The one before the current one; the first has itself."""
        return self.plans[max(self.at - 1, 0)]

    @property
    def can_undo(self) -> bool:
        """Whether there is one before."""
        return self.at > 0

    @property
    def can_redo(self) -> bool:
        """Whether one was undone."""
        return self.at < len(self.plans) - 1

    def then(self, plan: Plan, edit: Edit | None = None) -> History:
        """That plan is the current one now; what was undone before is gone. The same plan once more changes nothing.

        Parameters
        ----------
        edit
            What made it of the current one, for `code`; without it the code has the ranges as numbers.
        """
        same = plan == self.plan and {n: g.spec for n, g in plan.grids.items()} == {n: g.spec for n, g in self.plan.grids.items()}
        if same:
            return self
        edits = (*self.edits, *[None] * len(self.plans))[: self.at + 1]
        return History((*self.plans[: self.at + 1], plan), self.at + 1, (*edits, edit))

    def undone(self) -> History:
        """One step back, if there is one."""
        return replace(self, at=max(self.at - 1, 0))

    def redone(self) -> History:
        """One step forth, if there is one."""
        return replace(self, at=min(self.at + 1, len(self.plans) - 1))

    def code(self, study: str = "study") -> str:
        """Python that makes the current plan from that of the variable `study`: ranges and rules equal to the last bit.

        Every tensor's last edits are written as they were made: a method by its name, a range by its ends. What cannot be
        written so (biases, accumulators, new grids) is said in a comment.
        """
        apart = self.base.diff(self.plan)
        rules = {n for n, g in self.plan.grids.items() if n in self.base.grids and g.spec != self.base[n].spec}
        changed = [name for name, (old, new) in apart.items() if old is not None and new is not None]
        changed += [name for name in self.plan.grids if name in rules and name not in changed]
        rounded = [name for name in changed if self.plan[name].codes is not None]
        lines = [f"# {name} was rounded by a remedy or by study.ptc(), which its range alone does not tell" for name in rounded]
        variables: dict[tuple[str, ...], str] = {}

        def listed(names: Sequence[str]) -> str:
            """Several names as a variable, so that they are written once."""
            if len(names) == 1:
                return repr(list(names))
            return variables.setdefault(tuple(names), f"tensors_{len(variables) + 1}" if variables else "tensors")

        steps = self._steps(changed, study, listed)
        for names, variable in variables.items():
            lines += [f"{variable} = [", *(f"    {name!r}," for name in names), "]"]
        lines += steps
        if gone := [name for name, (_, grid) in apart.items() if grid is None]:
            lines.append(f"plan = plan.without({gone!r})")
        if new := [name for name, (old, _) in apart.items() if old is None]:
            lines.append(f"# new grids are left out: {', '.join(new)}")
        if self.plan.bias_bits != self.base.bias_bits or self.plan.corrections != self.base.corrections:
            lines.append("# biases were changed by a remedy: study.apply(remedy) does that")
        if self.plan.accumulator_bits != self.base.accumulator_bits:
            lines.append(f"# accumulators have {self.plan.accumulator_bits} bits: Scheme(accumulator_bits=) sets that")
        if self.plan.arithmetic != self.base.arithmetic:
            lines.append(f"# inside operations without weights: Scheme(arithmetic={self.plan.arithmetic}) sets that")
        body = "\n".join(lines)
        needed = [f"import {name}" for name in ("qkit", "torch") if f"{name}." in body]
        return "\n".join([*needed, *([""] if needed else []), f"plan = {study}.plan", *lines, f"tuned = {study}.with_plan(plan)"])

    def _steps(self, changed: Sequence[str], study: str, listed: Listed) -> list[str]:
        """Lines for the edits that the changed tensors' grids come from, the last whole one of each and what follows it."""
        open_for = dict.fromkeys(changed)
        edits = (*self.edits, *[None] * len(self.plans))
        parts: list[list[str]] = []
        for i in range(self.at, 0, -1):
            before, after, edit = self.plans[i - 1], self.plans[i], edits[i]
            touched = edit.tensors if edit is not None else tuple(_different(before, after))
            names = [name for name in open_for if name in touched]
            if not names:
                continue
            parts.append(_ranges(after, names) if edit is None else edit.code(after, names, study, listed))
            if edit is None or edit.whole:
                for name in names:
                    del open_for[name]
        return [line for part in reversed(parts) for line in part]


def _different(a: Plan, b: Plan) -> list[str]:
    """Names of grids that differ in numbers or rule."""
    apart = a.diff(b)
    return [name for name in b.grids if name in apart or (name in a.grids and a[name].spec != b[name].spec)]


def _ranges(plan: Plan, names: Sequence[str]) -> list[str]:
    """Lines that set the ranges of these tensors as the plan has them."""
    lines = []
    for name in names:
        params, spec = plan[name].params, plan[name].spec
        axis = "" if params.axis is None else f", axis={params.axis}"
        if params.axis is None:
            spec = replace(spec, per_channel=False)  # a weight without a channel axis has one grid, whatever its rule
        lines += [
            f"plan = plan.with_range({name!r}, {_literal(params.lo)}, {_literal(params.hi)},",
            f"    spec=qkit.{_spec_code(spec)}{axis})",
        ]
    return lines


def _literal(bound: Tensor) -> str:
    """The bound as Python writes it, all digits of a float64."""
    if bound.ndim == 0:
        return repr(float(bound))
    return f"torch.tensor({[float(v) for v in bound]!r}, dtype=torch.float64)"


def _spec_code(spec: QuantSpec) -> str:
    plain = QuantSpec()
    given = {name: value for name, value in vars(spec).items() if value != getattr(plain, name)}
    return f"QuantSpec({', '.join(f'{name}={value!r}' for name, value in given.items())})"
