"""The pictures of docs/causes.md: each fault planted in a small bundled network, diagnosed, drawn before and after its remedy.

``python docs/make_pictures.py`` makes them all (some minutes on one core), ``python docs/make_pictures.py KIND…`` some. Networks,
places and strengths are fixed, so what is drawn is the same every time. A picture is only made if the diagnosis names that
cause.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from sitetools.drawing import BAD, GOOD, INK, MUTED, NARROW, WIDE, bars, channels, figure, histogram, save, style  # noqa: E402

from benchmarks.faults.build import bench_of, clean, home, planted  # noqa: E402
from benchmarks.faults.cases import CaseSpec  # noqa: E402
from benchmarks.faults.plants import BY_NAME  # noqa: E402
from benchmarks.faults.setup import Setup, halves  # noqa: E402
from qkit import FLOAT, Histogram, Plan, Study, zoo  # noqa: E402
from qkit.diagnosis import Cause, Diagnosis  # noqa: E402
from qkit.diagnosis.engine_parting import departure, shares  # noqa: E402
from qkit.engines import traces  # noqa: E402
from qkit.engines.lane import EngineBatch, EngineTensor  # noqa: E402
from qkit.execution.editing import channel_params  # noqa: E402
from qkit.execution.lanes import Lane, lane_weight, run_lanes  # noqa: E402
from qkit.execution.loading import batches  # noqa: E402
from qkit.execution.observing import observe  # noqa: E402
from qkit.graph.operation import Operation  # noqa: E402
from qkit.quant.integer.softmax import exponentials  # noqa: E402

#: Where each cause is planted: network, form, site, strength.
PLACES: dict[str, tuple[str, str, str, float]] = {
    "weight-channel-imbalance": ("mobilenet_v2_lite", "depthwise", "features.7.conv.1.0", 169.0),
    "weight-outlier": ("vgg_small", "one", "features.11", 150.0),
    "activation-outlier": ("resnet_small", "spikes", "layer2.0.conv1", 502.0),
    "activation-channel-imbalance": ("vgg_small", "wide-channels", "features.7", 481.0),
    "range-too-narrow": ("resnet_small", "tap", "layer1.1:add", 0.106),
    "range-too-wide": ("vgg_small", "tap", "features.4", 196.0),
    "bias-shift": ("vgg_small", "leaning", "features.11", 5.0),
    "signed-grid-on-one-sided-tensor": ("resnet_small", "tap", "layer1.1:add", 2.0),
    "power-of-two-scale": ("vgg_small", "tap", "features.4", 2.0),
    "mismatched-join": ("inception_small", "concat", "inception3b:cat", 261.0),
    "bias-width": ("vgg_small", "network", "", 13.0),
    "insufficient-bits": ("vgg_small", "network", "", 2.0),
    "calibration-mismatch": ("vgg_small", "offset", "", -2.0),
    "preprocessing": ("vgg_small", "inverted", "", 0.3),
    "train-mode": ("resnet_small", "training", "", 16.0),
    "batchnorm-statistics": ("resnet_small", "mean", "layer2.0.conv1", 3.0),
    "non-finite": ("vgg_small", "nan-weight", "features.7", 1.0),
    "nondeterminism": ("resnet_small", "noise", "layer2.0.conv1", 2.5),
    "graph-transform": ("resnet_small", "hook", "layer2.0.conv1", 2.5),
    "accumulator-overflow": ("vgg_small", "network", "", 16.0),
    "unquantized-layer": ("vgg_small", "tap", "features.7", 1.0),
}
_SEED = 7


@dataclass(frozen=True, eq=False)
class Scene:
    """A planted fault and what the kit finds of it."""

    kind: str
    setup: Setup
    sound: Setup
    site: str

    @cached_property
    def images(self) -> Any:
        """Calibration images, and the half of the evaluation images that is diagnosed."""
        where = home(PLACES[self.kind][0])
        return where.calibration, halves(where.evaluation, _SEED)[0]

    @cached_property
    def study(self) -> Study:
        """As the user would make it."""
        return self.setup.study(*self.images)

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """The whole of it."""
        return self.study.diagnose(progress=False)

    @cached_property
    def cause(self) -> Cause:
        """The planted cause as the diagnosis names it; if it does not, there is nothing to draw."""
        named = [*self.diagnosis.causes, *self.diagnosis.findings]
        found = next((cause for cause in named if cause.kind == self.kind), None)
        if found is None:
            raise SystemExit(f"{self.kind} was planted at {self.site or 'all'} and not named: {[c.kind for c in named]}")
        return found

    @cached_property
    def after(self) -> Plan:
        """The plan with the cause's remedy."""
        return self.cause.remedy.plan(self.study.plan)

    @cached_property
    def op(self) -> Operation:
        """Where the tensor is."""
        return self.study.graph.operation(self.cause.tensor)

    @cached_property
    def scores(self) -> tuple[str, str, str]:
        """Of float, the plan, and the plan with the remedy, in words."""
        found = self.study.evaluate({"float": FLOAT, "before": self.study.plan, "after": self.after}, progress=False)
        return tuple(f"{100 * found[lane].value:.1f} %" for lane in ("float", "before", "after"))  # type: ignore[return-value]

    def heads(self, axes: Any, what: str = "") -> None:
        """Titles of a picture before and after."""
        exact, before, after = self.scores
        tensor = what or self.cause.tensor
        axes[0].set_title(f"{tensor}: top-1 {before} (float {exact})")
        axes[-1].set_title(f"with {self.cause.remedy.kind}: {after}")

    def seen(self, name: str) -> Histogram:
        """Values of a tap or weight in float."""
        graph = self.study.graph
        return Histogram.of(graph.weights[name]) if name in graph.weights else self.study.observe()[name].histogram

    def values(self, plans: dict[str, Plan], tap: str) -> dict[str, Tensor]:
        """A tap in lanes, on the first batch."""
        kept: dict[str, Tensor] = {}

        def look(op: Operation, values: Any) -> None:
            if op.name == tap:
                kept.update({name: value.clone() for name, value in values.items()})

        batch = next(iter(self.study.evaluation))[0]
        run_lanes(self.study.graph, [Lane(name, plan) for name, plan in plans.items()], (batch,), observe=look)
        return kept


