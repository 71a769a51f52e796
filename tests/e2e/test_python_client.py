"""The Python clients, for threads and for asyncio, against a real replica that is killed, with revoked tokens."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.client import EventStream, Rows, SyncEventStream, call
from rowcast.config import Config
from rowcast.testing.postgres import free_port
from rowcast.testing.server import RowcastServer

KEY = "a key"
SECRET = "0123456789abcdef0123456789abcdef"

CONFIG = """
[server]
retry = "100ms"
heartbeat = "1s"

[postgres]
url = "{url}"

[auth]
secret = "{secret}"

[api]
key = "{key}"

[[route]]
table = "items"
topic = "items"
snapshot = true
"""

TIMEOUT = 60.0


class Follower:
    """One of the two clients, followed in a thread of its own; its rows, and the names of its events."""

    def __init__(self, kind: str, url: str, token: Callable[[bool], str]) -> None:
        self.names: list[str] = []
        self._moved = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._stream: EventStream | SyncEventStream
        if kind == "async":
            self._stream = EventStream(url, token=token, snapshot=True)
            self._task = self._loop.create_task(self._receive(self._stream))
            self._thread = threading.Thread(target=self._run)
        else:
            self._stream = SyncEventStream(url, token=token, snapshot=True)
            self._thread = threading.Thread(target=self._receive_here, args=(self._stream,))
        self.rows: Rows = self._stream.rows("items")
        self._thread.start()

    def until(self, holds: Callable[[], bool]) -> None:
        with self._moved:
            assert self._moved.wait_for(holds, TIMEOUT), self.names

    def close(self) -> None:
        if isinstance(self._stream, SyncEventStream):
            self._stream.close()
        else:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(TIMEOUT)
        self._loop.close()

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)

    async def _receive(self, stream: EventStream) -> None:
        async with contextlib.aclosing(aiter(stream)) as events:
            async for event in events:
                self._note(event.event)

    def _receive_here(self, stream: SyncEventStream) -> None:
        for event in stream:
            self._note(event.event)

    def _note(self, name: str) -> None:
        with self._moved:
            self.names.append(name)
            self._moved.notify_all()


class Table:
    """The table, and whether a client has what it has."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg.connect(url, autocommit=True)
        self.execute("CREATE TABLE items (id bigint PRIMARY KEY, text text)")
        self.execute("INSERT INTO items SELECT n, 'before' FROM generate_series(1, 3) n")

    def execute(self, statement: str) -> None:
        self._connection.execute(statement.encode())

    def seen_by(self, follower: Follower) -> None:
        rows = self._connection.execute("SELECT id, text FROM items ORDER BY id").fetchall()
        wanted: list[Any] = [{"id": number, "text": text} for number, text in rows]
        follower.until(lambda: sorted(follower.rows.get(), key=lambda row: row["id"]) == wanted)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def table(database: str) -> Iterator[Table]:
    with contextlib.closing(Table(database)) as table:
        yield table


def test_both_keep_their_rows_over_a_killed_server_and_a_revoked_token(table: Table, database: str) -> None:
    config = Config.from_sections({"auth": SECRET})
    asked: list[bool] = []

    def token(expired: bool) -> str:
        asked.append(expired)
        return mint(config, "ann", topics=["items"])

    with contextlib.ExitStack() as stack:
        server = RowcastServer(CONFIG.format(url=database, secret=SECRET, key=KEY))
        server.start(port=free_port())
        stack.callback(lambda: server.stop())
        followers = [
            stack.enter_context(contextlib.closing(Follower(kind, server.url, token))) for kind in ("async", "sync")
        ]

        def all_see_it() -> None:
            for follower in followers:
                table.seen_by(follower)

        all_see_it()
        table.execute("INSERT INTO items VALUES (4, 'after'); UPDATE items SET text = 'x' WHERE id = 1")
        table.execute("DELETE FROM items WHERE id = 2")
        all_see_it()
        call(server.url, "/control/disconnect", {"user": "ann"}, key=KEY)
        for follower in followers:
            follower.until(lambda: follower.names.count("rowcast.ready") > 1)  # noqa: B023
        assert asked == [False, False, True, True]
        table.execute("UPDATE items SET text = 'with another token'")
        all_see_it()
        port = int(server.url.rsplit(":", 1)[1])
        server.kill()
        table.execute("INSERT INTO items VALUES (5, 'while it was away'); DELETE FROM items WHERE id = 1")
        server.start(port=port)
        all_see_it()
        table.execute("TRUNCATE items")
        all_see_it()
        for follower in followers:
            assert "rowcast.reset" not in follower.names
            assert follower.names.count("rowcast.snapshot") == 1, "resumed: no need of the rows again"
