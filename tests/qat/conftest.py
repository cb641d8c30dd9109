"""Networks, plans and studies for quantization-aware training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from qkit.execution.observing import observe
from qkit.graph import build
from qkit.quant.calibration import make_plan
from qkit.quant.plan import Plan
from qkit.quant.schemes import Scheme, scheme_of


@pytest.fixture(autouse=True)
def quiet(one_thread: None) -> Iterator[None]:
    """What is said of a model that was not diagnosed does not belong into every test's output."""
    logger = logging.getLogger("qkit.qat.qat_wrapping")
    before = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(before)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def plan_for(images: Tensor) -> Callable[..., Plan]:
    """``plan_for(model, scheme, **methods)``: calibrated on the images."""

    def make(model: Any, scheme: str | Scheme, **methods: Any) -> Plan:
        graph = build(model, images)
        return make_plan(graph, observe(graph, [images], progress=False), scheme_of(scheme), **methods)

    return make
