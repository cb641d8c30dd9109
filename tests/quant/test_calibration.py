"""One float pass a batch, and every tap's histogram is of the tensor that a plain forward hook sees."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from qkit.errors import DataError, GraphError, PlanError
from qkit.execution import observing
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.observing import Observations, observe, observe_channels
from qkit.execution.plan_checks import saturations
from qkit.graph import Graph, build
from qkit.quant.calibration import check_weights, make_plan
from qkit.quant.estimators import METHODS, Observation
from qkit.quant.grids import QuantSpec
from qkit.quant.histogram import Histogram
from qkit.quant.schemes import PRESETS, Scheme
from qkit.study import Study


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.relu6 = nn.ReLU6()
        self.project = nn.Conv2d(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(x)))
        y = self.project(self.relu6(self.deep(x) * 3))
        return self.head(self.pool(x + y).flatten(1))


@pytest.fixture
def model() -> Small:
    model = Small()
    with torch.no_grad():
        model.norm.running_mean.normal_()
        model.norm.running_var.uniform_(0.5, 2.0)
        model.norm.weight.uniform_(0.5, 2.0)
        model.norm.bias.normal_()
    return model.eval()


@pytest.fixture
def images() -> list[Tensor]:
    return [torch.randn(n, 3, 16, 16) * (i + 1) for i, n in enumerate((4, 4, 3, 1))]


@pytest.fixture
def graph(model: Small, images: list[Tensor]) -> Graph:
    return build(model, images[0])


def hooked(model: Small, images: list[Tensor]) -> dict[str, list[Tensor]]:
    """What hooks on the user's model see, batch by batch, under the taps' names."""
    places = {"conv": model.relu, "deep": model.relu6, "project": model.project, "pool": model.pool, "head": model.head}
    seen: dict[str, list[Tensor]] = {name: [] for name in places}
    handles = [
        module.register_forward_hook(lambda _m, _x, out, name=name: seen[name].append(out.detach().clone()))
        for name, module in places.items()
    ]
    with torch.no_grad():
        for batch in images:
            model(batch)
    for handle in handles:
        handle.remove()
    return {"input": images, **seen}


def same(a: dict[str, Observation], b: dict[str, Observation]) -> None:
    assert list(a) == list(b)
    for name, mine in a.items():
        other = b[name]
        np.testing.assert_array_equal(mine.histogram.keys, other.histogram.keys)
        np.testing.assert_array_equal(mine.histogram.counts, other.histogram.counts)
        np.testing.assert_array_equal(mine.histogram.lows, other.histogram.lows)
        assert (mine.histogram.min, mine.histogram.max) == (other.histogram.min, other.histogram.max)
        assert (mine.batch_min, mine.batch_max) == (other.batch_min, other.batch_max)
        np.testing.assert_array_equal(mine.channel_min, other.channel_min)
        np.testing.assert_array_equal(mine.channel_max, other.channel_max)


def test_histograms_are_of_the_hooked_tensors(model: Small, images: list[Tensor], graph: Graph) -> None:
    seen = observe(graph, images, progress=False)
    assert list(seen) == list(graph.taps)
    truth = hooked(model, images)
    assert set(truth) <= set(seen)
    for name, batches in truth.items():
        mine = seen[name]
        whole = torch.cat([b.movedim(1, 0).flatten(1) for b in batches], 1)
        close = {"rel": 1e-4, "abs": 1e-4 * float(whole.abs().max())}  # folding and layout change last digits
        assert mine.histogram.total == whole.numel()
        assert mine.histogram.min == pytest.approx(float(whole.min()), **close)
        assert mine.histogram.max == pytest.approx(float(whole.max()), **close)
        assert mine.histogram.mean == pytest.approx(float(whole.double().mean()), **close)
        assert mine.histogram.mean_square == pytest.approx(float(whole.double().square().mean()), rel=1e-3)
        assert mine.batch_min == pytest.approx([float(b.min()) for b in batches], **close)
        assert mine.batch_max == pytest.approx([float(b.max()) for b in batches], **close)
        np.testing.assert_allclose(mine.channel_min, whole.amin(1).numpy(), rtol=1e-4, atol=close["abs"])
        np.testing.assert_allclose(mine.channel_max, whole.amax(1).numpy(), rtol=1e-4, atol=close["abs"])
        magnitudes = whole.double().numpy().reshape(-1)
        for low, high in ((-1.0, 0.5), (0.01, 2.0)):
            share = float(((magnitudes >= low) & (magnitudes <= high)).mean())
            assert mine.histogram.share_between(low, high) == pytest.approx(share, abs=0.01)


def test_the_inputs_counts_are_numpys(images: list[Tensor], graph: Graph) -> None:
    """The one tap that no arithmetic has touched is exact to the last element."""
    hist = observe(graph, images, progress=False)["input"].histogram
    bits = np.concatenate([x.numpy().view(np.uint32).reshape(-1) for x in images]) >> 16
    keys, counts = np.unique(bits.astype(np.uint16), return_counts=True)
    assert dict(zip(hist.keys.tolist(), hist.counts.tolist(), strict=True)) == dict(
        zip(keys.tolist(), counts.tolist(), strict=True)
    )


def test_one_float_pass_a_batch(model: Small, images: list[Tensor], graph: Graph) -> None:
    with FlopCounterMode(display=False) as plain, torch.no_grad():
        for batch in images:
            model(batch)
    with FlopCounterMode(display=False) as calibrating:
        observe(graph, images, progress=False)
    assert plain.get_total_flops() > 0
    assert calibrating.get_total_flops() == plain.get_total_flops()


def test_each_batch_is_taken_once_and_none_beyond_the_limit(images: list[Tensor], graph: Graph) -> None:
    taken: list[int] = []

    class Counting:
        def __iter__(self) -> Iterator[Tensor]:
            for i, batch in enumerate(images):
                taken.append(i)
                yield batch

    seen = observe(graph, Counting(), limit=3, progress=False)
    assert taken == [0, 1, 2]
    same(seen, observe(graph, images[:3], progress=False))
    assert len(seen["input"].batch_min) == 3


def test_targets_do_not_matter(images: list[Tensor], graph: Graph) -> None:
    labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in images]
    same(observe(graph, labelled, progress=False), observe(graph, images, progress=False))


def test_many_batches_merge_like_few(graph: Graph) -> None:
    """More batches than histograms are kept apart."""
    many = [torch.randn(1, 3, 8, 8) for _ in range(21)]
    seen = observe(graph, many, progress=False)
    assert len(seen["conv"].batch_min) == 21
    assert seen["input"].histogram.total == 21 * 3 * 64
    whole = observe(graph, [torch.cat(many)], progress=False)
    np.testing.assert_array_equal(seen["input"].histogram.counts, whole["input"].histogram.counts)
    assert seen["head"].histogram.total == whole["head"].histogram.total


def test_the_model_and_its_state_are_left_alone(model: Small, images: list[Tensor]) -> None:
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    observe(build(model, images[0]), images, progress=False)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


class Interrupted:
    """A loader that the user interrupts while it makes the next batch."""

    def __init__(self, batches: list[Tensor], after: int) -> None:
        self.batches, self.after = batches, after

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches[: self.after]
        raise KeyboardInterrupt


@pytest.mark.parametrize("after", [0, 1, 2, 9, 17])
def test_an_interrupt_between_batches_goes_up_and_the_pass_goes_on_from_there(graph: Graph, after: int) -> None:
    many = [torch.randn(1, 3, 8, 8) for _ in range(20)]
    work = Observations()
    with pytest.raises(KeyboardInterrupt):
        work.run(graph, Interrupted(many, after), progress=False)
    same(work.run(graph, many, progress=False), observe(graph, many, progress=False))


@pytest.mark.parametrize("done", [0, 1, 7, 8, 9, 16])
@pytest.mark.parametrize("taps", [0, 1, 3])
def test_an_interrupt_within_a_batch_counts_that_batch_once(
    graph: Graph, done: int, taps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = [torch.randn(1, 3, 8, 8) for _ in range(20)]
    expected = observe(graph, many, progress=False)
    calls = 0

    def counting(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == done * len(graph.taps) + taps + 1:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    original = observing.observe_tensor
    monkeypatch.setattr(observing, "observe_tensor", counting)
    work = Observations()
    with pytest.raises(KeyboardInterrupt):
        work.run(graph, many, progress=False)
    same(work.run(graph, many, progress=False), expected)
    assert calls == 20 * len(graph.taps) + taps + 1, "finished batches are not run again"


def test_an_empty_loader_is_an_error(graph: Graph) -> None:
    with pytest.raises(DataError, match=r"calibration.*batch"):
        observe(graph, [], progress=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_input_is_named(graph: Graph, images: list[Tensor], bad: float) -> None:
    images[2][1, 2, 3, 4] = bad
    with pytest.raises(DataError, match=r"^input\b.*\b1\b.*\b2304\b.*NaN"):
        observe(graph, images, progress=False)


def test_the_first_non_finite_tap_is_named(model: Small, images: list[Tensor]) -> None:
    with torch.no_grad():
        model.project.weight.fill_(3e38)
    graph = build(model, images[0])
    with pytest.raises(DataError, match=r"^project\b.*\b8192\b.*NaN"):
        observe(graph, images, progress=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.randn(2, 4, 16, 16), r"\(2, 4, 16, 16\)"),
        (torch.randn(3, 16, 16), r"\(3, 16, 16\)"),
        (torch.randn(2, 3, 16, 16).double(), "float64"),
        (torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "uint8"),
        (torch.empty(0, 3, 16, 16), "empty"),
    ],
)
def test_a_batch_that_does_not_fit_is_an_error(graph: Graph, images: list[Tensor], batch: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        observe(graph, [images[0], batch], progress=False)


def test_a_plan_has_a_grid_for_every_tap_and_weight(graph: Graph, images: list[Tensor]) -> None:
    seen = observe(graph, images, progress=False)
    for scheme in PRESETS.values():
        plan = make_plan(graph, seen, scheme)
        assert set(plan.grids) == {*graph.taps, *graph.weights}
        assert {name for name, grid in plan.grids.items() if grid.weight} == set(graph.weights)
        assert (plan.name, plan.bias_bits) == (scheme.name, scheme.bias_bits)
        for name in graph.taps:
            hist = seen[name].histogram
            assert plan[name].params == scheme.activation.params(hist.min, hist.max)
        for name, weight in graph.weights.items():
            if scheme.weight.per_channel:
                peak = weight.flatten(1)
                expected = scheme.weight.params(peak.amin(1), peak.amax(1), axis=0)
            else:
                expected = scheme.weight.params(float(weight.min()), float(weight.max()))
            assert plan[name].params == expected


def test_folded_weights_are_calibrated_not_the_users(model: Small, graph: Graph, images: list[Tensor]) -> None:
    factor = model.norm.weight / torch.sqrt(model.norm.running_var + model.norm.eps)
    folded = (model.conv.weight * factor[:, None, None, None]).detach()
    plan = make_plan(graph, observe(graph, images, progress=False), PRESETS["int8"])
    np.testing.assert_allclose(plan["conv.weight"].params.scale.numpy(), folded.abs().flatten(1).amax(1).numpy() / 127, rtol=1e-5)


def test_methods_and_rules_by_name_win(graph: Graph, images: list[Tensor]) -> None:
    seen = observe(graph, images, progress=False)
    wide = QuantSpec(16)
    scheme = Scheme("mine", QuantSpec(8, per_channel=True), QuantSpec(8), overrides={"head": wide, "deep.weight": None})
    plan = make_plan(
        graph, seen, scheme, method="percentile", weight_method="mse", methods={"conv": "minmax", "head.weight": "minmax"},
        percentile=90.0,
    )  # fmt: skip
    assert "deep.weight" not in plan.grids
    assert plan["head"].spec is wide
    methods = {name: plan[name].method for name in ("input", "conv", "head", "head.weight", "conv.weight")}
    assert methods == {
        "input": "percentile", "conv": "minmax", "head": "percentile", "head.weight": "minmax", "conv.weight": "mse",
    }  # fmt: skip
    hist = seen["input"].histogram
    assert plan["input"].params == QuantSpec(8).params(hist.quantile(0.1), hist.quantile(0.9))


def test_the_percentile_holds_for_weights_too(graph: Graph, images: list[Tensor]) -> None:
    seen = observe(graph, images, progress=False)
    scheme = PRESETS["int8-per-tensor"]
    plan = make_plan(graph, seen, scheme, weight_method="percentile", percentile=80.0)
    low, high = np.percentile(graph.weights["project.weight"].numpy(), [20, 80])
    assert float(plan["project.weight"].params.scale) == pytest.approx(max(-low, high) / 127, rel=0.1)


def test_unknown_methods_and_names_are_refused(graph: Graph, images: list[Tensor]) -> None:
    seen = observe(graph, images[:1], progress=False)
    scheme = PRESETS["int8"]
    for wrong in ({"method": "best"}, {"weight_method": "best"}, {"methods": {"conv": "best"}}):
        with pytest.raises(PlanError, match=f"'best'.*{', '.join(METHODS)}"):
            make_plan(graph, seen, scheme, **wrong)
    with pytest.raises(GraphError, match=r"'con'.*\bconv\b"):
        make_plan(graph, seen, scheme, methods={"con": "mse"})
    with pytest.raises(GraphError, match="'tail'"):
        make_plan(graph, seen, Scheme("mine", None, QuantSpec(8), overrides={"tail": None}))
    kept = [op.name for op in graph.operations if not op.quantized and op.kind == "keep"]
    for name in kept:
        with pytest.raises(PlanError, match=rf"^{name}\b.*method.*grid"):
            make_plan(graph, seen, scheme, methods={name: "mse"})
    assert kept, "the flatten shares the pool's grid"


@pytest.mark.parametrize("place", ["conv.weight", "head.bias", "norm.running_var"])
def test_a_broken_checkpoint_is_named(model: Small, images: list[Tensor], place: str) -> None:
    model.state_dict()[place].view(-1)[0] = float("nan")
    graph = build(model, images[0])
    layer = {"norm.running_var": "conv"}.get(place, place.split(".", maxsplit=1)[0])
    with pytest.raises(DataError, match=rf"^{layer}\b.*NaN"):
        check_weights(graph)


def test_finite_weights_pass(graph: Graph) -> None:
    check_weights(graph)
    assert all(bool(torch.isfinite(w).all()) for w in graph.weights.values())


def test_biases_that_saturate_are_said(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        model[0].weight[1] = 1e-9
        model[0].bias[1] = 5.0
    # with 32 bits planning makes it fit; with 14 the scale would have to be so coarse that it costs something
    study = Study(model, [torch.randn(4, 3, 8, 8)], scheme=replace(PRESETS["int8"], bias_bits=14))
    with caplog.at_level("WARNING"):
        plan = study.calibrate("minmax", progress=False)
    assert saturations(study.graph, plan) == {"0": 1}
    assert re.search(r"[Bb]ias.*\b14\b.*\b0: 1\b", study.remarks[-1])
    assert study.remarks[-1] in caplog.text
    assert not saturations(study.graph, study.lane("int16")), "64 bits hold it"


# A histogram for every channel


def activations(graph: Graph, images: list[Tensor]) -> dict[str, list[Tensor]]:
    """Every tap's values by batch, in float."""
    seen: dict[str, list[Tensor]] = {name: [] for name in graph.taps}
    for batch in images:
        run_lanes(graph, [Lane("float")], (batch,), observe=lambda op, values: seen[op.name].append(values["float"].clone()))
    return seen


