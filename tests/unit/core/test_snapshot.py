from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rowcast.core.snapshot import Snapshot


def test_parses_what_postgres_writes() -> None:
    assert Snapshot.parse("10:20:10,14,15") == Snapshot(10, 20, frozenset({10, 14, 15}))
    assert Snapshot.parse("10:10:") == Snapshot(10, 10)


def test_saw() -> None:
    snapshot = Snapshot.parse("10:20:10,14")
    assert [xid for xid in range(5, 25) if snapshot.saw(xid)] == [
        5,
        6,
        7,
        8,
        9,
        11,
        12,
        13,
        15,
        16,
        17,
        18,
        19,
    ]


def test_unseen_beyond_xmax_though_not_listed() -> None:
    assert not Snapshot(10, 20).saw(20)


def test_settled_is_below_xmin() -> None:
    snapshot = Snapshot.parse("10:20:10,14")
    assert snapshot.settled(9)
    assert not snapshot.settled(10)
    assert not snapshot.settled(12), "a later load sees it, but so does not one that is under way"


@given(st.integers(2**33, 2**40), st.integers(-(2**30), 2**30))
def test_ids_of_32_bits_wrap(xmax: int, distance: int) -> None:
    snapshot = Snapshot(xmax, xmax)
    full = xmax + distance
    assert snapshot.saw(full % 2**32) == (full < xmax)
