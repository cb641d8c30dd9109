"""Whether a remedy survives its export: the plan as an ONNX file, run by ONNX Runtime where that is installed.

A plan that scores well in the simulation is worth nothing if the file that carries it computes something else: biases that its
integers do not hold, grids that the format cannot carry. So what is offered is written, run on a few samples, and its score
compared with the simulation's on the same samples.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qkit.errors import QkitError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.metrics import score_batch
from qkit.execution.statistics import Interval, Samples, gain
from qkit.graph.structures import map_tensors
from qkit.quant.plan import Plan
from qkit.style import Units

if TYPE_CHECKING:
    from qkit.engines.onnx.exporting import Programs
    from qkit.study import Study

#: Samples from which on no further batch is run.
_ENOUGH = 64
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Survival:
    """What became of one remedy, or of all together, in an exported file.

    Attributes
    ----------
    remedy
        "kind at layer", or "all remedies".
    engine
        Name and version.
    survives
        Whether the file scores as the simulation does, within the tolerance and chance; False where it cannot be written or run.
    samples
        That both were scored on; 0 where the file could not be run.
    lost
        What the file loses against the simulation, expected on many samples; None where it could not be run.
    reason
        Why it could not be written or run; "" where it was.
    """

    remedy: str
    engine: str
    survives: bool
    samples: int
    lost: Interval | None
    reason: str = ""

    def said(self, units: Units) -> str:
        """The outcome in a sentence."""
        if self.lost is None:
            return f"Not checked in {self.engine}: {self.remedy} cannot be exported: {self.reason}"
        if self.survives:
            return f"Checked in {self.engine} on {self.samples} samples: exported, {self.remedy} scores as in the simulation."
        lost = units.amount(self.lost.value, self.lost.low, self.lost.high)
        return (
            f"Does not survive the export: in {self.engine} {self.remedy} loses {lost} against the simulation, on {self.samples} "
            "samples. Compare the file with the simulation layer by layer: study.diagnose(engine=…)."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        return {
            "remedy": self.remedy, "engine": self.engine, "survives": self.survives, "samples": self.samples,
            "lost": None if self.lost is None else self.lost.to_dict(), "reason": self.reason,
        }  # fmt: skip


def installed() -> str:
    """Name and version of the engine that exports are checked on; "" where it, or what writes the files, is not installed."""
    if any(importlib.util.find_spec(package) is None for package in _PACKAGES):
        return ""
    return f"ONNX Runtime {importlib.metadata.version('onnxruntime')}"


def check_exports(study: Study, plans: Mapping[str, Plan], *, tolerance: float) -> list[Survival]:
    """Every plan, by what it is called in sentences, exported and scored beside its simulation.

    Where one does not survive, the study's own plan is put to the same, since what that loses too is no fault of a remedy.
    Nothing where no engine is installed. Takes an export and some 64 samples a plan.
    """
    engine = installed()
    if not engine:
        return []
    programs: Programs = {}
    found = [_check(study, name, plan, engine, tolerance, programs) for name, plan in plans.items()]
    if all(one.survives for one in found):
        return found
    return [*found, _check(study, "the plan as it is", study.plan, engine, tolerance, programs)]


def _check(study: Study, name: str, plan: Plan, engine: str, tolerance: float, programs: Programs) -> Survival:
    from qkit.engines.onnx import export, lane

    if plan.factors:  # it is of another model
        study = study.with_plan(plan)
        plan = study.plan
    exact: list[Samples] = []
    simulated: list[Samples] = []
    exported: list[Samples] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "remedy.onnx"
        try:
            export(study, plan, path, programs=programs)
            # a processor that saturates sums of 8-bit products is no fault of the plan
            with lane(path, taps=None, precise=True) as file:
                for made in file.run(study.evaluation):
                    batch = made.batch
                    outputs = run_lanes(study.graph, [Lane("float"), Lane("plan", plan)], batch.inputs)
                    there = map_tensors(made.outputs, lambda x: x.to(study.graph.device))
                    for found, output in ((exact, outputs["float"]), (simulated, outputs["plan"]), (exported, there)):
                        found.append(score_batch(study.metric, output, batch.targets, outputs["float"], batch.size))
                    if sum(map(len, exact)) >= _ENOUGH:
                        break
        except (QkitError, RuntimeError) as error:
            return Survival(name, engine, survives=False, samples=0, lost=None, reason=str(error))
    first, second, third = map(Samples.joined, (simulated, exported, exact))
    lost = gain(first, second, third)
    return Survival(name, engine, survives=not lost.above(tolerance), samples=len(first), lost=lost)
