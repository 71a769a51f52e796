"""The flush: who is written when, with the clock in our hands."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest

from rowcast.core.grants import Grant
from rowcast.core.ring import Ring
from rowcast.core.stream import Stream, StreamState, Wire
from rowcast.flush import EXPRESS, PAUSE, SLICE, STRIDE, Flush


class Desk:
    """A flush whose writers take at once; each write takes `cost` seconds of a clock of our own."""

    def __init__(self, cost: float = 0.0) -> None:
        self.now = 0.0
        self.cost = cost
        self.wire = Wire(Ring(1 << 20), max_event=1 << 20, replica="r")
        self.written: list[tuple[str, bytes]] = []
        self.latencies: list[tuple[float, int]] = []
        self.failed: list[Stream] = []
        self.flush = Flush(self, lambda: self.now, lambda *latency: self.latencies.append(latency))

    def wake(self, stream: Stream) -> None:
        stream.wake()

    def lag(self, stream: Stream) -> None:
        stream.lag()

    def fail(self, stream: Stream) -> None:
        self.failed.append(stream)

    def streams(self, count: int, name: str = "s") -> list[Stream]:
        return [self.stream(f"{name}{number}") for number in range(count)]

    def stream(self, user: str) -> Stream:
        def write() -> None:
            self.now += self.cost
            if data := stream.take():
                self.written.append((user, data))

        stream = Stream(Grant(user), self.wire, write)
        stream.start(frozenset(), None)
        stream.take()
        return stream


def test_a_stream_is_written_once_per_flush() -> None:
    desk = Desk()
    few, many = desk.streams(2), desk.streams(EXPRESS + 1, "m")
    for frame in (b"1", b"2", b"3"):
        assert desk.flush.push(few, frame) == 2
        assert desk.flush.push(many, frame) == EXPRESS + 1
    desk.flush.start()  # no loop runs: at once
    assert len(desk.written) == 2 + EXPRESS + 1
    assert {data for _, data in desk.written} == {b"123"}


class Pipe:
    """A sink that has room for so many writes; then the stream's writer notes that it is full."""

    def __init__(self, stream: Stream, room: int = 1000) -> None:
        self.stream = stream
        self.room = room
        self.got: list[bytes] = []
        stream.sink = self

    def write(self, data: bytes) -> None:
        self.room -= 1
        if self.room < 0:
            raise RuntimeError("the handle is closed")
        self.got.append(data)
        if not self.room:
            self.stream.sink = None

    def abort(self) -> None:
        raise AssertionError("the flush does not cut connections")


@pytest.mark.parametrize("count", [1, EXPRESS + 1])
def test_a_stream_with_a_sink_is_written_without_its_writer(count: int) -> None:
    desk = Desk()
    streams = desk.streams(count)
    pipes = [Pipe(stream) for stream in streams]
    own = streams[0]
    for frame in (b"1", b"2", b"3"):
        desk.flush.push(streams, frame)
        desk.flush.push([own], frame.upper() + b"!")
    desk.flush.start()
    desk.flush.push(streams, b"4")
    desk.flush.start()
    assert [pipe.got for pipe in pipes] == [[b"11!22!33!", b"4"], *[[b"123", b"4"]] * (count - 1)]
    assert not desk.written
    assert not any(stream.pending or stream.pending_bytes for stream in streams)


def test_a_sink_that_gets_full_has_its_stream_catch_up() -> None:
    desk = Desk()
    (stream,) = desk.streams(1)
    pipe = Pipe(stream, room=1)
    desk.flush.push([stream], b"1")
    desk.flush.start()
    assert stream.state is StreamState.BEHIND
    assert desk.flush.push([stream], b"2") == 0
    assert pipe.got == [b"1"]


def test_a_sink_that_raises_keeps_nobody_from_being_written() -> None:
    desk = Desk()
    streams = desk.streams(3)
    pipes = [Pipe(stream, room=0 if number == 1 else 9) for number, stream in enumerate(streams)]
    desk.flush.push(streams, b"1")
    desk.flush.start()
    assert desk.failed == [streams[1]]
    assert [pipe.got for pipe in pipes] == [[b"1"], [], [b"1"]]


def test_what_may_not_be_taken_yet_is_not_written_to_a_sink() -> None:
    desk = Desk()
    (stream,) = desk.streams(1)
    pipe = Pipe(stream)
    desk.flush.push([stream], b"1")
    stream.hold()
    desk.flush.push([stream], b"2")
    desk.flush.start()
    assert desk.written == [("s0", b"1")]
    stream.unhold()
    desk.flush.add(stream)
    desk.flush.start()
    assert pipe.got == [b"2"]


