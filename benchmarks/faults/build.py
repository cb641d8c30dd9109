"""Builds a case: plants its faults, at a site and a dose that cost the score what the strength asks for.

The dose is sought on the calibration images' labels by the lanes' scores alone; no diagnosis is run, and the images on
which the diagnosis will run are not looked at. Places and doses that an earlier run found are in `results/doses.json`, and are
sought again only where the fault can no longer be planted with them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch

from benchmarks.faults.cases import STRENGTHS, CaseSpec, sites_of
from benchmarks.faults.plants import BY_NAME, CONTROLS, Bench, Plant, attention
from benchmarks.faults.plants.plant import Probe
from benchmarks.faults.setup import Images, Setup, halves, images_of, scores_of
from benchmarks.faults.truth import BOTH, EFFECT, FLOAT_KEPT, NO_DEGRADATION, Fault, Mark, NoSite
from qkit import files, zoo
from qkit.errors import QkitError
from qkit.graph import Graph
from qkit.graph import build as trace
from qkit.quant.schemes import Scheme, scheme_of
from qkit.study import Study

#: Sites tried before the strongest dose found so far is taken as it is.
SITES = 6
#: The fault beside another may cost this much: what is left of the score must show the other.
PAIR_TARGET, PAIR_LIMIT = 0.06, 0.45
#: Images on which doses are sought.
TUNING = 192
DOSES = Path(__file__).parent / "results" / "doses.json"


@dataclass(frozen=True)
class Home:
    """A sound network with its images."""

    zoo_case: zoo.Case
    calibration: Images
    evaluation: Images
    graph: Graph


@dataclass(frozen=True)
class Built:
    """A case, ready to be diagnosed.

    Attributes
    ----------
    setup, twin
        With the faults, and without any.
    parts
        With one of two faults each, in the order of the plants.
    faults
        What was planted.
    verdicts
        Accepted where the faults have an effect.
    diagnosis, held_out
        The two halves of the evaluation images.
    calibration
        Images.
    notes
        What was tried, for the reader.
    """

    setup: Setup
    twin: Setup
    parts: tuple[Setup, ...]
    faults: tuple[Fault, ...]
    verdicts: tuple[str, ...]
    calibration: Images
    diagnosis: Images
    held_out: Images
    notes: list[str] = field(default_factory=list)


@cache
def home(architecture: str) -> Home:
    """The sound network; loaded once a process."""
    case = zoo.load(architecture)
    calibration, evaluation = images_of(case.calibration), images_of(case.evaluation)
    return Home(case, calibration, evaluation, trace(case.model, calibration.inputs[:2]))


def clean(spec: CaseSpec, plant: Plant | None, random: Random) -> Setup:
    """The sound setup of a case."""
    where = home(spec.architecture)
    scheme = random.choice(plant.schemes) if plant is not None else spec.scheme
    method = plant.method if plant is not None else spec.method
    # users who know their network's score say so; half of the others do too
    knows = (plant is not None and plant.knows_expected) or random.random() < 0.5
    expected = where.zoo_case.expected if knows else None
    return Setup(where.zoo_case.model, scheme_of(scheme), {"method": method}, expected=expected).copied()


def build(spec: CaseSpec) -> Built:
    """Plant the faults of a case.

    Raises
    ------
    NoSite
        If the architecture has no site for a plant.
    """
    where = home(spec.architecture)
    diagnosis, held_out = halves(where.evaluation, spec.seed)
    images = (where.calibration, diagnosis, held_out)
    random = Random(spec.seed)
    if spec.group == "control":
        sound = clean(spec, None, random)
        twin = sound.copied()
        {**CONTROLS, **attention.CONTROLS}[spec.plants[0]](sound, Bench(where.calibration, where.graph, random))
        return Built(sound, twin, (), (), (NO_DEGRADATION,), *images)
    plants = [BY_NAME[name] for name in spec.plants]
    doses = known_doses().get(spec.id, [None] * len(plants))
    sound = clean(spec, plants[0], random)
    if spec.group == "single":
        setup, twin, fault, notes = plant_one(spec, plants[0], sound, random, STRENGTHS[spec.strength], 1.0, doses[0])
        return Built(setup, twin, (), (fault,), fault.verdicts, *images, notes)
    if any(p.knows_expected for p in plants):
        sound.expected = where.zoo_case.expected
    # the second first, so that the first one's dose is measured beside it
    other, twin, second, notes = plant_one(spec, plants[1], sound, random, PAIR_TARGET, PAIR_LIMIT, doses[1])
    setup, _, first, more = plant_one(spec, plants[0], other, random, STRENGTHS[spec.strength], 1.0, doses[0])
    alone, _ = planted(plants[0], sound, bench_of(spec, first.site), first.site, first.factor)
    return Built(setup, sound, (alone, other), (first, second), (BOTH,), *images, [*notes, *more])


@cache
def known_doses() -> dict[str, list[Sequence[Any]]]:
    """Place and dose of each fault of a case, by the case's id."""
    return json.loads(DOSES.read_text(encoding="utf-8")) if DOSES.exists() else {}


