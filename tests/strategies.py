"""What property tests of several rooms draw from."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from qkit.quant.grids import QuantSpec


def rules(**more: Any) -> st.SearchStrategy[QuantSpec]:
    """Every rule of a grid; of one with one scale, unless `more` says otherwise."""
    return st.builds(
        QuantSpec,
        bits=st.integers(2, 16),
        symmetric=st.booleans(),
        signed=st.sampled_from([None, True, False]),
        power_of_two=st.booleans(),
        narrow=st.booleans(),
        **more,
    )


specs = rules()
