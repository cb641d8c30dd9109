"""A plan: the integer grid of every tap and weight. Immutable, comparable, and JSON both ways."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qkit import files
from qkit.errors import PlanError
from qkit.quant.arithmetic import FLOAT_INSIDE, Arithmetic
from qkit.quant.grids import QuantParams, QuantSpec

if TYPE_CHECKING:
    from qkit.quant.plan_form import CodesForm, GridForm

#: Version of the JSON form.
FORMAT = 1
_AGAIN = "calibrate and save the plan again"


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight's integer codes, where they were chosen otherwise than by rounding to nearest; compares and hashes by content.

    Attributes
    ----------
    tensor
        Integers of the weight's shape.
    """

    tensor: Tensor

    @functools.cached_property
    def key(self) -> tuple[Any, ...]:
        """The content in brief."""
        data = self.tensor.detach().cpu().contiguous()
        return tuple(data.shape), data.dtype, hashlib.blake2b(data.numpy().tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Codes) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def to_dict(self) -> dict[str, Any]:
        """Shape, and the codes as little-endian int32 in base64."""
        data = self.tensor.detach().cpu().to(torch.int32).contiguous().numpy().astype("<i4")
        return {"shape": list(self.tensor.shape), "int32": base64.b64encode(data.tobytes()).decode("ascii")}

    @classmethod
    def _of(cls, form: CodesForm | str, params: QuantParams) -> Codes:
        if isinstance(form, str):
            raise PlanError("its codes are a hash, as in a report: the file that plan.save() writes has them.")
        raw = base64.b64decode(form.int32, validate=True)
        if 4 * math.prod(form.shape) != len(raw):
            raise PlanError(f"its codes are {len(raw)} bytes, which is not shape {form.shape} of int32.")
        tensor = torch.from_numpy(np.frombuffer(raw, "<i4").astype(np.int32)).view(form.shape)
        if tensor.numel() and not params.qmin <= int(tensor.min()) <= int(tensor.max()) <= params.qmax:
            raise PlanError(f"its codes leave the grid's {params.qmin}..{params.qmax}.")
        return cls(tensor.to(params.dtype))


