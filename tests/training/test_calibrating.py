"""Calibration where training was: epochs, what they learn, saving, and what is refused."""

from __future__ import annotations

import copy
import io
import logging
import pickle
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small_networks import Mixed, conv_with_norm, mixed_network, plain_run, rounded_by_torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import qkit
from qkit.errors import DataError, GraphError, PlanError, QkitError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches
from qkit.ptq.corrections import correct_biases, reestimate_norms
from qkit.quant.grids import QuantSpec
from qkit.quant.schemes import Scheme
from qkit.training import PtqModule, calibrating

LOW = Scheme(
    "low", QuantSpec(bits=4, symmetric=True, signed=True, per_channel=False, narrow=True), QuantSpec(bits=6), bias_bits=None
)
WEIGHTS = Scheme("weights", LOW.weight, None, bias_bits=None)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def images() -> Tensor:
    return torch.randn(40, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def epoch(module: nn.Module, loader: Any) -> None:
    module.train()
    for x in loader:
        module(x)


def lane(module: PtqModule, x: Tensor, plan: qkit.Plan | None = None) -> Tensor:
    return run_lanes(module.graph, [Lane("lane", module.plan() if plan is None else plan)], (x,))["lane"]


def shifts(module: PtqModule, x: Tensor, plan: qkit.Plan) -> dict[str, Tensor]:
    """Per tap, how far the mean of every channel is from float's, by one plain run of both lanes."""
    found = {}

    def look(op, values):
        axes = [d for d in range(values["float"].ndim) if d != op.channel_axis]
        found[op.name] = (values["lane"].double() - values["float"].double()).mean(axes)

    run_lanes(module.graph, [Lane("float"), Lane("lane", plan)], (x,), observe=look)
    return found


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        *(("int8", method) for method in ("minmax", "moving-average", "percentile", "mse", "entropy")),
        *((scheme, "mse") for scheme in ("int8-per-tensor", "int8-power-of-two", "int16", LOW)),
    ],
)
def test_an_epoch_of_observers_gives_the_plan_of_a_study(mixed: Mixed, images: Tensor, scheme, method: str) -> None:
    loader = images.split(3)  # the last one is smaller, and there are more than are joined at once
    module = calibrating(mixed, images[:2], scheme=scheme, method=method)
    epoch(module, loader)
    study = qkit.Study(mixed, loader, metric="agreement", scheme=scheme)
    assert module.plan().to_dict() == study.calibrate(method, progress=False).to_dict()


def test_settings_of_the_estimators_are_the_studys(mixed: Mixed, images: Tensor) -> None:
    settings = {"weight_method": "mse", "percentile": 99.0, "methods": {"classify": "minmax", "stem.weight": "minmax"}}
    module = calibrating(mixed, images, method="percentile", **settings)
    epoch(module, [images])
    study = qkit.Study(mixed, [images], metric="agreement")
    assert module.plan().to_dict() == study.calibrate("percentile", progress=False, **settings).to_dict()