def scene(kind: str) -> Scene:
    """The fault, planted."""
    network, form, site, factor = PLACES[kind]
    spec = CaseSpec("report", "single", network, (f"{kind}/{form}",), "strong", _SEED)
    plant = BY_NAME[f"{kind}/{form}"]
    sound = clean(spec, plant, Random(_SEED))
    setup, _ = planted(plant, sound, bench_of(spec, site), site, factor)
    return Scene(kind, setup, sound, site)


def on_its_grid(s: Scene) -> Any:
    """The tensor's histogram on its grid before and after."""
    made, axes = figure()
    tensor = s.cause.tensor
    for ax, plan in zip(axes, (s.study.plan, s.after), strict=True):
        histogram(ax, s.seen(tensor), plan[tensor].params)
    low, high = (f([ax.get_xlim()[i] for ax in axes]) for i, f in enumerate((min, max)))
    if s.kind in ("range-too-narrow", "signed-grid-on-one-sided-tensor", "power-of-two-scale"):
        for ax, plan in zip(axes, (s.study.plan, s.after), strict=True):
            ax.clear()
            histogram(ax, s.seen(tensor), plan[tensor].params, view=(low, high))
    if any(patch.get_label() == "clipped" for patch in axes[0].containers):
        axes[0].legend(loc="upper right", fontsize=8)
    s.heads(axes)
    return made


def outlier(s: Scene) -> Any:
    """What takes the grid for itself is pointed at; after the remedy the picture is of what is left."""
    made, axes = figure()
    tensor = s.cause.tensor
    seen, before, after = s.seen(tensor), s.study.plan[tensor].params, s.after[tensor].params
    far = seen.max if seen.max > -seen.min else seen.min
    histogram(axes[0], seen, before)
    low, high = float(after.lo), float(after.hi)
    histogram(axes[1], seen, after, view=(low - 0.15 * (high - low), high + 0.3 * (high - low)))
    axes[0].annotate(
        f"{far:.3g}", (far, axes[0].get_ylim()[0] * 3), (-6, 70), textcoords="offset points", ha="right", color=BAD,
        arrowprops={"arrowstyle": "->", "color": BAD},
    )  # fmt: skip
    axes[1].annotate(
        f"values up to {far:.3g}\nbecome {high:.3g}", (0.99, 0.6), xycoords="axes fraction", ha="right", color=BAD, fontsize=8,
        bbox={"color": "#fdfdfd", "pad": 1},
    )  # fmt: skip
    s.heads(axes)
    return made


