"""Exact subscriptions on a real Postgres, against a brute-force oracle.

Thousands of small random histories run concurrently against one database: several writers change data and
subscriptions in transactions of their own, while streams are opened and dropped. Each history has users and
topics of its own. The oracle reads the database's WAL by another plugin (test_decoding, through SQL), replays
it from the beginning, and says what each stream must have got from its start on.
"""

from __future__ import annotations

import asyncio
import random
import re
from bisect import bisect_right
from collections.abc import Awaitable, Callable
from typing import Any, Self

import psycopg
import pytest

from rowcast import Rowcast
from rowcast.core.grants import Grant
from rowcast.core.position import Place, parse_lsn
from rowcast.core.stream import Stream

SCHEMA = """
CREATE TABLE subs (id bigint PRIMARY KEY, usr text NOT NULL, topic text NOT NULL, enabled boolean NOT NULL);
CREATE INDEX ON subs (usr);
CREATE TABLE items (id bigserial PRIMARY KEY, topic text NOT NULL);
"""

SQL = {
    "data": "INSERT INTO items (topic) VALUES (%(topic)s)",
    "subscribe": "INSERT INTO subs VALUES (%(id)s, %(user)s, %(topic)s, true) ON CONFLICT (id) DO NOTHING",
    "change": "UPDATE subs SET usr = %(user)s, topic = %(topic)s, enabled = %(enabled)s WHERE id = %(id)s",
    "switch": "UPDATE subs SET enabled = NOT enabled WHERE id = %(id)s",
    "rekey": "UPDATE subs SET id = %(other)s WHERE id = %(id)s AND NOT EXISTS (SELECT FROM subs WHERE id = %(other)s)",
    "remove": "DELETE FROM subs WHERE id = %(id)s",
}
WEIGHTS = {"data": 10, "subscribe": 4, "change": 3, "switch": 2, "rekey": 1, "remove": 2}

WRITERS = 10
TOGETHER = 24
HISTORIES = 3000


class History:
    """Two users, three topics, four subscription rows, and what happens to them."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.users = [f"u{seed}.{i}" for i in range(2)]
        self.topics = [f"t{seed}.{i}" for i in range(3)]
        self.rows = [seed * 10 + i for i in range(4)]
        self.streams: list[tuple[Stream, list[bytes]]] = []
        self.dropped: set[Stream] = set()

    def statements(self) -> list[tuple[str, dict[str, Any]]]:
        kinds = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=self.rng.randrange(1, 6))
        return [
            (
                SQL[kind],
                {
                    "topic": self.rng.choice(self.topics),
                    "user": self.rng.choice(self.users),
                    "id": self.rng.choice(self.rows),
                    "other": self.rng.choice(self.rows),
                    "enabled": self.rng.random() < 0.7,
                },
            )
            for kind in kinds
        ]

    async def run(self, cast: Rowcast, write: Callable[[History], Awaitable[None]]) -> None:
        steps = [*(["write"] * 8), *(["connect"] * 3), "drop"]
        self.rng.shuffle(steps)
        async with asyncio.TaskGroup() as group:
            for step in steps:
                if step == "write":
                    group.create_task(write(self))
                elif step == "connect":
                    self.connect(cast)
                elif self.streams:
                    stream, _ = self.rng.choice(self.streams)
                    self.dropped.add(stream)
                    cast.hub.drop(stream)
                for _ in range(self.rng.randrange(4)):
                    await asyncio.sleep(0)

    def connect(self, cast: Rowcast) -> None:
        got: list[bytes] = []
        grant = Grant(self.rng.choice(self.users), frozenset(), None, None)
        opened: list[Stream] = []

        def read() -> None:
            got.extend(stream.take() for stream in opened)

        opened.append(cast.hub.connect(grant, read))
        read()
        self.streams.append((opened[0], got))


class Writers:
    """Connections that run random transactions; deadlocks and conflicts abort them, as in real life."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._idle: asyncio.Queue[psycopg.AsyncConnection[Any]] = asyncio.Queue()
        self.aborted = 0

    async def __aenter__(self) -> Self:
        for _ in range(WRITERS):
            self._idle.put_nowait(await psycopg.AsyncConnection.connect(self._url))
        return self

    async def __aexit__(self, *_: object) -> None:
        while not self._idle.empty():
            await self._idle.get_nowait().close()

    async def write(self, history: History) -> None:
        connection = await self._idle.get()
        try:
            if history.rng.random() < 0.3:
                # The commit reaches the WAL reader long before it is flushed, or long after.
                await connection.execute("SET LOCAL synchronous_commit = off")
            for statement, arguments in history.statements():
                await connection.execute(statement.encode(), arguments)
            await (connection.rollback() if history.rng.random() < 0.1 else connection.commit())
        except (psycopg.errors.DeadlockDetected, psycopg.errors.UniqueViolation):
            self.aborted += 1
            await connection.rollback()
        finally:
            self._idle.put_nowait(connection)


_FIELD = re.compile(r"(\w+)\[[^]]+\]:(?:'((?:[^']|'')*)'|(\S+))")


