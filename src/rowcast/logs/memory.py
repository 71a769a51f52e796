"""The `memory:` log: one process, nothing outlives it.

Without Postgres it holds what the application publishes. With Postgres it is fed by the WAL, through the
same anchor and session as the `postgres:` log, while publishing and control stay in the process.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from bisect import bisect_right
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence

from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.position import ORIGIN, Place, Position
from rowcast.errors import Expired, Unavailable
from rowcast.logs.drafts import entry_of
from rowcast.ports import Bounds, Draft, Log, State

APPEND_TIMEOUT = 5.0
"""Seconds that a publish waits for the feed to be between two transactions."""

CHUNK = 512
"""Entries in a batch of what is kept, when a tail starts."""

PAGE = 1000
"""Entries that are read back at once, at most."""

_SMALL = 200
"""An estimate for entries that hold no data, in bytes."""


class MemoryLog:
    """See the module's docstring.

    `feed` is the log whose entries are taken over (None: none). `retention` in seconds, `max_entries` (None:
    no bound) and `max_bytes` bound what is kept for a tail that starts; the oldest go first.
    """

    remembers = False

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
        self._kept: list[tuple[float, Entry] | None] = []
        self._first = 0
        """Where in `_kept` the oldest entry is; what was before it is gone."""
        self._bytes = 0
        self._floor: Place = ORIGIN
        self._head: Place = ORIGIN
        self._queue: deque[Batch] | None = None
        """What the running tail has yet to yield; None when none runs."""
        self._inside = False
        """Whether the feed is in the middle of a transaction."""
        self._waiting: list[asyncio.Future[None]] = []
        """Who waits for something to move."""
        self._begun = feed is None
        self._feeding: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None
        self._closed = False
        self._since = time.time()

    # ports.Log

    async def open(self) -> None:
        """Open the feed, if there is one. Raises `SetupError` as it does."""
        if self._feed is not None:
            await self._feed.open()
            self._feeding = asyncio.create_task(self._take_over(self._feed))

    async def close(self) -> None:
        """End the tail and the feed."""
        self._closed = True
        self._wake()
        if self._feed is not None:
            await self._feed.close()
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.gather(self._feeding, return_exceptions=True)

    def state(self) -> State:
        """That of the feed; by itself the log is always well."""
        if self._feed is not None:
            return self._feed.state()
        return State(ok=True, detail="in memory", since=self._since)

    async def head(self) -> Place:
        """See `ports.Log.head`. Raises `Unavailable` when the feed can't be asked."""
        return self._head if self._feed is None else await self._feed.head()

    async def append(self, draft: Draft) -> Position:
        """Append at the end; see `ports.Log.append`.

        Raises `Unavailable` when the log is closed, or the feed does not come to the end of a transaction: within
        one there is no place above the head that is not a change's.
        """
        if self._inside or not self._begun:
            try:
                async with asyncio.timeout(APPEND_TIMEOUT):
                    await self._until(lambda: self._begun and not self._inside)
            except TimeoutError:
                raise Unavailable(
                    "the WAL can't be read, or is in the middle of a long transaction: it was not published; try again"
                ) from None
        if self._closed or self._failure is not None:
            raise Unavailable("the log is closed: it was not published")
        position = Position(self._epoch, self._head[0], self._head[1] + 1)
        now = time.time()
        self._add([entry_of(draft, position.place, now)], position.place, now)
        self._wake()
        await self._until(lambda: not self._queue)
        return position

    async def tail(self) -> AsyncIterator[Batch]:
        """What is kept, then what comes; see `ports.Log.tail`."""
        await self._until(lambda: self._begun)
        self._check()
        self._drop_old(time.time())
        queue: deque[Batch] = deque([Batch(self._epoch, [], self._floor, reset="start")])
        kept = [entry for _, entry in self._items()]
        for start in range(0, len(kept), CHUNK):
            chunk = kept[start : start + CHUNK]
            queue.append(Batch(self._epoch, chunk, chunk[-1].place))
        queue.append(Batch(self._epoch, [], self._head))
        self._queue = queue
        try:
            while not self._closed:
                while queue:
                    yield queue.popleft()
                self._wake()
                await self._until(lambda: bool(queue))
                self._check()
        finally:
            self._queue = None

    # ports.ReadableLog

    async def bounds(self) -> Bounds:
        """What is kept."""
        self._drop_old(time.time())
        return Bounds(self._epoch, self._floor, self._head)

    async def read(self, after: Place, upto: Place) -> Batch:
        """At most PAGE entries; see `ports.ReadableLog.read`. Raises `Expired`."""
        if after < self._floor:
            raise Expired(f"the log begins after {self._floor}")
        start = bisect_right(self._kept, after, lo=self._first, key=_place)
        page = [entry for _, entry in self._items(start, start + PAGE) if entry.place <= upto]
        return Batch(self._epoch, page, page[-1].place if len(page) == PAGE else upto)

    # Inside

    def _items(self, start: int = 0, stop: int | None = None) -> list[tuple[float, Entry]]:
        return [item for item in self._kept[max(start, self._first) : stop] if item is not None]

    async def _take_over(self, feed: Log) -> None:
        try:
            async for batch in feed.tail():
                if batch.reset is not None:
                    self._restart(batch, batch.reset)
                self._inside = bool(batch.head[1])
                self._add(batch.entries, max(batch.head, self._head), time.time())
                self._wake()
                # Whoever reads the feed stops reading, and so answering, while the tail is behind.
                await self._until(lambda: not self._queue)
        except Exception as error:
            self._failure = error
            self._wake()
            raise

    def _restart(self, batch: Batch, reason: str) -> None:
        self._kept.clear()
        self._first = self._bytes = 0
        self._floor = self._head = batch.head
        if self._begun:
            # The places of a new incarnation of the feed may lie below those given out before.
            self._epoch = secrets.token_hex(4)
            if self._queue is not None:
                self._queue.append(Batch(self._epoch, [], batch.head, reset=reason))
        self._begun = True

    def _add(self, entries: Sequence[Entry], head: Place, now: float) -> None:
        for entry in entries:
            self._kept.append((now, entry))
            self._bytes += _size(entry)
        self._head = head
        self._drop_old(now)
        queue = self._queue
        if queue is None:
            return
        last = queue[-1] if queue else None
        if last is not None and last.reset is None and last.epoch == self._epoch and len(last.entries) < CHUNK:
            # Whoever tails does other things between two batches: what was published one by one meanwhile is one.
            last.entries = [*last.entries, *entries]
            last.head = head
        else:
            queue.append(Batch(self._epoch, list(entries), head))

    def _drop_old(self, now: float) -> None:
        kept = self._kept
        while (
            self._first < len(kept)
            and (oldest := kept[self._first]) is not None
            and (
                oldest[0] < now - self._retention
                or self._bytes > self._max_bytes
                or (self._max_entries is not None and len(kept) - self._first > self._max_entries)
            )
        ):
            kept[self._first] = None
            self._first += 1
            self._bytes -= _size(oldest[1])
            self._floor = oldest[1].place
        if self._first > 1000 and self._first > len(kept) // 2:
            del kept[: self._first]
            self._first = 0

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _wake(self) -> None:
        waiting, self._waiting = self._waiting, []
        for one in waiting:
            if not one.done():
                one.set_result(None)

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, or the end, or the end of the feed."""
        while not (condition() or self._closed or self._failure is not None):
            moved = asyncio.get_running_loop().create_future()
            self._waiting.append(moved)
            await moved


def _place(item: tuple[float, Entry] | None) -> Place:
    assert item is not None
    return item[1].place


def _size(entry: Entry) -> int:
    return entry.size if entry.kind in (Kind.DATA, Kind.SWEEP) else _SMALL
