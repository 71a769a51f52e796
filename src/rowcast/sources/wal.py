"""One walsender session: the connection, the temporary slot, and the stream of messages.

Source: Postgres documentation, chapter 54 "Frontend/Backend Protocol", sections 54.4 "Streaming Replication
Protocol" and 54.5 "Logical Streaming Replication Protocol".

**Reading and answering are one loop.** A reader that answers the server while it does not read hangs a
CHECKPOINT that must invalidate a slot, and a fast shutdown: a slow Rowcast could take the database down. Here
status is sent only by `receive`, between two reads. Whoever stops calling `receive`, because what it feeds
can't keep up, stops answering too; the server cuts the connection after `wal_sender_timeout`, and a new
session resumes from the position.
"""

from __future__ import annotations

import asyncio
import struct
import time
from typing import NamedTuple

import psycopg
from psycopg import pq, sql

from rowcast.core import values
from rowcast.core.pgoutput import POSTGRES_EPOCH
from rowcast.core.position import format_lsn, parse_lsn

STATUS_INTERVAL = 3.0
"""Seconds between two status messages: below a third of WAL_SENDER_TIMEOUT."""

WAL_SENDER_TIMEOUT = "10s"
"""After this the server cuts a reader that has gone silent, and lets go of what it held."""

CHUNK_MESSAGES = 512
CHUNK_BYTES = 256 * 1024
"""What `receive` returns at most, so that a huge transaction is never held whole and the loop gets its turns."""

_XLOG_DATA = struct.Struct("!cqqq")
_KEEPALIVE = struct.Struct("!cqqb")
_STATUS = struct.Struct("!cqqqqb")

_OPTIONS = {
    **values.SESSION_OPTIONS,
    "wal_sender_timeout": WAL_SENDER_TIMEOUT,
    # A frozen client must not hold a CHECKPOINT for as long as TCP would try.
    "tcp_user_timeout": "10s",
}


class SessionEnded(Exception):
    """The session is over; the message is what the server said, if it said anything."""


class Identity(NamedTuple):
    """What IDENTIFY_SYSTEM tells: which cluster this is, on which timeline, and how far its WAL goes."""

    system: str
    timeline: int
    flushed: int


class Received(NamedTuple):
    """What `receive` returns: the pgoutput payloads, in order, and the position up to which the server has
    sent everything (0: it did not say)."""

    payloads: list[bytes]
    sent: int


def options(settings: dict[str, str]) -> str:
    """Settings in the form that libpq's `options` parameter takes."""
    return " ".join(f"-c {name}={value.replace(' ', chr(92) + ' ')}" for name, value in settings.items())


