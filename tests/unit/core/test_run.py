"""Runs: what a ring and a hub do with them is what they do with the same entries one by one."""

from __future__ import annotations

import sys
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rowcast.core import codec, sse
from rowcast.core.body import PublishBody
from rowcast.core.entry import Batch, Control, Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.position import Place, Position, format_position
from rowcast.core.ring import Ring
from rowcast.core.run import EncodedBody, Packed, Run
from rowcast.core.stream import Stream
from rowcast.hub import Hub


def entry(number: int, topic: str, key: str | None = None, event: str | None = None) -> Entry:
    data = b'{"number":%d}' % number
    return Entry(Kind.DATA, (number, 1), PublishBody(topic, data, key), topic, key=key, event=event, time=number)


def packed(entries: list[Entry]) -> Packed:
    return codec.unpack(codec.encode(entries, 1 << 20))


def read(ring: Ring, after: Place, topics: set[str]) -> list[tuple[Place, str]] | None:
    walk = ring.walk(after, topics)
    return None if walk is None else [(item.place, item.topic) for item in walk]


BATCHES = st.lists(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from([None, None, "k", "l"])), min_size=2, max_size=60),
    max_size=12,
)
"""Of two and more: one alone is no run."""


@settings(deadline=None, max_examples=150)
@given(BATCHES, st.none() | st.integers(0, 80), st.data())
def test_a_ring_of_runs_is_a_ring_of_entries(
    batches: list[list[tuple[str, str | None]]], most: int | None, data: st.DataObject
) -> None:
    ours, plain = Ring(1 << 30, most), Ring(1 << 30, most)
    number = 0
    for batch in batches:
        entries = [entry(number := number + 1, topic, key) for topic, key in batch]
        for part in packed(entries).parts:
            assert isinstance(part, Run)
            ours.extend(part)
        if data.draw(st.booleans()) and len(ours):  # some are made into entries, and stay so
            ours.entry(data.draw(st.integers(ours.first, ours.end - 1)))
        for item in entries:
            plain.append(item)
        assert (ours.floor, ours.first, ours.end) == (plain.floor, plain.first, plain.end)
        after = (data.draw(st.integers(0, number + 1)), data.draw(st.integers(0, 2)))
        topics = data.draw(st.sets(st.sampled_from("abcde")))
        assert read(ours, after, topics) == read(plain, after, topics)
    held = [ours.entry(seq) for seq in range(ours.first, ours.end)]
    assert ours.bytes == sum(item.size for item in held)


def test_a_ring_of_runs_is_bounded_by_bytes() -> None:
    ring = Ring(20_000)
    for start in range(1, 5000, 100):
        for part in packed([entry(start + n, f"t{n % 7}") for n in range(100)]).parts:
            assert isinstance(part, Run)
            first = ring.extend(part)
            assert ring.bytes <= 20_000
            assert 0 < len(ring) < 200
            assert ring.end - first == 100
    assert ring.floor == ring.entry(ring.first).place[:0] + (ring.entry(ring.first).place[0] - 1, 1)
    tiny = Ring(10)
    (part,) = packed([entry(n, "t") for n in range(1, 4)]).parts
    assert isinstance(part, Run)
    tiny.extend(part)
    assert (len(tiny), tiny.floor, tiny.bytes) == (0, (3, 1), 0)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 1 << 40), st.sampled_from([b"{}", b"[\n]", b"\r\n"]))
def test_a_frame_is_what_the_framing_makes_of_it(major: int, minor: int, data: bytes) -> None:
    for event in (None, "e"):
        made = Entry(Kind.DATA, (major, minor), EncodedBody(data), "t", event=event).frame("7f3a", 100)
        assert made == sse.frame(data, position=format_position("7f3a", (major, minor)), event=event)


