"""What the file of a manifest holds."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from qkit.engines.traces.formats import DTYPES

_Some = TypeVar("_Some", bound=Collection[object])


def _each_once(values: _Some) -> _Some:
    if len(set(values)) != len(values):
        raise ValueError("should have each once")
    return values


def _inside(file: str) -> str:
    if file.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", file):
        raise ValueError("should not lead out of the folder: paths are relative to it")
    return file


_Text = Annotated[str, Field(strict=True, pattern=r"^[^\x00]+$")]
_Number = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Size = Annotated[int, Field(strict=True, ge=1, lt=2**31)]
_Code = Annotated[int, Field(strict=True, ge=-(2**15), lt=2**16)]
_Step = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
#: Of a text, a number too.
_WRITTEN = BeforeValidator(lambda value: str(value) if type(value) is int else value)
#: Of several, one or one a channel.
_EACH = BeforeValidator(lambda value: value if isinstance(value, (list, tuple)) else [value])


class EntryForm(BaseModel, extra="forbid"):
    """One tensor; null is as left out."""

    file: Annotated[_Text, AfterValidator(_inside)] | None = None
    member: _Text | None = None
    name: _Text | None = None
    tap: _Text | None = None
    data_id: _Number | None = None
    subgraph: Annotated[_Text, _WRITTEN] | None = None
    dtype: Annotated[str, Field(strict=True, pattern=f"^({'|'.join(DTYPES)})$")] | None = None
    byte_order: Literal["little", "big"] | None = None
    shape: Annotated[tuple[_Size, ...], Field(min_length=1)] | None = None
    layout: Annotated[str, Field(strict=True, pattern="^(N?[A-MO-Z]+|N)$"), AfterValidator(_each_once)] | None = None
    scale: Annotated[tuple[_Step, ...], Field(min_length=1), _EACH] | None = None
    zero_point: Annotated[tuple[_Code, ...], Field(min_length=1), _EACH] | None = None
    convention: Literal["multiply", "divide"] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.layout is not None and self.shape is not None and len(self.layout) != len(self.shape):
            raise ValueError(f"layout {self.layout} has {len(self.layout)} axes, shape {self.shape} {len(self.shape)}")
        if self.scale is not None and len(self.zero_point or (0,)) not in (1, len(self.scale)):
            raise ValueError(f"has {len(self.scale)} scales and {len(self.zero_point or ())} zero points")
        return self


class ManifestForm(BaseModel, extra="forbid"):
    """A trace; the defaults first, since what is wrong in them is not the tensors' doing."""

    defaults: EntryForm = EntryForm()
    tensors: tuple[EntryForm, ...] = ()
    name: _Text | None = None
    bits: Annotated[int, Field(strict=True, ge=2, le=32)] | None = None
    samples: Annotated[tuple[Annotated[int, Field(strict=True, ge=0)], ...], AfterValidator(_each_once)] | None = None
