"""The notebooks as they are saved: run, whole, readable without a kernel, and leading from one to the next."""

from __future__ import annotations

import getpass
import re
import socket
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
BOOKS = sorted(FOLDER.glob("*.ipynb"))
COUNT = 11
#: Words of prose: half of what the notebooks had when they explained before they showed.
MOST_WORDS = 440
WIDGET = "application/vnd.jupyter.widget-view+json"
WIDGETS = re.compile(r"\.(tune|explore|calibration_panel|guide)\(")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="there are no notebooks beside this installation")


@pytest.fixture(params=BOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def book(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(book: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in book.cells if cell.cell_type == "code"]


def text(book: nbformat.NotebookNode) -> str:
    return "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")


def kinds(book: nbformat.NotebookNode) -> list[set[str]]:
    return [set(output.data) for cell in code(book) for output in cell.outputs if "data" in output]


def test_the_numbers_are_complete() -> None:
    assert [path.name[:3] for path in BOOKS] == [f"{i:02d}_" for i in range(1, COUNT + 1)]


def test_the_readme_lists_them_all() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+\.ipynb)\)", readme)
    assert links == [path.name for path in BOOKS]


def test_it_is_a_valid_notebook(book: nbformat.NotebookNode) -> None:
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    assert "widgets" not in book.metadata


def test_every_cell_was_run_in_order_without_errors(book: nbformat.NotebookNode) -> None:
    assert [cell.execution_count for cell in code(book)] == list(range(1, len(code(book)) + 1))
    assert not [output for cell in code(book) for output in cell.outputs if output.output_type == "error"]
    assert all(cell.source.strip() for cell in book.cells)


def test_it_can_be_read_without_running(path: Path, book: nbformat.NotebookNode) -> None:
    found = kinds(book)
    assert any("image/png" in data for data in found)
    assert any("text/html" in data for data in found)
    # what needs a running kernel or changes from run to run is not saved, and pictures are not so large that no host shows them
    assert not any(WIDGET in data for data in found)
    assert path.stat().st_size < 1_000_000
    # bars of progress, and warnings of libraries that a reader could do nothing about
    for cell in code(book):
        for output in cell.outputs:
            assert "it/s]" not in str(output.get("text", ""))
            assert not re.search(
                r"Loading widget|Error displaying widget|FloatProgress|TqdmHBox|HBox\(", str(output.get("data", ""))
            )
            assert "Warning:" not in str(output.get("text", ""))


def test_it_explains_and_leads_on(path: Path, book: nbformat.NotebookNode) -> None:
    number = int(path.name[:2])
    assert book.cells[0].cell_type == "markdown"
    assert book.cells[0].source.startswith(f"# {number}. ")
    last = book.cells[-1]
    assert last.cell_type == "markdown"
    questions, found, onward = last.source.partition("## Next")
    assert found
    assert "## Questions" in questions
    assert len(re.findall(r"^\d+\. .*\?", questions, re.MULTILINE)) >= 2
    links = re.findall(r"\]\(([^)]+)\)", onward)
    assert links
    for link in links:
        assert link.startswith("https://") or (FOLDER / link.partition("#")[0]).exists(), link
    if number < COUNT:
        assert BOOKS[number].name in links
    # a short text before each idea: no long run of code without a word
    run = 0
    for cell in book.cells:
        run = run + 1 if cell.cell_type == "code" else 0
        assert run <= 3, f"more than three cells of code in a row before {cell.source[:40]!r}"


def test_links_lead_somewhere(book: nbformat.NotebookNode) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", text(book)):
        assert link.startswith(("https://", "#")) or (FOLDER / link.partition("#")[0]).exists(), link


def test_it_shows_before_it_explains(book: nbformat.NotebookNode) -> None:
    """A picture by cell 3, a widget to answer questions with in the first half, and few words."""
    pictures = [
        at
        for at, cell in enumerate(book.cells)
        if any("image/png" in output.get("data", {}) for output in cell.get("outputs", []))
    ]
    assert pictures[0] <= 3
    widgets = [at for at, cell in enumerate(book.cells) if cell.cell_type == "code" and WIDGETS.search(cell.source)]
    assert widgets[0] <= len(book.cells) / 2
    assert len(text(book).split()) <= MOST_WORDS


def test_the_first_has_a_widget_on_the_first_screen() -> None:
    """What a network makes of images, then the tuner on the worst weight."""
    first = nbformat.read(BOOKS[0], as_version=4)
    shown = [cell for cell in first.cells[:4] if cell.cell_type == "code"]
    assert "image/png" in shown[0].outputs[0].data
    assert ".tune(" in shown[1].source
    assert sum(cell.source.count("\n") + 1 for cell in first.cells[:4]) < 30


def test_it_tells_nothing_of_the_machine(path: Path) -> None:
    content = path.read_text(encoding="utf-8")
    pictureless = re.sub(r'"image/png": "[^"]*"', "", content)
    for place in (r"/home/", r"/root/", r"/tmp/", r"/work/", r"/Users/", r"[A-Z]:\\\\", r"site-packages", r"\.venv"):
        assert not re.search(place, pictureless), place
    for name in {socket.gethostname(), getpass.getuser()} - {"root", "localhost", "user"}:
        assert not re.search(rf"\b{re.escape(name)}\b", pictureless), name


def test_most_outputs_are_compared(book: nbformat.NotebookNode) -> None:
    tags = [cell.metadata.get("tags", []) for cell in code(book)]
    ignored = sum("nbval-ignore-output" in of for of in tags) + sum("NBVAL_IGNORE_OUTPUT" in cell.source for cell in code(book))
    assert ignored < len(tags) / 2
    assert not any("nbval-skip" in of or "raises-exception" in of for of in tags)
    # those that show a widget cannot be compared; the others say why in the text before them
    compared = [cell for cell, of in zip(code(book), tags, strict=True) if "nbval-ignore-output" not in of]
    assert any(cell.outputs for cell in compared)
