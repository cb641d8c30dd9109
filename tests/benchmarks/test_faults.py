"""The blind benchmark's own machinery: plants, splits, resuming and scoring. What the diagnosis says is not tested here."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from random import Random

import pytest
import torch

from benchmarks.faults import run as runner
from benchmarks.faults import score
from benchmarks.faults.build import bench_of, build, clean, home, planted
from benchmarks.faults.cases import ARCHITECTURES, CaseSpec, cases, forms, sites_of, stratified
from benchmarks.faults.plants import ALL, CONTROLS
from benchmarks.faults.setup import Images, halves
from benchmarks.faults.truth import KINDS, NO_DEGRADATION, NOT_COVERED, QUANTIZATION_KINDS
from qkit import zoo

SMALL = "resnet_small"


def spec_for(architecture, plant):
    return CaseSpec("develop", "single", architecture, (plant,), "medium", 7)


def test_every_kind_is_planted_and_counts_reach_what_is_promised():
    assert {plant.kind for plant in ALL} == set(KINDS)
    assert not set(KINDS) & set(NOT_COVERED)
    reported = Counter(spec.group for spec in cases("report"))
    assert reported["single"] >= 200
    assert reported["two"] >= 40
    assert reported["control"] >= 40
    per_kind = Counter(spec.kinds[0] for spec in cases("report") if spec.group == "single")
    assert set(per_kind) == set(KINDS)
    assert min(per_kind.values()) >= 12
    assert 0.25 < len(cases("develop")) / len(cases("report")) < 0.45


def test_ids_are_unique_and_do_not_depend_on_the_run():
    both = [*cases("develop"), *cases("report")]
    assert len({spec.id for spec in both}) == len(both)
    assert [spec.id for spec in cases("report")] == [spec.id for spec in cases("report")]


def test_splits_share_no_seed_in_a_group_and_no_site():
    for group in ("single", "two", "control"):
        seeds = {
            split: {(s.plants, s.architecture, s.seed) for s in cases(split) if s.group == group}
            for split in ("develop", "report")
        }
        assert not seeds["develop"] & seeds["report"]
    sites = [f"layer{i}" for i in range(10)]
    develop, reported = sites_of(sites, "develop"), sites_of(sites, "report")
    assert not set(develop) & set(reported)
    assert sorted(develop + reported) == sorted(sites)


def test_two_faults_are_one_of_each_sort():
    for spec in cases("report"):
        if spec.group == "two":
            assert [kind in QUANTIZATION_KINDS for kind in spec.kinds] == [True, False]


def test_the_stratified_part_has_a_case_a_kind():
    part = stratified(cases("report"))
    assert {kind for spec in part for kind in spec.kinds} >= set(KINDS)
    assert sum(spec.group == "control" for spec in part) == 2
    assert len(part) <= 26


def test_halves_are_disjoint_stratified_and_depend_on_the_seed():
    images = Images(torch.arange(100.0), torch.arange(100) % 10)
    first, second = halves(images, 3)
    assert sorted(torch.cat([first.inputs, second.inputs]).tolist()) == list(range(100))
    assert first.targets.bincount().tolist() == second.targets.bincount().tolist() == [5] * 10
    assert not torch.equal(first.inputs, halves(images, 4)[0].inputs)


EXACT = [p for p in ALL if p.keeps_float and p.kind not in ("accumulator-overflow", "calibration-mismatch", "unquantized-layer")]


@pytest.mark.parametrize("plant", EXACT, ids=lambda plant: plant.name)
def test_plants_keep_the_float_function(plant):
    homes = (SMALL, "inception_small", "mobilenet_v2_lite")
    architecture = "deit_small" if plant.needs == "attention" else next(a for a in homes if plant in forms(plant.kind, a))
    spec = spec_for(architecture, plant.name)
    sound = clean(spec, plant, Random(0))
    bench = bench_of(spec, "")
    site = plant.sites(sound, bench)[-1]
    faulty, mark = planted(plant, sound, bench, site, plant.ladder[len(plant.ladder) // 2])
    if site:
        assert mark.layers
    images = home(architecture).evaluation
    part = images.take(torch.arange(128))
    with torch.no_grad():
        before, after = sound.model(part.inputs), faulty.model(part.inputs)
    assert (before.argmax(1) == after.argmax(1)).double().mean() >= 0.98
    if plant.kind not in ("weight-outlier", "activation-outlier", "bias-shift") and plant.form != "dead-channel":
        # compensated scaling: the same function up to float rounding; the others give up a channel that matters least
        assert (before - after).abs().max() <= 1e-3 * before.abs().max()


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_keep_the_float_function(name):
    spec = CaseSpec("develop", "control", SMALL, (name,), "none", 5, "int8", "mse")
    built = build(spec)
    with torch.no_grad():
        x = built.diagnosis.inputs[:64]
        assert (built.setup.model(x).argmax(1) == built.twin.model(x).argmax(1)).double().mean() >= 0.98


@pytest.mark.slow
def test_planting_leaves_the_sound_network_alone():
    before = {k: v.clone() for k, v in home(SMALL).zoo_case.model.state_dict().items()}
    build(spec_for(SMALL, "weight-outlier/one"))
    after = home(SMALL).zoo_case.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.slow
def test_a_built_case_has_a_truth_that_the_score_shows():
    built = build(CaseSpec("develop", "single", SMALL, ("range-too-wide/tap",), "medium", 11))
    truth = runner.truth(built)
    assert truth["effective"]
    assert truth["verdicts"] == ["quantization"]
    assert truth["scores"]["twin"]["int8"] - truth["scores"]["now"]["int8"] == pytest.approx(truth["effect"])
    assert truth["faults"][0]["layers"]


def test_a_run_resumes_and_records_exceptions(tmp_path, monkeypatch):
    specs = cases("report")[:4]
    ran = []

    def fake(spec):
        ran.append(spec.id)
        if spec is specs[1]:
            raise ValueError("broken")
        return "built"

    monkeypatch.setattr(runner, "build", fake)
    monkeypatch.setattr(runner, "truth", lambda built: {"effective": True})
    monkeypatch.setattr(runner, "_diagnose", lambda built, seconds, compare: {"said": {}})
    out = tmp_path / "lines.jsonl"
    assert runner.run(specs[:2], out, 1) == 2
    with out.open("a") as file:
        file.write('{"id": "cut sho')
    assert runner.run(specs, out, 1) == 2
    assert ran == [spec.id for spec in specs]
    records = score.read(out)
    assert [r["id"] for r in records] == [spec.id for spec in specs]
    assert records[1]["error"] == "ValueError: broken"
    assert runner.run(specs, out, 1, retry_errors=True) == 1


def fault(kind, layers=("a",), synonyms=()):
    return {"kind": kind, "synonyms": list(synonyms), "layers": list(layers), "verdicts": [], "site": "a", "factor": 1.0}


def cause(kind, layer="a"):
    return {"kind": kind, "layer": layer, "tensor": layer, "remedy": None, "changes": False, "gain": None}


def record(name, faults, verdicts, said, causes, *, group="single", effective=True, **rest):
    answer = {"verdict": said, "causes": causes, "findings": [], "samples": 10, "evaluations": 4}
    return {
        "id": name, "split": "report", "group": group, "kinds": [f["kind"] for f in faults],
        "truth": {"effective": effective, "verdicts": verdicts, "faults": faults},
        "said": answer, "seconds": {"diagnosis": 2.0, "all": 3.0}, **rest,
    }  # fmt: skip


def gain(claimed, held, low=None, high=None):
    return {"claimed": {"value": claimed, "low": claimed - 0.02, "high": claimed + 0.02},
            "held": {"value": held, "low": held - 0.02 if low is None else low, "high": held + 0.02 if high is None else high}}  # fmt: skip


def hand_written():
    isolated = {"isolated": {"layers": [["b"], ["a"]], "losses": [0.2, 0.1]}, "fork": {"verdict": "quantization"}}
    return [
        record("1", [fault("weight-outlier")], ["quantization"], "quantization", [cause("weight-outlier")],
               remedies=[{"name": "0:x", **gain(0.2, 0.19)}, {"name": "best", **gain(0.2, 0.05)}], baselines=isolated),
        record("2", [fault("weight-outlier")], ["quantization"], "not-quantization",
               [cause("range-too-wide", "b"), cause("weight-outlier")], baselines=isolated),
        record("3", [fault("train-mode", (), ("nondeterminism",))], ["not-quantization"], "not-quantization", [cause("nondeterminism", "")]),
        record("4", [fault("range-too-wide")], [NO_DEGRADATION], NO_DEGRADATION, [], effective=False),
        record("5", [], [NO_DEGRADATION], "quantization", [cause("weight-outlier")], group="control"),
        record("6", [], [NO_DEGRADATION], "inconclusive", [], group="control"),
        record("7", [fault("weight-outlier"), fault("preprocessing", ())], ["both"], "both",
               [cause("preprocessing", ""), cause("weight-outlier")], group="two"),
        {"id": "8", "split": "report", "group": "single", "kinds": ["bias-shift"], "error": "ValueError: no", "seconds": {"all": 1.0}},
    ]  # fmt: skip


def test_figures_of_hand_written_records():
    found = score.figures(hand_written())

    def counted(name):
        return found[name].hits, found[name].of

    assert counted("verdict, single faults") == (2, 4)
    assert counted("verdict") == (3, 7)  # singles 2 of 4, controls 0 of 2, two faults 1 of 1
    assert counted("cause top-1") == (2, 4)
    assert counted("layer top-1") == (1, 2)
    assert counted("layer top-3") == (2, 2)
    assert counted("false alarms on controls") == (1, 2)
    assert counted("inconclusive on controls") == (1, 2)
    assert counted("two faults, both named") == (1, 1)
    assert counted("two faults, the other one first") == (1, 1)
    assert counted("remedies hold") == (1, 2)  # 0.05 is neither half of 0.2 nor do the intervals meet
    assert counted("faults with effect") == (4, 5)
    assert counted("errors") == (1, 8)
    precision, recall = score.by_kind(hand_written())["weight-outlier"]
    assert (precision.hits, precision.of) == (1, 2)  # the control's alarm is the wrong one
    assert (recall.hits, recall.of) == (1, 2)
    assert score.confusion(hand_written())["weight-outlier", "range-too-wide"] == 1
    assert score.confusion(hand_written())["bias-shift", "error"] == 1
    assert {row["id"] for row in score.failures(hand_written())} == {"1", "2", "5", "8"}


def test_baselines_of_hand_written_records():
    rows = score.baseline_figures(hand_written())
    isolated = rows["largest isolated drop"]
    assert (isolated["layer top-1"].hits, isolated["layer top-3"].hits, isolated["layer top-3"].of) == (0, 2, 2)
    fork = rows["int16 close, int8 not"]["verdict"]
    assert (fork.hits, fork.of) == (2, 7)
    assert rows["lowest SQNR"].get("verdict") is None


def test_a_remedy_holds_if_half_of_it_does_or_the_intervals_meet():
    assert score.holds(gain(0.2, 0.1))
    assert not score.holds(gain(0.2, 0.09))
    assert score.holds(gain(0.2, 0.09, high=0.19))
    assert not score.holds(gain(0.2, 0.09, high=0.19), strict=True)
    assert not score.holds(gain(0.02, 0.0))


def test_wilson_interval():
    low, high = score.Share(9, 10).interval
    assert (round(low, 3), round(high, 3)) == (0.596, 0.982)  # Wilson (1927) by hand: (0.9 + 0.192 ± 0.267) / 1.384


def test_the_report_is_written(tmp_path):
    from benchmarks.faults.report import report

    out = tmp_path / "lines.jsonl"
    out.write_text("".join(json.dumps(r) + "\n" for r in hand_written()))
    report(out, tmp_path / "scores")
    assert (tmp_path / "scores" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "scores" / "scores.json").read_text())["figures"]["cause top-1"]["hits"] == 2
    assert "Not covered" in (tmp_path / "scores" / "table.md").read_text()


def test_architectures_are_in_the_zoo():
    assert set(ARCHITECTURES) <= set(zoo.names())


@pytest.mark.slow
def test_the_diagnosis_on_a_case_a_kind(tmp_path):
    out = tmp_path / "lines.jsonl"
    runner.run(stratified(cases("develop")), out, 2, case=partial(runner.run_case, compare=False))
    found = score.figures(score.read(out))
    assert found["verdict"].value >= 0.95, found["verdict"]
    assert found["cause top-1"].value >= 0.9, found["cause top-1"]
