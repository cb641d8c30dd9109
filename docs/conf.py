"""Sphinx's settings. ``make docs`` builds the site into out/docs, without network, with warnings as errors."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from qkit.version import __version__

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from sitetools import commands, notebooks, readmes, reference  # noqa: E402

project = "qkit"
author = "The qkit authors"
copyright = author  # noqa: A001
version = release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton", "sitetools.formulas"]
exclude_patterns = ["sitetools", "widgets/*", "causes/*", "generated/parts/*"]
nitpicky = False
default_role = "py:obj"

html_theme = "furo"
html_title = f"qkit {release}"
html_static_path = ["_static"]
html_css_files = ["qkit.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {
    "sidebar_hide_name": False,
    "light_css_variables": {"color-brand-primary": "#0f5f96", "color-brand-content": "#0f5f96"},
    "dark_css_variables": {"color-brand-primary": "#5cb3ea", "color-brand-content": "#5cb3ea"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"

# notebooks are shown as they were saved, never run
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_inline"]
myst_heading_anchors = 3
# notebooks begin their cells at whatever level reads best
suppress_warnings = ["myst.header"]

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
maximum_signature_line_length = 88
napoleon_google_docstring = False
napoleon_numpy_docstring = True
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"


def _generate() -> None:
    root, docs = HERE.parent.resolve(), HERE.resolve()
    moved = readmes.moves(root, docs)
    made = readmes.texts(root, docs)
    made |= {docs / "generated" / "reference" / name: text for name, text in reference.texts().items()}
    made |= {docs / "notebooks" / n: text for n, text in notebooks.copies(root / "notebooks", docs / "notebooks", moved).items()}
    made[docs / "generated" / "commands.md"] = commands.page()
    made[docs / "generated" / "parts" / "pages.md"] = _listed(
        "report" if (docs / "report.md").is_file() else "", "widgets", "traces"
    )
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        # only what changed, so that Sphinx reads again only what is new
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for folder in ("generated", "notebooks"):
        for path in set((docs / folder).rglob("*.*")) - set(made):
            path.unlink()


def _listed(*names: str) -> str:
    """A part of the table of contents: the pages that there are."""
    return "\n".join(["```{toctree}", ":hidden:", ":caption: Look up", "", "reference/index", *filter(None, names), "```", ""])


def _without_types(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """A comment on an attribute is a sentence: what stands before its colon is no type."""
    if what == "attribute":
        lines[:] = [line.replace(": ", " – ", 1) for line in lines]


def setup(app: Any) -> None:
    """Sphinx's hook; before napoleon reads the docstrings."""
    app.connect("autodoc-process-docstring", _without_types, priority=100)


_generate()
