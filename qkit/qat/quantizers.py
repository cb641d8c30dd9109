"""Fake quantization as modules: the grid of one activation tap, and that of one weight, as they move in training.

Activations' grids follow a moving average of each batch's extremes (Jacob et al. 2018, section 3.1), weights' grids the extremes
of the weights as they are, times the share of them that the plan's estimator had chosen to cover. With learned steps the step is
a parameter instead and the zero point stays. Frozen grids move no more.

Everything that the next step depends on is a buffer, changed in place: replicas of a module that is spread over several GPUs
share the first one's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qkit.errors import DataError
from qkit.graph.table import UNBOUNDED, Bounds
from qkit.qat.straight_through import grid_of, power_of_two, round_learned, round_to_grid
from qkit.quant.estimators import MOMENTUM
from qkit.quant.grids import MIN_SCALE, QuantParams, QuantSpec


class Quantizer(nn.Module):
    """A grid that can move.

    Parameters
    ----------
    name
        The tensor's, for messages.
    spec
        The rule.
    params
        The grid to start from; None if it has to be observed first.
    channels
        Number of channels and their axis for a grid per channel, else None.
    learned
        Whether the step is a parameter.

    Attributes
    ----------
    observing
        Whether the grid moves in training; the module that this is part of switches it off.
    scale, zero_point
        float32 and int32, () or (C,): the grid that the last training step had.
    step
        The learned step, a parameter; None where it is not learned.
    """

    scale: Tensor
    zero_point: Tensor
    codes: Tensor

    def __init__(
        self, name: str, spec: QuantSpec, params: QuantParams | None, channels: tuple[int, int] | None, *, learned: bool
    ) -> None:
        super().__init__()
        self.name = name
        self.spec = spec
        self.axis = None if channels is None else channels[1]
        self.observing = True
        shape = () if channels is None else (channels[0],)
        one = torch.ones(shape)
        # a grid's codes can depend on the data (signed or not), and are then known with the first batch
        qmin, qmax = spec.code_range() if params is None else (params.qmin, params.qmax)
        self.register_buffer("scale", one if params is None else params.scale.clone())
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32) if params is None else params.zero_point.clone())
        self.register_buffer("codes", torch.tensor([params is not None, qmin, qmax], dtype=torch.int32))
        self.step = nn.Parameter(self.scale.clone()) if learned else None
        self.refresh()

    def refresh(self) -> None:
        """Read from the buffers what is needed as plain numbers; another process may have set them."""
        self._ready, self.qmin, self.qmax = (int(code) for code in self.codes.tolist())

    @property
    def ready(self) -> bool:
        """Whether there is a grid yet."""
        if not self._ready:
            self.refresh()  # a replica may have seen the first batch
        return bool(self._ready)

    def begin(self, lo: Tensor, hi: Tensor) -> None:
        """The first grid, from the first range seen."""
        qmin, qmax = self.spec.code_range(one_sided=bool((lo >= 0).all()))
        self.codes.copy_(torch.tensor([1, qmin, qmax]))
        self.refresh()
        self.move(lo, hi)
        if self.step is not None:
            self.step.data.copy_(self.scale)

    def move(self, lo: Tensor, hi: Tensor) -> None:
        """Take the grid of that range."""
        scale, zero_point = grid_of(self.spec, lo, hi, self.qmin, self.qmax)
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def freeze(self, frozen: bool) -> None:
        """Keep the grid from now on, or let it move again."""
        if frozen and self.observing and self.step is not None:
            self.scale.copy_(self.learned_scale().detach())
        self.observing = not frozen

    def learned_scale(self) -> Tensor:
        """The scale that the learned step stands for; positive, and a power of two where the rule says so."""
        assert self.step is not None
        step = self.step.abs().clamp(min=MIN_SCALE)
        return power_of_two(step) if self.spec.power_of_two else step

    def grid(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point as they are now."""
        learned = self.step is not None and self.observing
        return (self.learned_scale() if learned else self.scale), self.zero_point

    def params(self) -> QuantParams:
        """The grid in numbers.

        Raises
        ------
        DataError
            If none was observed yet.
        """
        if not self.ready:
            raise DataError(
                f"{self.name} has no range yet: nothing was calibrated. Run a training batch first, or wrap a calibrated study."
            )
        return self._numbers(*self.grid())

    def _numbers(self, scale: Tensor, zero_point: Tensor) -> QuantParams:
        scale, zero_point = (x.detach().cpu().clone() for x in (scale, zero_point))
        return QuantParams(scale, zero_point, self.qmin, self.qmax, self.axis)

    def round(self, x: Tensor, scale: Tensor, zero_point: Tensor, samples: int, act: Bounds = UNBOUNDED) -> Tensor:
        """`x` on the grid; `samples` is the number of samples in it, for the size of the step's gradient."""
        low, high = (self.qmin - zero_point).to(torch.float32), (self.qmax - zero_point).to(torch.float32)
        if self.axis is not None:
            shape = [1] * x.ndim
            shape[self.axis] = -1
            scale, low, high = scale.view(shape), low.view(shape), high.view(shape)
        if self.step is None:
            return round_to_grid(x, scale, low, high, act)
        if not self.observing:
            # a frozen step keeps a gradient, of zero: replicas in several processes wait for one from every parameter
            return round_to_grid(x, scale, low, high, act) + 0.0 * self.step.sum()
        elements = x.numel() / max(samples, 1) / max(self.step.numel(), 1)
        return round_learned(x, scale, low, high, torch.rsqrt(elements * high.clamp(min=1.0)), act)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.refresh()


