"""The `redis://` log: one stream on Redis or Valkey that every replica tails.

One replica, elected by the durable slot (`logs.leader`), appends what the WAL brings; publishing and control are
appended by whoever was asked, in one script that gives them a place between two changes. Every item says what came
before it, so a reader knows when it missed something (`logs.redis_cursor`): it then starts anew with a reset.

See docs/adr/0005-the-append-rule.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from rowcast import jitter
from rowcast.core import codec
from rowcast.core.entry import Batch
from rowcast.core.position import ORIGIN, Place, Position
from rowcast.errors import DecodeError, Expired, Repeated, SetupError, Unavailable
from rowcast.logs.drafts import entry_of
from rowcast.logs.leader import WalLeader
from rowcast.logs.redis_cursor import Cursor, Item, Kept, page_of
from rowcast.logs.redis_store import RedisStore, Refused, mint
from rowcast.ports import Bounds, Draft, State
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

APPEND_TIMEOUT = 5.0
"""Seconds that a publish waits for its entry to come by in this replica's own tail."""

APPEND_PAUSE = 0.05
"""Seconds between two tries to append to a log that is just being begun."""

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 0.5
"""Seconds between two attempts to read: doubled each time, and spread by half."""

TRIM_INTERVAL = 2.0
"""Seconds between two looks at what may go, and at whether Redis is still the primary and how many replicas it has."""

REPEAT_INTERVAL = 60.0
"""Seconds after which the same complaint is logged again."""