class WalSession:
    """A replication connection. Make it with `connect`; not to be used again after `SessionEnded`."""

    def __init__(self, connection: psycopg.AsyncConnection[tuple[object, ...]]) -> None:
        self._connection = connection
        self._pg = connection.pgconn
        self._acknowledged = 0
        self._answered = 0.0
        self._asked = False
        self._waiting: asyncio.Future[None] | None = None
        self._interrupted = ""

    @classmethod
    async def connect(cls, url: str, *, name: str) -> WalSession:
        """Open a replication connection to the database of `url`; `name` is its application name.

        Raises psycopg.Error.
        """
        connection: psycopg.AsyncConnection[tuple[object, ...]]
        connection = await psycopg.AsyncConnection.connect(
            url,
            autocommit=True,
            replication="database",
            application_name=name,
            options=options(_OPTIONS),
            connect_timeout=10,
            keepalives_idle=10,
            tcp_user_timeout=10_000,
        )
        return cls(connection)

    async def close(self) -> None:
        """Close the connection; the temporary slot goes with it."""
        self.interrupt("closed")
        await self._connection.close()

    def interrupt(self, reason: str) -> None:
        """Have `receive` raise `SessionEnded` with this reason, now or when it is called next."""
        self._interrupted = self._interrupted or reason
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def identify(self) -> Identity:
        """IDENTIFY_SYSTEM."""
        cursor = await self._connection.execute("IDENTIFY_SYSTEM")
        row = await cursor.fetchone()
        assert row is not None
        return Identity(str(row[0]), int(str(row[1])), parse_lsn(str(row[2])))

    async def copy_slot(self, source: str, name: str) -> int:
        """Make a temporary copy of a slot; returns the LSN from which it can stream.

        Raises psycopg.Error, e.g. when the source is being advanced at the moment, or was invalidated.
        """
        cursor = await self._connection.execute(
            sql.SQL("SELECT lsn FROM pg_copy_logical_replication_slot({}, {}, true)").format(source, name)
        )
        row = await cursor.fetchone()
        assert row is not None
        return parse_lsn(str(row[0]))

    async def start(self, slot: str, lsn: int, publication: str) -> None:
        """START_REPLICATION from an LSN. Raises `SessionEnded` with the server's words if it refuses."""
        command = sql.SQL(
            "START_REPLICATION SLOT {} LOGICAL {} (proto_version '2', publication_names {}, messages 'true')"
        ).format(sql.Identifier(slot), sql.SQL(format_lsn(lsn)), f'"{publication}"')
        self._pg.send_query(command.as_bytes(self._connection))
        self._flush()
        while self._pg.is_busy():
            await self._readable(STATUS_INTERVAL)
            self._consume()
        result = self._pg.get_result()
        if result is None or result.status != pq.ExecStatus.COPY_BOTH:
            raise SessionEnded(_message(result))
        self._acknowledged = lsn

    def acknowledge(self, lsn: int) -> None:
        """Everything before `lsn` has been dealt with: the server need not keep it for us."""
        self._acknowledged = max(self._acknowledged, lsn)

    async def receive(self) -> Received:
        """The next messages, at least one unless STATUS_INTERVAL went by. Sends status when it is due.

        Raises `SessionEnded`.
        """
        payloads: list[bytes] = []
        sent = size = 0
        while len(payloads) < CHUNK_MESSAGES and size < CHUNK_BYTES:
            if self._interrupted:
                raise SessionEnded(self._interrupted)
            length, data = self._get()
            if length > 0:
                message = bytes(data)
                if message[0] == 0x77:  # w
                    payloads.append(message[_XLOG_DATA.size :])
                    size += length
                else:
                    _, end, _, asks = _KEEPALIVE.unpack(message)
                    sent = end
                    self._asked = self._asked or bool(asks)
                    break
            elif payloads:
                break
            else:
                self._answer()
                if not await self._readable(STATUS_INTERVAL):
                    break
                self._consume()
        self._answer()
        return Received(payloads, sent)

    # Inside

    def _answer(self) -> None:
        """Send status when the server asks for it or it is due."""
        now = time.monotonic()
        if not self._asked and now - self._answered < STATUS_INTERVAL:
            return
        lsn = self._acknowledged
        moment = time.time_ns() // 1000 - POSTGRES_EPOCH
        try:
            self._pg.put_copy_data(_STATUS.pack(b"r", lsn, lsn, lsn, moment, 0))
        except psycopg.Error as error:
            raise SessionEnded(_line(error)) from None
        self._flush()
        self._answered = now
        self._asked = False

    def _get(self) -> tuple[int, bytes | memoryview]:
        try:
            length, data = self._pg.get_copy_data(1)
        except psycopg.Error as error:
            raise SessionEnded(_line(error)) from None
        if length < 0:
            result = self._pg.get_result()
            raise SessionEnded(_message(result))
        return length, data

    def _consume(self) -> None:
        try:
            self._pg.consume_input()
        except psycopg.Error as error:
            raise SessionEnded(_line(error)) from None

    def _flush(self) -> None:
        try:
            self._pg.flush()
        except psycopg.Error as error:
            raise SessionEnded(_line(error)) from None

    async def _readable(self, timeout: float) -> bool:
        """Wait until the socket has something for us; False after `timeout` seconds."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting = loop.create_future()
        socket = self._pg.socket
        loop.add_reader(socket, _finish, waiting)
        timer = loop.call_later(timeout, _finish, waiting)
        started = loop.time()
        try:
            await waiting
        finally:
            self._waiting = None
            timer.cancel()
            loop.remove_reader(socket)
        return loop.time() - started < timeout


def _finish(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


def _message(result: pq.abc.PGresult | None) -> str:
    text = "" if result is None else result.error_message.decode(errors="replace")
    return " ".join(text.split()) or "the server ended the stream"


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
