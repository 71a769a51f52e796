"""Draining: what happens when, how fast, and until when at the latest; and signals under a server that is not ours."""

from __future__ import annotations

import asyncio
import bisect
import math
from typing import Any

import pytest

from rowcast.core.entry import Batch
from rowcast.core.grants import Grant
from rowcast.core.stream import Stream, StreamState
from rowcast.drain import COME_BACK, GROUP_PAUSE, MARGIN, Drain
from rowcast.errors import Busy
from rowcast.hub import Hub
from rowcast.jitter import Even
from rowcast.testing.stream import parse_block


def make() -> Hub:
    hub = Hub(
        None,  # type: ignore[arg-type]
        [],
        None,
        replica="r",
        ring_bytes=1 << 20,
        max_event=1 << 16,
        max_streams=5000,
        max_streams_per_user=1,
        heartbeat=15,
    )
    hub.handle(Batch("e", [], (1, 0), reset="start"))
    hub.warm = True
    return hub


def connect(hub: Hub, user: str) -> Stream:
    return hub.connect(Grant(user, frozenset()), lambda: None)


def drain_of(hub: Hub, **settings: Any) -> Drain:
    options: dict[str, Any] = {"delay": 0.0, "limit": 30.0, "rate": 100_000} | settings
    return Drain(hub, **options)


def hub_with(streams: int) -> Hub:
    hub = make()
    for number in range(streams):
        connect(hub, f"u{number}")
    assert hub.streams_count == streams
    return hub


async def test_readiness_fails_and_the_wal_is_handed_over_before_anything_is_awaited() -> None:
    handed: list[str] = []
    hub = hub_with(3)
    drain = drain_of(hub, delay=60, hand_over=lambda: handed.append("over"))
    assert not drain.begun
    assert hub.state().ok
    running = drain.begin()
    assert drain.begun
    assert handed == ["over"]
    assert not hub.state().ok
    with pytest.raises(Busy, match="draining"):
        connect(hub, "late")
    # For the time of the delay the streams that are there stay.
    await asyncio.sleep(0)
    assert hub.streams_count == 3
    assert not drain.noticed
    assert drain.begin(delay=False) is running
    await running
    assert hub.streams_count == 0
    assert handed == ["over"]
    assert drain.done


async def test_the_port_is_closed_after_the_delay_and_before_the_first_stream_ends() -> None:
    hub = hub_with(2)
    drain = drain_of(hub)
    counts: list[int] = []
    drain.port_closes = lambda: counts.append(hub.streams_count)
    await drain.begin()
    assert counts == [2]


async def test_every_stream_is_told_and_comes_back_at_a_time_of_its_own() -> None:
    hub = hub_with(50)
    streams = list(hub.streams)
    await drain_of(hub).begin()
    retries = set()
    for stream in streams:
        assert stream.state is StreamState.ENDED
        blocks = [parse_block(block) for block in stream.take().split(b"\n\n") if block]
        assert blocks[-1].data == {"reason": "draining"}
        retries.update(block.retry for block in blocks if block.retry is not None)
    assert len(retries) > 25
    assert all(COME_BACK[0] * 1000 <= retry <= COME_BACK[1] * 1000 for retry in retries)


async def test_streams_are_ended_in_groups_at_the_rate() -> None:
    hub = hub_with(100)
    drain = drain_of(hub, rate=400)  # 20 in each group
    loop = asyncio.get_running_loop()
    begun = loop.time()
    running = drain.begin()
    counts = [hub.streams_count]
    while not running.done():
        await asyncio.sleep(0)
        if hub.streams_count != counts[-1]:
            counts.append(hub.streams_count)
    assert counts == [100, 80, 60, 40, 20, 0]
    assert loop.time() - begun >= 0.19  # five groups have four pauses between them


async def test_a_slow_pace_is_kept_too() -> None:
    hub = hub_with(3)
    drain = drain_of(hub, rate=10)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.timeout(30):
        await drain.begin()
    assert loop.time() - begun >= 0.2  # three groups of one, two pauses


@pytest.mark.parametrize("rate", [100, 500, 1000])
def test_those_who_come_back_stay_below_the_pace_in_every_second(rate: int) -> None:
    """Whatever is drawn: groups as `Drain` makes them, their clients after the pause that each is told."""
    group = max(1, round(rate * GROUP_PAUSE))
    pause = group / (rate * MARGIN)
    pauses = Even(*COME_BACK)
    back = sorted((number // group) * pause + pauses.retry() / 1000 for number in range(5 * rate))
    fullest = max(bisect.bisect_left(back, moment + 1.0) - index for index, moment in enumerate(back))
    assert fullest <= rate


async def test_the_pace_is_forced_when_the_limit_is_near() -> None:
    hub = hub_with(2000)
    drain = drain_of(hub, rate=1, limit=0.5)
    running = drain.begin()
    async with asyncio.timeout(30):
        await running
    assert hub.streams_count == 0
    assert asyncio.get_running_loop().time() <= drain.deadline + 0.2


async def test_nobody_waits_where_nobody_was() -> None:
    drain = drain_of(make(), delay=60, asked_at=lambda: -math.inf)
    async with asyncio.timeout(30):
        await drain.begin()
    # Where somebody just asked, more may be on its way.
    loop = asyncio.get_running_loop()
    asked = drain_of(make(), delay=60, asked_at=loop.time)
    running = asked.begin()
    await asyncio.sleep(0)
    assert not running.done()
    asked.cut()
    await running


async def test_what_is_left_can_be_cut() -> None:
    hub = hub_with(100)
    drain = drain_of(hub, delay=60, rate=1)
    running = drain.begin()
    drain.cut()
    assert hub.streams_count == 0
    async with asyncio.timeout(30):
        await running