def by_channel(s: Scene) -> Any:
    """Channels against the step, before and after."""
    made, axes = figure()
    tensor = s.cause.tensor
    weight = tensor in s.study.graph.weights
    if weight:
        peaks = s.study.graph.weights[tensor].movedim(s.op.weight_axis or 0, 0).flatten(1).abs().amax(1).numpy().astype(float)
    else:
        seen = s.study.observe()[tensor]
        peaks = np.maximum(np.abs(seen.channel_min), np.abs(seen.channel_max)).astype(float)
    for ax, plan in zip(axes, (s.study.plan, s.after), strict=True):
        channels(ax, peaks, plan[tensor].params.scale.double().numpy(), what="greatest magnitude")
    top = max(ax.get_ylim()[1] for ax in axes)
    for ax in axes:
        ax.set_ylim(min(a.get_ylim()[0] for a in axes), top * 3)
    s.heads(axes)
    return made


def few_bits(s: Scene) -> Any:
    """The filter of a weight that reaches furthest, on its own grid."""
    made, axes = figure()
    tensor = s.cause.tensor
    weight = s.study.graph.weights[tensor]
    channel = int(weight.flatten(1).abs().amax(1).argmax())
    seen = Histogram.of(weight[channel].contiguous())
    for ax, plan in zip(axes, (s.study.plan, s.after), strict=True):
        histogram(ax, seen, channel_params(plan[tensor].params)[channel], view=(1.25 * min(seen.min, -seen.max), 1.25 * seen.max))
    s.heads(axes, f"filter {channel} of {tensor}")
    return made


def bias_shift(s: Scene) -> Any:
    """Where the weights lie within their steps, and what that does to the channels' means."""
    made, axes = figure(3, ratios=(1, 1.2, 1.2))
    params = s.study.plan[s.cause.tensor].params
    weight = s.study.graph.weights[s.cause.tensor]
    shape = [-1 if d == params.axis else 1 for d in range(weight.ndim)]
    part = (weight / params.scale.view(shape) - torch.round(weight / params.scale.view(shape))).flatten().numpy()
    axes[0].hist(part, bins=41, range=(-0.5, 0.5), color=WIDE, alpha=0.75)
    axes[0].axvline(float(part.mean()), color=BAD, lw=1.5)
    axes[0].set_xlabel("distance from the code, in steps")
    axes[0].set_ylabel("weights")
    axes[0].set_title("weights lean to one side")
    only = s.study.plan.only([s.cause.tensor])
    tap = s.op.name
    kept = s.values({"float": FLOAT, "before": only, "after": s.cause.remedy.plan(only)}, tap)
    deviation = float(kept["float"].std())
    shifts = [((kept[lane] - kept["float"]).mean((0, 2, 3)) / deviation).numpy() for lane in ("before", "after")]
    for ax, shift, colour in zip(axes[1:], shifts, (NARROW, GOOD), strict=True):
        ax.bar(np.arange(len(shift)), shift, 0.9, color=colour, lw=0)
        ax.axhline(0, color=INK, lw=0.8)
        ax.set_ylim(1.1 * min(x.min() for x in shifts), 1.1 * max(0.05, *(x.max() for x in shifts)))
        ax.set_xlabel("output channel")
        ax.set_ylabel("shift of the mean, in deviations")
    exact, before, after = s.scores
    axes[1].set_title(f"{tap}: top-1 {before} (float {exact})")
    axes[2].set_title(f"with {s.cause.remedy.kind}: {after}")
    return made


def join(s: Scene) -> Any:
    """What is joined, on the grid that it shares."""
    made, axes = figure()
    graph, tap = s.study.graph, s.cause.tensor
    sources = [graph.operations[i].tap for i in graph.operation(tap).inputs]
    seen = {name: s.seen(name) for name in sources if name is not None}
    wide = max(seen, key=lambda name: seen[name].max)
    small = min(seen, key=lambda name: seen[name].max)
    for ax, plan in zip(axes, (s.study.plan, s.after), strict=True):
        view = (-0.02 * seen[small].max, 1.1 * seen[small].max)
        histogram(ax, seen[small], plan[tap].params, view=view, colour=NARROW, label=f"{small}, up to {seen[small].max:.3g}")
        histogram(ax, seen[wide], None, view=view, colour=WIDE, label=f"{wide}, up to {seen[wide].max:.3g}")
        ax.legend(loc="upper right", fontsize=8)
    s.heads(axes)
    return made


