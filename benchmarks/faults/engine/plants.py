"""The faults of engines: at which steps each can be, and what the step then does.

`place` lists the taps that a form has a place for; `plant` makes the change. A form that turns out to change nothing is a case
that nobody could see, and is reported apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor

from benchmarks.faults.engine.lane import Change
from qkit.execution.lanes import Lane, run_lanes
from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.grids import QuantParams
from qkit.quant.plan import Plan

LEVELS = ("weak", "medium", "strong")


@dataclass(frozen=True, eq=False)
class Site:
    """A step in which something is planted.

    Attributes
    ----------
    inputs
        Images on which a dose is chosen: calibration images.
    level
        0 to 2, how strong it is to be.
    """

    graph: Graph
    plan: Plan
    op: Operation
    inputs: Tensor
    level: int
    random: Random

    @property
    def output(self) -> QuantParams:
        """The grid of the step's output."""
        params = self.plan.params(self.op.name)
        assert params is not None
        return params

    def sums_step(self, ndim: int) -> Tensor:
        """What one unit of the accumulator is worth: scale of input times weight, in a shape that goes with the output's."""
        source = self.plan.params(self.graph.operations[self.op.inputs[0]].tap)
        weight = self.plan.params(self.op.weight)
        assert source is not None
        assert weight is not None
        scale = source.scale.double() * weight.scale.double()
        return scale if scale.ndim == 0 else scale.view(1, -1, *[1] * (ndim - 2))


@dataclass(frozen=True)
class Form:
    """One way to plant a kind.

    Attributes
    ----------
    kind, name
        What it is.
    said
        Words of the diagnosis that name it, any of them.
    place
        Whether a step can have it under the plan.
    plant
        The change; None where the site turns out to have nothing to change.
    widths
        Bits of engines that can have it.
    """

    kind: str
    name: str
    said: tuple[str, ...]
    place: Callable[[Graph, Plan, Operation], bool]
    plant: Callable[[Site], Change | None]
    widths: tuple[int, ...] = (8, 16)


def _weighted(graph: Graph, plan: Plan, op: Operation) -> bool:
    return op.kind in ("conv", "linear") and op.weight in plan.grids


def _biased(graph: Graph, plan: Plan, op: Operation) -> bool:
    return _weighted(graph, plan, op) and op.bias is not None


def _image(graph: Graph, plan: Plan, op: Operation) -> bool:
    return op.quantized and len(op.shape) == 4 and op.shape[1] > 1 and op.shape[2] > 1


def _channels(graph: Graph, plan: Plan, op: Operation) -> bool:
    return op.quantized and len(op.shape) in (2, 4) and op.shape[1] > 3


def _any(graph: Graph, plan: Plan, op: Operation) -> bool:
    return op.quantized and op.name in plan.grids


def _join(graph: Graph, plan: Plan, op: Operation) -> bool:
    return op.kind in ("add", "concat") and len(op.inputs) > 1 and op.name in plan.grids


def _nhwc_for_nchw(site: Site) -> Change:
    """The engine writes channels last, and what comes next takes them for first."""
    return Change(output=lambda y: y.permute(0, 2, 3, 1).contiguous().reshape(y.shape))


def _nchw_for_nhwc(site: Site) -> Change:
    """The other way round."""

    def output(y: Tensor) -> Tensor:
        n, c, h, w = y.shape
        return y.contiguous(memory_format=torch.contiguous_format).view(n, h, w, c).permute(0, 3, 1, 2)

    return Change(output=output)


def _greatest(site: Site) -> Tensor:
    """Greatest magnitudes of the step's sums, as integers, over the images on which doses are chosen."""
    seen: list[Tensor] = []

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = site.op.call(x, weight, bias)
        seen.append((y.double() / site.sums_step(y.ndim)).abs().flatten())
        return y

    _run(site, call)
    return seen[0]