def same_counts(found: Histogram, values: Tensor) -> None:
    """Those of one histogram of all the values, which are numpy's."""
    whole = Histogram.of(values.contiguous())
    np.testing.assert_array_equal(found.keys, whole.keys)
    np.testing.assert_array_equal(found.counts, whole.counts)
    np.testing.assert_array_equal(found.lows, whole.lows)
    assert (found.min, found.max) == (whole.min, whole.max) == (float(values.min()), float(values.max()))
    assert found.total == values.numel()
    keys, counts = np.unique(values.contiguous().numpy().reshape(-1).view(np.uint32) >> 16, return_counts=True)
    np.testing.assert_array_equal(np.sort(found.keys), keys)
    np.testing.assert_array_equal(found.counts[np.argsort(found.keys)], counts)


def test_channel_histograms_are_of_every_channel_over_all_batches(images: list[Tensor], graph: Graph) -> None:
    truth = activations(graph, images)
    whole = observe(graph, images, progress=False)
    for tap in graph.taps:
        found = observe_channels(graph, images, tap, progress=False)
        values = torch.cat(truth[tap])
        assert len(found) == values.shape[1]
        for channel, histogram in enumerate(found):
            same_counts(histogram, values[:, channel])
        np.testing.assert_array_equal([h.min for h in found], whole[tap].channel_min)
        np.testing.assert_array_equal([h.max for h in found], whole[tap].channel_max)
        assert Histogram.merge(found).to_dict() == whole[tap].histogram.to_dict(), "together they are the tensor's"


