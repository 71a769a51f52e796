"""The publication and the catalogue on a real server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest

from rowcast.core.catalog import Catalog, TableInfo
from rowcast.errors import SetupError
from rowcast.sources.catalog import read_catalog
from rowcast.sources.publication import ensure_publication, missing_sql

SCHEMA = """
CREATE SCHEMA app;
CREATE TABLE one (id int PRIMARY KEY);
CREATE TABLE app."Two" (id int PRIMARY KEY);
CREATE TABLE keyless (id int);
"""
TABLES = ["public.one", "app.Two"]


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


@contextlib.contextmanager
def admin(url: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def schema(database: str) -> str:
    with admin(database) as connection:
        connection.execute(SCHEMA)
    return database


async def ensure(url: str, tables: list[str] = TABLES) -> None:
    async with connected(url) as connection:
        await ensure_publication(connection, "rowcast", await read_catalog(connection), tables)


def published(url: str) -> set[str]:
    with admin(url) as connection:
        query = "SELECT schemaname || '.' || tablename FROM pg_publication_tables WHERE pubname = 'rowcast'"
        return {name for (name,) in connection.execute(query)}


async def catalog(url: str, *tables: str) -> Catalog:
    async with connected(url) as connection:
        return await read_catalog(connection, tables or None)


async def table(url: str, name: str) -> TableInfo:
    return (await catalog(url, name))[name]


# The publication


async def test_it_is_made_and_completed(schema: str) -> None:
    await ensure(schema, ["public.one"])
    assert published(schema) == {"public.one"}
    await ensure(schema)
    assert published(schema) == {"public.one", "app.Two"}
    await ensure(schema)
    with admin(schema) as connection:
        assert connection.execute("SELECT pubviaroot FROM pg_publication").fetchall() == [(True,)]
        if connection.info.server_version >= 150_000:
            assert connection.execute("SELECT count(*) FROM pg_publication_tables WHERE rowfilter IS NOT NULL"
                                      ).fetchone() == (0,)  # fmt: skip


async def test_without_tables_it_is_made_for_messages(database: str) -> None:
    await ensure(database, [])
    with admin(database) as connection:
        assert connection.execute("SELECT pubname FROM pg_publication").fetchall() == [("rowcast",)]


async def test_replicas_that_start_together_make_one(schema: str) -> None:
    await asyncio.gather(*(ensure(schema) for _ in range(8)))
    assert published(schema) == {"public.one", "app.Two"}
    with admin(schema) as connection:
        connection.execute("CREATE TABLE three (id int PRIMARY KEY)")
    await asyncio.gather(*(ensure(schema, [*TABLES, "public.three"]) for _ in range(8)))
    assert published(schema) == {"public.one", "app.Two", "public.three"}


async def test_a_publication_for_all_tables_covers_everything(schema: str) -> None:
    with admin(schema) as connection:
        connection.execute("CREATE PUBLICATION rowcast FOR ALL TABLES")
    await ensure(schema)


async def test_who_may_not_make_it_gets_the_exact_statement(schema: str) -> None:
    with admin(schema) as connection:
        connection.execute("DROP ROLE IF EXISTS poor")
        connection.execute("CREATE ROLE poor LOGIN")
        try:
            url = schema.replace("postgres@", "poor@")
            for tables in (["public.one"], TABLES):
                with pytest.raises(SetupError, match="as an administrator, run: ") as caught:
                    await ensure(url, tables)
                connection.execute(str(caught.value).split("as an administrator, run: ")[1].encode())
                await ensure(url, tables)
            assert published(schema) == {"public.one", "app.Two"}
        finally:
            connection.execute("DROP ROLE poor")


async def test_a_table_without_identity_is_never_published(schema: str) -> None:
    """It would make the application's own UPDATE and DELETE fail."""
    with pytest.raises(SetupError, match="UPDATE and DELETE fail") as caught:
        await ensure(schema, ["public.keyless", "public.one"])
    assert published(schema) == set()
    with admin(schema) as connection:
        connection.execute(str(caught.value).split("run: ")[1].encode())
        await ensure(schema, ["public.keyless", "public.one"])
        connection.execute("INSERT INTO keyless VALUES (1)")
        connection.execute("UPDATE keyless SET id = 2")


