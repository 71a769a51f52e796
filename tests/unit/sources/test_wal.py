"""What a replication session asks for, without a server."""

from __future__ import annotations

import struct
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import pq
from psycopg.conninfo import make_conninfo

from rowcast.sources.activity import OpenTransaction
from rowcast.sources.explain import explain
from rowcast.sources.wal import CHUNK_MESSAGES, SessionEnded, WalSession, options


def test_settings_become_options() -> None:
    assert options({"DateStyle": "ISO, YMD", "TimeZone": "UTC"}) == "-c DateStyle=ISO,\\ YMD -c TimeZone=UTC"


@pytest.mark.parametrize(
    "url", ["postgresql://h/d?options=-c%20search_path%3Dapp", "host=h options='-c search_path=app'"]
)
def test_options_of_the_url_stay_and_ours_come_last(url: str) -> None:
    assert options({"TimeZone": "UTC"}, url) == "-c search_path=app -c TimeZone=UTC"


def test_a_url_without_options() -> None:
    assert options({"TimeZone": "UTC"}, make_conninfo("postgresql://h/d")) == "-c TimeZone=UTC"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (psycopg.errors.ConfigurationLimitExceeded("voll"), "max_replication_slots"),
        (psycopg.errors.TooManyConnections("voll"), "max_wal_senders"),
        (psycopg.errors.InsufficientPrivilege("nein"), 'ALTER ROLE "bob" REPLICATION'),
        (psycopg.errors.ObjectNotInPrerequisiteState("braucht wal_level >= logical"), "SET wal_level = logical"),
        (SessionEnded("voll", "53300"), "max_wal_senders"),
    ],
)
def test_an_error_is_explained_by_its_code_whatever_its_language(error: Exception, advice: str) -> None:
    text = explain(error, role="bob")
    assert text.startswith(str(error))
    assert advice in text


def test_an_error_that_we_know_nothing_of_stays_one_line() -> None:
    assert explain(psycopg.OperationalError("connection failed:\n\tno  route")) == "connection failed: no route"
    assert explain(TimeoutError()) == "TimeoutError"
    assert explain(psycopg.errors.ObjectNotInPrerequisiteState("the slot is invalid")) == "the slot is invalid"


def test_an_open_transaction_says_who_it_is_and_how_to_end_it() -> None:
    session = OpenTransaction(42, "ann", "psql", "idle in transaction", 90, None)
    assert str(session) == (
        "a transaction of session 42 (ann, psql, idle in transaction), open for 90 s; "
        "end it, or run: SELECT pg_terminate_backend(42)"
    )
    prepared = OpenTransaction(0, "ann", "", "prepared", 90, "gid-1")
    assert str(prepared) == "the prepared transaction 'gid-1'; run: COMMIT PREPARED or ROLLBACK PREPARED 'gid-1'"


class Walsender:
    """The libpq side of a session: messages are there from the start, `burst` of them with each read."""

    def __init__(self, messages: list[bytes], burst: int) -> None:
        self.messages = messages
        self.burst = burst
        self.read: list[bytes] = []
        self.answers: list[bytes] = []
        self.socket = -1
        self.status = pq.ConnStatus.BAD
        self.ends = False

    def consume_input(self) -> None:
        self.read += self.messages[: self.burst]
        del self.messages[: self.burst]

    def get_copy_data(self, _: int) -> tuple[int, bytes]:
        if self.ends and not self.read:
            raise psycopg.OperationalError("the server closed the connection")
        return (len(self.read[0]), self.read.pop(0)) if self.read else (0, b"")

    def put_copy_data(self, data: bytes) -> None:
        self.answers.append(data)

    def flush(self) -> None:
        pass


def session_of(sender: Walsender) -> WalSession:
    connection: Any = SimpleNamespace(pgconn=sender, add_notice_handler=lambda handler: None)
    return WalSession(connection, 10.0)


def data(number: int) -> bytes:
    return struct.pack("!cqqq", b"w", number, number, 0) + b"%d" % number


def keepalive(sent: int, *, asks: bool = False) -> bytes:
    return struct.pack("!cqqb", b"k", sent, 0, asks)


async def test_a_keepalive_after_every_transaction_does_not_part_what_is_there() -> None:
    """A loop that is busy must get all that came meanwhile at once, and not a transaction in each of its turns."""
    sender = Walsender([message for n in range(1, 101) for message in (data(n), keepalive(n))], burst=10)
    sender.consume_input()
    received = await session_of(sender).receive()
    assert received.payloads == [b"%d" % n for n in range(1, 101)]
    assert received.sent == 100


async def test_who_is_asked_answers_with_the_next_call() -> None:
    sender = Walsender([data(1), keepalive(1, asks=True)], burst=2)
    sender.consume_input()
    session = session_of(sender)
    assert (await session.receive()).payloads == [b"1"]
    answered = len(sender.answers)
    session.acknowledge(7)
    sender.read.append(keepalive(8))
    assert (await session.receive()).sent == 8
    assert len(sender.answers) == answered + 1
    assert struct.unpack_from("!cq", sender.answers[-1])[1] == 7


async def test_what_is_returned_at_once_is_bounded() -> None:
    sender = Walsender([data(n) for n in range(2 * CHUNK_MESSAGES)], burst=100)
    sender.consume_input()
    session = session_of(sender)
    assert len((await session.receive()).payloads) == CHUNK_MESSAGES
    assert len((await session.receive()).payloads) == CHUNK_MESSAGES


async def test_what_came_before_the_end_is_not_lost_with_it() -> None:
    """Or a session that always reads both at once would never get past the place where it ends."""
    sender = Walsender([data(1), data(2)], burst=2)
    sender.consume_input()
    sender.ends = True
    session = session_of(sender)
    assert (await session.receive()).payloads == [b"1", b"2"]
    for _ in range(2):
        with pytest.raises(SessionEnded, match="closed the connection"):
            await session.receive()
