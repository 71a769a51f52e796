"""The `postgres:` log: the WAL is the log.

One durable slot, the anchor, holds the retention window. Each replica streams from a temporary copy of it,
which can start at any position since the anchor; so a replica can start, or start again after a restart of
Postgres or a cut connection, from where it was, with nothing lost. Publishing and control are transactional
logical messages: they have a place in the commit order like any change.

Temporary slots vanish with their connection; only the anchor can hold WAL back, and the guard watches it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast.core.change import Change, Message
from rowcast.core.entry import Batch, Entry
from rowcast.core.pgoutput import Begin, Commit, Decoder
from rowcast.core.position import MINOR_SPACING, ORIGIN, Place, Position, parse_lsn
from rowcast.core.routes import Router
from rowcast.errors import DecodeError, SetupError, Unavailable
from rowcast.logs.anchor import Anchor, AnchorKeeper, Pool, epoch_text
from rowcast.logs.messages import MARK, Messages
from rowcast.ports import Draft, State
from rowcast.sources.wal import Received, SessionEnded, WalSession

logger = logging.getLogger(__name__)

APPEND_TIMEOUT = 5.0
"""Seconds that a publish waits for its message to come by in this replica's own tail."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0


class PostgresLog:
    """See the module's docstring.

    `url` and `pool` lead to the database; `router` makes entries of changes; `messages` signs; `replica` is
    this replica's id, of lower-case letters and digits: it becomes part of a slot's name.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        router: Router,
        messages: Messages,
        *,
        replica: str,
        slot: str,
        publication: str,
    ) -> None:
        self._url = url
        self._pool = pool
        self._router = router
        self._messages = messages
        self._replica = replica
        self._publication = publication
        self.anchor = AnchorKeeper(pool, slot)
        self.epoch = ""
        self.nonce = ""
        self.position: Place = ORIGIN
        self.sessions = 0
        """Replication sessions started since the start."""
        self._session: WalSession | None = None
        self._closed = False
        self._awaited: dict[str, asyncio.Future[Place]] = {}
        self._state = State(ok=False, detail="not connected yet", since=time.time())

    # ports.Log

    async def open(self) -> None:
        """Make the anchor if there is none. Raises `SetupError`."""
        try:
            await self.anchor.ensure()
        except (psycopg.Error, PoolTimeout) as error:
            raise SetupError(f"Postgres refuses a replication slot: {_line(error)}") from None

    async def close(self) -> None:
        """End the tail and the session."""
        self._closed = True
        if self._session is not None:
            await self._session.close()
        for waiting in self._awaited.values():
            waiting.cancel()

    def state(self) -> State:
        """Whether this replica is connected to the WAL."""
        return self._state

    async def head(self) -> Place:
        """Put a mark into the WAL; the tail's head is at or above the returned place once it came by."""
        try:
            async with self._pool.connection() as connection:
                cursor = await connection.execute("SELECT pg_logical_emit_message(true, %s, '')::text", [MARK])
                row = await cursor.fetchone()
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked: {_line(error)}", what="postgres") from error
        assert row is not None
        return (parse_lsn(row[0]), 0)

    async def append(self, draft: Draft) -> Position:
        """Emit a message, and wait until it comes by. Raises `Unavailable` or `ConfigError`."""
        nonce, content = self._messages.compose(draft)
        waiting = self._awaited[nonce] = asyncio.get_running_loop().create_future()
        try:
            await self._emit(content)
            async with asyncio.timeout(APPEND_TIMEOUT):
                place = await waiting
        except TimeoutError:
            raise Unavailable(
                f"the message did not come by within {APPEND_TIMEOUT:g} s: unknown whether it was published"
            ) from None
        finally:
            del self._awaited[nonce]
        return Position(self.epoch, *place)

    async def _emit(self, content: bytes) -> None:
        try:
            async with self._pool.connection() as connection:
                try:
                    await connection.execute("SELECT pg_logical_emit_message(true, 'rowcast', %s)", [content])
                except psycopg.Error as error:
                    raise Unavailable(
                        f"Postgres failed meanwhile ({_line(error)}): unknown whether it was published"
                    ) from error
        except (PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be reached ({_line(error)}): it was not published") from error

    async def tail(self) -> AsyncIterator[Batch]:
        """Every entry since the anchor, then the new ones; see `ports.Log.tail`."""
        pause = _FIRST_PAUSE
        while not self._closed:
            started = time.monotonic()
            try:
                async with contextlib.aclosing(self._session_batches()) as batches:
                    async for batch in batches:
                        yield batch
            except (psycopg.Error, SessionEnded, PoolTimeout, PoolClosed, DecodeError, OSError) as error:
                self._down(error)
            if self._closed:
                return
            if time.monotonic() - started > _LONGEST_PAUSE:
                pause = _FIRST_PAUSE
            # Spread out: replicas that reconnect make the server decode from the anchor on.
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311
            pause = min(pause * 2, _LONGEST_PAUSE)

    # One session

    async def _session_batches(self) -> AsyncGenerator[Batch]:
        """Connect, and yield batches until the session ends."""
        anchor = await self.anchor.ensure()
        session = self._session = await WalSession.connect(self._url, name=f"rowcast {self._replica}")
        try:
            reset = await self._begin(session, anchor)
            self._set_state(ok=True, detail="streaming")
            if reset is not None:
                yield Batch(self.epoch, [], self.position, reset=reset)
            decoder = Decoder(self._router.wants)
            while True:
                received = await session.receive()
                batch = self._batch(decoder, received)
                if batch is not None:
                    yield batch
                    if not decoder.in_transaction:
                        session.acknowledge(self.position[0])
        finally:
            self._session = None
            await session.close()

    async def _begin(self, session: WalSession, anchor: Anchor) -> str | None:
        """Copy the anchor and start at our position. Returns why the log starts anew, if it does."""
        identity = await session.identify()
        self.sessions += 1
        name = f"{self.anchor.slot}_{self._replica}_{self.sessions}"
        copied = await session.copy_slot(self.anchor.slot, name)
        after = await self.anchor.look()
        if after is None or after.nonce != anchor.nonce:
            raise SessionEnded("the replication slot was made anew meanwhile")
        if self.epoch and anchor.nonce == self.nonce and identity.flushed < self.position[0]:
            # A storage snapshot was restored: its LSNs will be given out a second time, for other contents.
            await self.anchor.renew(anchor.nonce)
            raise SessionEnded(f"the WAL ends at {identity.flushed:X}, before what was seen: a restored copy")
        epoch = epoch_text(identity.system, identity.timeline, anchor.nonce)
        reset: str | None = None
        if not self.epoch:
            reset = "start"
        elif epoch != self.epoch:
            reset = "log_restarted"
        elif copied > self.position[0]:
            # START_REPLICATION would be moved up to there in silence.
            reset = "log_gap"
        if reset is not None:
            self.position = (copied, 0)
        self.epoch, self.nonce = epoch, anchor.nonce
        await session.start(name, self.position[0], self._publication)
        return reset

    def _batch(self, decoder: Decoder, received: Received) -> Batch | None:
        """The entries of the messages received, skipping what is not above the position."""
        entries: list[Entry] = []
        position = self.position
        route = self._router.route
        for payload in received.payloads:
            event = decoder.decode(payload)
            if event is None or isinstance(event, Begin):
                continue
            if isinstance(event, Change):
                if event.place > position:
                    entries.extend(route(event))
            elif isinstance(event, Commit):
                position = max(position, (event.end_lsn, 0))
            elif isinstance(event, Message):
                if event.place > position and (entry := self._message(event)) is not None:
                    entries.append(entry)
            else:
                for change in event:
                    if change.place > position:
                        entries.extend(route(change))
        if decoder.in_transaction:
            # Everything below the next change of this transaction has been seen.
            position = max(position, (decoder.commit_lsn, (decoder.index + 1) * MINOR_SPACING - 1))
        elif received.sent:
            position = max(position, (received.sent, 0))
        if position == self.position and not entries:
            return None
        self.position = position
        return Batch(self.epoch, entries, position)

    def _message(self, message: Message) -> Entry | None:
        read = self._messages.read(message)
        if read is None:
            return None
        nonce, entry = read
        waiting = self._awaited.get(nonce)
        if waiting is not None and not waiting.done():
            waiting.set_result(entry.place)
        return entry

    # State

    def restart_session(self, reason: str) -> None:
        """End the session, so that a new one starts from the position, or from a new anchor."""
        if self._session is not None:
            self._session.interrupt(reason)

    def _down(self, error: Exception) -> None:
        text = _line(error)
        if "publication" in text and "does not exist" in text:
            text += f'; run: CREATE PUBLICATION "{self._publication}" FOR TABLE … (`rowcast check` prints it whole)'
        if self._state.ok or self._state.detail != text:
            logger.warning("the WAL can't be read: %s; trying again", text)
        self._set_state(ok=False, detail=text)

    def _set_state(self, *, ok: bool, detail: str) -> None:
        since = self._state.since if ok == self._state.ok else time.time()
        self._state = State(ok=ok, detail=detail, since=since)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
