"""Every log passes the conformance suite."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import psycopg
import pytest

from rowcast.config import Postgres
from rowcast.core.routes import Router
from rowcast.logs.anchor import Pool
from rowcast.logs.memory import MemoryLog
from rowcast.logs.messages import Messages
from rowcast.logs.postgres import PostgresLog
from rowcast.ports import Log
from rowcast.replica import make_pool
from rowcast.testing.log_suite import Logs, LogSuite, ReadableLogSuite, SharedLogSuite

_numbers = itertools.count(1)


class MemoryLogs:
    """Logs of one process, without a source."""

    def __init__(self) -> None:
        self.made: list[Log] = []

    async def make(self) -> Log:
        log = MemoryLog()
        await log.open()
        self.made.append(log)
        return log

    async def interrupt(self) -> None:
        """There is nothing to interrupt."""

    async def close(self) -> None:
        for log in self.made:
            await log.close()


class PostgresLogs:
    """Logs that read one database's WAL."""

    def __init__(self, url: str, pool: Pool) -> None:
        self.url = url
        self.pool = pool
        self.made: list[Log] = []

    def new(self) -> Log:
        return PostgresLog(
            self.url,
            self.pool,
            Router([]),
            Messages(b"0123456789abcdef"),
            replica=f"{next(_numbers):08x}",
            slot="rowcast",
            publication="rowcast",
        )

    async def make(self) -> Log:
        log = self.new()
        await log.open()
        self.made.append(log)
        return log

    async def interrupt(self) -> None:
        async with await psycopg.AsyncConnection.connect(self.url, autocommit=True) as connection:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'walsender'"
            )

    async def close(self) -> None:
        for log in self.made:
            await log.close()


class FedLogs(PostgresLogs):
    """Logs of one process, fed by the WAL."""

    def new(self) -> Log:
        return MemoryLog(super().new())


class TestMemory(LogSuite, ReadableLogSuite):
    @pytest.fixture
    async def logs(self) -> AsyncIterator[Logs]:
        logs = MemoryLogs()
        yield logs
        await logs.close()


class TestPostgres(SharedLogSuite):
    @pytest.fixture
    async def logs(self, database: str) -> AsyncIterator[Logs]:
        _publication(database)
        async with make_pool(Postgres(url=database)) as pool:
            logs = PostgresLogs(database, pool)
            yield logs
            await logs.close()


class TestMemoryFedByTheWal(LogSuite, ReadableLogSuite):
    @pytest.fixture
    async def logs(self, database: str) -> AsyncIterator[Logs]:
        _publication(database)
        async with make_pool(Postgres(url=database)) as pool:
            logs = FedLogs(database, pool)
            yield logs
            await logs.close()


def _publication(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE PUBLICATION rowcast")
