"""From functions that draw to what is shown: a picture in a notebook, SVG in a page that follows light and dark.

No pyplot: figures are made directly, so neither a backend nor a global style is touched.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from qkit import files
from qkit.errors import QkitError
from qkit.style import COLOURS, STYLE

#: Inches and dots an inch: as wide as a notebook's page.
WIDTH = 8.4
DPI = 110


@dataclass(frozen=True, eq=False)
class Picture:
    """A figure that a notebook shows.

    Attributes
    ----------
    figure
        matplotlib's.
    words
        What it shows, for those who cannot see it.
    """

    figure: Figure
    words: str

    def png(self) -> bytes:
        """The picture, on white."""
        return self._drawn("png", metadata={"Software": None})

    def save(self, path: str | Path) -> None:
        """Write it in the format of the path's suffix: .png, .svg, .pdf.

        Raises
        ------
        QkitError
            If there is no such format, or the file cannot be written; an earlier one is then as it was.
        """
        suffix = Path(path).suffix.lower().removeprefix(".")
        known = self.figure.canvas.get_supported_filetypes()
        if suffix not in known:
            raise QkitError(f"{path} does not end in a format of pictures: name it {', '.join(f'.{name}' for name in known)}.")
        files.write_bytes(path, self._drawn(suffix))

    def _drawn(self, form: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        with matplotlib.style.context(["default", STYLE]):
            self.figure.savefig(buffer, format=form, **options)
        return buffer.getvalue()

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        return {"image/png": self.png(), "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Picture({self.words})"


def picture(
    draw: Callable[..., Any], *args: Any, words: str, width: float = WIDTH, height: float = 3.4, **options: Any
) -> Picture:
    """What ``draw(*args, ax=…, **options)`` draws, on a figure of so many inches."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="white", dpi=DPI)
        draw(*args, ax=figure.add_subplot(), **options)
    return Picture(figure, words)


def svg_address(draw: Callable[..., Axes], *args: Any, width: float, height: float) -> str:
    """A figure of so many inches with one picture in it, as SVG in a data URI that follows the reader's preference."""
    return address_of(lambda figure: draw(*args, ax=figure.add_subplot()), width=width, height=height)


def address_of(draw: Callable[[Figure], Any], *, width: float, height: float) -> str:
    """What ``draw(figure)`` draws, likewise."""
    light = ";".join(f"--qkit-{name}:{colours[0]}" for name, colours in COLOURS.items())
    dark = ";".join(f"--qkit-{name}:{colours[1]}" for name, colours in COLOURS.items())
    rules = f"svg{{{light}}}@media screen and (prefers-color-scheme:dark){{svg{{{dark}}}}}"
    text = _svg(draw, width=width, height=height).replace("<defs>", f"<defs><style>{rules}</style>", 1)
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode()


def svg(draw: Callable[..., Axes], *args: Any, width: float, height: float) -> str:
    """The same as SVG to be put into a page that sets the colours: variables ``--qkit-`` and a name of `COLOURS`."""
    return _svg(lambda figure: draw(*args, ax=figure.add_subplot()), width=width, height=height)


def _svg(draw: Callable[[Figure], Any], *, width: float, height: float) -> str:
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(width, height), facecolor="none", layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _themed(buffer.getvalue())


def _themed(text: str) -> str:
    """Colours as variables, fonts of the reader's system."""
    # two digits place a point well enough; words between the tags stay as they are
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), text[text.index("<svg") :])
    for name, (colour, _) in COLOURS.items():
        text = text.replace(colour, f"var(--qkit-{name})")
    return re.sub(r"(font:[^;\"]*?px )[^;\"]*", r"\1system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif", text)
