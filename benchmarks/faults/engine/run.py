"""Runs cases: plants, measures what is true without the comparison that is judged, and asks the diagnosis."""

from __future__ import annotations

import copy
import math
import tempfile
import time
import traceback
from collections.abc import Mapping
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

import qkit
from benchmarks.faults.build import home
from benchmarks.faults.cases import sites_of
from benchmarks.faults.engine import baselines
from benchmarks.faults.engine.cases import LEVELS, EngineSpec, form_of
from benchmarks.faults.engine.controls import CONTROLS
from benchmarks.faults.engine.lane import Change, PlantedLane
from benchmarks.faults.engine.plants import Site
from benchmarks.faults.setup import halves
from benchmarks.faults.truth import NoSite
from qkit.engines.lane import EngineLane
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.measures import top1
from qkit.graph.operation import Operation
from qkit.quant.plan import Plan

#: Batches of 64 of the diagnosis, of calibration; frames of a trace.
BATCHES, CALIBRATION, FRAMES = 3, 4, 16
#: Places tried before a case is said to have none.
_PLACES = 8


def run_case(spec: EngineSpec) -> dict[str, Any]:
    """One JSON-ready record; an exception becomes the record's ``error``."""
    record: dict[str, Any] = spec.to_dict()
    started = time.perf_counter(), time.process_time()
    try:
        study = study_of(spec)
        if spec.group == "trace":
            record["truth"] = {"kind": spec.kind}
            with tempfile.TemporaryDirectory() as folder:
                lane = traced(spec, study, folder)
                record["said"] = said(study, lane)
        else:
            plan = study.lane("int16") if spec.bits == 16 else study.plan
            built, record["truth"] = planted(spec, study, plan)
            record["baselines"] = baselines.answers(study, built, plan)
            record["said"] = said(study, built)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc(limit=-6)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    record["seconds"] = {"all": wall, "processor": cpu}
    return record


def study_of(spec: EngineSpec) -> qkit.Study:
    """Calibrated, on a part of the evaluation images that depends on the seed."""
    where = home(spec.network)
    images, _ = halves(where.evaluation, spec.seed)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(spec.seed))
    evaluation = images.take(order).batches(64)[:BATCHES]
    calibration = where.calibration.batches(64)[:CALIBRATION]
    study = qkit.Study(where.zoo_case.model, calibration, evaluation, metric="top1", scheme=spec.scheme)
    study.calibrate(progress=False)
    return study


def planted(spec: EngineSpec, study: qkit.Study, plan: Plan) -> tuple[PlantedLane, dict[str, Any]]:
    """The engine's lane, and what is true of it.

    Raises
    ------
    NoSite
        If the network has no place for the form.
    """
    random = Random(spec.seed)
    name = f"engine int{spec.bits}"
    if spec.group == "control":
        lane = PlantedLane(name, spec.bits, study.graph, plan, round=CONTROLS[spec.form], hidden=_hidden(spec, study, random, ""))
        return lane, truth(study, lane, plan, "")
    form = form_of(spec)
    places = [s for s in study.graph.operations if form.place(study.graph, plan, s)]
    names = sites_of([op.name for op in places], spec.split)
    random.shuffle(names)
    inputs = study.calibration[0][0]
    for tap in names[:_PLACES]:
        site = Site(study.graph, plan, study.graph.operation(tap), inputs, LEVELS.index(spec.level), random)
        change = form.plant(site)
        if change is None:
            continue
        lane = PlantedLane(name, spec.bits, study.graph, plan, {tap: change}, hidden=_hidden(spec, study, random, tap))
        return lane, truth(study, lane, plan, tap)
    raise NoSite(f"{spec.network} under {spec.scheme} at {spec.bits} bits has no place for {spec.kind}, {spec.form}")


