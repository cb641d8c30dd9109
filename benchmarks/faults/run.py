"""Runs cases: builds each, measures its truth by score, asks baselines and diagnosis, and puts the remedies to the test."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from benchmarks.faults.baselines import answers
from benchmarks.faults.build import Built, build
from benchmarks.faults.cases import CaseSpec
from benchmarks.faults.setup import scores_of
from benchmarks.faults.truth import BOTH, EFFECT, NO_DEGRADATION, NOT_QUANTIZATION, QUANTIZATION
from qkit.errors import QkitError
from qkit.execution.statistics import Interval

#: Remedies of a diagnosis that are put to the test on images it never saw.
REMEDIES = 5


def run_case(spec: CaseSpec, *, compare: bool = True) -> dict[str, Any]:
    """One JSON-ready record; an exception becomes the record's ``error``.

    Without `compare` the diagnosis alone is asked: no simpler rules beside it, no remedies on images that it never saw.
    """
    record: dict[str, Any] = spec.to_dict() | {"kinds": list(spec.kinds)}
    started = time.perf_counter()
    try:
        built = build(spec)
        record["truth"] = truth(built)
        record["seconds"] = {"build": time.perf_counter() - started}
        record |= _diagnose(built, record["seconds"], compare)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc(limit=-6)
    record.setdefault("seconds", {})["all"] = time.perf_counter() - started
    return record


def truth(built: Built) -> dict[str, Any]:
    """What is true of the case, with the scores that show it on the images of the diagnosis."""
    images = built.calibration, built.diagnosis
    scores = {"now": _scores(built.setup, images), "twin": _scores(built.twin, images)}
    effect = _effect(scores["twin"], scores["now"])
    found: dict[str, Any] = {
        "faults": [fault.to_dict() for fault in built.faults],
        "planned": list(built.verdicts),
        "scores": scores,
        "effect": effect,
        "notes": built.notes[-12:],
    }
    if not built.faults:
        now = scores["now"]
        sound = max(now["float"] - now["int8"], now["float"] - now["int16"], scores["twin"]["own"] - now["own"]) <= EFFECT
        return found | {"effective": sound, "verdicts": list(built.verdicts)}
    if not built.parts:
        to_score = NO_DEGRADATION not in built.verdicts
        effective = effect > EFFECT if to_score else effect <= EFFECT
        return found | {
            "effective": effective,
            "verdicts": list(built.verdicts) if effective or not to_score else [NO_DEGRADATION],
        }
    return found | _truth_of_two(built, scores, images)


def _truth_of_two(built: Built, scores: dict[str, Any], images: Any) -> dict[str, Any]:
    """Both faults count where undoing each alone shows that it costs score in the presence of the other."""
    first, second = (_scores(part, images) for part in built.parts)
    scores |= {"first alone": first, "second alone": second}
    quantized = second["int8"] - scores["now"]["int8"] > EFFECT
    other = max(first[lane] - scores["now"][lane] for lane in ("own", "float", "int16")) > EFFECT
    verdict = {(True, True): BOTH, (True, False): QUANTIZATION, (False, True): NOT_QUANTIZATION}.get(
        (quantized, other), NO_DEGRADATION
    )
    return {"effective": quantized and other, "verdicts": [verdict], "costs": [quantized, other]}


def _scores(setup: Any, images: Any) -> dict[str, float]:
    try:
        return scores_of(setup, *images)
    except (QkitError, AttributeError, TypeError):
        # a model that the kit refuses still has a score of its own
        return {"own": float(setup.own_scores(*images).mean())}


def _effect(twin: dict[str, float], now: dict[str, float]) -> float:
    return max(abs(twin[lane] - now[lane]) for lane in now)


def _diagnose(built: Built, seconds: dict[str, float], compare: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    started = time.perf_counter()
    compared = compare and built.setup.calibrated
    if compared:
        calibration, _ = built.setup.loaders(built.calibration, built.diagnosis)
        try:
            found["baselines"] = answers(built.setup.study(built.calibration, built.diagnosis), calibration)
        except Exception as error:
            found["baselines"] = {"error": f"{type(error).__name__}: {error}"}
    seconds["baselines"] = time.perf_counter() - started
    started = time.perf_counter()
    study = built.setup.study(built.calibration, built.diagnosis)
    diagnosis = study.diagnose(check_export=False, progress=False)
    seconds["diagnosis"] = time.perf_counter() - started
    started = time.perf_counter()
    found["said"] = {
        "verdict": diagnosis.verdict.name,
        "causes": [cause_record(cause) for cause in diagnosis.causes],
        "findings": [cause_record(cause) for cause in diagnosis.findings],
        "samples": diagnosis.samples,
        "evaluations": diagnosis.evaluations,
    }
    found["remedies"] = remedies(built, study, diagnosis) if compared else []
    seconds["remedies"] = time.perf_counter() - started
    return found


def cause_record(cause: Any) -> dict[str, Any]:
    remedy = cause.remedy
    return {
        "kind": cause.kind,
        "layer": cause.layer,
        "tensor": cause.tensor,
        "remedy": None if remedy is None else remedy.kind,
        "changes": bool(remedy is not None and remedy.changes),
        "gain": None if cause.gain is None else cause.gain.to_dict(),
    }


def remedies(built: Built, study: Any, diagnosis: Any) -> list[dict[str, Any]]:
    """Claimed gain of each remedy, and of the best plan, with the gain on the held-out images."""
    held = built.setup.study(built.calibration, built.held_out)
    plans: dict[str, tuple[Any, Any, Interval | None]] = {}
    for rank, cause in enumerate([c for c in diagnosis.causes if c.remedy is not None and c.remedy.changes][:REMEDIES]):
        plans[f"{rank}:{cause.kind}:{cause.remedy.kind}"] = (
            cause.remedy.plan(study.plan),
            cause.remedy.plan(held.plan),
            cause.gain,
        )
    if diagnosis.best is not None and diagnosis.best != study.plan:
        plans["best"] = (diagnosis.best, diagnosis.best, None)
    found = []
    for name, (seen_plan, held_plan, stated) in plans.items():
        claimed = stated if stated is not None else _gain(study, seen_plan)
        if claimed.value > 0:
            found.append({"name": name, "claimed": claimed.to_dict(), "held": _gain(held, held_plan).to_dict()})
    return found


def _gain(study: Any, plan: Any) -> Interval:
    scores = study.evaluate({"now": study.plan, "cured": plan}, progress=False)
    return scores.loss("now", against="cured")


def _prepare() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


@contextmanager
def _quiet() -> Iterator[None]:
    """`_prepare` for a while, in a process that goes on with other things."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    try:
        with warnings.catch_warnings():
            _prepare()
            yield
    finally:
        torch.set_num_threads(threads)
        logging.disable(level)


