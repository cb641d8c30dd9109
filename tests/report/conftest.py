"""One small study and its report, made once."""

from __future__ import annotations

import pytest
from report_cases import tiny_study

from qkit import Study
from qkit.report import Report, make


@pytest.fixture(scope="session")
def study() -> Study:
    return tiny_study(scheme="int8-per-tensor")


@pytest.fixture(scope="session")
def report(study: Study) -> Report:
    return make(study, title="A small network", worst=3, progress=False)
