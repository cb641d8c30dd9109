"""Calibration in place of training: a module that stands in a training script where the model stood.

A training script iterates over images and calls the model in training mode, epoch after epoch. A :class:`PtqModule` learns from
these calls what calibration needs, one thing after the other: ranges in the first epochs, then batch norms' statistics under
quantization, then biases. It runs the kit's own lanes, so that in evaluation mode it gives what the plan's lane gives.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from qkit.epochs import LoopModule
from qkit.errors import DataError, PlanError, QkitError
from qkit.execution.lanes import Lane, run_lanes
from qkit.execution.metrics import AnyMetric
from qkit.execution.observing import Observations, glimpse
from qkit.graph import Graph, build
from qkit.graph.door.entry import batch_of_call
from qkit.graph.running import place_inputs
from qkit.graph.structures import map_tensors
from qkit.ptq.side_by_side import Moments
from qkit.quant.calibration import check_weights
from qkit.quant.plan import Plan
from qkit.study import Study
from qkit.training.settings import Phase, Settings
from qkit.training.training_run import (
    Pace,
    follow_biases,
    follow_norms,
    observations_from_state,
    observations_to_state,
)


class PtqModule(LoopModule):
    """A network in post-training calibration; made by :func:`qkit.training.calibrating`.

    Put it where the model stood in a training script, without the optimizer: forward passes in training mode calibrate, in
    evaluation mode they are the quantized network's. ::

        module = qkit.training.calibrating(model, images)
        for epoch in range(module.total_epochs):
            module.train()
            for images, _ in loader:
                module(images)
        module.eval()
        plan = module.plan()

    An epoch begins with every call of ``train()`` that follows a training batch; another loop sets `epoch` itself at the start of
    each epoch, and from then on only that counts. While ranges are observed, training mode gives the float network's outputs,
    afterwards the quantized network's, with what the batch itself has changed.

    It is copied, moved and saved (``state_dict``, in the middle of an epoch too) as any module. There is nothing to train: its
    parameters, a copy of the model's, are frozen, and a backward pass is an error. Lanes compute in float32 and autocast is
    switched off inside. One process calibrates, on one device.

    Attributes
    ----------
    model
        The copy, in the user's own class; what is calibrated are its weights as they are.
    settings
        What `qkit.training.calibrating` was told.
    total_epochs
        Epochs until all is learnt.
    epoch
        Which one it is, from 0.
    clock
        What counts them.
    """

    _beyond = ": calibration is done, and further batches teach nothing"

    def __init__(self, model: nn.Module, graph: Graph, example: tuple[Any, ...], settings: Settings) -> None:
        super().__init__(model, settings.total_epochs)
        self.settings = settings
        self._trainable = tuple(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        model.requires_grad_(False)
        self._example = example
        self._graph: Graph | None = graph
        self._restored = False
        self._forget()
        register: Any = self.register_load_state_dict_post_hook
        register(_loaded)

    def _forget(self) -> None:
        self._seen = Observations()
        #: Ranges alone; made when they are asked for, as the plan is.
        self._base: Plan | None = None
        self._plan: Plan | None = None
        self._moments: dict[str, Moments] = {}
        self._samples: dict[str, int] = dict.fromkeys(("observers", "norms", "biases"), 0)

    @property
    def phase(self) -> Phase:
        """What this epoch's training batches teach: "observers", "norms", "biases", or "done"."""
        return self.settings.phase(self.epoch)

    @property
    def graph(self) -> Graph:
        """The network as an integer engine sees it, on the module's device."""
        if self._graph is not None:
            held = next(iter(self._graph.weights.values()), None)
            tensors = [t for t in (*self.model.parameters(), *self.model.buffers()) if t.is_floating_point()]
            if held is not None and any((t.device, t.dtype) != (held.device, held.dtype) for t in tensors):
                self._graph = None  # the module was moved or cast
        if self._graph is None:
            self._graph = build(self.model, self._example, leaf_modules=self.settings.leaf_modules)
            check_weights(self._graph)
        return self._graph

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's output; in training mode the batch calibrates.

        Raises
        ------
        DataError
            If the batch does not fit, holds NaN or infinity, or comes before what it is to teach can be learnt.
        """
        if getattr(self, "_is_replica", False):
            raise QkitError("calibration runs on one device: take the module out of DataParallel.")
        device = next((t.device.type for t in (*self.model.parameters(), *self.model.buffers())), "cpu")
        with self._float32(device):
            graph = self.graph
            placed = self._placed(graph, inputs, named)
            output = self._calibrate(graph, placed) if self.training else self._quantized(graph, placed)
        anchor = torch.zeros((), requires_grad=True) if self.training and torch.is_grad_enabled() else None
        return map_tensors(output, partial(_handed_out, anchor=anchor))

    def _placed(self, graph: Graph, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> tuple[Any, ...]:
        placed = place_inputs(graph, batch_of_call(graph.entry, self.model, inputs, named))
        for op in graph.operations:
            value = None if op.argument is None else placed[op.argument]
            if isinstance(value, Tensor) and not bool(torch.isfinite(value).all()):
                bad = int((~torch.isfinite(value)).sum())
                raise DataError(
                    f"{op.name}: {bad} of {value.numel()} elements are NaN or infinite; find where they arise in the loading "
                    "of the data."
                )
        return placed

    def _quantized(self, graph: Graph, inputs: tuple[Any, ...]) -> Any:
        return run_lanes(graph, [Lane("quantized", self.plan())], inputs)["quantized"]

    def _calibrate(self, graph: Graph, inputs: tuple[Any, ...]) -> Any:
        """Learn from one batch: all of it or, after an error or interrupt, nothing."""
        phase, factor = self.phase, self.settings.bias_factor
        size = next((int(x.shape[0]) for x in inputs if isinstance(x, Tensor) and x.ndim), 1)
        if phase == "observers":
            seen, output = glimpse(graph, inputs)
            self._seen.add(seen)
            # what rests on the ranges as they were does not hold any more
            self._base = self._plan = None
            self._moments = {}
            self._samples = {"observers": self._samples["observers"] + size, "norms": 0, "biases": 0}
        elif not self._seen:
            raise DataError(
                f"epoch {self.epoch} teaches {phase}, and no ranges have been observed: run training batches in epoch 0 first."
            )
        elif phase == "done":
            output = self._quantized(graph, inputs)
        else:
            pace = Pace.of(factor, size, self._samples[phase])
            if phase == "norms":
                plan, moments, output = follow_norms(graph, self._ranges(), self.plan(), inputs, self._moments, pace)
            else:
                plan, output = follow_biases(graph, self.plan(), inputs, pace)
                moments = self._moments
            self._plan, self._moments = plan, moments
            self._samples[phase] += size
        self.clock.batch()
        return output

    def _ranges(self) -> Plan:
        if not self._seen:
            raise DataError(
                "nothing is calibrated yet: run at least one batch through the module in training mode (about 100 images are "
                "usual)."
            )
        if self._base is None:
            self._base = self.settings.plan(self.graph, self._seen.all())
        return self._base

    def plan(self) -> Plan:
        """The grids and corrections as they are now, under the kit's names.

        Raises
        ------
        DataError
            If no batch was run in training mode yet.
        """
        if self._plan is None:
            self._plan = self._ranges()
        return self._plan

    def float_model(self) -> nn.Module:
        """A copy of the user's model, in evaluation mode, its parameters frozen where they were."""
        model = copy.deepcopy(self.model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in self._trainable)
        return model.eval()

    def study(
        self,
        calibration: Iterable[Any],
        evaluation: Iterable[Any] | None = None,
        metric: AnyMetric | None = None,
        *,
        expected: float | None = None,
    ) -> Study:
        """A study of the model whose plan is this module's; parameters as of `qkit.Study`."""
        study = Study(
            self.float_model(), calibration, evaluation, metric=metric, scheme=self.settings.scheme, expected=expected,
            leaf_modules=self.settings.leaf_modules,
        )  # fmt: skip
        settings = self.settings
        study.calibrate(
            settings.method, weight_method=settings.weight_method, percentile=settings.percentile, methods=settings.methods
        )
        return study.with_plan(self.plan())

    def get_extra_state(self) -> dict[str, Any]:
        """What has been learnt and which epoch it is, for `state_dict`."""
        return {
            "settings": self.settings.told(),
            "clock": self.clock.state(),
            "samples": dict(self._samples),
            "seen": observations_to_state(self._seen.all()),
            "plan": None if self._plan is None else self._plan.to_dict(),
            "moments": {name: (m.count, m.sums, m.squares) for name, m in self._moments.items()},
        }

    def set_extra_state(self, state: Any) -> None:
        """What had been learnt, from `state_dict`.

        Raises
        ------
        PlanError
            If the state is of other settings, or of something else.
        """
        if not isinstance(state, Mapping) or "settings" not in state:
            raise PlanError("this is not the state of a qkit.training module: load what its state_dict() gave.")
        for name, told in self.settings.told().items():
            if state["settings"].get(name) != told:
                raise PlanError(
                    f"the state is of a module that was wrapped with {name}={state['settings'].get(name)}, this one was with "
                    f"{told}: wrap with the same."
                )
        self._forget()
        self.clock.restore(state["clock"])
        self._samples.update(state["samples"])
        self._seen = Observations(observations_from_state(state["seen"]))
        self._plan = None if state["plan"] is None else Plan.from_dict(state["plan"])
        self._moments = {name: Moments(m[0], m[1].cpu(), m[2].cpu()) for name, m in state["moments"].items()}
        self._restored = True

    def __getstate__(self) -> dict[str, Any]:
        # functions of the graph's cannot be pickled: it is built anew where it is needed
        return {**self.__dict__, "_graph": None}

    def extra_repr(self) -> str:
        """Where the calibration stands."""
        samples = ", ".join(f"{phase} {count}" for phase, count in self._samples.items() if count)
        return f"epoch {self.epoch} of {self.total_epochs} ({self.phase}), samples: {samples or 'none yet'}"


def _loaded(module: Any, _: Any) -> None:
    """After other weights were loaded: the graph holds those that it was built with, and calibration is of weights."""
    if not module._restored:
        module._forget()
    module._graph, module._restored = None, False


class _NothingToTrain(torch.autograd.Function):
    """A copy whose backward pass says what is wrong."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, output: Tensor) -> Tensor:
        return output.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise QkitError(
            "a module of qkit.training has nothing to train: leave out loss.backward() and the optimizer's step. Forward passes "
            "in training mode calibrate. To train on the grids use qkit.qat.wrap()."
        )


def _handed_out(tensor: Tensor, anchor: Tensor | None) -> Tensor:
    """A tensor of the output as the user may use it: lanes' are of inference mode."""
    if anchor is None or not tensor.is_floating_point():
        return tensor.clone()
    copied: Any = _NothingToTrain.apply
    handed: Tensor = copied(anchor, tensor)
    return handed
