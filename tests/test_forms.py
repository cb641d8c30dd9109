"""Forms of files: what does not fit is named by its path, once, with what it should be."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import Field

from qkit.errors import PlanError
from qkit.forms import Count, Form, Whole, checked, optional


class Row(Form):
    size: Count
    either: Annotated[str, Field(pattern="^a*$")] | list[float]
    more: Whole = optional("More.")


class Table(Form, extra="forbid"):
    rows: dict[str, Row]
    flag: bool = False


ROW: dict[str, Any] = {"size": 2, "either": "aa"}


@pytest.mark.parametrize("row", [ROW, {**ROW, "size": 2.0}, {**ROW, "either": [1, 2.5]}, {**ROW, "more": -1}, {**ROW, "new": 1}])
def test_what_fits(row):
    found = checked({"rows": {"a b/c": row}}, Table, cure="")
    assert found.rows["a b/c"].size == 2
    assert found.rows["a b/c"].more == row.get("more")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({}, "rows is missing"),
        ([], "it is [], but should be a valid dictionary"),
        ({"rows": {}, "rowz": 1}, "rowz should not be there"),
        ({"rows": {}, "flag": 1}, "flag is 1, but should be a valid boolean"),
        ({"rows": {"x": {}}}, "rows/x/size is missing"),
        ({"rows": {"x": {**ROW, "size": True}}}, "rows/x/size is true, but should be a valid integer"),
        ({"rows": {"x": {**ROW, "size": "2"}}}, 'rows/x/size is "2", but should be a valid integer'),
        ({"rows": {"x": {**ROW, "size": 2.5}}}, "rows/x/size is 2.5, but should be a valid integer"),
        ({"rows": {"x": {**ROW, "size": -1}}}, "rows/x/size is -1, but should be greater than or equal to 0"),
        ({"rows": {"x": {**ROW, "more": None}}}, "rows/x/more is null, but should be a valid integer"),
        ({"rows": {"x": {**ROW, "either": [1, "b"]}}}, 'rows/x/either/1 is "b", but should be a valid number'),
        (
            {"rows": {"x": {**ROW, "either": "b" * 99}}},
            f"""rows/x/either is "{"b" * 59}…, but should match pattern '^a*$' or should be a valid list""",
        ),
        ({"rows": {"x": ROW, "y": 3}}, "rows/y is 3, but should be a valid dictionary"),
    ],
)
def test_what_does_not_is_named(data, said):
    with pytest.raises(PlanError) as caught:
        checked(data, Table, error=PlanError, where="a.json: ", cure="write it again")
    assert str(caught.value) == f"a.json: {said}; write it again."