def bias_width(s: Scene) -> Any:
    """The biases' codes against the integers that there are for them."""
    made, axes = figure()
    graph, plan = s.study.graph, s.study.plan
    op = next(x for x in graph.operations if x.layer == s.cause.layer and x.bias is not None)
    source = plan.params(graph.operations[op.inputs[0]].tap)
    weight = plan.params(op.weight)
    assert source is not None
    assert weight is not None
    assert op.bias is not None
    codes = (graph.biases[op.bias].double() / (source.scale.double() * weight.scale.double())).abs().numpy()
    codes = np.sort(codes)
    x = np.arange(len(codes))
    for ax, bits in zip(axes, (plan.bias_bits, s.after.bias_bits), strict=True):
        assert bits is not None
        limit = 2.0 ** (bits - 1)
        beyond = codes > limit
        ax.bar(x[~beyond], codes[~beyond], 0.9, color=WIDE, alpha=0.75, lw=0)
        if beyond.any():
            ax.bar(x[beyond], codes[beyond], 0.9, color=BAD, lw=0, label=f"{int(beyond.sum())} of {len(codes)} do not fit")
        ax.axhline(limit, color=INK, lw=1.0, ls=(0, (3, 2)), label=f"greatest integer of {bits} bits")
        ax.set_yscale("log", base=2)
        ax.set_ylim(1, 2.0**40)
        ax.set_yticks([2.0**n for n in range(0, 33, 8)], [f"2^{n}" for n in range(0, 33, 8)])
        ax.set_xlabel("output channels, smallest bias first")
        ax.set_ylabel("|bias|, input × weight steps")
        ax.legend(loc="upper left", fontsize=8)
    s.heads(axes, f"{s.cause.layer}, bias")
    return made


def calibration(s: Scene) -> Any:
    """Inputs of both loaders on the grid that one of them chose."""
    made, axes = figure()
    shown = observe(s.study.graph, s.study.evaluation, progress=False)["input"].histogram
    given = s.seen("input")
    low, high = min(shown.min, given.min), max(shown.max, given.max)
    view = (low - 0.05 * (high - low), high + 0.05 * (high - low))
    for ax, plan in zip(axes, (s.study.plan, s.after), strict=True):
        histogram(ax, shown, plan["input"].params, view=view, colour=WIDE, label="evaluation images")
        counts, edges = given.linear(160, *view)
        ax.stairs(counts / given.total, edges, color=NARROW, lw=1.1, label="calibration images")
        ax.legend(loc="upper left", fontsize=8, ncols=3)
        ax.set_ylim(ax.get_ylim()[0], 20)
    s.heads(axes, "input")
    return made


def preprocessing(s: Scene) -> Any:
    """An image as in training and as it is given, and what float scores on either."""
    made, axes = figure(3, ratios=(1, 1, 1.7))
    right = home(PLACES[s.kind][0]).evaluation
    shown = s.setup.evaluation(right.inputs[:1]) if s.setup.evaluation is not None else right.inputs[:1]
    low, high = float(right.inputs[0].min()), float(right.inputs[0].max())
    for ax, image, title in zip(axes, (right.inputs[0], shown[0]), ("as in training", "as it is given"), strict=False):
        drawn = ax.imshow(image[0], cmap="gray", vmin=low, vmax=high)
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    made.colorbar(drawn, ax=list(axes[:2]), label="input value", shrink=0.8)
    sound = float(s.sound.own_scores(*s.images).mean())
    wrong = s.study.evaluate({"float": FLOAT, "int16": s.study.lane("int16"), "int8": s.study.plan}, progress=False)
    values = [100 * sound, *(100 * wrong[lane].value for lane in ("float", "int16", "int8"))]
    names = ["float, right images", "float", "int16", "int8"]
    bars(axes[2], names, values, [GOOD, NARROW, NARROW, NARROW], said=[f"{v:.1f} %" for v in values])
    axes[2].set_xlim(0, 118)
    axes[2].set_xlabel("top-1 in percent")
    axes[2].set_title("all widths lose alike")
    return made


def train_mode(s: Scene) -> Any:
    """Accuracy by batch of a loader sorted by class, handed over as it is and in evaluation mode."""
    made, axes = figure(1, width=8.8, height=2.7)
    _, loader = s.setup.loaders(*s.images)
    as_given, fresh = deepcopy(s.setup.model), deepcopy(s.setup.model).eval()
    assert as_given.training
    rows = []
    with torch.no_grad(), torch.random.fork_rng():
        for model in (fresh, as_given):
            rows += [[100 * float((model(x).argmax(1) == y).double().mean()) for x, y in loader]]
    x = np.arange(len(loader))
    axes[0].bar(x - 0.2, rows[0], 0.38, color=GOOD, label=f"model.eval(): {np.mean(rows[0]):.1f} %")
    axes[0].bar(x + 0.2, rows[1], 0.38, color=NARROW, label=f"as handed over, in training mode: {np.mean(rows[1]):.1f} %")
    axes[0].set_xlabel("batch of a loader sorted by class")
    axes[0].set_ylabel("top-1 in percent")
    axes[0].set_ylim(0, 135)
    axes[0].set_yticks([0, 25, 50, 75, 100])
    axes[0].legend(loc="upper left", ncols=2, fontsize=8)
    axes[0].set_title("a batch of one class has other statistics than the training set")
    return made


