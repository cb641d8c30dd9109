"""Where numba is missing, torch and numpy compute the same, and it is said."""

from __future__ import annotations

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_networks import mixed_network

from qkit import Study
from qkit.execution import lanes, tensor_errors
from qkit.quant import histogram, kernels
from qkit.quant.histogram import Histogram


@pytest.fixture
def without(monkeypatch):
    """Take the compiled loops away from every module that asks for them."""

    def take():
        for module in (lanes, tensor_errors, histogram):
            monkeypatch.setattr(module, "kernels", lambda: None)

    return take


def measured(scheme: str):
    draw = torch.Generator().manual_seed(3)
    data = [torch.randn(8, 3, 16, 16, generator=draw) for _ in range(2)]
    study = Study(mixed_network(), data, scheme=scheme, metric="agreement")
    plan = study.calibrate("mse", progress=False)
    captured = study.capture(batches=2, progress=False)
    return plan, captured.table(), study.evaluate(progress=False).lanes


@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor", "int8-power-of-two"])
def test_plans_scores_and_errors_are_the_same(scheme, without):
    plan, table, scores = measured(scheme)
    without()
    other, again, others = measured(scheme)
    assert other == plan
    for lane, found in scores.items():
        np.testing.assert_array_equal(others[lane], found)
    numbers = table.select_dtypes("number")
    np.testing.assert_allclose(again[numbers.columns].to_numpy(float), numbers.to_numpy(float), rtol=1e-4, atol=1e-6)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(0, 3), st.integers(1, 1000)), min_size=1, max_size=20),
    st.floats(1e-3, 10.0),
    st.sampled_from([(-128, 127), (-127, 127), (0, 255), (-8, 7), (-32768, 32767)]),
)
@example([(0.0, 0.0, 5)], 0.1, (-128, 127))
@example([(12.75, 0.05, 2), (-30.0, 0.5, 1), (0.05, 0.0, 3)], 0.1, (-128, 127))
def test_errors_of_a_grid_are_the_loops(bins, scale, ends):
    mean, half, count = (np.array(column, float) for column in zip(*bins, strict=True))
    want = kernels.histogram_error(mean, half, count, scale, *map(float, ends))
    got = histogram._grid_error(mean, half, count, scale, *map(float, ends))
    # the integral over a bin cancels: what is left is known to so many digits of its terms
    size = float((count * (np.abs(mean) + half + scale) ** 2).sum())
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10 * size)


def test_histograms_are_exact(without):
    x = torch.randn(4, 6, 9, 9, generator=torch.Generator().manual_seed(0))
    found, low, high = histogram.observe(x, 1)
    without()
    other, least, greatest = histogram.observe(x, 1)
    assert isinstance(other, Histogram)
    for name in ("keys", "counts"):
        np.testing.assert_array_equal(getattr(other, name), getattr(found, name))
    np.testing.assert_array_equal(least, low)
    np.testing.assert_array_equal(greatest, high)
    assert other.mean_square == found.mean_square


def test_it_is_said_where_numba_cannot_be_imported():
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "import torch, qkit\n"
        "study = qkit.Study(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU()), [torch.randn(4, 3, 8, 8)])\n"
        "study.calibrate(progress=False)\n"
        "print(study.capture(progress=False).table().shape[0], study.score().n)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["2", "4"]
    assert len(re.findall(r"^.*\bnumba\b.*import.*$", ran.stderr, re.MULTILINE)) == 1
