"""A notebook's cell that is run again makes its widget anew: the one before, whose output is gone, is closed.

Not where anything else may need it: one that was shown again or by another cell, or that a variable still names, stays open.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from IPython import get_ipython

from qkit.closing import Closeable

#: By cell, its last run that showed something, and what its runs made and showed.
_shown: dict[str, tuple[str, WeakSet[Closeable]]] = {}


def running() -> tuple[str, str]:
    """The cell that runs and this run of it; empty where the front end does not say, as outside of notebooks."""
    parent: dict[str, Any] = getattr(get_ipython(), "get_parent", dict)()
    return parent.get("metadata", {}).get("cellId", ""), parent.get("header", {}).get("msg_id", "")


def showing(widget: Closeable, made_in: tuple[str, str]) -> None:
    """The cell that runs is about to show a widget that was made in that run of that cell."""
    for _, widgets in _shown.values():
        widgets.discard(widget)
    cell, run = running()
    if not cell or made_in != (cell, run):
        return
    last, widgets = _shown.setdefault(cell, (run, WeakSet()))
    if last != run:
        for each in [each for each in widgets if not _named(each)]:
            each.close()
            widgets.discard(each)
    widgets.add(widget)
    _shown[cell] = run, widgets


def _named(widget: Closeable) -> bool:
    """Whether a variable of the notebook is the widget or a collection with it; IPython's own record of outputs is none."""
    variables: dict[str, Any] = get_ipython().user_ns
    for name, value in variables.items():
        if name.startswith("_") or name in ("In", "Out"):
            continue
        held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple, set)) else (value,)
        if any(each is widget for each in held):
            return True
    return False
