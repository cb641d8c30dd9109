"""``--workers`` and ``--dask``: the same results from other processes."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
from command_cases import OWN, Run

QUICK = ("--no-diagnose", "--batches", "2")


def told(data: Run, *arguments: str) -> dict[str, Any]:
    code, found = data(*arguments)
    assert code == 0
    return {key: value for key, value in found.items() if key not in ("seconds", "reports")}


def test_a_report_by_two_processes_is_the_report_of_one(data: Run) -> None:
    one = told(data, "report", *OWN, *QUICK, "--threads", "1", "--out", "one.json")
    assert told(data, "report", *OWN, *QUICK, "--threads", "1", "--out", "two.json", "--workers", "2") == one


@pytest.mark.slow
def test_a_diagnosis_on_a_dask_cluster_is_that_of_one_process(data: Run) -> None:
    distributed = pytest.importorskip("distributed")
    one = told(data, "diagnose", *OWN, "--threads", "1")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        assert told(data, "diagnose", *OWN, "--threads", "1", "--dask", cluster.scheduler_address) == one


#: Evaluation data that press Ctrl-C in the command's process, once, when a worker reads the third batch.
PRESSING = """
import os, signal, usernet

class Pressing:
    def __init__(self):
        self.home = os.getpid()
    def __len__(self):
        return 4
    def __iter__(self):
        for number, pair in enumerate(usernet.loaders()[1]):
            if number == 2 and os.getpid() != self.home:
                try:
                    open("pressed", "x").close()
                    os.kill(self.home, signal.SIGINT)
                except FileExistsError:
                    pass
            yield pair

def loaders():
    return usernet.loaders()[0], Pressing()
"""


@pytest.mark.slow
def test_an_interrupt_ends_a_command_and_its_workers(run: Run, folder: Path) -> None:
    (folder / "pressing.py").write_text(PRESSING)
    code, _, _ = run("report", "--model", "usernet:make", "--data", "pressing:loaders", "--workers", "2", "--out", "r.json")
    assert code == 130
    assert (folder / "pressed").exists()
    assert not multiprocessing.active_children()
    sys.modules.pop("pressing", None)


def test_two_kinds_of_workers_are_one_too_many(run: Run) -> None:
    code, out, said = run("diagnose", *OWN, "--workers", "2", "--dask", "tcp://127.0.0.1:1")
    assert (code, out) == (2, "")
    assert "--dask" in said