def keep_doses(records: Sequence[dict[str, Any]]) -> int:
    """Add the places and doses of finished cases to `DOSES`; returns how many cases it has now."""
    found = {r["id"]: [[f["site"], f["factor"]] for f in r["truth"]["faults"]] for r in records if "truth" in r}
    kept = dict(sorted((known_doses() | {case: faults for case, faults in found.items() if faults}).items()))
    lines = (f"{json.dumps(case)}: {json.dumps(faults)}" for case, faults in kept.items())
    files.write_text(DOSES, "{\n" + ",\n".join(lines) + "\n}\n")
    known_doses.cache_clear()
    return len(kept)


def bench_of(spec: CaseSpec, site: str) -> Bench:
    """What a plant works with at a site: its random choices depend on case and site, not on what was tried before."""
    where = home(spec.architecture)
    return Bench(where.calibration, where.graph, Random(f"{spec.id}|{site}"))


def planted(plant: Plant, sound: Setup, bench: Bench, site: str, factor: float) -> tuple[Setup, Mark]:
    """A copy of the setup with the fault."""
    setup = sound.copied()
    with torch.no_grad():
        mark = plant.apply(setup, bench, site, factor)
    return setup, mark


class TwinLoses(Exception):  # noqa: N818  # not an error: a weaker dose is tried
    """The sound twin loses too much at this dose for the fault to be the reason."""


@cache
def _losses(architecture: str, probe: Probe, method: str) -> dict[str, float]:
    """What every tap, or weight, loses on its own under a rule, on the calibration images."""
    where = home(architecture)
    scheme = Scheme("probe", probe.spec if probe.weight else None, None if probe.weight else probe.spec, bias_bits=None)
    batches = where.calibration.take(torch.arange(TUNING)).batches(64)
    study = Study(where.zoo_case.model, where.calibration.batches(64), batches, scheme=scheme)
    study.calibrate(method, progress=False)
    table = study.sensitivity("only", lane=study.plan, progress=False).table()["loss"]
    operations = {op.name: op.weight if probe.weight else op.name for op in study.graph.operations}
    return {str(operations[name]): float(loss) for name, loss in table.items()}


@dataclass(frozen=True)
class _Trial:
    setup: Setup
    twin: Setup
    fault: Fault
    loss: float


def plant_one(
    spec: CaseSpec, plant: Plant, sound: Setup, random: Random, target: float, limit: float, dose: Sequence[Any] | None = None
) -> tuple[Setup, Setup, Fault, list[str]]:
    """The weakest dose of the ladder that costs the target, at the first of a few sites where one does.

    Returns the setup with the fault, its twin without, the truth, and notes. Where no dose does, the one that costs most.
    With a `dose`, its place and factor, as found before, nothing is sought.
    """
    where = home(spec.architecture)
    notes: list[str] = []
    if dose is not None:
        try:
            trial = _trial(spec, plant, sound, dose[0], dose[1], notes)
        except (TwinLoses, NoSite, QkitError, RuntimeError) as error:
            notes.append(f"{plant.name} at {dose[0]} × {dose[1]:.3g}, as found before: {type(error).__name__}: {error}"[:300])
            trial = None
        if trial is not None:
            return trial.setup, trial.twin, trial.fault, notes
    sites = sites_of(plant.sites(sound, Bench(where.calibration, where.graph, random)), spec.split)
    random.shuffle(sites)
    if plant.probe is not None:
        losses = _losses(spec.architecture, plant.probe, plant.method)
        # sites that can lose enough come first, in random order
        sites.sort(key=lambda site: -min(losses.get(site, 0.0), target))
    jitter = random.uniform(0.93, 1.07)
    best: _Trial | None = None
    for site in sites[:SITES] if NO_DEGRADATION not in plant.verdicts else sites[:1]:
        trial = _dose(spec, plant, sound, site, target, limit, jitter, notes)
        if trial is not None and (best is None or trial.loss > best.loss):
            best = trial
        if best is not None and best.loss >= target:
            break
    if best is None:
        raise NoSite(f"{plant.name} has no site in {spec.architecture}: {'; '.join(notes[-4:])}")
    return best.setup, best.twin, best.fault, notes


