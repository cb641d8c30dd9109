"""The arithmetic of what workers come to on paper, on cases that can be told by head."""

from __future__ import annotations

import pytest

from benchmarks.workers import Pieces, on_paper

NOTHING = Pieces(0, 0, 0, 0.0, 0.0, 0.0, 0.0, 0.0)
#: 100 batches, each computed in a second.
CASE = {"images": 1000, "batch": 10, "passes": 10.0, "float_pass": 0.1, "wire": 1e9}


def test_without_anything_beside_the_computing_gpus_multiply() -> None:
    for gpus, seconds in ((1, 100.0), (4, 25.0), (8, 13.0)):  # 100 batches are 13 on the busiest of 8
        assert on_paper(NOTHING, gpus=gpus, each=1, reading=0.0, **CASE).shared == pytest.approx(seconds)


def test_reading_in_line_counts_and_a_second_worker_hides_it() -> None:
    # half a second of reading a batch
    assert on_paper(NOTHING, gpus=1, each=1, reading=0.05, **CASE).shared == pytest.approx(0.5 + 150.0)
    assert on_paper(NOTHING, gpus=1, each=2, reading=0.05, **CASE).shared == pytest.approx(0.5 + 100.0)
    # two seconds: two workers do not hide all of it
    assert on_paper(NOTHING, gpus=1, each=2, reading=0.2, **CASE).shared == pytest.approx(2.0 + 150.0)


def test_sending_the_study_and_giving_out_tasks_count() -> None:
    sent = Pieces(10**9, 0, 0, 1.0, 2.0, 0.0, 0.0, 0.0)
    found = on_paper(sent, gpus=4, each=1, reading=0.0, **CASE)
    assert (found.start, found.shared) == (pytest.approx(7.0), pytest.approx(32.0))
    slow = Pieces(0, 0, 0, 0.0, 0.0, 0.0, 1.0, 0.0)
    assert on_paper(slow, gpus=8, each=1, reading=0.0, **CASE).shared == pytest.approx(100.0)