def _run(site: Site, call: Callable[..., Tensor]) -> None:
    from dataclasses import replace

    operations = tuple(replace(s, call=call) if s.name == site.op.name else s for s in site.graph.operations)
    run_lanes(replace(site.graph, operations=operations), [Lane("p", site.plan)], (site.inputs,))


def _accumulator(site: Site, wrap: bool) -> Change:
    """Sums beyond so many bits are cut to the greatest integer, or wrap around: one, two or four bits too few for the largest."""
    bits = math.ceil(math.log2(float(_greatest(site).max()))) + 1 - (1, 2, 4)[site.level]
    limit = 2.0 ** (bits - 1)

    def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = site.op.call(x, weight, bias)
        op = site.sums_step(y.ndim)
        whole = torch.round(y.double() / op)
        whole = torch.remainder(whole + limit, 2 * limit) - limit if wrap else whole.clamp(-limit, limit - 1)
        return (whole * op).float()

    return Change(call=call)


def _dropped_bias(site: Site) -> Change:
    return Change(call=lambda x, weight, bias: site.op.call(x, weight, None))


def _narrow_bias(site: Site, bits: int, how: str) -> Change | None:
    """The bias becomes an integer at the accumulator's scale, of too few bits."""
    bias = site.graph.biases[site.op.bias or ""].double()
    op = site.sums_step(2).flatten()
    whole, limit = torch.round(bias / op), 2.0 ** (bits - 1)
    beyond = (whole >= limit) | (whole < -limit)
    if not bool(beyond.any()):
        return None
    held = {
        "saturates": whole.clamp(-limit, limit - 1),
        "wraps": torch.remainder(whole + limit, 2 * limit) - limit,
        "casts": torch.where(beyond, torch.full_like(whole, -limit), whole),
    }[how]
    return Change(call=lambda x, weight, bias: site.op.call(x, weight, (held * op).float()))


def _does_not_fit(bits: int, graph: Graph, plan: Plan, op: Operation) -> bool:
    if not _biased(graph, plan, op):
        return False
    site = Site(graph, plan, op, torch.empty(0), 0, Random(0))
    return _narrow_bias(site, bits, "saturates") is not None


def _shifted(site: Site) -> Change:
    """The shift that brings the sums to the output's scale is off by one or two."""
    factor = 2.0 ** site.random.choice(((-1, 1), (-1, 1), (-2, 2))[site.level])
    return _rescaled(site, factor)


