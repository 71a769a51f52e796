"""What is held back from the live streams of a replica, and when it is sent: one timer for all streams and keys.

What is held until when is said in the log's time (see `core.throttle`). How far that is behind the clock of this
machine shows with every entry that comes: so clocks that differ, and a log that comes late, change nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rowcast.core import sse
from rowcast.core.entry import Entry, Kind
from rowcast.core.position import Place, Position, format_mark
from rowcast.core.stream import StreamState

if TYPE_CHECKING:
    from rowcast.hub import Hub

SLACK = 50_000
"""Microseconds that are waited for besides, since entries do not take equally long to come."""

SHORTEST, LONGEST = 0.005, 0.02
"""Seconds between two looks at what is due, while anything is held."""

AWAY = 5.0
"""Seconds that a log which can't be read is waited for: what it has may be newer than what is held."""

AHEAD = 200_000
"""Microseconds that other replicas may be ahead of us: what they have sent is then not held here any longer."""


class Releases:
    """Holds entries back, and has them sent to the streams of `hub` when they are due."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._wire = hub.wire
        self._throttle = hub.wire.throttle
        self._behind = 0
        self._some = asyncio.Event()

    def clear(self) -> None:
        """The log begins anew."""
        self._throttle.clear()
        self._remark()

    def hold(self, entry: Entry, now: float) -> bool:
        """Whether an entry of a route with `min_interval` is not to be sent yet; `now` is Unix time in seconds."""
        throttle = self._throttle
        if entry.key is None:
            # Which row it is about is not known, so nothing may come after it that was before.
            self.overtake(entry, [entry.topic])
            return False
        self._behind = round(now * 1e6) - entry.time
        # A mark of 0 would say that nothing is held.
        throttle.clock = throttle.clock or max(1, entry.time - SLACK)
        sent = throttle.take(entry)
        self._remark()
        if not sent:
            self._some.set()
        return not sent

    def overtake(self, entry: Entry, topics: Iterable[str]) -> None:
        """Send what is held of some topics before an entry after which it must not come."""
        major, minor = entry.place
        for held in self._throttle.settle(topics, entry.place):
            self._push(held, (major, minor - 1), over=held.due)
        self._remark()

    def push_marked(self, entry: Entry) -> None:
        """Push an entry while anything is held."""
        hub, wire = self._hub, self._wire
        block = sse.marked(entry.frame(wire.epoch, wire.max_event), wire.mark)
        sweep = entry.kind is Kind.SWEEP
        for stream in hub.matching(entry.topic) if sweep else hub.subscribers(entry.topic):
            if stream.state is StreamState.LIVE:
                hub.push_block(stream, entry.place, block)

    def release(self, upto: int) -> None:
        """Send what is due by then, in microseconds of the log's time."""
        for entry in self._throttle.release(upto):
            self._push(entry, self._wire.head)
        self._remark()
        self._hub.flush()

    def owed(self, topics: Iterable[str], cursor: Position) -> list[Entry] | None:
        """What a client with these topics has not got of what is at or below its position.

        None: it is not known any more.
        """
        throttle = self._throttle
        mark = cursor.mark
        if not mark:
            # Nothing was held: it has all that was due by then, and by what we hold we see how late that was.
            mark = max((entry.due for entry in throttle.holding(topics) if entry.place <= cursor.place), default=0)
        if throttle.clock < mark <= self._log_time() + AHEAD:
            self.release(mark)
        return throttle.owed(topics, cursor.place, cursor.mark, cursor.over) if cursor.mark else []

    async def run(self) -> None:
        """Release for ever."""
        hub, throttle = self._hub, self._throttle
        while True:
            await self._some.wait()
            self._some.clear()
            patience = AWAY
            while (due := throttle.next_due) is not None:
                early = (due - self._log_time()) / 1e6
                if early <= 0 and patience > 0 and not hub.log.state().ok:
                    patience -= SHORTEST
                elif early <= 0:
                    self.release(self._log_time())
                    patience = AWAY
                await asyncio.sleep(min(max(SHORTEST, early), LONGEST))

    # Inside

    def _push(self, entry: Entry, place: Place, *, over: int = 0) -> None:
        hub, wire = self._hub, self._wire
        mark = format_mark(self._throttle.clock, over)
        block = sse.at(entry.frame(wire.epoch, wire.max_event), wire.position(place) + mark)
        if hub.cache is not None:
            hub.cache.hold(hub.subscribers(entry.topic))
        for stream in hub.subscribers(entry.topic):
            if stream.state is StreamState.LIVE and stream.concerns(entry):
                hub.push_block(stream, place, block)

    def _remark(self) -> None:
        self._wire.mark = format_mark(self._throttle.clock) if self._throttle.held else ""

    def _log_time(self) -> int:
        return round(time.time() * 1e6) - self._behind - SLACK
