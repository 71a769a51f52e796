"""The append rule under random interleavings of leaders, zombies, publishers, readers, fail-overs, trims and flushes.

A model of the WAL stands in for Postgres; the scripts run on a real Valkey. A fail-over that loses the end of the log
is played by putting back what both keys were some time before.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator

import pytest
import redis

from rowcast.core import codec
from rowcast.core.body import PublishBody
from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.position import MINOR_SPACING, ORIGIN, Place
from rowcast.logs.redis_cursor import Cursor
from rowcast.logs.redis_store import HEAD, STREAM, RedisStore
from rowcast.testing.valkey import ValkeyServer

RUNS = 12
STEPS = 150

_names = itertools.count(1)


@pytest.fixture(scope="module")
def valkey() -> Iterator[ValkeyServer]:
    with ValkeyServer() as server:
        yield server


def entry(place: Place, topic: str) -> Entry:
    return Entry(Kind.DATA, place, PublishBody(topic, b"1"), topic=topic)


class Wal:
    """What is committed: the places of all changes, in order, and where the WAL ends."""

    def __init__(self, random: random.Random) -> None:
        self.places: list[Place] = []
        self.end = 100
        self._random = random

    def commit(self) -> None:
        commit_lsn = self.end + self._random.choice([0, 0, 7])
        for index in range(self._random.randrange(0, 5)):
            self.places.append((commit_lsn, (index + 1) * MINOR_SPACING))
        self.end = commit_lsn + 40

    def read(self, after: Place, limit: int) -> tuple[list[Place], Place]:
        """At most `limit` changes above a place, and how far that is."""
        found = [place for place in self.places if place > after]
        if len(found) <= limit:
            return found, (self.end, 0)
        major, minor = found[limit - 1]
        return found[:limit], (major, minor + MINOR_SPACING // 2 - 1)


class Leader:
    """What `logs.leader` does with the answers; it may be a zombie at any time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.incarnation = ""
        self.position: Place = ORIGIN

    async def start(self) -> None:
        world = self.world
        head = await world.store.head()
        if head is not None and head.wal[0] >= world.confirmed:
            self.incarnation, self.position = head.incarnation, head.wal
        else:
            await self.renew(head.incarnation if head else "", (world.confirmed, 0))

    async def renew(self, old: str, place: Place) -> None:
        name = f"{next(_names):08x}"
        answer = await self.world.store.renew(old, name, place, "db")
        if answer.code == "OK":
            self.incarnation, self.position = name, place

    async def step(self) -> None:
        world = self.world
        found, last = world.wal.read(self.position, world.random.randrange(1, 4))
        if last <= self.position:
            return
        data = codec.encode([entry(place, f"w{place}") for place in found], 1000)
        answer = await world.store.append(self.incarnation, self.position, last, data, count=len(found), now=0.0)
        world.answers[answer.code] += 1
        if answer.code in ("OK", "DUP"):
            self.position = last
        elif answer.code == "EMPTY":
            await self.renew("", self.position)
        else:
            assert answer.code in ("FENCED", "GAP")
            if self is world.leader:
                await self.start()


