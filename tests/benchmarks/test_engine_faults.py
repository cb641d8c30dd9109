"""The blind benchmark of engines: its own machinery, and a handful of cases; the others are slow."""

from __future__ import annotations

import json
from collections import Counter
from random import Random

import pytest
import torch

from benchmarks.faults import run as runner
from benchmarks.faults.cases import sites_of
from benchmarks.faults.engine import score
from benchmarks.faults.engine.cases import EngineSpec, cases, form_of
from benchmarks.faults.engine.controls import CONTROLS
from benchmarks.faults.engine.lane import PlantedLane
from benchmarks.faults.engine.plants import FORMS, KINDS, Site
from benchmarks.faults.engine.run import planted, run_case, study_of
from benchmarks.faults.score import read

SMALL = "vgg_small"


def spec(
    kind: str = "dropped bias", form: str = "all", *, group: str = "fault", bits: int = 8, level: str = "medium"
) -> EngineSpec:
    return EngineSpec("develop", group, SMALL, "int8", bits, kind, form, level, 7)


@pytest.fixture(scope="module")
def study():
    return study_of(spec())


def test_counts_and_splits():
    report, develop = cases("report"), cases("develop")
    assert {form_of(s) for s in report if s.group == "fault"} == set(FORMS)
    per_kind = Counter(s.kind for s in report if s.group == "fault")
    assert set(per_kind) == set(KINDS)
    assert min(per_kind.values()) >= 12
    assert sum(s.group == "control" for s in report) >= 24
    both = [*report, *develop]
    assert len({s.id for s in both}) == len(both)
    assert not {(s.network, s.seed) for s in report} & {(s.network, s.seed) for s in develop}
    for kind in ("narrow accumulator", "wrong layout"):
        mine = Counter((s.form, s.bits) for s in report if s.kind == kind)
        assert len(mine) == 4, "every form at either width"


