"""A widget made of ipywidgets: its parts, then a line for progress with a button to cancel, and errors in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import ipywidgets

from qkit.widgets.canvas import Canvas, es_module
from qkit.widgets.composite import Composite
from qkit.widgets.live import Live, shown

__all__ = ["Frame", "Panel", "button", "row", "shown"]


def row(*children: ipywidgets.Widget, **layout: str) -> ipywidgets.Box:
    """Widgets side by side that wrap where there is no room."""
    return ipywidgets.Box(children, layout=ipywidgets.Layout(**{"flex_flow": "row wrap", "align_items": "center", **layout}))


def button(text: str, tooltip: str, *, icon: str = "", width: str = "auto") -> ipywidgets.Button:
    """A button with the words that a pointer held over it shows."""
    return ipywidgets.Button(description=text, tooltip=tooltip, icon=icon, layout=ipywidgets.Layout(width=width))


class Frame(Canvas):
    """Invisible: tells the page that the widget lives, so that its static stand-in hides."""

    _esm = es_module("frame")


class Panel(Live, Composite):
    """A composite widget; see the module."""

    _quiet = False

    def __init__(self, *children: ipywidgets.Widget) -> None:
        self._bar = ipywidgets.FloatProgress(min=0.0, max=1.0, layout=ipywidgets.Layout(width="160px"))
        self._doing = ipywidgets.Label()
        self._cancel = button("cancel", "Stop at the next step and keep what there is", icon="stop")
        self._cancel.on_click(lambda _: self.cancel())
        self._working = row(self._bar, self._doing, self._cancel)
        self._working.layout.visibility = "hidden"
        self._error, self._notice = ipywidgets.HTML(), ipywidgets.HTML()
        self._begin()
        super().__init__([Frame(), *children, self._working, self._notice, self._error])
        self.add_class("qkit-panel")

    def _release(self) -> None:
        Live._release(self)
        Composite._release(self)

    def _say_error(self, words: str) -> None:
        self._error.value = words

    def _say_notice(self, words: str) -> None:
        self._notice.value = words

    def _say_progress(self, text: str, share: float | None) -> None:
        self._working.layout.visibility = "visible" if text else "hidden"
        self._doing.value = text
        self._bar.value = share or 0.0

    @property
    def error(self) -> str:
        """The error that is shown, as HTML; "" for none."""
        return str(self._error.value)

    @property
    def notice(self) -> str:
        """What is said beside errors, as HTML; "" for nothing."""
        return str(self._notice.value)

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        """Controls that are set in here are not taken for the user's hand."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False
