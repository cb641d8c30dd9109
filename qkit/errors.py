"""What qkit raises: one sentence that names the thing, what was found, and what to do about it."""

from __future__ import annotations


class QkitError(Exception):
    """Base of every error that qkit raises on purpose."""


class DataError(QkitError):
    """A batch, a loader or a tensor is not what it has to be (empty, non-finite, wrong shape, dtype or device)."""


class GraphError(QkitError):
    """The model cannot be turned into a graph; `file` and `line` point at the user's code where that is known."""

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.line = line


class PlanError(QkitError):
    """A plan, a range or a grid is missing, corrupt, or does not fit the graph."""


class WorkersError(QkitError):
    """An executor's workers cannot do what they are asked for: lost, shut down, or unable to read what is sent to them."""


class MissingExtra(QkitError):  # noqa: N818  # reads best where it is raised
    """An optional package is needed; the message says which extra installs it."""


def installing(extra: str) -> str:
    """How to get an extra. The kit is installed from a clone: what the package index calls qkit is another project."""
    return f"in your clone of qkit, pip install '.[{extra}]'"