def test_channel_histograms_are_of_what_hooks_see(model: Small, images: list[Tensor], graph: Graph) -> None:
    for tap, batches in hooked(model, images).items():
        values = torch.cat(batches)
        for channel, histogram in enumerate(observe_channels(graph, images, tap, progress=False)):
            assert histogram.total == values[:, channel].numel()
            close = {"rel": 1e-4, "abs": 1e-4 * float(values.abs().max())}
            assert histogram.min == pytest.approx(float(values[:, channel].min()), **close)
            assert histogram.max == pytest.approx(float(values[:, channel].max()), **close)
            assert histogram.mean == pytest.approx(float(values[:, channel].double().mean()), **close)


def test_the_channels_of_linear_layers_come_last_wherever_they_are() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.wide, self.head = nn.Conv1d(5, 6, 1), nn.Linear(7, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.wide(self.conv(x)).mean(1))

    batches = [torch.randn(n, 5, 7) for n in (3, 2)]
    graph = build(Tokens().eval(), batches[0])
    truth = activations(graph, batches)
    for tap, axis, channels in (("conv", 1, 6), ("wide", 2, 4), ("head", 1, 3)):
        found = observe_channels(graph, batches, tap, progress=False)
        assert len(found) == channels
        for channel, histogram in enumerate(found):
            same_counts(histogram, torch.cat(truth[tap]).select(axis, channel))


