"""Copies of the notebooks for the site, with links that lead from where the copies lie, and without live widgets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sitetools.links import relinked

_WIDGET = "application/vnd.jupyter.widget-view+json"


def copies(source: Path, goal: Path, moved: Mapping[Path, Path]) -> dict[str, str]:
    """By name, the text of every notebook in `source` as it is shown from the folder `goal`; nothing else is changed."""
    made = {}
    for path in sorted(source.glob("*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relinked("".join(cell["source"]), source, goal, moved)
            for output in cell.get("outputs", []):
                _still(output)
        notebook["metadata"].pop("widgets", None)
        made[path.name] = json.dumps(notebook, ensure_ascii=False, indent=1)
    return made


def _still(output: dict[str, Any]) -> None:
    """Leave out the live widget: beside it a picture or a text is saved, and a page has no kernel."""
    output.get("data", {}).pop(_WIDGET, None)
