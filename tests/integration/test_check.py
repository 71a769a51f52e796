"""`rowcast check`: each prerequisite is found missing on a server that lacks it, with what to run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg
import pytest
from psycopg import sql

from rowcast import check
from rowcast.check import Result
from rowcast.config import Config
from rowcast.testing.postgres import PostgresServer

ROUTE = {"table": "trades", "topic": "finance:{symbol}"}


def config(url: str, **sections: object) -> Config:
    return Config.from_sections({"postgres": {"url": url}, "route": [ROUTE], **sections})


def named(results: list[Result], name: str) -> list[Result]:
    return [result for result in results if result.name == name]


def only(results: list[Result], name: str) -> Result:
    [result] = named(results, name)
    return result


@contextlib.contextmanager
def admin(url: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def trades(database: str) -> str:
    """A database in which everything is as it should be, but for the publication."""
    with admin(database) as connection:
        connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, symbol text, price numeric)")
        connection.execute("ALTER TABLE trades REPLICA IDENTITY FULL")
    return database


async def test_all_is_well(trades: str) -> None:
    with admin(trades) as connection:
        connection.execute("CREATE PUBLICATION rowcast FOR TABLE trades")
    results = await check.run(config(trades))
    assert all(result.ok and not result.fix for result in results), check.report(results)
    assert {result.name for result in results} == {
        *("version", "wal_level", "replication", "max_replication_slots", "max_wal_senders"),
        *("max_slot_wal_keep_size", "configuration", "replica identity", "publication", "transactions"),
        *("slot", "log"),
    }
    assert check.report(results).endswith("everything is there")


async def test_a_server_that_lacks_everything() -> None:
    settings = {"wal_level": "replica", "max_replication_slots": "4", "max_wal_senders": "5"}
    settings["max_slot_wal_keep_size"] = "-1"
    with PostgresServer(settings=settings) as server:
        with admin(server.url()) as connection:
            connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, symbol text)")
        results = await check.run(config(server.url()), replicas=3)
        level = only(results, "wal_level")
        assert (level.ok, level.fix) == (
            False,
            "run: ALTER SYSTEM SET wal_level = logical; and restart Postgres",
        )
        slots = only(results, "max_replication_slots")
        assert not slots.ok
        assert "3 replicas need 8" in slots.detail
        assert "ALTER SYSTEM SET max_replication_slots = " in slots.fix
        assert not only(results, "max_wal_senders").ok
        bound = only(results, "max_slot_wal_keep_size")
        assert not bound.ok
        assert "run: ALTER SYSTEM SET max_slot_wal_keep_size = '2048MB'" in bound.fix
        assert "4 of " in check.report(results)
        assert "FAIL  wal_level: wal_level is replica\n" in check.report(results)
        # What is said to be run makes it well.
        with admin(server.url()) as connection:
            for result in (level, slots, only(results, "max_wal_senders"), bound):
                connection.execute(result.fix.removeprefix("run: ").split(";")[0].encode())
            # The command line of the test server goes before ALTER SYSTEM.
        for name in settings:
            del server.settings[name]
        server.restart()
        results = await check.run(config(server.url()), replicas=3)
        assert all(result.ok for result in results), check.report(results)


async def test_a_server_that_is_not_there() -> None:
    results = await check.run(config("postgresql://nobody@127.0.0.1:1/none"))
    assert [(result.name, result.ok) for result in results] == [("connection", False)]
    assert "[postgres] url" in results[0].fix


async def test_a_standby(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> None:
    with PostgresServer() as server:
        server.stop()
        (server.data / "standby.signal").touch()
        server.start()
        results = await check.run(config(server.url()))
        assert not only(results, "primary").ok
        assert "primary" in only(results, "primary").fix


async def test_a_role_without_rights(postgres: PostgresServer, trades: str) -> None:
    with admin(trades) as connection:
        connection.execute("DROP ROLE IF EXISTS reader")
        connection.execute("CREATE ROLE reader LOGIN")
        connection.execute("GRANT SELECT ON trades TO reader")
    url = trades.replace("postgres@", "reader@")
    results = await check.run(config(url))
    replication = only(results, "replication")
    assert not replication.ok
    assert 'ALTER ROLE "reader" REPLICATION' in replication.fix
    publication = only(results, "publication")
    assert not publication.ok
    assert publication.fix == (
        'as an administrator, run: CREATE PUBLICATION "rowcast" FOR TABLE "public"."trades"'
        " WITH (publish_via_partition_root = true)"
    )
    with admin(trades) as connection:
        connection.execute("ALTER ROLE reader REPLICATION")
        connection.execute(publication.fix.removeprefix("as an administrator, run: ").encode())
    results = await check.run(config(url))
    assert all(result.ok for result in results), check.report(results)
    with admin(trades) as connection:
        connection.execute("DROP OWNED BY reader")
        connection.execute("DROP ROLE reader")


async def test_a_publication_that_may_be_made_is_no_failure(trades: str) -> None:
    publication = only(await check.run(config(trades)), "publication")
    assert publication.ok
    assert publication.fix.startswith('run: CREATE PUBLICATION "rowcast"')
    assert str(publication).startswith("note  publication: ")


async def test_a_publication_that_leaves_something_out(postgres: PostgresServer, trades: str) -> None:
    with admin(trades) as connection:
        connection.execute("CREATE TABLE other (id int PRIMARY KEY)")
        connection.execute("CREATE PUBLICATION rowcast FOR TABLE other")
    publication = only(await check.run(config(trades)), "publication")
    assert publication.fix == 'run: ALTER PUBLICATION "rowcast" ADD TABLE "public"."trades"'
    with admin(trades) as connection:
        connection.execute("DROP PUBLICATION rowcast")
        connection.execute("CREATE PUBLICATION rowcast FOR TABLE trades WHERE (price > 0) WITH (publish = 'insert')")
    kinds, filtered, covers = named(await check.run(config(trades)), "publication")
    assert "publish = 'insert, update, delete, truncate'" in kinds.fix
    assert "row filter" in filtered.detail
    assert 'DROP TABLE "public"."trades"' in filtered.fix
    assert covers.ok


async def test_a_table_that_must_not_be_published(database: str) -> None:
    with admin(database) as connection:
        connection.execute("CREATE TABLE trades (symbol text)")
    identity = only(await check.run(config(database)), "replica identity")
    assert not identity.ok
    assert "UPDATE and DELETE fail" in identity.detail
    with admin(database) as connection:
        connection.execute(identity.fix.removeprefix("run: ").encode())
    assert only(await check.run(config(database)), "replica identity").ok


async def test_a_delete_that_tells_too_little_is_a_note(database: str) -> None:
    with admin(database) as connection:
        connection.execute("CREATE TABLE trades (id bigint PRIMARY KEY, symbol text)")
    identity = only(await check.run(config(database)), "replica identity")
    assert identity.ok
    assert "'symbol'" in identity.detail
    assert 'ALTER TABLE "public"."trades" REPLICA IDENTITY FULL' in identity.fix


async def test_a_misspelt_table(trades: str) -> None:
    wrong = {**ROUTE, "table": "trade"}
    configuration = only(await check.run(config(trades, route=[wrong])), "configuration")
    assert not configuration.ok
    assert configuration.detail.startswith("Rowcast(…): route 1: there is no table public.trade;")


async def test_a_long_transaction(trades: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rowcast.check.slots.LONG_TRANSACTION", 0)
    with psycopg.connect(trades, application_name="forgetful") as idle:
        idle.execute("SELECT pg_current_xact_id()")
        transactions = only(await check.run(config(trades)), "transactions")
        assert not transactions.ok, "there is no slot yet, and none could be made"
        assert "forgetful" in transactions.detail
        assert f"pg_terminate_backend({idle.info.backend_pid})" in transactions.fix
        idle.rollback()
    with admin(trades) as connection:
        connection.execute("SELECT pg_create_logical_replication_slot('rowcast', 'pgoutput')")
    with psycopg.connect(trades) as idle:
        idle.execute("SELECT pg_current_xact_id()")
        transactions = only(await check.run(config(trades)), "transactions")
        assert transactions.ok
        assert "keeps the WAL" in transactions.detail
        assert transactions.fix


async def test_slots_that_nobody_uses_or_that_hold_too_much(trades: str) -> None:
    with admin(trades) as connection:
        for name in ("rowcast", "rowcast_old"):
            connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [name])
        connection.execute("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
        small = Config.from_sections({"postgres": {"url": trades, "max_held_wal": "3MB"}, "route": [ROUTE]})
        anchor, abandoned = named(await check.run(small), "slot")
        assert not anchor.ok
        assert "of 3 MB allowed" in anchor.detail
        assert abandoned.ok
        assert abandoned.fix.endswith("SELECT pg_drop_replication_slot('rowcast_old')")
        connection.execute(sql.SQL("SELECT pg_drop_replication_slot({})").format("rowcast_old"))


async def test_the_log(trades: str) -> None:
    one = only(await check.run(config(trades, log={"url": "memory:"}), replicas=1), "log")
    assert (one.ok, one.fix) == (True, "")
    two = only(await check.run(config(trades, log={"url": "memory:"}), replicas=2), "log")
    assert "postgres:" in two.fix
    many = only(await check.run(config(trades), replicas=8), "log")
    assert "redis://" in many.fix


async def test_without_postgres() -> None:
    nothing = Config.from_sections({})
    assert [result.ok for result in await check.run(nothing)] == [True]
    needed = Config.from_sections({"route": [ROUTE]})
    assert [result.ok for result in await check.run(needed)] == [False]