def test_outputs_are_the_lanes(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    module.train()
    first = module(images)
    torch.testing.assert_close(first.detach(), mixed(images).detach(), rtol=1e-4, atol=1e-5)  # observing: float
    module.eval()
    output = module(images)
    assert torch.equal(output, lane(module, images))
    by_hand = plain_run(mixed, images, module.plan())["classify"]
    step = module.plan()["classify"].params.scale
    assert float(((output - by_hand) / step).abs().max()) < 2.5  # rounding of single elements may fall the other way
    assert float(((output - by_hand).abs() > 0.5 * step).float().mean()) < 0.05
    module.train()
    corrected = module(images)
    assert module.phase == "biases"
    assert torch.equal(corrected.detach(), lane(module, images))
    assert module.plan().corrections


def test_ranges_may_take_several_epochs(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images, observer_epochs=2, bias_epochs=0)
    epoch(module, [images])
    narrow = module.plan()
    epoch(module, [images * 3])
    both = qkit.Study(mixed, [images, images * 3], metric="agreement").calibrate(progress=False)
    assert module.plan().to_dict() == both.to_dict()
    assert module.plan() != narrow
    assert module.total_epochs == 2


def test_one_linear_layer_is_corrected_by_the_mean_over_all_samples(images: Tensor) -> None:
    torch.manual_seed(1)
    layer, x = nn.Linear(12, 5, bias=False), torch.randn(50, 12) + 1.0
    loader = x.split(16)  # the last batch weighs less
    module = calibrating(nn.Sequential(layer), x, scheme=WEIGHTS)
    epoch(module, loader)
    epoch(module, loader)
    error = rounded_by_torch(layer.weight.detach(), module.plan()["0.weight"].params) - layer.weight
    expected = -(error.double() @ x.double().mean(0)).detach()  # Nagel et al. 2019, equation 16
    found = torch.tensor(module.plan().corrections["0"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(module.eval()(x).mean(0), layer(x).detach().mean(0), atol=1e-5, rtol=1e-4)


def test_a_factor_makes_an_exponential_mean() -> None:
    torch.manual_seed(2)
    layer, x = nn.Linear(12, 5), torch.randn(40, 12) + 1.0
    module = calibrating(nn.Sequential(layer), x, scheme=WEIGHTS, bias_factor=0.25, bias_epochs=2)
    epoch(module, [x])
    error = rounded_by_torch(layer.weight.detach(), module.plan()["0.weight"].params) - layer.weight
    expected = torch.zeros(5, dtype=torch.float64)
    for _ in range(2):
        epoch(module, x.split(8))
        for part in x.split(8):
            expected = 0.75 * expected - 0.25 * (error.double() @ part.double().mean(0)).detach()
    found = torch.tensor(module.plan().corrections["0"], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_one_batch_is_corrected_as_a_study_is(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images, scheme=LOW)
    epoch(module, [images])
    before = module.plan()
    epoch(module, [images])
    assert module.plan().to_dict() == correct_biases(module.graph, before, list(batches([images])), progress=False).to_dict()


def test_means_behind_the_layers_become_floats(mixed: Mixed, images: Tensor) -> None:
    """Accumulated shift included: of each layer under the corrections of those before it."""
    module = calibrating(mixed, images, scheme=WEIGHTS, bias_epochs=4)
    loader = images.split(8)
    epoch(module, loader)
    before = shifts(module, images, module.plan())
    for _ in range(4):
        epoch(module, loader)
    after = shifts(module, images, module.plan())
    assert set(module.plan().corrections) == {"stem", "depthwise", "project", "side", "classify"}
    for tap in ("stem", "depthwise", "side", "classify"):  # `project` is read by a join with a clamp of its own
        assert float(after[tap].abs().max()) < 0.1 * float(before[tap].abs().max()), tap


@pytest.mark.parametrize("scheme", [LOW, "int8", "int8-per-tensor"])
def test_norms_of_one_batch_are_reestimated_as_a_studys(mixed: Mixed, images: Tensor, scheme) -> None:
    module = calibrating(mixed, images, scheme=scheme, norm_epochs=1, bias_epochs=0)
    epoch(module, [images])
    before = module.plan()
    epoch(module, [images])
    assert module.phase == "norms"
    anew = reestimate_norms(module.graph, before, list(batches([images])), progress=False)
    assert module.plan().to_dict() == anew.to_dict()
    assert set(anew.diff(before)) == {"stem.weight", "depthwise.weight"}


def test_norms_over_batches_are_what_torch_estimates_anew() -> None:
    conv, norm, x = conv_with_norm()
    scheme = Scheme("3", QuantSpec(bits=3, symmetric=True, signed=True, per_channel=True, narrow=True), None)
    module = calibrating(nn.Sequential(conv, norm).eval(), x, scheme=scheme, norm_epochs=1, bias_epochs=0)
    epoch(module, x.split(10))
    quantized = rounded_by_torch(module.graph.weights["0.weight"], module.plan()["0.weight"].params)
    epoch(module, x.split(10))
    fresh = copy.deepcopy(norm)
    fresh.reset_running_stats()
    with torch.no_grad():
        expected = fresh.train()(F.conv2d(x, quantized))
    # the bias follows while the scale still settles: a few hundredths remain
    torch.testing.assert_close(module.eval()(x), expected, atol=0.03, rtol=0.0)
    assert float((lane(module, x) - expected).abs().mean()) < 0.01


def test_epochs_come_in_their_order(mixed: Mixed, images: Tensor, caplog) -> None:
    module = calibrating(mixed, images, norm_epochs=1, bias_epochs=2, observer_epochs=1)
    assert module.training
    assert module.total_epochs == 4
    phases, plans = [], []
    with caplog.at_level(logging.WARNING, "qkit.training.ptq_module"):
        for number in range(6):
            module.train()
            module.train()  # twice, and after an evaluation, without a batch between
            assert module.epoch == number
            module(images[:20])
            phases.append(module.phase)
            plans.append(module.plan())
            module.eval()
            module(images)
            assert module.plan() == plans[-1], "evaluation changes nothing"
    assert phases == ["observers", "norms", "biases", "biases", "done", "done"]
    assert len(plans[0].diff(plans[1])) == 2
    assert not plans[1].diff(plans[2])
    assert plans[1].corrections.keys() < plans[2].corrections.keys()
    assert plans[3] == plans[4] == plans[5]
    (said,) = (text for record in caplog.records if "module.epoch" in (text := record.getMessage()))
    assert re.findall(r"\d+", said) == ["5", "4"]
    assert re.search(r"epoch\D+5\D+4\b.*done.*observers 20\D+norms 20\D+biases 40\b", repr(module))


def test_batches_before_the_first_call_of_train_count(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    module(images)
    module.train()
    assert module.epoch == 1


def test_an_epoch_that_is_set_counts_alone(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    for number in (0, 1, 0):
        module.epoch = number
        for _ in range(2):
            module.train()
            module(images)
            module.eval()
        assert module.epoch == number
        assert bool(module.plan().corrections) == (number == 1), "new ranges ask for new corrections"
    for wrong in (-1, 1.5, True, "2"):
        with pytest.raises(QkitError, match="epoch"):
            module.epoch = wrong
    late = calibrating(mixed, images)
    late.epoch = 1
    with pytest.raises(DataError, match=r"epoch 1\b.*biases.*epoch 0\b"):
        late(images)


def test_the_users_model_is_never_changed(mixed: Mixed, images: Tensor) -> None:
    mixed.train()
    mixed.stem.weight.requires_grad_(False)
    calls = []
    mixed.side.register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in mixed.state_dict().items()}
    modes, random = [m.training for m in mixed.modules()], torch.get_rng_state()
    example = images[:4].clone()
    module = calibrating(mixed, example, norm_epochs=1)
    done = len(calls)
    for _ in range(3):
        epoch(module, images.split(20))
    module.eval()(images)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(example, images[:4])
    assert all(torch.equal(value, before[name]) for name, value in mixed.state_dict().items())
    assert modes == [m.training for m in mixed.modules()]
    assert len(calls) == done
    assert [n for n, p in mixed.named_parameters() if not p.requires_grad] == ["stem.weight"]
    plain = module.float_model()
    assert type(plain) is Mixed
    assert [n for n, p in plain.named_parameters() if not p.requires_grad] == ["stem.weight"]
    assert not any(p.requires_grad for p in module.parameters())
    assert {n.removeprefix("model.") for n, _ in module.named_parameters()} == dict(mixed.named_parameters()).keys()


@pytest.mark.parametrize("done", range(1, 9))
def test_a_saved_state_goes_on_identically(mixed: Mixed, images: Tensor, done: int) -> None:
    """After any batch, in the middle of epochs too."""

    def operations(module: PtqModule, numbers: range) -> None:
        for number in numbers:
            if number % 3 == 0:
                module.train()
            module(images[10 * (number % 3) :][:10])

    module = calibrating(mixed, images, scheme="int8-per-tensor", norm_epochs=1)
    operations(module, range(done))
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = calibrating(mixed_network(7), images, scheme="int8-per-tensor", norm_epochs=1)  # weights come with the state
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert (other.epoch, other.phase) == (module.epoch, module.phase)
    operations(module, range(done, 9))
    operations(other, range(done, 9))
    assert module.plan().corrections
    assert other.plan().to_dict() == module.plan().to_dict()
    assert torch.equal(other.eval()(images), module.eval()(images))


def test_states_of_something_else_are_refused(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    epoch(module, [images])
    for options in ({"scheme": "int8-symmetric"}, {"method": "minmax"}, {"bias_epochs": 3}, {"bias_factor": 0.01}):
        with pytest.raises(PlanError, match=next(iter(options))):
            calibrating(mixed, images, **options).load_state_dict(module.state_dict())
    with pytest.raises(PlanError, match=r"qkit\.training.*state_dict"):
        module.load_state_dict({**module.state_dict(), "_extra_state": torch.zeros(2)})


def test_other_weights_alone_undo_the_calibration(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    epoch(module, [images])
    other = mixed_network(5)
    module.load_state_dict({f"model.{name}": value for name, value in other.state_dict().items()}, strict=False)
    with pytest.raises(DataError, match="calibrated"):
        module.plan()
    module.epoch = 0
    epoch(module, [images])
    assert module.plan() == qkit.Study(other, [images], metric="agreement").calibrate(progress=False)


def test_copies_and_pickles_are_independent(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    epoch(module, [images[:20]])
    module.eval()
    plan, expected = module.plan(), module(images)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(images), expected)
        epoch(copied, [images])
        assert copied.epoch == 1
        assert copied.plan() != plan
        copied.epoch = 0
        epoch(copied, [images * 5])
    assert module.epoch == 0
    assert module.plan() == plan
    assert module.plan().to_dict() == qkit.Study(mixed, [images[:20]], metric="agreement").calibrate(progress=False).to_dict()


def test_an_interrupt_in_a_batch_leaves_what_was_learnt(mixed: Mixed, images: Tensor, monkeypatch) -> None:
    from qkit.execution import observing
    from qkit.ptq import corrections

    module = calibrating(mixed, images)
    module.train()
    module(images[:20])

    def interrupted(where: Any, name: str, after: int) -> None:
        real, calls = getattr(where, name), []

        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > after:
                raise KeyboardInterrupt
            return real(*args, **kwargs)

        state = module.get_extra_state()
        with monkeypatch.context() as patch:
            patch.setattr(where, name, call)
            with pytest.raises(KeyboardInterrupt):
                module(images)
        assert str(module.get_extra_state()) == str(state)

    interrupted(observing, "observe_tensor", 3)
    module(images[20:])
    assert module.plan() == qkit.Study(mixed, [images[:20], images[20:]], metric="agreement").calibrate(progress=False)
    module.train()
    interrupted(corrections, "mean_shift", 3)
    assert not module.plan().corrections
    module(images)
    assert module.plan().corrections


def test_a_study_goes_on_from_it(mixed: Mixed, images: Tensor) -> None:
    with torch.no_grad():
        targets = mixed(images).argmax(1)
    module = calibrating(mixed, images, scheme="int8-per-tensor", method="minmax")
    for _ in range(2):
        epoch(module, [images])
    study = module.study(calibration=[images], evaluation=[(images, targets)], metric="top1")
    assert study.plan == module.plan()
    assert study.methods["method"] == "minmax"
    hits = (module.eval()(images).argmax(1) == targets).double().mean().item()
    assert study.evaluate({"int8": study.plan}, progress=False)["int8"].value == hits
    with pytest.raises(DataError, match="calibrated"):
        calibrating(mixed, images).study([images], metric="agreement")


def test_there_is_nothing_to_train(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    targets = torch.arange(40) % 5
    optimizer = torch.optim.SGD(module.parameters(), 0.1, weight_decay=0.1)
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    for _ in range(3):
        module.train()
        loss = F.cross_entropy(module(images), targets)
        with pytest.raises(QkitError, match=r"qkit\.training.*qkit\.qat\.wrap"):
            loss.backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    with torch.no_grad():
        assert not module(images).requires_grad
    module.eval()
    output = module(images)
    assert not output.requires_grad
    output += 1.0  # an ordinary tensor, none of inference mode
    assert not output.is_inference()


def test_autocast_is_switched_off_inside(mixed: Mixed, images: Tensor, caplog) -> None:
    plain, module = calibrating(mixed, images), calibrating(mixed, images)
    for _ in range(2):
        epoch(plain, [images])
    expected = plain.eval()(images)
    with caplog.at_level(logging.WARNING, "qkit.training.ptq_module"), torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            epoch(module, [images])
        copied = copy.deepcopy(module).eval()
        assert torch.equal(copied(images), expected)
    assert module.plan() == plain.plan()
    assert caplog.text.count("autocast") == 1


class Several(nn.Module):
    """Two inputs, of which one may be left out, and outputs in a nest."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 1)
        self.shared = nn.Conv2d(4, 4, 1, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        z = self.shared(torch.relu(self.shared(self.one(x)))) + y
        return {"map": z, "parts": (z.mean((2, 3)), z.argmax(1))}


def test_inputs_by_name_shared_layers_and_nested_outputs(images: Tensor) -> None:
    torch.manual_seed(0)
    model, y = Several(), torch.randn(40, 4, 16, 16)
    module = calibrating(model, (images, y))
    for _ in range(2):
        module.train()
        output = module(images, y=y)
        assert output["map"].requires_grad
        assert not output["parts"][1].is_floating_point()
    assert set(module.plan().corrections) == {"one"}, "one bias cannot follow the means of two calls"
    module.eval()
    a, b = module(y=y, x=images), module(images, y)
    assert torch.equal(a["map"], b["map"])
    assert torch.equal(a["parts"][0], b["parts"][0])
    assert isinstance(a["parts"], tuple)
    with pytest.raises(DataError, match=r"Several.*'y'"):
        module(images)
    with pytest.raises(DataError, match="Several"):
        module(images, y, y)


@dataclass
class Answer:
    score: Tensor
    best: Tensor


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor, *, scale: float = 1.0) -> Answer:
        y = self.layer(x)
        return Answer(y * scale, y.argmax(1))


def test_outputs_come_in_the_models_own_class() -> None:
    x = torch.randn(8, 4)
    module = calibrating(Answering(), x)
    for mode in (True, False):
        answer = module.train(mode)(x)
        assert type(answer) is Answer
        assert answer.score.requires_grad == mode
        answer.score.detach().add_(1.0)  # an ordinary tensor, none of inference mode
        assert not answer.best.is_inference()
    with pytest.raises(DataError, match="scale"):
        module(x, scale=2.0)


def test_layers_without_bias_get_one(images: Tensor) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    module = calibrating(model, images, scheme=LOW)
    for _ in range(2):
        epoch(module, [images])
    assert set(module.plan().corrections) == {"0", "2"}
    assert all(layer.bias is None for layer in module.float_model() if isinstance(layer, nn.Conv2d))


def test_bad_batches_are_refused_and_change_nothing(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    bad = images.clone()
    bad[3, 1, 2] = float("nan")
    for number in range(3):
        module.train()
        module(images)
        state = str(module.get_extra_state())
        for mode in (True, False):
            if module.training != mode:
                module.eval()
            with pytest.raises(DataError, match=r"^input\b.*\b16\b.*\b30720\b.*NaN"):
                module(bad)
            for batch, words in (
                (images.half(), r"^input\b.*torch\.float16.*x\.float"),
                (images[:, :1], r"^input\b.*\(40, 1, 16, 16\).*\(40, 3, 16, 16\)"),
                (images[:0], r"^input\b.*\(0, 3, 16, 16\)"),
                (images.numpy(), r"^input\b.*ndarray"),
            ):
                with pytest.raises(DataError, match=words):
                    module(batch)
        assert module.epoch == number
        assert str(module.get_extra_state()) == state


class Logarithm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.layer.weight)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.log(self.layer(x)))


def test_what_becomes_infinite_inside_is_named() -> None:
    good = torch.rand(8, 4) + 0.5
    module = calibrating(Logarithm(), good, scheme=WEIGHTS)
    module.train()
    with pytest.raises(DataError, match=r"^(:log|last)\b.*NaN"):
        module(-good)
    module(good)
    module.train()
    with pytest.raises(DataError, match=r"last\b.*NaN"):
        module(-good)
    assert not module.plan().corrections


def test_nothing_is_scored_before_calibration(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images).eval()
    with pytest.raises(DataError, match="calibrated"):
        module(images)
    with pytest.raises(DataError, match="calibrated"):
        module.plan()


def test_models_and_options_that_make_no_sense(mixed: Mixed, images: Tensor) -> None:
    with pytest.raises(DataError, match=r"stem\.weight.*torch\.float16.*model\.float"):
        calibrating(mixed_network().half(), images)
    broken = mixed_network()
    with torch.no_grad():
        broken.side.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(DataError, match=r"side\.weight"):
        calibrating(broken, images)
    with pytest.raises(GraphError):
        calibrating(lambda x: x, images)
    with pytest.raises(PlanError, match="'max'"):
        calibrating(mixed, images, method="max")
    with pytest.raises(PlanError, match="'max'"):
        calibrating(mixed, images, weight_method="max")
    with pytest.raises(PlanError, match="int9"):
        calibrating(mixed, images, scheme="int9")
    with pytest.raises(PlanError, match="percentile"):
        calibrating(mixed, images, method="percentile", percentile=20.0)
    with pytest.raises(GraphError, match="clasify"):
        calibrating(mixed, images, methods={"clasify": "minmax"})
    for name, value in (("observer_epochs", 0), ("norm_epochs", -1), ("bias_epochs", 0.5), ("bias_epochs", True)):
        with pytest.raises(QkitError, match=name):
            calibrating(mixed, images, **{name: value})
    for factor in (0.0, 1.5, -0.1, "0.01", float("nan"), True):
        with pytest.raises(QkitError, match="bias_factor"):
            calibrating(mixed, images, bias_factor=factor)
    with pytest.raises(TypeError, match="bias_facter"):
        calibrating(mixed, images, bias_facter=0.01)  # type: ignore[call-arg]


def test_parallel_replicas_are_refused(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    parallel = nn.DataParallel(module)
    parallel.train()
    if not torch.cuda.is_available():
        parallel(images)  # hands the batch on
        assert module.epoch == 0
    replica = module._replicate_for_data_parallel()
    with pytest.raises(QkitError, match="DataParallel"):
        replica(images)


def test_casts_to_other_types_are_errors_until_undone(mixed: Mixed, images: Tensor) -> None:
    module = calibrating(mixed, images)
    epoch(module, [images])
    module.eval()
    expected = module(images)
    assert torch.equal(module.float()(images), expected)
    assert torch.equal(module.to("cpu")(images), expected)
    module.double()
    with pytest.raises(DataError, match="float64"):
        module(images)
    assert torch.equal(module.float()(images), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here")
def test_a_gpu_learns_what_the_cpu_does(mixed: Mixed, images: Tensor) -> None:
    here = calibrating(mixed, images, scheme=LOW)
    there = calibrating(mixed, images, scheme=LOW, device="cuda")
    moved = calibrating(mixed, images, scheme=LOW).cuda()
    for module in (here, there, moved):
        for _ in range(2):
            epoch(module, images.split(20))
        module.eval()
    assert not next(mixed.parameters()).is_cuda
    assert there(images).is_cuda
    assert there.plan().to_dict() == moved.plan().to_dict()
    for name, (a, b) in here.plan().diff(there.plan()).items():
        torch.testing.assert_close(a.params.scale, b.params.scale, rtol=1e-3, atol=0.0, msg=name)
    for name, values in here.plan().corrections.items():
        torch.testing.assert_close(torch.tensor(values), torch.tensor(there.plan().corrections[name]), rtol=0.05, atol=5e-3)
    here.load_state_dict(there.state_dict())
    assert here.plan() == there.plan()
    step = float(here.plan()["classify"].params.scale)
    assert float((here(images) - there(images).cpu()).abs().max()) < 3 * step
    assert there.cpu()(images).device.type == "cpu"


@torch.no_grad()
def accuracy(model: nn.Module, loader: Any) -> float:
    model.eval()
    return torch.cat([model(x).argmax(1) == y for x, y in loader]).double().mean().item()


@pytest.mark.slow
def test_in_a_training_script() -> None:
    """The hostile network at 8 bits per tensor, over 256 calibration digits in shuffled batches."""
    from qkit import zoo

    case = zoo.load("mobilenet_v2_hostile")
    given = list(case.calibration)
    data = TensorDataset(torch.cat([x for x, _ in given]), torch.cat([y for _, y in given]))
    loader = DataLoader(data, batch_size=32, shuffle=True, generator=torch.Generator().manual_seed(0))

    model = qkit.training.calibrating(case.model, next(iter(loader))[0], scheme="int8-per-tensor")
    criterion = nn.CrossEntropyLoss()
    scores, losses = [], []
    for _ in range(model.total_epochs):
        model.train()
        for images, targets in loader:
            losses.append(criterion(model(images), targets).item())
        scores.append(accuracy(model, case.evaluation))

    exact = accuracy(case.model, case.evaluation)
    assert exact > 0.98
    assert scores[0] < 0.4, "ranges alone"
    assert scores[1] > 0.75, "with biases"
    assert model.plan().corrections
    assert losses[0] < 0.1 < losses[-1], "float's while ranges are observed, then the quantized network's"
