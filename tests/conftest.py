"""Fixtures that several tests share."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same global random state."""
    torch.manual_seed(20240611)


@pytest.fixture(scope="session")
def torchvision_models() -> ModuleType:
    """``torchvision.models``, also where torchvision's compiled operators do not load."""
    from qkit.vision import load_torchvision

    load_torchvision()
    import torchvision.models

    return torchvision.models
