"""What a walsender session makes of what lies in libpq's buffer: how much of it comes at once."""

from __future__ import annotations

import socket
import struct
from typing import Any

import pytest
import uvloop

from rowcast.sources import wal
from rowcast.sources.wal import SessionEnded, WalSession


class Connection:
    """A connection whose server has sent some chunks: each is what one read of the socket brings."""

    def __init__(self, *chunks: list[bytes]) -> None:
        self._chunks = list(chunks)
        self._buffer: list[bytes] = []
        self.pgconn = self
        self.sent: list[bytes] = []

    def add_notice_handler(self, handler: Any) -> None:
        pass

    def get_copy_data(self, nonblocking: int) -> tuple[int, bytes]:
        message = self._buffer.pop(0) if self._buffer else b""
        return len(message), message

    def consume_input(self) -> None:
        if self._chunks:
            self._buffer += self._chunks.pop(0)

    def put_copy_data(self, data: bytes) -> None:
        self.sent.append(data)

    def flush(self) -> None:
        pass


def data(payload: bytes) -> bytes:
    return struct.pack("!cqqq", b"w", 1, 1, 1) + payload


def keepalive(lsn: int, *, asks: bool = False) -> bytes:
    return struct.pack("!cqqb", b"k", lsn, 0, asks)


def session(*chunks: list[bytes]) -> tuple[WalSession, Connection]:
    connection = Connection(*chunks)
    connection.consume_input()
    return WalSession(connection, 10.0), connection  # type: ignore[arg-type]  # as much of one as is used


async def test_a_keepalive_behind_each_transaction_does_not_part_them() -> None:
    one, _ = session([data(b"B1"), data(b"I1"), data(b"C1"), keepalive(10), data(b"B2"), data(b"C2"), keepalive(20)])
    assert await one.receive() == ([b"B1", b"I1", b"C1", b"B2", b"C2"], 20)


async def test_a_keepalive_alone_is_told_at_once_and_answered_by_the_next_call() -> None:
    one, connection = session([keepalive(10, asks=True)], [], [data(b"B")])
    assert await one.receive() == ([], 10)
    answered = len(connection.sent)
    connection.consume_input()
    assert await one.receive() == ([b"B"], 0)
    assert len(connection.sent) == answered + 1


async def test_one_more_read_is_taken_along() -> None:
    one, _ = session([data(b"B")], [data(b"I"), data(b"C")], [])
    assert await one.receive() == ([b"B", b"I", b"C"], 0)


async def test_a_small_transaction_that_came_alone_is_returned_without_another_look() -> None:
    one, connection = session([data(b"B"), data(b"I"), data(b"C"), keepalive(9)], [data(b"B2")])
    assert await one.receive() == ([b"B", b"I", b"C"], 9)
    connection.consume_input()
    assert await one.receive() == ([b"B2"], 0)


async def test_an_interruption_ends_what_is_received_next_with_its_reason() -> None:
    one, _ = session([data(b"B")])
    one.interrupt("first")
    one.interrupt("second")
    for _ in range(2):
        with pytest.raises(SessionEnded, match="first"):
            await one.receive()


async def test_a_chunk_is_bounded() -> None:
    one, _ = session([*(data(b"%d" % number) for number in range(wal.CHUNK_MESSAGES + 3)), keepalive(9)])
    first = await one.receive()
    assert (len(first.payloads), first.sent) == (wal.CHUNK_MESSAGES, 0)
    assert await one.receive() == ([b"%d" % (wal.CHUNK_MESSAGES + number) for number in range(3)], 9)


def test_a_wait_that_is_over_at_once_leaves_a_timer_that_serves_the_next() -> None:
    """uvloop gives no timer for less than half a millisecond, but a handle that does not know when it is due."""
    one, connection = session()

    async def waits() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            connection.socket = ours.fileno()  # type: ignore[attr-defined]
            try:
                for timeout in (0.0, 1.0):
                    one._readable(timeout).cancel()
            finally:
                one._unwatch()
        assert one._timer is not None
        one._timer.cancel()

    uvloop.run(waits())
