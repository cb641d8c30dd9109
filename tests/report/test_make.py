"""What a report holds, against figures computed here."""

from __future__ import annotations

import dataclasses
import platform
import re

import numpy as np
import pytest
import torch
from report_cases import image_batches, tiny_study
from torch import nn

import qkit
from qkit import QkitError, Study
from qkit.report import Report, make
from qkit.report.contents import facts

FLAT = ["loss", "loss low", "loss high"]


def test_scores_are_those_of_the_float_network(report):
    study_model = tiny_study().graph  # the same seed gives the same network
    assert study_model.model_name == report.model["name"] == "Small"
    torch.manual_seed(3)
    from report_cases import Small

    model = Small().eval()
    with torch.no_grad():
        hits = torch.cat([model(x).argmax(1) == y for x, y in image_batches()])
    assert report.scores.loc["float", "score"] == pytest.approx(hits.double().mean().item())
    assert report.metric["samples"] == len(hits) == 32
    assert list(report.scores.index) == ["float", "int16", "int8"]
    assert report.lanes == ("int16", "int8")


def test_histogram_and_weights_of_the_worst_layers(study, report):
    torch.manual_seed(3)
    from report_cases import Small

    model = Small().eval()
    found = {}
    hooks = [
        model.first.register_forward_hook(lambda m, i, o: found.setdefault("first.0", []).append(o)),
        model.second.register_forward_hook(lambda m, i, o: found.setdefault("second", []).append(o)),
        model.last.register_forward_hook(lambda m, i, o: found.setdefault("last", []).append(o)),
    ]
    with torch.no_grad():
        for x, _ in image_batches():
            model(x)
    for hook in hooks:
        hook.remove()
    entries = make(study, worst=10, sensitivity=False, progress=False).worst
    checked = 0
    for entry in entries:
        if entry["tap"] not in found:
            continue
        checked += 1
        values = torch.cat([v.flatten() for v in found[entry["tap"]]]).double().numpy()
        seen = entry["histogram"]
        assert seen["elements"] == len(values)
        assert sum(seen["counts"]) == pytest.approx(len(values), abs=0.2)
        assert seen["min"] == pytest.approx(values.min(), abs=1e-5)
        assert seen["max"] == pytest.approx(values.max(), abs=1e-5)
        edges = np.array(seen["edges"])
        edges[-1] += 1e-4  # the float lane's rounding may lie above its own greatest value
        edges[0] -= 1e-4
        counts, _ = np.histogram(values, edges)
        # the kit's bins straddle the picture's edges: compare what has accumulated
        assert np.abs(np.cumsum(counts) - np.cumsum(seen["counts"])).max() <= max(3, 0.01 * len(values))
        grid = entry["grid"]
        inside = (values >= grid["lo"] - grid["scale"] / 2) & (values <= grid["hi"] + grid["scale"] / 2)
        assert counts.sum() == len(values)
        assert entry["grid_error"]["clipped"] == pytest.approx(1 - inside.mean(), abs=2e-3)
    assert checked == 3
    last = next(e for e in entries if e["tap"] == "last")["weight"]
    peaks = model.last.weight.detach().abs().amax(1)
    assert last["peaks"] == pytest.approx(peaks.sort(descending=True).values.tolist())
    assert last["channels"] == peaks.argsort(descending=True, stable=True).tolist()
    scale = float(peaks.max()) / 127
    assert last["grid"]["scale"] == pytest.approx(scale)


def test_channels_that_vanish_are_counted():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 6, 1, bias=False)
    with torch.no_grad():
        model.weight[4] *= 1e-4
        model.weight[2] = 0.0
        model.weight[0, 0] = 1.0
    study = Study(nn.Sequential(model, nn.Flatten(), nn.Linear(6 * 16, 3)), [torch.randn(4, 3, 4, 4)], scheme="int8-per-tensor")
    made = make(study, worst=9, sensitivity=False, progress=False)
    entry = next(e for e in made.worst if e["tap"] == "0")
    quantized = torch.fake_quantize_per_tensor_affine(model.weight.detach(), entry["weight"]["grid"]["scale"], 0, -127, 127)
    gone = (quantized.flatten(1) == 0).all(1) & (model.weight != 0).flatten(1).any(1)
    assert entry["weight"]["vanished"] == int(gone.sum()) == 1


