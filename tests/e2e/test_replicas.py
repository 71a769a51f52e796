"""Real replicas, as processes of their own, on one Postgres."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "api-key"

CONFIG = """
[postgres]
url = "{url}"

[auth]
secret = "{secret}"

[api]
key = "{key}"

[[route]]
table = "items"
topic = "items:{{kind}}"
deletes = false

[[subscription]]
table = "rowcast_channels"
user = "{{user_id}}"
when = "{{enabled}}"
topics = ["items:{{config.kinds[*]}}"]
"""


def config(url: str, extra: str = "") -> str:
    return CONFIG.format(url=url, secret=SECRET, key=KEY) + extra


def token(user: str, topics: list[str] | None = None) -> str:
    return mint(Config.from_sections({"auth": SECRET}), user, topics=topics)


def bearer(user: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token(user)}"}


@contextlib.contextmanager
def replicas(text: str, count: int) -> Iterator[list[RowcastServer]]:
    """Replicas that start together."""
    servers = [RowcastServer(text, name=f"r{number + 1}") for number in range(count)]
    try:
        for server in servers:
            server.launch()
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture
def items(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL, text text)")
    return database


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


ROUNDS = int(os.environ.get("ROWCAST_TEST_ROUNDS", "500"))


async def test_a_channel_switched_on_another_replica_takes_effect_without_a_reconnect(items: str) -> None:
    """Stream on A, PUT on B, insert: the event arrives on A, and after a switch off the next one does not."""
    with replicas(config(items), 2) as (a, b):
        async with (
            OpenStream(a.url, token("ann")) as stream,
            httpx.AsyncClient(base_url=b.url, headers=bearer("ann")) as client,
            connected(items) as database,
        ):
            assert (await stream.ready())["replica"] == "r1"
            expected = []
            number = 0
            for _ in range(ROUNDS):
                for kinds in (["x"], ["y"]):
                    response = await client.put("/users/me/channels/items", json={"config": {"kinds": kinds}})
                    assert response.status_code in (200, 201)
                    assert response.headers["x-rowcast-replica"] == "r2"
                    await database.execute("INSERT INTO items (kind) VALUES ('x'), ('y')")
                    number += 2
                    expected.append(number - 1 if kinds == ["x"] else number)
                    await stream.until(lambda: len(stream.events()) >= len(expected))
            assert [event["record"]["id"] for event in stream.events()] == expected
            assert len(stream.events("rowcast.subscriptions")) == 2 * ROUNDS
            assert len(stream.events("rowcast.ready")) == 1


async def test_a_stream_moves_from_a_killed_replica_to_another_without_loss(items: str) -> None:
    with replicas(config(items), 2) as (a, b), ThreadPoolExecutor(1) as pool:
        stop = False

        def write() -> None:
            with psycopg.connect(items, autocommit=True) as connection:
                while not stop:
                    connection.execute("INSERT INTO items (kind) VALUES ('x')")

        async with httpx.AsyncClient(base_url=b.url, headers=bearer("ann")) as client:
            await client.put("/users/me/channels/items", json={"config": {"kinds": ["x"]}})
        async with OpenStream(a.url, token("ann")) as first:
            await first.ready()
            writing = asyncio.get_running_loop().run_in_executor(pool, write)
            try:
                await first.until(lambda: len(first.events()) > 50)
                a.kill()
                await first.until(lambda: first.ended)
                a.start()
                for server in (b, a):
                    async with OpenStream(server.url, token("ann"), last_event_id=first.position) as second:
                        await second.until(lambda: len(second.events()) > 50)
                    got = [event["record"]["id"] for event in first.events() + second.events()]
                    assert got == list(range(got[0], got[-1] + 1))
                    assert not second.events("rowcast.reset")
            finally:
                stop = True
                await writing


async def test_pgbench_accounts_arrive_once_in_commit_order_and_none_of_others(
    database: str, postgres: PostgresServer
) -> None:
    text = config(database).replace(
        'table = "items"\ntopic = "items:{kind}"', 'table = "pgbench_accounts"\ntopic = "accounts:{aid}"'
    )
    pgbench = [str(postgres.program("pgbench")), "-h", "127.0.0.1", "-p", str(postgres.port), "-U", "postgres"]
    name = database.rpartition("/")[2]
    subprocess.run([*pgbench, "-i", "-q", "-s", "1", name], check=True, capture_output=True)
    watched = [str(aid) for aid in range(1, 2001)]
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('oracle', 'test_decoding')")
    with replicas(text, 1) as (server,):
        topics = [f"accounts:{aid}" for aid in watched[:300]]
        async with OpenStream(server.url, token("ann", topics)) as stream:
            await stream.ready()
            load = await asyncio.create_subprocess_exec(
                *pgbench, "-n", "-c", "4", "-j", "2", "-t", "1500", name, stderr=subprocess.DEVNULL
            )
            assert await load.wait() == 0
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("UPDATE pgbench_accounts SET abalance = 999999999 WHERE aid = 1")
            await stream.expect(lambda block: _balance(block.data) == 999_999_999)
            got = [(e["record"]["aid"], e["record"]["abalance"]) for e in stream.events()]
    with psycopg.connect(database, autocommit=True) as connection:
        lines = connection.execute(
            "SELECT data FROM pg_logical_slot_get_changes('oracle', NULL, NULL)"
            " WHERE data LIKE 'table public.pgbench_accounts: UPDATE%'"
        ).fetchall()
    fields = [dict(part.split(":", 1) for part in line.split(" ") if "]:" in part) for (line,) in lines]
    changes = [(int(f["aid[integer]"]), int(f["abalance[integer]"])) for f in fields]
    assert len(changes) == 6001
    assert got == [change for change in changes if change[0] <= 300]
    assert len(got) > 1


def _balance(data: Any) -> int:
    return data["record"]["abalance"] if isinstance(data, dict) and "record" in data else 0


async def test_a_frozen_replica_holds_up_neither_checkpoint_nor_shutdown() -> None:
    """SIGSTOP under load with little WAL to keep: Postgres cuts the replica, which resumes or resets later."""
    settings = {"max_slot_wal_keep_size": "2MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    with PostgresServer(settings=settings) as server:
        url = server.url()
        with psycopg.connect(url, autocommit=True) as admin:
            admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL, text text)")
            with replicas(config(url), 1) as (replica,):
                async with OpenStream(replica.url, token("ann", ["items:x"])) as stream:
                    await stream.ready()
                    replica.send(signal.SIGSTOP)
                    for _ in range(6):
                        admin.execute("INSERT INTO items (kind, text) SELECT 'x', repeat('x', 1000)"
                                      " FROM generate_series(1, 10000)")  # fmt: skip
                        admin.execute("SELECT pg_switch_wal()")
                    started = time.monotonic()
                    admin.execute("CHECKPOINT")
                    lost = admin.execute("SELECT count(*) FROM pg_replication_slots WHERE wal_status = 'lost'")
                    assert lost.fetchone() != (0,)
                    admin.close()
                    await asyncio.to_thread(server.stop, signal.SIGINT, timeout=60)
                    print(f"CHECKPOINT and fast shutdown took {time.monotonic() - started:.1f} s")
                    await asyncio.to_thread(server.start)
                    replica.send(signal.SIGCONT)
                    await stream.expect(lambda block: block.event == "rowcast.reset", timeout=60)
                    with psycopg.connect(url, autocommit=True) as again:
                        again.execute("INSERT INTO items (kind, text) VALUES ('x', 'after')")
                    await stream.expect(
                        lambda block: (
                            isinstance(block.data, dict) and (block.data.get("record") or {}).get("text") == "after"
                        ),
                        timeout=60,
                    )


async def test_drains_on_sigterm(items: str) -> None:
    with replicas(config(items), 1) as (server,):
        async with OpenStream(server.url, token("ann")) as stream:
            await stream.ready()
            server.send(signal.SIGTERM)
            bye = await stream.expect(lambda block: block.event == "rowcast.bye")
            assert bye.data == {"reason": "draining"}
            await stream.until(lambda: stream.ended)
        assert server.wait() == 0