def norms(s: Scene) -> Any:
    """Kept means of a batch norm's channels against those of the data."""
    made, axes = figure(2, ratios=(1, 1.25), width=7.6)
    layer = s.cause.layer
    model = deepcopy(s.setup.model).eval()
    norm: Any = model.get_submodule(layer)
    sums: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda m, args: sums.append(args[0].mean((0, 2, 3))))
    loader, _ = s.setup.loaders(*s.images)
    with torch.no_grad():
        for x, _ in loader:
            model(x)
    handle.remove()
    deviation = norm.running_var.sqrt()
    data, kept = torch.stack(sums).mean(0) / deviation, norm.running_mean / deviation
    ends = [float(min(data.min(), kept.min())) - 0.5, float(max(data.max(), kept.max())) + 0.5]
    axes[0].plot(ends, ends, color=MUTED, lw=0.9)
    axes[0].plot(data, kept, "o", ms=4.5, color=NARROW, mec="none")
    axes[0].set_xlabel("mean of the data, in deviations")
    axes[0].set_ylabel("running mean, in deviations")
    axes[0].set_title(f"{layer}, by channel")
    sound = 100 * float(s.sound.own_scores(*s.images).mean())
    found = s.study.evaluate({"float": FLOAT, "int16": s.study.lane("int16"), "int8": s.study.plan}, progress=False)
    values = [sound, *(100 * found[lane].value for lane in ("float", "int16", "int8"))]
    names = ["float, right statistics", "float", "int16", "int8"]
    bars(axes[1], names, values, [GOOD, NARROW, NARROW, NARROW], said=[f"{v:.1f} %" for v in values])
    axes[1].set_xlim(0, 118)
    axes[1].set_xlabel("top-1 in percent")
    return made


def _outputs(model: Any, x: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """What every convolution and norm makes of a batch."""
    kept: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear)):
            handles.append(module.register_forward_hook(lambda m, a, y, name=name: kept.__setitem__(name, y.detach().clone())))
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model(x)
    for handle in handles:
        handle.remove()
    return kept


def _by_depth(shares: dict[str, float], first: str, what: str, title: str) -> Any:
    """A figure a layer, in order, the first that is not 0 in colour."""
    made, axes = figure(1, height=2.7)
    names = list(shares)
    at = names.index(first)
    colours = [MUTED if i < at else BAD if i == at else NARROW for i in range(len(names))]
    axes[0].bar(np.arange(len(names)), list(shares.values()), 0.8, color=colours, lw=0)
    axes[0].set_ylabel(what)
    axes[0].set_xlabel("layers in execution order")
    axes[0].axvline(at - 0.5, color=INK, lw=0.9, ls=(0, (3, 2)))
    top = max(shares.values())
    side = "left" if at < 0.7 * len(names) else "right"
    axes[0].annotate(first, (at, top), (6 if side == "left" else -12, 8), textcoords="offset points", ha=side, color=BAD)
    axes[0].set_ylim(0, 1.25 * top)
    axes[0].set_xlim(-0.8, len(names) - 0.2)
    axes[0].set_title(title)
    return made


def non_finite(s: Scene) -> Any:
    """Share of what is no number, layer by layer."""
    _, loader = s.setup.loaders(*s.images)
    seen = _outputs(deepcopy(s.setup.model).eval(), loader[0][0])
    shares = {name: 100 * float((~torch.isfinite(y)).double().mean()) for name, y in seen.items()}
    assert shares[s.cause.layer] > 0
    return _by_depth(
        shares, s.cause.layer, "values that are none, in percent", "one weight that is NaN, and everything behind it"
    )


def noise(s: Scene) -> Any:
    """Difference of two passes, layer by layer."""
    _, loader = s.setup.loaders(*s.images)
    model = deepcopy(s.setup.model).eval()
    first, second = (_outputs(model, loader[0][0], seed) for seed in (1, 2))
    apart = {name: float((first[name] - second[name]).norm() / first[name].norm()) for name in first}
    start = next(name for name, value in apart.items() if value > 0)
    return _by_depth(
        apart, start, "difference, relative", "two float passes of one batch, from the first layer that reads what is random"
    )


