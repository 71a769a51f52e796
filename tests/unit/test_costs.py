"""What the hot paths cost, by counts: calls of our functions, writes, and blocks of memory that stay.

Counts are the same on a busy machine and an idle one. A bound that is passed means that a path got more expensive for
every delivery, stream or heartbeat: make it cheaper again, or say in the commit why it is worth that.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import rowcast
from rowcast.core.body import PublishBody
from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.position import Position
from rowcast.core.stream import StreamState
from rowcast.http.taken import TakenWriter
from rowcast.hub import Hub

PACKAGE = str(Path(rowcast.__file__).parent)
MANY = 1000


class Transport:
    """Takes everything, and counts how often."""

    def __init__(self, counted: list[int]) -> None:
        self._counted = counted

    def write(self, data: bytes) -> None:
        self._counted[0] += 1

    def get_extra_info(self, name: str) -> None:
        return None

    def set_protocol(self, protocol: Any) -> None:
        pass

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        pass

    def close(self) -> None:
        pass

    def abort(self) -> None:
        pass


class Desk:
    """A hub, with streams whose transports were taken over. No loop runs: what is to be written is written at once."""

    def __init__(self) -> None:
        self.hub = Hub(
            None,  # type: ignore[arg-type]  # nothing is read from it
            [],
            None,
            replica="r",
            ring_bytes=1 << 30,
            max_event=1 << 20,
            max_streams=1_000_000,
            max_streams_per_user=10,
            heartbeat=15.0,
        )
        self.hub.handle(Batch("e", [], (1, 0), reset="start"))
        self.hub.warm = True
        self.counted = [0]
        self.place = 1

    @property
    def writes(self) -> int:
        """The writes since this was asked last."""
        found, self.counted[0] = self.counted[0], 0
        return found

    def open(self, number: int, *topics: str, cursor: Position | None = None) -> None:
        writer = TakenWriter(self.hub)
        writer.take_over(Transport(self.counted), set(), b"HTTP/1.1 200 OK\r\n\r\n", full=False)  # type: ignore[arg-type]
        writer.carry(self.hub.connect(Grant(f"u{number}", topics), writer.wake, cursor=cursor), b"retry: 1\n\n")

    def batch(self, *topics: str) -> Batch:
        self.place += 1
        entries = [
            Entry(Kind.DATA, (self.place, number + 1), PublishBody(topic, b'{"n":1}'), topic=topic, time=1)
            for number, topic in enumerate(topics)
        ]
        return Batch("e", entries, (self.place, len(topics)))


@pytest.fixture
def desk() -> Iterator[Desk]:
    gc.collect()
    gc.disable()  # a collection in the middle would be counted
    yield Desk()
    gc.enable()


def calls(function: Callable[[], Any]) -> int:
    """How many functions of ours were called."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            count += 1

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def kept(function: Callable[[], Any]) -> int:
    """How many more blocks of memory there are afterwards."""
    gc.collect()
    before = sys.getallocatedblocks()
    function()
    gc.collect()
    return sys.getallocatedblocks() - before


@pytest.mark.parametrize("entries", [1, 20])
def test_a_flush_is_one_write_a_stream_whatever_is_pending(desk: Desk, entries: int) -> None:
    for number in range(MANY):
        desk.open(number, "t")
    desk.hub.handle(desk.batch("t"))
    assert desk.writes == 2 * MANY, "one as it was opened, and one for the entry"
    batch = desk.batch(*["t"] * entries)
    # Hub.wake, TakenWriter.wake, its _write, Stream.take; what is per entry or per batch is no more than a few dozen.
    assert calls(lambda: desk.hub.handle(batch)) <= 4 * MANY + 20 * entries + 40
    assert desk.writes == MANY


def test_what_nobody_listens_to_is_not_even_encoded(desk: Desk) -> None:
    desk.open(0, "t")
    desk.hub.handle(desk.batch("t"))
    batch = desk.batch(*["other"] * 100)
    assert desk.writes == 2
    # Into the ring, and asked who listens.
    assert calls(lambda: desk.hub.handle(batch)) <= 7 * 100 + 40
    assert desk.writes == 0
    assert all(entry._frame is None for entry in batch.entries)


def test_a_delivery_leaves_nothing_behind_but_the_entry(desk: Desk) -> None:
    for number in range(MANY):
        desk.open(number, "t")
    for _ in range(3):
        desk.hub.handle(desk.batch("t"))
    batches = [desk.batch("t") for _ in range(20)]

    def deliver() -> None:
        for batch in batches:
            desk.hub.handle(batch)

    assert kept(deliver) <= 20 * 2


def test_opening_a_stream_is_one_write(desk: Desk) -> None:
    desk.open(0, "t")
    assert desk.writes == 1

    def opened() -> None:
        for number in range(1, 101):
            desk.open(number, "t")

    assert calls(opened) <= 100 * 50
    assert desk.writes == 100


@pytest.mark.parametrize("topics", [1, 20])
def test_what_an_idle_stream_keeps(desk: Desk, topics: int) -> None:
    """Beside the transport, which is not ours: blocks of memory, and their bytes."""
    names = tuple(f"topic:{number}" for number in range(topics))
    desk.open(MANY, *names)

    def opened() -> None:
        for number in range(MANY):
            desk.open(number, *names)

    tracemalloc.start()
    try:
        # 280 bytes are the stream, 90 its writer; a topic takes a place in two tuples and one in its dictionary.
        assert kept(opened) <= 20 * MANY
        assert tracemalloc.get_traced_memory()[0] <= (1600 + 60 * topics) * MANY
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("others", [100, 5000])
def test_a_catch_up_costs_what_the_stream_gets(desk: Desk, others: int) -> None:
    desk.hub.handle(desk.batch("t"))
    start = Position("e", *desk.hub.head)
    for _ in range(100):
        desk.hub.handle(desk.batch("t", *[f"other:{n}" for n in range(others // 100)]))
    count = calls(lambda: desk.open(0, "t", cursor=start))
    (stream,) = desk.hub.streams
    assert stream.state is StreamState.LIVE
    assert desk.writes == 1
    # Of each entry: the step of the walk, and the frame with its body.
    assert count <= 100 * 15 + 100


def test_a_heartbeat_is_one_write_of_those_whose_turn_it_is(desk: Desk) -> None:
    for number in range(MANY):
        desk.open(number, "t")
    desk.hub.handle(desk.batch("other"))
    assert desk.writes == MANY
    slots = len(desk.hub.wheel._slots)
    total = 0
    for _ in range(slots):
        total += calls(lambda: desk.hub.wheel.turn(0.0))
    assert desk.writes == MANY
    assert total <= 14 * MANY + 10 * slots
