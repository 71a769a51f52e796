"""The conformance suite for logs: what `ports.Log` promises, as tests.

An author of a log inherits from `LogSuite` in a test module and gives a fixture `logs`:

    class TestMyLog(LogSuite):
        @pytest.fixture
        async def logs(self) -> AsyncIterator[Logs]: ...
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Protocol

import pytest

from rowcast.core.entry import Batch, Control, Entry, Kind
from rowcast.core.position import Place, Position
from rowcast.errors import Expired, Repeated, Unavailable
from rowcast.ports import Draft, Log, ReadableLog

TIMEOUT = 20.0
"""Seconds that anything here may take."""


class Logs(Protocol):
    """What the suite needs of a log's author."""

    async def make(self) -> Log:
        """A log, opened; closed by the fixture. For `SharedLogSuite`, each is another replica's view of one log."""
        ...

    async def interrupt(self) -> None:
        """Cut every connection that the logs have now. Nothing, where there are none."""
        ...


class Tail:
    """Reads a log's tail as the hub does, and keeps what came."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.batches: list[Batch] = []
        self._task = asyncio.create_task(self._read())
        self._moved = asyncio.Condition()

    async def _read(self) -> None:
        async for batch in self.log.tail():
            self.batches.append(batch)
            async with self._moved:
                self._moved.notify_all()

    @property
    def entries(self) -> list[Entry]:
        """All entries so far."""
        return [entry for batch in self.batches for entry in batch.entries]

    @property
    def places(self) -> list[Place]:
        """Their places."""
        return [entry.place for entry in self.entries]

    @property
    def topics(self) -> list[str]:
        """Their topics."""
        return [entry.topic for entry in self.entries]

    @property
    def head(self) -> Place:
        """How far the log has been seen."""
        return self.batches[-1].head if self.batches else (0, 0)

    @property
    def resets(self) -> list[str]:
        """The reasons of all resets so far."""
        return [batch.reset for batch in self.batches if batch.reset is not None]

    async def until(self, condition: Callable[[], bool], *, timeout: float = TIMEOUT) -> None:
        """Wait until a condition holds. Raises what ended the tail, or TimeoutError."""
        async with asyncio.timeout(timeout):
            while not condition():
                if self._task.done():
                    self._task.result()
                    raise AssertionError(f"the tail ended; it had {self.batches[-3:]}")
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.2), self._moved:
                        await self._moved.wait_for(condition)

    async def passed(self, place: Place) -> None:
        """Wait until the head is at or above a place."""
        await self.until(lambda: self.head >= place)

    async def ended(self) -> None:
        """Wait until the tail ends by itself."""
        async with asyncio.timeout(TIMEOUT):
            await self._task

    async def stop(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def tailing(log: Log) -> AsyncIterator[Tail]:
    """A `Tail` that has begun."""
    tail = Tail(log)
    try:
        await tail.until(lambda: bool(tail.batches))
        yield tail
    finally:
        await tail.stop()


def data(topic: str, text: bytes = b"1", *, event: str | None = None, key: str | None = None) -> Draft:
    """Something to publish."""
    return Draft(topic=topic, data=text, event=event, key=key)


def assert_orderly(tail: Tail) -> None:
    """Places strictly increase, heads never go back, and every entry lies between two heads."""
    head: Place | None = None
    epoch = ""
    for batch in tail.batches:
        if batch.reset is not None:
            head, epoch = batch.head, batch.epoch
            assert not batch.entries
            continue
        assert head is not None, "the first batch must say where the log starts"
        assert batch.epoch == epoch
        for entry in batch.entries:
            assert entry.place > head
            head = entry.place
        assert batch.head >= head
        head = batch.head


class LogSuite:
    """Inherit from it; see the module's docstring."""

    async def test_the_first_batch_says_where_the_log_starts(self, logs: Logs) -> None:
        """`reset="start"`, an epoch, and nothing else."""
        async with tailing(await logs.make()) as tail:
            first = tail.batches[0]
            assert first.reset == "start"
            assert first.epoch
            assert first.entries == []

    async def test_entries_come_in_the_order_of_their_appending(self, logs: Logs) -> None:
        """And at the places that `append` returned."""
        log = await logs.make()
        async with tailing(log) as tail:
            positions = [await log.append(data(f"topic:{number}")) for number in range(20)]
            assert tail.topics == [f"topic:{number}" for number in range(20)]
            assert tail.places == [position.place for position in positions]
            assert {position.epoch for position in positions} == {tail.batches[0].epoch}
            assert_orderly(tail)

    async def test_append_returns_when_the_own_tail_has_passed_it(self, logs: Logs) -> None:
        """Whoever published sees it on a stream of this replica."""
        log = await logs.make()
        async with tailing(log) as tail:
            for number in range(10):
                position = await log.append(data(f"topic:{number}"))
                assert tail.head >= position.place
                assert tail.topics[-1] == f"topic:{number}"

    async def test_concurrent_appends_come_once_each(self, logs: Logs) -> None:
        """Nothing is lost, doubled or given the place of another."""
        log = await logs.make()
        async with tailing(log) as tail:
            positions = await asyncio.gather(*(log.append(data(f"topic:{number}")) for number in range(50)))
            assert sorted(tail.topics) == sorted(f"topic:{number}" for number in range(50))
            by_place = {entry.place: entry.topic for entry in tail.entries}
            assert [by_place[position.place] for position in positions] == [f"topic:{number}" for number in range(50)]
            assert_orderly(tail)

    async def test_what_was_published_is_what_comes(self, logs: Logs) -> None:
        """Topic, data, event name and key, byte for byte."""
        log = await logs.make()
        async with tailing(log) as tail:
            text = '{"name":"Zoë \\u2028 \U0001f600","n":12345678901234567890,"null":null}'.encode()
            await log.append(data("topic:ü", text, event="price", key="k%s"))
            entry = tail.entries[0]
            assert entry.kind is Kind.DATA
            assert (entry.topic, entry.event, entry.key) == ("topic:ü", "price", "k%s")
            assert entry.body.encode(1 << 20) == b'{"topic":"topic:\xc3\xbc","data":' + text + b',"key":"k%s"}'
            assert entry.time > 0

    async def test_whole_events_come_as_they_are(self, logs: Logs) -> None:
        """What a draft's `form` says: an event is not wrapped once more, a sweep is for all topics of its prefix."""
        log = await logs.make()
        event = b'{"topic":"a:1","action":"insert","record":{"n":1.10}}'
        async with tailing(log) as tail:
            await log.append(Draft(topic="a:1", data=event, key="k", form="event"))
            await log.append(Draft(topic="a:", data=event, form="sweep"))
            first, second = tail.entries
            assert (first.kind, first.topic, first.key) == (Kind.DATA, "a:1", "k")
            assert (second.kind, second.topic, second.key) == (Kind.SWEEP, "a:", None)
            assert first.body.encode(1 << 20) == second.body.encode(1 << 20) == event

    async def test_what_bears_a_name_comes_once_where_the_log_remembers(self, logs: Logs) -> None:
        log = await logs.make()
        async with tailing(log) as tail:
            names = ["a", "b", "a", "a", "", ""]
            answers = [
                await _repeated(log, Draft(topic=f"t{number}", data=b"1", once=name))
                for number, name in enumerate(names)
            ]
            again = log.remembers
            assert answers == [False, False, again, again, False, False]
            await tail.passed(await log.head())
            assert tail.topics == [f"t{number}" for number in range(6) if not answers[number]]

    async def test_control_entries(self, logs: Logs) -> None:
        """Resubscribe and disconnect travel in the same order as data."""
        log = await logs.make()
        async with tailing(log) as tail:
            await log.append(data("topic:1"))
            await log.append(Draft(control="resubscribe", user="zoë"))
            await log.append(Draft(control="disconnect", user="bob"))
            await log.append(data("topic:2"))
            kinds = [entry.kind for entry in tail.entries]
            assert kinds == [Kind.DATA, Kind.CONTROL, Kind.CONTROL, Kind.DATA]
            controls: list[Control] = [entry.body for entry in tail.entries if entry.kind is Kind.CONTROL]
            assert [(control.action, control.user) for control in controls] == [
                ("resubscribe", "zoë"),
                ("disconnect", "bob"),
            ]
            assert controls[1].at > 1e9

    async def test_a_large_message(self, logs: Logs) -> None:
        """A message larger than any chunk that is read at once."""
        log = await logs.make()
        async with tailing(log) as tail:
            text = b'"' + b"x" * 1_000_000 + b'"'
            await log.append(data("topic:1", text))
            assert text in tail.entries[0].body.encode(1 << 30)

    async def test_head_is_passed(self, logs: Logs) -> None:
        """A tail passes `head()`, and has then seen what was there before the call."""
        log = await logs.make()
        async with tailing(log) as tail:
            await log.append(data("topic:1"))
            place = await log.head()
            await tail.passed(place)
            assert tail.topics == ["topic:1"]

    async def test_a_tail_begins_with_what_the_log_holds(self, logs: Logs) -> None:
        """Also the second one of the same log."""
        log = await logs.make()
        async with tailing(log) as tail:
            for number in range(10):
                await log.append(data(f"topic:{number}"))
            places = tail.places
        async with tailing(log) as tail:
            await tail.passed(places[-1])
            assert tail.batches[0].reset == "start"
            assert tail.places == places
            assert_orderly(tail)

    async def test_nothing_is_lost_or_doubled_over_interruptions(self, logs: Logs) -> None:
        """The tail survives the loss of its connection by itself."""
        log = await logs.make()
        async with tailing(log) as tail:
            published: dict[str, Position] = {}
            unknown: set[str] = set()
            for number in range(40):
                topic = f"topic:{number}"
                if number % 8 == 4:
                    await logs.interrupt()
                try:
                    published[topic] = await log.append(data(topic))
                except Unavailable:
                    unknown.add(topic)
            await tail.passed(await _patiently(log.head))
            assert tail.resets == ["start"]
            assert_orderly(tail)
            topics = tail.topics
            assert len(topics) == len(set(topics))
            assert set(published) <= set(topics) <= set(published) | unknown
            by_topic = {entry.topic: entry.place for entry in tail.entries}
            assert all(by_topic[topic] == position.place for topic, position in published.items())

    async def test_close_ends_the_tail(self, logs: Logs) -> None:
        """And nothing can be appended any more."""
        log = await logs.make()
        tail = Tail(log)
        await tail.until(lambda: bool(tail.batches))
        assert log.state().ok
        await log.close()
        await tail.ended()
        with pytest.raises(Unavailable):
            await log.append(data("topic:1"))

    async def test_state_is_not_ok_before_there_is_a_tail_or_says_why(self, logs: Logs) -> None:
        """State never needs to ask anybody, and always has words."""
        log = await logs.make()
        assert log.state().detail
        async with tailing(log):
            assert log.state().ok
            assert log.state().detail