async def test_partitions_are_published_as_their_root(schema: str) -> None:
    with admin(schema) as connection:
        connection.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE PUBLICATION rowcast FOR TABLE parts")
    async with connected(schema) as connection:
        wanted = {"public.parts": await table(schema, "public.parts")}
        assert await missing_sql(connection, "rowcast", wanted) == [
            'ALTER PUBLICATION "rowcast" SET (publish_via_partition_root = true)'
        ]
    await ensure(schema, ["public.parts"])
    assert published(schema) == {"public.parts"}


# The catalogue


async def test_columns_have_their_base_types(database: str) -> None:
    with admin(database) as connection:
        connection.execute("CREATE DOMAIN price AS numeric(10, 2)")
        connection.execute("CREATE DOMAIN good_price AS price CHECK (value > 0)")
        connection.execute("CREATE TYPE mood AS ENUM ('sad', 'ok')")
        connection.execute(
            "CREATE TABLE things (id bigint, p good_price, m mood, ms mood[], gone int, t timestamptz[])"
        )
        connection.execute("ALTER TABLE things DROP COLUMN gone")
    columns = (await table(database, "public.things")).columns
    assert list(columns) == ["id", "p", "m", "ms", "t"]
    assert {name: column.type_name for name, column in columns.items()} == {
        "id": "int8",
        "p": "numeric",
        "m": "public.mood",
        "ms": "public._mood",
        "t": "_timestamptz",
    }
    assert columns["p"].type_oid == 1700


async def test_what_a_delete_tells(database: str) -> None:
    with admin(database) as connection:
        connection.execute("CREATE TABLE keyed (b int, a int, c int, PRIMARY KEY (a, b))")
        connection.execute("CREATE TABLE whole (a int, b int)")
        connection.execute("ALTER TABLE whole REPLICA IDENTITY FULL")
        connection.execute("CREATE TABLE chosen (id int PRIMARY KEY, code int NOT NULL, x int)")
        connection.execute("CREATE UNIQUE INDEX chosen_code ON chosen (code) INCLUDE (x)")
        connection.execute("ALTER TABLE chosen REPLICA IDENTITY USING INDEX chosen_code")
        connection.execute("CREATE TABLE nothing (id int PRIMARY KEY)")
        connection.execute("ALTER TABLE nothing REPLICA IDENTITY NOTHING")
        connection.execute("CREATE VIEW seen AS SELECT 1 AS a")
    tables = await catalog(database)
    assert {name: (info.identity, info.primary_key, info.identity_columns) for name, info in tables.items()} == {
        "public.keyed": ("d", ("a", "b"), ("a", "b")),
        "public.whole": ("f", (), ("a", "b")),
        "public.chosen": ("i", ("id",), ("code",)),
        "public.nothing": ("n", ("id",), ()),
        "public.seen": ("n", (), ()),
    }
    assert tables["public.seen"].kind == "v"


async def test_partitions_decide_what_their_root_tells(database: str) -> None:
    with admin(database) as connection:
        connection.execute("CREATE TABLE parts (id int, x int) PARTITION BY RANGE (id)")
        for number in range(2):
            connection.execute(
                f"CREATE TABLE parts_{number} PARTITION OF parts FOR VALUES FROM ({number}0) TO ({number}9)"
            )
        assert (await table(database, "public.parts")).identity_columns == ()
        connection.execute("ALTER TABLE parts ADD PRIMARY KEY (id)")
        found = await catalog(database, "public.parts")
        assert found["public.parts"].identity_columns == ("id",)
        assert found["public.parts_0"].partition_of == "public.parts"
        assert set(found) == {"public.parts", "public.parts_0", "public.parts_1"}
        connection.execute("ALTER TABLE parts_1 REPLICA IDENTITY NOTHING")
        assert (await table(database, "public.parts")).identity_columns == ()
        connection.execute("ALTER TABLE parts_1 REPLICA IDENTITY FULL")
        assert (await table(database, "public.parts")).identity_columns == ("id",)
        connection.execute("ALTER TABLE parts_0 REPLICA IDENTITY FULL")
        root = await table(database, "public.parts")
        assert (root.identity, root.identity_columns) == ("f", ("id", "x"))
