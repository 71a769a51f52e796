"""The pytest plugin, as an application's tests use it: in a pytest of its own."""

from __future__ import annotations

import pytest

from rowcast.testing.postgres import PostgresServer

pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(600)  # each starts a pytest of its own, with its servers

CONFTEST = """
import psycopg
import pytest

@pytest.fixture
def rowcast_database(rowcast_database):
    with psycopg.connect(rowcast_database) as connection:
        connection.execute("CREATE TABLE trades (id serial PRIMARY KEY, symbol text, price numeric)")
        connection.execute("CREATE TABLE watches (user_id text, symbol text, PRIMARY KEY (user_id, symbol))")
        connection.execute("INSERT INTO watches VALUES ('ann', 'AAPL')")
    return rowcast_database

@pytest.fixture
def rowcast_config():
    return {
        "route": [{"table": "trades", "topic": "finance:{symbol}"}],
        "subscription": [{"table": "watches", "user": "{user_id}", "topics": ["finance:{symbol}"]}],
    }

@pytest.fixture
def execute(rowcast_database):
    with psycopg.connect(rowcast_database, autocommit=True) as connection:
        yield connection.execute
"""

TESTS = """
import pytest
from rowcast import AuthError, Rowcast

def test_a_trade_reaches_who_watches_it(rowcast_server, execute):
    with rowcast_server.stream("ann") as ann, rowcast_server.stream("bob") as bob:
        execute("INSERT INTO trades (symbol, price) VALUES ('AAPL', 1), ('MSFT', 2), ('AAPL', 3)")
        first = ann.expect(action="insert", topic="finance:AAPL", record={"price": "1"})
        assert first.json()["record"]["symbol"] == "AAPL"
        ann.expect(record={"price": "3"})
        ann.expect_nothing()
        bob.expect_nothing()
        execute("INSERT INTO watches VALUES ('bob', 'MSFT')")
        assert bob.expect("rowcast.subscriptions").json()["added"] == ["finance:MSFT"]

def test_what_does_not_come_is_said_with_what_came(rowcast_server, execute):
    with rowcast_server.stream("ann") as ann:
        execute("INSERT INTO trades (symbol, price) VALUES ('AAPL', 1)")
        with pytest.raises(AssertionError, match='nothing should have come[^$]*"price":"1"'):
            ann.expect_nothing()
        with pytest.raises(AssertionError, match="0 s went by[^$]*nothing"):
            ann.expect(record={"price": "2"}, timeout=0)
        rowcast_server.disconnect("ann")
        with pytest.raises(AssertionError, match="the stream ended[^$]*rowcast.bye"):
            ann.expect(record={"price": "2"})
        assert ann.ended

def test_resume_publish_and_topics_of_a_token(rowcast_server):
    with rowcast_server.stream("ann", topics=["news"]) as ann:
        before = rowcast_server.publish("news", {"n": 1}, event="note")
        rowcast_server.publish("news", {"n": 2}, event="note")
        ann.expect("note", data={"n": 1})
        ann.expect("note", where=lambda event: event.json()["data"]["n"] == 2)
        assert ann.position > before
    with rowcast_server.stream("ann", topics=["news"], last_event_id=before) as again:
        again.expect("note", data={"n": 2})
    with pytest.raises(AuthError), rowcast_server.stream(token="none") as nobody:
        pass

def test_an_application_of_ones_own(rowcast_serve, rowcast_database):
    from starlette.applications import Starlette
    from starlette.routing import Mount
    cast = Rowcast(postgres=rowcast_database, auth="0123456789abcdef0123456789abcdef")
    app = Starlette(routes=[Mount("/live", cast.asgi())], lifespan=cast.lifespan)
    server = rowcast_serve(cast, app, path="/live")
    with server.stream("eva") as eva:
        server.publish(user="eva", data=1)
        eva.expect(data=1)

async def test_in_a_test_that_is_async(rowcast_server):
    with rowcast_server.stream("ann") as ann:
        rowcast_server.publish(user="ann", data=1)
        ann.expect(data=1)
"""

IDLE = """
import sys

def test_nothing_of_rowcast_is_loaded():
    heavy = {"rowcast.cast", "rowcast.testing.live", "psycopg", "uvicorn", "starlette", "httpx", "msgspec", "pydantic"}
    assert "rowcast.testing.plugin" in sys.modules
    assert not heavy & sys.modules.keys()
"""


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project whose tests run in a process of their own, with its plugins and ours as they are installed."""
    pytester.makeini("[pytest]\naddopts = -p no:cacheprovider -p no:xdist -p no:hypothesispytest\nanyio_mode = auto\n")
    return pytester


def test_an_applications_tests(project: pytest.Pytester, postgres: PostgresServer) -> None:
    project.makeconftest(CONFTEST)
    project.makepyfile(TESTS)
    result = project.runpytest_subprocess("--rowcast-postgres", postgres.url(), "--durations=5")
    result.assert_outcomes(passed=5)


def test_it_costs_nothing_until_it_is_used(project: pytest.Pytester) -> None:
    project.makepyfile(IDLE)
    project.runpytest_subprocess("-p", "no:anyio").assert_outcomes(passed=1)


def test_a_configuration_file_and_a_postgres_of_its_own(project: pytest.Pytester) -> None:
    project.makefile(
        ".toml",
        rowcast='[postgres]\nurl = "postgresql://app@production/app"\n[auth]\njwks_url = "https://issuer.example/keys"\n'
        '[server]\nretry = "7s"\n',
    )
    project.makeconftest(
        """
        import pathlib
        import pytest

        @pytest.fixture
        def rowcast_config():
            return pathlib.Path("rowcast.toml")
        """
    )
    project.makepyfile(
        """
        import psycopg

        def test_it(rowcast_server, rowcast_database):
            with psycopg.connect(rowcast_database) as connection:
                assert connection.execute("SHOW wal_level").fetchone() == ("logical",)
            assert rowcast_server.cast.config.server.retry == 7
            with rowcast_server.stream("ann") as ann:
                rowcast_server.publish(user="ann", data=1)
                ann.expect(data=1)
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=1)