def transform(s: Scene) -> Any:
    """Outputs of the model against those of its trace."""
    made, axes = figure(2, width=7.6, ratios=(1, 1.25))
    _, loader = s.setup.loaders(*s.images)
    x = loader[0][0]
    with torch.no_grad():
        theirs = deepcopy(s.setup.model).eval()(x)
    ours = run_lanes(s.study.graph, [Lane("float")], (x,))["float"]
    ends = [float(min(theirs.min(), ours.min())), float(max(theirs.max(), ours.max()))]
    axes[0].plot(ends, ends, color=MUTED, lw=0.9)
    axes[0].plot(theirs.flatten(), ours.flatten(), ".", ms=3, color=NARROW, mec="none")
    axes[0].set_xlabel("output of the model")
    axes[0].set_ylabel("output of its trace")
    axes[0].set_title("a hook that no trace sees")
    own = 100 * float(s.setup.own_scores(*s.images).mean())
    found = s.study.evaluate({"float": FLOAT, "int16": s.study.lane("int16"), "int8": s.study.plan}, progress=False)
    values = [own, *(100 * found[lane].value for lane in ("float", "int16", "int8"))]
    bars(axes[1], ["the model itself", "float lane", "int16", "int8"], values, [GOOD, NARROW, NARROW, NARROW],
         said=[f"{v:.1f} %" for v in values])  # fmt: skip
    axes[1].set_xlim(0, 118)
    axes[1].set_xlabel("top-1 in percent")
    return made


def overflow(s: Scene) -> Any:
    """A layer's sums, exact and as they wrap around."""
    made, axes = figure()
    graph, plan = s.study.graph, s.study.plan
    op = next(x for x in graph.operations if x.layer == s.cause.layer and x.weight is not None)
    source, weight = plan.params(graph.operations[op.inputs[0]].tap), plan.params(op.weight)
    assert source is not None
    assert weight is not None
    assert op.weight is not None
    tap = graph.operations[op.inputs[0]].tap
    assert tap is not None
    x = s.values({"wide": replace(plan, accumulator_bits=None)}, tap)["wide"]
    y = op.call(x, lane_weight(graph, plan, op.weight), None).double()
    scale = source.scale.double() * weight.scale.double()
    codes = (y / (scale.view(1, -1, *[1] * (y.ndim - 2)) if weight.axis is not None else scale)).round().flatten()
    codes = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))[:6000]].numpy()
    for ax, bits in zip(axes, (plan.accumulator_bits, s.after.accumulator_bits), strict=True):
        assert bits is not None
        limit = 2.0 ** (bits - 1)
        held = np.mod(codes + limit, 2 * limit) - limit
        wrong = held != codes
        ax.plot(codes[~wrong], held[~wrong], ".", ms=3, color=WIDE, mec="none")
        ax.plot(codes[wrong], held[wrong], ".", ms=3, color=BAD, mec="none", label=f"{100 * wrong.mean():.1f} % wrap around")
        ax.set_xlabel("exact sum")
        ax.set_ylabel(f"in {bits} bits")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value / 1000:g}k")
        if wrong.any():
            ax.legend(loc="upper left", fontsize=8)
    exact, before, after = s.scores
    axes[0].set_title(f"{s.cause.layer}: top-1 {before} (float {exact})")
    axes[1].set_title(f"in {s.after.accumulator_bits} bits: {after}")
    return made


def unquantized(s: Scene) -> Any:
    """Distinct values of every tap in the 8-bit lane."""
    counts: dict[str, int] = {}

    def look(op: Operation, values: Any) -> None:
        if op.quantized:
            counts[op.name] = len(torch.unique(values["int8"]))

    batch = next(iter(s.study.evaluation))[0]
    run_lanes(s.study.graph, [Lane("int8", s.study.plan)], (batch,), observe=look)
    made, axes = figure(1, height=2.7)
    names = list(counts)
    colours = [BAD if counts[name] > 256 else WIDE for name in names]
    axes[0].bar(np.arange(len(names)), list(counts.values()), 0.8, color=colours, lw=0)
    axes[0].axhline(256, color=INK, lw=0.9, ls=(0, (3, 2)), label="256: what 8 bits can hold")
    axes[0].set_yscale("log")
    axes[0].set_yticks([10, 100, 1000, 10_000, 100_000], ["10", "100", "1 000", "10 000", "100 000"])
    axes[0].set_ylim(10, 4e6)
    axes[0].set_xticks(np.arange(len(names)), names, rotation=30, ha="right")
    axes[0].set_ylabel("distinct values")
    axes[0].set_title(f"{s.cause.layer} has no grid: the lane called int8 is float there")
    axes[0].legend(loc="upper right", fontsize=8)
    return made


