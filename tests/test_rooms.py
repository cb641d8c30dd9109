"""Imports follow the layers in pyproject.toml, those inside functions too, and no circle is larger than a pair of files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
grimp = pytest.importorskip("grimp", reason="import-linter is not installed")


def circles(graph) -> list[set[str]]:
    """Modules that reach each other, more than one at a time."""
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    names = sorted(graph.modules)
    place = {name: i for i, name in enumerate(names)}
    arrows = [(place[a], place[b]) for a in names for b in graph.find_modules_directly_imported_by(a)]
    matrix = csr_array((np.ones(len(arrows)), tuple(zip(*arrows, strict=True))), shape=(len(names), len(names)))
    labels = connected_components(matrix, connection="strong")[1]
    return [{names[i] for i in np.flatnonzero(labels == k)} for k in np.flatnonzero(np.bincount(labels) > 1)]


def test_circles_are_found():
    graph = grimp.ImportGraph()
    for a, b in (("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")):
        for name in (a, b):
            graph.add_module(name)
        graph.add_import(importer=a, imported=b)
    assert circles(graph) == [{"a", "b", "c"}]


def test_no_circle_is_larger_than_a_pair():
    graph = grimp.build_graph("qkit", exclude_type_checking_imports=True, cache_dir=None)
    assert len(graph.modules) > 200
    assert [circle for circle in circles(graph) if len(circle) > 2] == []


def test_arrows_point_down():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout
    assert "2 kept, 0 broken" in ran.stdout
