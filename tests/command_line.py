"""A command line as a user calls it."""

from __future__ import annotations

import logging
import sys

import pytest
from typer.testing import CliRunner

from qkit import cli


def called(*arguments: str, columns: int = 400) -> tuple[int, str, str]:
    """Run ``qkit`` with these arguments; returns exit code, standard output and standard error."""
    root = logging.getLogger()
    handlers, path = list(root.handlers), list(sys.path)
    root.handlers[:] = []  # pytest's would keep the command from making its own
    try:
        with pytest.MonkeyPatch.context() as patch, CliRunner().isolation() as streams:
            patch.setattr(sys, "argv", ["qkit", *arguments])
            patch.setenv("COLUMNS", str(columns))
            try:
                cli.main()
                code = 0
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            sys.stdout.flush()
            sys.stderr.flush()
            return code, *(stream.getvalue().decode() for stream in streams[:2])  # type: ignore[return-value]
    finally:
        root.handlers[:], sys.path[:] = handlers, path
