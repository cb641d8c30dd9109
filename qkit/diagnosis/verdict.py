"""The fork of every diagnosis: 16 bits before 8.

Close at 16 bits and degraded at 8 means quantization; degraded at 16 bits too means something else is wrong (TI's flow
gives the rule and no number; the number here is `tolerance`, the user's).
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from qkit.execution.metrics import TOLERANCE, Interval, Scores
from qkit.graph.share import Share
from qkit.style import SHARES

VerdictName = Literal["no-degradation", "quantization", "not-quantization", "both", "inconclusive"]

#: Share of multiply-accumulates on integers from which on a verdict is about the whole network.
NEARLY_ALL = 0.99


@dataclass(frozen=True)
class Verdict:
    """The answer, its reason in a sentence, and the losses it rests on.

    Attributes
    ----------
    name
        A word of the vocabulary.
    reason
        One or two sentences with the figures.
    wide, narrow
        Loss of the 16-bit and of the 8-bit lane against float, with paired intervals; None where no lane could be run.
    samples_needed
        For "inconclusive": about how many samples would tell.
    """

    name: VerdictName
    reason: str
    wide: Interval | None
    narrow: Interval | None
    samples_needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As plain numbers and strings."""
        return {
            "verdict": self.name,
            "reason": self.reason,
            "loss16": None if self.wide is None else self.wide.to_dict(),
            "loss8": None if self.narrow is None else self.narrow.to_dict(),
            "samples_needed": self.samples_needed,
        }

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"

    def _repr_html_(self) -> str:
        return f"<p><b>{html.escape(self.name)}</b>: {html.escape(self.reason)}</p>"


def judge(
    scores: Scores, *, wide: str = "int16", narrow: str = "int8", tolerance: float = TOLERANCE, expected: float | None = None,
    share: Share | None = None,
) -> Verdict:  # fmt: skip
    """The verdict from the scores of the float, 16-bit and 8-bit lanes.

    A lane is *degraded* if it loses more than `tolerance` and the interval of its loss excludes 0; *close* if it loses no
    more than `tolerance` and the interval stays below twice that; anything between is too uncertain to tell.

    Parameters
    ----------
    expected
        The float score that the user believes in; a float lane that misses it by more than its interval and the
        tolerance is itself a finding: what is wrong then was wrong before any quantization.
    share
        How much of the network is computed on integers. Where that is nothing there is no verdict, and where it is not nearly all
        the verdict says so.
    """
    if share is not None and share.macs == 0.0:
        reason = "nothing of this network's arithmetic is computed on integers here, so the lanes say nothing about it: "
        reason += "study.graph.notes says what stays float, and why."
        return Verdict("inconclusive", reason, scores.loss(wide), scores.loss(narrow))
    found = _judged(scores, wide, narrow, tolerance, expected)
    if share is None or share.macs >= NEARLY_ALL:
        return found
    part = f"{100 * (1.0 - share.macs):.1f} % of the multiply-accumulates run in float here, of which this says nothing."
    return replace(found, reason=f"{found.reason.rstrip('.')}. {part}")


def _judged(scores: Scores, wide: str, narrow: str, tolerance: float, expected: float | None) -> Verdict:
    loss_wide, loss_narrow = scores.loss(wide), scores.loss(narrow)
    state_wide, state_narrow = _state(loss_wide, tolerance), _state(loss_narrow, tolerance)
    share = scores.metric in SHARES
    at_wide = f"{wide} loses {amount(loss_wide, share)}"
    at_narrow = f"{narrow} loses {amount(loss_narrow, share)}"
    width = narrow.removeprefix("int")
    bits = f"{width} bits" if width.isdigit() else f"the bits of {narrow}"
    base = scores["float"]
    if expected is not None and not base.low - tolerance <= expected <= base.high + tolerance:
        found, wanted = (f"{x:.2%}" if share else f"{x:.4g}" for x in (base.value, expected))
        reason = f"float itself scores {found} where {wanted} was expected: look at data, preprocessing and checkpoint first. "
        extra = f"Beside that, {at_wide} and {at_narrow} against this float score."
        beside = state_wide == "close" and state_narrow == "degraded"
        return Verdict("both" if beside else "not-quantization", reason + extra, loss_wide, loss_narrow)
    if "unclear" in (state_wide, state_narrow):
        unclear = loss_wide if state_wide == "unclear" else loss_narrow
        needed = _samples_needed(unclear, tolerance)
        least = f"{100 * tolerance:.4g} point{'' if 100 * tolerance == 1 else 's'}" if share else f"{tolerance:.4g}"
        reason = f"{at_wide}, {at_narrow}: {scores.n} samples are too few to tell a loss of {least} from none; "
        reason += f"about {needed} would do."
        return Verdict("inconclusive", reason, loss_wide, loss_narrow, needed)
    if state_wide == "close":
        if state_narrow == "close":
            return Verdict("no-degradation", f"{at_wide} and {at_narrow}: both are close to float.", loss_wide, loss_narrow)
        reason = f"16 bits are close to float and {bits} are not ({at_wide}, {at_narrow}): it is quantization."
        return Verdict("quantization", reason, loss_wide, loss_narrow)
    further = scores.loss(narrow, against=wide)
    if _state(further, tolerance) == "degraded":
        reason = (
            f"16 bits are degraded too ({at_wide}), so something other than rounding is wrong; {bits} lose a further "
            f"{amount(further, share)}, which is quantization on top."
        )
        return Verdict("both", reason, loss_wide, loss_narrow)
    reason = (
        f"16 bits are degraded as well as {bits} ({at_wide}, {at_narrow}): it is not rounding. Look at ranges that clip, the "
        "calibration data, the graph and the engine."
    )
    return Verdict("not-quantization", reason, loss_wide, loss_narrow)


def degraded(loss: Interval, tolerance: float = TOLERANCE) -> bool:
    """Whether more than the tolerance is lost, and that is no chance."""
    return _state(loss, tolerance) == "degraded"


def _state(loss: Interval, tolerance: float) -> Literal["degraded", "close", "unclear"]:
    if loss.value > tolerance:
        return "degraded" if loss.low > 0 else "unclear"
    return "close" if loss.high <= 2 * tolerance else "unclear"


def _samples_needed(loss: Interval, tolerance: float) -> int:
    """Samples at which the interval's half-width, shrinking with the root of their number, is the tolerance."""
    half = (loss.high - loss.low) / 2
    if not math.isfinite(half):
        return 2
    return math.ceil(loss.n * max((half / tolerance) ** 2, 1.1))


def amount(loss: Interval, share: bool) -> str:
    """A loss or gain with its interval, for a sentence: in points if the score is a share of 1."""
    if not share:
        return f"{loss.value:.4g} [{loss.low:.4g}, {loss.high:.4g}]"
    return f"{100 * loss.value:.1f} points [{100 * loss.low:.1f}, {100 * loss.high:.1f}]"
