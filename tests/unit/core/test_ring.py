"""The ring against a plain list."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowcast.core.entry import Entry, Kind
from rowcast.core.position import Place
from rowcast.core.ring import Ring


class Body:
    def __init__(self, size: int = 0) -> None:
        self.size = size

    def encode(self, limit: int) -> bytes:
        return b"{}"


def entry(number: int, topic: str, *, kind: Kind = Kind.DATA, size: int = 0, key: str | None = None) -> Entry:
    return Entry(kind, (number, 1), Body(size), topic=topic, key=key)


def read(ring: Ring, after: Place, topics: set[str]) -> list[Place] | None:
    walk = ring.walk(after, topics)
    return None if walk is None else [item.place for item in walk]


def test_gives_what_is_above_a_place_of_some_topics() -> None:
    ring = Ring(1 << 20)
    for number, topic in enumerate("abcab", 1):
        ring.append(entry(number, topic))
    assert read(ring, (0, 0), {"a", "c"}) == [(1, 1), (3, 1), (4, 1)]
    assert read(ring, (1, 1), {"a"}) == [(4, 1)]
    assert read(ring, (5, 1), {"a", "b"}) == []
    assert read(ring, (0, 0), set()) == []


def test_says_so_when_entries_may_be_gone() -> None:
    ring = Ring(1 << 20, max_entries=2)
    for number in range(1, 5):
        ring.append(entry(number, "a"))
    assert ring.floor == (2, 1)
    assert read(ring, (1, 1), {"a"}) is None
    assert read(ring, (2, 1), {"a"}) == [(3, 1), (4, 1)]


def test_bounded_by_bytes() -> None:
    ring = Ring(10_000)
    for number in range(1, 1000):
        ring.append(entry(number, str(number % 7), size=1000))
        assert ring.bytes <= 10_000
    assert 0 < len(ring) < 10


def test_one_entry_over_the_bound_leaves_an_empty_ring() -> None:
    ring = Ring(10_000)
    ring.append(entry(1, "a", size=100_000))
    assert len(ring) == 0
    assert ring.bytes == 0
    assert ring.floor == (1, 1)


def test_sweeps_reach_the_topics_that_start_with_theirs() -> None:
    ring = Ring(1 << 20)
    ring.append(entry(1, "finance:A"))
    ring.append(entry(2, "finance:", kind=Kind.SWEEP))
    ring.append(entry(3, "chat:1"))
    assert read(ring, (0, 0), {"finance:A"}) == [(1, 1), (2, 1)]
    assert read(ring, (0, 0), {"chat:1"}) == [(3, 1)]


def test_restart_forgets_and_a_walk_under_way_notices() -> None:
    ring = Ring(1 << 20)
    ring.append(entry(1, "a"))
    walk = ring.walk((0, 0), {"a"})
    assert walk is not None
    ring.restart((9, 0))
    assert walk.lost
    assert read(ring, (8, 0), {"a"}) is None
    assert read(ring, (9, 0), {"a"}) == []


def test_a_walk_whose_next_entry_was_evicted_is_lost() -> None:
    ring = Ring(1 << 20, max_entries=3)
    for number in range(1, 4):
        ring.append(entry(number, "a"))
    walk = ring.walk((0, 0), {"a"})
    assert walk is not None
    assert next(iter(walk)).place == (1, 1)
    ring.append(entry(4, "b"))
    assert not walk.lost
    ring.append(entry(5, "b"))
    assert walk.lost


def test_of_entries_with_a_key_the_newest_of_the_range_is_read() -> None:
    ring = Ring(1 << 20, max_entries=6)
    for number, key in enumerate("xyx", 1):
        ring.append(entry(number, "a", key=key))
    ring.append(entry(4, "a"))  # a delete has no key, and stays
    ring.append(entry(5, "b", key="x"))
    ring.append(entry(6, "a", key="y"))
    assert read(ring, (0, 0), {"a"}) == [(3, 1), (4, 1), (6, 1)]
    walk = ring.walk((0, 0), {"a"}, (3, 1))
    assert walk is not None
    assert [item.place for item in walk] == [(2, 1), (3, 1)], "a newer one beyond the range does not count"
    for number in range(7, 20):
        ring.append(entry(number, "c"))
    assert not ring._newest


@settings(max_examples=300)
@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 3), st.booleans()), max_size=3000),
    st.sets(st.sampled_from("abcdef")),
    st.integers(0, 3000),
    st.integers(1, 2000),
    st.integers(0, 3000),
)
def test_equals_a_list(items: list[tuple[str, int, bool]], topics: set[str], after: int, limit: int, upto: int) -> None:
    """Filtered reading, in two goes with more entries between, equals filtering a list."""
    ring = Ring(1 << 40, max_entries=limit)
    kept: list[Entry] = []
    for number, (topic, _, sweep) in enumerate(items, 1):
        kept.append(entry(number, topic, kind=Kind.SWEEP if sweep and topic == "f" else Kind.DATA))
        ring.append(kept[-1])
    held = kept[-limit:]
    floor: Any = kept[-limit - 1].place if len(kept) > limit else (0, 0)
    assert ring.floor == floor
    expected = [e.place for e in held if e.topic in topics and (after, 1) < e.place <= (upto, 1)]
    walk = ring.walk((after, 1), topics, (upto, 1))
    if (after, 1) < floor:
        assert walk is None
    else:
        assert walk is not None
        assert [e.place for e in walk] == expected


@pytest.mark.parametrize("extra", [0, 1, 5000])
def test_walks_on(extra: int) -> None:
    ring = Ring(1 << 40)
    for number in range(1, 100):
        ring.append(entry(number, "ab"[number % 2]))
    walk = ring.walk((0, 0), {"a"})
    assert walk is not None
    first = [e.place for e in walk]
    for number in range(100, 100 + extra):
        ring.append(entry(number, "ab"[number % 2]))
    further = ring.walk_on(walk.end, {"a"})
    assert further is not None
    assert first + [e.place for e in further] == [(n, 1) for n in range(2, 100 + extra, 2)]
