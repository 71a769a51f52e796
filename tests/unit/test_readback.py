"""Streams whose missed entries the ring no longer holds are fed from the log."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

import rowcast.readback
from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.grants import Grant
from rowcast.core.position import Place, Position
from rowcast.core.stream import Stream, StreamState
from rowcast.errors import Expired, Unavailable
from rowcast.hub import Hub
from rowcast.ports import Bounds


class Body:
    def __init__(self, text: str) -> None:
        self.text = text
        self.size = 1000

    def encode(self, limit: int) -> bytes:
        return self.text.encode()


class ListLog:
    """A log whose entries are a list: what `ports.ReadableLog` needs."""

    def __init__(self) -> None:
        self.epoch = "e"
        self.entries: list[Entry] = []
        self.first: Place = (1, 0)
        self.page = 10
        self.reads: list[Place] = []
        self.fails = 0

    async def bounds(self) -> Bounds:
        if self.fails:
            self.fails -= 1
            raise Unavailable("away")
        return Bounds(self.epoch, self.first, self.entries[-1].place)

    async def read(self, after: Place, upto: Place) -> Batch:
        await asyncio.sleep(0)
        self.reads.append(after)
        if after < self.first:
            raise Expired("gone")
        found = [entry for entry in self.entries if after < entry.place <= upto]
        page = found[: self.page]
        return Batch(self.epoch, page, page[-1].place if len(found) > self.page else upto)


class Desk:
    """A hub with a small ring over a long log."""

    def __init__(self, ring: int = 20) -> None:
        self.log = ListLog()
        self.hub = Hub(
            self.log,  # type: ignore[arg-type]  # as much of it as is needed here
            [],
            None,
            replica="r",
            ring_bytes=1400 * ring,
            max_event=1 << 20,
            max_streams=10_000,
            max_streams_per_user=10_000,
            heartbeat=15,
        )
        self.hub.readback = rowcast.readback.ReadBack(self.hub, self.log)
        self.hub.wire.read_back = self.hub.readback.want
        self.hub.handle(Batch("e", [], (1, 0), reset="start"))
        self.hub.warm = True
        self.number = 1

    def send(self, count: int, topic: str = "t", key: str | None = None, pad: str = "") -> None:
        for _ in range(count):
            self.number += 1
            entry = Entry(Kind.DATA, (self.number, 1), Body(f"<{self.number}>{pad}"), topic=topic, key=key)
            self.log.entries.append(entry)
            self.hub.handle(Batch("e", [entry], entry.place))


class Client:
    """Reads whenever it is woken, unless it is `slow`."""

    def __init__(self, desk: Desk, *topics: str, cursor: int | None = None, slow: bool = False) -> None:
        self.slow = slow
        self.data = b""
        self.moved = asyncio.Event()
        self.opened: list[Stream] = []
        position = None if cursor is None else Position("e", cursor, 1)
        self.opened.append(desk.hub.connect(Grant("ann", frozenset(topics)), self.read, cursor=position))
        self.read()

    @property
    def stream(self) -> Stream:
        return self.opened[0]

    def read(self) -> None:
        for stream in self.opened:
            while not self.slow and (data := stream.take()):
                self.data += data
        self.moved.set()

    @property
    def numbers(self) -> list[int]:
        return [int(part.split(b">")[0]) for part in self.data.split(b"data: <")[1:]]

    async def has(self, number: int) -> None:
        async with asyncio.timeout(20):
            while number not in self.numbers:
                self.moved.clear()
                await self.moved.wait()

    async def live(self) -> None:
        async with asyncio.timeout(20):
            while self.stream.state is not StreamState.LIVE:
                self.moved.clear()
                await self.moved.wait()


@contextlib.asynccontextmanager
async def running(desk: Desk) -> AsyncIterator[None]:
    task = asyncio.create_task(desk.hub.readback.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_from_the_log_over_the_ring_to_live() -> None:
    desk = Desk()
    desk.send(200)
    async with running(desk):
        client = Client(desk, "t", cursor=50)
        assert client.stream.state is StreamState.BEHIND
        await client.live()
        desk.send(5)
        await client.has(206)
        assert client.numbers == list(range(51, 207))
        assert b"rowcast.reset" not in client.data
        async with asyncio.timeout(20):
            while len(desk.hub.readback):
                await asyncio.sleep(0)


async def test_entries_that_come_meanwhile_come_once() -> None:
    desk = Desk()
    desk.send(200)
    async with running(desk):
        clients = [Client(desk, "t", "u", cursor=cursor) for cursor in (3, 50, 51, 170, 190, 201)]
        for _ in range(40):
            desk.send(3)
            await asyncio.sleep(0)
        for client in clients:
            await client.live()
        for client, cursor in zip(clients, (3, 50, 51, 170, 190, 201), strict=True):
            assert client.numbers == list(range(cursor + 1, desk.number + 1))


async def test_a_thousand_streams_share_one_reading() -> None:
    desk = Desk()
    for number in range(300):
        desk.send(1, f"t{number % 30}")
    async with running(desk):
        clients = [Client(desk, f"t{number % 30}", cursor=2 + number % 100) for number in range(1000)]
        for client in clients:
            await client.live()
        for number, client in enumerate(clients):
            cursor = 2 + number % 100
            assert client.numbers == [n for n in range(cursor + 1, 302) if (n - 2) % 30 == number % 30]
    # Once through, and not once for each.
    assert len(desk.log.reads) < 60


async def test_one_that_does_not_read_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowcast.readback, "PATIENCE", 0.0)
    desk = Desk()
    desk.send(200, pad="x" * 10_000)
    async with running(desk):
        slow, quick = Client(desk, "t", cursor=2, slow=True), Client(desk, "t", cursor=2)
        await quick.live()
        assert slow.stream.state is StreamState.BEHIND
        assert slow.stream.pending_bytes < 2 * rowcast.readback.PAGE
        slow.slow = False
        slow.read()
        await slow.live()
        assert slow.numbers == quick.numbers == list(range(3, 202))


async def test_older_than_the_log_is_a_reset() -> None:
    desk = Desk()
    desk.send(200)
    desk.log.first = (100, 1)
    async with running(desk):
        old, young = Client(desk, "t", cursor=99), Client(desk, "t", cursor=100)
        await young.live()
        await old.live()
        desk.send(1)
        await young.has(202)
        await old.has(202)
        assert young.numbers == list(range(101, 203))
        assert b"position_expired" in old.data
        assert old.numbers == [202]


async def test_evicted_while_it_is_read_is_a_reset() -> None:
    desk = Desk()
    desk.send(200)
    async with running(desk):
        client = Client(desk, "t", cursor=10)
        while not client.numbers:
            await asyncio.sleep(0)
        desk.log.first = (150, 1)
        await client.live()
        desk.send(1)
        await client.has(202)
        assert b"position_expired" in client.data
        assert client.numbers == [*range(11, client.numbers[-2] + 1), 202]


async def test_a_log_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rowcast.readback, "RETRY", 0.0)
    desk = Desk()
    desk.send(100)
    desk.log.fails = 3
    async with running(desk):
        client = Client(desk, "t", cursor=10)
        await client.live()
        assert client.numbers == list(range(11, 102))


async def test_subscriptions_change_at_their_place_in_the_log() -> None:
    """Topics that changed while the stream was behind are in force from their place on, also when it is read back."""
    desk = Desk()
    client = Client(desk, "t", "u")
    client.slow = True
    client.stream.pause(desk.hub.head)
    own = frozenset({"user:ann"})
    client.stream.resume(own | {"t"})
    desk.send(50, "t")
    desk.send(50, "u")
    client.stream.change((desk.number, 1), own | {"u"})
    desk.send(50, "t")
    desk.send(50, "u")
    client.stream.pause((desk.number, 1))
    desk.send(100, "u")
    async with running(desk):
        client.slow = False
        client.read()
        async with asyncio.timeout(20):
            while client.numbers[-1:] != [201]:
                await asyncio.sleep(0)
        assert client.stream.state is StreamState.BEHIND
        client.stream.resume(own | {"u"})
        client.read()
        await client.live()
    assert client.numbers == [*range(2, 52), *range(152, 302)]


async def test_an_older_value_of_a_key_that_the_ring_has_is_left_out() -> None:
    desk = Desk()
    desk.log.page = 1000
    desk.send(100, key="gold")
    desk.send(5, key="silver")
    desk.send(30, key="gold")
    async with running(desk):
        client = Client(desk, "t", cursor=2)
        await client.live()
        assert client.numbers == [106, 136]


async def test_a_log_that_begins_anew_meanwhile_is_one_reset() -> None:
    desk = Desk()
    desk.send(200)
    async with running(desk):
        client = Client(desk, "t", cursor=10)
        desk.log.epoch = "f"
        desk.hub.handle(Batch("f", [], (1, 0), reset="log_restarted"))
        await client.live()
        assert client.data.count(b"rowcast.reset") == 1
        assert len(desk.hub.readback) == 0
