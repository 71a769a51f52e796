"""The log on Redis and Valkey passes the conformance suite, with a database and without."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest

from rowcast.config import Postgres
from rowcast.core.routes import Router
from rowcast.logs.anchor import Pool
from rowcast.logs.leader import WalLeader
from rowcast.logs.redis import RedisLog
from rowcast.logs.redis_store import RedisStore
from rowcast.ports import Log
from rowcast.replica import make_pool
from rowcast.testing.log_suite import Logs, ReadableLogSuite, SharedLogSuite
from rowcast.testing.valkey import ValkeyServer

REDIS = Path("/usr/bin/redis-server")

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def redis() -> Iterator[ValkeyServer]:
    """A Redis, where the machine has one."""
    if not REDIS.exists():
        pytest.skip("no redis-server on this machine")
    with ValkeyServer(program=REDIS) as server:
        yield server


class RedisLogs:
    """Replicas' views of one log; `pool` None: there is no database."""

    def __init__(self, server: ValkeyServer, url: str = "", pool: Pool | None = None) -> None:
        self.server = server
        self.url = url
        self.pool = pool
        self.made: list[Log] = []
        with server.client() as client:
            client.flushall()

    async def make(self) -> Log:
        store = RedisStore(self.server.url, block=0.1)
        leader: WalLeader | None = None
        if self.pool is not None:
            leader = WalLeader(
                self.url,
                self.pool,
                store,
                Router([]),
                b"0123456789abcdef",
                replica=f"{next(_numbers):08x}",
                slot="rowcast",
                publication="rowcast",
                max_event=8 << 20,
            )
        log = RedisLog(store, leader, max_event=8 << 20)
        await log.open()
        self.made.append(log)
        return log

    async def interrupt(self) -> None:
        with self.server.client() as client:
            client.client_kill_filter(_type="normal", skipme=True)
        if self.pool is not None:
            async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND backend_type = 'walsender'"
                )

    async def close(self) -> None:
        for log in self.made:
            await log.close()


class TestRedis(SharedLogSuite, ReadableLogSuite):
    @pytest.fixture
    async def logs(self, redis: ValkeyServer) -> AsyncIterator[Logs]:
        logs = RedisLogs(redis)
        yield logs
        await logs.close()


class TestValkey(SharedLogSuite, ReadableLogSuite):
    @pytest.fixture
    async def logs(self, valkey: ValkeyServer) -> AsyncIterator[Logs]:
        logs = RedisLogs(valkey)
        yield logs
        await logs.close()


class TestValkeyFedByTheWal(SharedLogSuite, ReadableLogSuite):
    @pytest.fixture
    async def logs(self, valkey: ValkeyServer, database: str) -> AsyncIterator[Logs]:
        with psycopg.connect(database, autocommit=True) as connection:
            connection.execute("CREATE PUBLICATION rowcast")
        async with make_pool(Postgres(url=database)) as pool:
            logs = RedisLogs(valkey, database, pool)
            yield logs
            await logs.close()
