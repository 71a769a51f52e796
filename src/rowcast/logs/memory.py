"""The `memory:` log: one process, nothing kept.

Without Postgres it holds what the application publishes. With Postgres it is fed by the WAL, through the
same anchor and session as the `postgres:` log, while publishing and control stay in the process.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator

from rowcast.core.body import PublishBody
from rowcast.core.entry import Batch, Control, Entry, Kind
from rowcast.core.position import ORIGIN, Place, Position
from rowcast.errors import Unavailable
from rowcast.ports import Draft, Log, State


class MemoryLog:
    """See the module's docstring.

    `feed` is the log whose entries are taken over (None: none). `retention` in seconds, `max_entries` (None:
    no bound) and `max_bytes` bound what is kept for a tail that starts; the oldest go first.
    """

    def __init__(
        self,
        feed: Log | None = None,
        *,
        retention: float = 600.0,
        max_entries: int | None = None,
        max_bytes: int = 256 << 20,
    ) -> None:
        self._feed = feed
        self._retention = retention
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._epoch = secrets.token_hex(4)
        self._kept: deque[tuple[float, Entry]] = deque()
        self._bytes = 0
        self._floor: Place = ORIGIN
        self._head: Place = ORIGIN
        self._batches: deque[Batch] = deque()
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._between = asyncio.Event()
        self._between.set()
        self._feeding: asyncio.Task[None] | None = None
        self._closed = False
        self._since = time.time()

    async def open(self) -> None:
        """Open the feed, if there is one."""
        if self._feed is not None:
            await self._feed.open()
            self._feeding = asyncio.create_task(self._take_over(self._feed))

    async def close(self) -> None:
        """End the tail and the feed."""
        self._closed = True
        self._arrived.set()
        self._between.set()
        if self._feed is not None:
            await self._feed.close()
        if self._feeding is not None:
            self._feeding.cancel()

    def state(self) -> State:
        """That of the feed; by itself the log is always well."""
        if self._feed is not None:
            return self._feed.state()
        return State(ok=True, detail="in memory", since=self._since)

    async def head(self) -> Place:
        """See `ports.Log.head`."""
        return self._head if self._feed is None else await self._feed.head()

    async def append(self, draft: Draft) -> Position:
        """Append at the end. Raises `Unavailable` when the log is closed."""
        # Within a transaction of the feed there is no place above the head that is not a change's.
        await self._between.wait()
        if self._closed:
            raise Unavailable("the log is closed: it was not published")
        place = (self._head[0], self._head[1] + 1)
        now = time.time()
        entry = _entry(draft, place, now)
        self._add([entry], place, now)
        return Position(self._epoch, *place)

    async def tail(self) -> AsyncIterator[Batch]:
        """What is kept, then what comes; see `ports.Log.tail`."""
        self._batches.clear()
        self._drop_old(time.time())
        yield Batch(self._epoch, [], self._floor, reset="start")
        if self._kept:
            yield Batch(self._epoch, [entry for _, entry in self._kept], self._head)
        while not self._closed:
            while self._batches:
                yield self._batches.popleft()
            self._room.set()
            self._arrived.clear()
            await self._arrived.wait()

    # Inside

    async def _take_over(self, feed: Log) -> None:
        async for batch in feed.tail():
            if batch.reset is not None:
                self._kept.clear()
                self._bytes = 0
                # The places of a new incarnation of the feed may lie below those given out before.
                self._epoch = secrets.token_hex(4)
                self._floor = self._head = batch.head
                self._batches.append(Batch(self._epoch, [], batch.head, reset=batch.reset))
            (self._between.clear if batch.head[1] else self._between.set)()
            self._add(batch.entries, max(batch.head, self._head), time.time())
            # Whoever reads the feed stops reading, and so answering, while the tail is behind.
            self._room.clear()
            await self._room.wait()

    def _add(self, entries: list[Entry], head: Place, now: float) -> None:
        for entry in entries:
            self._kept.append((now, entry))
            self._bytes += _size(entry)
        self._head = head
        self._drop_old(now)
        self._batches.append(Batch(self._epoch, entries, head))
        self._arrived.set()

    def _drop_old(self, now: float) -> None:
        kept = self._kept
        while kept and (
            kept[0][0] < now - self._retention
            or self._bytes > self._max_bytes
            or (self._max_entries is not None and len(kept) > self._max_entries)
        ):
            _, entry = kept.popleft()
            self._bytes -= _size(entry)
            self._floor = entry.place


def _size(entry: Entry) -> int:
    return entry.size if entry.kind in (Kind.DATA, Kind.SWEEP) else 200


def _entry(draft: Draft, place: Place, now: float) -> Entry:
    time_us = round(now * 1e6)
    if draft.control is not None:
        return Entry(Kind.CONTROL, place, Control(draft.control, draft.user, now), time=time_us)
    body = PublishBody(draft.topic, draft.data, draft.key)
    return Entry(Kind.DATA, place, body, topic=draft.topic, key=draft.key, event=draft.event, time=time_us)
