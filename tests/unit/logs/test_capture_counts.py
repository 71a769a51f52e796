"""The capture path by counts: what a row costs in calls of Python and in objects, however fast the machine is.

A call costs about as much as everything that it does here, so a new one on this path must be worth it: then change the
number. The case is the benchmark's: six columns, one route, a topic around one of them.
"""

from __future__ import annotations

import struct
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from rowcast.core import codec
from rowcast.core.entry import Batch, Entry
from rowcast.core.grants import Grant
from rowcast.core.routes import Route, Router
from rowcast.hub import Hub
from rowcast.logs.capture import Capture
from rowcast.logs.messages import Messages

ROWS = 400
COLUMNS = (("id", 20, 1), ("symbol", 25, 0), ("price", 1700, 0), ("volume", 23, 0), ("at", 1184, 0), ("note", 25, 0))


def text(value: str) -> bytes:
    return value.encode() + b"\0"


def relation() -> bytes:
    columns = b"".join(bytes([key]) + text(name) + struct.pack("!Ii", oid, -1) for name, oid, key in COLUMNS)
    return b"R" + struct.pack("!I", 7) + text("public") + text("ticks") + b"d" + struct.pack("!H", 6) + columns


def insert(number: int) -> bytes:
    values = (str(number + 1), f"S{number % 10}", "12.50", str(number + 1), "2026-01-02 03:04:05.678+00", "x")
    row = b"".join(b"t" + struct.pack("!I", len(value)) + value.encode() for value in values)
    return b"I" + struct.pack("!I", 7) + b"N" + struct.pack("!H", 6) + row


def captured() -> tuple[Capture, list[bytes]]:
    """A capture that knows the table and its topics, and the messages of ROWS rows."""
    capture = Capture(Router([Route.from_templates("ticks", origin="test", topic="t:{symbol}")]), Messages(None))
    capture.begin((0, 0))
    capture.take([b"B" + struct.pack("!QqI", 100, 1, 7), relation(), *map(insert, range(10))])
    return capture, [insert(number) for number in range(ROWS)]


def hub(*topics: str) -> Hub:
    made = Hub(None, [], None, replica="r", ring_bytes=1 << 26, max_event=1 << 20, max_streams=9,
               max_streams_per_user=9, heartbeat=15)  # type: ignore[arg-type]  # fmt: skip
    made.handle(Batch("e", [], (0, 1), reset="start"))
    made.warm = True
    if topics:
        made.connect(Grant("ann", frozenset(topics)), lambda: None).take()
    return made


def calls(work: Callable[[], Any]) -> float:
    """Calls of Python functions a row."""
    counts: Counter[str] = Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            counts[frame.f_code.co_qualname] += 1

    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
    per_row = {name: count for name, count in counts.items() if count >= ROWS}
    print(per_row)
    return sum(per_row.values()) / ROWS


@pytest.fixture
def entries() -> list[Entry]:
    capture, rows = captured()
    taken = capture.take(rows)
    assert taken is not None
    return taken


def test_to_decode_and_route_a_row() -> None:
    capture, rows = captured()
    found: list[Any] = []
    assert calls(lambda: found.append(capture.take(rows))) <= 4  # decode, _insert, _tuple, route
    assert len(found[0]) == ROWS


def test_to_put_a_row_that_nobody_listens_to_into_the_ring(entries: list[Entry]) -> None:
    desk = hub("other")
    # handle_entry, append of the ring, the sizes of entry and body, get of the index, _push
    assert calls(lambda: desk.handle(Batch("e", entries, (200, 0)))) <= 6
    assert len(desk.ring) == ROWS
    assert not any(entry._frame for entry in entries)


def test_to_send_a_row(entries: list[Entry]) -> None:
    desk = hub(*(f"t:S{number}" for number in range(10)))
    # The above, push of the flush, the histogram, and 6 for the frame, of which 2 write a value
    assert calls(lambda: desk.handle(Batch("e", entries, (200, 0)))) <= 14
    assert desk.deliveries == ROWS


def test_to_append_a_row(entries: list[Entry]) -> None:
    """What the leader of a redis log does besides."""
    data: list[bytes] = []
    assert (
        calls(lambda: data.append(codec.encode(entries, 1 << 20))) <= 8
    )  # _alike, and the body's encode with what it calls
    assert len(codec.decode(data[0])) == ROWS


def test_what_a_row_that_nobody_listens_to_keeps() -> None:
    """In blocks of memory: the entry, its body, its change, its place, the tuple of its values and the 6 of them."""
    capture, rows = captured()
    desk = hub("other")
    desk.ring._grow()
    kept = capture.take(rows[:10]) or []
    before = sys.getallocatedblocks()
    kept += capture.take(rows) or []
    assert (sys.getallocatedblocks() - before) / ROWS < 14
