"""What all drawn widgets share: ES modules without a build step, and messages whose errors show in place."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import anywidget

_HERE = Path(__file__).parent


def es_module(*names: str) -> str:
    """The widget's ES module in one piece: `common.js`, then its own files, the view's last, without the imports between them."""
    parts = [(_HERE / f"{part}.js").read_text(encoding="utf-8") for part in ("common", *names)]
    whole = "\n".join(re.sub(r'^import \{[^}]*\} from "\./\w+\.js";\n', "", part, flags=re.MULTILINE) for part in parts)
    return re.sub(r"^export (?=(?:async )?function|const|class)", "", whole, flags=re.MULTILINE)


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
