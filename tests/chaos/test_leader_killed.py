"""The leader killed under load, again and again: every client gets what was committed, in that order, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import Any

import pytest

CLIENTS = 3


async def test_a_killed_leader_loses_and_doubles_nothing(drill: Any, follow: Any) -> None:
    """kill -9 at random moments; a new replica for each. Clients come back to whichever replica there is."""
    kills = int(drill.number("ROWCAST_KILLS", 2))
    elected: list[float] = []
    resumed: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(drill.replicas(3))
        clients = [
            await stack.enter_async_context(follow(replicas, drill.token("ann", ["items:x"]), first=first))
            for first in range(CLIENTS)
        ]
        for client in clients:
            await client.until(lambda: client.named("ready"))  # noqa: B023  # awaited at once
        async with drill.writing():
            for _ in range(kills):
                leader = await replicas.leader()
                await asyncio.sleep(random.uniform(0, 0.5))
                killed = time.monotonic()
                replicas.kill(leader)
                written = drill.written
                await replicas.leader(other_than=leader)
                elected.append(time.monotonic() - killed)
                # What was written after the kill has come to everybody: sequences have no gap, so a count tells.
                for client in clients:
                    try:
                        await client.until(lambda: client.taken > written, timeout=60)  # noqa: B023  # awaited at once
                    except TimeoutError:
                        came = [(other.taken, other.named("reset")) for other in clients]
                        pytest.fail(f"kill {len(elected)}: {written} of {drill.written} were written; came: {came}")
                resumed.append(time.monotonic() - killed)
                await replicas.add()
        everything = drill.committed()
        for client in clients:
            await client.until(lambda: client.taken >= len(everything), timeout=60)  # noqa: B023  # awaited at once
            assert client.ids == everything
            assert not client.named("reset")
    print(f"{kills} leaders killed, {len(everything)} changes, {CLIENTS} clients, "
          f"{sum(client.connections for client in clients)} connections; "
          f"elected after {_figures(elected)}, delivered again after {_figures(resumed)}")  # fmt: skip
    print("take-overs, ms:", " ".join(f"{1000 * seconds:.0f}" for seconds in elected))
    # A leader that died on this host is noticed by its broken connection.
    assert max(elected) < 2.0


def _figures(seconds: list[float]) -> str:
    seconds = sorted(seconds)
    return f"p50 {seconds[len(seconds) // 2]:.2f} s, max {seconds[-1]:.2f} s"