def test_channels_of_some_batches_with_or_without_targets(images: list[Tensor], graph: Graph) -> None:
    labelled = [(x, torch.zeros(len(x), dtype=torch.long)) for x in images]
    found = observe_channels(graph, labelled, "project", limit=2, progress=False)
    values = torch.cat(activations(graph, images[:2])["project"])
    for channel, histogram in enumerate(found):
        same_counts(histogram, values[:, channel])


def test_only_the_steps_up_to_the_tap_are_computed_for_its_channels(images: list[Tensor], graph: Graph) -> None:
    costs = []
    for tap in ("input", "conv", "deep", "project"):
        with FlopCounterMode(display=False) as counter:
            observe_channels(graph, images, tap, progress=False)
        costs.append(counter.get_total_flops())
    macs = [graph.operation(tap).macs for tap in ("conv", "deep", "project")]
    assert costs == [0, *(2 * 12 * int(total) for total in np.cumsum(macs))]


def test_no_channels_without_batches_or_of_no_tap(images: list[Tensor], graph: Graph) -> None:
    with pytest.raises(DataError, match=r"calibration.*batch"):
        observe_channels(graph, [], "conv", progress=False)
    with pytest.raises(GraphError, match="'nowhere'"):
        observe_channels(graph, images, "nowhere", progress=False)
    images[1][0, 0, 0, 0] = float("nan")
    with pytest.raises(DataError, match=r"^input\b.*\b1\b.*\b1024\b.*NaN"):
        observe_channels(graph, images, "input", progress=False)


def test_an_interrupt_gives_no_channels(images: list[Tensor], graph: Graph) -> None:
    with pytest.raises(KeyboardInterrupt):
        observe_channels(graph, Interrupted(images, 2), "conv", progress=False)