def _line(spec: Any, case: Callable[[Any], dict[str, Any]] = run_case) -> str:
    return json.dumps(case(spec), default=float)


def done(out: Path, *, retry_errors: bool = False) -> set[str]:
    """Ids that the file has; a line cut short by an interrupt is none."""
    found = set()
    for line in out.read_text(encoding="utf-8").splitlines() if out.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if not (retry_errors and "error" in record):
            found.add(record["id"])
    return found


def run(
    specs: Sequence[Any], out: Path, jobs: int, *, retry_errors: bool = False, case: Callable[[Any], dict[str, Any]] = run_case
) -> int:
    """Run the cases that the file lacks and append a line for each as it is done; returns how many were run.

    An interrupt keeps what is written. `case` makes a case's record, a function of a module.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    before = done(out, retry_errors=retry_errors)
    todo = [spec for spec in specs if spec.id not in before]
    count = 0
    _end_line(out)
    with out.open("a", encoding="utf-8") as file:
        for line in _results(todo, jobs, case):
            file.write(line + "\n")
            file.flush()
            count += 1
    return count


def _end_line(out: Path) -> None:
    """Close a line that an interrupt cut short, so that the next one starts anew."""
    if out.exists() and (text := out.read_bytes()) and not text.endswith(b"\n"):
        out.write_bytes(text + b"\n")


def _results(todo: Sequence[Any], jobs: int, case: Callable[[Any], dict[str, Any]]) -> Any:
    if jobs <= 1:
        with _quiet():
            yield from (_line(spec, case) for spec in tqdm(todo, unit="case"))
        return
    # threads are fixed before torch starts in the workers
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(min(jobs, max(len(todo), 1)), initializer=_prepare) as pool:
        yield from tqdm(pool.imap_unordered(partial(_line, case=case), todo), total=len(todo), unit="case")