class Damaged:
    """An engine that computes on the plan's grids and leaves a bias out: the kit's own lane of a model without it."""

    name, bits, notes = "an engine without a bias", 8, ()

    def __init__(self, study: Study, layer: str) -> None:
        model = deepcopy(study.model)
        norm: Any = model.get_submodule(layer)
        with torch.no_grad():
            # what is left of the bias once the norm is folded is 0
            norm.bias.copy_(norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps))
        self.graph, self.plan = study.with_model(model).graph, study.plan

    def run(self, loader: Any, *, limit: int | None = None) -> Iterator[EngineBatch]:
        """As an engine's files would be read."""
        for batch in batches(loader, limit):
            taps: dict[str, EngineTensor] = {}

            def look(op: Operation, values: Any, taps: dict[str, EngineTensor] = taps) -> None:
                if op.quantized:
                    taps[op.name] = EngineTensor(values["int8"].clone())

            outputs = run_lanes(self.graph, [Lane("int8", self.plan)], batch.inputs, observe=look)["int8"]
            yield EngineBatch(batch, taps, outputs)


def engine_mismatch() -> Any:
    """By tap, what agrees with the simulation from the input on, and on equal inputs."""
    study = _digits("resnet_small")
    engine = Damaged(study, "layer2.0.bn1")
    local = shares(study, engine, study.plan, limit=1)
    found = departure(study, engine, study.plan, limit=1)
    assert found is not None
    assert found.fault is not None
    assert found.layer == "layer2.0.conv1"
    given = next(iter(engine.run(study.evaluation, limit=1)))
    whole: dict[str, float] = {}

    def look(op: Operation, values: Any) -> None:
        params = study.plan.params(op.name)
        if op.quantized and params is not None:
            apart = (values["int8"] - given.taps[op.name].values).abs()
            whole[op.name] = float((apart <= 1.01 * params.scale).double().mean())

    run_lanes(study.graph, [Lane("int8", study.plan)], given.batch.inputs, observe=look)
    made, axes = figure(1, height=2.9)
    x = np.arange(len(local))
    axes[0].plot(x, [100 * whole[name] for name in local], "o-", ms=4, color=MUTED, label="from the network's input on")
    axes[0].plot(x, [100 * value for value in local.values()], "s", ms=5, color=WIDE, label="on the engine's own inputs")
    at = list(local).index(found.tap)
    axes[0].plot(at, 100 * local[found.tap], "s", ms=7, color=BAD)
    axes[0].set_ylabel("within a step, percent")
    axes[0].set_xlabel("taps in execution order")
    axes[0].set_ylim(0, 107)
    axes[0].legend(loc="lower left", fontsize=8)
    axes[0].set_title(f"an engine against its simulation; found: {found.tap} {found.fault}")
    return made


def trace_alignment() -> Any:
    """One tensor as the network has it, and read from a file with its channels last as if they were first."""
    study, tap = _digits("resnet_small"), "layer1.0.conv1"

    def last(name: str, array: np.ndarray) -> np.ndarray:
        return array.transpose(0, 2, 3, 1).reshape(array.shape) if name == tap else array

    with tempfile.TemporaryDirectory() as folder:
        traces.write(study, Path(folder) / "board", lane="int8", frames=4, change=last)
        lane = traces.read(Path(folder) / "board", study, mend=False)
        problem = next(p for p in lane.alignment.problems if p.tap == tap)
        assert problem.kind == "layout"
    kept: dict[str, Tensor] = {}
    batch = next(iter(study.evaluation))[0]
    run_lanes(study.graph, [Lane("float")], (batch,), observe=lambda op, v: kept.__setitem__(op.name, v["float"].clone()))
    right = kept[tap][0]
    wrong = right.permute(1, 2, 0).reshape(right.shape)
    made, axes = figure(3, ratios=(1, 1, 1.5), height=2.7)
    channel = int(right.flatten(1).std(1).argmax())
    for ax, image, title in zip(axes, (right, wrong), ("as the network has it", "the same numbers, misread"), strict=False):
        ax.imshow(image[channel], cmap="viridis")
        ax.set_title(title)
        ax.set_xticks([])
        ax.set_yticks([])
    a, b = right.flatten().numpy(), wrong.flatten().numpy()
    axes[2].plot(a, b, ".", ms=2, color=NARROW, mec="none")
    axes[2].set_title(f"correlation {np.corrcoef(a, b)[0, 1]:.2f}: looks like a broken layer")
    axes[2].set_xlabel(f"{tap} in the kit")
    axes[2].set_ylabel("in the trace")
    return made


