"""What fuzzing has found stays found; and a little of it with every run of the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz.targets import TARGETS, sealed, seeds

CASES = Path(__file__).parents[2] / "fuzz" / "cases"
FOUND = [
    (name, path.name) for name in TARGETS for path in (CASES / name).iterdir() if path.suffix == ""
]


@pytest.mark.parametrize(("name", "case"), FOUND)
def test_what_fuzzing_has_found_breaks_nothing_any_more(name: str, case: str) -> None:
    TARGETS[name]((CASES / name / case).read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzing_begins_with_is_as_it_should_be(name: str) -> None:
    for seed in seeds(name):
        TARGETS[name](seed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)
WHOLE: tuple[Any, ...] = (
    "response",
    200,
    [["a", "b"]],
    1.0,
    0.0,
    9.0,
    [0, 0, False],
    False,
    4,
    [],
    "",
)


@given(at=st.integers(0, len(WHOLE) - 1), odd=JSON)
def test_no_entry_with_a_right_checksum_and_an_odd_head_is_an_error(at: int, odd: object) -> None:
    """Who can write to the database can write such a thing; it is a miss."""
    TARGETS["entries"](sealed([*WHOLE[:at], odd, *WHOLE[at + 1 :]]))


@given(data=st.binary(max_size=200))
def test_no_bytes_from_the_wire_are_more_than_one_of_our_errors(data: bytes) -> None:
    TARGETS["wire"](data)
