"""The `postgres:` log: the WAL is the log.

One durable slot, the anchor, holds the retention window. Each replica streams from a temporary copy of it,
which can start at any position since the anchor; so a replica can start, or start again after a restart of
Postgres or a cut connection, from where it was, with nothing lost. Publishing and control are transactional
logical messages: they have a place in the commit order like any change.

Temporary slots vanish with their connection; only the anchor can hold WAL back, and the guard watches it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast import jitter
from rowcast.core.entry import Batch
from rowcast.core.position import Place, Position, format_lsn, parse_lsn
from rowcast.errors import RowcastError, SetupError, Unavailable
from rowcast.logs.anchor import AnchorKeeper, Pool, epoch_text
from rowcast.logs.capture import Capture, Routing
from rowcast.logs.messages import MARK, PREFIX, Messages
from rowcast.ports import Draft, State
from rowcast.sources.explain import explain
from rowcast.sources.wal import WAL_SENDER_TIMEOUT, SessionEnded, WalSession
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

APPEND_TIMEOUT = 5.0
"""Seconds that a publish waits for its message to come by in this replica's own tail."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
"""Seconds between two attempts to reach the WAL: doubled each time, and spread by half."""

REPEAT_INTERVAL = 60.0
"""Seconds after which the same complaint is logged again."""

# Flushed here is all that a message needs to come by in the tail. Waiting for a standby would promise nothing more
# (a fail-over starts a new log), and with a synchronous standby away it would wait for ever.
_EMIT = "SELECT pg_logical_emit_message(true, %s, %s)::text FROM set_config('synchronous_commit', 'local', true)"

_UNDEFINED_OBJECT = "42704"


