"""Fixtures that every test may use: a real Postgres per test process, a fresh database per test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from rowcast.testing.databases import drop_database
from rowcast.testing.postgres import PostgresServer

# How long examples take to be made says how busy the machine is, and nothing of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

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
    drop_database(postgres.url(), name)
