"""Numbers in keys of the journal."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from journal.rows import number, numbers, take_number

U64 = st.integers(0, (1 << 64) - 1)


@given(U64, U64)
@example(0, 1)
@example(255, 256)
def test_they_sort_as_their_bytes_do_and_read_back(one: int, other: int) -> None:
    assert (one < other) == (number(one) < number(other))
    assert take_number(b"x" + number(one) + number(other), 1) == (one, 1 + len(number(one)))


@given(st.integers(0, (1 << 62)), st.integers(1, 600))
@example(200, 100)  # the last has a byte more than the first
@example(0, 1)
@example((1 << 32) - 300, 600)
def test_many_in_turn_are_those_of_each(first: int, count: int) -> None:
    assert numbers(first, count) == [number(value) for value in range(first, first + count)]
