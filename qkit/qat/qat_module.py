"""The network to train: fake-quantized as an integer engine would run it, an ordinary `nn.Module`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from qkit.epochs import LoopModule
from qkit.errors import DataError
from qkit.execution.metrics import AnyMetric
from qkit.graph.door.entry import Entry, batch_of_call
from qkit.qat.layers import Numbers, fetch, folded, run_layer
from qkit.qat.qat_program import Instruction, Slot, mapped
from qkit.qat.quantizers import Quantizer, TapQuantizer, WeightQuantizer
from qkit.quant.plan import Grid, Plan
from qkit.quant.schemes import Scheme
from qkit.study import Study


@dataclass(frozen=True)
class Schedule:
    """Epochs in all, and those from which on batch norms' statistics and the grids stay as they are."""

    total_epochs: int
    freeze_norms_at: int
    freeze_ranges_at: int


@dataclass(frozen=True)
class Origin:
    """Where a module comes from, for its way back. Copies of a module share it, pickles leave it out."""

    calibration: Iterable[Any] | None = None
    evaluation: Iterable[Any] | None = None
    metric: AnyMetric | None = None
    scheme: str | Scheme = "int8"
    expected: float | None = None
    leaf_modules: tuple[type[nn.Module] | str, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Origin:
        return self

    def __reduce__(self) -> tuple[Callable[..., Origin], tuple[Any, ...]]:
        return Origin, ()


@dataclass(frozen=True)
class Build:
    """What `qkit.qat.wrap` makes a module of."""

    model: nn.Module
    program: tuple[Instruction, ...]
    quantizers: Mapping[str, Quantizer]
    template: Plan
    schedule: Schedule
    origin: Origin
    need: str
    entry: Entry


class QatModule(LoopModule):
    """A network in quantization-aware training; made by :func:`qkit.qat.wrap`.

    An ordinary module: it goes into the user's training loop, optimizer, scheduler and multi-GPU wrapper as the model would, and
    is copied, moved and saved (``state_dict``) as any other. ``module.model`` is a copy of the user's model and holds all that is
    trained but for learned steps; its parameters have their names behind ``model.``. Modules whose work is done otherwise
    (convolutions, linear layers, batch norms, activations that clamp) are not called, nor are hooks on them. What the model does
    only in training, such as auxiliary outputs, is not part of it, dropout apart.

    An epoch begins with every call of ``train()`` that follows a training batch, so that a loop that calls ``train()`` at the
    start of each epoch and ``eval()`` for scoring at its end needs nothing else. Another loop sets `epoch` itself, at the start
    of each epoch; from then on only that counts. Batch norms' statistics and the grids freeze on the schedule.

    It computes in float32: autocast is switched off inside.

    Attributes
    ----------
    model
        The trained weights, in the user's own class.
    need
        What the diagnosis said about the need of this training.
    schedule
        When what is frozen.
    epoch
        Which one it is, from 0.
    total_epochs
        Epochs that the training will have.
    clock
        What counts them.
    """

    def __init__(self, build: Build) -> None:
        super().__init__(build.model, build.schedule.total_epochs)
        self.quantizers = nn.ModuleDict({_key(name): quantizer for name, quantizer in build.quantizers.items()})
        self.schedule = build.schedule
        self.need = build.need
        self._program = build.program
        self._template = build.template
        self._origin = build.origin
        self._entry = build.entry
        self._norms = tuple({i.layer.norm: None for i in build.program if i.layer is not None and i.layer.norm is not None})
        self._inplace = tuple(path for path, m in self.model.named_modules() if getattr(m, "inplace", False) is True)
        for path in self._inplace:
            self.model.get_submodule(path).inplace = False  # type: ignore[assignment]
        self._follow_epoch()

    @property
    def norms_frozen(self) -> bool:
        """Whether batch norms keep their statistics."""
        return self.epoch >= self.schedule.freeze_norms_at

    @property
    def ranges_frozen(self) -> bool:
        """Whether the grids stay as they are."""
        return self.epoch >= self.schedule.freeze_ranges_at

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; begins the next epoch if a training batch was run since the last."""
        for quantizer in self.quantizers.values():
            quantizer.refresh()  # type: ignore[operator]
        return super().train(mode)

    def _follow_epoch(self) -> None:
        for path in self._norms:
            fetch(self.model, path).train(self.training and not self.norms_frozen)
        for quantizer in self.quantizers.values():
            quantizer.freeze(self.ranges_frozen)  # type: ignore[operator]

    def get_extra_state(self) -> Tensor:
        """The epoch, for `state_dict`."""
        return torch.tensor(self.clock.state())

    def set_extra_state(self, state: Tensor) -> None:
        """The epoch, from `state_dict`."""
        self.clock.restore(state.tolist())
        self._follow_epoch()

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """The network's output, computed on the grids."""
        tensors = (x for x in (*inputs, *named.values()) if isinstance(x, Tensor))
        with self._float32(next((x.device.type for x in tensors), "cpu")):
            return self._run(inputs, named)

    def _run(self, inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
        if self.training:
            self.clock.batch()
        tensors = tuple(self._entry.values(batch_of_call(self._entry, self.model, inputs, named)))
        values: dict[int, Any] = {}

        def fill(item: Any) -> Any:
            return values[item.index] if isinstance(item, Slot) else item

        for index, instruction in enumerate(self._program):
            value = self._evaluate(instruction, fill, tensors)
            if instruction.tap is not None:
                value = self._quantizer(instruction.tap)(value, instruction.act)
            values[index] = value
            for slot in instruction.frees:
                del values[slot]
        return value

    def _evaluate(self, instruction: Instruction, fill: Callable[[Any], Any], inputs: tuple[Any, ...]) -> Any:
        what, target = instruction.what, instruction.target
        if what == "input":
            return self._input(instruction, inputs)
        if what == "attribute":
            return fetch(self.model, target)
        if what == "constant":
            return target.to(next((x.device for x in inputs if isinstance(x, Tensor)), target.device))
        args = mapped(instruction.args, fill)
        if what == "same":
            return args[0]
        if what == "output":
            return args[0] if target is None else target(args[0])
        if what == "layer":
            layer = instruction.layer
            assert layer is not None
            source = None if layer.source is None else self._quantizer(layer.source)
            rounds = None if layer.rounds is None else self._quantizer(layer.rounds)
            return run_layer(layer, self.model, args[0], Numbers(*args[1:]), rounds, source)
        if what == "module":
            path, call = target
            module = self.model.get_submodule(path)
            return module(*args) if call is None else call(*args, function=module)
        if what == "dropout":
            return target(*args, training=self.training)
        return target(*args, **mapped(dict(instruction.kwargs or {}), fill))

    def _input(self, instruction: Instruction, tensors: tuple[Any, ...]) -> Any:
        value = tensors[instruction.target]
        if instruction.tap is not None and value.dtype != torch.float32:
            raise DataError(
                f"{instruction.tap} is {value.dtype}; quantization-aware training takes torch.float32. Convert it where it is "
                "loaded (x.float(), and the normalization that the model was trained with)."
            )
        return value

    def _quantizer(self, name: str) -> Any:
        return self.quantizers[_key(name)]

    @torch.no_grad()
    def plan(self) -> Plan:
        """The grids as they are now, under the kit's names.

        Raises
        ------
        DataError
            If nothing was calibrated and no training batch was run yet.
        """
        grids: dict[str, Grid] = {}
        weights = self._folded_weights()
        for name, grid in self._template.grids.items():
            quantizer = self._quantizer(name)
            if isinstance(quantizer, WeightQuantizer):
                params = quantizer.params_for(weights[name])
            else:
                assert isinstance(quantizer, TapQuantizer)
                params = quantizer.params()
            grids[name] = Grid(grid.spec, params, "qat", grid.weight)
        template = self._template
        return Plan(
            grids, template.bias_bits, f"{template.name} qat", accumulator_bits=template.accumulator_bits,
            arithmetic=template.arithmetic,
        )  # fmt: skip

    def _folded_weights(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        values: dict[int, Any] = {}

        def fill(item: Any) -> Any:
            return values.get(item.index) if isinstance(item, Slot) else item

        for index, instruction in enumerate(self._program):
            if instruction.fixed:
                values[index] = self._evaluate(instruction, fill, ())
            layer = instruction.layer
            if layer is not None and layer.rounds is not None:
                found[layer.rounds] = folded(layer, Numbers(*mapped(instruction.args[1:], fill)))[0]
        return found

    def float_model(self) -> nn.Module:
        """A copy of the user's model with the trained weights, in evaluation mode, nothing folded or rounded."""
        model = copy.deepcopy(self.model)
        model.zero_grad(set_to_none=True)
        for path in self._inplace:
            model.get_submodule(path).inplace = True  # type: ignore[assignment]
        return model.eval()

    def study(
        self,
        calibration: Iterable[Any] | None = None,
        evaluation: Iterable[Any] | None = None,
        metric: AnyMetric | None = None,
    ) -> Study:
        """Back to the kit: a study of the trained model whose plan has the trained grids.

        Its float lane is the trained model without rounding. Where rounding was severe, training has made up for it, and that
        lane is the worse for it: judge the trained network against the float score from before.

        Parameters
        ----------
        calibration, evaluation, metric
            As of `qkit.Study`; those of the study that was wrapped by default.

        Raises
        ------
        DataError
            If there are no calibration data.
        """
        origin = self._origin
        data = origin.calibration if calibration is None else calibration
        if data is None:
            raise DataError(
                "a study needs data, and the module has none (it was made from a model alone, or comes from a pickle): pass "
                "calibration=."
            )
        study = Study(
            self.float_model(),
            data,
            origin.evaluation if evaluation is None else evaluation,
            metric=origin.metric if metric is None else metric,
            scheme=origin.scheme,
            expected=origin.expected if evaluation is None and metric is None else None,
            leaf_modules=origin.leaf_modules,
        )
        return study.with_plan(self.plan())

    def extra_repr(self) -> str:
        """Where the training stands."""
        grids = f"{len(self.quantizers)} grids, {sum(q.step is not None for q in self.quantizers.values())} of them learned"
        frozen = [what for what, is_so in (("norms", self.norms_frozen), ("ranges", self.ranges_frozen)) if is_so]
        state = f", frozen: {' and '.join(frozen)}" if frozen else ""
        return f"epoch {self.epoch} of {self.schedule.total_epochs}, {grids}{state}"


def _key(name: str) -> str:
    """A tensor's name as the key of a module: those have no dots, and must not be names of a dictionary's methods."""
    return "grid/" + name.replace(".", "/")