@pytest.mark.parametrize("behind", [False, True])
def test_what_is_pending_is_counted_right_with_a_sink_and_without(behind: bool) -> None:
    desk = Desk()
    (stream,) = desk.streams(1)
    Pipe(stream)
    for number in range(3):
        desk.flush.push([stream], b"x" * (number + 1))
        assert stream.pending_bytes == number + 1
        desk.flush.start()
        assert stream.pending_bytes == 0
    stream.pending += [b"four", b"three"]
    assert stream.pending_bytes == 9
    if behind:
        stream.pause((1, 0))
    stream.sink = None
    stream.pending.append(b"!")
    assert stream.pending_bytes == 10


def test_streams_that_are_not_live_are_passed_over() -> None:
    desk = Desk()
    one, two = desk.streams(2)
    two.pause((1, 0))
    assert desk.flush.push([one, two], b"x") == 1
    assert not two.pending


def test_whichever_queue_is_first_keeps_the_order() -> None:
    desk = Desk()
    many = desk.streams(EXPRESS + 1)
    desk.flush.push(many, b"1")
    desk.flush.push(many[:1], b"2")
    desk.flush.push(many, b"3")
    desk.flush.start()
    assert desk.written[0] == ("s0", b"123")
    assert len(desk.written) == EXPRESS + 1


async def test_the_express_goes_between_two_slices_of_a_round() -> None:
    desk = Desk(cost=SLICE / STRIDE)
    many, own = desk.streams(10 * STRIDE), desk.stream("own")
    desk.flush.push(many, b"hot")
    desk.flush.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    before = len(desk.written)
    assert 0 < before < len(many)
    desk.flush.push([own], b"private")
    desk.flush.start()
    await asyncio.sleep(0)
    assert desk.written[before] == ("own", b"private")
    while len(desk.written) <= len(many):
        await asyncio.sleep(0)
    assert desk.flush.rounds == 1


async def test_the_loop_goes_on_between_two_slices() -> None:
    desk = Desk(cost=SLICE)
    desk.flush.push(desk.streams(8 * STRIDE), b"hot")
    desk.flush.start()
    turns = 0
    while desk.flush.rounds == 0:
        await asyncio.sleep(0)
        turns += 1
    assert turns >= 8