def test_an_entry_of_the_ring_is_made_once() -> None:
    ring = Ring(1 << 20)
    (part,) = packed([entry(n, "t") for n in range(1, 4)]).parts
    assert isinstance(part, Run)
    seq = ring.extend(part)
    assert ring.entry(seq + 1) is ring.entry(seq + 1)
    assert ring.entry(seq + 1).place == (2, 1)


class Desk:
    """A hub with streams."""

    def __init__(self, **settings: Any) -> None:
        options: dict[str, Any] = {"ring_bytes": 1 << 26, "max_event": 1 << 20, "heartbeat": 15} | settings
        self.hub = Hub(None, [], None, replica="r", max_streams=99, max_streams_per_user=99, **options)  # type: ignore[arg-type]
        self.hub.handle(Batch("e", [], (0, 1), reset="start"))
        self.hub.warm = True
        self.streams: dict[str, Stream] = {}

    def connect(self, user: str, topics: set[str], cursor: Position | None = None) -> None:
        self.streams[user] = self.hub.connect(Grant(user, frozenset(topics)), lambda: None, cursor=cursor)

    def texts(self) -> dict[str, bytes]:
        return {user: b"".join(iter(stream.take, b"")) for user, stream in self.streams.items()}


@settings(deadline=None, max_examples=100)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from("abcd"), st.sampled_from([None, "k"]), st.sampled_from([None, None, "e"])),
            min_size=1,
            max_size=12,
        ),
        max_size=6,
    ),
    st.lists(st.sets(st.sampled_from("abcd")), max_size=4),
    st.integers(0, 30),
)
def test_streams_get_the_same(
    batches: list[list[tuple[str, str | None, str | None]]], topics: list[set[str]], cursor: int
) -> None:
    ours, plain = Desk(), Desk()
    number = 0
    for index, batch in enumerate(batches):
        entries = [entry(number := number + 1, topic, key, event) for topic, key, event in batch]
        entries.insert(len(entries) // 2, Entry(Kind.CONTROL, entries[0].place, Control("resubscribe", "u0")))
        if index < len(topics):
            for desk in (ours, plain):
                desk.connect(f"u{index}", topics[index])
        ours.hub.handle(Batch("e", packed(entries), (number, 1)))
        plain.hub.handle(Batch("e", codec.decode(codec.encode(entries, 1 << 20)), (number, 1)))
    for desk in (ours, plain):
        desk.connect("late", {"a", "b"}, Position("e", min(cursor, number), 1))
    assert ours.texts() == plain.texts()
    assert ours.hub.entries == plain.hub.entries
    assert ours.hub.deliveries == plain.hub.deliveries


def test_what_a_ring_too_small_for_the_batch_lost_is_delivered_all_the_same() -> None:
    desk = Desk(ring_bytes=1000)
    desk.connect("ann", {"t"})
    desk.hub.handle(Batch("e", packed([entry(n, "t") for n in range(1, 101)]), (100, 1)))
    assert desk.texts()["ann"].count(b'"number"') == 100


def test_an_entry_that_nobody_listens_to_costs_no_call() -> None:
    """The tail of a redis log by counts: no call of Python, and no object, for an entry of other replicas' streams."""
    desk = Desk()
    desk.connect("ann", {"mine"})
    few = codec.encode([entry(n, f"t{n % 50}") for n in range(1, 101)], 1 << 20)
    many = codec.encode([entry(n, f"t{n % 50}") for n in range(101, 601)], 1 << 20)
    counts = []
    for data, head in ((few, (100, 1)), (many, (600, 1))):
        calls: list[str] = []

        def profile(frame: Any, event: str, argument: Any, calls: list[str] = calls) -> None:
            if event == "call":
                calls.append(frame.f_code.co_name)

        sys.setprofile(profile)
        try:
            desk.hub.handle(Batch("e", codec.unpack(data), head))
        finally:
            sys.setprofile(None)
        counts.append(len(calls))
    assert max(counts) < 60, counts  # of a batch, however many entries it has
    assert not any(isinstance(held, Entry) for held in desk.hub.ring._entries)
