"""The short way to Redis: what it does when things go wrong, what it relies on, and what it costs.

Over both event loops, since it takes a transport over.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
from hiredis import pack_command
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as Unreachable
from redis.exceptions import TimeoutError as Unanswered

from rowcast.core.position import ORIGIN, Place
from rowcast.errors import Unavailable
from rowcast.logs.redis_client import connect
from rowcast.logs.redis_cursor import Item
from rowcast.logs.redis_line import Declined, Line
from rowcast.logs.redis_store import READ_ITEMS, STREAM, RedisStore
from rowcast.testing.valkey import ValkeyServer

TIMEOUT = 20.0


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with ValkeyServer() as valkey:
        yield valkey


@pytest.fixture
def valkey(server: ValkeyServer) -> ValkeyServer:
    with contextlib.closing(server.client()) as client:
        client.flushall()
    return server


@pytest.fixture
async def client(valkey: ValkeyServer) -> AsyncIterator[Redis]:
    client = connect(valkey.url, key=STREAM)
    yield client
    await client.aclose()


@pytest.fixture
async def line(client: Redis) -> AsyncIterator[Line]:
    line = Line(client, TIMEOUT)
    await line.connect()
    yield line
    await line.close()


@pytest.fixture
async def store(valkey: ValkeyServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(valkey.url, block=0.1)
    await store.renew("", "a", (1, 0), "")
    yield store
    await store.close()


async def ask(line: Line, *command: str | bytes) -> Any:
    assert line.send(pack_command(command))  # type: ignore[arg-type]
    return await line.answer()


async def blocked(valkey: ValkeyServer, times: int = 1) -> None:
    """Wait until clients wait for an item."""
    with contextlib.closing(valkey.client()) as client:
        while client.info("clients")["blocked_clients"] < times:
            await asyncio.sleep(0)


async def append(store: RedisStore, before: Place, last: Place, data: bytes = b"x") -> str:
    return (await store.append("a", before, last, data, count=1, now=1.0)).code


async def patiently(store: RedisStore, after: Place) -> list[Item]:
    """Read; once more where the connection was cut."""
    try:
        return await store.read(after)
    except Unavailable:
        return await store.read(after)


BLOCKING = ("XREAD", "BLOCK", "0", "STREAMS", STREAM, "0")


async def test_answers_whole_and_in_pieces(line: Line) -> None:
    """Also the guard for what is taken from redis-py: the transport of a connection that has nothing more to say."""
    assert await ask(line, "PING") == b"PONG"
    assert await ask(line, "CLIENT", "GETNAME") == b"rowcast"
    for size in (0, 1 << 10, 1 << 22):
        assert await ask(line, "ECHO", b"x" * size) == b"x" * size
    assert await ask(line, "XREAD", "BLOCK", "1", "STREAMS", STREAM, "0") is None


async def test_an_error_is_an_answer(line: Line) -> None:
    with pytest.raises(Declined, match="NOSCRIPT"):
        await ask(line, "EVALSHA", "0" * 40, "0")
    assert line.connected
    assert await ask(line, "PING") == b"PONG"


async def test_one_command_at_a_time(line: Line) -> None:
    assert line.send(pack_command(("PING",)))
    with pytest.raises(Declined, match="in use"):
        line.send(pack_command(("PING",)))
    assert await line.answer() == b"PONG"


async def test_what_is_not_waited_for_is_never_taken_for_the_next_answer(line: Line, valkey: ValkeyServer) -> None:
    reading = asyncio.create_task(ask(line, *BLOCKING))
    await blocked(valkey)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert not line.connected
    assert not line.send(pack_command(("PING",)))
    with contextlib.closing(valkey.client()) as admin:
        admin.xadd(STREAM, {"a": "b"})
    await line.connect()
    assert await ask(line, "ECHO", "mine") == b"mine"


async def test_cancelled_as_the_answer_comes(line: Line) -> None:
    for turns in range(6):
        asking = asyncio.create_task(ask(line, "ECHO", "other"))
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking
        if not line.connected:
            await line.connect()
        assert await ask(line, "ECHO", "mine") == b"mine"


@pytest.mark.parametrize("under_way", [False, True])
async def test_a_connection_that_is_cut(line: Line, valkey: ValkeyServer, client: Redis, under_way: bool) -> None:
    reading = asyncio.create_task(ask(line, *BLOCKING)) if under_way else None
    if under_way:
        await blocked(valkey)
    with contextlib.closing(valkey.client()) as admin:
        admin.client_kill_filter(_type="normal", skipme=True)
    if reading is not None:
        with pytest.raises(Unreachable, match="Connection closed by server"):
            await reading
    async with asyncio.timeout(TIMEOUT):
        while line.connected:
            await asyncio.sleep(0)
    assert not line.send(pack_command(("PING",)))
    await line.connect()
    assert await ask(line, "PING") == b"PONG"
    assert client.connection_pool.get_connection_count()[1][0] == 1, "given back to the pool, and taken once more"


async def test_a_pool_that_is_disconnected_takes_the_line_with_it(
    line: Line, client: Redis, valkey: ValkeyServer
) -> None:
    """As it is where the log has moved to another server."""
    reading = asyncio.create_task(ask(line, *BLOCKING))
    await blocked(valkey)
    began = time.monotonic()
    await client.connection_pool.disconnect(inuse_connections=True)
    assert time.monotonic() - began < 2, "redis-py was told that the connection has ended"
    with pytest.raises(Unreachable):
        await reading
    assert not line.connected
    await line.connect()
    assert await ask(line, "PING") == b"PONG"


async def test_a_server_that_does_not_answer(client: Redis, valkey: ValkeyServer) -> None:
    line = Line(client, 0.2)
    await line.connect()
    for _ in range(3):
        assert await ask(line, "PING") == b"PONG"
    valkey.pause()
    try:
        with pytest.raises(Unanswered, match=rf"Timeout reading from 127.0.0.1:{valkey.port}"):
            await ask(line, "PING")
        assert not line.connected
    finally:
        valkey.resume()
    await line.connect()
    assert await ask(line, "ECHO", "mine") == b"mine"
    await line.close()


async def test_who_connects_a_line_that_is_being_connected_goes_the_other_way(client: Redis) -> None:
    line = Line(client, TIMEOUT)
    first = asyncio.create_task(line.connect())
    await asyncio.sleep(0)
    with pytest.raises(Declined, match="being connected"):
        await line.connect()
    await first
    assert line.connected
    await line.close()


# The store's use of it


async def test_a_script_that_the_server_forgot_is_loaded(store: RedisStore, valkey: ValkeyServer) -> None:
    assert await append(store, (1, 0), (2, 0)) == "OK"
    with contextlib.closing(valkey.client()) as admin:
        admin.script_flush()
    assert await append(store, (2, 0), (3, 0)) == "OK"
    assert await append(store, (3, 0), (4, 0)) == "OK"
    assert [item.place for item in await store.read(ORIGIN)] == [(2, 0), (3, 0), (4, 0)]


async def test_two_that_append_and_read_at_once_both_do(store: RedisStore) -> None:
    codes = await asyncio.gather(append(store, (1, 0), (2, 0)), append(store, (1, 0), (2, 0)))
    assert sorted(codes) == ["DUP", "OK"]
    first, second = await asyncio.gather(store.read((1, 0)), store.read((1, 0)))
    assert first == second
    assert [item.place for item in first] == [(2, 0)]


async def test_what_is_read_ahead_is_what_comes_next(store: RedisStore, valkey: ValkeyServer) -> None:
    places = [(number, 0) for number in range(2, 2 * READ_ITEMS + 5)]
    before: Place = (1, 0)
    for place in places:
        assert await append(store, before, place) == "OK"
        before = place
    first = await store.read(ORIGIN)
    assert [item.place for item in first] == places[:READ_ITEMS]
    # From another place, e.g. as the tail starts anew: what was read ahead is dropped.
    assert [item.place for item in await store.read((4, 0))] == places[3 : READ_ITEMS + 3]
    again = await store.read(ORIGIN)
    with contextlib.closing(valkey.client()) as admin:
        admin.client_kill_filter(_type="normal", skipme=True)
    following = await patiently(store, again[-1].place)
    assert [item.place for item in again + following] == places[: 2 * READ_ITEMS]
    rest = await patiently(store, following[-1].place)
    assert [item.place for item in rest] == places[2 * READ_ITEMS :]
    assert await store.read(rest[-1].place) == []


async def test_a_store_that_is_closed_ends_its_reads(valkey: ValkeyServer) -> None:
    store = RedisStore(valkey.url, block=10)
    reading = asyncio.create_task(store.read(ORIGIN))
    await blocked(valkey)
    await store.close()
    with pytest.raises(Unavailable, match="Redis can't be reached"):
        await reading


# What it costs


async def calls(work: Callable[[], Awaitable[Any]], times: int) -> float:
    """Calls of our functions, and resumptions of our coroutines, for each of so many times."""
    counts: Counter[str] = Counter()

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and "/rowcast/" in frame.f_code.co_filename:
            counts[frame.f_code.co_qualname] += 1

    sys.setprofile(profile)
    try:
        await work()
    finally:
        sys.setprofile(None)
    print({name: count for name, count in counts.items() if count >= times})
    return sum(count for count in counts.values() if count >= times) / times


# Of asyncio's own loop, what it does in Python would be counted, too.
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_to_append_and_to_read_in_calls(store: RedisStore) -> None:
    """A commit that comes alone is handled with cold caches: there it is the calls that cost."""
    assert await append(store, (1, 0), (2, 0)) == "OK"
    assert len(await store.read((1, 0))) == 1

    async def commits() -> None:
        for number in range(2, 202):
            assert await append(store, (number, 0), (number + 1, 0)) == "OK"
            (item,) = await store.read((number, 0))
            assert item.place == (number + 1, 0)

    # Of `append` and `read` each: the store's, `send`, `answer` and `data_received`, of which two are resumed when the
    # answer has come; and what packs the one command and reads the answers.
    assert await calls(commits, 200) <= 16


async def test_a_connection_that_ends_as_it_is_made_is_no_more_than_that(
    store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connecting = Line.connect

    async def connect_and_lose(line: Line) -> None:
        await connecting(line)
        line.drop()

    monkeypatch.setattr(Line, "connect", connect_and_lose)
    with pytest.raises(Unavailable, match="as soon as it was there"):
        await append(store, (1, 0), (2, 0))
    with pytest.raises(Unavailable, match="as soon as it was there"):
        await store.read(ORIGIN)
    monkeypatch.undo()
    assert await append(store, (1, 0), (2, 0)) == "OK"
    assert [item.place for item in await patiently(store, ORIGIN)] == [(2, 0)]
