"""Alignment: does each tensor of a trace belong to the tap that it is taken for, before any difference is blamed on the engine?

A tensor with a tap's name is put beside the kit's own tensors for the same frames. Quantization, and even a broken layer, make
values different; they do not make them *like something else*. So a tensor is called misaligned only where one assumption (another
order of axes, of frames, of channels, another tap, no activation, another sign of the codes, a constant factor or offset)
explains its values, and leaves at most half of what the name leaves unexplained. A tensor without a name is matched by content
alone, with the distance to the second best as confidence. Everything that says nothing (a constant signal) decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from qkit.engines.traces.aligned import Alignment, Match, Mend, Problem, ProblemKind, Severity
from qkit.engines.traces.assumptions import Look, View
from qkit.engines.traces.dumped_tensors import Trace
from qkit.engines.traces.matching import chance, frame_correlations, frame_order, lead
from qkit.engines.traces.names import Names
from qkit.engines.traces.search import search
from qkit.engines.traces.signatures import References, references, squeezed
from qkit.engines.traces.trace_grids import check_grid
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.plan import Plan

#: Frames whose contents are compared.
CHECK = 32
#: An explanation has to reach this correlation, and to leave at most half of what the name leaves unexplained.
GOOD, HALF = 0.8, 0.5
#: A tensor without a name has to be this much like the tap that it is taken for.
LIKE = 0.5
#: As it stands, this good is beyond suspicion.
RIGHT = 0.98
#: Below this with everything, a trace is of other inputs or of another network.
_UNRELATED = 0.3
_RANK = {"error": 0, "mended": 1, "note": 2}

#: What to say of each kind: what was found, and what was done or is to be done where it is (not) undone.
_WORDS: Mapping[str, tuple[str, str]] = {
    "layout": ("its axes are stored as {order}", "give that layout in the manifest"),
    "channels": ("its channels are in another order: {channels}", "bring channels into the network's order (RGB against BGR?)"),
    "wrong-tap": ("its content is that of {tap}", "correct its name: names and tensors are mixed up"),
    "pre-activation": (
        "it holds values from before the activation that the tap ends in",
        "write the tensor behind the activation",
    ),
    "post-activation": ("it holds values behind an activation that the tap does not have", "write the tensor before it"),
    "sign": ("its codes are {dtype}", "give that dtype in the manifest"),
    "byte-order": ("the bytes of its numbers are in the other order", 'give "byte_order" in the manifest'),
}


def align(
    graph: Graph, trace: Trace, names: Names, loader: Iterable[Any] | None, *, plans: Mapping[str, Plan] | None = None,
    samples: Sequence[int] | None = None, mend: bool = True, check: int = CHECK, ignore: Sequence[str] = (),
    progress: bool = True,
) -> Alignment:  # fmt: skip
    """Find the tap of every tensor and what does not fit.

    Parameters
    ----------
    loader
        Batches that the frames' samples are in; None: contents are not compared.
    plans
        Quantized lanes that the values may be like, beside float.
    samples
        The sample that each frame belongs to; by default frame k to sample k.
    mend
        Undo what can be undone unambiguously; otherwise it is an error too.
    check
        Frames to compare.
    ignore
        Tensors (or taps) to leave out.

    Raises
    ------
    DataError
        If the loader has fewer samples than there are frames.
    """
    belongs = tuple(range(trace.frames)) if samples is None else tuple(samples[: trace.frames])
    work = _Alignment(graph, trace, names, mend, frozenset(ignore), belongs)
    work.by_name()
    count = 0 if loader is None else max(min(check, trace.frames), 1)
    if loader is not None:
        known = references(graph, loader, plans or {}, belongs[:count], progress=progress)
        work.compare(known, count)
    return work.result(count)


class _Alignment:
    def __init__(
        self, graph: Graph, trace: Trace, names: Names, mend: bool, ignore: frozenset[str], samples: tuple[int, ...]
    ) -> None:  # fmt: skip
        self.graph, self.trace, self.names, self.mend, self.samples = graph, trace, names, mend, samples
        self.tensors = {t.name: t for t in trace.tensors if t.name not in ignore and t.tap not in ignore}
        self.named: dict[str, tuple[Operation, str]] = {}
        self.unnamed: list[str] = []
        self.matches: dict[str, Match] = {}
        self.problems: list[Problem] = []
        self.ignore = ignore

    def say(
        self, tensor: str, tap: str, kind: ProblemKind, found: str, remedy: str, *, confidence: float = 1.0, mended: bool = False,
        note: bool = False,
    ) -> None:  # fmt: skip
        """Note a problem; what could be undone is an error where nothing is to be undone."""
        severity: Severity = "note" if note else "mended" if mended and self.mend else "error"
        self.problems.append(Problem(tensor, tap, kind, found, remedy, confidence, severity))

    def by_name(self) -> None:
        """Taps by the tensors' names, each tap once; the better way of finding it wins."""
        rank = {"manifest": 0, "exact": 1, "normalised": 2, "exporter": 3}
        claims: dict[str, list[tuple[int, str, Operation, str]]] = {}
        for name, tensor in self.tensors.items():
            op, how = self.names.find(name)
            if tensor.tap is not None:
                # raises where the manifest names a tap that is none
                op, how = self.graph.operation(tensor.tap), "manifest"
            if op is None:
                self.unnamed.append(name)
            elif op.name in self.ignore:
                continue
            elif not op.quantized:
                self.say(name, op.name, "no-tap", f"{op.name} has no grid of its own; it was left out.", "", note=True)
            else:
                claims.setdefault(op.name, []).append((rank[how], name, op, how))
        for claimed in claims.values():
            _, name, op, how = min(claimed, key=lambda c: c[0])
            self.named[name] = op, how
            self.unnamed += [other for _, other, _, _ in claimed if other != name]
        for name, (op, how) in list(self.named.items()):
            look = Look(self.tensors[name], (), References((), {}, 1))
            if not look.fits(op):
                del self.named[name]
                found = f"it has {self.tensors[name].dims} numbers a sample, the tap {op.name} {op.shape[1:]}."
                self.say(name, op.name, "shape", found, "It is another tensor, or its batch was not told from its axes.")
            else:
                self.matches[op.name] = Match(name, op.name, how, float("nan"), "", float("nan"))

    def compare(self, known: References, count: int) -> None:
        """Contents, once the kit's are known."""
        self.matches.clear()
        looks = {name: Look(tensor, range(count), known) for name, tensor in self.tensors.items()}
        for name in [*self.named, *self.unnamed]:
            self._finite(name, looks)
        frames = self._frames(looks, known, count)
        for look in looks.values():
            look.frames = frames
            look.release()
        best: list[float] = []
        for name, (op, how) in self.named.items():
            if name in looks:
                best.append(self._check(looks[name], op, how))
                looks[name].release()
        compared = [r for r in best if np.isfinite(r)]
        if compared and max(compared) < _UNRELATED:
            found = f"none of its {len(compared)} tensors is like the kit's on these inputs (at most {max(compared):.2f})."
            remedy = "It is of other inputs, of another preprocessing, or its dtype is wrong."
            self.say("", "", "unrelated", found, remedy, confidence=1.0 - max(*compared, 0.0))
        self._search([looks[name] for name in self.unnamed if name in looks], known, count)

    def _finite(self, name: str, looks: dict[str, Look]) -> None:
        tensor = self.tensors[name]
        if tensor.is_integer:
            return
        values = tensor.take(range(min(tensor.frames, looks[name].known.samples)))
        with np.errstate(over="ignore", invalid="ignore"):
            bad = int((~np.isfinite(values)).sum())
        if bad == 0:
            return
        del looks[name]
        tap = self.named[name][0].name if name in self.named else ""
        found = f"{bad} of {values.size} numbers are NaN or infinite."
        self.say(name, tap, "non-finite", found, "Its dtype or byte order is wrong, or the engine overflows there.")

    def _frames(self, looks: Mapping[str, Look], known: References, count: int) -> list[int]:
        """For each sample, its frame: the order in which most tensors are most like the kit's."""
        given = list(range(count))
        if count < 2:
            return given
        matrices = []
        for name, look in looks.items():
            if name in self.named:
                candidates = [self.named[name][0]]
            else:
                candidates = [op for op in self.graph.operations if op.name in known.values and look.fits(op)]
            matched = [m for op in candidates[:8] for m in self._frame_matrices(look, op, known)]
            look.release()
            if matched:
                matrices.append(max(matched, key=lambda m: float(m.max(1).mean())))
        if not matrices:
            return given
        order, confidence = frame_order(np.mean(matrices, 0))
        if confidence == 0.0:
            return given
        moved = [i for i, j in enumerate(order) if i != j]
        whole = count == self.trace.frames
        listed = ", ".join(f"{i} is sample {self.samples[order[i]]}" for i in moved[:6]) + (", …" if len(moved) > 6 else "")
        told = 'Give samples= (or "samples" in the manifest): the sample of each frame.'
        remedy = "They were put in order." if whole and self.mend else told
        found = f"{len(moved)} of {count} frames belong to other samples: {listed}."
        self.say("", "", "frames", found, remedy, confidence=confidence, mended=whole)
        if whole and self.mend:
            self.samples = tuple(self.samples[j] for j in order)
        return [order.index(sample) for sample in range(count)]

    @staticmethod
    def _frame_matrices(look: Look, op: Operation, known: References) -> list[np.ndarray]:
        tried = look.possible(op) if len(squeezed(op)[0]) < 4 else look.possible(op)[:1]
        y = known.values[op.name]["float"]
        return [frame_correlations(look.values(op, order), y) for order in tried]

    def _check(self, look: Look, op: Operation, how: str) -> float:
        """A named tensor under every assumption; returns the best correlation that was found."""
        name = look.tensor.name
        views = list(look.views(op))
        own = views[0] if views[0].kind is None else View(op, None, Mend(), float("nan"), "float")
        if not any(np.isfinite(view.correlation) for view in views):
            self.say(
                name, op.name, "constant", "its signal or the kit's is constant: nothing can be told from it.", "", note=True
            )
            order = own.mend.order if views[0].kind is None else None
            self.matches[op.name] = Match(name, op.name, how, float("nan"), "", float("nan"), Mend(order=order))
            return float("nan")
        r = own.correlation if np.isfinite(own.correlation) else 0.0
        if r < RIGHT or own is not views[0]:
            others = [view for view in views if view.kind is not None and np.isfinite(view.correlation)]
            others += self._as_others(look, op)
            others.sort(key=lambda view: -view.correlation)
            if others and others[0].correlation >= GOOD and lead(others[0].correlation, r) >= HALF:
                self._explained(look, op, how, others, r)
                return others[0].correlation
        if views[0].kind is not None:
            self._by_shape(look, op, how)
            return r
        second = max([v.correlation for v in views[1:] if v.kind == "layout"] + [chance(look.tensor.size, look.known.samples)])
        if r < 0.2:
            found = f"its values are unlike the kit's (correlation {r:.2f}), and no misalignment explains that."
            self.say(name, op.name, "differs", found, "Look at what the engine does there.", note=True)
        self._accept(look, own, how, lead(r, second))
        return r

    def _as_others(self, look: Look, op: Operation) -> list[View]:
        found = search([look], self.graph, look.known, clamp=False)
        return [
            View(v.op, "wrong-tap", v.mend, v.correlation, v.lane) for v in (found[0].views if found else []) if v.op is not op
        ]

    def _by_shape(self, look: Look, op: Operation, how: str) -> None:
        """A shape that is the tap's in another order, and contents that do not say which."""
        name, dims = look.tensor.name, squeezed(op)[0]
        stored = tuple(size for size in look.tensor.dims if size > 1)
        fitting = [order for order in look.possible(op) if tuple(dims[axis] for axis in order) == stored]
        found = f"it is stored as {look.tensor.dims}, the tap {op.name} has {op.shape[1:]}"
        if len(fitting) == 1:
            remedy = "They were put in order by their sizes alone."
            self.say(name, op.name, "layout", f"{found}: its axes are in another order.", remedy, confidence=0.5, mended=True)
            self._accept(look, View(op, "layout", Mend(order=fitting[0]), *look.best(look.values(op, fitting[0]), op)), how, 0.5)
        else:
            self.say(name, op.name, "layout", f"{found}.", "Give its layout in the manifest.")

    def _explained(self, look: Look, op: Operation, how: str, others: Sequence[View], r: float) -> None:
        """What a better explanation means: undone where it can be and no other is as good."""
        best = others[0]
        assert best.kind is not None
        rival = next((v.correlation for v in others[1:] if (v.op, v.kind) != (best.op, best.kind) or v.kind == "layout"), 0.0)
        confidence = lead(best.correlation, max(rival, r))
        mendable = best.kind != "post-activation" and confidence >= HALF and best.op.quantized
        words, todo = _WORDS[best.kind]
        what = words.format(order=_order_name(best), channels=_channel_words(best), tap=best.op.name, dtype=best.mend.dtype)
        found = f"{what} (correlation {best.correlation:.3f}, as it stands {r:.3f})."
        remedy = f"That was undone; to be sure, {todo}." if mendable and self.mend else f"{todo[0].upper()}{todo[1:]}."
        self.say(look.tensor.name, op.name, best.kind, found, remedy, confidence=confidence, mended=mendable)
        if mendable and self.mend:
            self._accept(look, best, how if best.op is op else "content", confidence)

    def _accept(self, look: Look, view: View, how: str, confidence: float) -> None:
        """Take a tensor for a tap's, after a look at its scale and offset."""
        name, tap = look.tensor.name, view.op.name
        order = view.mend.order or ()
        mend = view.mend
        if np.isfinite(view.correlation):
            x = look.values(view.op, order, mend)
            mend, problem = check_grid(x, look.known.values[tap][view.lane], look.tensor, tap, mend)
            if problem is not None:
                self.problems.append(problem if self.mend or problem.severity != "mended" else replace(problem, severity="error"))
        match = Match(name, tap, how, view.correlation, view.lane, confidence, mend)
        held = self.matches.get(tap)
        if held is not None:
            better, worse = (match, held) if match.correlation > held.correlation else (held, match)
            self.say(
                worse.tensor, tap, "duplicate", f"{better.tensor} is {tap} too, and more like it; it was left out.", "", note=True
            )
            match = better
        self.matches[tap] = match

    def _search(self, looks: Sequence[Look], known: References, count: int) -> None:
        """Tensors that no name brought to a tap, by content."""
        for found in search(looks, self.graph, known, clamp=True, taken=frozenset(self.matches)):
            name = found.look.tensor.name
            if not found.views:
                self.say(
                    name,
                    "",
                    "unmatched",
                    "it has no tap's name, and no tap of its size is like it; it was left out.",
                    "",
                    note=True,
                )
                continue
            best = found.views[0]
            second = max([v.correlation for v in found.views[1:]] + [chance(found.look.tensor.size, count)])
            confidence = lead(best.correlation, second)
            if best.correlation < (LIKE if best.kind is None else GOOD) or confidence < HALF:
                near = ", ".join(f"{v.op.name} ({v.correlation:.3f})" for v in found.views[:3])
                what = f"it has no tap's name, and its content does not tell which tap it is: {near}; it was left out."
                self.say(name, "", "unmatched", what, "Name its tap in the manifest.", confidence=confidence, note=True)
            elif not best.op.quantized:
                what = f"its content is that of {best.op.name}, which has no grid of its own; it was left out."
                self.say(name, best.op.name, "no-tap", what, "", confidence=confidence, note=True)
            elif best.op.name in self.matches:
                held = self.matches[best.op.name].tensor
                what = f"its content is that of {best.op.name}, which {held} is already; it was left out."
                self.say(name, best.op.name, "duplicate", what, "", confidence=confidence, note=True)
            else:
                what = f"its content is that of {best.op.name} (correlation {best.correlation:.4f})."
                self.say(name, best.op.name, "renamed", what, "It was taken for it.", confidence=confidence, mended=True)
                if best.kind is not None:
                    words = _WORDS[best.kind][0].format(order=_order_name(best))
                    self.say(name, best.op.name, best.kind, f"{words}.", "That was undone.", confidence=confidence, mended=True)
                self._accept(found.look, best, "content", confidence)

    def result(self, checked: int) -> Alignment:
        """What was found."""
        operations = [op.name for op in self.graph.operations if op.quantized and op.kind != "constant"]
        missing = tuple(tap for tap in operations if tap not in self.matches and tap not in self.ignore)
        if not self.matches and not any(p.severity == "error" for p in self.problems):
            self.say(
                "", "", "unmatched", f"none of its {len(self.tensors)} tensors belongs to a tap.", "Name taps in the manifest."
            )
        matches = {tap: self.matches[tap] for tap in operations if tap in self.matches}
        place = {name: number for number, name in enumerate(["", *self.tensors])}
        problems = tuple(sorted(self.problems, key=lambda p: (_RANK[p.severity], place.get(p.tensor, 0))))
        return Alignment(matches, problems, missing, self.samples, checked)


def _order_name(view: View) -> str:
    sample = view.op.shape[1:]
    kept = [axis for axis, size in enumerate(sample) if size > 1]
    letters = {3: "CHW", 2: "CT", 1: "C"}.get(len(sample), "".join(map(str, range(len(sample)))))
    return "N" + "".join(letters[kept[axis]] for axis in view.mend.order or ())


def _channel_words(view: View) -> str:
    channels: Callable[[int], str] = str
    order = view.mend.channels or ()
    moved = [i for i, j in enumerate(order) if i != j]
    return ", ".join(f"{channels(i)} is stored as {order[i]}" for i in moved[:5]) + (", …" if len(moved) > 5 else "")