class TapQuantizer(Quantizer):
    """Fake quantization of an activation tap. Moves in training mode, not in evaluation."""

    lo: Tensor
    hi: Tensor

    def __init__(
        self, name: str, spec: QuantSpec, params: QuantParams | None, channels: tuple[int, int] | None, *, learned: bool
    ) -> None:
        super().__init__(name, spec, params, channels, learned=learned)
        for bound in ("lo", "hi"):
            value = torch.zeros_like(self.scale) if params is None else getattr(params, bound).float()
            self.register_buffer(bound, value)

    def forward(self, x: Tensor, act: Bounds = UNBOUNDED) -> Tensor:
        """`x`, clamped to `act`, on the grid: the same shape."""
        if self.training and (not self.ready or (self.observing and self.step is None)):
            self._observe(x.detach(), act)
        if not self.ready:
            raise DataError(
                f"{self.name} has no range yet: nothing was calibrated, so the first batches have to come in training mode. Call "
                "train() and run one, or wrap a calibrated study."
            )
        scale, zero_point = self.grid()
        return self.round(x, scale, zero_point, x.shape[0] if x.ndim else 1, act)

    @torch.no_grad()
    def _observe(self, x: Tensor, act: Bounds) -> None:
        if x.numel() == 0:
            return
        if self.axis is None:
            lo, hi = torch.aminmax(x)
        else:
            lo, hi = torch.aminmax(x.movedim(self.axis, 0).reshape(x.shape[self.axis], -1), dim=1)
        lo, hi = lo.clamp(*act), hi.clamp(*act)
        if not self.ready:
            self.lo.copy_(lo)
            self.hi.copy_(hi)
            self.begin(lo, hi)
            return
        self.lo.lerp_(lo, MOMENTUM)
        self.hi.lerp_(hi, MOMENTUM)
        self.move(self.lo, self.hi)


class WeightQuantizer(Quantizer):
    """Fake quantization of a weight, batch norm folded in. Its grid is that of the weight as it is, until it is frozen."""

    covered: Tensor

    def __init__(
        self, name: str, spec: QuantSpec, params: QuantParams | None, weight: Tensor, axis: int | None, *, learned: bool
    ) -> None:
        per_channel = axis is not None and (spec.per_channel if params is None else params.axis is not None)
        channels = (weight.shape[axis], axis) if per_channel and axis is not None else None
        super().__init__(name, spec, None if params is None else params, channels, learned=learned)
        lo, hi = self._extremes(weight)
        if params is None:
            self.begin(lo, hi)
        whole, _ = grid_of(spec, lo, hi, self.qmin, self.qmax)
        # exactly 1 where the plan covers the extremes, so that nothing but them is ever covered
        share = torch.where(whole == self.scale, 1.0, self.scale.double() / whole.double())
        self.register_buffer("covered", share)
        self.refresh()

    def refresh(self) -> None:
        super().refresh()
        if "covered" in self._buffers:
            self._covers_all = bool((self.covered >= 1.0).all())

    @property
    def covers_all(self) -> bool:
        """Whether the grid is certain to cover every weight: it then is the weight's own extremes'."""
        return self.step is None and self.observing and self._covers_all

    def _extremes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.detach()
        if self.axis is None:
            lo, hi = torch.aminmax(weight)
        else:
            lo, hi = torch.aminmax(weight.movedim(self.axis, 0).reshape(weight.shape[self.axis], -1), dim=1)
        return lo, hi

    @torch.no_grad()
    def grid_for(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point for that weight: its own extremes' unless learned or frozen."""
        if self.step is not None or not self.observing:
            return self.grid()
        lo, hi = self._extremes(weight)
        return grid_of(self.spec, lo.double() * self.covered, hi.double() * self.covered, self.qmin, self.qmax)

    def params_for(self, weight: Tensor) -> QuantParams:
        """`grid_for` in numbers."""
        return self._numbers(*self.grid_for(weight))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid: the same shape."""
        return self.rounded(weight)[0]

    def rounded(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The weight on its grid, and the grid's scale."""
        if self.step is not None:
            scale, zero_point = self.grid()
        else:
            scale, zero_point = self.grid_for(weight)
            if self.training and self.observing:
                self.scale.copy_(scale)
                self.zero_point.copy_(zero_point)
        return self.round(weight, scale, zero_point, 1), scale
