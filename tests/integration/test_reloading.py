"""Reloading the configuration while streams are open: what holds from where on, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import psycopg
import pytest

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.errors import AuthError, ConfigError, SetupError
from rowcast.testing.local import LocalStream
from rowcast.testing.valkey import ValkeyServer

OLD, NEW = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"


def sections(database: str, **more: Any) -> dict[str, Any]:
    return {
        "postgres": database,
        "auth": OLD,
        "api": "k",
        "route": [{"table": "items", "topic": "items:{kind}"}],
        "subscription": [{"table": "watches", "user": "{owner}", "topics": ["items:{kind}"]}],
    } | more


def config(database: str, **more: Any) -> Config:
    return Config.from_sections(sections(database, **more))


@pytest.fixture
def tables(database: str) -> str:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text)")
        connection.execute("CREATE TABLE notes (id bigserial PRIMARY KEY, kind text)")
        connection.execute("CREATE TABLE watches (owner text, kind text, PRIMARY KEY (owner, kind))")
        connection.execute("CREATE TABLE likes (owner text, kind text, PRIMARY KEY (owner, kind))")
        connection.execute("INSERT INTO watches VALUES ('ann', 'a'), ('ann', 'b')")
        connection.execute("INSERT INTO likes VALUES ('ann', 'b'), ('ann', 'c')")
    return database


@contextlib.asynccontextmanager
async def running(database: str, **more: Any) -> AsyncIterator[Rowcast]:
    cast = Rowcast(config(database, **more))
    async with cast.lifespan():
        yield cast


def run(database: str, *statements: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def kinds(stream: LocalStream) -> list[str]:
    return [record["kind"] for record in stream.records()]


async def test_a_route_to_another_table_on_an_open_stream(tables: str) -> None:
    async with running(tables) as cast:
        stream = LocalStream(cast, "ann", ["notes"])
        await stream.ready()
        await asyncio.to_thread(run, tables, "INSERT INTO notes (kind) VALUES ('not routed')")
        routes = [*sections(tables)["route"], {"table": "notes", "topic": "notes"}]
        await cast.reload(config(tables, route=routes))
        await asyncio.to_thread(
            run, tables, "INSERT INTO notes (kind) VALUES ('routed')", "INSERT INTO items (kind) VALUES ('a')"
        )
        await stream.until(lambda: len(stream.records()) == 2)
        assert kinds(stream) == ["routed", "a"]
        # And back: the table is still published, and nobody wants it.
        await cast.reload(config(tables))
        await asyncio.to_thread(
            run, tables, "INSERT INTO notes (kind) VALUES ('again')", "INSERT INTO items (kind) VALUES ('b')"
        )
        await stream.until(lambda: kinds(stream)[-1] == "b")
        assert kinds(stream) == ["routed", "a", "b"]
        assert cast.reloads == {"applied": 2}


async def test_a_table_that_was_published_all_along_is_read_from_the_reload_on(tables: str) -> None:
    run(tables, "CREATE PUBLICATION rowcast FOR ALL TABLES WITH (publish_via_partition_root = true)")
    async with running(tables) as cast:
        stream = LocalStream(cast, "ann", ["notes"])
        await stream.ready()
        # The reader has heard of the table, and wanted none of it.
        await asyncio.to_thread(run, tables, "INSERT INTO notes (kind) VALUES ('not routed')")
        await stream.settled()
        await cast.reload(config(tables, route=[{"table": "notes", "topic": "notes"}]))
        await asyncio.to_thread(run, tables, "INSERT INTO notes (kind) VALUES ('routed')")
        await stream.until(lambda: bool(stream.records()))
        assert kinds(stream) == ["routed"]


async def test_rules_hold_from_one_place_on(tables: str) -> None:
    async with running(tables) as cast:
        stream, other = LocalStream(cast, "ann"), LocalStream(cast, "ben")
        assert set((await stream.ready())["topics"]) == {"items:a", "items:b"}
        await other.ready()
        await asyncio.to_thread(run, tables, *(f"INSERT INTO items (kind) VALUES ('{kind}')" for kind in "abc"))
        await stream.settled()
        rules = [{"table": "likes", "user": "{owner}", "topics": ["items:{kind}"]}]
        await cast.reload(config(tables, subscription=rules))
        await asyncio.to_thread(run, tables, *(f"INSERT INTO items (kind) VALUES ('{kind}')" for kind in "abc"))
        await stream.until(lambda: len(stream.records()) >= 4)
        await stream.settled()
        assert kinds(stream) == ["a", "b", "b", "c"]
        assert not other.records()
        (change,) = stream.events("rowcast.subscriptions")
        assert (change["added"], change["removed"]) == (["items:c"], ["items:a"])
        # From then on the new rule's rows count, and the old one's no more.
        await asyncio.to_thread(
            run,
            tables,
            "INSERT INTO likes VALUES ('ben', 'a')",
            "DELETE FROM likes WHERE owner = 'ann' AND kind = 'b'",
            "INSERT INTO watches VALUES ('ben', 'b'), ('ann', 'd')",
            *(f"INSERT INTO items (kind) VALUES ('{kind}')" for kind in "abcd"),
        )
        await stream.until(lambda: len(stream.records()) >= 5)
        await other.until(lambda: bool(other.records()))
        await stream.settled()
        await other.settled()
        assert kinds(stream)[4:] == ["c"]
        assert kinds(other) == ["a"]


async def test_rules_may_go_and_come(tables: str) -> None:
    async with running(tables) as cast:
        stream = LocalStream(cast, "ann")
        await stream.ready()
        await cast.reload(config(tables, subscription=[]))
        await stream.until(lambda: len(stream.events("rowcast.subscriptions")) == 1)
        assert stream.events("rowcast.subscriptions")[0]["topics"] == []
        rules = [
            {
                "sql": "SELECT 'items:' || kind FROM likes WHERE owner = %(user)s",
                "depends_on": {"likes": "{owner}"},
            }
        ]
        await cast.reload(config(tables, subscription=rules))
        await stream.until(lambda: len(stream.events("rowcast.subscriptions")) == 2)
        assert set(stream.events("rowcast.subscriptions")[1]["topics"]) == {"items:b", "items:c"}


async def test_users_are_read_again_when_what_was_open_has_ended(tables: str) -> None:
    async with running(tables) as cast:
        stream = LocalStream(cast, "ann")
        await stream.ready()
        with psycopg.connect(tables) as opened:
            opened.execute("SELECT pg_current_xact_id()")
            rules = [{"table": "likes", "user": "{owner}", "topics": ["items:{kind}"]}]
            await cast.reload(config(tables, subscription=rules))
            await stream.until(lambda: bool(stream.events("rowcast.subscriptions")))
            read = cast.hub.catchups["query"]
            opened.commit()
        async with asyncio.timeout(60):
            while cast.hub.catchups["query"] == read:
                await asyncio.sleep(0.02)
        await asyncio.to_thread(run, tables, "INSERT INTO items (kind) VALUES ('c')")
        await stream.until(lambda: kinds(stream) == ["c"])
        assert len(stream.events("rowcast.subscriptions")) == 1


async def test_what_is_wrong_is_refused_whole(tables: str) -> None:
    async with running(tables) as cast:
        stream = LocalStream(cast, "ann")
        await stream.ready()
        before = cast.config
        for wrong, words in [
            ({"route": [{"table": "items", "topic": "items:{knd}"}]}, "'knd'"),
            ({"route": [{"table": "itms", "topic": "x"}]}, "itms"),
            ({"subscription": [{"table": "likes", "user": "{ownr}", "topics": ["x"]}]}, "'ownr'"),
            ({"postgres": {"url": tables, "slot": "another"}}, r"\[postgres\] slot can't be reloaded"),
            ({"postgres": "postgresql://x@127.0.0.1:1/x"}, r"\[postgres\] url can't be reloaded"),
            ({"server": {"port": 1}}, r"\[server\] port can't be reloaded"),
            ({"log": "memory:"}, r"\[log\] url can't be reloaded"),
            ({"route": [{"table": "items", "topic": "items:{kind}", "snapshot": True}]}, "snapshot = true"),
        ]:
            with pytest.raises((ConfigError, SetupError), match=words):
                # Whatever else is right, nothing of it is taken over.
                await cast.reload(config(tables, **({"auth": NEW, "limits": {"requests": "1/hour"}} | wrong)))
            assert cast.config is before
        await cast.authenticator.verify(mint(before, "ann"))
        with pytest.raises(AuthError):
            await cast.authenticator.verify(mint(config(tables, auth=NEW), "ann"))
        await asyncio.to_thread(run, tables, "INSERT INTO items (kind) VALUES ('a')")
        await stream.until(lambda: kinds(stream) == ["a"])
        assert cast.reloads == {"refused": 8}
        assert b'rowcast_config_reloads_total{result="refused"} 8.0' in cast.metrics.expose()
        assert b'rowcast_config_reloads_total{result="applied"} 0.0' in cast.metrics.expose()


async def test_keys_and_limits(tables: str) -> None:
    cast = Rowcast(config(tables))
    app = cast.asgi()
    transport = httpx.ASGITransport(app)
    async with cast.lifespan(), httpx.AsyncClient(transport=transport, base_url="http://x") as client:
        stream = LocalStream(cast, "ann")
        await stream.ready()
        gone = mint(config(tables, auth=NEW), "eve", ttl=3600)
        await cast.disconnect("eve")
        changed = {"auth": NEW, "api": "k2", "limits": {"requests": "3/hour"}, "server": {"max_streams_per_user": 1}}
        await cast.reload(config(tables, **changed))

        async def count(key: str) -> int:
            return (await client.get("/events/count", headers={"authorization": f"Bearer {key}"})).status_code

        assert [await count("k2"), await count("k"), await count("k2"), await count("k2")] == [200, 401, 200, 429]
        await cast.authenticator.verify(mint(cast.config, "ann"))
        with pytest.raises(AuthError):
            await cast.authenticator.verify(mint(config(tables), "ann"))
        # Who was disconnected stays so.
        await cast.hub.passed(await cast.log.head())
        refused = await client.get("/events", headers={"authorization": f"Bearer {gone}"})
        assert (refused.status_code, "disconnected" in refused.json()["error"]) == (401, True)
        # What another replica signs with the new key is taken, and what is published here with the old one is, too.
        position = await cast.publish("user:ann", 1)
        await asyncio.to_thread(run, tables, cast.publish_sql("user:ann", 2))
        await stream.until(lambda: len(stream.events()) == 2)
        assert [event["data"] for event in stream.events()] == [1, 2]
        assert str(position) in {block.id for block in stream.blocks}
        second = LocalStream(cast, "ann")
        await stream.until(lambda: bool(stream.events("rowcast.bye")))
        await second.ready()
        # Without limits again.
        await cast.reload(config(tables, **(changed | {"limits": {}})))
        assert await count("k2") == 200


async def test_replicas_of_one_log_that_are_reloaded_one_after_the_other(tables: str) -> None:
    old = [{"table": "watches", "user": "{owner}", "topics": ["items:{kind}"]}]
    new = [*old, {"table": "likes", "user": "{owner}", "topics": ["items:{kind}"]}]

    def insert(*rows: str) -> None:
        run(tables, *(f"INSERT INTO {row}" for row in rows))

    with ValkeyServer() as valkey:
        more = {"log": {"url": valkey.url, "redo": "2s"}}
        async with running(tables, subscription=old, **more) as one, running(tables, subscription=old, **more) as two:
            async with asyncio.timeout(60):
                while not (one.replica.reads_wal or two.replica.reads_wal):
                    await asyncio.sleep(0.02)
            leader, follower = (one, two) if one.replica.reads_wal else (two, one)
            stream, other = LocalStream(follower, "ann"), LocalStream(leader, "ann")
            for each in (stream, other):
                assert set((await each.ready())["topics"]) == {"items:a", "items:b"}
            await follower.reload(config(tables, subscription=new, **more))
            await stream.until(lambda: bool(stream.events("rowcast.subscriptions")))
            # The leader tells nothing of the new rule's table yet.
            await asyncio.to_thread(insert, "likes VALUES ('ann', 'd')", "watches VALUES ('ann', 'e')")
            await stream.until(lambda: "items:e" in stream.events("rowcast.subscriptions")[-1]["topics"])
            await other.until(lambda: bool(other.events("rowcast.subscriptions")))
            await leader.reload(config(tables, subscription=new, **more))
            await other.until(lambda: "items:d" in other.events("rowcast.subscriptions")[-1]["topics"])
            # What it tells first has the others read what they could not know.
            await asyncio.to_thread(insert, "likes VALUES ('ann', 'f')")
            everything = {f"items:{kind}" for kind in "abcdef"}
            for each in (stream, other):
                await each.until(lambda: set(each.events("rowcast.subscriptions")[-1]["topics"]) == everything)  # noqa: B023  # awaited at once
            await asyncio.to_thread(insert, *(f"items (kind) VALUES ('{kind}')" for kind in "abcdef"))
            for each in (stream, other):
                await each.until(lambda: len(each.records()) == 6)  # noqa: B023  # awaited at once
                assert kinds(each) == list("abcdef")
