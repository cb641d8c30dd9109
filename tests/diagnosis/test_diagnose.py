"""The guided diagnosis on faults planted by hand: each has to be named, with its layer, and its remedy has to help."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qkit
from qkit import zoo
from qkit.diagnosis import Diagnosis, cost
from qkit.diagnosis.answer import interaction_words
from qkit.diagnosis.diagnose import QAT
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.verdict import amount
from qkit.zoo.case import Case

QUIET: dict[str, Any] = {"batches": 4, "check_export": False, "progress": False}


@pytest.fixture(scope="module")
def resnet() -> Case:
    return zoo.load("resnet_small")


@pytest.fixture(scope="module")
def hostile() -> Case:
    return zoo.load("mobilenet_v2_hostile")


def study_of(case: Case, model: nn.Module | None = None, **options: Any) -> qkit.Study:
    settings: dict[str, Any] = {"scheme": "int8-per-tensor", "expected": case.expected, **options}
    calibration = settings.pop("calibration", case.calibration)
    evaluation = settings.pop("evaluation", case.evaluation)
    study = qkit.Study(model or case.model, calibration, evaluation, **settings)
    study.calibrate("mse", progress=False)
    return study


def changed(loader: Any, change: Any) -> list[Any]:
    return [(change(x), y) for x, y in loader]


@pytest.fixture(scope="module")
def explained(hostile: Case) -> tuple[qkit.Study, Diagnosis]:
    study = study_of(hostile)
    return study, study.diagnose(**{**QUIET, "check_export": True})


def test_hostile_network_is_explained_and_fixed(explained: tuple[qkit.Study, Diagnosis]) -> None:
    study, found = explained
    assert found.verdict.name == "quantization"
    top = found.causes[0]
    assert (top.kind, top.layer, top.remedy.kind) == ("weight-channel-imbalance", "features.3.conv.1.0", "per-channel-weights")
    assert top.gain is not None
    assert top.gain.low > 0.0
    assert found.parts is not None
    assert found.parts.weights.low > 0.5
    assert found.parts.activations.value < 0.02
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01
    assert found.qat == QAT["remedies-do"].format(loss=amount(found.best_loss, study.metric.units))
    fixed = study.apply(*found.remedies)
    assert fixed.plan == found.best
    assert fixed.evaluate(("float", "int8"), progress=False).loss("int8").value < 0.02
    assert study.plan != fixed.plan, "the study itself is untouched"
    assert [remedy.kind for remedy in found.remedies] == ["per-channel-weights"], "what is done everywhere is not said twice"
    assert found.exported
    assert all(one.survives for one in found.exported)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2_lite", "resnet_small", "vgg_small", "inception_small"])
def test_sound_networks_raise_no_alarm(name: str) -> None:
    found = study_of(zoo.load(name)).diagnose(**QUIET)
    assert found.verdict.name == "no-degradation"
    assert not found.causes
    assert not found.remedies


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "kind", "remedy"), [(0.05, "range-too-narrow", "widen-range"), (200.0, "range-too-wide", "recalibrate")]
)
def test_a_range_that_does_not_fit_is_named(resnet: Case, factor: float, kind: str, remedy: str) -> None:
    sound = study_of(resnet)
    tap = "layer2.0.conv1"
    grid = sound.plan[tap].params
    study = sound.with_plan(sound.plan.with_range(tap, 0.0, factor * float(grid.hi)))
    found = study.diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    assert (found.causes[0].kind, found.causes[0].tensor, found.causes[0].remedy.kind) == (kind, tap, remedy)
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


def scheme_with(tensor: str, **rule: Any) -> qkit.Scheme:
    base = qkit.PRESETS["int8-per-tensor"]
    spec = base.weight if tensor.endswith(".weight") else base.activation
    assert spec is not None
    return replace(base, name="planted", overrides={tensor: replace(spec, **rule)})


@pytest.mark.slow
def test_too_few_bits_are_named(resnet: Case) -> None:
    found = study_of(resnet, scheme=scheme_with("layer3.0.conv1.weight", bits=2)).diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    assert found.causes[0].layer == "layer3.0.conv1"
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


def with_a_channel_nobody_hears(case: Case) -> tuple[nn.Module, nn.BatchNorm2d, nn.Conv2d]:
    """A copy of the network in which channel 5 is never active in front of the convolution that is returned."""
    model = copy.deepcopy(case.model)
    norm, conv = model.get_submodule("layer2.0.bn1"), model.get_submodule("layer2.0.conv2")
    assert isinstance(norm, nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    with torch.no_grad():
        norm.weight[5], norm.bias[5] = 0.0, -1.0
    return model, norm, conv


@pytest.mark.slow
def test_a_weight_that_stands_out_is_clipped(resnet: Case) -> None:
    model, _, conv = with_a_channel_nobody_hears(resnet)
    with torch.no_grad():
        # float does not see what its weights are
        conv.weight[2, 5, 1, 1] = 300.0 * conv.weight.abs().max()
    found = study_of(resnet, model).diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    top = found.causes[0]
    assert (top.kind, top.layer, top.remedy.kind) == ("weight-outlier", "layer2.0.conv2", "clip-weights")
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "norm", "following", "tap"),
    [
        ("resnet_small", "layer2.0.bn1", "layer2.0.conv2", "layer2.0.conv1"),
        ("mobilenet_v2_lite", "features.4.conv.0.1", "features.4.conv.1.0", "features.4.conv.0.0"),
    ],
)
def test_a_channel_out_of_proportion_is_equalized(name: str, norm: str, following: str, tap: str) -> None:
    case = zoo.load(name)
    model = copy.deepcopy(case.model)
    before, after = model.get_submodule(norm), model.get_submodule(following)
    assert isinstance(before, nn.BatchNorm2d)
    assert isinstance(after, nn.Conv2d)
    with torch.no_grad():
        before.weight[3] *= 3000.0
        before.bias[3] *= 3000.0
        (after.weight[:, 3] if after.groups == 1 else after.weight[3]).div_(3000.0)
    found = study_of(case, model).diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    top = found.causes[0]
    assert (top.kind, top.layer, top.remedy.kind) == ("activation-channel-imbalance", tap, "cross-layer-equalization")
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


@pytest.mark.slow
def test_biases_too_narrow_are_named(resnet: Case) -> None:
    narrow = replace(qkit.PRESETS["int8-per-tensor"], bias_bits=6)
    found = study_of(resnet, scheme=narrow).diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    assert found.causes[0].kind == "bias-width"
    assert found.causes[0].remedy.kind == "wider-bias"
    assert found.best is not None
    assert found.best.bias_bits == 32


@pytest.mark.slow
def test_calibration_on_other_inputs_is_named(resnet: Case) -> None:
    study = study_of(resnet, calibration=changed(resnet.calibration, lambda x: 0.1 * x))
    found = study.diagnose(**QUIET)
    assert found.verdict.name == "not-quantization"
    assert found.causes[0].kind == "calibration-mismatch"
    fixed = study.apply(found.causes[0].remedy)
    assert fixed.score(batches=4).value > study.score(batches=4).value + 0.1


@pytest.mark.slow
def test_evaluation_prepared_otherwise_is_named(resnet: Case) -> None:
    study = study_of(resnet, evaluation=changed(resnet.evaluation, lambda x: 0.2 * x - 2.0))
    found = study.diagnose(**QUIET)
    assert found.verdict.name in ("not-quantization", "both")
    assert found.causes[0].kind == "preprocessing"
    assert found.causes[0].gain is not None
    assert found.causes[0].gain.low > 0.0
    with pytest.raises(qkit.QkitError, match=r"^fix-input\b"):
        study.apply(found.causes[0].remedy)


def test_stale_batchnorm_statistics_are_named(resnet: Case) -> None:
    model = copy.deepcopy(resnet.model)
    norm = model.get_submodule("layer2.0.bn1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean += 3.0 * norm.running_var.sqrt()
    found = study_of(resnet, model).diagnose(**QUIET)
    assert found.verdict.name in ("not-quantization", "both")
    assert (found.causes[0].kind, found.causes[0].layer) == ("batchnorm-statistics", "layer2.0.bn1")


class Noisy(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.3 * torch.randn_like(x))


class Dropping(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.inner(x), 0.5, training=True)


@pytest.mark.slow
@pytest.mark.parametrize(("wrapper", "kind"), [(Noisy, "nondeterminism"), (Dropping, "train-mode")])
def test_forward_passes_that_do_not_repeat_are_named(resnet: Case, wrapper: type[nn.Module], kind: str) -> None:
    study = study_of(resnet, wrapper(copy.deepcopy(resnet.model)).eval())
    state = torch.get_rng_state()
    found = study.diagnose(**QUIET)
    assert kind in {cause.kind for cause in found.causes}
    assert found.verdict.name in ("not-quantization", "both")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_too_few_samples_are_said_and_nothing_is_named(hostile: Case) -> None:
    few = [(x[:6], y[:6]) for x, y in list(hostile.evaluation)[:1]]
    found = study_of(hostile, evaluation=few, scheme="int8", expected=None).diagnose(progress=False)
    assert found.verdict.name == "inconclusive"
    assert found.verdict.samples_needed is not None
    assert found.verdict.samples_needed > 6
    assert not found.causes


@pytest.mark.slow
def test_budget_is_kept_and_what_was_left_out_is_said(hostile: Case) -> None:
    study = study_of(hostile)
    found = study.diagnose(budget=40, **QUIET)
    assert found.evaluations <= 40
    assert found.verdict.name == "quantization"
    assert not found.complete
    assert any("budget" in remark for remark in found.remarks)
    assert cost(study, batches=4, budget=40).evaluations == 40


@pytest.mark.slow
def test_interrupt_keeps_what_is_known(hostile: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Bench.scores

    def interrupted(self: Bench, *args: Any, what: str = "", **options: Any) -> Any:
        if what == "each tensor alone":
            raise KeyboardInterrupt
        return original(self, *args, what=what, **options)

    monkeypatch.setattr(Bench, "scores", interrupted)
    found = study_of(hostile).diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    assert found.parts is not None
    assert not found.causes
    assert not found.complete
    assert found.to_dict()["complete"] is False
    assert any("nterrupted" in remark for remark in found.remarks)


def test_diagnosis_reads_and_survives_json(explained: tuple[qkit.Study, Diagnosis]) -> None:
    found = explained[1]
    data = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert data["verdict"] == "quantization"
    assert data["causes"][0]["remedy"]["kind"] == "per-channel-weights"
    assert len(found.table()) == len(found.causes)
    assert "weight-channel-imbalance" in repr(found)
    shown = found._repr_html_()
    assert shown.count('class="fill') == 3
    base = found.verdict.base
    for score in (base.value, base.value - found.verdict.narrow.value, base.value - found.best_loss.value):
        assert f"<b>{100 * score:.2f} %</b>" in shown
    assert all("nan" not in line for line in found.lines())


@pytest.mark.parametrize("tensor", ["layer2.0.conv1.weight", "layer2.0.bn1.running_var", "layer2.0.bn1.bias"])
def test_a_broken_checkpoint_is_named(resnet: Case, tensor: str) -> None:
    model = copy.deepcopy(resnet.model)
    with torch.no_grad():
        model.state_dict()[tensor][1] = float("nan")
    study = qkit.Study(model, resnet.calibration, resnet.evaluation)
    assert any(re.match(r"layer2\.0\.conv1\b.*NaN", remark) for remark in study.remarks)
    with pytest.raises(qkit.QkitError, match=r"^layer2\.0\.conv1\b.*NaN"):
        study.calibrate(progress=False)
    with pytest.raises(qkit.QkitError, match=r"^layer2\.0\.conv1\b.*NaN"):
        study.evaluate(("float",), progress=False)
    found = study.diagnose(**QUIET)
    assert found.verdict.name == "not-quantization"
    assert (found.causes[0].kind, found.causes[0].tensor) == ("non-finite", tensor)
    assert (found.verdict.wide, found.verdict.narrow, found.best) == (None, None, None)
    assert tensor in str(found)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_negative_variance_is_named_by_the_folded_layer(resnet: Case) -> None:
    model = copy.deepcopy(resnet.model)
    with torch.no_grad():
        model.state_dict()["layer2.0.bn1.running_var"][1] = -1.0
    found = qkit.Study(model, resnet.calibration, resnet.evaluation).diagnose(**QUIET)
    assert (found.causes[0].kind, found.causes[0].layer) == ("non-finite", "layer2.0.conv1")
    assert found.causes[0].tensor == "layer2.0.conv1.weight"
    assert "variance" in found.causes[0].remedy.text


class Rooted(nn.Module):
    """Takes a root that is imaginary where the image is dark."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.sqrt(self.stem(x)).mean((2, 3)))


