"""The wheel: heartbeats, token expiry and starts that take too long, for all streams from one timer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from typing import TYPE_CHECKING

from rowcast import jitter
from rowcast.core.stream import Stream, StreamState

if TYPE_CHECKING:
    from rowcast.hub import Hub

START_LIMIT = 15.0
"""Seconds a stream may wait for its subscriptions before its client is told to come back later."""


class Wheel:
    """Streams in slots; each tick serves one slot, so that heartbeats are spread evenly.

    `heartbeat` is the time of one turn, in seconds.
    """

    def __init__(self, hub: Hub, heartbeat: float) -> None:
        self._hub = hub
        self.tick = min(1.0, heartbeat / 2)
        self._slots: list[dict[Stream, None]] = [{} for _ in range(max(1, round(heartbeat / self.tick)))]
        self._numbers = itertools.count()
        self._streams: dict[int, Stream] = {}
        self._next = 0
        self._deadlines: list[tuple[float, int, str]] = []

    def add(self, stream: Stream) -> None:
        """Take up a stream that has just been opened."""
        number = next(self._numbers)
        self._streams[number] = stream
        stream.number = number
        self._slot(number)[stream] = None
        heapq.heappush(self._deadlines, (time.time() + START_LIMIT, number, "unavailable"))
        if stream.grant.expires_at is not None:
            heapq.heappush(self._deadlines, (stream.grant.expires_at, number, "token_expired"))

    def remove(self, stream: Stream) -> None:
        """Let go of a stream."""
        number = stream.number
        del self._streams[number]
        del self._slot(number)[stream]
        # Deadlines of streams that are gone stay until they are due, but may not outnumber the others.
        if len(self._deadlines) > 4 * len(self._streams) + 1000:
            self._deadlines = [item for item in self._deadlines if item[1] in self._streams]
            heapq.heapify(self._deadlines)

    async def run(self) -> None:
        """Turn for ever."""
        while True:
            await asyncio.sleep(self.tick)
            self.turn(time.time())

    def turn(self, now: float) -> None:
        """One tick: the heartbeats of one slot, and what is due. `now` is the Unix time in seconds."""
        while self._deadlines and self._deadlines[0][0] <= now:
            _, number, reason = heapq.heappop(self._deadlines)
            stream = self._streams.get(number)
            if stream is None:
                continue
            if reason == "token_expired":
                self._hub.end(stream, reason)
            elif stream.state is StreamState.STARTING:
                self._hub.end(stream, reason, retry=jitter.retry(2.0, 6.0))
        for stream in tuple(self._slots[self._next]):
            stream.beat()
            self._hub.again(stream)
        self._next = (self._next + 1) % len(self._slots)

    def _slot(self, number: int) -> dict[Stream, None]:
        return self._slots[number % len(self._slots)]
