"""The leader killed under load, again and again: every client gets what was committed, in that order, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rowcast.testing.replicas import Replicas

CLIENTS = 3
REPLICAS = 3


async def test_a_killed_leader_loses_and_doubles_nothing(drill: Any, follow: Any) -> None:
    """kill -9 at random moments, now and then the next one at once; clients come back to whichever replica there is."""
    kills = int(drill.number("ROWCAST_KILLS", 2))
    elected: list[float] = []
    resumed: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(drill.replicas(REPLICAS))
        clients = [
            await stack.enter_async_context(follow(replicas, drill.token("ann", ["items:x"]), first=first))
            for first in range(CLIENTS)
        ]
        for client in clients:
            await client.until(lambda: client.named("ready"))  # noqa: B023  # awaited at once
        async with drill.writing(), _replacing(replicas, kills - 1):
            while len(elected) < kills:
                leader = await replicas.leader()
                await asyncio.sleep(random.uniform(0, 0.5))
                killed = time.monotonic()
                replicas.kill(leader)
                written = drill.written
                await replicas.leader(other_than=leader)
                elected.append(time.monotonic() - killed)
                if len(replicas.alive) > 1 and len(elected) < kills and random.random() < 0.3:
                    continue  # whoever has just taken over goes next, perhaps before it has appended anything
                # What was written after the kill has come to everybody: sequences have no gap, so a count tells.
                for client in clients:
                    try:
                        await client.until(lambda: client.taken > written, timeout=60)  # noqa: B023  # awaited at once
                    except TimeoutError:
                        state = await drill.told(replicas, clients)
                        pytest.fail(f"kill {len(elected)}, {written} of {drill.written} were written:\n{state}")
                resumed.append(time.monotonic() - killed)
                async with asyncio.timeout(60):
                    while len(replicas.alive) < 2:
                        await asyncio.sleep(0.05)
        everything = drill.committed()
        for client in clients:
            await client.until(lambda: client.taken >= len(everything), timeout=60)  # noqa: B023  # awaited at once
            assert client.ids == everything
            assert not client.named("reset")
    print(f"{kills} leaders killed, {len(everything)} changes, {CLIENTS} clients, "
          f"{sum(client.connections for client in clients)} connections; "
          f"elected after {_figures(elected)}, delivered again after {_figures(resumed)}")  # fmt: skip
    print("take-overs, ms:", " ".join(f"{1000 * seconds:.0f}" for seconds in elected))
    # A leader that died on this host is noticed by its broken connection, not by wal_sender_timeout (10 s).
    assert max(elected) < 8.0


@contextlib.asynccontextmanager
async def _replacing(replicas: Replicas, count: int) -> AsyncIterator[None]:
    """Start up to `count` replicas for those that are killed, ahead of the need: a start takes seconds of CPU."""

    async def start() -> None:
        for _ in range(count):
            while len(replicas.alive) > REPLICAS:
                await asyncio.sleep(0.05)
            await replicas.add()

    starting = asyncio.create_task(start())
    try:
        yield
    finally:
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)


def _figures(seconds: list[float]) -> str:
    seconds = sorted(seconds)
    p50, p90 = (seconds[int(len(seconds) * share)] for share in (0.5, 0.9))
    return f"p50 {p50:.2f} s, p90 {p90:.2f} s, max {seconds[-1]:.2f} s"
