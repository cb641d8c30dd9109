"""What a report takes from a study and its surroundings, piece by piece as plain data."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from qkit.diagnosis.meanings import VERDICTS
from qkit.diagnosis.verdict import Verdict, amount
from qkit.errors import QkitError
from qkit.execution.capture import Capture
from qkit.execution.loading import batches as batches_of
from qkit.execution.scores import Scores
from qkit.linting import lint
from qkit.linting.finding import where
from qkit.listing import few
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import FLOAT, Plan
from qkit.version import __version__

if TYPE_CHECKING:
    from qkit.diagnosis.answer import Diagnosis
    from qkit.diagnosis.candidates import Cause
    from qkit.engines.tap_comparison import Comparison as EngineComparison
    from qkit.graph import Graph
    from qkit.study import Study

WIDE = "int16"
#: Causes whose remedies are scored alone, the greatest gain first.
MOST_TRIED = 8
#: Engines whose version is said where a study has used them.
ENGINES = ("onnxruntime", "torchao", "ai_edge_litert")


def layers_of(captured: Capture) -> pd.DataFrame:
    """The table of layers, with nullable zero points and the names of the weights."""
    layers = captured.table()
    for column in layers.columns:
        if column[1] == "zero point":
            layers[column] = layers[column].astype("Int64")
    weights = [captured.graph.operation(str(tap)).weight for tap in layers.index]
    layers.insert(2, ("tap", "weight"), pd.Series(weights, index=layers.index, dtype=object))
    return layers


def names_of(graph: Graph, at_target: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """What else the taps are called: the node in the ONNX file, the layer at the target."""
    names = {tap: {"node": graph.nodes.get(tap, ""), "target": at_target.get(tap, "")} for tap in graph.taps}
    return {tap: found for tap, both in names.items() if (found := {key: name for key, name in both.items() if name})}


def verdict_of(verdict: Verdict, diagnosis: Diagnosis | None = None) -> dict[str, Any]:
    """The verdict with what it means and what to do next, which a diagnosis knows better than any rule."""
    words = VERDICTS[verdict.name]
    then = words.then
    if diagnosis is not None and diagnosis.remedies and verdict.name != "no-degradation":
        steps = "; then ".join(f"{remedy.text.rstrip('.')} ({remedy.kind})" for remedy in diagnosis.remedies)
        left = diagnosis.best_loss
        measured = "" if left is None else f" Measured with that: {amount(left, verdict.units)} are still lost."
        then = f"{steps}.{measured} {diagnosis.qat}"
    return verdict.to_dict() | {"headline": words.headline, "meaning": words.meaning, "then": then}


def remarks_of(study: Study, lanes: dict[str, Plan], scores: Scores, captured: Capture, layers: pd.DataFrame) -> list[str]:
    """What a reader of the figures has to know beyond the study's own remarks."""
    remarks = []
    if study.metric_name == "agreement" and not any("agreement" in remark for remark in study.remarks):
        remarks.append("The score is agreement with the float lane, not accuracy: float agrees with itself by definition.")
    remarks += scores.notes
    if captured.samples < scores.n:
        remarks.append(f"Scores are measured on {scores.n} samples, the figures of layers and weights on {captured.samples}.")
    edited = [name for name, grid in study.plan.grids.items() if grid.method == "manual"]
    if edited:
        remarks.append(f"{_named(edited)} edited by hand: save the plan (plan.save) to hand these ranges on.")
    for lane in captured.plans:
        clipped = layers[lane, "clipped"].astype(float)
        much = clipped[clipped > 0.001].sort_values(ascending=False)
        if len(much):
            most = f"most in {much.index[0]} ({100 * much.iloc[0]:.2g} %)"
            count = "1 tensor" if len(much) == 1 else f"{len(much)} tensors"
            remarks.append(f"{lane} clips more than 0.1 % of the elements of {count}, {most}.")
        if bool(np.isinf(layers[lane, "sqnr"].astype(float)).all()):
            remarks.append(f"{lane} equals float exactly in every layer: it quantizes nothing that these data can show.")
    missing = [op.name for op in study.graph.operations if op.quantized and op.name not in study.plan.grids]
    if missing and study.plan != FLOAT:
        remarks.append(f"{_named(missing)} without a grid in the scheme {study.scheme.name!r}: in float by the user's choice.")
    return remarks


def _named(names: list[str]) -> str:
    return f"{few(names)} {'is' if len(names) == 1 else 'are'}"


def environment_of(study: Study) -> dict[str, Any]:
    """Versions and machine; no names of hosts, users or folders."""
    device = study.graph.device
    processor = _processor()
    if device.type == "cuda":
        processor = f"{torch.cuda.get_device_name(device)}, {processor}"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "qkit": __version__,
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pandas": pd.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "platform": " ".join(filter(None, (platform.system(), platform.machine(), *platform.libc_ver()))),
        "processor": processor,
        "device": str(device),
        "threads": torch.get_num_threads(),
        **{engine: importlib.metadata.version(engine) for engine in ENGINES if engine in sys.modules},
    }


