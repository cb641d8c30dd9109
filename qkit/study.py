"""A study: model, data, metric, scheme and current plan together."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import pandas as pd
import torch
from torch import fx, nn
from torch.export import ExportedProgram

from qkit.diagnosis.verdict import Verdict, judge, judge_until_sure
from qkit.errors import DataError, QkitError
from qkit.execution.capture import MEMORY_BUDGET, Capture
from qkit.execution.depth import POINTS, Depth, along_depth
from qkit.execution.evaluator import Evaluator
from qkit.execution.extremes import RangeSamples, range_samples
from qkit.execution.flips import Flips, flipped
from qkit.execution.form_table import form_table
from qkit.execution.gradient import GradientRanking, rank_by_gradient
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.loading import batches
from qkit.execution.metrics import AnyMetric, Metric, check_expected, choose, metric_of
from qkit.execution.parallel import using
from qkit.execution.plan_checks import saturations, zero_divisors
from qkit.execution.prefix import Effect
from qkit.execution.scores import Scores
from qkit.execution.sensitivity import Mode, Sensitivity, sweep
from qkit.execution.statistics import Interval
from qkit.execution.together import FIRST, Ranking, Together, explained
from qkit.graph import DEVIATION, Graph, build
from qkit.graph.door.arrival import arrive
from qkit.graph.door.model_files import network, origin_of
from qkit.graph.share import Share, share_of
from qkit.graph.structures import map_tensors
from qkit.listing import few
from qkit.quant.calibration import check_weights, make_plan
from qkit.quant.estimators import Observation, check_method
from qkit.quant.grids import QuantSpec
from qkit.quant.plan import FLOAT, Plan
from qkit.quant.schemes import PRESETS, Scheme, scheme_of

if TYPE_CHECKING:
    from qkit.diagnosis.answer import Diagnosis
    from qkit.diagnosis.remedies import Remedy
    from qkit.engines.lane import EngineLane
    from qkit.engines.onnx.exporting import Exported
    from qkit.engines.tap_comparison import Comparison as EngineComparison
    from qkit.mixed import Costs, Mixed
    from qkit.ptq import Treatment
    from qkit.report import Report
    from qkit.widgets import CalibrationPanel, Explorer, GraphView, Guide, Tuner

logger = logging.getLogger(__name__)

Lanes = Sequence[str] | Mapping[str, Plan]

#: What makes another study where an attribute cannot be set.
_CHANGES = {"evaluation": "with_data", "calibration": "with_data", "methods": "with_calibration", "graph": "with_model"}


class Study:
    """One model under one scheme on given data.

    Parameters
    ----------
    model
        Trained, float32: a module, which is copied (mode, weights and hooks stay as they are); an ONNX file; or a program of
        torch.export, as it is or as a ``.pt2`` file. An ONNX file with Q/DQ nodes brings its grids: they are the plan.
    calibration
        Iterable of batches (inputs, or pairs with targets) from which ranges are observed; can be iterated repeatedly.
    evaluation
        Iterable of batches to score on. Without it the calibration data serve, which is said, since figures then are
        measured on the data that the ranges were fitted to.
    metric
        A name of `qkit.execution.metrics.NAMED` ("top1", "mean-iou", "psnr", …), a function ``(outputs, targets) -> scores per
        sample``, higher is better, or a `Metric`, which has a unit too. By default the outputs decide, which is said: class
        scores with
        class indices have top-1; without, agreement with the float lane; everything else closeness to the float lane's outputs.
    scheme
        A preset's name or a `Scheme`; "int8" by default. A quantized ONNX file has its own grids, which are the plan unless a
        scheme is given.
    expected
        The float score that the user believes in.
    device
        Where to run; the model's own by default.
    leaf_modules
        Module classes or paths to keep out of the trace.
    executor
        Whose workers score plans, see `with_executor`; this process by default.

    Raises
    ------
    GraphError, DataError, PlanError
        If the model cannot be traced, the data do not fit, or the scheme is unknown.
    """

    def __init__(
        self,
        model: nn.Module | str | Path | ExportedProgram,
        calibration: Iterable[Any],
        evaluation: Iterable[Any] | None = None,
        *,
        metric: AnyMetric | None = None,
        scheme: str | Scheme | None = None,
        expected: float | None = None,
        device: torch.device | str | None = None,
        leaf_modules: Iterable[type[nn.Module] | str] = (),
        executor: Executor | None = None,
    ) -> None:
        self._scheme = scheme_of("int8" if scheme is None else scheme)
        self._expected = expected
        self._remarks: tuple[str, ...] = ()
        first = next(iter(batches(calibration if evaluation is None else evaluation)), None)
        example = next(iter(batches(calibration)), None)
        if first is None or example is None:
            which = "evaluation" if example is not None else "calibration"
            raise DataError(f"the {which} loader gave no batch: pass at least one.")
        if evaluation is None:
            self._remark(
                "There are no evaluation data: scores are measured on the calibration data, to which the ranges are fitted."
            )
        self._model: nn.Module = network(model, example.inputs)
        if arrive(self._model).model.training and not isinstance(self._model, fx.GraphModule):
            self._remark("The model was handed over in training mode; it is analysed in evaluation mode.")
        graph = build(self._model, example.inputs, device=device, leaf_modules=leaf_modules)
        for remark in graph.remarks:
            self._remark(remark)
        try:
            check_weights(graph)
        except DataError as error:
            self._remark(f"{error} Nothing can be calibrated or scored; study.diagnose() says where it comes from.")
        if graph.own_error:
            self._remark(
                f"In float32 the model's output is off by {graph.own_error:.1e} relative to float64, by its own rounding; the "
                f"graph's differs from it by {graph.deviation:.1e}, which is no more than that."
            )
        elif graph.deviation > DEVIATION:
            self._remark(
                f"The folded graph differs from the model by {graph.deviation:.1e} relative: distrust it until you know why."
            )
        floats = [op.name for op in graph.operations if op.kind == "float"]
        if floats:
            self._remark(
                f"{graph.share}. Operations that stay float in every lane: {few(floats)} ({len(floats)} in all); "
                "study.graph.notes says why."
            )
        if metric is None:
            outputs = run_lanes(graph, [Lane("float")], first.inputs)["float"]
            metric, why = choose(map_tensors(outputs, torch.nan_to_num), first.targets)
            if why:
                self._remark(why)
        check_expected(metric_of(metric), expected)
        data = calibration if evaluation is None else evaluation
        self._evaluator = Evaluator(graph, data, metric, calibration=calibration, executor=executor)
        self._methods: dict[str, Any] = {}
        self._batches: int | None = None
        self._given: Mapping[str, Observation] | None = None
        self._plans: dict[str, Plan] = {}
        self._plan: Plan | None = None
        self._treatment: Treatment | None = None
        self._of_file: tuple[Plan, tuple[str, ...]] | None = None
        self._read_file(grids=scheme is None)

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(getattr(Study, name, None), property):
            other = _CHANGES.get(name, f"with_{name}")
            how = f"use study.{other}(…), which gives another study." if hasattr(Study, other) else "make another study."
            raise AttributeError(f"study.{name} cannot be set, since what has been measured depends on it: {how}")
        super().__setattr__(name, value)

    @property
    def evaluator(self) -> Evaluator:
        """Graph, data and metric, and what has been measured of them so far."""
        return self._evaluator

    @property
    def model(self) -> nn.Module:
        """The network, without wrappers; of a file, the module that runs it."""
        return self._model

    @property
    def graph(self) -> Graph:
        """The folded network with its taps."""
        return self._evaluator.graph

    @property
    def calibration(self) -> Iterable[Any]:
        """The batches that ranges are observed on."""
        return self._evaluator.calibration

    @property
    def evaluation(self) -> Iterable[Any]:
        """The batches that plans are scored on."""
        return self._evaluator.data

    @property
    def metric(self) -> Metric:
        """The score."""
        return self._evaluator.metric

    @property
    def executor(self) -> Executor | None:
        """Whose workers score plans; None for this process."""
        return self._evaluator.executor

    @property
    def metric_name(self) -> str:
        """Name of the score."""
        return self._evaluator.metric_name

    @property
    def scheme(self) -> Scheme:
        """The rules that grids follow."""
        return self._scheme

    @property
    def expected(self) -> float | None:
        """The float score that the user believes in."""
        return self._expected

    @property
    def methods(self) -> Mapping[str, Any]:
        """How the current plan's ranges were chosen: the arguments of `calibrate`."""
        return self._methods

    @property
    def treatment(self) -> Treatment | None:
        """What `ptc` did to arrive at this study; None where it comes from elsewhere."""
        return self._treatment

    def _read_file(self, *, grids: bool) -> None:
        """What an ONNX file says of its own quantization; with `grids`, its grids are the plan."""
        origin = origin_of(self.model)
        if origin is None or not origin.grids:
            return
        if origin.rectified:
            self._remark(
                f"The quantizer left out activations that grids from 0 on stand for; they are here again, as "
                f"{' and '.join(sorted(set(origin.rectified.values())))}: {few(origin.rectified)}."
            )
        from qkit.engines.onnx.file_grids import grids_left_out, plan_of_file, preset_of

        plan = plan_of_file(self.graph, origin) if grids else None
        if plan is None:
            return
        self._plan, self._scheme = plan, PRESETS[preset_of(plan)]
        self._methods = {"method": "mse", "weight_method": "minmax", "percentile": 99.99, "methods": None}
        tensors = (*self.graph.taps, *self.graph.weights)
        bare = [tensor for tensor in tensors if tensor not in plan.grids]
        said = [
            f"The file is quantized: its grids are the plan ({len(tensors) - len(bare)} of {len(tensors)} tensors; "
            f"study.calibrate() makes others).{f' Without a grid there: {few(bare)}.' if bare else ''}"
        ]
        if left := grids_left_out(self.graph, origin, plan):
            said.append(f"Grids of the file that are not simulated, since the tensor has another one here: {few(left)}.")
        self._of_file = plan, tuple(said)
        for remark in said:
            logger.warning("%s", remark)

    def _remark(self, text: str) -> None:
        self._remarks = (*self._remarks, text)
        logger.warning("%s", text)

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a reader of the figures has to know: about data and model, and about the current plan."""
        told = self._of_file[1] if self._of_file is not None and self.has_file_grids else ()
        return (*self._remarks, *told, *(() if self._plan is None else self._remarks_of(self._plan)))

    def _remarks_of(self, plan: Plan) -> list[str]:
        said = []
        if saturated := saturations(self.graph, plan):
            bits, many = plan.bias_bits, sum(saturated.values())
            said.append(f"Biases saturate at {bits} bits in {few(saturated)}: {many} in all.")
        seen = self._evaluator.observed(batches=self._batches) if self._given is None else self._given
        if divisors := zero_divisors(self.graph, plan, seen):
            worst = max(divisors, key=divisors.__getitem__)
            more = f" (and by {len(divisors) - 1} more like it)" if len(divisors) > 1 else ""
            said.append(
                f"The network divides by {worst}{more}, {100 * divisors[worst]:.2g} % of whose values round to 0 on its grid. "
                "What is divided by 0 ends at an end of its own grid, and engines differ in what they make of 0 / 0. Give the "
                "divisor 16 bits, or add a small number to it in the model."
            )
        return said

    @property
    def plan(self) -> Plan:
        """The current plan; calibrates with the defaults on first use."""
        if self._plan is None:
            self.calibrate()
        assert self._plan is not None
        return self._plan

    @property
    def has_file_grids(self) -> bool:
        """Whether the current plan is the grids that a quantized ONNX file brought."""
        return self._of_file is not None and self._plan is self._of_file[0]

    @property
    def share(self) -> Share:
        """How much of the network is computed on integers under the current plan; all that could be, before there is one.

        A plan without any grid for activations (or for weights) is taken as what its scheme means.
        """
        if self._plan is None:
            return self.graph.share
        groups = (self.graph.taps, self.graph.weights)
        bare = [set(tensors) - set(self._plan.grids) for tensors in groups]
        some = [part for part, tensors in zip(bare, groups, strict=True) if len(part) < len(tensors)]
        return share_of(self.graph.operations, set[str]().union(*(some or bare)))

    def arithmetic(self) -> pd.DataFrame:
        """How every operation is computed under the current plan, and by how many steps of its grid it is off the ideal.

        Columns: ``kind``, ``function``, ``computed`` ("weights", "table", "integer", …, or "float: why") and ``off``; see
        `qkit.execution.form_table.form_table`.
        """
        return form_table(self.graph, self.plan)

    def observe(self, *, batches: int | None = None, progress: bool = True) -> Mapping[str, Observation]:
        """Histograms of every tap on the calibration data: one float pass, kept for all later calibrations.

        Parameters
        ----------
        batches
            So many of them; by default those that the current plan's ranges were chosen from, at first all.
        """
        if batches is None and self._given is not None:
            return self._given
        return self._evaluator.observe(batches=self._batches if batches is None else batches, progress=progress)

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
            Most to observe; all by default.
        """
        settings = {"method": method, "weight_method": weight_method, "percentile": percentile, "methods": methods}
        seen = self._evaluator.observe(batches=batches, progress=progress)
        plan = make_plan(self.graph, seen, self.scheme, **settings)  # type: ignore[arg-type]
        self._methods, self._plan, self._plans, self._batches, self._given = settings, plan, {}, batches, None
        for remark in self.remarks[len(self._remarks) :]:
            logger.warning("%s", remark)
        return plan

    def choose(
        self, tensors: str | Sequence[str], method: str, *, percentile: float = 99.99, spec: QuantSpec | None = None,
        plan: Plan | None = None,
    ) -> Plan:  # fmt: skip
        """A plan in which these tensors have the ranges that a calibration method chooses; the study stays as it is.

        Parameters
        ----------
        tensors
            Names of taps and weights, patterns such as ``"*.conv.1.0.weight"``, or kinds such as ``"weights: depthwise conv"``.
        spec
            Rule of the grids; each tensor's own if there is none.
        plan
            The plan to start from; the current one if there is none.

        Raises
        ------
        PlanError
            If there is no such tensor or method, or the method is not defined for a grid's rule.
        """
        from qkit.execution.edits import choose
        from qkit.execution.tensors import named

        start = self.plan if plan is None else plan
        chosen = named(self.graph, start, tensors)
        return choose(self, chosen, check_method(method), percentile=percentile, spec=spec, plan=start)

    def with_plan(self, plan: Plan) -> Study:
        """A new study with that plan; it shares the histograms and scores that this one has.

        A plan with factors, as ``smooth-scales`` makes them, gets a study of the model with these scales folded in, which is
        calibrated anew.

        Raises
        ------
        QkitError
            If the plan is of another model.
        """
        for name in plan.grids:
            self.graph.operation(name)
        if plan.factors:
            from qkit.ptq.smoothing import divided  # loads all of post-training calibration

            model, _ = divided(self.model, self.graph, plan.factors)
            return self.with_model(model).with_plan(replace(plan, factors={}))
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
            What `qkit.observe` saw, on other data or fewer batches; by default what this study saw.
        methods
            Arguments of `calibrate` that are to differ: ``method``, ``weight_method``, ``percentile``, ``methods``.
        """
        self.plan  # noqa: B018  # calibrates
        unknown = sorted(set(methods) - set(self.methods))
        if unknown:
            raise QkitError(f"there is no setting {', '.join(unknown)}; the settings are {', '.join(self.methods)}.")
        other = self._copy()
        other._scheme, other._plans = self.scheme if scheme is None else scheme_of(scheme), {}
        other._methods = {**self.methods, **methods}
        if observed is not None:
            if not observed:
                raise DataError("nothing was observed: pass what qkit.observe() gave.")
            other._given = dict(observed)
        other._plan = make_plan(self.graph, other.observe(), other.scheme, **other.methods)
        return other

    def with_metric(self, metric: AnyMetric) -> Study:
        """A new study that scores by another metric; it shares graph, plan and histograms of this one."""
        return self._with(self._evaluator.on(metric=metric))

    def with_data(self, *, calibration: Iterable[Any] | None = None, evaluation: Iterable[Any] | None = None) -> Study:
        """A new study on other data, where they are given; other calibration data give it other ranges, by the same methods.

        Raises
        ------
        DataError
            If they are empty or do not fit.
        """
        other = self._with(self._evaluator.on(evaluation, calibration=calibration))
        if calibration is not None:
            other._given, other._plans = None, {}
            other._plan = None if self._plan is None else make_plan(self.graph, other.observe(), self.scheme, **self.methods)
        if evaluation is not None and next(iter(batches(evaluation)), None) is None:
            raise DataError("the evaluation loader gave no batch: pass at least one.")
        return other

    def with_executor(self, executor: Executor | None) -> Study:
        """A new study whose plans are scored on an executor's workers; it shares all that is and will be found with this one.

        What ``executor=`` does for one call, this does for all: sweeps, diagnosis, mixed precision, calibration steps, widgets.
        Scores are those of one process, bit for bit where workers have as many threads on processors of the same kind. Captures,
        calibration passes and single edits stay in this process.

        Parameters
        ----------
        executor
            Any of `concurrent.futures`: ``client.get_executor()`` of a Dask cluster (or the client itself), ``qkit.workers(4)``,
            a `ProcessPoolExecutor`; None for this process. It stays yours to shut down.
        """
        return self._with(self._evaluator.over(executor))

    def with_expected(self, expected: float | None) -> Study:
        """A new study that expects that float score.

        Raises
        ------
        QkitError
            If it is no share of 1 where scores are.
        """
        check_expected(self.metric, expected)
        other = self._copy()
        other._expected = expected
        return other

    def with_treatment(self, treatment: Treatment) -> Study:
        """A new study that says how `ptc` arrived at it."""
        other = self._copy()
        other._treatment = treatment
        return other

    def _with(self, evaluator: Evaluator) -> Study:
        other = self._copy()
        other._evaluator = evaluator
        return other

    def with_remarks(self, remarks: Iterable[str]) -> Study:
        """A new study that says these sentences too, such as how the weights were read, in all its reports."""
        other = self._copy()
        other._remarks = (*remarks, *self._remarks)
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
            executor=self.executor,
        )
        other.calibrate(**self.methods)
        return other

    def _copy(self) -> Study:
        other = object.__new__(Study)
        other.__dict__.update(self.__dict__)
        other._plans, other._treatment = dict(self._plans), None
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
        """Every tap in the lanes: error table, and tensors with their codes. See :func:`qkit.execution.capture.capture`.

        The lanes are float, int16 and the study's own (`narrow`) where none are named.
        """
        plans = {name: plan for name, plan in self._resolve(lanes).items() if name != "float"}
        return self._evaluator.capture(
            plans, batches=batches, data=data, keep=keep, folder=folder, memory_budget=memory_budget, progress=progress
        )

    def evaluate(
        self, lanes: Lanes | None = None, *, engine: EngineLane | Sequence[EngineLane] = (), batches: int | None = None,
        executor: Executor | None = None, progress: bool = True,
    ) -> Scores:  # fmt: skip
        """Scores of the lanes on the evaluation data, in lockstep; plans scored before are not run again.

        The lanes are float, int16 and the study's own (`narrow`) where none are named. Here and below, `executor` is whose
        workers score in this call, see `with_executor`.

        Parameters
        ----------
        engine
            Real engines, each scored by its own outputs under its name: `qkit.engines.onnx.lane(path, taps=None)` runs
            an exported file on integer kernels, which simulates nothing: for long runs.

        Raises
        ------
        QkitError
            If two lanes have one name, or an engine yields no outputs, or other samples than the evaluation data.
        """
        plans = self._resolve(lanes)
        with using(executor):
            found = dict(self._evaluator.samples(plans, batches=batches, progress=progress))
        for lane in engine if isinstance(engine, Sequence) else (engine,):
            from qkit.engines.compare import engine_samples

            if lane.name in found:
                raise QkitError(f"two lanes are called {lane.name!r}: rename one.")
            found[lane.name] = engine_samples(self, lane, batches=batches, progress=progress)
            if len({len(samples) for samples in found.values()}) > 1:
                raise QkitError(
                    f"the lane {lane.name!r} yields {len(found[lane.name])} samples, where the evaluation data have others."
                )
        return Scores.of(self.metric, found)

    def score(self, plan: Plan | None = None, *, batches: int | None = None) -> Interval:
        """The score of a plan near the current one, computed from the first changed operation on; see `Evaluator.score_near`."""
        plan = self.plan if plan is None else plan
        self._evaluator.score_near(plan, self.plan, batches=batches)
        return self._evaluator.samples({"plan": plan}, batches=batches, progress=False)["plan"].interval()

    def effect(self, tensor: str, plan: Plan | None = None, *, batches: int | None = None) -> Effect:
        """What the plan makes of a tap, of the output and of the score; see `Evaluator.effect`."""
        return self._evaluator.effect(tensor, self.plan if plan is None else plan, self.plan, batches=batches)

    @overload
    def sensitivity(
        self, mode: Mode = "only", *, lane: str | Plan | None = None, layers: Sequence[str] | None = None,
        batches: int | None = None, executor: Executor | None = None, progress: bool = True,
    ) -> Sensitivity: ...  # fmt: skip

    @overload
    def sensitivity(
        self, mode: Literal["gradient"], *, lane: str | Plan | None = None, layers: Sequence[str] | None = None,
        batches: int | None = None, executor: Executor | None = None, progress: bool = True,
    ) -> GradientRanking: ...  # fmt: skip

    def sensitivity(
        self,
        mode: Mode | Literal["gradient"] = "only",
        *,
        lane: str | Plan | None = None,
        layers: Sequence[str] | None = None,
        batches: int | None = None,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Sensitivity | GradientRanking:
        """Which layers matter, in the study's own lane where none is named.

        "only" scores every layer quantized alone, "except" spared; see :func:`qkit.execution.sensitivity.sweep`. "gradient"
        estimates what every weight and activation costs by itself, all in a few passes, in this process; see
        :func:`qkit.execution.gradient.rank_by_gradient`.
        """
        plan = lane if isinstance(lane, Plan) else self.lane(lane or self.narrow)
        if mode == "gradient":
            if layers is not None:
                operations = {self.graph.operation(name) for name in layers}
                plan = plan.only([t for t in plan.grids if self.graph.operation(t) in operations])
            return rank_by_gradient(self.graph, self.evaluation, plan, self.metric, limit=batches, progress=progress)
        with using(executor):
            return sweep(self._evaluator, plan, mode, layers=layers, batches=batches, progress=progress)

    def depth(
        self, *, lane: str | Plan | None = None, points: int = POINTS, batches: int | None = None,
        executor: Executor | None = None, progress: bool = True,
    ) -> Depth:  # fmt: skip
        """Loss with the first k operations quantized, along the depth: in weights, activations and both.

        See :func:`qkit.execution.depth.along_depth`.
        """
        plan = lane if isinstance(lane, Plan) else self.lane(lane or self.narrow)
        with using(executor):
            return along_depth(self._evaluator, plan, points=points, batches=batches, progress=progress)

    def together(
        self, first: int = FIRST, *, lane: str | Plan | None = None, ranking: Ranking | Sequence[str] = "gradient",
        mode: Mode = "only", batches: int | None = None, executor: Executor | None = None, progress: bool = True,
    ) -> Together:  # fmt: skip
        """How much of the loss the first tensors of a ranking explain together. See :func:`qkit.execution.together.explained`."""
        plan = lane if isinstance(lane, Plan) else self.lane(lane or self.narrow)
        with using(executor):
            return explained(
                self._evaluator, plan, first=first, ranking=ranking, mode=mode, batches=batches, progress=progress
            )  # fmt: skip

    def flips(
        self, lane: str | None = None, against: str = "float", *, images: int = 24, classes: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None, batches: int | None = None,
        executor: Executor | None = None, progress: bool = True,
    ) -> Flips:  # fmt: skip
        """Evaluation samples of which a lane (`narrow`) chose another class than float, with their pictures.

        See :func:`qkit.execution.flips.flipped`.
        """
        name = lane or self.narrow
        plans = self._resolve(tuple(dict.fromkeys((against, name))))
        with using(executor):
            return flipped(
                self._evaluator, plans, name, against, images=images, classes=classes, mean=mean, std=std, batches=batches,
                progress=progress,
            )  # fmt: skip

    def range_samples(
        self, *, images: int = 12, mean: float | Sequence[float] | None = None, std: float | Sequence[float] | None = None,
        batches: int | None = None, progress: bool = True,
    ) -> RangeSamples:  # fmt: skip
        """Which calibration samples set the ranges, how far beyond the next ones they are, and how they look.

        See :func:`qkit.execution.extremes.range_samples`.
        """
        return range_samples(self._evaluator, images=images, mean=mean, std=std, batches=batches, progress=progress)

    def verdict(
        self, *, tolerance: float | None = None, batches: int | None = None, executor: Executor | None = None,
        progress: bool = True,
    ) -> Verdict:  # fmt: skip
        """Is it quantization? From float, 16 bits and the study's own lane (`narrow`) on the evaluation data.

        The evaluation ends as soon as the answer is sure, which the verdict says (`stopped`).

        Parameters
        ----------
        tolerance
            Loss that still counts as close, in the metric's unit; by default the metric's own (one point of a share).
        batches
            Evaluation batches to take, all of them.
        """
        options: dict[str, Any] = {
            "narrow": self.narrow, "tolerance": tolerance, "expected": self.expected, "share": self.share,
        }  # fmt: skip
        with using(executor):
            if batches is not None:
                return judge(self.evaluate(batches=batches, progress=progress), **options)
            return judge_until_sure(self._evaluator, self._resolve(None), options, progress=progress)

    def diagnose(
        self,
        *,
        tolerance: float | None = None,
        batches: int | None = None,
        budget: int | None = None,
        engine: EngineLane | Sequence[EngineLane] = (),
        check_export: bool = True,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Diagnosis:
        """Verdict, confirmed causes, and remedies with their measured gain. See :func:`qkit.diagnosis.diagnose`."""
        from qkit.diagnosis.diagnose import diagnose

        with using(executor):
            return diagnose(
                self, tolerance=tolerance, batches=batches, budget=budget, engine=engine, check_export=check_export,
                progress=progress,
            )  # fmt: skip

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
        other = self.with_plan(plan)
        if any(remedy.kind == "recalibrate" and not remedy.layer for remedy in remedies):
            from qkit.diagnosis.diagnose import at_sixteen_bits

            # what was observed, which 16 bits would take their ranges from, is of the wrong images
            other._plans = {"int16": at_sixteen_bits(other.plan)}
        return other

    def ptc(
        self,
        steps: Sequence[str] | None = None,
        *,
        methods: Mapping[str, str] | None = None,
        estimators: Sequence[str] | None = None,
        batches: int | None = None,
        evaluation_batches: int | None = None,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Study:
        """Post-training calibration: a new study, with what every step did in its `treatment`; this one is untouched.

        A step is fitted to three quarters of the calibration samples, and stays if it helps on the other quarter; its effect on
        the evaluation samples is measured and shown, and decides nothing.

        Parameters
        ----------
        steps
            Some of `qkit.ptq.STEPS`, which is also their order: "smoothing" by scales between norms and the linear layers behind
            them, "equalization" of the weights across layers, "absorption" of high biases, "ranges" of activations,
            "weight-clipping", "adaptive-rounding", "batch-norm" statistics under quantization, "bias-correction". All by default.
        methods
            Estimators by tap name, which "ranges" keeps to.
        estimators
            Those that "ranges" compares for the other taps.
        batches, evaluation_batches
            Most calibration and evaluation batches to take.

        Raises
        ------
        QkitError
            For an unknown step.
        """
        from qkit.ptq import pipeline

        with using(executor):
            return pipeline.calibrate(
                self,
                pipeline.STEPS if steps is None else steps,
                methods=methods,
                estimators=pipeline.ESTIMATORS if estimators is None else estimators,
                limit=batches,
                evaluation_limit=evaluation_batches,
                progress=progress,
            )

    def mixed(
        self,
        *,
        target: float | None = None,
        tolerance: float = 0.005,
        caution: float = 1.0,
        costs: Costs | str | Path | pd.DataFrame | Mapping[str, Mapping[int, float]] | None = None,
        layer_map: Mapping[str, str] | str | Path | None = None,
        batches: int | None = None,
        select: Literal["calibration", "evaluation"] = "calibration",
        budget: int | None = None,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Mixed:
        """The 16-bit layers that reach a score at the least cost. See :func:`qkit.mixed.search`.

        Parameters
        ----------
        costs
            A device's microseconds by layer and width, see :meth:`qkit.mixed.Costs.load`; by default multiply-accumulates count.
        layer_map
            What the table of costs calls the layers: the ``.onnx`` file whose nodes it names, TIDL's ``layer_info.txt`` or
            result folder, a ``.json`` file, or names by tap. Names of torch's exporter need none.
        """
        from qkit.engines.table_names import table_names
        from qkit.mixed import Costs, search

        if costs is None and layer_map is not None:
            raise QkitError("layer_map names the layers of a table of costs: give costs too.")
        table = None if costs is None else Costs.load(costs)
        if table is not None:
            table = Costs.load(table, names={**table_names(table.times, self.graph, layer_map), **table.names})
        return search(
            self, target=target, tolerance=tolerance, caution=caution, costs=table, batches=batches, select=select,
            budget=budget, executor=executor, progress=progress,
        )  # fmt: skip

    def report(
        self,
        path: str | Path,
        *,
        title: str | None = None,
        batches: int | None = None,
        worst: int = 6,
        sensitivity: bool = True,
        diagnosis: Diagnosis | bool | None = None,
        tolerance: float | None = None,
        images: bool = False,
        lint: bool = True,
        mixed: Mixed | None = None,
        engines: EngineComparison | Sequence[EngineComparison] = (),
        layer_map: Mapping[str, str] | str | Path | None = None,
        attachment: str | Path | None = None,
        executor: Executor | None = None,
        progress: bool = True,
    ) -> Report:
        """Write a degradation report; ``.html``, ``.md``, ``.json`` or ``.csv`` by suffix. See :func:`qkit.report.make`.

        `attachment` is the path of an ``.npz`` that gets the worst layer's tensors and the images whose class changes; see
        :func:`qkit.report.attach`.
        """
        from qkit.report import attach, make, write

        report = make(
            self, title=title, batches=batches, worst=worst, sensitivity=sensitivity, diagnosis=diagnosis, tolerance=tolerance,
            images=images, lint=lint, mixed=mixed, engines=engines, layer_map=layer_map, executor=executor, progress=progress,
        )  # fmt: skip
        write(report, path)
        if attachment is not None:
            with using(executor):
                attach(self, attachment, layer=report.worst[0]["tap"] if report.worst else None, progress=progress)
        return report

    def export(self, path: str | Path, plan: Plan | None = None, *, opset: int = 21) -> Exported:
        """Write the network under the current plan, or another, as ONNX with Q/DQ nodes.

        See :func:`qkit.engines.onnx.export`. Needs the extra ``onnx``; `qkit.engines.onnx.lane` runs the file as a
        lane.
        """
        from qkit.engines.onnx.exporting import export

        return export(self, plan, path, opset=opset)

    def tune(self, tensor: str | Sequence[str] | None = None, *, batches: int | None = None) -> Tuner:
        """A widget to tune ranges of taps and weights with the mouse, one or several at once. See :class:`qkit.widgets.Tuner`."""
        from qkit.widgets import Tuner

        return Tuner(self, tensor, batches=batches)

    def explore(
        self,
        capture: Capture | None = None,
        *,
        batches: int = 1,
        sensitivity: Sensitivity | GradientRanking | None = None,
    ) -> Explorer:
        """A widget to look at the network layer by layer. See :class:`qkit.widgets.Explorer`."""
        from qkit.widgets import Explorer

        return Explorer(self, capture=capture, batches=batches, sensitivity=sensitivity)

    def graph_view(
        self,
        *,
        lanes: Lanes | None = None,
        capture: Capture | None = None,
        sensitivity: Sensitivity | None = None,
        ranking: GradientRanking | None = None,
        figure: str = "propagated",
        batches: int | None = 1,
    ) -> GraphView:
        """A widget with a picture of the network, coloured by errors, losses or costs. See :class:`qkit.widgets.GraphView`."""
        from qkit.widgets import GraphView

        return GraphView(
            self, lanes=lanes, capture=capture, sensitivity=sensitivity, ranking=ranking, figure=figure, batches=batches
        )

    def calibration_panel(self, *, batches: int | None = None) -> CalibrationPanel:
        """A widget to choose how ranges are estimated, and to compare. See :class:`qkit.widgets.CalibrationPanel`."""
        from qkit.widgets import CalibrationPanel

        return CalibrationPanel(self, batches=batches)

    def guide(self, diagnosis: Diagnosis | None = None, *, tolerance: float | None = None, batches: int | None = None) -> Guide:
        """A widget that walks through the diagnosis, with remedies to apply and undo. See :class:`qkit.widgets.Guide`."""
        from qkit.widgets import Guide

        return Guide(self, diagnosis, tolerance=tolerance, batches=batches)

    def __repr__(self) -> str:
        plan = "not calibrated" if self._plan is None else repr(self._plan)
        what = f"{self.graph.model_name}: {len(self.graph.taps)} taps, scheme {self.scheme.name!r}, metric {self.metric_name!r}"
        return f"Study({what}, {plan}, {self.share})"