class Oracle:
    """Replays the WAL as test_decoding tells it."""

    def __init__(self, lines: list[tuple[str, str]]) -> None:
        self.transactions: list[tuple[int, list[tuple[str, dict[str, str], dict[str, str]]]]] = []
        for lsn, line in lines:
            if line.startswith("BEGIN"):
                changes: list[tuple[str, dict[str, str], dict[str, str]]] = []
            elif line.startswith("COMMIT"):
                self.transactions.append((parse_lsn(lsn), changes))
            elif line.startswith("message: transactional: 1"):
                changes.append(("message", {}, {}))
            elif match := re.match(r"table public\.(\w+): ([A-Z]+): (.*)", line):
                table, action, text = match.groups()
                old, _, new = text.rpartition("new-tuple:")
                changes.append((f"{table} {action}", self._fields(old), self._fields(new)))
        self.ends = [end for end, _ in self.transactions]

    @staticmethod
    def _fields(text: str) -> dict[str, str]:
        return {name: quoted or plain for name, quoted, plain in _FIELD.findall(text)}

    def expected(self, user: str, start: Place) -> list[str]:
        """The ids of the items that a stream of the user must get from its start on."""
        rows: dict[str, dict[str, str]] = {}
        got: list[str] = []
        # A start inside a transaction has its commit LSN, which lies just below its end.
        inside = self.ends[bisect_right(self.ends, start[0])] if start[1] else None
        for end, changes in self.transactions:
            for index, (what, old, new) in enumerate(changes):
                if what.startswith("subs"):
                    if what == "subs DELETE":
                        del rows[new["id"]]
                    else:
                        rows.pop(old.get("id", new["id"]), None)
                        rows[new["id"]] = new
                elif what == "items INSERT" and end > start[0]:
                    if end == inside and (index + 1) << 20 <= start[1]:
                        continue
                    if any(
                        row["usr"] == user and row["topic"] == new["topic"] and row["enabled"] == "true"
                        for row in rows.values()
                    ):
                        got.append(new["id"])
        return got

    def by_history(self) -> dict[int, Oracle]:
        """An oracle for each history, with its transactions whole, so that indexes stay the same."""
        parts: dict[int, Oracle] = {}
        for end, changes in self.transactions:
            for what, old, new in changes:
                if what == "items INSERT":
                    seed = int(new["topic"][1:].split(".")[0])
                elif what.startswith("subs"):
                    seed = int((new or old)["id"]) // 10
                else:
                    continue
                part = parts.setdefault(seed, Oracle([]))
                part.ends = self.ends
                part.transactions.append((end, changes))
                break
        return parts


def received(got: list[bytes]) -> tuple[Place | None, list[str], list[str]]:
    """A stream's start, the ids of the items that it got, and the names of its other events."""
    start: Place | None = None
    items: list[str] = []
    others: list[str] = []
    for block in b"".join(got).decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n") if ": " in line)
        if fields.get("event") == "rowcast.ready":
            major, minor = fields["id"].split(":")[1].split("-")
            start = (int(major, 16), int(minor))
        elif "event" in fields:
            others.append(fields["event"])
        elif "data" in fields and (match := re.search(r'"record":{"id":"?(\d+)', fields["data"])):
            items.append(match[1])
    return start, items, others


@pytest.mark.timeout(240)
async def test_every_stream_gets_exactly_what_the_oracle_says(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(SCHEMA)
        admin.execute("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')")
    cast = Rowcast(
        postgres=database,
        auth="0123456789abcdef0123456789abcdef",
        route=[{"table": "items", "topic": "{topic}"}],
        subscription=[{"table": "subs", "user": "{usr}", "when": "{enabled}", "topics": ["{topic}"]}],
    )
    base = random.randrange(1, 10**9) // HISTORIES * HISTORIES
    histories = [History(base + number) for number in range(HISTORIES)]
    async with cast.lifespan(), Writers(database) as writers:
        waiting = iter(histories)

        async def work() -> None:
            for history in waiting:
                await history.run(cast, writers.write)

        async with asyncio.TaskGroup() as group:
            for _ in range(TOGETHER):
                group.create_task(work())
        for _ in range(2):  # the second: streams that were opened last have started by then
            await cast.hub.passed(await cast.log.head())
    with psycopg.connect(database) as admin:
        lines = admin.execute(
            "SELECT lsn::text, data FROM pg_logical_slot_get_changes('oracle', NULL, NULL)"
        ).fetchall()
        admin.commit()
    parts = Oracle(lines).by_history()
    compared = streams = changed = 0
    for history in histories:
        part = parts[history.seed]
        for stream, got in history.streams:
            start, items, others = received(got)
            if start is None:
                assert stream in history.dropped, "a stream was never started"
                continue
            assert "rowcast.reset" not in others
            expected = part.expected(stream.grant.user, start)
            if stream in history.dropped:
                expected = expected[: len(items)]
            assert items == expected, f"seed {history.seed}, user {stream.grant.user}, start {start}"
            compared += len(items)
            streams += 1
            changed += others.count("rowcast.subscriptions")
    print(f"{HISTORIES} histories, {streams} streams, {compared} entries, {changed} changes, {writers.aborted} aborted")
    assert compared > HISTORIES
    assert changed > HISTORIES
