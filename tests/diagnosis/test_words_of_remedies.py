"""A remedy's words are its effect: what clips narrows a range, what widens a range widens it."""

from __future__ import annotations

import pytest

import qkit
from qkit import zoo
from qkit.diagnosis.causes import candidates
from qkit.diagnosis.experiments import Bench
from qkit.diagnosis.localize import subjects


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["int8", "int8-per-tensor", "int8-symmetric"])
def test_clips_narrow_and_widening_widens(scheme: str) -> None:
    case = zoo.load("resnet_small")
    study = qkit.Study(case.model, case.calibration, case.evaluation, scheme=scheme)
    seen = set()
    for method, percentile in (("percentile", 90.0), ("percentile", 95.0), ("percentile", 99.9), ("minmax", 99.99)):
        plan = study.calibrate(method, percentile=percentile, progress=False)
        for tensor, subject in subjects(Bench(study, 1, progress=False), plan).items():
            for found in candidates(subject):
                kind = found.remedy.kind
                seen.add((percentile, kind))
                for name, grid in found.remedy.grids.items():
                    old, new = plan.grids[name].params, grid.params
                    step = 1.01 * float(old.scale.max().maximum(new.scale.max()))
                    if kind.startswith("clip-"):
                        assert bool((new.lo >= old.lo - step).all() and (new.hi <= old.hi + step).all()), (tensor, name)
                        assert bool(((new.hi - new.lo) < (old.hi - old.lo)).any()), (tensor, name)
                    if kind == "widen-range":
                        assert bool((new.lo <= old.lo + step).all() and (new.hi >= old.hi - step).all()), (tensor, name)
                        assert bool(((new.hi - new.lo) > (old.hi - old.lo)).any()), (tensor, name)
    assert (90.0, "widen-range") in seen
    assert (90.0, "clip-activation") not in seen
