"""The benchmark of networks: rows that survive JSON, runs that go on where they stopped, and a table that hides nothing."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.networks import __main__ as command
from benchmarks.networks import report
from benchmarks.networks.catalogue import KINDS, Network, networks
from benchmarks.networks.measure import Row, measure
from benchmarks.networks.weights import noise, settle


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Unloadable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such thing")


SMALL = Network("own/small", "convolutional", (3, 12, 12), Small)


def test_the_catalogue_names_every_network_once() -> None:
    listed = networks()
    assert len({network.name for network in listed}) == len(listed)
    assert {network.kind for network in listed} <= set(KINDS)
    assert sum(network.package == "timm" for network in listed) >= 60
    assert {network.name for network in networks("onnx")} < {network.name for network in listed}


def test_a_row_survives_json() -> None:
    row = measure(SMALL, engine=False)
    assert row.made, row.refused
    assert not row.troubles
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row
    assert (row.norms, row.standing, row.folded_by_hand) == (1, 0, 1)
    assert row.cost is not None
    assert row.cost > 0


def test_a_network_that_cannot_run_is_a_row_that_says_so() -> None:
    row = measure(replace(SMALL, name="own/broken", make=Unloadable), engine=False)
    assert not row.made
    assert row.refused
    assert report.missed(row) == ["made"]
    assert "no such thing" in report.line(row)


def test_what_a_package_lacks_is_a_row_too() -> None:
    def make() -> nn.Module:
        raise ModuleNotFoundError("No module named 'nets'", name="nets")

    row = measure(replace(SMALL, name="own/missing", make=make), engine=False)
    assert row.refused
    assert "nets" in row.refused


def test_targets_that_are_missed_are_named() -> None:
    good = Row(
        "own/good", "hybrid", (3, 8, 8), made=True, macs_share=0.98, deviation=1e-6, compared=10, apart=1, far=0, engine_within=1.0,
        build_s=1.0, export_s=1.0, float_s=0.1,
    )  # fmt: skip
    assert report.missed(good) == []
    assert report.missed(replace(good, kind="convolutional")) == ["integer MACs"]
    assert report.missed(replace(good, deviation=2e-4)) == ["deviation"]
    assert report.missed(replace(good, deviation=2e-4, own_error=1e-4)) == []
    assert report.missed(replace(good, far=1)) == ["codes as by hand"]
    assert report.missed(replace(good, unmatched=["a.weight"])) == ["codes as by hand"]
    assert report.missed(replace(good, engine_within=0.99)) == ["engine"]
    assert report.missed(replace(good, build_s=2.0)) == ["cost"]
    assert report.missed(replace(good, troubles={"study": "no"})) == ["study"]


def test_a_run_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(command, "networks", lambda: [SMALL, replace(SMALL, name="own/other")])
    asked: list[str] = []

    def apart(network: Network, options: object) -> Row:
        asked.append(network.name)
        return Row(
            network.name, network.kind, network.shape, refused="GraphError: no way in" if "other" in network.name else None
        )

    monkeypatch.setattr(command, "_apart", apart)
    folder = ["--out", str(tmp_path)]
    command.main([*folder, "--only", "own/small"])
    command.main(folder)
    assert asked == ["own/small", "own/other"]
    command.main(folder)
    assert len(asked) == 2
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "`own/other`: GraphError: no way in" in text
    command.main([*folder, "--retry", "--only", "other"])
    assert asked[2:] == ["own/other"]
    with pytest.raises(SystemExit, match=r"^nothing: .*--list"):
        command.main(["--only", "nothing"])


def test_settled_weights_let_the_signal_through() -> None:
    torch.manual_seed(0)
    model = settle(
        nn.Sequential(*[layer for _ in range(12) for layer in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())]),
        (3, 16, 16),
    )
    with torch.no_grad():
        y = model(noise((3, 16, 16), 8, seed=1))
    assert 0.05 < float(y.std()) < 20
    assert float((y[0] - y[1]).abs().mean()) > 0.01
