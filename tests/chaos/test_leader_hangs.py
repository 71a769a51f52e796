"""A leader that hangs: its connections stay open, and nothing comes. Another takes over; and it wakes up again."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from typing import Any

TIMEOUT = 2.0
"""Seconds of `wal_sender_timeout`: the shortest that may be configured."""


async def test_a_leader_that_hangs_is_replaced_and_does_no_harm_when_it_wakes_up(drill: Any, follow: Any) -> None:
    """SIGSTOP. What it still has in hand when it goes on is in the log already, and nobody sees it twice."""
    drill.text = drill.text.replace("\n[log]", f'wal_sender_timeout = "{TIMEOUT:g}s"\n\n[log]')
    hangs = int(drill.number("ROWCAST_HANGS", 1))
    took: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(drill.replicas(3))
        clients = {
            server: await stack.enter_async_context(
                follow(replicas, drill.token("ann", ["items:x"]), first=at, sticky=True)
            )
            for at, server in enumerate(replicas.alive)
        }
        for client in clients.values():
            await client.until(lambda: client.named("ready"))  # noqa: B023  # awaited at once
        epoch = (await _heads(drill))["inc"]
        async with drill.writing():
            for _ in range(hangs):
                leader = await replicas.leader()
                await asyncio.sleep(random.uniform(0, 0.5))
                stopped = time.monotonic()
                leader.send(signal.SIGSTOP)
                await replicas.leader(other_than=leader)
                took.append(time.monotonic() - stopped)
                written = drill.written
                for server, client in clients.items():
                    if server is not leader:
                        await client.until(lambda: client.taken > written)  # noqa: B023  # awaited at once
                leader.send(signal.SIGCONT)
                written = drill.written
                # It finds out by itself, and gives its own streams what the other one appended.
                for client in clients.values():
                    await client.until(lambda: client.taken > written)  # noqa: B023  # awaited at once
        everything = drill.committed()
        for client in clients.values():
            await client.until(lambda: client.taken >= len(everything))  # noqa: B023  # awaited at once
            assert client.ids == everything
            assert not client.named("reset")
        assert (await _heads(drill))["inc"] == epoch
    print(f"{hangs} leaders hung with a wal_sender_timeout of {TIMEOUT:g} s, {len(everything)} changes; replaced after "
          f"{' '.join(f'{seconds:.1f}' for seconds in sorted(took))} s")  # fmt: skip
    # The server looks at its timeouts now and then, the candidates every half second.
    assert max(took) < 2 * TIMEOUT + 20


async def _heads(drill: Any) -> dict[str, str]:
    with drill.redis.client() as client:
        return {name.decode(): value.decode() for name, value in client.hgetall("{rowcast:log}:head").items()}