def test_worst_layers_are_named_by_rule():
    """A layer whose single step swallows most of its channels is worst by both rules."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    with torch.no_grad():
        model[2].weight[0] *= 4000.0
        model[2].bias[0] = -1e5  # its own channel stays closed
    study = Study(model, [torch.randn(64, 3, 8, 8) for _ in range(3)], scheme="int8-per-tensor")
    made = make(study, worst=2, progress=False)
    assert made.worst[0]["tap"] == "2"
    assert made.worst[0]["rules"] == ["alone loss", "local sqnr"]
    assert len(made.worst) == 2
    local = made.layers["int8", "local sqnr"].astype(float)
    assert local.idxmin() == "2"
    assert made.sensitivity.index[0] == "2"
    assert all(entry["rules"] for entry in made.worst)


def test_environment_settings_and_reproduction(study, report):
    assert report.environment["qkit"] == qkit.__version__
    assert report.environment["torch"] == torch.__version__
    assert report.environment["python"] == platform.python_version()
    assert report.environment["machine"] == platform.machine()
    assert facts.environment_of(study)["threads"] == torch.get_num_threads()
    assert report.settings["scheme"] == "int8-per-tensor"
    assert re.search(r"\bmse\b", report.settings["activations"])
    assert re.search(r"\bminmax\b", report.settings["weights"])
    # the snippet is Python that makes the same report
    namespace = {"qkit": qkit, "model": None, "calibration": None, "evaluation": None}
    calls = []

    class Recorder:
        def __init__(self, *args, **options):
            calls.append(options)

        def calibrate(self, *args, **options):
            calls.append(options)

        def report(self, path, **options):
            calls.append(options)

    import types

    namespace["qkit"] = types.SimpleNamespace(Study=Recorder)
    exec(compile(report.reproduce.replace("import", ""), "snippet", "exec"), namespace)
    assert calls[0] == {"metric": "top1", "scheme": "int8-per-tensor"}
    assert calls[1]["method"] == "mse"
    assert calls[2] == {"title": "A small network", "batches": None, "worst": 3, "sensitivity": True, "tolerance": 0.01}


def test_fingerprint_follows_the_plan(study, report):
    edited = study.with_plan(study.plan.with_range("second", -0.1, 0.1))
    other = make(edited, sensitivity=False, worst=0, progress=False)
    assert other.settings["plan fingerprint"] != report.settings["plan fingerprint"]
    assert any(re.match(r"second\b.*plan\.save", remark) for remark in other.remarks)


def test_batches_bound_everything():
    study = tiny_study()
    made = make(study, batches=1, worst=1, progress=False)
    assert made.metric["samples"] == made.layer_samples == 16
    assert made.settings["batches"] == 1


def test_more_batches_than_the_table_takes_are_said():
    torch.manual_seed(3)
    from report_cases import Small

    study = Study(Small(), image_batches(), image_batches(7, size=4))
    made = make(study, sensitivity=False, worst=1, progress=False)
    assert (made.metric["samples"], made.layer_samples) == (28, 16)
    assert any("28 samples" in remark and "on 16" in remark for remark in made.remarks)


def test_report_is_frozen_and_free_of_the_model(report):
    import pickle

    with pytest.raises(dataclasses.FrozenInstanceError):
        report.title = "other"
    again = pickle.loads(pickle.dumps(report))
    assert again.to_dict() == report.to_dict()

    def kinds(value: object) -> set[type]:
        if isinstance(value, dict):
            return set().union(*(kinds(v) for v in value.values()), set())
        if isinstance(value, (list, tuple)):
            return set().union(*(kinds(v) for v in value), set())
        return {type(value)}

    assert kinds(report.to_dict()) <= {str, int, float, bool, type(None)}
    assert isinstance(again, Report)


def test_repr_says_the_verdict_and_the_losses(report):
    assert report.verdict["verdict"] in repr(report)
    assert "int8 loses" in repr(report)
    assert "32 samples" in repr(report)
    assert report.verdict["verdict"] in report._repr_html_()


def test_report_does_not_change_the_study(study):
    before, plan = study.plan.to_dict(), study.plan
    make(study, sensitivity=False, worst=1, progress=False)
    assert study.plan is plan
    assert study.plan.to_dict() == before


@pytest.mark.parametrize("options", [{"worst": -1}, {"tolerance": 0.0}, {"tolerance": float("nan")}, {"batches": 0}])
def test_options_out_of_range_are_refused(study, options):
    with pytest.raises(QkitError, match=next(iter(options))):
        make(study, progress=False, **options)


def test_the_lane_that_is_judged_is_the_studys_own():
    study = tiny_study(scheme="int4-weights")
    made = make(study, sensitivity=True, worst=1, progress=False)
    assert (made.lanes, made.narrow) == (("int16", "int4"), "int4")
    assert "int4" in made.verdict["reason"]
    assert re.search(r"\bint4\b", made.settings["sensitivity"])
    assert made.worst[0]["tap"] in made.layers.index
    assert study.lane("int4") == study.plan
