"""What the browser tests need, and whether they may be left out."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

#: Set by CI: a missing browser is a failure there.
REQUIRED = os.environ.get("QKIT_REQUIRE_BROWSER") == "1"


def missing() -> str:
    """What the browser tests lack; "" where they can run."""
    packages = [name for name in ("jupyterlab", "playwright", "nbconvert") if importlib.util.find_spec(name) is None]
    if packages:
        return f"{', '.join(packages)} not installed: pip install --group browser"
    chromium = Path(os.environ.get("QKIT_CHROMIUM", "/usr/bin/chromium"))
    if not chromium.exists():
        return f"no Chromium at {chromium}: apt-get install chromium, or name one in QKIT_CHROMIUM"
    return ""
