"""Catching up from the ring: what it costs by what the stream gets, and not by what the ring holds.

A ring of 2^16 to 2^20 entries on 10,000 topics; a stream with 20 of them has missed the newest 2^16, or all of it, and
takes page by page what it is owed, as its writer does. Each frame is encoded before: the first stream that needs it
pays for that, once.
"""

from __future__ import annotations

import statistics
import time

from rowcast.core.entry import Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.ring import Ring
from rowcast.core.stream import Stream, StreamState, Wire

TOPICS = 10_000
MINE = 20
DATA = b'{"topic":"t","data":{"symbol":"AAPL","price":"187.4300","volume":1200}}'


class _Body:
    """A body that is encoded already."""

    size = len(DATA)

    def encode(self, limit: int) -> bytes:
        return DATA


def run(runs: int) -> list[str]:
    """The table of this case."""
    lines = [
        f"## Catch-up from the ring, a stream with {MINE} of {TOPICS:,} topics",
        "",
        "| entries in the ring | missed | entries the stream gets | CPU µs an entry it gets |",
        "|---|---|---|---|",
    ]
    for power in (16, 17, 18, 19, 20):
        ring = _filled(1 << power)
        for missed in sorted({1 << 16, 1 << power}):
            figures = [_measure(ring, (1 << power) - missed) for _ in range(10 * runs + 1)][1:]
            got = figures[0][0]
            spent = statistics.median(seconds for _, seconds in figures)
            lines.append(f"| {1 << power:,} | {missed:,} | {got:,} | {spent / got * 1e6:.2f} |")
    return lines


def _filled(count: int) -> Ring:
    ring = Ring(1 << 40)
    body = _Body()
    names = [_topic(number) for number in range(TOPICS)]
    for number in range(count):
        # A stride that is prime to the number of topics: neighbours in the ring are of different topics.
        entry = Entry(Kind.DATA, (number + 1, 1), body, topic=names[number * 7919 % TOPICS])
        entry.frame("e", 1 << 20)
        ring.append(entry)
    return ring


def _topic(number: int) -> str:
    return f"t:{number}"


def _measure(ring: Ring, after: int) -> tuple[int, float]:
    """How many entries a stream got, and the CPU seconds that it took."""
    wire = Wire(ring, max_event=1 << 20, replica="r")
    wire.epoch, wire.head = "e", (ring.end, 1)
    stream = Stream(Grant("u"), wire, lambda: None)
    began = time.process_time()
    stream.start(frozenset(_topic(number) for number in range(MINE)), (after, 1))
    got = 0
    while data := stream.take():
        got += data.count(b"\n\n")
    spent = time.process_time() - began
    assert stream.state is StreamState.LIVE
    return got - 1, spent  # one block is rowcast.ready