class SharedLogSuite(LogSuite):
    """What a log that several replicas share promises besides."""

    async def test_every_replica_sees_the_same_places(self, logs: Logs) -> None:
        """Whoever appended."""
        one, two = await logs.make(), await logs.make()
        async with tailing(one) as first, tailing(two) as second:
            last = (0, 0)
            for number in range(20):
                position = await (one if number % 2 else two).append(data(f"topic:{number}"))
                assert position.place > last
                last = position.place
            await first.passed(last)
            await second.passed(last)
            assert first.places == second.places
            assert first.topics == second.topics == [f"topic:{number}" for number in range(20)]
            assert first.batches[0].epoch == second.batches[0].epoch


class ReadableLogSuite:
    """What a log promises that can be read back: inherit from it beside `LogSuite`."""

    async def test_what_is_read_back_is_what_the_tail_brought(self, logs: Logs) -> None:
        """From every place to every place: the same entries at the same places, each once."""
        log = await logs.make()
        assert isinstance(log, ReadableLog)
        async with tailing(log) as tail:
            for number in range(12):
                await log.append(data(f"topic:{number}", event="e", key=f"k{number}"))
            bounds = await log.bounds()
            assert bounds.epoch == tail.batches[0].epoch
            assert bounds.last >= tail.places[-1]
            places = [bounds.first, *tail.places]
            for first, after in enumerate(places[:-1]):
                for last in range(first + 1, len(places)):
                    read = await read_back(log, after, places[last])
                    assert [entry.place for entry in read] == places[first + 1 : last + 1]
            whole = await read_back(log, bounds.first, places[-1])
            for one, other in zip(whole, tail.entries, strict=True):
                assert (one.topic, one.kind, one.event, one.key) == (other.topic, other.kind, other.event, other.key)
                assert one.body.encode(1 << 20) == other.body.encode(1 << 20)

    async def test_reading_back_goes_page_by_page(self, logs: Logs) -> None:
        """However long the range is."""
        log = await logs.make()
        assert isinstance(log, ReadableLog)
        async with tailing(log) as tail:
            for start in range(0, 1200, 20):
                await asyncio.gather(*(log.append(data(f"topic:{number}")) for number in range(start, start + 20)))
            bounds = await log.bounds()
            read = await read_back(log, bounds.first, tail.places[-1])
            assert [entry.place for entry in read] == tail.places

    async def test_what_is_not_there_any_more_is_expired(self, logs: Logs) -> None:
        """Below the lower bound nothing is promised, and that is said."""
        log = await logs.make()
        assert isinstance(log, ReadableLog)
        async with tailing(log) as tail:
            await log.append(data("topic:1"))
            bounds = await log.bounds()
            if bounds.first > (0, 0):
                with pytest.raises(Expired):
                    await log.read((0, 0), tail.places[-1])


async def read_back(log: ReadableLog, after: Place, upto: Place) -> list[Entry]:
    """Every entry above `after` up to `upto`, and that each page keeps its promise."""
    entries: list[Entry] = []
    while after < upto:
        page = await log.read(after, upto)
        assert page.reset is None
        assert after < page.head <= upto
        for entry in page.entries:
            assert after < entry.place <= page.head
            after = entry.place
        entries.extend(page.entries)
        after = page.head
    return entries


async def _patiently(call: Callable[[], Awaitable[Place]]) -> Place:
    """Call again while it is unavailable: connections of a pool may have been cut too."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            with contextlib.suppress(Unavailable):
                return await call()
            await asyncio.sleep(0)


async def _repeated(log: Log, draft: Draft) -> bool:
    """Append; returns whether it was in the log already."""
    try:
        await log.append(draft)
    except Repeated:
        return True
    return False