def _rescaled(site: Site, factor: float) -> Change:
    def rounded(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
        assert params is not None
        zero = params.zero_point.double()
        exact = (y.double().clamp(*op.act) * factor / params.scale.double()).round()
        return (exact.clamp(params.qmin - zero, params.qmax - zero) * params.scale.double()).float()

    return Change(round=rounded)


def _others_factor(site: Site) -> float | None:
    """This tensor's scale over that of another one: the nearest ones for a weak fault, further ones for a strong."""
    own = float(site.output.scale)
    ratios = {own / float(site.plan.grids[tap].params.scale) for tap in site.graph.taps if tap != site.op.name}
    apart = sorted((r for r in ratios if abs(math.log2(r)) > 0.08), key=lambda r: abs(math.log2(r)))
    if not apart:
        return None
    return apart[min(len(apart) - 1, (0, len(apart) // 4, len(apart) // 2)[site.level])]


def _others_scale(site: Site) -> Change | None:
    """The output is rounded at another tensor's scale, and read at its own."""
    factor = _others_factor(site)
    return None if factor is None else _rescaled(site, factor)


def _others_reading(site: Site) -> Change | None:
    """The codes are right, and are read at another tensor's scale from then on."""
    factor = _others_factor(site)
    return None if factor is None else Change(output=lambda y: y * (1.0 / factor))


def _join_scale(site: Site) -> Change:
    """One input of an addition or a concatenation is read at half, or twice, or four times its scale."""
    position = site.random.randrange(len(site.op.inputs))
    factor = (site.random.choice((0.8, 1.25)), site.random.choice((0.5, 2.0)), site.random.choice((0.25, 4.0)))[site.level]
    return Change(call=lambda *xs: site.op.call(*(x * factor if i == position else x for i, x in enumerate(xs))))


def _order(site: Site) -> Change:
    """Two channels swapped, all moved on by one, or all reversed."""
    count = site.op.shape[1]
    order = list(range(count))
    if site.level == 0:
        a, b = site.random.sample(range(count), 2)
        order[a], order[b] = b, a
    else:
        order = order[1:] + order[:1] if site.level == 1 else order[::-1]
    return Change(output=lambda y: y[:, torch.tensor(order)])


def _reads_reversed(site: Site) -> Change:
    """A convolution reads its input's channels in reverse."""
    return Change(call=lambda x, weight, bias: site.op.call(x.flip(1), weight, bias))


def _full(graph: Graph, plan: Plan, op: Operation) -> bool:
    """A convolution over several channels that are not all alike, as the colours of grey images are."""
    if not _weighted(graph, plan, op) or op.kind != "conv":
        return False
    return graph.weights[op.weight or ""].shape[1] > 3


def _not_rounded(op: Operation, y: Tensor, params: QuantParams | None) -> Tensor:
    return y.clamp(*op.act)


def _float_output(site: Site) -> Change:
    """The output is not rounded."""
    return Change(round=_not_rounded)


def _float_layer(site: Site) -> Change:
    """Weights, bias and output are those of the float network."""
    return Change(call=_float_weights(site), round=_not_rounded)


def _float_inside(site: Site) -> Change:
    """Weights and bias are, and the output is rounded."""
    return Change(call=_float_weights(site))


def _float_weights(site: Site) -> Callable[..., Tensor]:
    weight = site.graph.weights[site.op.weight or ""]
    bias = None if site.op.bias is None else site.graph.biases[site.op.bias]
    return lambda x, *_: site.op.call(x, weight, bias)


def _narrow(bits: int, how: str) -> tuple[Callable[[Graph, Plan, Operation], bool], Callable[[Site], Change | None]]:
    return partial(_does_not_fit, bits), partial(_narrow_bias, bits=bits, how=how)


FORMS: Sequence[Form] = (
    Form("wrong layout", "NHWC for NCHW", ("NHWC",), _image, _nhwc_for_nchw),
    Form("wrong layout", "NCHW for NHWC", ("NHWC",), _image, _nchw_for_nhwc),
    Form("narrow accumulator", "saturates", ("sums up in an accumulator",), _weighted, partial(_accumulator, wrap=False)),
    Form("narrow accumulator", "wraps around", ("sums up in an accumulator",), _weighted, partial(_accumulator, wrap=True)),
    Form("dropped bias", "all", ("drops the bias",), _biased, _dropped_bias),
    Form("narrow bias", "16 bits saturate", ("holds the bias in",), *_narrow(16, "saturates")),
    Form("narrow bias", "16 bits wrap", ("holds the bias in",), *_narrow(16, "wraps")),
    Form("narrow bias", "32 bits cast", ("holds the bias in",), *_narrow(32, "casts"), (16,)),
    Form("wrong scale", "shift", ("constant factor",), _any, _shifted),
    Form("wrong scale", "another tensor's, in rounding", ("constant factor",), _any, _others_scale),
    Form("wrong scale", "another tensor's, in reading", ("constant factor",), _any, _others_reading),
    Form("wrong scale", "one input of a join", ("constant factor",), _join, _join_scale),
    Form("swapped channels", "written", ("channels in another order", "channels in reverse"), _channels, _order),
    Form("swapped channels", "read in reverse", ("channels in another order", "channels in reverse"), _full, _reads_reversed),
    Form("layer in float", "output", ("in float", "does not round its output"), _any, _float_output),
    Form("layer in float", "all", ("in float", "does not round its output"), _weighted, _float_layer),
    Form("layer in float", "weights", ("in float", "does not round its output"), _weighted, _float_inside),
)  # fmt: skip
KINDS = tuple(dict.fromkeys(form.kind for form in FORMS))