def test_values_that_are_none_are_named_where_they_arise() -> None:
    images = [(torch.randn(8, 1, 8, 8), torch.randint(0, 3, (8,))) for _ in range(2)]
    found = qkit.Study(Rooted().eval(), images, images).diagnose(progress=False)
    assert found.causes[0].kind == "non-finite"
    assert found.causes[0].tensor not in ("input", "stem", "head")
    broken = [(x.clone(), y) for x, y in images]
    broken[1][0][3] = float("inf")
    found = qkit.Study(nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten()).eval(), images, broken).diagnose(progress=False)
    assert (found.causes[0].tensor, found.verdict.name) == ("input", "not-quantization")
    assert "evaluation" in found.causes[0].evidence


@pytest.mark.slow
def test_an_accumulator_that_wraps_around_is_named(resnet: Case) -> None:
    scheme = replace(qkit.PRESETS["int8"], name="narrow", accumulator_bits=15)
    study = study_of(resnet, scheme=scheme)
    found = study.diagnose(**QUIET)
    assert found.verdict.name == "not-quantization"
    top = found.causes[0]
    assert (top.kind, top.remedy.kind) == ("accumulator-overflow", "wider-accumulator")
    assert top.gain is not None
    assert top.gain.low > 0.0
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01
    fixed = study.apply(top.remedy)
    assert fixed.plan.accumulator_bits is not None
    unbounded = fixed.with_plan(replace(fixed.plan, accumulator_bits=None))
    plans = {"fixed": fixed.plan, "unbounded": unbounded.plan}
    scores = fixed.evaluate(plans, batches=4, progress=False)
    assert scores.loss("fixed", against="unbounded").value == 0.0
    quiet = study_of(resnet, scheme=replace(scheme, accumulator_bits=32)).diagnose(**QUIET)
    assert not quiet.causes


