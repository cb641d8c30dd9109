"""Layers as matrix products: columns and rows against torch's own operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qkit.execution.columns import columns, groups, output_of, output_rows, rows, weight_of
from qkit.graph import build

LAYERS = {
    "linear": (nn.Linear(6, 5), (3, 6)),
    "linear on tokens": (nn.Linear(6, 5), (3, 7, 6)),
    "conv 1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 11)),
    "conv 2d": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 4, 9, 8)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (2, 4, 7, 7)),
    "same": (nn.Conv2d(3, 4, (2, 3), padding="same"), (2, 3, 6, 5)),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (2, 3, 6, 5)),
    "conv 3d": (nn.Conv3d(2, 4, (2, 3, 1), stride=(1, 2, 1), groups=2), (2, 2, 4, 6, 3)),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 4, stride=2, padding=1), (2, 4, 5)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
    "transposed in groups": (nn.ConvTranspose2d(4, 6, 3, stride=(2, 3), dilation=2, groups=2), (2, 4, 4, 5)),
    "transposed, cropped": (nn.ConvTranspose2d(3, 2, 2, stride=2, padding=2), (2, 3, 6, 6)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rows_times_columns_are_the_layers_output(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape)
    graph = build(layer.eval(), x)
    op = next(op for op in graph.operations if op.weight is not None)
    weight = graph.weights[op.weight or ""]
    found = [rows(op, weight) @ made for _, made in columns(op, x, weight)]
    expected: Tensor = op.call(x, weight, None)
    torch.testing.assert_close(torch.cat(found, 2), output_rows(op, expected), rtol=1e-4, atol=1e-5)
    assert found[0].shape[0] == groups(op)
    assert torch.equal(output_of(op, output_rows(op, expected), expected), expected)
    assert torch.equal(weight_of(op, rows(op, weight), weight), weight)


def test_samples_come_in_parts_that_cover_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qkit.execution.columns._CHUNK", 1)
    layer, shape = LAYERS["conv 2d"]
    x = torch.randn(5, *shape[1:])
    graph = build(layer.eval(), x)
    op = next(op for op in graph.operations if op.weight is not None)
    weight = graph.weights[op.weight or ""]
    parts = list(columns(op, x, weight))
    assert torch.equal(torch.cat([x[part] for part, _ in parts]), x)
    whole = output_rows(op, op.call(x, weight, None))
    torch.testing.assert_close(torch.cat([rows(op, weight) @ made for _, made in parts], 2), whole, rtol=1e-4, atol=1e-5)
