"""The memory log: its bounds, and how it takes over what another log yields."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from rowcast.core.body import PublishBody
from rowcast.core.entry import Batch, Entry, Kind
from rowcast.core.position import MINOR_SPACING as SPACE
from rowcast.core.position import Place, Position
from rowcast.errors import Unavailable
from rowcast.logs import memory
from rowcast.logs.memory import MemoryLog
from rowcast.ports import Draft, State
from rowcast.testing.log_suite import Tail, assert_orderly, data, tailing


class Feed:
    """A log whose batches the test gives."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[Batch | Exception | None] = asyncio.Queue()
        self.taken = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        self.batches.put_nowait(None)

    async def tail(self) -> AsyncIterator[Batch]:
        while (batch := await self.batches.get()) is not None:
            if isinstance(batch, Exception):
                raise batch
            self.taken += 1
            yield batch

    async def head(self) -> Place:
        return (77, 0)

    async def append(self, draft: Draft) -> Position:
        raise AssertionError("what is published stays in the process")

    def state(self) -> State:
        return State(ok=False, detail="of the feed", since=time.time())


def entry(place: Place, topic: str = "t", size: int = 1) -> Entry:
    return Entry(Kind.DATA, place, PublishBody(topic, b"1" * size), topic=topic)


async def fed() -> tuple[Feed, MemoryLog]:
    feed = Feed()
    log = MemoryLog(feed)
    await log.open()
    feed.batches.put_nowait(Batch("f1", [], (100, 0), reset="start"))
    return feed, log


async def test_the_oldest_go_first() -> None:
    log = MemoryLog(max_entries=3)
    for number in range(5):
        await log.append(data(f"t{number}"))
    async with tailing(log) as tail:
        await tail.passed((0, 5))
        assert tail.topics == ["t2", "t3", "t4"]
        assert tail.batches[0].head == (0, 2), "what is above it can be read"


async def test_bytes_are_bounded() -> None:
    log = MemoryLog(max_bytes=10_000)
    for number in range(100):
        await log.append(data(f"t{number}", b"1" * 1000))
    async with tailing(log) as tail:
        await tail.passed((0, 100))
        assert 0 < len(tail.entries) < 10