class PostgresLog:
    """See the module's docstring.

    `url` and `pool` (in autocommit mode) lead to the database; `router` makes entries of changes; `messages`
    signs; `replica` is this replica's id, of lower-case letters and digits: it becomes part of a slot's name.
    `slot` names the anchor, `publication` the publication. `wal_sender_timeout`: seconds after which the server lets
    go of what a replica that is silent held.
    """

    remembers = False

    def __init__(
        self,
        url: str,
        pool: Pool,
        router: Routing,
        messages: Messages,
        *,
        replica: str,
        slot: str,
        publication: str,
        wal_sender_timeout: float = WAL_SENDER_TIMEOUT,
    ) -> None:
        self._url = url
        self._wal_sender_timeout = wal_sender_timeout
        self._pool = pool
        self._messages = messages
        self._replica = replica
        self._publication = publication
        self._capture = Capture(router, messages, self._seen)
        self.anchor = AnchorKeeper(pool, slot)
        self.epoch = ""
        self.nonce = ""
        """The minted part of the epoch; "" before the log was reached."""
        self.sessions = 0
        """Replication sessions started since the start."""
        self.publication_lost = False
        """Whether the server found no publication at some change since the log began: entries are missing."""
        self._session: WalSession | None = None
        self._closed = False
        self._fresh = True
        self._streaming = asyncio.Event()
        self._awaited: dict[str, asyncio.Future[Place]] = {}
        self._told = (0.0, "")
        self._refused = 0
        self._refused_told = -REPEAT_INTERVAL
        self._state = State(ok=False, detail="not connected yet", since=time.time())

    # ports.Log

    async def open(self) -> None:
        """Make the anchor if there is none. Raises `SetupError`."""
        try:
            await self.anchor.ensure()
        except (psycopg.Error, PoolTimeout) as error:
            raise SetupError(f"Postgres refuses a replication slot: {explain(error)}") from None

    async def close(self) -> None:
        """End the tail and the session."""
        self._closed = True
        self._streaming.clear()
        if self._session is not None:
            await self._session.close()
        for waiting in self._awaited.values():
            if not waiting.done():
                waiting.set_exception(Unavailable("this replica is closing: unknown whether it was published"))

    def state(self) -> State:
        """Whether this replica is connected to the WAL, and what it waits for if it is not."""
        waits_for = self.anchor.waits_for
        if waits_for and not self._state.ok:
            return State(ok=False, detail=f"making the slot waits for {waits_for}", since=self._state.since)
        return self._state

    async def head(self) -> Place:
        """Put a mark into the WAL; the tail's head is at or above the returned place once it came by.

        Raises `Unavailable`.
        """
        try:
            return (await self._emit(MARK, b""), 0)
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked: {explain(error)}", what="postgres") from error

    async def append(self, draft: Draft) -> Position:
        """Emit a message, and wait until it comes by; see `ports.Log.append`.

        Raises `Unavailable`, or `ConfigError` when there is nothing to sign with.
        """
        nonce, content = self._messages.compose(draft)
        if self._closed:
            raise Unavailable("this replica is closing: it was not published")
        waiting = self._awaited[nonce] = asyncio.get_running_loop().create_future()
        emitted = False
        try:
            async with asyncio.timeout(APPEND_TIMEOUT):
                # Without a tail nobody could tell whether it was published: then better not at all.
                await self._streaming.wait()
                async with self._pool.connection() as connection:
                    emitted = True
                    await connection.execute(_EMIT, [PREFIX, content])
                place = await waiting
        except TimeoutError:
            raise self._unpublished(f"the log did not answer within {APPEND_TIMEOUT:g} s", emitted) from None
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise self._unpublished(f"Postgres failed: {explain(error)}", emitted) from error
        finally:
            del self._awaited[nonce]
        return Position(self.epoch, *place)

    async def tail(self) -> AsyncIterator[Batch]:
        """Every entry since the anchor, then the new ones; see `ports.Log.tail`.

        While the body of the loop over it does not return, nothing is read and the server is not answered; it
        cuts the connection after 10 s, and the tail resumes where it was.
        """
        pause = FIRST_PAUSE
        self._fresh = True
        capture, messages = self._capture, self._messages
        while not self._closed:
            finished = capture.finished
            try:
                try:
                    session, reset = await self._begin()
                    if reset is not None:
                        yield Batch(self.epoch, [], capture.position, reset=reset)
                    while True:
                        payloads, sent = await session.receive()
                        entries = capture.take(payloads, sent)
                        if entries is not None:
                            yield Batch(self.epoch, entries, capture.position)
                        session.acknowledge(capture.finished)
                        if session.skipping or messages.refused != self._refused:
                            self._complain(session)
                finally:
                    await self._end()
            except (psycopg.Error, SessionEnded, PoolTimeout, PoolClosed, RowcastError, OSError) as error:
                if not self._closed:
                    self._down(error)
            if self._closed:
                return
            if capture.finished > finished:
                pause = FIRST_PAUSE
            # Spread out: replicas that reconnect make the server decode from the anchor on.
            await asyncio.sleep(jitter.seconds(0.5 * pause, 1.5 * pause))
            pause = min(pause * 2, LONGEST_PAUSE)

    # For the guard

    @property
    def position(self) -> Place:
        """Every entry at or below it has been yielded."""
        return self._capture.position

    @property
    def last_commit(self) -> float:
        """Monotonic time at which a transaction came by last."""
        return self._capture.last_commit

    @property
    def capture(self) -> Capture:
        """What makes entries of the WAL."""
        return self._capture

    def restart_session(self, reason: str) -> None:
        """End the session, so that a new one starts from the position, or from a new anchor."""
        if self._session is not None:
            self._session.interrupt(reason)

    # One session

    async def _begin(self) -> tuple[WalSession, str | None]:
        """Connect, copy the anchor and start at our position. Returns the session, and why the log starts anew, if it
        does."""
        anchor = await self.anchor.ensure()
        session = self._session = await WalSession.connect(
            self._url, name=f"rowcast {self._replica}", timeout=self._wal_sender_timeout
        )
        identity = await session.identify()
        self.sessions += 1
        name = f"{self.anchor.slot}_{self._replica}_{self.sessions}"
        copied = await session.copy_slot(self.anchor.slot, name)
        after = await self.anchor.look()
        if after is None or after.nonce != anchor.nonce:
            raise SessionEnded("the replication slot was made anew meanwhile")
        position = self.position
        if not self._fresh and anchor.nonce == self.nonce and identity.flushed < position[0]:
            # A storage snapshot was restored: its LSNs will be given out a second time, for other contents.
            await self.anchor.renew(anchor.nonce)
            raise SessionEnded("the WAL ends before what was seen: this is a restored copy of the database")
        epoch = epoch_text(identity.system, identity.timeline, anchor.nonce)
        reset: str | None = None
        if self._fresh:
            reset = "start"
        elif epoch != self.epoch:
            reset = "log_restarted"
        elif copied > position[0]:
            # START_REPLICATION would be moved up to there in silence.
            reset = "position_expired"
        if reset is not None:
            position = (copied, 0)
            self.publication_lost = False
        self.epoch, self.nonce = epoch, anchor.nonce
        self._capture.begin(position)
        await session.start(name, position[0], self._publication)
        self._fresh = False
        self._up()
        return session, reset

    async def _end(self) -> None:
        """Close the session, if there is one."""
        session, self._session = self._session, None
        self._streaming.clear()
        if session is not None:
            await session.close()

    async def _emit(self, prefix: str, content: bytes) -> int:
        """Emit a transactional message; returns its LSN, which is below its commit's."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_EMIT, [prefix, content])).fetchone()
        assert row is not None
        return parse_lsn(row[0])

    def _seen(self, nonce: str, place: Place) -> None:
        waiting = self._awaited.get(nonce)
        if waiting is not None and not waiting.done():
            # The waiter runs in a later turn of the loop: the batch with the entry has been dispatched by then.
            waiting.set_result(place)

    # State

    def _up(self) -> None:
        self._streaming.set()
        # While changes are being lost it is not well, even if the connection is.
        if not self.publication_lost:
            if not self._state.ok:
                logger.info(
                    "wal_reading", "reading the WAL from %s, epoch %s", format_lsn(self.position[0]), self.epoch
                )
            self._set_state(ok=True, detail="streaming")

    def _down(self, error: BaseException) -> None:
        detail = explain(error)
        if getattr(error, "sqlstate", None) == _UNDEFINED_OBJECT:
            # What comes from now on can't be read even when the publication is back: the server looks it up as
            # of the time of each change. The guard starts a new log then.
            self.publication_lost = True
            detail += f"; {self._publication_advice()}"
        now = time.monotonic()
        if detail != self._told[1] or now - self._told[0] >= REPEAT_INTERVAL:
            self._told = (now, detail)
            logger.warning("wal_unreadable", "the WAL can't be read: %s; trying again", detail)
        self._set_state(ok=False, detail=detail)

    def _complain(self, session: WalSession) -> None:
        """Say what goes wrong without ending the session."""
        if session.skipping and self._state.ok:
            self.publication_lost = True
            detail = f"changes are being lost ({session.skipping}): {self._publication_advice()}"
            logger.error("changes_lost", "%s", detail)
            self._set_state(ok=False, detail=detail)
        refused = self._messages.refused
        if refused != self._refused and time.monotonic() - self._refused_told >= REPEAT_INTERVAL:
            self._refused_told = time.monotonic()
            logger.warning(
                "messages_unsigned",
                "ignored %d logical messages with our prefix that we did not sign: somebody emits them, or the "
                "replicas do not share one [api] key",
                refused - self._refused,
            )
            self._refused = refused

    def _publication_advice(self) -> str:
        return (
            f"the publication {self._publication!r} is missing; run the CREATE PUBLICATION that `rowcast check` "
            "prints; every stream is reset then"
        )

    def _set_state(self, *, ok: bool, detail: str) -> None:
        since = self._state.since if ok == self._state.ok else time.time()
        self._state = State(ok=ok, detail=detail, since=since)

    def _unpublished(self, what: str, emitted: bool) -> Unavailable:
        known = "unknown whether it was published" if emitted else "it was not published; try again"
        return Unavailable(f"{what}: {known}")
