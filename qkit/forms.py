"""What a file has to hold, as models of pydantic; what does not fit is an error that names the part by its path.

pydantic takes some time to load: this module and the forms are imported where a file is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from qkit.errors import QkitError

_MOST_SHOWN = 60
#: What is left out of pydantic's sentences, beside their subject.
_SURROUNDING = re.compile(r"^(Value error, |\w+ (?=should ))| or instance of \w+")
T = TypeVar("T")


class Form(BaseModel):
    """A part of a file: true is no number and "1" neither; keys that are not listed may be there."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow")


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: Stands last in an annotation of int: JSON does not tell 2.0 from 2.
WHOLE = BeforeValidator(_whole)
Whole = Annotated[int, WHOLE]
Count = Annotated[int, Field(ge=0), WHOLE]


def optional(description: str) -> Any:
    """A key that may be missing, which is not the same as null."""
    return Field(default_factory=lambda: None, description=description)


def checked(data: Any, form: type[T], *, cure: str, error: type[QkitError] = QkitError, where: str = "") -> T:
    """The data as a form.

    Parameters
    ----------
    cure
        What to do if they are not so.
    error
        What to raise.
    where
        Stands before the path.

    Raises
    ------
    QkitError
        With the path of the first part that is not as the form has it.
    """
    try:
        return TypeAdapter(form).validate_python(data)
    except ValidationError as failure:
        raise error(f"{where}{_first(failure, data)}; {cure}.") from failure


def _first(failure: ValidationError, data: Any) -> str:
    """What is wrong with the first part."""
    found = [(*_found(error["loc"], data), error) for error in failure.errors(include_url=False, include_context=False)]
    first, _, error = found[0]
    if error["type"] == "missing":
        return f"{'/'.join((*first, str(error['loc'][-1])))} is missing"
    # of the alternatives at one place, those that go furthest into the value were meant
    path, value, error = max((f for f in found if f[0][: len(first)] == first), key=lambda f: len(f[0]))
    place = "/".join(path) or "it"
    if error["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return f"{place} should not be there"
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    shown = shown if len(shown) <= _MOST_SHOWN else shown[:_MOST_SHOWN] + "…"
    said = dict.fromkeys(_SURROUNDING.sub("", other["msg"]) for at, _, other in found if at == path)
    return f"{place} is {shown}, but {' or '.join(said)}"


def _found(place: Sequence[int | str], value: Any) -> tuple[tuple[str, ...], Any]:
    """The path of a place and what is there; pydantic's names for alternatives, which stand between, are left out."""
    path = []
    for key in place:
        try:
            value = value[key]
        except (LookupError, TypeError):
            continue
        path.append(str(key))
    return tuple(path), value