def _processor() -> str:
    """The processor's name, where the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown"


def settings_of(study: Study, batches: int | None, layer_samples: int, samples: int) -> dict[str, Any]:
    """Scheme, calibration and amounts of data."""
    method = study.methods
    plan = json.dumps(study.plan.to_dict(), sort_keys=True)
    own, of_file = bool(study.plan.grids), study.has_file_grids
    return {
        "scheme": "the file's grids" if of_file else study.scheme.name,
        "activations": "the file's"
        if of_file
        else _rule(study.scheme.activation) + (f", range by {method.get('method')}" if own else ""),
        "weights": "the file's"
        if of_file
        else _rule(study.scheme.weight) + (f", range by {method.get('weight_method')}" if own else ""),
        "bias": "float" if study.plan.bias_bits is None else f"{study.plan.bias_bits} bits",
        "overrides": len(study.scheme.overrides),
        "metric": study.metric_name,
        "batches": "all" if batches is None else batches,
        "samples": samples,
        "layer samples": layer_samples,
        "plan fingerprint": hashlib.sha256(plan.encode()).hexdigest()[:16],
    }


def _rule(spec: QuantSpec | None) -> str:
    if spec is None:
        return "float"
    words = [
        f"{spec.bits} bits",
        "symmetric" if spec.symmetric else "affine",
        "per channel" if spec.per_channel else "per tensor",
    ]
    return ", ".join([*words, "scales powers of two"] if spec.power_of_two else words)


def plan_of(plan: Plan) -> dict[str, Any]:
    """The plan as `Plan.to_dict` gives it; of weights whose codes were chosen otherwise, a hash stands for the codes."""
    data = plan.to_dict()
    return data | {"grids": _brief(data["grids"])}


def diagnosis_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """The diagnosis as `Diagnosis.to_dict` gives it, its grids as in `plan_of`."""
    data = diagnosis.to_dict()
    for remedy in (*(cause["remedy"] for cause in (*data["causes"], *data["findings"])), *data["remedies"]):
        remedy["grids"] = _brief(remedy["grids"])
    return data


def _brief(grids: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Grids with the shortest decimals that are the same float32, and codes as a hash."""
    brief = {}
    for name, grid in grids.items():
        scale = grid["scale"]
        short = [float(str(np.float32(x))) for x in scale] if isinstance(scale, list) else float(str(np.float32(scale)))
        brief[name] = {**grid, "scale": short}
        if "codes" in grid:
            digest = hashlib.sha256(grid["codes"]["int32"].encode()).hexdigest()[:16]
            brief[name]["codes"] = {"shape": grid["codes"]["shape"], "sha256": digest}
    return brief


def lint_of(study: Study) -> dict[str, Any] | str:
    """What lint says of the study's model, without folders; why not, where it cannot look."""
    batch = next(iter(batches_of(study.evaluation)))
    inputs = tuple(x[:1] if isinstance(x, torch.Tensor) and x.ndim else x for x in batch.inputs)
    try:
        found = lint(study.model, inputs, leaf_modules=study.graph.leaf_modules)
    except QkitError as error:
        return without_folders(str(error))
    data = found.to_dict()
    for entry, finding in zip(data["findings"], found.findings, strict=True):
        place = where(finding)
        # a path inside the working directory or an installed package says where; others would tell of the machine
        entry["file"] = None if finding.file is None else place.rpartition(":")[0]
        if entry["file"] is not None:
            packages = entry["file"].replace("\\", "/").rpartition("site-packages/")[2]
            entry["file"] = Path(packages).name if Path(packages).is_absolute() else packages
        entry |= {key: without_folders(entry[key]) for key in ("message", "cure")}
    data["remarks"] = [without_folders(remark) for remark in data["remarks"]]
    return data


def without_folders(text: str) -> str:
    """The text without the folders of this machine that are known."""
    folders = {str(Path.cwd()), str(Path.home()), tempfile.gettempdir(), sys.prefix, sysconfig.get_path("purelib")}
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(folder + "/", "…/").replace(folder, "…")
    return text


def strip(value: Any) -> Any:
    """Nested plain data, `without_folders` in all its strings."""
    if isinstance(value, str):
        return without_folders(value)
    if isinstance(value, Mapping):
        return {without_folders(str(k)): strip(v) for k, v in value.items()}
    return [strip(v) for v in value] if isinstance(value, (list, tuple)) else value


def tried_of(study: Study, diagnosis: Diagnosis, batches: int | None, *, progress: bool) -> list[dict[str, Any]]:
    """The remedies put to the report's own samples: each confirmed cause's alone, then all that were combined, in order.

    ``score`` is the score with the remedy, ``gain`` its paired change, ``loss`` what is then lost against float.
    """
    plans: dict[str, Plan] = {}
    rows: list[dict[str, Any]] = []

    def row(what: str, cause: Cause | None, text: str, plan: Plan) -> None:
        name = f"remedy {len(rows)}"
        plans[name] = plan
        kind, layer, remedy = ("", "", "") if cause is None else (cause.kind, cause.layer, cause.remedy.kind)
        rows.append({"what": what, "cause": kind, "layer": layer, "remedy": remedy, "text": text, "name": name})

    for cause in diagnosis.causes[:MOST_TRIED]:
        if cause.remedy.changes:
            row("alone", cause, cause.remedy.text, cause.remedy.plan(study.plan))
    if diagnosis.best is not None and diagnosis.remedies:
        operations = [f"{r.kind} at {r.layer}" if r.layer else f"{r.kind} everywhere" for r in diagnosis.remedies]
        row("all", None, ", then ".join(operations), diagnosis.best)
    if not rows:
        return []
    scores = study.evaluate({"float": FLOAT, "before": study.plan, **plans}, batches=batches, progress=progress)
    for entry in rows:
        name = entry.pop("name")
        entry["before"] = scores["before"].to_dict()
        entry["score"] = scores[name].to_dict()
        entry["gain"] = scores.loss("before", against=name).to_dict()
        entry["loss"] = scores.loss(name).to_dict()
    return rows


def engine_of(comparison: EngineComparison) -> dict[str, Any]:
    """An engine's comparison with the simulation, and its answer in words."""
    return dict(strip({"summary": comparison.summary, **comparison.to_dict()}))