@pytest.mark.slow
def test_tensors_that_the_plan_leaves_out_are_said(resnet: Case) -> None:
    base = qkit.PRESETS["int8-per-tensor"]
    scheme = replace(base, name="gap", overrides={"layer2.0.conv1": None})
    found = study_of(resnet, scheme=scheme).diagnose(**QUIET)
    assert [(f.kind, f.layer) for f in found.findings] == [("unquantized-layer", "layer2.0.conv1")]
    found = study_of(resnet, scheme=replace(base, name="no weights", weight=None)).diagnose(**QUIET)
    (finding,) = found.findings
    assert (finding.kind, finding.layer) == ("unquantized-layer", "")
    assert "weights" in finding.evidence


def found_alone(case: Case) -> dict[str, float]:
    """What every tensor of the plan is expected to lose alone, each scored by a study of its own."""
    study = study_of(case)
    plans = {tensor: study.plan.only([tensor]) for tensor in study.plan}
    scores = study.evaluate({"float": qkit.FLOAT, **plans}, batches=4, progress=False)
    return {tensor: scores.expected_loss(tensor).value for tensor in plans}


@pytest.mark.slow
def test_errors_that_do_not_add_up_are_said(hostile: Case, explained: tuple[qkit.Study, Diagnosis]) -> None:
    found = explained[1]
    assert found.interaction is not None
    assert found.parts is not None
    alone = sum(found_alone(hostile).values())
    assert found.verdict.expected_narrow is not None
    assert found.interaction.value == pytest.approx(found.verdict.expected_narrow.value - alone)
    beyond_chance = not found.interaction.low <= 0.0 <= found.interaction.high
    said = interaction_words(found.interaction, found.units, 0.01)
    assert bool(said) == (beyond_chance and abs(found.interaction.value) > 0.01)
    assert said in str(found)
    few = study_of(hostile).diagnose(**QUIET, budget=60)
    assert few.interaction is None, "a sum over some of the tensors is none over all"


