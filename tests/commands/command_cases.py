"""What the tests of commands share beside fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., Any]
#: The user's network and data as options.
OWN = ("--model", "usernet:make", "--data", "usernet:loaders")
