"""How an engine computes what has no weight between its grids: the switches of a scheme and of a plan."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from qkit.errors import PlanError

Pointwise = Literal["float", "table"]
Softmax = Literal["float", "table", "polynomial", "shift"]
Norm = Literal["float", "integer"]
Product = Literal["float", "integer"]
Rescale = Literal["float", "multiplier"]

#: Fields that choose a form.
FORMS = ("pointwise", "softmax", "norm", "product", "rescale")


@dataclass(frozen=True)
class Arithmetic:
    """What is inside the operations that have no weight; "float" rounds their outputs alone.

    A form acts where all that the operation reads lies on grids that have one scale each, and its output too.

    Attributes
    ----------
    pointwise
        SiLU, GELU, sigmoid, exp, …: "table" looks codes of up to 8 bits up in a table of every code, which is the nearest code
        by definition; wider ones between the 513 nodes of a table (`qkit.quant.integer.pointwise`).
    softmax
        "table", "polynomial" (I-BERT) or "shift" (I-ViT) for the exponential; the division is one of integers
        (`qkit.quant.integer.softmax`).
    norm
        LayerNorm, GroupNorm, RMSNorm, GRN, L2 normalization: "integer" has wide sums and an integer root
        (`qkit.quant.integer.norms`).
    product
        Products of two activations, matrices' and elements': "integer" adds up codes in an accumulator, which wraps where the
        plan says so.
    rescale
        Additions, concatenations, averages, and what products are brought to the output's grid by: "multiplier" takes a
        multiplier of 31 bits and a shift, as engines do (`qkit.quant.integer.rescaling`).
    inside
        Bits of the numbers inside softmax and norms.
    """

    pointwise: Pointwise = "float"
    softmax: Softmax = "float"
    norm: Norm = "float"
    product: Product = "float"
    rescale: Rescale = "float"
    inside: int = 16

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in FORMS:
            allowed = get_args(hints[name])
            if getattr(self, name) not in allowed:
                raise PlanError(f"Arithmetic({name}={getattr(self, name)!r}): choose one of {', '.join(map(repr, allowed))}.")
        if isinstance(self.inside, bool) or not isinstance(self.inside, int) or not 10 <= self.inside <= 24:
            raise PlanError(f"Arithmetic(inside={self.inside!r}): give a whole number of bits from 10 to 24.")

    @property
    def in_float(self) -> bool:
        """Whether every operation computes in float inside."""
        return all(getattr(self, name) == "float" for name in FORMS)

    def with_form(self, switch: str, form: str) -> Arithmetic:
        """The same but for one switch."""
        changed: dict[str, Any] = {switch: form}
        return replace(self, **changed)

    def at_bits(self, bits: int) -> Arithmetic:
        """The same forms for another width of the grids: what is inside keeps pace, 24 bits above 8."""
        return self if bits <= 8 or self.in_float else replace(self, inside=max(self.inside, 24))

    def to_dict(self) -> dict[str, Any]:
        """What differs from float inside."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in self.to_dict().items())
        return f"Arithmetic({said})"


#: Operations without weights compute in float on values that lie on grids.
FLOAT_INSIDE = Arithmetic()
#: Nothing is computed in float.
FULL_INTEGER = Arithmetic("table", "table", "integer", "integer", "multiplier")
