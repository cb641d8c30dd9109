"""Fixtures that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import hypothesis
import pytest
import torch
from torch import nn

# a busy machine is no failure
hypothesis.settings.register_profile("patient", deadline=None)
hypothesis.settings.load_profile("patient")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state."""
    torch.manual_seed(20240611)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On networks so small, handing work to other threads costs more than it saves."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def mixed() -> nn.Module:
    """A small network with every kind of step an integer engine knows."""
    from small_networks import mixed_network

    return mixed_network()


@pytest.fixture(scope="session")
def torchvision_models() -> ModuleType:
    """``torchvision.models``, also where torchvision's compiled operators do not load."""
    from qkit.vision import load_torchvision

    load_torchvision()
    import torchvision.models

    return torchvision.models
