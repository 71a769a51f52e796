"""Fixtures that every test may use: a real Postgres per test process, a fresh database per test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import psycopg
import pytest

from rowcast.testing.postgres import PostgresServer

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that async tests run on."""
    return "asyncio"


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """One server for the whole test process. Tests that stop or break a server make their own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture
def database(postgres: PostgresServer) -> Iterator[str]:
    """The connection string of an empty database. Replication slots made in it are dropped afterwards."""
    yield from _made(postgres)


@pytest.fixture(scope="module")
def shared_database(postgres: PostgresServer) -> Iterator[str]:
    """The same, for all tests of a module that want to share one."""
    yield from _made(postgres)


def _made(postgres: PostgresServer) -> Iterator[str]:
    name = f"test_{next(_numbers)}"
    url = postgres.create_database(name)
    yield url
    drop_database(postgres, name)


def drop_database(postgres: PostgresServer, name: str) -> None:
    """Drop a database with its sessions, its slots and every slot of ours that belongs to no database."""
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE active_pid IS NOT NULL AND database = %s",
            [name],
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE NOT active AND (database = %s OR (database IS NULL AND slot_name LIKE 'rowcast%%'))",
            [name],
        )
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
