"""Just as much of protobuf's text format as TIDL's quantization files need: blocks, fields, where each stands in the text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from qkit.errors import PlanError

_SPACE = r"\s*+(?:#[^\n]*+(?:\n|\Z)\s*+)*+"
_TOKEN = re.compile(
    _SPACE
    + r"(?:(?P<open>[A-Za-z_]\w*+)\s*+:?\s*+\{|(?P<close>\})|(?P<key>[A-Za-z_]\w*+)\s*+:\s*+"
    + r'(?P<value>"(?:[^"\\\n]|\\.)*+"|[^\s{}#,;"]++)[,;]?)'
)
_END = re.compile(_SPACE + r"\Z")
#: Blocks of a layer that have a range.
PARTS = ("outputs", "weights", "bias", "slope")


@dataclass(eq=False)
class Layer:
    """A layer of the file.

    Attributes
    ----------
    name
        Its ``layer_name``.
    ranges
        Least and greatest value by part ("outputs", "weights", …), of the first tensor where there are several.
    """

    name: str = ""
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    spans: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)


def layers(text: str) -> list[Layer]:
    """The file's layers, in its order.

    Raises
    ------
    PlanError
        If the text is no such file, or a range in it is no range.
    """
    found: list[Layer] = []
    blocks: list[str] = []
    numbers: dict[str, float] = {}
    position = 0
    while not _END.match(text, position):
        match = _TOKEN.match(text, position)
        if match is None:
            line = text.count("\n", 0, position) + 1
            raise PlanError(f"the prototxt cannot be read at line {line}: {text[position : position + 40].strip()!r}.")
        position = match.end()
        if match["open"]:
            blocks.append(match["open"])
            if blocks == ["layers"]:
                found.append(Layer())
            numbers = {}
        elif match["close"]:
            if not blocks:
                raise PlanError("the prototxt closes a block that it did not open.")
            part = blocks.pop()
            if blocks == ["layers"] and part in PARTS and {"min", "max"} <= set(numbers):
                found[-1].ranges.setdefault(part, (numbers["min"], numbers["max"]))
        elif blocks == ["layers"] and match["key"] == "layer_name":
            value = match["value"]
            found[-1].name = value[1:-1] if value.startswith('"') else value
        elif len(blocks) == 2 and blocks[0] == "layers" and blocks[1] in PARTS and match["key"] in {"min", "max"}:
            numbers[match["key"]] = _number(match["value"], found[-1].name)
            if blocks[1] not in found[-1].ranges:
                found[-1].spans.setdefault(blocks[1], {})[match["key"]] = match.span("value")
    if blocks:
        raise PlanError(f"the prototxt ends inside of {blocks[-1]!r}.")
    if not found:
        raise PlanError("the prototxt has no layers: it is none of TIDL's quantization files.")
    return found


def edited(text: str, changes: Mapping[int, Mapping[str, tuple[float, float]]]) -> str:
    """The text with other ranges, by number of layer and part; a part that a layer does not have is left out."""
    edits: list[tuple[int, int, str]] = []
    for i, layer in enumerate(layers(text)):
        for part, (low, high) in changes.get(i, {}).items():
            spans = layer.spans.get(part, {})
            edits += [(*spans[key], repr(value)) for key, value in (("min", low), ("max", high)) if key in spans]
    for start, end, value in sorted(edits, reverse=True):
        text = text[:start] + value + text[end:]
    return text


def _number(text: str, layer: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise PlanError(f"the prototxt has {text!r} for an end of a range of {layer or 'its first layer'}.")
    return value
