"""Studies that the ONNX tests share: the small network of all kinds of steps, and mixed plans."""

from __future__ import annotations

from pathlib import Path

import torch
from small_networks import mixed_network

import qkit
from qkit.engines.onnx.exporting import export
from qkit.engines.onnx.runtime import OnnxLane, lane
from qkit.quant.plan import Plan

SCHEMES = ("int8", "int8-per-tensor", "int16", "mixed")


def small_study(scheme: str = "int8") -> qkit.Study:
    """`Mixed` on noise; its score is agreement with float."""
    generator = torch.Generator().manual_seed(3)
    batches = [torch.randn(16, 3, 16, 16, generator=generator) for _ in range(3)]
    return qkit.Study(mixed_network(), batches[:2], batches, scheme=scheme)


def plan_of(study: qkit.Study, scheme: str) -> Plan:
    """The study's plan at that scheme; "mixed": int8 with every third layer in 16 bits."""
    if scheme != "mixed":
        return study.plan if study.scheme.name == scheme else study.with_scheme(scheme).plan
    wide = study.lane("int16")
    chosen = study.graph.taps[1::3]
    names = {*chosen, *(study.graph.operation(tap).weight for tap in chosen)}
    return study.plan.with_grids({name: wide.grids[name] for name in names if name in wide.grids})


def exported(study: qkit.Study, scheme: str, folder: Path, **how: object) -> OnnxLane:
    """The plan, written and taken as a lane."""
    path = folder / f"{scheme}.onnx"
    export(study, plan_of(study, scheme), path, **how)  # type: ignore[arg-type]
    return lane(path, graph=study.graph, precise=True)
