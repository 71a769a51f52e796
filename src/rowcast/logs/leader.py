"""The leader of a `redis://` log: the one replica that reads the WAL and appends it.

**The election is the durable slot**: the server gives it to one session at a time. The others ask every half second
whether it is free, and one of them gets it when the holder dies: at once where its connection breaks, within
`wal_sender_timeout` where it only falls silent. A leader that does not know yet that it is none (a zombie) does no
harm: what it appends is either in the log already, or is what the next one would append (see redis_scripts/append.lua).

**The slot stays behind.** It is confirmed up to what came by in this replica's own tail of the log, `redo` seconds ago:
so if Redis loses the end of the log in a fail-over, the leader reads it again. Where the slot was confirmed further
than the log reaches, entries are lost; then a new incarnation of the log begins, and every stream is reset.

While an append waits for Redis, the WAL is neither read nor answered (see `sources.wal`), at most for the store's
timeout; then the session is closed, and resumes when Redis is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast import jitter
from rowcast.core import codec
from rowcast.core.change import Message
from rowcast.core.entry import Entry
from rowcast.core.position import MINOR_SPACING, ORIGIN, Place, parse_lsn
from rowcast.errors import RowcastError, SetupError, Unavailable
from rowcast.logs.anchor import AnchorKeeper, Pool, epoch_text
from rowcast.logs.capture import Capture, Routing
from rowcast.logs.messages import MARK, Messages
from rowcast.logs.redis_store import RedisStore, Unsecured, mint
from rowcast.logs.redo import Redo
from rowcast.sources.explain import explain
from rowcast.sources.wal import WAL_SENDER_TIMEOUT, SessionEnded, WalSession
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

ELECTION_PAUSE = 0.5
"""Seconds between two looks at whether the slot is free, spread by half."""

HEARTBEAT = 5.0
"""Seconds after which something is appended even if there is nothing: readers' heads move, and slots can let go."""

SECURE_INTERVAL = 0.2
"""Seconds between two waits for Redis's own replicas; what they lack is not confirmed."""

SILENCE = 20.0
"""Seconds without anything from the WAL after which this replica says that it is not well."""

REPEAT_INTERVAL = 60.0
"""Seconds after which the same complaint is logged again."""

_HALF = MINOR_SPACING >> 1
"""Of the places between two changes, the lower half is for the first one's entries, the upper for published ones."""

# Flushed here is all that a mark needs to come by; with a synchronous standby away, waiting for it would never end.
_EMIT = "SELECT pg_logical_emit_message(true, %s, '')::text FROM set_config('synchronous_commit', 'local', true)"

_ACTIVE = "SELECT active FROM pg_replication_slots WHERE slot_name = %s"

_PUBLICATION = "SELECT 1 FROM pg_publication WHERE pubname = %s"

_UNDEFINED_OBJECT, _IN_USE = "42704", "55006"


