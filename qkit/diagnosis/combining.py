"""From causes to what to do: one finding for one cause at several places, remedies everywhere, and their combination."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from qkit.diagnosis.candidates import Candidate, Cause
from qkit.diagnosis.causes import Subject, candidates
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.remedies import EVERYWHERE, Remedy
from qkit.execution.statistics import Interval
from qkit.listing import few
from qkit.quant.plan import FLOAT, Plan

#: A more specific cause is believed if its remedy recovers this share of what the most effective one does.
ALMOST = 0.7
#: A specific cause is believed rather than too few bits if its remedy recovers this share of what 16 bits do.
HALF = 0.5
#: Remedies to combine at most.
_ROUNDS = 6


def rank(cause: Cause) -> tuple[bool, float]:
    """By the gain in the whole network; where that is chance, by the gain alone."""
    if cause.gain is not None and cause.gain.clear:
        return False, -cause.gain.value
    return True, -(cause.alone_gain.value if cause.alone_gain is not None else 0.0)


def grouped(bench: Bench, plan: Plan, causes: Sequence[Cause]) -> list[Cause]:
    """Causes of one kind with one kind of remedy as one finding with its places, its gain measured with all of them put right."""
    groups: dict[tuple[str, str], list[Cause]] = {}
    for cause in sorted(causes, key=rank):
        groups.setdefault((cause.kind, cause.remedy.kind), []).append(cause)
    together = {key: union(group) for key, group in groups.items() if len(group) > 1}
    bench.scores({" ".join(key): remedy.plan(plan) for key, remedy in together.items()}, plan, what="causes at several places")
    found = []
    for key, group in groups.items():
        first = group[0]
        if key in together:
            remedy = together[key]
            places = tuple(cause.tensor for cause in group)
            more = f"{first.evidence} The same at {few(places[1:])}."
            first = replace(first, remedy=remedy, gain=bench.gain(remedy.plan(plan), plan), evidence=more, places=places)
        found.append(first)
    return found


def merged(first: Remedy, remedies: Sequence[Remedy]) -> Remedy:
    """The first with the grids, corrections and factors of several remedies; the last one's win where two set the same."""
    grids = {name: grid for remedy in remedies for name, grid in remedy.grids.items()}
    corrections = {name: values for remedy in remedies for name, values in remedy.corrections.items()}
    factors = {name: values for remedy in remedies for name, values in remedy.factors.items()}
    return replace(first, grids=grids, corrections=corrections, factors=factors)


def union(group: Sequence[Cause]) -> Remedy:
    """The remedies of several causes as one; the first cause's wins where two set the same grid."""
    text = group[0].remedy.text
    if len(group) > 1:
        text = f"{text} Likewise at {few([cause.tensor for cause in group[1:]])}."
    where = few([cause.remedy.layer for cause in group])
    return merged(replace(group[0].remedy, layer=where, text=text), [cause.remedy for cause in reversed(group)])


def once(causes: Sequence[Cause]) -> list[Cause]:
    """What several tensors show of one cause, at its origin and where it is handed on, by the one that gains most."""
    best: dict[tuple[str, str], Cause] = {}
    for cause in causes:
        known = best.get((cause.kind, cause.tensor))
        if known is None or rank(cause) < rank(known):
            best[cause.kind, cause.tensor] = cause
    return list(best.values())


def everywhere(found: Mapping[str, Subject]) -> dict[str, list[Candidate]]:
    """Candidates of all tensors by remedy, for causes that lie in the scheme and not in one tensor."""
    grouped: dict[str, list[Candidate]] = {}
    for subject in found.values():
        for candidate in candidates(subject):
            # equalizations of neighbouring layers set the same weight's grid
            if candidate.remedy.kind == "cross-layer-equalization":
                continue
            grouped.setdefault(candidate.remedy.kind, []).append(candidate)
    return grouped


def together(listed: Sequence[Candidate]) -> Remedy:
    kind = listed[0].remedy.kind
    text = f"{EVERYWHERE[kind]}: {len(listed)} in all."
    return merged(Remedy(kind, "", text), [c.remedy for c in listed])


