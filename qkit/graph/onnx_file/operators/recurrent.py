"""LSTM, GRU and RNN: torch's own where the file's is the same, with the gates in torch's order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qkit.graph.onnx_file.call import Call, as_weight
from qkit.graph.onnx_file.values import Planned, TorchCall, Value

ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
"""Which of ONNX's gates (i o f c, z r h) stand at torch's places (i f g o, r z n)."""

DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}


def recurrent(call: Call) -> TorchCall:
    kind = call.operator
    call.only(input_forget=0)
    if "clip" in call.attributes:
        raise call.refuse("clip is not supported.")
    direction = call.attribute("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    activations = [name.capitalize() for name in call.attribute("activations", DEFAULTS[kind] * directions)]
    relu = kind == "RNN" and set(activations) == {"Relu"}
    if activations != DEFAULTS[kind] * directions and not relu:
        raise call.refuse(f"activations={activations} are not supported, only {DEFAULTS[kind]}.")
    batch_first = bool(call.attribute("layout", 0))
    _check_lengths(call, call.static(0, 1 if batch_first else 0))
    if kind == "LSTM" and call.has(7) and not (call.value(7).constant and not bool(call.value(7).at(0).any())):
        raise call.refuse("peepholes (input P) are not supported.")
    if not (call.value(1).constant and call.value(2).constant and (not call.has(3) or call.value(3).constant)):
        raise call.refuse("its weights are not constants, which is not supported.")
    weights = _weights(call, directions)
    before = kind == "GRU" and not call.attribute("linear_before_reset", 0)
    states = [call.get(5), call.get(6)] if kind == "LSTM" else [call.get(5)]
    hidden = call.value(2).at(0).shape[-1]
    settings: dict[str, Any] = {
        "hidden": hidden,
        "directions": directions,
        "backwards": direction == "reverse",
        "batch_first": batch_first,
        "bias": call.has(3),
    }
    functions: dict[str, Callable[..., Any]] = {"LSTM": run_lstm, "GRU": run_gru, "RNN": run_rnn}
    if kind == "RNN":
        settings["relu"] = relu
    return call.torch(run_reset_gru if before else functions[kind], call.value(0), *states, *weights, **settings)


def _check_lengths(call: Call, length: int) -> None:
    if call.has(4) and not all(bool((lengths == length).all()) for lengths in call.tensors(4, "sequence_lens")):
        raise call.refuse(f"sequence_lens shorter than the {length} steps of the input are not supported.")


def _weights(call: Call, directions: int) -> list[Value]:
    order = ORDER[call.operator]
    made = []
    for direction in range(directions):
        parts: list[tuple[int, int | None]] = [(1, None), (2, None)] + ([(3, 0), (3, 1)] if call.has(3) else [])
        for index, half in parts:
            change = _reordered(direction, half, order)
            value = call.value(index).variant(("gates", order, direction, half), change)
            made.append(as_weight(value))
    return made


def _reordered(direction: int, half: int | None, order: Sequence[int]) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        mine = x[direction] if half is None else x[direction].chunk(2)[half]
        gates = mine.chunk(len(order))
        return torch.cat([gates[gate] for gate in order]).contiguous()

    return change


def _prepared(
    x: Tensor, state: Tensor | None, *, hidden: int, directions: int, backwards: bool, batch_first: bool
) -> tuple[Tensor, Tensor]:
    x = x.transpose(0, 1) if batch_first else x
    x = x.flip(0) if backwards else x
    if state is None:
        return x, x.new_zeros((directions, x.shape[1], hidden))
    return x, state.transpose(0, 1) if batch_first else state


def _finished(y: Tensor, *states: Tensor, directions: int, backwards: bool, batch_first: bool) -> tuple[Tensor, ...]:
    """ONNX's shapes: (steps, directions, batch, hidden), or (batch, steps, directions, hidden)."""
    y = y.flip(0) if backwards else y
    y = y.unsqueeze(-2) if directions == 1 else torch.stack(y.chunk(2, -1), -2)
    y = y.permute(1, 0, 2, 3) if batch_first else y.transpose(1, 2)
    return (y, *(state.transpose(0, 1) if batch_first else state for state in states))


def run_lstm(x: Tensor, h: Tensor | None, c: Tensor | None, *weights: Tensor, bias: bool, **how: Any) -> tuple[Tensor, ...]:
    """ONNX's LSTM by `torch.lstm`."""
    x, h = _prepared(x, h, **how)
    c = torch.zeros_like(h) if c is None else c.transpose(0, 1) if how["batch_first"] else c
    y, h, c = torch.lstm(x, (h, c), weights, bias, 1, 0.0, False, how["directions"] == 2, False)
    return _finished(y, h, c, **_shape(how))


def run_gru(x: Tensor, h: Tensor | None, *weights: Tensor, bias: bool, **how: Any) -> tuple[Tensor, ...]:
    """ONNX's GRU with linear_before_reset, by `torch.gru`."""
    x, h = _prepared(x, h, **how)
    y, h = torch.gru(x, h, weights, bias, 1, 0.0, False, how["directions"] == 2, False)
    return _finished(y, h, **_shape(how))


def run_rnn(x: Tensor, h: Tensor | None, *weights: Tensor, bias: bool, relu: bool, **how: Any) -> tuple[Tensor, ...]:
    """ONNX's RNN by `torch.rnn_tanh` or `torch.rnn_relu`."""
    x, h = _prepared(x, h, **how)
    function = torch.rnn_relu if relu else torch.rnn_tanh
    y, h = function(x, h, weights, bias, 1, 0.0, False, how["directions"] == 2, False)
    return _finished(y, h, **_shape(how))


def run_reset_gru(x: Tensor, h: Tensor | None, *weights: Tensor, bias: bool, **how: Any) -> tuple[Tensor, ...]:
    """ONNX's GRU where the reset gate comes before the product, which torch does not have: step by step."""
    x, h = _prepared(x, h, **how)
    each = 4 if bias else 2
    outputs, states = [], []
    for direction in range(how["directions"]):
        w, r, *biases = weights[direction * each : (direction + 1) * each]
        turned = x.flip(0) if direction == 1 else x
        y, state = _reset_gru(turned, h[direction], w, r, *(biases or (None, None)))
        outputs.append(y.flip(0) if direction == 1 else y)
        states.append(state)
    return _finished(torch.cat(outputs, -1), torch.stack(states), **_shape(how))


def _reset_gru(x: Tensor, h: Tensor, w: Tensor, r: Tensor, wb: Tensor | None, rb: Tensor | None) -> tuple[Tensor, Tensor]:
    size = h.shape[-1]
    inputs = F.linear(x, w, wb)
    bias = None if rb is None else rb[2 * size :]
    made = []
    for step in inputs.unbind(0):
        gates = torch.sigmoid(step[:, : 2 * size] + F.linear(h, r[: 2 * size], None if rb is None else rb[: 2 * size]))
        reset, update = gates[:, :size], gates[:, size:]
        new = torch.tanh(step[:, 2 * size :] + F.linear(reset * h, r[2 * size :], bias))
        h = (1 - update) * new + update * h
        made.append(h)
    return torch.stack(made), h


def _shape(how: dict[str, Any]) -> dict[str, Any]:
    return {name: how[name] for name in ("directions", "backwards", "batch_first")}


TABLE: dict[str, Callable[[Call], Planned]] = {"LSTM": recurrent, "GRU": recurrent, "RNN": recurrent}