def _dose(
    spec: CaseSpec, plant: Plant, sound: Setup, site: str, target: float, limit: float, jitter: float, notes: list[str]
) -> _Trial | None:
    """Bisects the ladder, on which loss grows."""
    low, high = 0, len(plant.ladder) - 1
    reached: _Trial | None = None
    strongest: _Trial | None = None
    while low <= high:
        middle = (low + high) // 2 if len(plant.ladder) > 1 else 0
        rung = plant.ladder[middle]
        factor = rung if isinstance(rung, int) or not _continuous(plant) else rung * jitter
        try:
            trial = _trial(spec, plant, sound, site, factor, notes)
        except TwinLoses:
            high = middle - 1  # fewer bits are worse still
            continue
        except (NoSite, QkitError, RuntimeError) as error:
            notes.append(f"{plant.name} at {site} × {factor:.3g}: {type(error).__name__}: {error}"[:300])
            return None
        if trial is None:
            low = middle + 1  # the label would not be true at this dose
            continue
        if trial.loss <= limit and (strongest is None or trial.loss > strongest.loss):
            strongest = trial
        if trial.loss >= target:
            if trial.loss <= limit:
                reached = trial
            high = middle - 1
        else:
            low = middle + 1
    return reached or strongest


def _base(sound: Setup, plant: Plant, twin: Setup, calibration: Images, tuning: Images) -> dict[str, float]:
    """The twin's scores; one that is nothing but the sound setup is scored once."""
    if plant.twin is not None:
        return scores_of(twin, calibration, tuning)
    if sound.scores is None:
        sound.scores = scores_of(twin, calibration, tuning)
    return sound.scores


def _continuous(plant: Plant) -> bool:
    return plant.form not in ("percentile", "channels", "dropout", "unsigned", "from-zero") and plant.kind not in (
        "non-finite",
        "unquantized-layer",
    )


def _trial(spec: CaseSpec, plant: Plant, sound: Setup, site: str, factor: float, notes: list[str]) -> _Trial | None:
    where = home(spec.architecture)
    tuning = where.calibration.take(torch.arange(TUNING))
    setup, mark = planted(plant, sound, bench_of(spec, site), site, factor)
    twin = sound.copied()
    if plant.twin is not None:
        plant.twin(twin, bench_of(spec, site), site, factor)
    fault = Fault(
        plant.kind,
        plant.synonyms if mark.synonyms is None else mark.synonyms,
        mark.layers,
        plant.verdicts if mark.verdicts is None else mark.verdicts,
        site,
        factor,
    )
    base = _base(sound, plant, twin, where.calibration, tuning)
    if not setup.calibrated:
        now = scores_of(setup, where.calibration, tuning)
        return _Trial(setup, twin, fault, base["own"] - now["own"])
    try:
        study = setup.study(where.calibration, tuning)
        now = scores_of(setup, where.calibration, tuning, study)
    except (QkitError, AttributeError, TypeError):
        if plant.kind not in ("train-mode", "nondeterminism", "graph-transform"):
            raise
        # the kit may refuse such a model: then only the model itself can show the fault
        own = float(setup.own_scores(where.calibration, tuning).mean())
        return _Trial(setup, twin, fault, base["own"] - own)
    loss = max(base[lane] - now[lane] for lane in plant.lanes)
    said = f"{plant.name} at {site or 'all'} × {factor:.3g}: loses {loss:.3f}"
    if plant.twin is not None and base["float"] - base["int8"] > plant.twin_loss:
        notes.append(f"{said}, but its twin loses {base['float'] - base['int8']:.3f}")
        raise TwinLoses(said)
    if plant.keeps_float and abs(base["own"] - now["own"]) > FLOAT_KEPT + 1.0 / TUNING:
        raise NoSite(f"float moves by {base['own'] - now['own']:+.3f}")
    if loss > EFFECT and not mark.holds(study):
        notes.append(f"{said}, but another rule of the width does not")
        return None
    notes.append(said)
    return _Trial(setup, twin, fault, loss)