@pytest.mark.slow
def test_a_weights_outlier_in_every_channel_is_clipped_per_channel(resnet: Case) -> None:
    model, _, conv = with_a_channel_nobody_hears(resnet)
    with torch.no_grad():
        conv.weight[:, 5, 1, 1] = 300.0 * conv.weight.abs().amax((1, 2, 3))
    found = study_of(resnet, model, scheme="int8").diagnose(**QUIET)
    top = found.causes[0]
    assert (top.kind, top.layer, top.remedy.kind) == ("weight-outlier", "layer2.0.conv2", "clip-weights")
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("factor", "kind"), [(0.02, "range-too-narrow"), (300.0, "range-too-wide")])
def test_a_weights_range_per_channel_that_does_not_fit_is_named(resnet: Case, factor: float, kind: str) -> None:
    sound = study_of(resnet, scheme="int8")
    name = "layer2.0.conv1.weight"
    hi = sound.plan[name].params.hi
    found = sound.with_plan(sound.plan.with_range(name, -factor * hi, factor * hi)).diagnose(**QUIET)
    assert (found.causes[0].kind, found.causes[0].tensor) == (kind, name)
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize(("rarity", "kind"), [(2.2, "activation-outlier"), (0.0, "activation-channel-imbalance")])
def test_rare_values_are_told_from_a_wide_channel(resnet: Case, rarity: float, kind: str) -> None:
    model, norm, conv = with_a_channel_nobody_hears(resnet)
    with torch.no_grad():
        # what exceeds so many deviations passes the activation, a thousand times as large as other channels; nobody reads it
        norm.weight[5], norm.bias[5] = 3000.0, -3000.0 * rarity
        conv.weight[:, 5] = 0.0
    study = study_of(resnet, model, scheme="int8", expected=None)
    study.calibrate("minmax", progress=False)
    found = study.diagnose(**QUIET)
    assert found.verdict.name == "quantization"
    assert (found.causes[0].kind, found.causes[0].layer) == (kind, "layer2.0.conv1")
    assert found.causes[0].remedy.kind == ("clip-activation" if rarity else "sixteen-bit-layer")
    assert found.best_loss is not None
    assert found.best_loss.value <= 0.01