def _hidden(spec: EngineSpec, study: qkit.Study, random: Random, tap: str) -> frozenset[str]:
    """A third of the taps, but never the faulty one, what it reads, or the last."""
    if not spec.hides:
        return frozenset()
    taps = [t for t in study.graph.taps[1:-1] if t != tap]
    spared = {study.graph.operations[i].tap for i in study.graph.operation(tap).inputs} if tap else set()
    return frozenset(t for t in random.sample(taps, len(taps) // 3) if t not in spared)


def truth(study: qkit.Study, lane: PlantedLane, plan: Plan, tap: str) -> dict[str, Any]:
    """Scores of float, the simulations and the engine, and how the faulty tap's values differ.

    Up to the faulty step both are the same, so that its difference is the fault's alone.
    """
    hits: dict[str, list[Tensor]] = {}
    moved = far = count = 0
    plans = {"float": qkit.FLOAT, "int16": study.lane("int16"), "int8": study.plan, "simulated": plan}
    for batch in lane.run(study.evaluation):
        tensors: dict[str, Tensor] = {}

        def look(op: Operation, values: Mapping[str, Tensor], tensors: dict[str, Tensor] = tensors) -> None:
            if op.name == tap:
                tensors["simulated"] = values["simulated"]

        outputs = run_lanes(study.graph, [Lane(n, p) for n, p in plans.items()], batch.batch.inputs, observe=look)
        for name, y in {**outputs, "engine": batch.outputs}.items():
            hits.setdefault(name, []).append(top1(y, batch.batch.targets))
        if tap:
            params = plan.params(tap)
            scale = 1.0 if params is None else params.scale.double().max()
            steps = (batch.taps[tap].values.double() - tensors["simulated"].double()).abs() / scale
            moved += int((steps > 0.01).sum())
            far += int((steps > 1.5).sum())
            count += steps.numel()
    scores = {name: float(torch.cat(rows).mean()) for name, rows in hits.items()}
    found = {"scores": scores, "cost": scores["simulated"] - scores["engine"], "tap": tap}
    return found | ({"moved": moved / count, "far": far / count} if tap else {})


def traced(spec: EngineSpec, study: qkit.Study, folder: str) -> EngineLane:
    """A trace in files: of these images in another order, of another network on them, or right."""
    from qkit.engines import traces

    source = study
    if spec.kind == "another network":
        model = another(study.model, spec)
        source = qkit.Study(model, study.calibration, study.evaluation, metric="top1", scheme=spec.scheme)
        source.calibrate(progress=False)
    images = [x for x, _ in study.evaluation]
    if spec.kind == "other order":
        x = torch.cat(images)[:FRAMES]
        images = [x[torch.randperm(len(x), generator=torch.Generator().manual_seed(spec.seed))]]
    traces.write(source, folder, lane=source.narrow, frames=FRAMES, inputs=images)
    # not mended: an order that can be told is told
    lane: EngineLane = traces.read(folder, study, mend=False, progress=False)
    return lane


def another(model: nn.Module, spec: EngineSpec) -> nn.Module:
    """The same architecture with other weights: the other MobileNet, or each convolution's filters in another order."""
    other = {"mobilenet_v2_lite": "mobilenet_v2_hostile", "mobilenet_v2_hostile": "mobilenet_v2_lite"}.get(spec.network)
    if other is not None:
        return home(other).zoo_case.model
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.copy_(module.weight[torch.randperm(len(module.weight), generator=generator)])
    return model


def said(study: qkit.Study, lane: EngineLane) -> dict[str, Any]:
    """What the diagnosis says with the engine's lane."""
    started = time.process_time()
    diagnosis = study.diagnose(engine=lane, check_export=False, progress=False)
    return {
        "verdict": diagnosis.verdict.name,
        "causes": [_plain(cause) for cause in diagnosis.causes],
        "findings": [_plain(cause) for cause in diagnosis.findings],
        "seconds": time.process_time() - started,
    }


def _plain(cause: Any) -> dict[str, Any]:
    gain = None if cause.gain is None or not math.isfinite(cause.gain.low) else cause.gain.to_dict()
    return {"kind": cause.kind, "layer": cause.layer, "tap": cause.tensor, "evidence": cause.evidence, "gain": gain}


__all__ = ["Change", "planted", "run_case", "said", "study_of", "traced", "truth"]
