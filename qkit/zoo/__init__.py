"""Models to try the kit on: small trained torchvision networks with their data, and the user's own."""

from __future__ import annotations

from qkit.vision import load_torchvision
from qkit.zoo.case import Case
from qkit.zoo.checkpoints import load
from qkit.zoo.imagefolder import user_case
from qkit.zoo.models import build, names

__all__ = ["Case", "build", "load", "load_torchvision", "names", "user_case"]