class Reader:
    """A replica's tail: what came since each reset."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.cursor = Cursor()
        self.segments: list[tuple[str, Place, list[Entry], Place]] = []
        self.begun = False

    def take(self, batch: Batch) -> None:
        if batch.reset is not None:
            self.segments.append((batch.epoch, batch.head, [], batch.head))
            self.world.answers[f"reset {batch.reset}"] += 1
            return
        epoch, bound, entries, head = self.segments[-1]
        assert batch.epoch == epoch
        for item in batch.entries:
            assert item.place > max(head, entries[-1].place if entries else bound)
        assert batch.head >= head
        self.segments[-1] = (epoch, bound, [*entries, *batch.entries], batch.head)

    async def step(self) -> bool:
        """Read once; whether there is nothing more to do."""
        store, cursor = self.world.store, self.cursor
        if not self.begun:
            head, first = await store.look()
            if head is None:
                return True
            if head.incarnation == cursor.incarnation:
                first = None
            reason = "again" if cursor.incarnation else "start"
            bound = cursor.begin(head, first)
            self.take(Batch(cursor.incarnation, [], bound, reset=reason))
            self.begun = True
        items = await store.read(cursor.place)
        for item in items[: self.world.random.randrange(1, 6)]:
            if item.incarnation != cursor.incarnation:
                self.begun = False
                return False
            for batch in cursor.take(item):
                self.take(batch)
        if not items and cursor.lost(await store.head()):
            self.begun = False
            return False
        return not items and cursor._missing is None


class World:
    def __init__(self, seed: int, store: RedisStore, client: redis.Redis, trouble: str) -> None:
        self.random = random.Random(seed)
        self.store = store
        self.client = client
        self.trouble = trouble
        self.wal = Wal(self.random)
        self.confirmed = 50
        self.leader = Leader(self)
        self.zombies: list[Leader] = []
        self.readers = [Reader(self), Reader(self)]
        self.saved: tuple[object, object] | None = None
        self.answers: Counter[str] = Counter()

    async def step(self) -> None:
        choice = self.random.random()
        if choice < 0.2:
            self.wal.commit()
        elif choice < 0.45:
            await self.leader.step()
        elif choice < 0.55 and self.zombies:
            await self.random.choice(self.zombies).step()
        elif choice < 0.65:
            name = f"p{next(_names)}"
            data = codec.encode([entry(ORIGIN, name)], 1000)
            await self.store.publish(name, data, now=0.0)
        elif choice < 0.9:
            await self.random.choice(self.readers).step()
        elif choice < 0.94:
            self.zombies.append(self.leader)
            self.leader = Leader(self)
            await self.leader.start()
        elif choice < 0.96:
            head = await self.store.head()
            if head is not None:
                self.confirmed = max(self.confirmed, head.wal[0] - self.random.choice([0, 60, 200]))
        elif choice < 0.97 and self.trouble == "flush":
            self.client.flushall()
        elif choice < 0.98 and self.trouble == "trim":
            self.client.xtrim(STREAM, maxlen=self.random.choice([0, 1, 3]), approximate=False)
        elif self.trouble == "failover":
            self.failover()

    def failover(self) -> None:
        if self.saved is None or self.random.random() < 0.6:
            self.saved = (self.client.dump(STREAM), self.client.dump(HEAD))
            return
        self.client.flushall()
        for key, value in zip((STREAM, HEAD), self.saved, strict=True):
            if value is not None:
                self.client.restore(key, 0, value)  # type: ignore[arg-type]  # what dump returned
        self.saved = None

    async def settle(self) -> None:
        """Let everybody come to the end: the leader appends all, and the readers read it."""
        self.wal.commit()
        self.wal.places.append((self.wal.end, MINOR_SPACING))
        self.wal.end += 40
        for _ in range(500):
            await self.leader.step()
            head = await self.store.head()
            if head is not None and head.wal == (self.wal.end, 0):
                break
        else:
            raise AssertionError("the leader does not come to the end")
        for reader in self.readers:
            for _ in range(500):
                if await reader.step():
                    break
            else:
                raise AssertionError("a reader does not come to the end")

    async def check(self) -> None:
        final = Reader(self)
        while not await final.step():
            pass
        epoch, start, everything, _ = final.segments[-1]
        for reader in self.readers:
            for _, bound, entries, head in reader.segments:
                got = [item.place for item in entries if item.topic.startswith("w")]
                assert got == [place for place in self.wal.places if bound < place <= head], "a change lost or doubled"
            got_epoch, bound, entries, _ = reader.segments[-1]
            assert got_epoch == epoch
            assert [(item.place, item.topic) for item in entries if item.place > start] == [
                (item.place, item.topic) for item in everything if item.place > bound
            ]


@pytest.mark.parametrize("trouble", ["none", "flush", "failover", "trim"])
async def test_no_interleaving_loses_anything_in_silence(valkey: ValkeyServer, trouble: str) -> None:
    answers: Counter[str] = Counter()
    with valkey.client() as client:
        for seed in range(RUNS):
            client.flushall()
            store = RedisStore(valkey.url, block=0)
            world = World(seed, store, client, trouble)
            try:
                await world.leader.start()
                for _ in range(STEPS):
                    await world.step()
                await world.settle()
                await world.check()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {error}") from error
            finally:
                await store.close()
            answers += world.answers
    assert answers["OK"] > RUNS
    assert answers["DUP"] > RUNS
    if trouble == "flush":
        assert answers["EMPTY"]
        assert answers["FENCED"]
    if trouble == "failover":
        assert answers["GAP"]
        assert answers["reset log_gap"]
    if trouble == "trim":
        assert answers["reset position_expired"]
    if trouble == "none":
        assert set(answers) == {"OK", "DUP", "reset start"}
