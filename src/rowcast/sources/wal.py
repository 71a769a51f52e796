"""One walsender session: the connection, the temporary slot, and the stream of messages.

Source: Postgres documentation, chapter 54 "Frontend/Backend Protocol", sections 54.4 "Streaming Replication
Protocol" and 54.5 "Logical Streaming Replication Protocol".

**Reading and answering are one loop.** A reader that answers the server while it does not read hangs a
CHECKPOINT that must invalidate a slot, and a fast shutdown: a slow Rowcast could take the database down. Here
status is sent only by `receive`, before it reads. Whoever stops calling `receive`, because what it feeds can't
keep up, stops answering too; the server cuts the connection after `wal_sender_timeout`, and a new session
resumes from the position.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import Any, NamedTuple

import psycopg
from psycopg import pq, sql
from psycopg.conninfo import conninfo_to_dict

from rowcast.core import values
from rowcast.core.pgoutput import POSTGRES_EPOCH
from rowcast.core.position import format_lsn, parse_lsn

STATUS_INTERVAL = 3.0
"""Seconds between two status messages, or a third of the session's timeout where that is less."""

NUDGE_AFTER = 0.02
"""Seconds after which a server that has gone quiet is asked whether that was all; see `WalSession.receive`."""

WAL_SENDER_TIMEOUT = 10.0
"""Seconds after which the server cuts a reader that has gone silent, and lets go of what it held."""

CHUNK_MESSAGES = 512
CHUNK_BYTES = 256 * 1024
"""What `receive` returns at most, so that a huge transaction is never held whole and the loop gets its turns."""

FEW_MESSAGES = 4
"""A transaction of a row or two that came alone: `receive` returns so many without another look if the last is its
Commit."""

COPY_ATTEMPTS = 10
COPY_PAUSE = 0.05
"""A slot can't be copied while it is being advanced: so often, and with so many seconds between, it is tried."""

_HEADER = struct.calcsize("!cqqq")
"""Bytes before the payload of an XLogData message."""
_KEEPALIVE = struct.Struct("!cqqb")
_STATUS = struct.Struct("!cqqqqb")

_OPTIONS = {
    **values.SESSION_OPTIONS,
    # What a role's settings say of statements must not end a session that is one endless statement.
    "statement_timeout": "0",
    "lock_timeout": "0",
}


