"""One small study and its report, made once."""

from __future__ import annotations

import pytest
from report_cases import PerturbedEngine, tiny_study

from qkit import Study
from qkit.engines.compare import compare as compare_engine
from qkit.report import Report, make


@pytest.fixture(scope="session")
def study() -> Study:
    return tiny_study(scheme="int8-per-tensor")


@pytest.fixture(scope="session")
def report(study: Study) -> Report:
    return make(study, title="A small network", worst=3, progress=False)


@pytest.fixture(scope="session")
def full() -> Report:
    """A report with everything in it: calibrated after training, mixed precision, an engine, feature maps, a diagnosis."""
    calibrated = tiny_study(scheme="int8-per-tensor").ptc(["ranges", "bias-correction"], progress=False)
    mixed = calibrated.mixed(budget=6, progress=False)
    engine = compare_engine(calibrated, PerturbedEngine(calibrated, "second", 3), progress=False)
    return make(
        calibrated, title="All of it", worst=3, diagnosis=True, images=True, mixed=mixed, engines=engine, progress=False
    )  # fmt: skip
