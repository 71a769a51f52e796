"""The log behind Sentinel, in a Cluster, over TLS, and as a user with few rights: on real servers."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis
from redis.crc import key_slot

from rowcast import Rowcast
from rowcast.errors import SetupError, Unavailable
from rowcast.limits import Limiter
from rowcast.logs.redis import RedisLog
from rowcast.logs.redis_store import HEAD, STREAM, RedisStore
from rowcast.testing.certificates import Authority
from rowcast.testing.local import LocalStream
from rowcast.testing.valkey import ValkeyServer
from rowcast.testing.valkey_groups import SentinelGroup, ValkeyCluster, until

SECRET = "0123456789abcdef0123456789abcdef"
REDIS = Path("/usr/bin/redis-server")
PAGE = Path(__file__).parents[2] / "docs/reference/redis-log.md"
SLOT = key_slot(STREAM.encode())
CLUSTER_RIGHTS = ("+cluster|slots", "+asking", "+command", "+readonly")
"""What the documentation adds for a Cluster."""

pytestmark = pytest.mark.timeout(120)


@contextlib.asynccontextmanager
async def running(url: str, postgres: str | None = None, **log: object) -> AsyncIterator[Rowcast]:
    route = [{"table": "items", "topic": "t", "columns": ["id"]}] if postgres else None
    cast = Rowcast(  # type: ignore[call-arg]
        postgres=postgres,
        log={"url": url, "redo": "2s"} | log,
        auth=SECRET,
        api={"key": "k"},
        limits={"requests": "120/minute"},
        route=route,
    )
    async with cast.lifespan():
        yield cast


async def published(cast: Rowcast, number: int) -> bool:
    """Publish until it is answered; False when one of the tries may have been done."""
    sure = True
    async with asyncio.timeout(40):
        while True:
            try:
                await cast.publish("t", number)
            except Unavailable as error:
                sure = sure and "unknown" not in str(error)
                await asyncio.sleep(0.05)
            else:
                return sure


def data(stream: LocalStream) -> list[int]:
    return [event["data"] for event in stream.events() if "data" in event]


def resets(stream: LocalStream) -> int:
    return sum(block.event == "rowcast.reset" for block in stream.blocks)


async def arrived(stream: LocalStream, number: int) -> None:
    await stream.until(lambda: number in data(stream), timeout=40)


def refused(node: ValkeyServer) -> bool:
    """Whether a node was asked for something that it could not do yet."""
    with contextlib.closing(node.client()) as client:
        return "errorstat_TRYAGAIN" in client.info("errorstats")


def test_the_keys_of_the_log_share_a_slot() -> None:
    assert key_slot(HEAD.encode()) == SLOT


async def test_a_slot_that_moves_loses_and_doubles_nothing() -> None:
    with ValkeyCluster(2) as cluster:
        for node in cluster.nodes:
            with contextlib.closing(node.client()) as client:
                client.execute_command("ACL SETUSER", *documented_rights().split(), *CLUSTER_RIGHTS)
        url = cluster.url.replace("//", "//rowcast:password@")
        async with running(url) as one, running(url) as two:
            streams = [LocalStream(one, "ann", ["t"]), LocalStream(two, "bob", ["t"])]
            for stream in streams:
                await stream.ready()
            numbers = iter(range(1000))
            told: list[int] = []

            async def publish(times: int) -> None:
                for _ in range(times):
                    number = next(numbers)
                    assert await published([one, two][number % 2], number)
                    told.append(number)

            await publish(5)
            source = cluster.owner(SLOT)
            target = next(node for node in cluster.nodes if node is not source)
            cluster.begin_move(SLOT, source, target)
            await publish(3)
            # One of two keys is there, the other not: neither node can do it.
            cluster.move_key(HEAD, source, target)
            between = asyncio.create_task(publish(1))
            while not any(map(refused, cluster.nodes)):
                await asyncio.sleep(0.01)
            assert not between.done()
            cluster.move_key(STREAM, source, target)
            await between
            await publish(3)
            cluster.end_move(SLOT, source, target)
            await publish(5)
            for stream in streams:
                await arrived(stream, told[-1])
                assert data(stream) == told
                assert stream.events("rowcast.reset") == []
            limiter = Limiter.of(one.config)
            assert limiter is not None
            verdicts = [await limiter.check(f"10.0.0.{n}", "/publish") for n in range(20)]
            assert [verdict.remaining for verdict in verdicts if verdict] == [119] * 20
            await limiter.close()
            assert one.replica.roster is not None
            async with asyncio.timeout(20):
                while not await one.replica.roster.others():
                    await asyncio.sleep(0.05)


async def test_a_node_of_a_cluster_that_dies_is_replaced() -> None:
    with ValkeyCluster(3, 1) as cluster:
        async with running(cluster.url) as cast:
            stream = LocalStream(cast, "ann", ["t"])
            await stream.ready()
            for number in range(10):
                assert await published(cast, number)
            dead = cluster.owner(SLOT)
            dead.kill()
            for number in range(10, 20):
                await published(cast, number)
            await arrived(stream, 19)
            assert cluster.owner(SLOT) is not dead
            # Redis's replica had each that was answered, before it was answered.
            assert sorted(set(data(stream))) == list(range(20))


async def test_sentinel_makes_another_server_the_primary(database: str) -> None:
    """Changes and acknowledged publishes outlive a primary that is killed; nobody is reset without a reason."""
    with psycopg.connect(database, autocommit=True) as admin, SentinelGroup(1, 1, down_after=0.5) as group:
        admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
        async with running(group.url, database) as one, running(group.url, database) as two:
            streams = [LocalStream(one, "ann", ["t"]), LocalStream(two, "bob", ["t"])]
            for stream in streams:
                await stream.ready()
            told = []
            for number in range(1000, 1010):
                admin.execute("INSERT INTO items (text) VALUES ('x')")
                if await published(one, number):
                    told.append(number)
            group.primary().kill()
            for number in range(1010, 1020):
                admin.execute("INSERT INTO items (text) VALUES ('x')")
                await published(one, number)
                told.append(number)
            for stream in streams:
                async with asyncio.timeout(40):
                    while len({record["id"] for record in stream.records() if "id" in record}) < 20:
                        with contextlib.suppress(Unavailable):
                            await stream.settled()
                seen = [block.data["data"] for block in stream.blocks if block.data and "data" in block.data]
                assert set(seen) >= set(told)
                rows = [block.data["record"]["id"] for block in stream.blocks if block.data and "record" in block.data]
                assert rows == list(range(1, 21))
            limiter = Limiter.of(two.config)
            assert limiter is not None
            async with asyncio.timeout(40):  # it asks the sentinels by itself, and lets all pass until they know
                while (verdict := await limiter.check("10.0.0.1", "/publish")) is None:
                    await asyncio.sleep(0.05)
            assert verdict.remaining == 119
            await limiter.close()


def commanded(port: int, *command: str | int) -> Any:
    with contextlib.closing(redis.Redis(port=port, socket_timeout=10)) as client:
        return client.execute_command(*command)


def clients(server: ValkeyServer) -> int:
    """How many of our connections lead there."""
    with contextlib.closing(server.client()) as client:
        return sum(one["name"] == "rowcast" for one in client.client_list())


async def test_no_connection_stays_with_a_primary_that_is_cut_off() -> None:
    """Also where newer ones lead to the new primary already: some are kept for as long as they work."""
    with SentinelGroup(1, 1, down_after=60) as group:
        old, new = group.servers
        sentinel = group.ports[0]
        store = RedisStore(group.url, block=0.1)
        await store.renew("", "a", (1, 0), "")
        assert (await store.append("a", (1, 0), (2, 0), b"x", count=1, now=1.0)).code == "OK"
        assert len(await store.read((1, 0))) == 1
        until(lambda: commanded(new.port, "XLEN", STREAM) == 1, "a replica that has it")
        # What the sentinels decide where they don't reach the primary, which we still do.
        commanded(new.port, "REPLICAOF", "NO", "ONE")
        commanded(sentinel, "SENTINEL", "REMOVE", group.SERVICE)
        commanded(sentinel, "SENTINEL", "MONITOR", group.SERVICE, "127.0.0.1", new.port, 1)
        before = clients(new)
        await asyncio.gather(*(store.head() for _ in range(3)))
        assert clients(new) > before
        await store.ping()
        assert clients(old) == 0
        assert (await store.append("a", (2, 0), (3, 0), b"y", count=1, now=1.0)).code == "OK"
        assert [item.place for item in await store.read((2, 0))] == [(3, 0)]
        assert commanded(new.port, "XLEN", STREAM) == 2
        assert commanded(old.port, "XLEN", STREAM) == 1
        await store.close()


# TLS


@pytest.fixture
def secured(tmp_path: Path) -> Iterator[tuple[Authority, int]]:
    """A Redis that speaks TLS on another port, and wants certificates of its clients."""
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server", localhost=False)
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    settings = {
        "tls-port": str(port),
        "tls-cert-file": str(certificate),
        "tls-key-file": str(key),
        "tls-ca-cert-file": str(authority.path),
        "tls-auth-clients": "yes",
    }
    with ValkeyServer(program=REDIS, settings=settings):
        yield authority, port


async def test_tls_with_certificates_on_both_sides(secured: tuple[Authority, int], tmp_path: Path) -> None:
    authority, port = secured
    certificate, key = authority.issue("client")
    url = f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.path}&ssl_certfile={certificate}&ssl_keyfile={key}"
    async with running(url) as cast:
        stream = LocalStream(cast, "ann", ["t"])
        await stream.ready()
        assert await published(cast, 1)
        await arrived(stream, 1)
        limiter = Limiter.of(cast.config)
        assert limiter is not None
        verdict = await limiter.check("10.0.0.1", "/publish")
        assert verdict is not None
        assert verdict.remaining == 119
        await limiter.close()
    other = tmp_path / "other"
    other.mkdir()
    stranger = Authority(other)
    for wrong in (
        f"rediss://127.0.0.1:{port}?ssl_ca_certs={authority.path}",  # none of its own
        f"rediss://127.0.0.1:{port}?ssl_ca_certs={stranger.path}&ssl_certfile={certificate}&ssl_keyfile={key}",
        f"rediss://localhost:{port}?ssl_ca_certs={authority.path}&ssl_certfile={certificate}&ssl_keyfile={key}",
        f"redis://127.0.0.1:{port}",
    ):
        with pytest.raises(SetupError, match="Redis can't be reached"):
            async with running(wrong):
                pass


# Rights


def documented_rights() -> str:
    """The ACL line of the documentation, without `ACL SETUSER`."""
    found = re.search(r"ACL SETUSER (rowcast on [^`]*)```", PAGE.read_text())
    assert found is not None
    return " ".join(found[1].split())


@pytest.mark.parametrize("program", [None, REDIS], ids=["valkey", "redis"])
async def test_the_documented_rights_are_enough_and_none_is_too_much(program: Path | None, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as admin, ValkeyServer(program=program) as server:
        admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, text text)")
        line = documented_rights()
        with contextlib.closing(server.client()) as client:
            client.execute_command("ACL SETUSER", *line.split())
        url = f"redis://rowcast:password@127.0.0.1:{server.port}"
        async with running(url, database, max_entries=1) as cast:
            stream = LocalStream(cast, "ann", ["t"])
            await stream.ready()
            admin.execute("INSERT INTO items (text) VALUES ('x')")
            assert await published(cast, 1)
            await arrived(stream, 1)
            limiter = Limiter.of(cast.config)
            assert limiter is not None
            assert await limiter.check("10.0.0.1", "/publish") is not None
            await limiter.close()
            assert cast.replica.roster is not None
            await cast.replica.roster.others()
            # Long enough for a trim and a look at the server, which come by the clock.
            assert isinstance(cast.log, RedisLog)
            trimmed = cast.log._trimmed
            async with asyncio.timeout(20):
                while cast.log._trimmed == trimmed:
                    await asyncio.sleep(0.05)
        with contextlib.closing(server.client()) as client:
            denied = client.execute_command("ACL LOG")
            assert [entry for entry in denied if b"rowcast" in str(entry).encode()] == []
            for command in (["GET", "secrets"], ["KEYS", "*"], ["CONFIG", "GET", "*"], ["FLUSHALL"], ["DEL", "x"]):
                allowed = client.execute_command("ACL DRYRUN", "rowcast", *command)
                assert allowed != b"OK", command


async def test_missing_rights_and_wrong_passwords_are_named() -> None:
    with ValkeyServer() as server:
        with contextlib.closing(server.client()) as client:
            client.execute_command("ACL SETUSER", "poor", "on", ">p", "+info", "~*")
        poor = f"redis://poor:p@127.0.0.1:{server.port}"
        wrong = f"redis://poor:q@127.0.0.1:{server.port}"
        store = RedisStore(poor)
        with pytest.raises(Unavailable, match=r"no permissions.*redis-log\.md"):
            await store.head()
        await store.close()
        store = RedisStore(wrong)
        with pytest.raises(Unavailable, match="refuses the user or password"):
            await store.ping()
        await store.close()


async def test_what_the_url_leads_to_is_named() -> None:
    with ValkeyCluster(2) as cluster:
        other = next(node for node in cluster.nodes if node is not cluster.owner(SLOT))
        store = RedisStore(other.url)
        with pytest.raises(Unavailable, match=r"write redis\+cluster://"):
            await store.head()
        await store.close()
    with ValkeyServer() as server:
        store = RedisStore(f"redis+cluster://127.0.0.1:{server.port}")
        with pytest.raises(Unavailable, match="it is no Cluster: write redis://"):
            await store.ping()
        await store.close()
        store = RedisStore(f"redis+sentinel://127.0.0.1:{server.port}/rowcast")
        with pytest.raises(Unavailable, match=r"no sentinel answers there"):
            await store.ping()
        await store.close()