def confirm_everywhere(bench: Bench, plan: Plan, at_all: Mapping[str, list[Candidate]], local: Sequence[Cause]) -> list[Cause]:
    """A cause in many tensors at once, where no local one explains half of the loss: its remedy on all of them together."""
    loss = bench.gain(FLOAT, plan).value
    explained = max((cause.gain.value for cause in local if cause.gain is not None), default=0.0)
    if explained >= HALF * loss:
        return []
    # 16 bits everywhere are the int16 lane over again: a cause only where there is no other
    kinds = [kind for kind in at_all if kind != "sixteen-bit-layer" or not local]
    remedies = {kind: together(at_all[kind]) for kind in kinds}
    plans = {kind: remedy.plan(plan) for kind, remedy in remedies.items()}
    bench.scores({**plans, "plan": plan}, plan, what="remedies everywhere")
    options = []
    for kind, remedy in remedies.items():
        gain = bench.gain(plans[kind], plan)
        worst = at_all[kind][0]
        if bench.sure(gain) and gain.value > explained and all(worst.kind != cause.kind for cause in local):
            evidence = f"no tensor is confirmed by itself, all {len(at_all[kind])} together are. The first: {worst.evidence}"
            options.append(Cause(worst.kind, "", worst.tensor, evidence, remedy, gain))
    if not options:
        return []
    most = max(c.gain.value for c in options if c.gain is not None)
    enough = [c for c in options if c.gain is not None and c.gain.value >= ALMOST * most]
    return [min(enough, key=lambda cause: cause.remedy.cost)]


def combine(
    bench: Bench, plan: Plan, own: Sequence[Remedy], named: int, at_all: Mapping[str, list[Candidate]], tolerance: float
) -> Iterator[tuple[Remedy, Plan]]:
    """Remedies one by one, each with the plan that has all of them so far, until the plan is close to float.

    Those of named causes, the first of `own`, come first. Of those that do about as well, the cheaper one; of equally cheap ones,
    that with the fewest places which does not gain less than the best by more than chance.
    """
    found = [remedy for remedy in own[:named] if remedy.changes]
    options = [*own, *(together(listed) for kind, listed in at_all.items() if kind != "sixteen-bit-layer")]
    options = [remedy for remedy in options if remedy.changes]
    current = plan
    for _ in range(_ROUNDS):
        if bench.gain(FLOAT, current).value <= tolerance or not options:
            break
        plans = [remedy.plan(current) for remedy in options]
        bench.scores({str(i): p for i, p in enumerate(plans)}, current, what="remedies")
        gains: list[Interval] = [bench.gain(p, current) for p in plans]
        helpful = [i for i, gain in enumerate(gains) if bench.sure(gain)]
        if not helpful:
            break
        most = max(gains[i].value for i in helpful)
        enough = [i for i in helpful if gains[i].value >= ALMOST * most]
        # what to do follows from what was found, where that does about as well as anything
        enough = [i for i in enough if options[i] in found] or enough
        cheapest = min(options[i].cost for i in enough)
        enough = [i for i in enough if options[i].cost == cheapest]
        best = max(enough, key=lambda i: gains[i].value)
        as_good = [i for i in enough if not bench.sure(bench.gain(plans[best], plans[i]))]
        pick = min(as_good, key=lambda i: (options[i].places, -gains[i].value))
        current = plans[pick]
        yield options.pop(pick), current


def without_covered(remedies: Sequence[Remedy]) -> list[Remedy]:
    """The remedies less those that a later one of the same kind does again at all of their places, and at others."""
    return [
        remedy
        for at, remedy in enumerate(remedies)
        if not any(
            later.kind == remedy.kind
            and remedy.grids.keys() <= later.grids.keys()
            and remedy.corrections.keys() <= later.corrections.keys()
            and remedy.factors.keys() <= later.factors.keys()
            for later in remedies[at + 1 :]
        )
    ]
