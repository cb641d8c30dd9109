"""The JSON form's schema, and a check against it that names the part which is not as it should be.

``schema.json`` is JSON Schema 2020-12, for any validator. The check here knows those of its words that the file uses, so that
reading a report needs no further package; the tests hold it against the `jsonschema` package.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

_KINDS: Mapping[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,),
    "null": (type(None),),
}  # fmt: skip
_KNOWN = frozenset((
    "$ref", "type", "const", "enum", "anyOf", "pattern", "minimum", "maximum", "minLength", "minItems", "maxItems", "items",
    "required", "properties", "additionalProperties", "minProperties",
    # words for readers
    "$schema", "$id", "$defs", "$comment", "title", "description", "examples",
))  # fmt: skip
_MOST_SHOWN = 60


@functools.cache
def load() -> dict[str, Any]:
    """The schema as plain data."""
    text = resources.files("qkit.report").joinpath("schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def problem(data: Any) -> str:
    """The first thing in which the data are not as the schema says, in a sentence without its full stop; "" if there is none."""
    return next(_problems(data, load(), ""), "")


def _is(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _KINDS[kind])


def _problems(value: Any, rule: Mapping[str, Any] | bool, at: str) -> Iterator[str]:
    if isinstance(rule, bool):
        if not rule:
            yield f"{at or 'the report'} should not be there"
        return
    unknown = set(rule) - _KNOWN
    assert not unknown, unknown
    if "$ref" in rule:
        yield from _problems(value, load()["$defs"][rule["$ref"].removeprefix("#/$defs/")], at)
    kinds = rule.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if kinds and not any(_is(value, kind) for kind in kinds):
        yield f"{at or 'the report'} is {_shown(value)}, not {' or '.join(kinds)}"
        return
    if "anyOf" in rule:
        found = [list(_problems(value, option, at)) for option in rule["anyOf"]]
        if all(found):
            # the option that goes furthest into the value is the one that was meant
            yield max((problems[0] for problems in found), key=lambda said: said.partition(" ")[0].count("/"))
            return
    if "const" in rule and not _same(value, rule["const"]):
        yield f"{at} is {_shown(value)}, not {rule['const']!r}"
    if "enum" in rule and not any(_same(value, option) for option in rule["enum"]):
        yield f"{at} is {_shown(value)}, not one of {', '.join(map(repr, rule['enum']))}"
    yield from _of_kind(value, rule, at)


def _of_kind(value: Any, rule: Mapping[str, Any], at: str) -> Iterator[str]:
    if isinstance(value, str):
        if "pattern" in rule and not re.search(rule["pattern"], value):
            yield f"{at} is {_shown(value)}, which does not look like {rule['pattern']}"
        if len(value) < rule.get("minLength", 0):
            yield f"{at} is empty"
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if value < rule.get("minimum", value):
            yield f"{at} is {value}, less than {rule['minimum']}"
        if value > rule.get("maximum", value):
            yield f"{at} is {value}, more than {rule['maximum']}"
    elif isinstance(value, list):
        if len(value) < rule.get("minItems", 0) or len(value) > rule.get("maxItems", len(value)):
            yield f"{at} has {len(value)} entries"
        for i, entry in enumerate(value):
            yield from _problems(entry, rule.get("items", True), f"{at}/{i}")
    elif isinstance(value, dict):
        for name in rule.get("required", []):
            if name not in value:
                yield f"{f'{at}/{name}'.lstrip('/')} is missing"
        if len(value) < rule.get("minProperties", 0):
            yield f"{at} has no entry"
        known = rule.get("properties", {})
        for name, entry in value.items():
            yield from _problems(entry, known.get(name, rule.get("additionalProperties", True)), f"{at}/{name}".lstrip("/"))


def _same(value: Any, wanted: Any) -> bool:
    """Equal as JSON has it, where true is no number."""
    return value == wanted and isinstance(value, bool) == isinstance(wanted, bool)


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else "an array"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + "…"
