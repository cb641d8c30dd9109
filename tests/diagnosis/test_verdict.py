"""The verdict: every word of it, its boundaries, and how many samples it asks for."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from qkit import Scores
from qkit.diagnosis.verdict import judge


def scores(float_: float, wide: float, narrow: float, n: int = 2000, metric: str = "top1", wobble: float = 0.0) -> Scores:
    """0/1 scores with these means; a lane fails on the first samples beyond what float fails on, and `wobble` swaps some."""

    def lane(mean: float, swapped: int = 0) -> np.ndarray:
        hits = np.zeros(n)
        hits[: round(mean * n)] = 1.0
        if swapped:
            hits[:swapped] = 0.0
            hits[round(mean * n) : round(mean * n) + swapped] = 1.0
        return hits

    swapped = int(wobble * n)
    return Scores(metric, {"float": lane(float_), "int16": lane(wide, swapped), "int8": lane(narrow, swapped)})


@pytest.mark.parametrize(
    ("wide", "narrow", "name"),
    [
        (0.90, 0.90, "no-degradation"),
        (0.90, 0.895, "no-degradation"),
        (0.90, 0.91, "no-degradation"),
        (0.90, 0.70, "quantization"),
        (0.895, 0.87, "quantization"),
        (0.70, 0.70, "not-quantization"),
        (0.70, 0.695, "not-quantization"),
        (0.80, 0.50, "both"),
    ],
)
def test_every_verdict(wide: float, narrow: float, name: str) -> None:
    found = judge(scores(0.90, wide, narrow))
    assert found.name == name
    assert found.samples_needed is None
    assert found.wide.value == pytest.approx(0.90 - wide)
    assert found.narrow.value == pytest.approx(0.90 - narrow)
    assert str(found).startswith(f"{name}: ")


def test_a_better_8_bits_than_16_is_not_quantization() -> None:
    assert judge(scores(0.9, 0.5, 0.9)).name == "not-quantization"


def test_the_tolerance_is_the_users() -> None:
    given = scores(0.90, 0.90, 0.87)
    assert judge(given).name == "quantization"
    assert judge(given, tolerance=0.05).name == "no-degradation"


@pytest.mark.parametrize("n", [20, 60, 150])
def test_too_few_samples_are_said_and_counted(n: int) -> None:
    found = judge(scores(0.90, 0.90, 0.90, n=n, wobble=0.05))
    assert found.name == "inconclusive"
    assert found.samples_needed is not None
    assert found.samples_needed > n
    assert re.search(rf"\b{n}\b.*\b{found.samples_needed}\b", found.reason)


def test_as_many_samples_as_asked_for_usually_tell() -> None:
    """A lane that swaps 4 % of its answers and loses nothing."""
    random = np.random.default_rng(4)

    def draw(n: int) -> Scores:
        hits = (random.random(n) < 0.9).astype(float)
        flips = random.random(n) < 0.04
        swapped = np.where(flips, (random.random(n) < 0.9).astype(float), hits)
        return Scores("top1", {"float": hits, "int16": hits.copy(), "int8": swapped})

    asked = [found.samples_needed for found in (judge(draw(200)) for _ in range(40)) if found.samples_needed]
    assert len(asked) > 10
    needed = int(np.median(asked))
    told = [judge(draw(needed)).name == "no-degradation" for _ in range(60)]
    assert np.mean(told) > 0.6


def test_the_wider_the_interval_the_more_samples() -> None:
    asked = [judge(scores(0.9, 0.9, 0.9, n=200, wobble=w)).samples_needed for w in (0.02, 0.04, 0.08)]
    assert all(asked)
    assert asked == sorted(asked)  # type: ignore[type-var]


def test_a_float_score_that_is_not_what_was_expected_comes_first() -> None:
    found = judge(scores(0.60, 0.60, 0.60), expected=0.90)
    assert found.name == "not-quantization"
    assert re.search(r"\bfloat\b.*\b60\.00 %.*\b90\.00 %", found.reason)
    assert judge(scores(0.60, 0.60, 0.40), expected=0.90).name == "both"
    assert judge(scores(0.90, 0.90, 0.90), expected=0.905).name == "no-degradation", "within the interval"


def test_points_only_for_shares() -> None:
    assert "20.0 points" in judge(scores(0.9, 0.9, 0.7)).reason
    random = np.random.default_rng(0)
    base = random.normal(3.0, 0.1, 500)
    given = Scores("psnr", {"float": base, "int16": base - 1e-4, "int8": base - 0.5})
    found = judge(given)
    assert found.name == "quantization"
    assert "points" not in found.reason
    assert re.search(r"\bint8\b.*\b0\.5 dB \[", found.reason)
    assert re.search(rf"\b{given['float'].value:.4g} dB\b.*\b5\b", judge(given, expected=5.0).reason)


def test_one_point_is_singular() -> None:
    assert re.search(r"\b1 point\b", judge(scores(0.9, 0.9, 0.9, n=60, wobble=0.05)).reason)
    assert re.search(r"\b2 points\b", judge(scores(0.9, 0.9, 0.9, n=30, wobble=0.05), tolerance=0.02).reason)


def test_as_plain_data() -> None:
    data = json.loads(json.dumps(judge(scores(0.9, 0.9, 0.7)).to_dict(), allow_nan=False))
    assert data["verdict"] == "quantization"
    losses = {"loss16", "loss8", "expected16", "expected8"}
    assert set(data) == {"verdict", "reason", "samples_needed", "tolerance", "stopped", "remarks", "base"} | losses
