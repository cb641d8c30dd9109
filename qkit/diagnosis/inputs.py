"""Images that are not prepared as they were in training: for calibration, for evaluation, or for both alike."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from qkit.diagnosis.candidates import Cause
from qkit.diagnosis.remedies import Remedy
from qkit.diagnosis.reproduction import on_device, run_model
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches, first_tensor
from qkit.execution.metrics import score_batch
from qkit.execution.observing import observe
from qkit.execution.statistics import Interval, Samples, gain
from qkit.graph.structures import map_tensors
from qkit.quant.calibration import make_plan
from qkit.quant.plan import FLOAT

if TYPE_CHECKING:
    from qkit.study import Study

#: Difference of two image sets' channel means, in standard deviations between images, that is no chance and no other subject.
_SHIFT = 0.75
#: Ratio of their channels' standard deviations, likewise.
_CONTRAST = 1.3
#: Misfit of the first norm's statistics (`_misfit`) from which on the images are put to the test.
_MISFIT = 0.02

#: What may put images right again, (N, C, H, W) both.
Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Statistics:
    """Of a set of images, by channel, each float64 (C,): mean and deviation of the pixels, deviation of the images' means."""

    mean: np.ndarray
    deviation: np.ndarray
    between: np.ndarray
    count: int


def inputs_differ(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Calibration and evaluation images of another normalization or channel order, or both wrong alike."""
    here, there = _statistics(study.evaluation, limit), _statistics(study.calibration, None)
    if here is None or there is None or here.mean.shape != there.mean.shape:
        return []
    shift = float(np.max(np.abs(here.mean - there.mean) / np.maximum(np.minimum(here.between, there.between), 1e-6)))
    contrast = float(np.max(np.maximum(here.deviation / there.deviation, there.deviation / here.deviation)))
    if shift > _SHIFT or contrast > _CONTRAST:
        figures = (
            f"channel means of the evaluation inputs are {_brief(here.mean)}, of the calibration inputs {_brief(there.mean)}; "
            f"deviations {_brief(here.deviation)} and {_brief(there.deviation)}."
        )
        like = {"in the other order": _flipped(_as_it_is), "brought to those figures": lambda x: _match(x, here, there)}
        gains = _gains_of_inputs(study, limit, like)
        best = max(gains, key=lambda name: gains[name].value)
        # the images differ for sure, and one question is left, whether putting them right helps: an interval answers it
        if gains[best].value > tolerance and gains[best].low > 0.0:
            cure = f"Prepare the evaluation inputs as the calibration inputs (and the training's) were; here, channels {best}."
            return [_cause(figures, cure, gains[best])]
        seen = observe(study.graph, study.evaluation, limit=limit, progress=False)
        again = make_plan(study.graph, seen, study.scheme, **study.methods)
        scores = study.evaluate({"float": FLOAT, "now": study.plan, "then": again}, batches=limit, progress=False)
        recovered = scores.expected_loss("now", against="then")
        cure = "Calibrate on inputs that are prepared as those of the evaluation."
        if recovered.sure(tolerance):
            remedy = Remedy("recalibrate", "", cure, dict(again.grids))
            return [Cause("calibration-mismatch", "input", "input", figures, remedy, recovered)]
        # too different to be silent about, and without a loss that is more than chance
        return [Cause("calibration-mismatch", "input", "input", figures, Remedy("fix-input", "input", cure))]
    return _wrong_alike(study, limit, tolerance)


def _wrong_alike(study: Study, limit: int | None, tolerance: float) -> list[Cause]:
    """Both sets prepared alike and wrongly: float tells, once the images are changed back."""
    changes = _to_first_norm(study, limit)
    if changes is None:
        changes = _usual_mistakes(study, limit, tolerance)
    if not changes:
        return []
    gains = _gains_of_inputs(study, limit, changes)
    best = max(gains, key=lambda name: gains[name].value)
    if not gains[best].above(tolerance):
        return []
    evidence = f"undoing what may have gone wrong with the images ({best}) raises the float score."
    if "contrast" in best:
        evidence += " So would other statistics of the first batch norm, and of that alone: the two cannot be told apart."
    return [_cause(evidence, f"Look at the loaders: {best}.", gains[best])]


def _usual_mistakes(study: Study, limit: int | None, tolerance: float) -> dict[str, Change]:
    """What undoes them, by name, to be tried where float is known to score too little."""
    if study.expected is None:
        return {}
    base = study.evaluate(("float",), batches=limit, progress=False)["float"]
    if base.high + tolerance >= study.expected:
        return {}
    return {
        "channels in the other order": lambda x: x.flip(1),
        "values in 0 to 255 where 0 to 1 is meant": lambda x: x / 255.0,
        "values in 0 to 1 where 0 to 255 is meant": lambda x: x * 255.0,
        "values in 0 to 1 where -1 to 1 is meant": lambda x: 2.0 * x - 1.0,
        "values in -1 to 1 where 0 to 1 is meant": lambda x: (x + 1.0) / 2.0,
        "normalized twice": lambda x: x * 0.226 + 0.449,
        "not normalized": lambda x: (x - 0.449) / 0.226,
    }


def _to_first_norm(study: Study, limit: int | None) -> dict[str, Change] | None:
    """Changes of brightness and contrast that give the first batch norm the statistics that it has kept from training.

    The first convolution is linear, so its outputs' means and variances tell of the images' alone. They are tried where
    three numbers a channel of the image, and one for contrast, explain what dozens of channels behind it show: statistics of
    that norm that are stale for a reason of its own would not lie in so small a space. Empty where the images fit as they are;
    None where there is no such norm, or its statistics are explained otherwise.
    """
    pair = _first_pair(study)
    if pair is None:
        return None
    conv, norm = pair
    assert norm.running_mean is not None
    assert norm.running_var is not None
    sums = squares = torch.zeros(conv.out_channels, dtype=torch.float64)
    count, size = 0, (1, 1)
    with torch.no_grad():
        for batch in batches(study.evaluation, limit):
            images = first_tensor(on_device(study.model, batch))
            assert images is not None
            y = conv(images).double().cpu()
            sums, squares = sums + y.sum((0, 2, 3)), squares + y.square().sum((0, 2, 3))
            count, size = count + y[:, 0].numel(), (images.shape[2], images.shape[3])
        mean = sums / count
        variance = (squares / count - mean.square()).clamp(min=1e-12)
        goal, spread = norm.running_mean.double().cpu(), norm.running_var.double().cpu().clamp(min=1e-12)
        bias = torch.zeros_like(mean) if conv.bias is None else conv.bias.double().cpu()
        # what a brighter image channel adds to every output's mean, borders included
        ones = torch.eye(conv.in_channels, device=conv.weight.device)[:, :, None, None].expand(-1, -1, *size)
        added = (conv(ones).double().cpu().mean((2, 3)) - bias).T
    deviation = spread.sqrt()
    used = (variance > 1e-6 * variance.max()) & (spread > 1e-6 * spread.max())
    if int(used.sum()) <= 2 * conv.in_channels:
        return None
    contrast = float((spread / variance)[used].log().median().div(2).exp())
    before = _misfit(mean, variance, goal, spread, used)
    if before <= _MISFIT:
        return {}
    found: dict[str, Change] = {}
    for sign in (1.0, -1.0):
        factor = sign * contrast
        short = goal - (factor * (mean - bias) + bias)
        offset = torch.linalg.lstsq((added / deviation[:, None])[used], (short / deviation)[used, None]).solution[:, 0]
        after = _misfit(goal - short + added @ offset, factor**2 * variance, goal, spread, used)
        if after < 0.25 * before:
            name = f"contrast times about {factor:.2g}, brightness plus about {_brief(offset.numpy())}"
            found[name] = _affine(factor, offset)
    if found:
        found |= {f"{name}, channels in the other order": _flipped(change) for name, change in list(found.items())}
    return found or None


def _misfit(mean: Tensor, variance: Tensor, goal: Tensor, spread: Tensor, used: Tensor) -> float:
    """Mean over channels of the squared shift in deviations and the squared logarithm of the ratio of deviations."""
    shift = (goal - mean).square() / spread
    ratio = (spread / variance).log().div(2).square()
    return float((shift + ratio)[used].mean())


def _first_pair(study: Study) -> tuple[nn.Conv2d, nn.BatchNorm2d] | None:
    """The convolution that reads the images, if a batch norm with statistics reads it and nothing else comes before."""
    model = copy.deepcopy(study.model).eval()
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor) and not list(module.children()):
            calls.append((module, args[0], output))

    handles = [module.register_forward_hook(note) for module in model.modules()]
    batch = next(iter(batches(study.evaluation)))
    with torch.no_grad(), torch.random.fork_rng():
        run_model(model, batch)
    for handle in handles:
        handle.remove()
    x = first_tensor(on_device(model, batch))
    if len(calls) < 2 or x is None or x.ndim != 4:
        return None
    (conv, given, made), (norm, read, _) = calls[:2]
    fits = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None and conv.groups == 1
    if not fits or read is not made or not torch.equal(given, x):
        return None
    return conv, norm  # type: ignore[return-value]


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _affine(factor: float, offset: Tensor) -> Change:
    return lambda x: factor * x + offset.to(x)[:, None, None]


def _flipped(change: Change) -> Change:
    return lambda x: change(x.flip(1))


def _cause(evidence: str, cure: str, gain: Interval) -> Cause:
    return Cause("preprocessing", "input", "input", evidence, Remedy("fix-input", "input", cure), gain)


def _gains_of_inputs(study: Study, limit: int | None, changes: Mapping[str, Change]) -> dict[str, Interval]:
    """What float scores more if the images are changed so, by name."""
    before: list[Samples] = []
    after: dict[str, list[Samples]] = {name: [] for name in changes}
    for batch in batches(study.evaluation, limit):
        as_it_is = run_lanes(study.graph, [Lane("float")], batch.inputs)["float"]
        before.append(score_batch(study.metric, as_it_is, batch.targets, as_it_is, batch.size))
        for name, change in changes.items():
            images = map_tensors(batch.inputs, partial(_of_images, change))
            changed = run_lanes(study.graph, [Lane("float")], images)["float"]
            after[name].append(score_batch(study.metric, changed, batch.targets, as_it_is, batch.size))
    base = Samples.joined(before)
    changed_to = {name: Samples.joined(rows) for name, rows in after.items()}
    return {name: gain(found, base, base) for name, found in changed_to.items()}


def _of_images(change: Change, x: Tensor) -> Tensor:
    return change(x) if x.ndim == 4 else x


def _images(loader: Iterable[Any], limit: int | None) -> Iterator[Tensor]:
    for batch in batches(loader, limit):
        x = first_tensor(batch.inputs)
        if x is not None and x.ndim == 4:
            yield x.double()


def _statistics(loader: Iterable[Any], limit: int | None) -> Statistics | None:
    means, squares = [], []
    for x in _images(loader, limit):
        means.append(x.mean((2, 3)))
        squares.append(x.square().mean((2, 3)))
    if not means:
        return None
    mean, square = torch.cat(means), torch.cat(squares)
    centre = mean.mean(0)
    deviation = (square.mean(0) - centre.square()).clamp(min=1e-12).sqrt()
    between = mean.std(0, unbiased=False)
    return Statistics(centre.cpu().numpy(), deviation.cpu().numpy(), between.cpu().numpy(), len(mean))


def _match(x: Tensor, here: Statistics, there: Statistics) -> Tensor:
    """Images with the statistics `here` given those of `there`."""
    scale = torch.from_numpy(there.deviation / here.deviation).to(x)[:, None, None]
    start, goal = (torch.from_numpy(s.mean).to(x)[:, None, None] for s in (here, there))
    return (x - start) * scale + goal


def _brief(values: np.ndarray) -> str:
    return ", ".join(f"{v:.3g}" for v in values[:4])