@dataclass(frozen=True)
class Grid:
    """One tensor's grid and how it came about.

    Attributes
    ----------
    spec
        The rule.
    params
        The grid in numbers.
    method
        How the range was chosen: an estimator's name, or "manual".
    weight
        Whether the tensor is a weight.
    codes
        Of a weight, where they are not those of rounding to nearest: adaptive rounding, training.
    """

    spec: QuantSpec
    params: QuantParams
    method: str
    weight: bool = False
    codes: Codes | None = None

    def at(self, params: QuantParams, method: str = "manual", *, spec: QuantSpec | None = None) -> Grid:
        """The same tensor on another grid, its codes by rounding to nearest."""
        return Grid(self.spec if spec is None else spec, params, method, self.weight)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings."""
        p = self.params
        return {
            "spec": asdict(self.spec),
            "scale": p.scale.tolist(),
            "zero_point": p.zero_point.tolist(),
            "qmin": p.qmin,
            "qmax": p.qmax,
            "axis": p.axis,
            "method": self.method,
            "weight": self.weight,
            **({} if self.codes is None else {"codes": self.codes.to_dict()}),
        }

    @classmethod
    def _of(cls, form: GridForm) -> Grid:
        scale = torch.tensor(form.scale, dtype=torch.float32)
        params = QuantParams(scale, torch.tensor(form.zero_point, dtype=torch.int32), form.qmin, form.qmax, form.axis)
        codes = None if form.codes is None else Codes._of(form.codes, params)
        return cls(QuantSpec(**form.spec.model_dump()), params, form.method, form.weight, codes)


@dataclass(frozen=True, eq=False)
class Plan:
    """The grids of one lane. A tensor without a grid stays float; a plan without grids is the float lane.

    Attributes
    ----------
    grids
        By tap name (activations) and ``path.weight`` (weights), in execution order.
    bias_bits
        Width of the biases, None for float. A bias is quantized where its layer's input and weight both are, the input with
        one scale, since its scale is the product of theirs; elsewhere it stays float.
    name
        Shown in tables.
    corrections
        By tap name, what is added to the biases of a layer whose weight is quantized, one number a channel: bias correction.
    accumulator_bits
        Width of the accumulators of convolutions and linear layers whose input and weight both are quantized, the input with
        one scale; they wrap around. None for ones that never overflow.
    arithmetic
        How operations without weights compute inside.
    factors
        By norm, what its output's channels are divided by and the columns of the linear layers behind it multiplied, one number
        a channel: the grids are of the network after that (`qkit.ptq.smoothing`). ``study.with_plan`` makes that network.
    """

    grids: Mapping[str, Grid] = field(default_factory=dict)
    bias_bits: int | None = None
    name: str = "float"
    corrections: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    accumulator_bits: int | None = None
    arithmetic: Arithmetic = FLOAT_INSIDE
    factors: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[str]:
        """Names of the tensors that have a grid."""
        return iter(self.grids)

    def __getitem__(self, tensor: str) -> Grid:
        if tensor not in self.grids:
            near = [name for name in self.grids if tensor in name or name in tensor][:5]
            hint = f"; did you mean {', '.join(near)}?" if near else "; see plan.grids for the names."
            raise PlanError(f"the plan has no grid for {tensor!r}{hint}")
        return self.grids[tensor]

    def params(self, tensor: str | None) -> QuantParams | None:
        """The tensor's grid, or None if it stays float."""
        grid = self.grids.get(tensor) if tensor is not None else None
        return None if grid is None else grid.params

    def codes(self, tensor: str | None) -> Codes | None:
        """The weight's codes where they are not those of rounding to nearest."""
        grid = self.grids.get(tensor) if tensor is not None else None
        return None if grid is None else grid.codes

    def refuse_factors(self) -> None:
        """Raise where the plan has factors, for whoever takes it for the network at hand.

        Raises
        ------
        PlanError
            If it has any.
        """
        if self.factors:
            raise PlanError(
                f"the plan has factors at {', '.join(self.factors)}, so its grids are of another network than the one at hand: "
                "study.with_plan(plan) is a study of that one, with its plan."
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan) or self._widths != other._widths:
            return False
        same = dict(self.corrections) == dict(other.corrections) and dict(self.factors) == dict(other.factors)
        return same and not self.diff(other)

    def __hash__(self) -> int:
        grids = ((name, self.grids[name].params, self.grids[name].codes) for name in sorted(self.grids))
        numbers = (*sorted(self.corrections.items()), *sorted(self.factors.items()))
        return hash((*self._widths, *numbers, *grids))

    @property
    def _widths(self) -> tuple[Any, ...]:
        return self.bias_bits, self.accumulator_bits, self.arithmetic

    def with_grid(self, tensor: str, grid: Grid) -> Plan:
        """A new plan in which the tensor has that grid."""
        return replace(self, grids={**self.grids, tensor: grid})

    def with_grids(self, grids: Mapping[str, Grid]) -> Plan:
        """A new plan in which these tensors have these grids."""
        return replace(self, grids={**self.grids, **grids})

    def with_range(
        self, tensor: str, lo: float | Tensor, hi: float | Tensor, *, spec: QuantSpec | None = None, axis: int | None = None
    ) -> Plan:
        """A new plan in which the tensor's grid covers ``[lo, hi]``, by its own rule or by another.

        Per-channel grids take (C,) bounds, or two numbers for all channels.

        Parameters
        ----------
        spec
            The rule; the tensor's own if there is none.
        axis
            Channel axis, where a rule per channel takes the place of one per tensor.

        Raises
        ------
        PlanError
            If the plan has no such tensor, the range is empty or not finite, or the axis or the number of channels is missing.
        """
        old = self[tensor]
        rule = old.spec if spec is None else spec
        if axis is None:
            axis = old.params.axis
        # a weight without an output-channel axis has one grid, though its rule says per channel
        per_channel = rule.per_channel and not (axis is None and old.spec.per_channel)
        low, high = torch.as_tensor(lo, dtype=torch.float64), torch.as_tensor(hi, dtype=torch.float64)
        if per_channel:
            if axis is None:
                raise PlanError(f"{tensor} has had one grid so far: say along which axis= its channels lie.")
            channels = old.params.scale.numel() if old.params.axis is not None else max(low.numel(), high.numel())
            if old.params.axis is None and low.ndim == high.ndim == 0:
                raise PlanError(f"{tensor} has had one grid so far: give bounds for every channel, not two numbers.")
            low, high = (bound.expand(channels) if bound.ndim == 0 else bound for bound in (low, high))
            if low.shape != (channels,) or high.shape != (channels,):
                raise PlanError(f"{tensor} has {channels} channels; its range needs one number or {channels}.")
        try:
            params = rule.params(low, high, axis=axis if per_channel else None)
        except PlanError as error:
            raise PlanError(f"{tensor}: {error}") from error
        return self.with_grid(tensor, old.at(params, spec=rule))

    def with_rule(
        self, tensors: str | Iterable[str], *, bits: int | None = None, symmetric: bool | None = None,
        power_of_two: bool | None = None, per_channel: bool | None = None,
    ) -> Plan:  # fmt: skip
        """A new plan in which these tensors have another rule on the same ranges; what is not given stays.

        Parameters
        ----------
        per_channel
            False joins the channels' grids into one over all their ranges. The other way needs the ranges of the channels:
            `with_range`, or `Study.choose`.

        Raises
        ------
        PlanError
            If there is no such tensor, for bits that no grid has, or for channels that have no ranges yet.
        """
        given = {"bits": bits, "symmetric": symmetric, "power_of_two": power_of_two, "per_channel": per_channel}
        changes = {name: value for name, value in given.items() if value is not None}
        plan = self
        for tensor in [tensors] if isinstance(tensors, str) else tensors:
            old, params = plan[tensor], plan[tensor].params
            spec = replace(old.spec, **{"per_channel": params.axis is not None, **changes})  # type: ignore[arg-type]
            if not spec.symmetric:
                spec = replace(spec, narrow=False)  # a narrow grid is one of weights around 0
            if spec.per_channel and params.axis is None:
                raise PlanError(f"{tensor} has had one grid so far: give bounds for every channel, or choose a method.")
            low, high = params.lo, params.hi
            if old.spec.symmetric and bool((low < 0).all()):
                # the one code more below 0 is the rule's, not the range's: else it would grow with every change of bits
                low = -high
            if params.axis is not None and not spec.per_channel:
                low, high = low.min(), high.max()
            plan = plan.with_range(tensor, low, high, spec=spec)
        return plan

    def where(self, keep: Callable[[str, Grid], bool], name: str | None = None) -> Plan:
        """A new plan with only those grids for which ``keep(tensor, grid)`` holds."""
        return replace(self, grids={k: g for k, g in self.grids.items() if keep(k, g)}, name=name or self.name)

    def only(self, tensors: Iterable[str]) -> Plan:
        """A new plan with only these tensors' grids."""
        kept = self._known(tensors)
        return self.where(lambda tensor, grid: tensor in kept)

    def without(self, tensors: Iterable[str]) -> Plan:
        """A new plan in which these tensors stay float."""
        left = self._known(tensors)
        return self.where(lambda tensor, grid: tensor not in left)

    def weights_only(self) -> Plan:
        """A new plan with the weights' grids alone."""
        return self.where(lambda tensor, grid: grid.weight, f"{self.name} weights only")

    def activations_only(self) -> Plan:
        """A new plan with the activations' grids alone."""
        return self.where(lambda tensor, grid: not grid.weight, f"{self.name} activations only")

    def _known(self, tensors: Iterable[str]) -> frozenset[str]:
        names = frozenset(tensors)
        for name in names:
            self[name]
        return names

    def diff(self, other: Plan) -> dict[str, tuple[Grid | None, Grid | None]]:
        """Tensors whose grids differ: name to (this plan's grid, the other's)."""
        names = [*self.grids, *(name for name in other.grids if name not in self.grids)]
        grids = {name: (self.grids.get(name), other.grids.get(name)) for name in names}
        return {name: (a, b) for name, (a, b) in grids.items() if (a and (a.params, a.codes)) != (b and (b.params, b.codes))}

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain numbers, strings, lists and dicts; floats survive JSON exactly."""
        grids = {name: grid.to_dict() for name, grid in self.grids.items()}
        corrections = {name: list(values) for name, values in self.corrections.items()}
        factors = {name: list(values) for name, values in self.factors.items()}
        return {
            "format": FORMAT,
            "name": self.name,
            "bias_bits": self.bias_bits,
            "grids": grids,
            **({"corrections": corrections} if corrections else {}),
            **({"factors": factors} if factors else {}),
            **({} if self.accumulator_bits is None else {"accumulator_bits": self.accumulator_bits}),
            **({"arithmetic": self.arithmetic.to_dict()} if self.arithmetic != FLOAT_INSIDE else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Plan:
        """Inverse of `to_dict`.

        Raises
        ------
        PlanError
            If the data is not a plan or of another format version.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise PlanError(f"not a qkit plan of format {FORMAT} (found {found!r}): save it again with this version of qkit.")
        from qkit.forms import checked
        from qkit.quant.plan_form import PlanForm

        form = checked(dict(data), PlanForm, error=PlanError, cure=_AGAIN)
        grids = {}
        for name, entry in form.grids.items():
            try:
                grids[name] = Grid._of(entry)
            except (PlanError, ValueError, RuntimeError) as error:
                raise PlanError(f"grids/{name} is no grid: {str(error).rstrip('.')}; {_AGAIN}.") from error
        corrections = {name: tuple(values) for name, values in form.corrections.items()}
        arithmetic = Arithmetic(**form.arithmetic.model_dump())
        factors = {name: tuple(values) for name, values in form.factors.items()}
        return cls(grids, form.bias_bits, form.name, corrections, form.accumulator_bits, arithmetic, factors)

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON.

        Raises
        ------
        PlanError
            If the file cannot be written; an earlier one is then as it was.
        """
        files.write_json(path, self.to_dict(), error=PlanError)

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan written by `save`.

        Raises
        ------
        PlanError
            If the file is missing, is not JSON, or not a plan.
        """
        data = files.read_json(path, "a plan", error=PlanError, cure="Give a file that plan.save() wrote.")
        try:
            return cls.from_dict(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        weights = sum(grid.weight for grid in self.grids.values())
        if not self.grids:
            return f"Plan({self.name!r}, everything in float)"
        taps = len(self.grids) - weights
        sums = "" if self.accumulator_bits is None else f", accumulators of {self.accumulator_bits} bits"
        inside = "" if self.arithmetic.in_float else f", {self.arithmetic}"
        return f"Plan({self.name!r}: {taps} taps, {weights} weights, {self.bias_bits or 'float'} bits of bias{sums}{inside})"


#: The plan that leaves everything in float.
FLOAT = Plan()
