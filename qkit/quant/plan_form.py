"""What the file of a plan holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, FiniteFloat

from qkit.forms import WHOLE, Count, Form, Whole, optional
from qkit.quant.arithmetic import Norm, Pointwise, Product, Rescale, Softmax

_Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31), WHOLE]


class Rule(Form, extra="forbid"):
    """The rule that it follows."""

    bits: Annotated[int, Field(ge=2, le=16), WHOLE]
    symmetric: bool
    signed: bool | None = None
    per_channel: bool
    power_of_two: bool = False
    narrow: bool = False


class CodesForm(Form):
    """A weight's codes."""

    shape: list[Count]
    int32: str = Field(description="Little-endian, base64.")


class GridForm(Form):
    """An integer grid: a value is (code - zero_point) * scale."""

    spec: Rule
    scale: float | list[float] = Field(description="Step in the tensor's units, one or one per channel; float32.")
    zero_point: _Int32 | list[_Int32] = Field(description="Code of 0, one or one per channel.")
    qmin: Whole = Field(description="Least code.")
    qmax: Whole = Field(description="Greatest code.")
    axis: Whole | None = Field(description="Axis of the channels, null for one grid.")
    method: str = Field(description='How the range was chosen: an estimator\'s name, or "manual".')
    weight: bool = Field(description="Whether the tensor is a weight.")
    codes: CodesForm | str = optional("Of a weight, where they were not made by rounding; in a report a hash of them.")


class ArithmeticForm(Form, extra="forbid"):
    """How operations without weights compute inside."""

    pointwise: Pointwise = "float"
    softmax: Softmax = "float"
    norm: Norm = "float"
    product: Product = "float"
    rescale: Rescale = "float"
    inside: Annotated[int, Field(ge=10, le=24), WHOLE] = 16


class PlanForm(Form):
    """Every grid, in the form of qkit.Plan."""

    format: Literal[1]
    name: str
    bias_bits: Annotated[int, Field(ge=2, le=64), WHOLE] | None = Field(description="Width of the biases, null for float.")
    grids: dict[str, GridForm] = Field(description="By tap name (activations) and weight name, in execution order.")
    corrections: dict[str, list[FiniteFloat]] = Field(
        default={}, description="By tap name, what is added to the biases of a layer, one number a channel."
    )
    factors: dict[str, list[Annotated[FiniteFloat, Field(gt=0)]]] = Field(
        default={}, description="By norm, what its channels are divided by and the layers behind it make up for, one a channel."
    )
    accumulator_bits: Annotated[int, Field(ge=8, le=64), WHOLE] | None = Field(default=None, description="Null for no overflow.")
    arithmetic: ArithmeticForm = Field(default=ArithmeticForm(), description="In float where it is left out.")
