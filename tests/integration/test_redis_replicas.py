"""Redis's own replicas: what is acknowledged is on one of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import psycopg
import pytest

from rowcast import Rowcast, check
from rowcast.check import Result
from rowcast.config import Config
from rowcast.errors import Unavailable
from rowcast.logs import redis_store
from rowcast.testing.local import LocalStream
from rowcast.testing.valkey import ValkeyServer
from rowcast.testing.valkey_groups import until

SECRET = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def pair() -> Iterator[tuple[ValkeyServer, ValkeyServer]]:
    """A primary and its replica."""
    with ValkeyServer(settings={"repl-diskless-sync-delay": "0"}) as primary, ValkeyServer() as replica:
        with contextlib.closing(replica.client()) as client:
            client.replicaof("127.0.0.1", str(primary.port))
            until(lambda: client.info("replication")["master_link_status"] == "up", "a replica")
        yield primary, replica
        replica.resume()


def confirmed(url: str) -> str:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT confirmed_flush_lsn::text FROM pg_replication_slots").fetchone()
        assert row is not None
        return str(row[0])


async def moves(url: str, before: str) -> None:
    async with asyncio.timeout(30):
        while await asyncio.to_thread(confirmed, url) == before:
            await asyncio.sleep(0.05)


async def test_a_replica_that_hangs_holds_publishes_and_the_slot(
    pair: tuple[ValkeyServer, ValkeyServer], database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "REPLICATION_WAIT", 0.2)
    primary, replica = pair
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
        cast = Rowcast(  # type: ignore[call-arg]
            postgres=database,
            log={"url": primary.url, "redo": "1s"},
            auth=SECRET,
            route=[{"table": "items", "topic": "t"}],
        )
        async with cast.lifespan():
            stream = LocalStream(cast, "ann", ["t"])
            await stream.ready()
            await cast.publish("t", 1)
            await moves(database, confirmed(database))
            replica.pause()
            with pytest.raises(Unavailable, match=r"0 of 1 Redis replicas have it.*unknown"):
                await cast.publish("t", 2)
            # What was under way may still be confirmed; then nothing more is.
            held, admin_writes = "", 0
            async with asyncio.timeout(40):
                while held != (held := confirmed(database)) or admin_writes < 3:
                    admin.execute("INSERT INTO items (text) VALUES ('x')")
                    await stream.settled()
                    admin_writes += 1
                    await asyncio.sleep(1.5)
            # The streams are not held up.
            assert len(stream.records()) == admin_writes
            replica.resume()
            await moves(database, held)
            await cast.publish("t", 3)


async def test_none_is_awaited_where_none_is_wanted_and_as_many_as_are_where_a_number_is(
    pair: tuple[ValkeyServer, ValkeyServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_store, "REPLICATION_WAIT", 0.2)
    primary, replica = pair
    replica.pause()
    cast = Rowcast(log={"url": primary.url, "redis_replicas": 0}, auth=SECRET)
    async with cast.lifespan():
        await cast.publish("t", 1)
    replica.resume()
    cast = Rowcast(log={"url": primary.url, "redis_replicas": 2}, auth=SECRET)
    async with cast.lifespan():
        with pytest.raises(Unavailable, match="1 of 2 Redis replicas"):
            await cast.publish("t", 2)


def named(results: list[Result], name: str) -> Result:
    [result] = [result for result in results if result.name == name]
    return result


async def test_check_looks_at_redis() -> None:
    with ValkeyServer(settings={"maxmemory-policy": "allkeys-lru"}) as server:
        results = await check.run(Config.from_sections({"log": {"url": server.url, "redis_replicas": 1}}))
        assert "Valkey 8" in named(results, "redis").detail
        assert "evicted" in named(results, "maxmemory-policy").detail
        assert named(results, "maxmemory-policy").fix == "run: CONFIG SET maxmemory-policy noeviction"
        assert "nothing was saved" in named(results, "persistence").detail
        assert not named(results, "redis replicas").ok
        assert named(results, "rights").ok
        with contextlib.closing(server.client()) as client:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")
            client.execute_command("ACL SETUSER", "poor", "on", ">p", "+@all", "-xtrim", "~*")
        results = await check.run(Config.from_sections({"log": f"redis://poor:p@127.0.0.1:{server.port}"}))
        rights = named(results, "rights")
        assert not rights.ok
        assert "xtrim" in rights.detail
        for name in ("maxmemory-policy", "persistence", "redis replicas"):
            assert not named(results, name).fix
        client.close()
    [gone] = [r for r in await check.run(Config.from_sections({"log": server.url})) if not r.ok]
    assert "can't be reached" in gone.detail
