"""What all drawn widgets share: ES modules without a build step, and messages whose errors show in place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget

_HERE = Path(__file__).parent


#: An import of one of the other files here; the name is its stem.
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)


def es_module(name: str) -> str:
    """The widget's ES module in one piece: `common.js`, what its own file imports, then that file, without the imports."""
    parts: dict[str, str] = {}
    _collect("common", parts)
    _collect(name, parts)
    whole = "\n".join(_IMPORT.sub("", part) for part in parts.values())
    return re.sub(r"^export (?=(?:async )?function|const|class)", "", whole, flags=re.MULTILINE)


def _collect(name: str, parts: dict[str, str]) -> None:
    """Texts by file, each after those that it imports."""
    text = (_HERE / f"{name}.js").read_text(encoding="utf-8")
    for other in _IMPORT.findall(text):
        if other not in parts:
            _collect(other, parts)
    parts[name] = text


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
