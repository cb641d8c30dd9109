"""Run the notebooks and save them with their outputs: ``python notebooks/execute.py [NAME …]``.

Saved are texts, tables and pictures. Not saved are times of execution, versions of the interpreter, and what needs a running
kernel: of a widget the picture and the table that stand in for it stay.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
#: A code host shows no notebook that is much larger.
MOST_BYTES = 1_000_000
_WIDGET = "application/vnd.jupyter.widget-view+json"


def execute(path: Path) -> float:
    """Run a notebook in a kernel of its own and save it; returns the seconds that took.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        If a cell fails; the file is left as it was.
    """
    book = nbformat.read(path, as_version=4)
    start = time.monotonic()
    NotebookClient(
        book, timeout=600, kernel_name="python3", record_timing=False, store_widget_state=False, coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()  # fmt: skip
    seconds = time.monotonic() - start
    clean(book)
    text = nbformat.writes(book) + "\n"
    if len(text) > MOST_BYTES:
        raise SystemExit(
            f"{path.name} would be {len(text):,} bytes, more than {MOST_BYTES:,}: show smaller pictures, shorter tables."
        )
    path.write_text(text, encoding="utf-8")
    return seconds


def clean(book: nbformat.NotebookNode) -> None:
    """Take out of a notebook that was run what differs from run to run or cannot be shown without a kernel."""
    book.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(book.cells):
        cell.id = f"cell-{number:02d}"
        # "jupyter" holds whether the cell is folded
        cell.metadata = nbformat.from_dict({key: cell.metadata[key] for key in ("tags", "jupyter") if cell.metadata.get(key)})
        if cell.cell_type != "code":
            continue
        for output in cell.outputs:
            output.get("data", {}).pop(_WIDGET, None)
        cell.outputs = [o for o in cell.outputs if o.output_type not in ("display_data", "execute_result") or o.data]


def main(names: list[str]) -> None:
    """Run those notebooks, or all, one after the other."""
    # bars of progress would be saved as they stood
    os.environ["QKIT_PROGRESS"] = "0"
    books = sorted(FOLDER.glob("[0-9]*.ipynb"))
    chosen = [book for book in books if not names or any(book.name.startswith(Path(name).stem) for name in names)]
    if not chosen:
        raise SystemExit(f"there is no notebook {', '.join(names)}; there are {', '.join(book.stem for book in books)}.")
    for book in chosen:
        print(f"{book.name}: {execute(book):.0f} s, {book.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
