"""What all drawn widgets share: ES modules without a build step, and messages whose errors show in place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget

_HERE = Path(__file__).parent


_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', flags=re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?function|const|class)", flags=re.MULTILINE)


def es_module(name: str) -> str:
    """The widget's ES module in one piece: the files that it imports, each once, then its own, without the imports between."""
    parts: dict[str, str] = {}

    def take(part: str) -> None:
        if part in parts:
            return
        text = (_HERE / f"{part}.js").read_text(encoding="utf-8")
        for other in _IMPORT.findall(text):
            take(other)
        text = _IMPORT.sub("", text)
        parts[part] = text if part == name else _EXPORT.sub("", text)

    take(name)
    return "\n".join(parts.values())


def style_sheet() -> str:
    """The widgets' one style sheet: colours for light and dark, sizes."""
    return (_HERE / "common.css").read_text(encoding="utf-8")


class Canvas(anywidget.AnyWidget):
    """A widget with an ES module of its own. Its repr has no address, so that notebooks compare equal."""

    _css = style_sheet()

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


def answer(canvas: Canvas, reply: dict[str, Any]) -> None:
    """Send a message to the views, past the traits: it is of the moment, not part of the saved state."""
    canvas.send(reply)