class WalLeader:
    """See the module's docstring.

    `url` and `pool` (in autocommit mode) lead to the database, `store` to Redis; `router` makes entries of changes,
    `secret` verifies logical messages (None: none is accepted); `replica` names this replica. `slot` is the durable
    slot, `publication` the publication. `max_event` in bytes, `redo` in seconds.
    `wal_sender_timeout`: seconds after which another replica takes over from one that is silent.
    """

    def __init__(
        self,
        url: str,
        pool: Pool,
        store: RedisStore,
        router: Routing,
        secret: bytes | None,
        *,
        replica: str,
        slot: str,
        publication: str,
        max_event: int,
        redo: float = 30.0,
        wal_sender_timeout: float = WAL_SENDER_TIMEOUT,
    ) -> None:
        self._url = url
        self._pool = pool
        self.store = store
        self._replica = replica
        self._publication = publication
        self._max_event = max_event
        self._wal_sender_timeout = wal_sender_timeout
        self._messages = _MarkedMessages(secret)
        self._capture = Capture(router, self._messages)
        self.anchor = AnchorKeeper(pool, slot)
        self.leading = False
        """Whether this replica reads the WAL now."""
        self._session: WalSession | None = None
        self._nonce = ""
        self._incarnation = self._database = ""
        self._appended: Place = ORIGIN
        self._redo = Redo(redo)
        self._secured = ("", 0)
        """Up to which LSN Redis's own replicas have the log, and of which incarnation."""
        self._seen_at = time.monotonic()
        self._told = (0.0, "")
        self._problem = ""
        """Why what this replica last tried as the leader failed; "" when it worked, or when another replica leads."""
        self._unsecured = ""
        self._charged = False
        """Whether this replica was the last one to take the slot, as far as it knows."""
        self._lost = False
        self._obsolete = ""
        self._refused = 0
        self._resigned = False

    # For the log

    async def open(self) -> None:
        """Make the slot if there is none. Raises `SetupError`."""
        try:
            await self.anchor.ensure()
        except (psycopg.Error, PoolTimeout) as error:
            raise SetupError(f"Postgres refuses a replication slot: {explain(error)}") from None

    async def mark(self) -> Place:
        """Put a mark into the WAL; every replica's head is above the returned place once it came by.

        Raises `Unavailable`.
        """
        try:
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_EMIT, [MARK])).fetchone()
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            raise Unavailable(f"Postgres can't be asked: {explain(error)}", what="postgres") from error
        assert row is not None
        return (parse_lsn(row[0]), 0)

    def seen(self, incarnation: str, when: float, place: Place) -> None:
        """This replica's own tail has passed a batch of the WAL that was appended at a Unix time."""
        self._seen_at = time.monotonic()
        if not self.leading and place > self._appended:
            # Somebody else appends: what hindered this replica is no trouble of the log's any more.
            self._charged = False
            self._problem = self._unsecured = ""
        self._redo.add(incarnation, when, place[0])

    def problem(self) -> str:
        """What is wrong with the feeding of the log, in words; "" when nothing is."""
        silent = time.monotonic() - self._seen_at
        problem = self._problem or self._unsecured
        if silent < SILENCE:
            return problem if self._charged else ""
        reason = f": {problem}" if problem else ""
        return f"no replica has read the WAL for {silent:.0f} s{reason}"

    @property
    def capture(self) -> Capture:
        """What makes entries of the WAL."""
        return self._capture

    def read_at(self) -> float:
        """The Unix time at which what somebody read of the WAL came by last."""
        return time.time() - (time.monotonic() - self._seen_at)

    async def start_anew(self, reason: str) -> None:
        """Have the slot made anew, and with it the log: every stream is reset. For whoever leads, or when nobody does.

        Raises psycopg.Error or PoolTimeout.
        """
        anchor = await self.anchor.look()
        self._obsolete = anchor.nonce if anchor is not None else ""
        if self._session is not None:
            self._session.interrupt(reason)

    def resign(self) -> None:
        """Lead no more: the slot is free as soon as the session is closed. There is no way back."""
        self._resigned = True
        if self._session is not None:
            self._session.interrupt("this replica is draining")

    async def run(self) -> None:
        """Stand for election, and lead whenever elected, until it resigns."""
        while not self._resigned:
            try:
                if await self._free():
                    await self._make_room()
                    await self._lead()
            except (psycopg.Error, SessionEnded, PoolTimeout, PoolClosed, RowcastError, OSError) as error:
                if not self._resigned:
                    self._complain(error)
            await asyncio.sleep(jitter.seconds(0.5 * ELECTION_PAUSE, ELECTION_PAUSE))

    # Election

    async def _free(self) -> bool:
        """Whether nobody holds the slot."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_ACTIVE, [self.anchor.slot])).fetchone()
        return row is None or not row[0]

    async def _make_room(self) -> None:
        """Drop a slot that is of no use any more."""
        if self._lost:
            await self._mended()
        if self._obsolete:
            await self.anchor.renew(self._obsolete)
            self._obsolete = ""

    async def _lead(self) -> None:
        """Take the slot, and append until the session ends. Raises `SessionEnded` when it is not ours, or ended."""
        # First, since without Redis there would be nowhere to read to.
        await self.store.ping()
        anchor = await self.anchor.ensure()
        self._nonce = anchor.nonce
        session = self._session = await WalSession.connect(
            self._url, name=f"rowcast {self._replica} leader", timeout=self._wal_sender_timeout
        )
        if self._resigned:
            session.interrupt("this replica is draining")
        try:
            identity = await session.identify()
            self._database = f"{identity.system}-{identity.timeline}-{anchor.nonce}"
            # From where the log ends, so that what `redo` keeps need not be read once more; but without confirming
            # it: that would give it up. What the log has of that last transaction is skipped.
            start = await self._start(anchor.confirmed)
            await session.start(self.anchor.slot, start, self._publication, confirmed=anchor.confirmed)
            # From here on the slot is ours, and nobody but us begins an incarnation.
            now = await self.anchor.look()
            if now is None or now.nonce != anchor.nonce or now.confirmed > anchor.confirmed:
                raise SessionEnded("the replication slot moved on while it was being taken")
            await self._join(start, anchor.confirmed, identity.flushed)
            self.leading = self._charged = True
            logger.info("wal_reading", "this replica reads the WAL now, from %s", self._appended)
            securing = asyncio.create_task(self._secure())
            try:
                await self._read(session)
            finally:
                securing.cancel()
                await asyncio.gather(securing, return_exceptions=True)
        finally:
            self.leading = False
            self._session = None
            await session.close()

    async def _start(self, confirmed: int) -> int:
        """From where to read: where the log ends, or where the slot is confirmed when the log is of no use."""
        head = await self.store.head()
        return max(confirmed, head.wal[0]) if head is not None and head.database == self._database else confirmed

    async def _join(self, start: int, confirmed: int, flushed: int) -> None:
        """Find where the log ends, or begin a new incarnation where it can't be continued from `start`."""
        head = await self.store.head()
        if head is not None and head.database == self._database:
            if flushed < head.wal[0]:
                # A storage snapshot was restored: its LSNs will be given out a second time, for other contents.
                self._obsolete = self._nonce
                raise SessionEnded("the WAL ends before what was read: this is a restored copy of the database")
            if start <= head.wal[0]:
                self._incarnation, self._appended = head.incarnation, head.wal
                self._capture.begin(head.wal)
                return
            if confirmed <= head.wal[0]:
                raise SessionEnded("Redis lost the end of the log while the slot was being taken: reading it again")
            logger.warning("log_behind", "the log ends before what the replication slot still has: starting a new log")
        # From now on: every stream is reset, and a client that has fetched its state must not see older changes after.
        place = (max(start, flushed), 0)
        self._capture.begin(place)
        await self._renew("" if head is None else head.incarnation, place)

    async def _renew(self, old: str, place: Place) -> None:
        system, timeline, nonce = self._database.split("-")
        new = epoch_text(system, int(timeline), f"{nonce} {mint()}")
        answer = await self.store.renew(old, new, place, self._database)
        if answer.code != "OK":
            raise SessionEnded("another replica began a new log meanwhile")
        logger.info("log_begun", "a new log begins at %s, epoch %s", place, new)
        self._incarnation, self._appended = new, place

    # Reading and appending

    async def _read(self, session: WalSession) -> None:
        """Append what comes, until the session ends."""
        capture = self._capture
        checked_at = time.monotonic()
        appended_at = checked_at - HEARTBEAT  # at once: whether it can append is known then
        while True:
            payloads, sent = await session.receive()
            entries = capture.take(payloads, sent)
            marked = self._messages.take_mark()
            due = time.monotonic() - appended_at >= HEARTBEAT
            if (entries or marked or due) and await self._append(entries or []):
                appended_at = time.monotonic()
            elif due:
                appended_at = time.monotonic()
                with contextlib.suppress(Unavailable):
                    await self.mark()
            session.acknowledge(self._confirmable())
            if session.skipping and not self._lost:
                self._complain(SessionEnded(f"changes are being lost ({session.skipping})", _UNDEFINED_OBJECT))
            if time.monotonic() - checked_at >= HEARTBEAT:
                checked_at = time.monotonic()
                self._tell_refused()
                if self._lost and await self._mended():
                    raise SessionEnded("the publication is there again: starting a new log, since changes were lost")

    def _confirmable(self) -> int:
        """The LSN up to which the slot is not needed any more; 0: nothing is known."""
        due = self._redo.confirmable(self._incarnation, time.time())
        if not self.store.awaited:
            return due
        incarnation, lsn = self._secured
        return min(due, lsn) if incarnation == self._incarnation else 0

    async def _secure(self) -> None:
        """See how far Redis's own replicas have the log, for ever."""
        while True:
            await asyncio.sleep(SECURE_INTERVAL)
            if not self.store.awaited or self._secured == (self._incarnation, self._appended[0]):
                continue
            try:
                kept = await self.store.secure()
            except Unsecured as error:
                self._unsecured = f"{error}; the replication slot holds the WAL until they do"
                self._tell(self._unsecured)
            except Unavailable:
                pass  # appending says so
            else:
                self._unsecured = ""
                if kept is not None:
                    self._secured = (kept[0], kept[1][0])

    async def _append(self, entries: list[Entry]) -> bool:
        """Append entries, and how far the WAL was read. False: the position has not moved on."""
        last = _last(self._capture.position)
        if last <= self._appended:
            return False
        data = codec.encode(entries, self._max_event)
        while True:
            answer = await self.store.append(
                self._incarnation, self._appended, last, data, count=len(entries), now=time.time()
            )
            if answer.code in ("OK", "DUP"):
                self._appended = last
                if not self._lost:
                    self._problem = ""
                return True
            if answer.code != "EMPTY":
                raise SessionEnded(_REFUSALS[answer.code])
            logger.warning("log_emptied", "the log was emptied: starting a new one; every stream is reset")
            await self._renew("", self._appended)

    # When it goes wrong

    async def _mended(self) -> bool:
        """Whether the publication, which was missing, is there. What came between can't be read: a new slot then."""
        async with self._pool.connection() as connection:
            row = await (await connection.execute(_PUBLICATION, [self._publication])).fetchone()
        if row is None:
            return False
        self._lost = False
        self._obsolete = self._nonce
        return True

    def _tell_refused(self) -> None:
        refused = self._messages.refused
        if refused > self._refused:
            logger.warning(
                "messages_unsigned",
                "ignored %d logical messages with our prefix that we did not sign: somebody emits them, or the "
                "replicas do not share one [api] key",
                refused - self._refused,
            )
            self._refused = refused

    def _complain(self, error: BaseException) -> None:
        code = getattr(error, "sqlstate", None)
        if code == _IN_USE:
            return  # another replica was quicker
        detail = explain(error)
        if code == _UNDEFINED_OBJECT:
            self._lost = True
            detail += (
                f"; the publication {self._publication!r} is missing; run the CREATE PUBLICATION that `rowcast check` "
                "prints; every stream is reset then"
            )
        self._problem = detail
        self._tell(detail)

    def _tell(self, detail: str) -> None:
        now = time.monotonic()
        if detail != self._told[1] or now - self._told[0] >= REPEAT_INTERVAL:
            self._told = (now, detail)
            logger.warning("wal_unreadable", "reading the WAL for the log: %s; trying again", detail)


class _MarkedMessages(Messages):
    """Messages that remember whether a mark came by."""

    def __init__(self, secret: bytes | None) -> None:
        super().__init__(secret)
        self._marked = False

    def read(self, message: Message) -> tuple[str, Entry] | None:
        if message.prefix == MARK:
            self._marked = True
        return super().read(message)

    def take_mark(self) -> bool:
        """Whether a mark came since the last call."""
        marked, self._marked = self._marked, False
        return marked


_REFUSALS = {
    "FENCED": "another replica began a new log",
    "GAP": "Redis lost the end of the log: reading it again",
    "ORDER": "something was published above the end of the WAL that was read",
}


def _last(position: Place) -> Place:
    """The position as the end of a batch, with room for published entries before the next change."""
    major, minor = position
    if not minor:
        return position
    return (major, minor - _HALF) if minor >= MINOR_SPACING else (major, 0)