class RedisLog:
    """See the module's docstring.

    `leader` stands for election as the one reader of the WAL (None: there is no database, and whoever finds the log
    empty begins it). `max_event` in bytes: larger events are cut where they are appended. `retention` in seconds,
    `max_entries` (None: no bound) and `max_bytes` bound what Redis keeps; the oldest go first. `remember`: seconds for
    which the names of entries that are to be appended only once are kept.
    """

    remembers = True

    def __init__(
        self,
        store: RedisStore,
        leader: WalLeader | None = None,
        *,
        max_event: int,
        retention: float = 600.0,
        max_entries: int | None = None,
        max_bytes: int = 256 << 20,
        remember: float = 3600.0,
    ) -> None:
        self._store = store
        self.leader = leader
        self._max_event = max_event
        self._cursor = Cursor()
        self._remember = remember
        self._kept = Kept(retention, max_entries, max_bytes)
        self._awaited: dict[str, asyncio.Future[Place]] = {}
        self._leading: asyncio.Task[None] | None = None
        self._tailing: asyncio.Task[object] | None = None
        self._streaming = asyncio.Event()
        self._closed = False
        self._trimmed = 0.0
        self._told = (0.0, "")
        self._state = State(ok=False, detail="not connected yet", since=time.time())

    # ports.Log

    async def open(self) -> None:
        """Reach Redis and, where there is a database, make its slot and stand for election. Raises `SetupError`."""
        try:
            await self._store.ping()
        except Unavailable as error:
            raise SetupError(str(error)) from None
        if self.leader is not None:
            await self.leader.open()
            self._leading = asyncio.create_task(self.leader.run())

    async def close(self) -> None:
        """End the tail, the election and every connection."""
        self._closed = True
        self._streaming.clear()
        for waiting in self._awaited.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("this replica is closing: unknown whether it was published"))
        if self._leading is not None:
            self._leading.cancel()
            await asyncio.gather(self._leading, return_exceptions=True)
        await self._store.close()

    def resign(self) -> None:
        """Leave the reading of the WAL to another replica, from now on; the log is tailed as before."""
        if self.leader is not None:
            self.leader.resign()

    def state(self) -> State:
        """Whether this replica reads the log, and whether anybody feeds it."""
        if self._state.ok and self.leader is not None and (problem := self.leader.problem()):
            return State(ok=False, detail=problem, since=self.leader.read_at())
        return self._state

    async def head(self) -> Place:
        """See `ports.Log.head`: a mark in the WAL, or the end of a log that has no database. Raises `Unavailable`."""
        if self.leader is not None:
            return await self.leader.mark()
        head = await self._store.head()
        return ORIGIN if head is None else max(head.top, head.wal)

    async def append(self, draft: Draft) -> Position:
        """Append, and wait until it comes by; see `ports.Log.append`. Raises `Repeated` or `Unavailable`."""
        if self._closed:
            raise Unavailable("this replica is closing: it was not published")
        now = time.time()
        data = codec.encode([entry_of(draft, ORIGIN, now)], self._max_event)
        nonce = mint()
        waiting = self._awaited[nonce] = asyncio.get_running_loop().create_future()
        sent = False
        try:
            async with asyncio.timeout(APPEND_TIMEOUT):
                # Without a tail nobody could tell whether it was published: then better not at all.
                await self._streaming.wait()
                while True:
                    sent = True
                    answer = await self._store.publish(nonce, data, now=now, once=draft.once, remember=self._remember)
                    if answer.code == "OK":
                        break
                    if answer.code == "DUP":
                        raise Repeated("it is in the log already")
                    sent = False
                    await asyncio.sleep(APPEND_PAUSE)
                place = await waiting
        except TimeoutError:
            raise _unpublished(f"the log did not answer within {APPEND_TIMEOUT:g} s", sent) from None
        except Refused as error:
            raise _unpublished(str(error), False) from error
        except Unavailable as error:
            raise _unpublished(str(error), sent) from error
        finally:
            del self._awaited[nonce]
        return Position(self._cursor.incarnation, *place)

    async def tail(self) -> AsyncIterator[Batch]:
        """Every entry that the log holds, then the new ones; see `ports.Log.tail`."""
        cursor = self._cursor = Cursor()
        begun = False
        pause = FIRST_PAUSE
        while not self._closed:
            try:
                if not begun and (start := await self._begin(cursor)) is not None:
                    begun = True
                    yield start
                if begun:
                    items = await self._store.read(cursor.place)
                    if not self._state.ok:
                        self._up(cursor.incarnation)
                    for item in items:
                        if item.incarnation != cursor.incarnation:
                            begun = False
                            break
                        for batch in cursor.take(item):
                            yield batch
                        self._passed(item)
                    if not items and cursor.lost(await self._store.head()):
                        begun = False
                    if abs(time.time() - self._trimmed) >= TRIM_INTERVAL:
                        await self._trim()
                    pause = FIRST_PAUSE
                    continue
            except (Unavailable, DecodeError) as error:
                if self._closed:
                    return
                self._down(str(error))
            if self._leading is not None and self._leading.done() and not self._closed:
                self._leading.result()
            await asyncio.sleep(jitter.seconds(0.5 * pause, 1.5 * pause))
            pause = min(pause * 2, LONGEST_PAUSE)

    # ports.ReadableLog

    async def bounds(self) -> Bounds:
        """What the stream holds. Raises `Unavailable`."""
        head, first = await self._store.look()
        if head is None:
            return Bounds("", ORIGIN, ORIGIN)
        last = max(head.top, head.wal)
        return Bounds(head.incarnation, last if first is None else first.before, last)

    async def read(self, after: Place, upto: Place) -> Batch:
        """The entries of the next few items; see `ports.ReadableLog.read`. Raises `Expired` and `Unavailable`."""
        page = page_of(await self._store.range(after), after, upto)
        if page is None:
            raise Expired(f"the log does not hold everything after {after} any more")
        return page

    # Inside

    async def _begin(self, cursor: Cursor) -> Batch | None:
        """Start the tail, or start it anew. None: there is no log yet."""
        head, first = await self._store.look()
        if head is None:
            if self.leader is None:
                await self._store.renew("", mint()[:8], ORIGIN, "")
            else:
                # Whoever reads the WAL has something to append then, and begins the log.
                await self.leader.mark()
            self._down("the log is empty: waiting for the replica that reads the WAL to begin it")
            return None
        reason = "log_restarted"
        if not cursor.incarnation:
            reason = "start"
        elif head.incarnation == cursor.incarnation:
            # What is still there was seen, or lies before what is lost: to give it again would only double it.
            reason, first = "log_gap", None
        if reason != "log_gap":
            self._kept.clear()
        bound = cursor.begin(head, first)
        self._up(head.incarnation)
        if reason != "start":
            logger.warning("log_restarted", "the log starts anew at %s: %s", bound, reason)
        return Batch(cursor.incarnation, [], bound, reset=reason)

    def _passed(self, item: Item) -> None:
        """An item was yielded, and so dispatched."""
        self._kept.add(item)
        if item.nonce:
            waiting = self._awaited.get(item.nonce)
            if waiting is not None and not waiting.done():
                waiting.set_result(item.place)
        elif self.leader is not None:
            self.leader.seen(item.incarnation, item.time, item.place)

    async def _trim(self) -> None:
        now = time.time()
        # Spread out: every replica does it, since none is sure to be there.
        self._trimmed = now + jitter.seconds(0.0, TRIM_INTERVAL)
        await self._store.ping()
        oldest = self._kept.trim(now)
        if oldest is not None:
            await self._store.trim(oldest)

    # State

    def _up(self, incarnation: str) -> None:
        self._streaming.set()
        if not self._state.ok:
            logger.info("log_reading", "reading the log, epoch %s", incarnation)
            self._state = State(ok=True, detail="streaming", since=time.time())

    def _down(self, detail: str) -> None:
        self._streaming.clear()
        now = time.monotonic()
        if detail != self._told[1] or now - self._told[0] >= REPEAT_INTERVAL:
            self._told = (now, detail)
            logger.warning("log_unreadable", "the log can't be read: %s; trying again", detail)
        since = time.time() if self._state.ok else self._state.since
        self._state = State(ok=False, detail=detail, since=since)


def _unpublished(what: str, sent: bool) -> Unavailable:
    known = "unknown whether it was published" if sent else "it was not published; try again"
    return Unavailable(f"{what}: {known}")