@pytest.mark.slow
def test_an_engine_with_nothing_planted_is_the_simulation(study):
    lane = PlantedLane("engine", 8, study.graph, study.plan)
    batch = next(lane.run(study.evaluation))
    assert list(batch.taps) == list(study.graph.taps)
    assert torch.equal(batch.outputs, batch.taps["classifier.3"].values)
    truth = planted(spec("the kit's own", "the kit's own", group="control"), study, study.plan)[1]
    assert truth["cost"] == 0.0


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.kind}, {form.name}")
def test_a_plant_changes_its_tap_and_none_before_it(study, form):
    plan = study.lane("int16") if form.widths == (16,) else study.plan
    places = [s for s in study.graph.operations if form.place(study.graph, plan, s)]
    if form.name == "one input of a join":
        assert not places, "this network joins nothing"
        return
    op = places[len(places) // 2]
    change = form.plant(Site(study.graph, plan, op, study.calibration[0][0], 2, Random(0)))
    sound = next(PlantedLane("sound", 8, study.graph, plan).run(study.evaluation)).taps
    faulty = next(PlantedLane("faulty", 8, study.graph, plan, {op.name: change}).run(study.evaluation)).taps
    before = list(sound)[: list(sound).index(op.name)]
    assert all(torch.equal(sound[tap].values, faulty[tap].values) for tap in before)
    assert sound[op.name].values.shape == faulty[op.name].values.shape
    assert not torch.equal(sound[op.name].values, faulty[op.name].values)


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_move_codes_by_a_step_at_most(study, name):
    lane = PlantedLane("control", 8, study.graph, study.plan, round=CONTROLS[name])
    first = study.graph.taps[0]
    theirs = next(lane.run(study.evaluation)).taps[first].values
    ours = next(PlantedLane("sound", 8, study.graph, study.plan).run(study.evaluation)).taps[first].values
    apart = ((theirs - ours).double() / study.plan.params(first).scale.double()).abs()
    assert float(apart.max()) < 1.01
    assert (name == "one step off in 2 %") == (0.01 < float((apart > 0.5).double().mean()) < 0.03)


def test_sites_of_the_splits_differ(study):
    names = list(study.graph.taps)
    assert not set(sites_of(names, "report")) & set(sites_of(names, "develop"))


HANDFUL = [
    spec("dropped bias", "all"),
    spec("narrow accumulator", "saturates", level="strong"),
    spec("halves up", "halves up", group="control"),
    spec("other order", "other order", group="trace"),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", HANDFUL, ids=lambda case: case.kind)
def test_the_diagnosis_on_a_handful(case):
    record = json.loads(json.dumps(run_case(case), default=float))
    assert "error" not in record, record["error"]
    assert score.failures([record]) == []


def hand_written():
    def record(i, group, kind, form, said, truth):
        return {"id": i, "split": "report", "group": group, "kind": kind, "form": form, "said": said, "truth": truth}

    def truth(cost, tap="a", moved=0.5):
        scores = {"float": 0.99, "int16": 0.99, "int8": 0.99, "simulated": 0.99, "engine": 0.99 - cost}
        return {"scores": scores, "cost": cost, "tap": tap, "moved": moved, "far": moved}

    def says(verdict, tap=None, evidence="", kind="engine-mismatch"):
        causes = [] if tap is None else [{"kind": kind, "layer": tap, "tap": tap, "evidence": evidence}]
        return {"verdict": verdict, "causes": causes, "findings": []}

    right = says("not-quantization", "a", "It drops the bias, which")
    return [
        record("1", "fault", "dropped bias", "all", right, truth(0.3)),
        record("2", "fault", "dropped bias", "all", says("not-quantization", "a", "It runs in float"), truth(0.3)),
        record("3", "fault", "wrong scale", "shift", says("no-degradation", "b", "constant factor"), truth(0.0)),
        record("4", "fault", "wrong scale", "shift", says("no-degradation"), truth(0.2)),
        record("5", "fault", "wrong scale", "shift", says("no-degradation"), truth(0.0, moved=0.0)),
        record("6", "control", "halves up", "halves up", says("no-degradation"), truth(0.0, "")),
        record("7", "control", "halves up", "halves up", says("not-quantization", "a"), truth(0.0, "")),
        record("8", "trace", "other order", "other order", says("inconclusive", "a", kind="trace-alignment"), {}),
        {"id": "9", "split": "report", "group": "fault", "kind": "wrong scale", "form": "one input of a join", "error": "NoSite: none"},
    ]  # fmt: skip


def test_figures_of_hand_written_records():
    found = score.figures(hand_written())

    def counted(name):
        return found[name].hits, found[name].of

    assert counted("engine-mismatch named") == (3, 4)
    assert counted("first layer") == (2, 4)
    assert counted("fault named, at its layer") == (1, 4)
    assert counted("verdict, faults that cost 5 points and more") == (2, 3)
    assert counted("verdict, faults that cost nothing") == (1, 1)
    assert counted("false alarms on controls") == (1, 2)
    assert counted("traces, other order") == (1, 1)
    assert counted("errors") == (0, 9)
    assert {row["case"] for row in score.failures(hand_written())} == {"2", "3", "4", "7"}
    assert [r["id"] for r in score.invisible(hand_written())] == ["5"]


def test_the_report_is_written(tmp_path):
    from benchmarks.faults.engine.report import report

    out = tmp_path / "lines.jsonl"
    seconds = {"all": 1.0, "processor": 1.0}
    out.write_text("".join(json.dumps(r | {"seconds": seconds}) + "\n" for r in hand_written()))
    report(out, tmp_path / "scores", "report")
    data = json.loads((tmp_path / "scores" / "engine.json").read_text())
    assert data["figures"]["first layer"]["hits"] == 2
    assert data["no place"] == ["9"]
    assert "Failures: 4" in (tmp_path / "scores" / "engine.md").read_text()


@pytest.mark.slow
def test_the_diagnosis_on_a_case_a_kind(tmp_path):
    out = tmp_path / "lines.jsonl"
    # on a small network where the kind is planted in one
    small_last = sorted(cases("develop"), key=lambda spec: spec.network in ("vgg_small", "resnet_small"))
    one_a_kind = {spec.kind: spec for spec in small_last}
    runner.run(list(one_a_kind.values()), out, 2, case=run_case)
    found = score.figures(read(out))
    assert found["first layer"].value >= 0.9, found["first layer"]
    assert found["fault named, at its layer"].value >= 0.85, found["fault named, at its layer"]
    assert found["false alarms on controls"].hits == 0
    assert found["errors"].hits == 0