class SessionEnded(Exception):
    """The session is over. The message is what the server said; `sqlstate` is its error code, or ""."""

    def __init__(self, message: str, sqlstate: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate


class Identity(NamedTuple):
    """What IDENTIFY_SYSTEM tells: which cluster this is, on which timeline, and how far its WAL is flushed."""

    system: str
    timeline: int
    flushed: int


class Received(NamedTuple):
    """What `receive` returns: the pgoutput payloads, in order, and the position up to which the server has
    sent everything (0: it did not say)."""

    payloads: list[bytes]
    sent: int


def options(settings: dict[str, str], url: str = "") -> str:
    """Settings in the form that libpq's `options` parameter takes, after those that `url` has already."""
    given = conninfo_to_dict(url).get("options") if url else None
    ours = [f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items()]
    return " ".join([str(given), *ours] if given else ours)


class WalSession:
    """A replication connection. Make it with `connect`; not to be used again after `SessionEnded`.

    `timeout`: seconds after which the server cuts it when it has gone silent.
    """

    def __init__(self, connection: psycopg.AsyncConnection[tuple[Any, ...]], timeout: float) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._acknowledged = self._told = self._received = 0
        self._answered = 0.0
        self._asked = False
        self._due = True
        self._interval = min(STATUS_INTERVAL, timeout / 3)
        self._patience = self._interval
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: asyncio.Future[bool] | None = None
        self._watched = -1
        self._until = 0.0
        self._timer: asyncio.Handle | None = None
        self._rings = 0.0
        """When the timer is due, by the loop's clock. It can't be asked: for what is due at once uvloop gives a handle
        that does not know."""
        self._over: SessionEnded | None = None
        self.skipping = ""
        """What the server said when it found the publication missing and skipped a change (Postgres 18)."""
        connection.add_notice_handler(self._noticed)

    @classmethod
    async def connect(cls, url: str, *, name: str, timeout: float = WAL_SENDER_TIMEOUT) -> WalSession:
        """Open a replication connection to the database of `url`; `name` is its application name.

        `timeout`: seconds after which the server cuts it when nothing comes from us (`wal_sender_timeout`), or when
        what it sends is not taken (`tcp_user_timeout`). Raises psycopg.Error.
        """
        after = f"{round(timeout * 1000)}ms"
        connection: psycopg.AsyncConnection[tuple[Any, ...]]
        connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            replication="database",
            application_name=name,
            # The second: a frozen client must not hold a CHECKPOINT for as long as TCP would try.
            options=options(_OPTIONS | {"wal_sender_timeout": after, "tcp_user_timeout": after}, url),
            connect_timeout=10,
            keepalives_idle=10,
            tcp_user_timeout=10_000,
        )
        return cls(connection, timeout)

    @property
    def watched(self) -> bool:
        """Whether the loop polls the socket."""
        return self._watched >= 0

    async def close(self) -> None:
        """Close the connection; the temporary slot goes with it."""
        self.interrupt("closed")
        # Before the socket is gone: uvloop aborts the process when a file descriptor that it polls is closed.
        self._unwatch()
        if self._timer is not None:
            self._timer.cancel()
        await self._connection.close()

    def interrupt(self, reason: str) -> None:
        """Have `receive` raise `SessionEnded` with this reason, now or when it is called next."""
        if self._over is None:
            self._over = SessionEnded(reason)
        self._finish(False)

    async def identify(self) -> Identity:
        """IDENTIFY_SYSTEM. Raises psycopg.Error."""
        cursor = await self._connection.execute("IDENTIFY_SYSTEM")
        row = await cursor.fetchone()
        assert row is not None
        return Identity(str(row[0]), int(str(row[1])), parse_lsn(str(row[2])))

    async def copy_slot(self, source: str, name: str) -> int:
        """Make a temporary copy of a slot; returns the LSN from which it can stream.

        A copy is refused while the source is being advanced; that is tried again for half a second. Raises
        psycopg.Error, e.g. when the source was invalidated.
        """
        query = sql.SQL("SELECT lsn FROM pg_copy_logical_replication_slot({}, {}, true)").format(source, name)
        for left in reversed(range(COPY_ATTEMPTS)):
            try:
                row = await (await self._connection.execute(query)).fetchone()
            except (psycopg.errors.InternalError_, psycopg.errors.ObjectInUse):
                if not left:
                    raise
                await asyncio.sleep(COPY_PAUSE)
            else:
                assert row is not None
                return parse_lsn(str(row[0]))
        raise AssertionError("unreachable")

    async def start(self, slot: str, lsn: int, publication: str, *, confirmed: int | None = None) -> None:
        """START_REPLICATION from an LSN. Raises `SessionEnded` with the server's words if it refuses.

        `confirmed` is what is acknowledged at first (None: `lsn`): a start above the slot's confirmed position does
        not move that on, only an acknowledgement does.
        """
        # Replication commands take no bound parameters.
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '2', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(format_lsn(lsn)), f'"{publication}"')
        self._pg.send_query(command.as_bytes(self._connection))
        self._flush()
        while self._pg.is_busy():
            await self._readable(self._interval)
            self._check()
            try:
                self._pg.consume_input()
            except psycopg.Error as error:
                raise self._failed(error) from None
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise _ended(result)
        self._acknowledged = lsn if confirmed is None else confirmed

    def acknowledge(self, lsn: int) -> None:
        """Everything before `lsn` has been dealt with: the server need not keep it for us."""
        self._acknowledged = max(self._acknowledged, lsn)

    async def receive(self) -> Received:
        """The next messages, at least one unless it was quiet for a while. Sends status when it is due.

        It is due every few seconds (STATUS_INTERVAL), and a few times sooner after the last message: Postgres 16 to 18
        miss a commit that falls between a walsender's last look and its going to sleep, and send it when something
        else wakes the walsender (seen with 1 of 2,000 commits that answered the message before).

        Raises `SessionEnded`.
        """
        payloads: list[bytes] = []
        sent = size = 0
        came = looked = 0
        if self._over is not None:
            raise self._over
        # Here and not at the end: what was returned last has been dealt with and acknowledged by now.
        now = time.monotonic()
        if self._asked or self._due or now - self._answered >= self._interval:
            self._answer(now)
        pg = self._pg
        try:
            # No call of ours in here: of a commit that comes alone each function costs as much as what it does.
            while True:
                length, data = pg.get_copy_data(1)
                if length > 0:
                    message = bytes(data)
                    came += 1
                    if message[0] == 0x77:  # w
                        payloads.append(message[_HEADER:])
                        size += length
                        if len(payloads) >= CHUNK_MESSAGES or size >= CHUNK_BYTES:
                            # More is waiting in libpq's buffer, most likely: others must get their turn all the same.
                            await asyncio.sleep(0)
                            break
                    else:
                        # One follows each transaction, as we confirm later than we read: no reason to stop before
                        # the next.
                        _, sent, _, asks = _KEEPALIVE.unpack(message)
                        if sent > self._received:
                            self._received = sent
                        if asks:
                            self._asked = True
                elif length < 0:
                    raise _ended(pg.get_result())
                elif came and (came == looked or (0 < len(payloads) <= FEW_MESSAGES and payloads[-1][:1] == b"C")):
                    break
                elif came:
                    # One more read, without waiting: the server writes each message by itself, and to handle them in
                    # twos and threes costs more than to read them.
                    looked = came
                    pg.consume_input()
                elif await self._readable(self._patience):
                    if self._over is not None:
                        raise self._over
                    pg.consume_input()
                else:
                    self._patience = min(self._patience * 4, self._interval)
                    self._due = True
                    break
        except (psycopg.Error, SessionEnded) as error:
            ended = error if isinstance(error, SessionEnded) else self._failed(error)
            if not payloads:
                raise ended from None
            # What came before the end counts: the next session might read both at once again, and never get further.
            self._over = ended
        if payloads:
            self._patience = NUDGE_AFTER
        return tuple.__new__(Received, (payloads, sent))  # what `Received(...)` does, without its call

    # Inside

    def _answer(self, now: float) -> None:
        """Send status.

        What is acknowledged is told as flushed when it has moved on, and else left out. A server that shuts down waits
        until all it sent was flushed, or where that is left out, written (WalSndDone in walsender.c): a reader that
        keeps WAL for later must not make it wait so long.
        """
        flushed = self._acknowledged if self._acknowledged > self._told else 0
        written = max(self._received, self._acknowledged)
        moment = time.time_ns() // 1000 - POSTGRES_EPOCH
        try:
            # The last byte asks for a keepalive: on an idle database it moves the head on.
            self._pg.put_copy_data(_STATUS.pack(b"r", written, flushed, flushed, moment, not self._asked))
        except psycopg.Error as error:
            raise self._failed(error) from None
        self._flush()
        self._told = self._acknowledged
        self._answered = now
        self._asked = self._due = False

    def _flush(self) -> None:
        try:
            self._pg.flush()
        except psycopg.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: psycopg.Error) -> SessionEnded:
        """What ended the session: the server's own words, if it left any."""
        if self._pg.status == pq.ConnStatus.OK and (result := self._pg.get_result()) is not None:
            return _ended(result)
        return SessionEnded(_line(str(error)))

    def _noticed(self, notice: psycopg.errors.Diagnostic) -> None:
        # The texts are in the server's language, the codes are not.
        if notice.sqlstate == "55000":
            self.skipping = _line(notice.message_primary or "a change was skipped")

    def _readable(self, timeout: float) -> asyncio.Future[bool]:
        """Done when the socket has something for us; False after `timeout` seconds, or when interrupted."""
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        self._waiting = waiting = loop.create_future()
        if self._watched < 0:
            # It stays watched: to begin and to end that costs uvloop eight system calls, and each commit comes alone.
            self._watched = self._pg.socket
            loop.add_reader(self._watched, self._arrived)
        self._until = loop.time() + timeout
        if self._timer is None or self._rings > self._until:
            self._set_timer(loop)
        return waiting

    def _set_timer(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings = self._until
        self._timer = loop.call_at(self._until, self._timed_out)

    def _timed_out(self) -> None:
        """The wait is over, or another one has begun since: one timer serves many waits, of which most are short."""
        self._timer = None
        if self._waiting is None or self._waiting.done():
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._until:
            self._set_timer(loop)
        else:
            self._finish(False)

    def _arrived(self) -> None:
        """The socket has something. While nobody waits it is not watched, or the loop would turn without end."""
        waiting = self._waiting
        if waiting is None or waiting.done():
            self._unwatch()
        else:
            waiting.set_result(True)

    def _finish(self, readable: bool) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(readable)

    def _unwatch(self) -> None:
        """Stop polling the socket. Once only: its number may be another's by the second time."""
        watched, self._watched = self._watched, -1
        if watched >= 0:
            asyncio.get_running_loop().remove_reader(watched)

    def _check(self) -> None:
        if self._over is not None:
            raise self._over


def _ended(result: pq.abc.PGresult | None) -> SessionEnded:
    if result is None:
        return SessionEnded("the server ended the stream")
    text = _line(result.error_message.decode(errors="replace"))
    code = result.error_field(pq.DiagnosticField.SQLSTATE)
    return SessionEnded(text or "the server ended the stream", code.decode() if code else "")


def _line(text: str) -> str:
    return " ".join(text.split())