@pytest.mark.parametrize("cost", [0.001, 1.0])
async def test_between_two_rounds_there_is_a_pause_of_twice_a_round(
    cost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = Desk(cost=cost / (EXPRESS + 1))
    many = desk.streams(EXPRESS + 1)
    desk.flush.push(many, b"1")
    desk.flush.start()
    while desk.flush.rounds == 0:
        await asyncio.sleep(0)
    asked: list[float] = []
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def watched(delay: float, *rest: Any) -> Any:
        asked.append(delay)
        return later(0, *rest)

    monkeypatch.setattr(loop, "call_later", watched)
    desk.flush.push(many, b"2")
    desk.flush.push(many, b"3")
    desk.flush.start()
    while desk.flush.rounds == 1:
        await asyncio.sleep(0)
    assert asked == [pytest.approx(min(2 * cost, PAUSE), rel=0.01)]
    assert desk.written[-1][1] == b"23", "what came during the pause was merged"


async def test_too_much_for_the_express_goes_with_the_bulk() -> None:
    desk = Desk(cost=SLICE / 10)
    streams = desk.streams(6 * STRIDE)
    for start in range(0, len(streams), EXPRESS):
        desk.flush.push(streams[start : start + EXPRESS], b"1")
    desk.flush.start()
    while desk.flush.rounds == 0:
        await asyncio.sleep(0)
    assert sorted(user for user, _ in desk.written) == sorted(stream.grant.user for stream in streams)


async def test_a_thousand_catch_ups_take_turns_and_leave_the_others_theirs() -> None:
    """Each page costs half a slice, so a turn has two of them; whoever is LIVE is written before, in every turn."""
    desk = Desk(cost=SLICE / 2)
    behind = desk.streams(1000, "b")
    for stream in behind:
        stream.pause((1, 0))
        stream.pending.append(b"1")
        desk.flush.catch_up(stream)
        desk.flush.catch_up(stream)  # waiting twice is waiting once
    few, many = desk.stream("few"), desk.streams(EXPRESS + 1, "m")
    paged: list[str] = []
    desk.flush.start()
    for turn in range(200):
        before = len(desk.written)
        desk.flush.push([few], b"private")
        if turn == 100:
            desk.flush.push(many, b"hot")
        await asyncio.sleep(0)
        written = desk.written[before:]
        if turn:  # the turn that `start` asked for comes after this task's first one
            assert written[0] == ("few", b"private")
        paged += [user for user, data in written if data == b"1"]
        assert len([user for user, data in written if data == b"1"]) <= 2
        for stream in behind:
            if not stream.pending and not stream.paging:  # it has more to catch up with
                stream.pending.append(b"1")
                desk.flush.catch_up(stream)
    assert desk.flush.rounds == 1, "a round got through meanwhile"
    assert len(paged) >= 300
    assert paged == [f"b{number}" for number in range(len(paged))], "nobody gets a second page before all had a first"


async def test_the_latency_ends_when_the_express_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(cost=0.0001)
    monkeypatch.setattr(time, "time", lambda: 1000 + desk.now)
    desk.flush.push(desk.streams(3), b"1", 999.5)
    desk.flush.push(desk.streams(2, "m"), b"2", 999.75)
    desk.flush.start()
    assert desk.latencies == []
    while len(desk.written) < 5:
        await asyncio.sleep(0)
    assert desk.latencies == [(pytest.approx(0.5005), 3), (pytest.approx(0.2505), 2)]


async def test_the_latency_of_a_round_is_that_of_its_quarters(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(cost=1.0)
    monkeypatch.setattr(time, "time", lambda: 1000 + desk.now)
    many = desk.streams(8 * STRIDE)
    for commit in range(5):
        desk.flush.push(many, b"x", 1000 - commit)
    desk.flush.start()
    while desk.flush.rounds == 0:
        await asyncio.sleep(0)
    quarter = 2 * STRIDE
    assert desk.latencies == [(quarter * (number % 4 + 1) + number, len(many)) for number in range(5)]


async def test_what_went_from_the_express_to_the_bulk_is_counted_once() -> None:
    desk = Desk(cost=SLICE)
    streams = desk.streams(6 * STRIDE)
    for start in range(0, len(streams), STRIDE):
        desk.flush.push(streams[start : start + STRIDE], b"1", 1.0)
    desk.flush.start()
    while desk.flush.rounds == 0:
        await asyncio.sleep(0)
    assert sum(times for _, times in desk.latencies) == len(streams)


async def test_who_hurries_after_a_while_need_not_wait_for_a_turn() -> None:
    desk = Desk()
    own, hot = desk.stream("own"), desk.streams(EXPRESS + 1, "m")
    desk.now = 1.0
    desk.flush.push(hot, b"hot")
    desk.flush.push([own], b"1")
    desk.flush.hurry()
    assert desk.written == [("own", b"1")]
    desk.flush.push([own], b"2")
    desk.flush.push([own], b"3")
    desk.flush.hurry()
    assert desk.written == [("own", b"1")], "one of many: they are merged"
    desk.flush.start()
    while len(desk.written) < len(hot) + 2:
        await asyncio.sleep(0)
    assert desk.written[1] == ("own", b"23")


def test_a_delivery_costs_no_call() -> None:
    """The inner loop by counts: an entry for many streams makes as many appends, and calls nothing of Python."""
    desk = Desk()
    many = desk.streams(1000)
    desk.flush.push(many, b"0")  # all are on the queue
    calls: list[str] = []

    def profile(frame: Any, event: str, argument: Any) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        desk.flush.push(many, b"1")
    finally:
        sys.setprofile(None)
    assert calls == ["push"]
    assert all(stream.pending == [b"0", b"1"] for stream in many)
    assert all(stream.state is StreamState.LIVE for stream in many)


class Counter:
    """A sink without a line of Python in it."""

    __slots__ = ("abort", "got", "write")

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.write = self.got.append
        self.abort = self.got.clear


def test_a_write_costs_no_call_but_its_own() -> None:
    """The same for the loop that runs once per system call."""
    desk = Desk()
    streams = desk.streams(10 * STRIDE)
    for stream in streams:
        stream.sink = Counter()
    for frame in (b"1", b"2"):
        desk.flush.push(streams, frame)
    calls: list[str] = []

    def profile(frame: Any, event: str, argument: object) -> None:
        if event == "call":
            calls.append(frame.f_code.co_name)

    sys.setprofile(profile)
    try:
        desk.flush.start()
    finally:
        sys.setprofile(None)
    assert calls.count("_write") == 10
    # Of the rest most is the clock, which is looked at once between two strides.
    assert len(calls) <= 10 + 30
