"""Widgets made of widgets: ipywidgets holds on to every widget until it is closed, so whoever makes children closes them."""

from __future__ import annotations

from typing import Any

from ipywidgets import VBox, Widget

from qkit.closing import Closeable
from qkit.widgets.work import STATE


def family(widget: Widget) -> list[Widget]:
    """The widget and all that it holds in traits and attributes: children, shown or not, their layouts and styles."""
    found: dict[int, Widget] = {}
    todo: list[Any] = [widget]
    while todo:
        thing = todo.pop()
        if isinstance(thing, (list, tuple)):
            todo += thing
        elif isinstance(thing, dict):
            todo += thing.values()
        elif isinstance(thing, Widget) and id(thing) not in found:
            found[id(thing)] = thing
            todo.append(vars(thing))
    return list(found.values())


def discard(*widgets: Widget) -> None:
    """Close widgets with all that they hold, and forget who observes them."""
    for widget in widgets:
        for each in family(widget):
            if isinstance(each, Closeable):
                each.close()
            each.unobserve_all()
            Widget.close(each)


class Composite(Closeable, VBox):
    """A column of widgets that closes them with itself."""

    def close(self) -> None:
        """Close the widget with all its children, on the page too."""
        if not self._closed:
            with STATE:
                super().close()

    def _release(self) -> None:
        discard(self)

    def __del__(self) -> None:
        """Nothing is left to do: ipywidgets holds on to it until it is closed."""
