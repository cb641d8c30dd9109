"""What is said of one layer: its local error split into weight and activation, and its weight channel by channel."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import ipywidgets
import numpy as np

from qkit.graph import Graph
from qkit.graph.operation import Operation
from qkit.quant.memory import by_channel
from qkit.quant.plan import Plan
from qkit.style import NOTHING, decibels, number
from qkit.widgets.composite import Composite
from qkit.widgets.layer_figures import shape_words
from qkit.widgets.layer_losses import Losses
from qkit.widgets.numbers import facts
from qkit.widgets.panel import button, row
from qkit.widgets.strip import ChannelStrip


def layer_words(op: Operation, losses: Losses | None) -> str:
    """Name, kind and shape of a layer, and what it costs, as HTML."""
    about = html.escape(f"{op.kind}, {shape_words(op.shape)}")
    said = [f'<div class="qkit-layer"><b>{html.escape(op.name)}</b> <span class="qkit-note">{about}</span></div>']
    if losses is not None and op.name in losses.by_layer:
        place = losses.order.index(op.name) + 1
        rank = "the most of all" if place == 1 else f"number {place} of {len(losses.by_layer)}"
        loss = losses.show(losses.by_layer[op.name])
        said.append(f'<div title="{html.escape(losses.said)}">{html.escape(losses.unit)}: <b>{loss}</b>, {rank}</div>')
    if op.note:
        said.append(f'<div class="qkit-note">{html.escape(op.note)}</div>')
    return "".join(said)


def split_words(parts: Mapping[str, float], lane: str, worst: str) -> str:
    """The local error as two bars, weight and activation; `worst` is the one at fault, "" for neither. HTML."""
    weight_share = parts["weight share"]
    if math.isnan(weight_share):
        return f"<div>{html.escape(lane)}: no local error</div>"
    noise = sum(10.0 ** (-parts[tensor] / 10.0) for tensor in ("weight", "activation"))
    local = f"{html.escape(lane)} local error: <b>{decibels(-10.0 * math.log10(noise))} dB</b>, made by"
    said = [f'<div class="qkit-split" role="group" aria-label="local error">{local}<table>']
    for tensor, part in (("weight", weight_share), ("activation", 1.0 - weight_share)):
        mark = " ◂ at fault" if tensor == worst else ""
        said.append(
            f'<tr><th scope="row">{tensor}</th><td class="qkit-track"><span style="width:{100 * part:.1f}%"></span></td>'
            f"<td>{100 * part:.0f} %</td><td>alone {decibels(parts[tensor])} dB{mark}</td></tr>"
        )
    return "".join([*said, "</table></div>"])


class WeightView(Composite):
    """A layer's weight channel by channel, with a button that opens it in the tuner."""

    def __init__(self) -> None:
        self.strip = ChannelStrip()
        self.facts = ipywidgets.HTML()
        self.tune = button("tune this weight", "Open the weight in the range tuner", icon="sliders")
        super().__init__([self.facts, self.strip, row(self.tune)])

    def show(self, graph: Graph, op: Operation, plan: Plan) -> None:
        """The ranges of the weight's channels and its grid in the plan."""
        assert op.weight is not None
        weight, params = graph.weights[op.weight], plan.params(op.weight)
        low, high = (bound.double().cpu().numpy() for bound in by_channel(weight, op.weight_axis or 0).aminmax(dim=1))
        self.strip.title = f"{op.weight}: output channels"
        self.strip.selected = 0
        self.strip.show(low, high, params)
        peaks = np.maximum(np.abs(low), np.abs(high))
        used = peaks[peaks > 0]
        grid = "stays in float"
        if params is not None:
            grid = f"{params.bits} bits, {'one step per channel' if params.per_channel else 'one step for all'}"
        rows = [
            ["weight", f"{op.weight}, {shape_words(weight.shape, first=0)}"],
            ["grid", grid],
            ["widest by narrowest channel", number(float(used.max() / used.min()), 3) if len(used) else NOTHING],
        ]
        if params is not None:
            lost = int(((peaks <= params.scale.double().numpy() / 2) & (peaks > 0)).sum())
            rows.append(["channels that round to 0 as a whole", f"{lost} of {len(peaks)}"])
        self.facts.value = facts(rows)
        self.tune.disabled = params is None
