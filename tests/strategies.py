"""What property tests of several rooms draw from."""

from __future__ import annotations

from hypothesis import strategies as st

from qkit.quant.grids import QuantSpec

#: Every rule of a grid with one scale.
specs = st.builds(
    QuantSpec,
    bits=st.integers(2, 16),
    symmetric=st.booleans(),
    signed=st.sampled_from([None, True, False]),
    power_of_two=st.booleans(),
    narrow=st.booleans(),
)
