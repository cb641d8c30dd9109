"""Code with a button that copies it."""

from __future__ import annotations

import traitlets

from qkit.widgets.canvas import Canvas, es_module


class CodeBox(Canvas):
    """Code with a button that copies it."""

    _esm = es_module("code")
    code = traitlets.Unicode("").tag(sync=True)
