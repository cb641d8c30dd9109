"""The repository's own Markdown on the site: READMEs as pages, and the README's sections as parts of pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sitetools.links import relinked

#: Files that become pages, with their names there.
PAGES: Mapping[str, str] = {
    "benchmarks/README.md": "speed",
    "benchmarks/faults/README.md": "faults",
    "benchmarks/faults/results/table.md": "faults-table",
    "benchmarks/faults/results/failures.md": "faults-failures",
    "benchmarks/faults/results/engine.md": "faults-engine",
    "benchmarks/faults/results/few.md": "faults-few",
    "benchmarks/accuracy/README.md": "accuracy",
    "benchmarks/accuracy/results/table.md": "accuracy-table",
    "benchmarks/networks/README.md": "networks",
    "benchmarks/networks/results/table.md": "networks-table",
    "benchmarks/networks/results/same.md": "networks-same",
    "data/README.md": "data",
    "notebooks/README.md": "notebooks",
    "CHANGELOG.md": "changelog",
}


def pages_of(root: Path) -> dict[Path, str]:
    """Those files of `PAGES` that are there, with their names."""
    return {(root / file).resolve(): name for file, name in PAGES.items() if (root / file).is_file()}


def parts(readme: str) -> dict[str, str]:
    """The README's text by section, the introduction as "introduction"; headings of the sections themselves are left out."""
    first, *rest = re.split(r"^## (.+)$", readme, flags=re.MULTILINE)
    named = {"introduction": first.partition("\n")[2]}
    for title, text in zip(rest[::2], rest[1::2], strict=True):
        named[title.strip().lower().replace(" ", "-")] = text
    return {name: text.strip() + "\n" for name, text in named.items()}


def texts(root: Path, docs: Path) -> dict[Path, str]:
    """By path, the pages and the README's parts, with links that are right there."""
    moved = moves(root, docs)
    made = {
        docs / "generated" / "pages" / f"{name}.md": relinked(_titled(file), file.parent, docs / "generated" / "pages", moved)
        for file, name in pages_of(root).items()
    }
    # a part is read as if it stood in the page that includes it, which lies in docs itself
    for name, text in parts((root / "README.md").read_text(encoding="utf-8")).items():
        # a narrow column must not part a figure from its unit
        whole = re.sub(r"(?<=\d) (?=%)", "\u00a0", text)
        made[docs / "generated" / "parts" / f"{name}.md"] = relinked(whole, root, docs, moved)
    return made


def _titled(file: Path) -> str:
    """The file's text; tables that a program writes have no heading of their own."""
    text = file.read_text(encoding="utf-8")
    return text if text.lstrip().startswith("# ") else f"# {file.parent.parent.name.capitalize()}: {file.stem}\n\n{text}"


def moves(root: Path, docs: Path) -> dict[Path, Path]:
    """Files of the repository that are pages of the site, with where they are there."""
    found = {file: (docs / "generated" / "pages" / f"{name}.md").resolve() for file, name in pages_of(root).items()}
    found[(root / "README.md").resolve()] = (docs / "index.md").resolve()
    for notebook in (root / "notebooks").glob("*.ipynb"):
        found[notebook.resolve()] = (docs / "notebooks" / notebook.name).resolve()
    return found
