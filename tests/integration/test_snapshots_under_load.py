"""Snapshots and their tails under concurrent writers, against what another plugin reads from the WAL.

Clients connect to two replicas while pgbench inserts, updates, moves and deletes rows, and subscriptions change; they
are cut off and come back to the other replica. At every position that is looked at, a client's rows must be those of
the database at that place of its commit order.

ROWCAST_CHECKS and ROWCAST_WRITES (per second) make it long: 1000 and 5000.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rowcast import Rowcast
from rowcast.core.position import Place, parse_position
from rowcast.testing.local import LocalStream
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.rows import Rows
from rowcast.testing.truth import Row, Truth
from rowcast.testing.valkey import ValkeyServer

OLD_BINARIES = Path("/usr/lib/postgresql/15/bin")

CHECKS = int(os.environ.get("ROWCAST_CHECKS", "60"))
WRITES = int(os.environ.get("ROWCAST_WRITES", "600"))
CLIENTS = 6
TOPICS = 12
USERS = 4

SCHEMA = f"""
CREATE TABLE items (id int PRIMARY KEY, topic int NOT NULL, version bigint NOT NULL);
CREATE INDEX ON items (topic);
ALTER TABLE items REPLICA IDENTITY FULL;
CREATE SEQUENCE versions;
INSERT INTO items SELECT i, i % {TOPICS}, nextval('versions') FROM generate_series(1, 1500) i;
CREATE TABLE subs (id int PRIMARY KEY, usr int NOT NULL, topic int NOT NULL);
INSERT INTO subs SELECT i, i % {USERS}, i % {TOPICS} FROM generate_series(1, 16) i;
"""

UPSERT = """INSERT INTO items VALUES (:id{n}, :topic{n}, nextval('versions')) ON CONFLICT (id) DO UPDATE
SET topic = EXCLUDED.topic, version = EXCLUDED.version;
"""
SCRIPT = (
    "".join(f"\\set id{n} random(1, 2000)\n\\set topic{n} random(0, {TOPICS - 1})\n" for n in range(4))
    + "BEGIN;\n"
    + UPSERT.format(n=0)
    + UPSERT.format(n=1)
    + "SAVEPOINT one;\n"
    + UPSERT.format(n=2)
    + "RELEASE one;\nUPDATE items SET version = nextval('versions') WHERE id = :id3;\n"
    + "DELETE FROM items WHERE id = :id0 + 1;\nCOMMIT;\n"
)
SUBSCRIBE = f"""\\set id random(1, 16)
\\set usr random(0, {USERS - 1})
\\set topic random(0, {TOPICS - 1})
\\sleep 40 ms
UPDATE subs SET usr = :usr, topic = :topic WHERE id = :id;
"""
PER_TRANSACTION = 5


@pytest.fixture(scope="module")
def old() -> Iterator[PostgresServer]:
    if not OLD_BINARIES.exists():
        pytest.skip("there is no Postgres 15")
    with PostgresServer(binaries=OLD_BINARIES) as server:
        yield server


@contextlib.contextmanager
def writing(server: PostgresServer, database: str, directory: Path) -> Iterator[None]:
    """pgbench, for the time of the block."""
    running = []
    scripts = {"items": (SCRIPT, ["-c6", "-j1", f"-R{WRITES // PER_TRANSACTION}"]), "subs": (SUBSCRIBE, ["-c1"])}
    try:
        for name, (script, options) in scripts.items():
            file = directory / f"{name}.sql"
            file.write_text(script)
            command = [server.program("pgbench"), "-n", "-T3600", "--max-tries=100", f"-f{file}", *options, database]
            with (directory / f"{name}.log").open("wb") as log:
                running.append(subprocess.Popen(command, stdout=log, stderr=log))
        yield
        assert [process.poll() for process in running] == [None, None], "a writer ended"
    finally:
        for process in running:
            process.terminate()
            process.wait()


class Client:
    """Opens streams one after the other, and notes what it has at positions."""

    def __init__(self, casts: list[Rowcast], number: int, checks: list[tuple[Place, dict[str, Any]]]) -> None:
        self.rng = random.Random(number)
        self.casts = casts
        self.checks = checks
        self.user = str(number % USERS)
        self.resumed = 0
        self.gained = 0

    async def run(self) -> None:
        while len(self.checks) < CHECKS:
            rows = Rows()
            for _ in range(self.rng.randrange(1, 4)):
                self.resumed += bool(rows.position)
                await self.stream(rows)

    async def stream(self, rows: Rows) -> None:
        """One connection: the snapshot, if there is one, and some of the tail."""
        cast = self.rng.choice(self.casts)
        stream = LocalStream(cast, self.user, last_event_id=rows.position or None, snapshot=True)
        moments = self.rng.randrange(1, 5)
        taken = 0
        noted: Place | None = None
        try:
            while moments and not stream.events("rowcast.bye"):
                # On a busy machine the hub may be far behind: that is not what this test is about.
                await stream.until(lambda seen=taken: len(stream.blocks) > seen, timeout=60 + CHECKS)  # type: ignore[misc]
                while taken < len(stream.blocks) and moments:
                    block = stream.blocks[taken]
                    place = parse_position(block.id).place if block.id else None
                    # A transaction that has come whole: what follows is of another.
                    if noted is not None and place is not None and place[0] != noted[0]:
                        self.note(noted, rows)
                        moments -= 1
                    rows.take([block])
                    lacking = not rows.position or parse_position(rows.position).owed
                    noted = None if lacking else place if block.id else noted
                    taken += 1
                    self.gained += block.event == "rowcast.subscriptions" and bool(block.data["snapshot"])
        finally:
            stream.close()

    def note(self, place: Place, rows: Rows) -> None:
        held = {
            topic: {key: row["version"] for key, row in rows.rows[topic].items()}
            for topic in rows.complete
            if topic.startswith("items:")
        }
        if held:
            self.checks.append((place, held))


def judge(truth: Truth, checks: list[tuple[Place, dict[str, Any]]]) -> int:
    """Replay what was committed, and compare at each place. Returns how many rows were compared."""
    rows: dict[int, Row] = {i: {"topic": f"{i % TOPICS}", "version": f"{i}"} for i in range(1, 1501)}
    done = compared = 0
    for place, held in sorted(checks, key=lambda check: check[0]):
        moment = truth.moment(place)
        whole = moment.transaction + (moment.change >= 0)
        for changes in truth.transactions[done:whole]:
            for change in changes:
                if change.table == "items":
                    if change.action != "INSERT":
                        del rows[int(change.old["id"])]
                    if change.action != "DELETE":
                        rows[int(change.new["id"])] = change.new
        done = max(done, whole)
        for topic, found in held.items():
            number = topic.removeprefix("items:")
            expected = {key: int(row["version"]) for key, row in rows.items() if row["topic"] == number}
            assert found == expected, f"{topic} at {place}"
            compared += len(found)
    return compared


@contextlib.asynccontextmanager
async def replicas(database: str, log: str, count: int) -> AsyncIterator[list[Rowcast]]:
    async with contextlib.AsyncExitStack() as stack:
        casts = []
        for _ in range(count):
            cast = Rowcast(
                postgres=database,
                log=log,
                auth="0123456789abcdef0123456789abcdef",
                route=[{"table": "items", "topic": "items:{topic}", "snapshot": True}],
                subscription=[{"table": "subs", "user": "{usr}", "topics": ["items:{topic}"]}],
            )
            await stack.enter_async_context(cast.lifespan())
            casts.append(cast)
        yield casts


async def compare(server: PostgresServer, database: str, log: str, count: int, directory: Path) -> None:
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute(SCHEMA.encode())
        admin.execute("SELECT pg_create_logical_replication_slot('truth', 'test_decoding')")
    checks: list[tuple[Place, dict[str, Any]]] = []
    async with replicas(database, log, count) as casts:
        clients = [Client(casts, number, checks) for number in range(CLIENTS)]
        begun = time.monotonic()
        with writing(server, database, directory):
            async with asyncio.timeout(60 + CHECKS), asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(client.run())
        took = time.monotonic() - begun
        reads = sum(cast.hub.snapshots.reads for cast in casts)
    truth = Truth.read(database, "truth")
    compared = judge(truth, checks)
    rate = sum(change.table == "items" for changes in truth.transactions for change in changes) / took
    gained, resumed = sum(c.gained for c in clients), sum(c.resumed for c in clients)
    print(
        f"{len(checks)} checks under {rate:.0f} writes/s in {took:.0f} s: {compared} rows, {reads} reads, "
        f"{gained} gains of live streams, {resumed} resumed"
    )
    assert compared > CHECKS


@pytest.mark.parametrize("log", ["memory:", "postgres:"])
@pytest.mark.timeout(60 + 4 * CHECKS)
async def test_rows_are_the_databases_at_every_position(
    postgres: PostgresServer, database: str, log: str, tmp_path: Path
) -> None:
    await compare(postgres, database, log, 1 if log == "memory:" else 2, tmp_path)


@pytest.mark.timeout(60 + 4 * CHECKS)
async def test_also_with_a_log_on_redis(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    with ValkeyServer() as valkey:
        await compare(postgres, database, valkey.url, 2, tmp_path)


@pytest.mark.timeout(60 + 4 * CHECKS)
async def test_also_on_postgres_15(old: PostgresServer, tmp_path: Path) -> None:
    await compare(old, old.create_database("load"), "postgres:", 2, tmp_path)
