"""A study: model, data, metric, scheme and current plan together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from qkit.calibration import check_weights, make_plan, observe, saturations
from qkit.capture import MEMORY_BUDGET, Capture, capture
from qkit.diagnosis.verdict import TOLERANCE, Verdict, judge
from qkit.errors import DataError, QkitError
from qkit.estimators import Observation
from qkit.graph import Graph, build
from qkit.lanes import Lane, run_lanes
from qkit.loading import batches
from qkit.metrics import Interval, MetricFunction, Scores, mean_interval, score_batch
from qkit.plan import FLOAT, Plan
from qkit.progress import track
from qkit.rescore import Effect, Prefix, agree, first_difference, prefix
from qkit.schemes import PRESETS, Scheme, scheme_of
from qkit.sensitivity import Mode, Sensitivity, sweep

if TYPE_CHECKING:
    from qkit.diagnosis.remedies import Remedy
    from qkit.diagnosis.result import Diagnosis
    from qkit.engines.lane import EngineLane
    from qkit.engines.onnx_export import Exported
    from qkit.mixed import Mixed
    from qkit.ptc import Treatment
    from qkit.report import Report
    from qkit.widgets import CalibrationPanel, Explorer, Guide, Tuner

logger = logging.getLogger(__name__)

Lanes = Sequence[str] | Mapping[str, Plan]

#: The folded graph may differ from the model by this much, relative to the output's greatest magnitude.
DEVIATION = 1e-4


class Study:
    """One model under one scheme on given data.

    Parameters
    ----------
    model
        Trained, float32. It is copied: mode, weights and hooks stay as they are.
    calibration
        Iterable of batches (inputs, or pairs with targets) from which ranges are observed; can be iterated repeatedly.
    evaluation
        Iterable of batches to score on. Without it the calibration data serve, which is said, since figures then are
        measured on the data that the ranges were fitted to.
    metric
        "top1", "top5", "agreement", or a function ``(outputs, targets) -> scores per sample``, higher is better. By
        default top-1 where the evaluation data have targets, else agreement with the float lane, which is said.
    scheme
        A preset's name or a `Scheme`.
    expected
        The float score that the user believes in.
    device
        Where to run; the model's own by default.
    leaf_modules
        Module classes or paths to keep out of the trace.

    Raises
    ------
    GraphError, DataError, PlanError
        If the model cannot be traced, the data do not fit, or the scheme is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        calibration: Iterable[Any],
        evaluation: Iterable[Any] | None = None,
        *,
        metric: str | MetricFunction | None = None,
        scheme: str | Scheme = "int8",
        expected: float | None = None,
        device: torch.device | str | None = None,
        leaf_modules: Iterable[type[nn.Module] | str] = (),
    ) -> None:
        self.scheme = scheme_of(scheme)
        self.expected = expected
        self.calibration = calibration
        self.evaluation = calibration if evaluation is None else evaluation
        self._remarks: tuple[str, ...] = ()
        first = next(iter(batches(self.evaluation)), None)
        example = next(iter(batches(calibration)), None)
        if first is None or example is None:
            which = "evaluation" if example is not None else "calibration"
            raise DataError(f"the {which} loader gave no batch: pass at least one.")
        if evaluation is None:
            self._remark(
                "There are no evaluation data: scores are measured on the calibration data, to which the ranges are fitted."
            )
        if metric is None:
            metric = "top1" if first.targets is not None else "agreement"
            if metric == "agreement":
                self._remark("The data have no targets: the score is agreement with the float lane, not accuracy.")
        self.metric = metric
        self.model = model
        if isinstance(model, nn.Module) and model.training:
            self._remark("The model was handed over in training mode; it is analysed in evaluation mode.")
        self.graph: Graph = build(model, example.inputs, device=device, leaf_modules=leaf_modules)
        try:
            check_weights(self.graph)
        except DataError as error:
            self._remark(f"{error} Nothing can be calibrated or scored; study.diagnose() says where it comes from.")
        if self.graph.deviation > DEVIATION:
            self._remark(
                f"The folded graph differs from the model by {self.graph.deviation:.1e} relative: distrust it until you know why."
            )
        floats = [step.name for step in self.graph.steps if step.kind == "float"]
        if floats:
            named = ", ".join(floats[:4]) + (f" and {len(floats) - 4} more" if len(floats) > 4 else "")
            self._remark(f"{len(floats)} operations stay float in every lane: {named}; study.graph.notes says why.")
        self._observed: dict[str, Observation] = {}
        #: How the current plan's ranges were chosen: the arguments of `calibrate`.
        self.methods: dict[str, Any] = {}
        self._plans: dict[str, Plan] = {}
        self._cache: dict[tuple[Plan, int | None], np.ndarray] = {}
        self._prefix: tuple[Prefix, int | None] | None = None
        self._plan: Plan | None = None
        #: What `ptc` did to arrive at this study; None where it comes from elsewhere.
        self.treatment: Treatment | None = None

    def _remark(self, text: str) -> None:
        self._remarks = (*self._remarks, text)
        logger.warning("%s", text)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the figures has to know: about data and model, and about the current plan."""
        saturated = {} if self._plan is None else saturations(self.graph, self._plan)
        if not saturated:
            return self._remarks
        named = ", ".join(list(saturated)[:4]) + (f" and {len(saturated) - 4} more" if len(saturated) > 4 else "")
        bits = self.plan.bias_bits
        return (*self._remarks, f"Biases saturate at {bits} bits in {named}: {sum(saturated.values())} in all.")

    @property
    def plan(self) -> Plan:
        """The current plan; calibrates with the defaults on first use."""
        if self._plan is None:
            self.calibrate()
        assert self._plan is not None
        return self._plan

    @property
    def metric_name(self) -> str:
        """Name of the score."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")

    def observe(self, *, batches: int | None = None, progress: bool = True) -> Mapping[str, Observation]:
        """Histograms of every tap on the calibration data: one float pass, kept for all later calibrations."""
        if not self._observed or batches is not None:
            check_weights(self.graph)
            seen = observe(self.graph, self.calibration, limit=batches, progress=progress)
            self._observed.clear()
            self._observed.update(seen)
        return self._observed

    def calibrate(
        self,
        method: str = "mse",
        *,
        weight_method: str = "minmax",
        percentile: float = 99.99,
        methods: Mapping[str, str] | None = None,
        batches: int | None = None,
        progress: bool = True,
    ) -> Plan:
        """Choose every range from the observed histograms, make the result the current plan, and return it.

        Parameters
        ----------
        method, weight_method
            Estimators of activations and weights: "minmax", "moving-average", "percentile", "mse", "entropy".
        percentile
            For the method of that name.
        methods
            Estimators by tap or weight name, which win over the general ones.
        batches
            Observe anew, on so many batches; by default all, once.
        """
        settings = {"method": method, "weight_method": weight_method, "percentile": percentile, "methods": methods}
        seen = self.observe(batches=batches, progress=progress)
        plan = make_plan(self.graph, seen, self.scheme, **settings)  # type: ignore[arg-type]
        self.methods, self._plan, self._plans, self._prefix = settings, plan, {}, None
        for remark in self.remarks[len(self._remarks) :]:
            logger.warning("%s", remark)
        return plan

    def with_plan(self, plan: Plan) -> Study:
        """A new study with that plan; it shares the histograms and scores that this one has."""
        for name in plan.grids:
            self.graph.step(name)
        self.plan  # noqa: B018  # calibrates, so that both agree on the method of the other widths
        other = self._copy()
        other._plan = plan
        return other

    def with_scheme(self, scheme: str | Scheme) -> Study:
        """A new study under that scheme, calibrated by the same methods; it shares the histograms and scores of this one."""
        return self.with_calibration(scheme=scheme)

    def with_calibration(
        self, *, scheme: str | Scheme | None = None, observed: Mapping[str, Observation] | None = None, **methods: Any
    ) -> Study:
        """A new study whose ranges are chosen otherwise; it shares the scores of this one.

        Parameters
        ----------
        scheme
            Another one; by default this study's.
        observed
            What `qkit.calibration.observe` saw, on other data or fewer batches; by default what this study saw.
        methods
            Arguments of `calibrate` that are to differ: ``method``, ``weight_method``, ``percentile``, ``methods``.
        """
        self.plan  # noqa: B018  # calibrates
        unknown = sorted(set(methods) - set(self.methods))
        if unknown:
            raise QkitError(f"there is no setting {', '.join(unknown)}; the settings are {', '.join(self.methods)}.")
        other = self._copy()
        other.scheme, other._plans = self.scheme if scheme is None else scheme_of(scheme), {}
        other.methods = {**self.methods, **methods}
        if observed is not None:
            if not observed:
                raise DataError("nothing was observed: pass what qkit.calibration.observe() gave.")
            other._observed = dict(observed)
        other._plan = make_plan(self.graph, other.observe(), other.scheme, **other.methods)
        return other

    def with_model(self, model: nn.Module, *, expected: float | None = None) -> Study:
        """A new study of another model with the same data, metric and scheme, calibrated by the same methods.

        Parameters
        ----------
        expected
            The float score that is believed of it; this study's by default.
        """
        self.plan  # noqa: B018  # calibrates, so that there are methods
        other = Study(
            model,
            self.calibration,
            None if self.evaluation is self.calibration else self.evaluation,
            metric=self.metric,
            scheme=self.scheme,
            expected=self.expected if expected is None else expected,
            device=self.graph.device,
            leaf_modules=self.graph.leaf_modules,
        )
        other.calibrate(**self.methods)
        return other

    def _copy(self) -> Study:
        other = object.__new__(Study)
        other.__dict__.update(self.__dict__)
        other._prefix = other.treatment = None
        return other

    @property
    def _width(self) -> int | None:
        """Bits of the scheme, of the narrower ones where weights and activations differ."""
        return min((spec.bits for spec in (self.scheme.weight, self.scheme.activation) if spec is not None), default=None)

    @property
    def narrow(self) -> str:
        """Name of the lane that is compared with 16 bits: the study's own, such as "int8", or that at 8 bits where it is wide."""
        return f"int{self._width}" if self._width is not None and self._width < 16 else "int8"

    def lane(self, name: str) -> Plan:
        """The plan of a lane by name: "float", the study's own at its narrowest width ("int8"), its scheme at another width
        ("int16", "int4"), or a preset's name.

        Raises
        ------
        QkitError
            If there is no such lane.
        """
        if name == "float":
            return FLOAT
        if name in (self.scheme.name, f"int{self._width}"):
            return self.plan
        if name not in self._plans:
            if name.startswith("int") and name[3:].isdigit():
                scheme = self.scheme.at_bits(int(name[3:]), name)
            elif name in PRESETS:
                scheme = PRESETS[name]
            else:
                raise QkitError(
                    f"there is no lane {name!r}; use 'float', 'int<bits>', a preset ({', '.join(PRESETS)}) or a mapping of "
                    "name to Plan."
                )
            self.plan  # noqa: B018  # makes sure that a method is chosen
            self._plans[name] = make_plan(self.graph, self.observe(), scheme, **self.methods)
        return self._plans[name]

    def _resolve(self, lanes: Lanes | None) -> dict[str, Plan]:
        if lanes is None:
            lanes = ("float", "int16", self.narrow)
        if isinstance(lanes, Mapping):
            return dict(lanes)
        if isinstance(lanes, str):
            raise QkitError(f"lanes is a sequence of names: ({lanes!r},).")
        return {name: self.lane(name) for name in lanes}

    def capture(
        self,
        lanes: Lanes | None = None,
        *,
        batches: int | None = 1,
        data: Literal["evaluation", "calibration"] = "evaluation",
        keep: Sequence[str] | Literal["all"] = (),
        folder: str | Path | None = None,
        memory_budget: int = MEMORY_BUDGET,
        progress: bool = True,
    ) -> Capture:
        """Every tap in the lanes: error table, and tensors with their codes. See :func:`qkit.capture.capture`.

        The lanes are float, int16 and the study's own (`narrow`) where none are named.
        """
        plans = {name: plan for name, plan in self._resolve(lanes).items() if name != "float"}
        loader = {"evaluation": self.evaluation, "calibration": self.calibration}.get(data)
        if loader is None:
            raise QkitError(f"data is 'evaluation' or 'calibration', not {data!r}.")
        return capture(
            self.graph, loader, plans, limit=batches, keep=keep, folder=folder, memory_budget=memory_budget, progress=progress
        )

    def evaluate(self, lanes: Lanes | None = None, *, batches: int | None = None, progress: bool = True) -> Scores:
        """Scores of the lanes on the evaluation data, in lockstep; plans scored before are not run again.

        The lanes are float, int16 and the study's own (`narrow`) where none are named.
        An interrupt keeps the batches finished so far, and says so.
        """
        plans = self._resolve(lanes)
        todo = {name: plan for name, plan in plans.items() if (plan, batches) not in self._cache}
        if todo:
            fresh, whole = self._score(todo, batches, progress)
            if not whole:
                return Scores(self.metric_name, fresh)
            self._cache.update({(plan, batches): fresh[name] for name, plan in todo.items()})
        return Scores(self.metric_name, {name: self._cache[plan, batches] for name, plan in plans.items()})

    def _score(self, plans: Mapping[str, Plan], limit: int | None, progress: bool) -> tuple[dict[str, np.ndarray], bool]:
        """Scores of the plans, and whether all batches were taken (not after an interrupt)."""
        check_weights(self.graph)
        rows: list[dict[str, np.ndarray]] = []
        lanes = [Lane(name, plan) for name, plan in plans.items()]
        if self.metric == "agreement" and "float" not in plans:
            lanes.append(Lane("float"))
        whole = True
        try:
            for batch in track(batches(self.evaluation, limit), "evaluating", unit="batch", show=progress):
                outputs = run_lanes(self.graph, lanes, batch.inputs)
                reference = outputs.get("float")
                rows.append({n: score_batch(self.metric, outputs[n], batch.targets, reference, batch.size) for n in plans})
        except KeyboardInterrupt:
            if not rows:
                raise
            logger.warning("the evaluation was interrupted: its scores are those of %d batches and are not kept.", len(rows))
            whole = False
        if not rows:
            raise DataError("the evaluation loader gave no batch: pass at least one.")
        return {name: np.concatenate([row[name] for row in rows]) for name in plans}, whole

    def score(self, plan: Plan | None = None, *, batches: int | None = None) -> Interval:
        """The score of a plan near the current one, computed from the first changed step on.

        The current plan's values at that step are kept: further plans that change it, as a range being tuned does, cost only
        what lies behind it, and one that changes a later step starts there.
        """
        plan = self.plan if plan is None else plan
        if (plan, batches) not in self._cache:
            first = first_difference(self.graph, self.plan, plan)
            if first is None:
                return self.evaluate({"plan": self.plan}, batches=batches, progress=False)["plan"]
            self._cache[plan, batches] = self._prefix_at(first, plan, batches).scores(plan)
        return mean_interval(self._cache[plan, batches])

    def effect(self, tensor: str, plan: Plan | None = None, *, batches: int | None = None) -> Effect:
        """What the plan makes of a tap (or of the tap behind a weight), of the output and of the score; computed from there on.

        A further plan that differs from this one at that tensor alone, as while its range is being tuned, costs only what lies
        behind it.
        """
        plan = self.plan if plan is None else plan
        step = self.graph.step(tensor)
        if not step.quantized:
            raise QkitError(f"{tensor} has no grid of its own: it shares that of {step.tap}, or stays in float.")
        index = step.index
        found = self._prefix_at(index, plan, batches, errors=True).effect(plan)
        self._cache[plan, batches] = found.scores
        return found

    def _prefix_at(self, index: int, plan: Plan, batches: int | None, *, errors: bool = False) -> Prefix:
        """The kept prefix, advanced to that step, where the plan can start from it; else a new one."""
        kept, limit = self._prefix or (None, None)
        if (
            kept is None
            or kept.index > index
            or limit != batches
            or (errors and not kept.has_errors)
            or not agree(self.graph, kept.plan, plan, index)
        ):
            check_weights(self.graph)
            base = self.plan if agree(self.graph, self.plan, plan, index) else plan
            kept = prefix(self.graph, self.evaluation, base, index, self.metric, limit=batches, errors=errors)
        elif kept.index < index:
            kept = kept.advanced(index)
        self._prefix = kept, batches
        return kept

    def sensitivity(
        self,
        mode: Mode = "only",
        *,
        lane: str | Plan | None = None,
        layers: Sequence[str] | None = None,
        batches: int | None = None,
        progress: bool = True,
    ) -> Sensitivity:
        """Score every layer quantized alone ("only") or spared ("except"), in the study's own lane where none is named.

        See :func:`qkit.sensitivity.sweep`.
        """
        plan = lane if isinstance(lane, Plan) else self.lane(lane or self.narrow)
        return sweep(self.graph, self.evaluation, plan, mode, self.metric, layers=layers, limit=batches, progress=progress)

    def verdict(self, *, tolerance: float = TOLERANCE, batches: int | None = None, progress: bool = True) -> Verdict:
        """Is it quantization? From float, 16 bits and the study's own lane (`narrow`) on the evaluation data."""
        scores = self.evaluate(batches=batches, progress=progress)
        return judge(scores, narrow=self.narrow, tolerance=tolerance, expected=self.expected)

    def diagnose(
        self,
        *,
        tolerance: float = TOLERANCE,
        batches: int | None = None,
        budget: int | None = None,
        engine: EngineLane | Sequence[EngineLane] = (),
        progress: bool = True,
    ) -> Diagnosis:
        """Verdict, confirmed causes, and remedies with their measured gain. See :func:`qkit.diagnosis.diagnose`."""
        from qkit.diagnosis.diagnose import diagnose

        return diagnose(self, tolerance=tolerance, batches=batches, budget=budget, engine=engine, progress=progress)

    def apply(self, *remedies: Remedy) -> Study:
        """A new study whose plan has these remedies; this one is untouched, which is how to revert.

        Raises
        ------
        QkitError
            If a remedy changes no plan, as "fix-input": its text says what there is to do.
        """
        plan = self.plan
        for remedy in remedies:
            if not remedy.changes:
                raise QkitError(f"{remedy.kind} is not a change of a plan: {remedy.text}")
            plan = remedy.plan(plan)
        return self.with_plan(plan)

    def ptc(
        self,
        steps: Sequence[str] | None = None,
        *,
        methods: Mapping[str, str] | None = None,
        estimators: Sequence[str] | None = None,
        iterations: int | None = None,
        seed: int = 0,
        batches: int | None = None,
        evaluation_batches: int | None = None,
        progress: bool = True,
    ) -> Study:
        """Post-training calibration: a new study, with what every step did in its `treatment`; this one is untouched.

        A step is fitted to three quarters of the calibration samples, and stays if it helps on the other quarter; its effect on
        the evaluation samples is measured and shown, and decides nothing.

        Parameters
        ----------
        steps
            Some of `qkit.ptc.STEPS`, which is also their order: "equalization" of the weights across layers, "absorption" of
            high biases, "ranges" of activations, "weight-clipping", "adaptive-rounding", "batch-norm" statistics under
            quantization, "bias-correction". All by default.
        methods
            Estimators by tap name, which "ranges" keeps to.
        estimators
            Those that "ranges" compares for the other taps.
        iterations, seed
            Of adaptive rounding: steps of its optimizer per layer, and its choice of samples.
        batches, evaluation_batches
            Most calibration and evaluation batches to take.

        Raises
        ------
        QkitError
            For an unknown step.
        """
        from qkit.ptc import pipeline
        from qkit.ptc.rounding import ITERATIONS

        return pipeline.calibrate(
            self,
            pipeline.STEPS if steps is None else steps,
            methods=methods,
            estimators=pipeline.ESTIMATORS if estimators is None else estimators,
            iterations=ITERATIONS if iterations is None else iterations,
            seed=seed,
            limit=batches,
            evaluation_limit=evaluation_batches,
            progress=progress,
        )

    def mixed(
        self,
        *,
        target: float | None = None,
        tolerance: float = 0.005,
        batches: int | None = None,
        budget: int | None = None,
        progress: bool = True,
        **options: Any,
    ) -> Mixed:
        """The fewest 16-bit layers that reach a score. See :func:`qkit.mixed.search`, which has the further options."""
        from qkit.mixed import search

        return search(self, target=target, tolerance=tolerance, batches=batches, budget=budget, progress=progress, **options)

    def report(self, path: str | Path, **options: Any) -> Report:
        """Write a degradation report; ``.html``, ``.md``, ``.json`` or ``.csv`` by suffix. See :func:`qkit.report.make`."""
        from qkit.report import make, write

        report = make(self, **options)
        write(report, path)
        return report

    def export(self, path: str | Path, plan: Plan | None = None, *, opset: int = 21) -> Exported:
        """Write the network under the current plan, or another, as ONNX with Q/DQ nodes.

        See :func:`qkit.engines.onnx_export.export`. Needs ``qkit[onnx]``; `qkit.engines.onnxruntime.lane` runs the file as a
        lane.
        """
        from qkit.engines.onnx_export import export

        return export(self, plan, path, opset=opset)

    def tune(self, tensor: str | None = None, *, batches: int | None = None) -> Tuner:
        """A widget to tune a tap's or weight's range with the mouse. See :class:`qkit.widgets.Tuner`."""
        from qkit.widgets import Tuner

        return Tuner(self, tensor, batches=batches)

    def explore(self, capture: Capture | None = None, *, batches: int = 1) -> Explorer:
        """A widget to look at the network layer by layer. See :class:`qkit.widgets.Explorer`."""
        from qkit.widgets import Explorer

        return Explorer(self, capture=capture, batches=batches)

    def calibration_panel(self, *, batches: int | None = None) -> CalibrationPanel:
        """A widget to choose how ranges are estimated, and to compare. See :class:`qkit.widgets.CalibrationPanel`."""
        from qkit.widgets import CalibrationPanel

        return CalibrationPanel(self, batches=batches)

    def guide(self, diagnosis: Diagnosis | None = None, *, tolerance: float = TOLERANCE, batches: int | None = None) -> Guide:
        """A widget that walks through the diagnosis, with remedies to apply and undo. See :class:`qkit.widgets.Guide`."""
        from qkit.widgets import Guide

        return Guide(self, diagnosis, tolerance=tolerance, batches=batches)

    def __repr__(self) -> str:
        plan = "not calibrated" if self._plan is None else repr(self._plan)
        what = f"{self.graph.model_name}: {len(self.graph.taps)} taps, scheme {self.scheme.name!r}, metric {self.metric_name!r}"
        return f"Study({what}, {plan})"
