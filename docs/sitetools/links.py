"""Links to files of the repository, put right for a page of the site that shows the same text from elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

#: Targets of Markdown's links and pictures, without those that have a scheme or are an anchor alone.
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")


def relinked(text: str, source: Path, goal: Path, moved: Mapping[Path, Path]) -> str:
    """Markdown written in the folder `source`, for a page in the folder `goal`.

    Parameters
    ----------
    moved
        Files that are pages of the site, with where they are there; links to them lead to the page, all others to the file.
    """

    def link(found: re.Match[str]) -> str:
        target = (source / found[1]).resolve()
        return os.path.relpath(moved.get(target, target), goal.resolve()).replace(os.sep, "/")

    return _LINK.sub(link, text)
