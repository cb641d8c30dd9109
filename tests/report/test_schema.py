"""The JSON's schema: real reports against it by the `jsonschema` package, and the kit's own check against that package."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from typing import Any

import jsonschema
import numpy as np
import pytest
from report_cases import tiny_study

from qkit import Scheme
from qkit.errors import QkitError
from qkit.forms import checked
from qkit.report import make, schema, write
from qkit.report.form import Document
from qkit.report.writing import dump

VALIDATOR = jsonschema.Draft202012Validator(schema())


def problem(data: Any) -> str:
    """What the kit's own check says."""
    try:
        checked(data, Document, cure="")
    except QkitError as error:
        return str(error)
    return ""


def test_schema_is_one_of_2020_12_and_every_part_is_described():
    jsonschema.Draft202012Validator.check_schema(schema())
    rules = schema()
    assert rules["$schema"].endswith("2020-12/schema")
    # these came later than the form's version, and reports without it are read
    assert set(rules["properties"]) - set(rules["required"]) == {"names", "network"}
    assert all("description" in rule for rule in rules["properties"].values() if "$ref" not in rule)
    assert all(name in json.dumps(rules) for name in rules["$defs"])


def test_real_reports_keep_to_it(report, full, tmp_path):
    for made in (report, full):
        data = json.loads(write(made, tmp_path / "r.json").read_text())
        VALIDATOR.validate(data)
        assert problem(data) == ""
    assert full.treatment is not None
    assert full.mixed is not None
    assert full.engines[0]["first"] == "second"
    assert full.maps


@pytest.mark.parametrize("case", ["float", "int4", "agreement", "own metric"])
def test_reports_in_odd_states_keep_to_it(case):
    options: dict[str, Any] = {
        "float": {"scheme": Scheme("nothing", None, None, bias_bits=None)},
        "int4": {"scheme": "int4-weights"},
        "agreement": {"metric": "agreement"},
        "own metric": {"metric": lambda outputs, targets: -outputs.square().sum(1)},
    }[case]
    data = make(tiny_study(**options), worst=2, sensitivity=case == "int4", progress=False).to_dict()
    VALIDATOR.validate(data)
    assert problem(data) == ""
    json.dumps(data, allow_nan=False)


def test_numbers_that_are_none_do_not_get_in(report):
    odd = report.scores.copy()
    odd.loc["int8", "low"] = float("nan")
    data = dataclasses.replace(report, scores=odd).to_dict()
    assert data["scores"]["int8"]["low"] is None
    assert "scores/int8/low" in problem(data)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


REPLACEMENTS: tuple[Any, ...] = (None, True, -1, 2.0, 2.5, 10**9, "words", "inf", [], ["x"], {}, {"a": 1})


def _places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [at, *(place for key, entry in inner for place in _places(entry, (*at, key)))]


@pytest.mark.parametrize("seed", range(6))
def test_own_check_agrees_with_jsonschema_on_damaged_reports(full, seed):
    """Values replaced and entries left out, anywhere: both accept, or both refuse."""
    rng = random.Random(seed)
    data = full.to_dict()
    places = [place for place in _places(data) if place]
    refused = 0
    for _ in range(25):
        place = rng.choice(places)
        damaged = copy.copy(data)
        parent: Any = damaged
        for key in place[:-1]:
            parent[key] = copy.copy(parent[key])
            parent = parent[key]
        if rng.random() < 0.4 and isinstance(parent, dict):
            del parent[place[-1]]
        else:
            parent[place[-1]] = copy.deepcopy(rng.choice(REPLACEMENTS))
        said = problem(damaged)
        assert VALIDATOR.is_valid(damaged) == (said == ""), (place, said)
        refused += bool(said)
        if said:
            assert str(place[0]) in said
    assert refused > 3


def test_the_file_is_json_that_tells_lines_apart():
    value = {"a": [1, 2.5, None], "b": {"c": [{"d": 'ü\n"'}, []], "e": {}}, "f": [[1], [2]], "n": np.float64(0.1).item()}
    text = dump(value)
    assert json.loads(text) == value
    assert '"a": [1, 2.5, null]' in text
    assert max(map(len, text.splitlines())) < 40
    with pytest.raises(ValueError, match=r"[Oo]ut of range"):
        dump({"x": float("inf")})