async def test_old_entries_go(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog(retention=10.0)
    await log.append(data("old"))
    now = time.time()
    monkeypatch.setattr(memory.time, "time", lambda: now + 20.0)
    await log.append(data("new"))
    async with tailing(log) as tail:
        await tail.passed((0, 2))
        assert tail.topics == ["new"]
        assert tail.batches[0].head == (0, 1)


async def test_a_full_log_starts_in_batches() -> None:
    log = MemoryLog()
    for number in range(memory.CHUNK + 5):
        await log.append(data(f"t{number}"))
    async with tailing(log) as tail:
        await tail.passed((0, memory.CHUNK + 5))
        assert [len(batch.entries) for batch in tail.batches][:3] == [0, memory.CHUNK, 5]
        assert_orderly(tail)


async def test_what_is_published_together_is_one_batch() -> None:
    log = MemoryLog()
    async with tailing(log) as tail:
        await tail.until(lambda: len(tail.batches) == 2)
        await asyncio.gather(*(log.append(data(f"t{number}")) for number in range(50)))
        assert [len(batch.entries) for batch in tail.batches[2:]] == [50]
        assert tail.batches[-1].head == (0, 50)
        assert_orderly(tail)


async def test_who_publishes_waits_for_the_tail_only() -> None:
    """By turns of the loop: one until the tail has what was published, and one more until it is answered."""
    log = MemoryLog()
    async with tailing(log) as tail:
        await tail.until(lambda: len(tail.batches) == 2)
        publishing = asyncio.create_task(log.append(data("t")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert tail.places == [(0, 1)]
        await asyncio.sleep(0)
        assert publishing.done()


async def test_what_the_feed_yields_keeps_its_places() -> None:
    feed, log = await fed()
    async with tailing(log) as tail:
        feed.batches.put_nowait(Batch("f1", [entry((110, SPACE)), entry((110, 2 * SPACE))], (120, 0)))
        await tail.passed((120, 0))
        assert tail.batches[0].head == (100, 0)
        assert tail.places == [(110, SPACE), (110, 2 * SPACE)]
        assert tail.resets == ["start"]
        assert log.state().detail == "of the feed"
        assert await log.head() == (77, 0)
    await log.close()


async def test_publishing_lies_between_two_transactions() -> None:
    feed, log = await fed()
    async with tailing(log) as tail:
        feed.batches.put_nowait(Batch("f1", [entry((110, SPACE))], (120, 0)))
        await tail.passed((120, 0))
        first, second = await log.append(data("p1")), await log.append(data("p2"))
        assert (first.place, second.place) == ((120, 1), (120, 2))
        # The next transaction's commit record may start where the last one's ended.
        feed.batches.put_nowait(Batch("f1", [entry((120, SPACE))], (130, 0)))
        await tail.passed((130, 0))
        assert tail.places == [(110, SPACE), (120, 1), (120, 2), (120, SPACE)]
        assert_orderly(tail)
    await log.close()


async def test_publishing_waits_for_the_end_of_a_transaction(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, log = await fed()
    async with tailing(log) as tail:
        feed.batches.put_nowait(Batch("f1", [entry((110, SPACE))], (110, 2 * SPACE - 1)))
        await tail.passed((110, SPACE))
        publishing = asyncio.create_task(log.append(data("p")))
        feed.batches.put_nowait(Batch("f1", [entry((110, 2 * SPACE))], (120, 0)))
        assert (await publishing).place == (120, 1)
        assert_orderly(tail)
        monkeypatch.setattr(memory, "APPEND_TIMEOUT", 0.05)
        feed.batches.put_nowait(Batch("f1", [], (130, SPACE - 1)))
        await tail.passed((130, 0))
        with pytest.raises(Unavailable, match="it was not published"):
            await log.append(data("p"))
    await log.close()


async def test_nothing_is_published_before_the_feed_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "APPEND_TIMEOUT", 0.05)
    log = MemoryLog(Feed())
    await log.open()
    with pytest.raises(Unavailable, match="it was not published"):
        await log.append(data("p"))
    await log.close()


async def test_a_feed_that_starts_anew_is_another_epoch() -> None:
    """Its places may lie below those given out before."""
    feed, log = await fed()
    async with tailing(log) as tail:
        feed.batches.put_nowait(Batch("f1", [entry((110, SPACE), "before")], (120, 0)))
        feed.batches.put_nowait(Batch("f2", [], (50, 0), reset="log_restarted"))
        feed.batches.put_nowait(Batch("f2", [entry((60, SPACE), "after")], (70, 0)))
        await tail.until(lambda: tail.topics == ["before", "after"])
        assert tail.resets == ["start", "log_restarted"]
        assert tail.batches[0].epoch != tail.batches[-1].epoch
        assert_orderly(tail)
    async with tailing(log) as tail:
        await tail.passed((70, 0))
        assert tail.topics == ["after"], "what was before can't be told to be complete"
    await log.close()


async def test_the_feed_is_not_read_ahead_of_the_tail() -> None:
    """Whoever reads the WAL must not pile it up here when the hub is busy."""
    feed, log = await fed()
    busy = asyncio.Event()
    seen: list[Batch] = []

    async def read() -> None:
        async for batch in log.tail():
            seen.append(batch)
            if batch.entries:
                await busy.wait()

    reading = asyncio.create_task(read())
    async with asyncio.timeout(30):
        while not seen:
            await asyncio.sleep(0)
    for number in range(1, 50):
        feed.batches.put_nowait(Batch("f1", [entry((100 + number, SPACE))], (101 + number, 0)))
    for _ in range(200):
        await asyncio.sleep(0)
    assert feed.taken <= 4
    busy.set()
    async with asyncio.timeout(30):
        while seen[-1].head != (150, 0):
            await asyncio.sleep(0)
    reading.cancel()
    await log.close()


async def test_a_feed_that_fails_fails_the_tail() -> None:
    feed, log = await fed()
    tail = Tail(log)
    await tail.until(lambda: bool(tail.batches))
    feed.batches.put_nowait(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        await tail.ended()
    await log.close()


async def test_nothing_can_be_published_after_the_end() -> None:
    log = MemoryLog()
    await log.close()
    with pytest.raises(Unavailable, match="it was not published"):
        await log.append(data("p"))
