"""Which samples set the ranges, against numpy's minimum and maximum of what plain torch computes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qkit.execution.extremes
from qkit import DataError, Study
from qkit.execution.extremes import Extremes, RangeSamples
from qkit.execution.lanes import run_lanes

TAPS = ("input", "0", "2", "4")


def images() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    parts = [torch.randn(size, 3, 8, 8, generator=draw) for size in (6, 6, 3)]
    parts[1][2] *= 5.0  # sample 8
    return parts


def network() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 3))
        return nn.Sequential(*layers).eval()


def study(data: Any = None) -> Study:
    data = images() if data is None else data
    return Study(network(), data, data, metric="agreement", scheme="int8")


def truth() -> dict[str, np.ndarray]:
    """By tap, a row a sample."""
    x, model = torch.cat(images()), network()
    with torch.no_grad():
        values = {"input": x, "0": model[:2](x), "2": model[:3](x), "4": model(x)}
    return {tap: y.flatten(1).numpy() for tap, y in values.items()}


def test_every_tap_names_the_samples_of_its_ends() -> None:
    found = study().range_samples(progress=False)
    table = found.table()
    assert tuple(table.index) == TAPS
    assert found.samples == 15
    for tap, rows in truth().items():
        low, high = rows.min(1), rows.max(1)
        width = high.max() - low.min()
        row = table.loc[tap]
        assert row["low", "value"] == pytest.approx(low.min(), abs=1e-5)
        assert row["high", "value"] == pytest.approx(high.max(), rel=1e-5)
        assert row["high", "sample"] == high.argmax() == 8
        if tap != "0":
            assert row["low", "sample"] == low.argmin()
            assert row["low", "beyond"] == pytest.approx((np.sort(low)[1] - low.min()) / width, rel=1e-3)
        assert row["high", "beyond"] == pytest.approx((high.max() - np.sort(high)[-2]) / width, rel=1e-3)


def test_they_are_ranked_by_the_ends_that_they_set_alone() -> None:
    found = study().range_samples(images=1, progress=False)
    ranking = found.ranking()
    ends = [(int(rows.min(1).argmin()), tap) for tap, rows in truth().items() if tap != "0"]  # 0 after a ReLU is everybody's
    ends += [(int(rows.max(1).argmax()), tap) for tap, rows in truth().items()]
    assert ranking["ends"].to_dict() == {s: sum(s == other for other, _ in ends) for s, _ in ends}
    assert ranking.index[0] == 8
    table = found.table()
    beyond = [table.loc[tap, (end, "beyond")] for end in ("low", "high") for tap in TAPS if table.loc[tap, (end, "sample")] == 8]
    beyond = [b for b in beyond if b > 0]
    assert ranking.loc[8, "beyond"] == pytest.approx(np.mean(beyond))
    assert ranking.loc[8, "most"] == pytest.approx(max(beyond))
    assert list(found.images) == [8]
    x = images()[1][2].permute(1, 2, 0).numpy().astype(float)
    stretched = 255 * (x - x.min()) / (x.max() - x.min())
    assert np.abs(found.images[8].astype(float) - stretched).max() <= 0.5 + 1e-6
    assert "data:image/png" in found._repr_html_()
    assert len(found.plot().figure.axes[0].get_images()) == 1
    assert json.loads(json.dumps(found.to_dict()))["samples"] == 15


def test_one_pass_that_goes_on_after_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    made = study()
    calls: list[int] = []

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run_lanes(*arguments, **options)

    monkeypatch.setattr(qkit.execution.extremes, "run_lanes", counting)
    with pytest.raises(KeyboardInterrupt):
        made.range_samples(progress=False)
    found = made.range_samples(progress=False)
    assert len(calls) == 3 + 1
    fresh = study().range_samples(progress=False)
    assert np.array_equal(found.low, fresh.low)
    assert np.array_equal(found.high, fresh.high)


def test_the_ends_are_those_of_the_histograms() -> None:
    made = study()
    table, seen = made.range_samples(batches=2, progress=False).table(), made.observe(batches=2, progress=False)
    for tap in TAPS:
        assert table.loc[tap, ("low", "value")] == pytest.approx(seen[tap].histogram.min)
        assert table.loc[tap, ("high", "value")] == pytest.approx(seen[tap].histogram.max)


def test_one_sample_is_beyond_nobody() -> None:
    found = study([images()[0][:1]]).range_samples(progress=False)
    assert found.table().xs("beyond", axis=1, level=1).isna().all().all()
    assert found.ranking().loc[0, "ends"] == 2 * len(TAPS)
    constant = RangeSamples(("a",), np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))
    assert constant.table().loc["a", ("low", "beyond")] == 0.0
    assert constant.ranking().empty


def test_what_cannot_be_is_an_error() -> None:
    made = study()
    with pytest.raises(DataError, match="no batch"):
        Extremes(made.graph).run([], progress=False)
    bad = images()
    bad[1][0, 0, 0, 0] = torch.nan
    with pytest.raises(DataError, match=r"^input\b.*NaN"):
        Extremes(made.graph).run(bad, progress=False)