@pytest.mark.slow
def test_images_prepared_wrongly_for_both_are_told_by_the_first_norm_without_an_expected_score(resnet: Case) -> None:
    dim = [changed(loader, lambda x: 0.3 * x + 1.5) for loader in (resnet.calibration, resnet.evaluation)]
    study = study_of(resnet, calibration=dim[0], evaluation=dim[1], expected=None)
    found = study.diagnose(**QUIET)
    assert found.verdict.name in ("not-quantization", "both")
    assert found.causes[0].kind == "preprocessing"
    contrast = re.search(r"contrast\D*(\d\.\d)", found.causes[0].evidence)
    assert contrast is not None
    assert float(contrast[1]) > 1.5, "it undoes the dimming"
    assert not study_of(resnet, expected=None).diagnose(**QUIET).causes


@pytest.mark.slow
def test_the_layer_at_which_graph_and_model_part_is_named(resnet: Case) -> None:
    model = copy.deepcopy(resnet.model).eval()

    later: list[bool] = []  # state of Python's own, which no trace sees

    def twice(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return 2.0 * output + 1.0 if later else output

    model.get_submodule("layer2.0.conv2").register_forward_hook(twice)
    study = study_of(resnet, model)
    later.append(True)
    found = study.diagnose(**QUIET)
    assert found.causes[0].kind == "graph-transform"
    assert found.causes[0].layer == "layer2.0.conv2"
    assert "hooks" in found.causes[0].remedy.text


@pytest.mark.slow
def test_a_fault_of_the_inputs_is_named_under_a_scheme_of_two_widths(resnet: Case) -> None:
    dim = changed(resnet.evaluation, lambda x: 0.2 * x - 2.0)
    found = study_of(resnet, evaluation=dim, scheme="int4-weights").diagnose(**QUIET)
    assert found.causes[0].kind == "preprocessing"
    assert found.verdict.name in ("not-quantization", "both")
    assert re.search(r"\bint4\b", found.verdict.reason)
    assert "int8" not in found.verdict.reason