def equalization() -> Any:
    """Ranges of a depthwise layer's filters before and after the channels of neighbours are evened out."""
    study = _digits("mobilenet_v2_hostile", "int8-per-tensor")
    done = study.ptc(["equalization"], progress=False)
    name = "features.3.conv.1.0"
    made, axes = figure()
    for ax, each in zip(axes, (study, done), strict=True):
        peaks = each.graph.weights[f"{name}.weight"].flatten(1).abs().amax(1).numpy().astype(float)
        channels(ax, peaks, each.plan[f"{name}.weight"].params.scale.double().numpy(), what="greatest magnitude")
    low, high = (f(ax.get_ylim()[i] for ax in axes) for i, f in enumerate((min, max)))
    for ax in axes:
        ax.set_ylim(low, 4 * high)
    found = [100 * each.score().value for each in (study, done)]
    exact = 100 * study.score(FLOAT).value
    axes[0].set_title(f"{name}.weight: top-1 {found[0]:.1f} % (float {exact:.1f} %)")
    axes[1].set_title(f"all layers equalized: {found[1]:.1f} %")
    return made


def widths() -> Any:
    """The front of a mixed-precision search."""
    from qkit.figures.front import draw

    study = _digits("mobilenet_v2_hostile", "int8-per-tensor")
    made, axes = figure(1, width=7.2, height=3.8)
    draw(study.mixed(budget=150, progress=False), ax=axes[0])
    return made


def exponentials_of_softmax() -> Any:
    """The exponential of each form of softmax, and by how much it misses."""
    made, axes = figure()
    step = 1 / 64
    distance = torch.arange(0, 4 * 64)
    x = distance.numpy() * step
    exact = np.exp(-x)
    for form, colour in (("table", WIDE), ("polynomial", NARROW), ("shift", BAD)):
        found = exponentials(distance, step, form).double().numpy()
        found = found / found[0] if form != "table" else found / 2**15
        axes[0].plot(x, found, color=colour, lw=1.5, label=form)
        axes[1].plot(x, 100 * (found / exact - 1), color=colour, lw=1.5)
    axes[0].legend(loc="upper right", fontsize=8)
    axes[0].set_xlabel("distance from the greatest logit")
    axes[0].set_ylabel("exponential")
    axes[0].set_title("softmax in integers, 16 bits inside")
    axes[1].set_xlabel("distance from the greatest logit")
    axes[1].set_ylabel("misses by, %")
    axes[1].set_title("shift: too great, by 6 % and more")
    return made


def _digits(network: str, scheme: str = "int8") -> Study:
    case = zoo.load(network)
    study = Study(case.model, calibration=case.calibration, evaluation=case.evaluation, metric="top1", scheme=scheme)
    study.calibrate(progress=False)
    return study


DRAWN: dict[str, Callable[[Scene], Any]] = {
    "weight-channel-imbalance": by_channel,
    "weight-outlier": outlier,
    "activation-outlier": outlier,
    "activation-channel-imbalance": by_channel,
    "range-too-narrow": on_its_grid,
    "range-too-wide": on_its_grid,
    "bias-shift": bias_shift,
    "signed-grid-on-one-sided-tensor": on_its_grid,
    "power-of-two-scale": on_its_grid,
    "mismatched-join": join,
    "bias-width": bias_width,
    "insufficient-bits": few_bits,
    "calibration-mismatch": calibration,
    "preprocessing": preprocessing,
    "train-mode": train_mode,
    "batchnorm-statistics": norms,
    "non-finite": non_finite,
    "nondeterminism": noise,
    "graph-transform": transform,
    "accumulator-overflow": overflow,
    "unquantized-layer": unquantized,
}
#: Pictures that need no planted fault.
OTHERS: dict[str, Callable[[], Any]] = {
    "engine-mismatch": engine_mismatch,
    "trace-alignment": trace_alignment,
    "cross-layer-equalization": equalization,
    "sixteen-bit-layer": widths,
    "integer-form": exponentials_of_softmax,
}


def main(chosen: list[str]) -> None:
    """Draw all, or those."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for kind in chosen or [*DRAWN, *OTHERS]:
        with style():
            if kind in OTHERS:
                made = OTHERS[kind]()
                said = ""
            else:
                it = scene(kind)
                made = DRAWN[kind](it)
                said = f"{it.diagnosis.verdict.name}; {it.cause.evidence}"
            save(made, HERE / "causes" / f"{kind}.png")
        print(f"{kind}: {said}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
