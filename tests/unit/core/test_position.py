from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.position import Position, format_lsn, parse_lsn, parse_position
from rowcast.errors import PositionError

LSNS = st.integers(0, 2**64 - 1)
MARKS = st.integers(0, 2**51)
"""Microseconds since the Unix epoch, until 2041."""
positions = st.builds(
    Position,
    st.from_regex(r"[0-9a-f]{1,16}", fullmatch=True),
    LSNS,
    st.integers(0, 2**62),
    MARKS,
    st.just(0),
    st.booleans(),
)
overtaking = st.builds(
    Position,
    st.from_regex(r"[0-9a-f]{8}", fullmatch=True),
    st.integers(0, 2**48),
    st.integers(0, 2**43),
    st.integers(1, 2**51),
    MARKS,
    st.booleans(),
)


@given(positions | overtaking)
def test_round_trip(position: Position) -> None:
    text = str(position)
    assert parse_position(text) == position
    assert len(text) <= 64


@given(positions, positions)
def test_places_are_ordered_by_lsn_then_minor(one: Position, other: Position) -> None:
    assert (one.place < other.place) == ((one.major, one.minor) < (other.major, other.minor))


@pytest.mark.parametrize(
    "text",
    ["", "1", "e:1", "e:1-", ":1-0", "e:1-0 ", " e:1-0", "e:1-0\n", "E:1-0", "e:1--1", "e:G-0", "e:1-٣"]
    + ["e:1-" + "0" * 60, "e:11111111111111111-0", "x" * 10_000],
)
def test_malformed(text: str) -> None:
    with pytest.raises(PositionError, match="Last-Event-ID"):
        parse_position(text)


@given(st.text(max_size=80))
def test_anything_else_is_a_position_error(text: str) -> None:
    try:
        position = parse_position(text)
    except PositionError:
        return
    assert parse_position(str(position)) == position


@given(LSNS)
def test_lsn_round_trip(lsn: int) -> None:
    assert parse_lsn(format_lsn(lsn)) == lsn
