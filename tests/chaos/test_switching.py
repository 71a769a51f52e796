"""A channel switched on one replica takes effect on the stream of another, at once and without a reconnect."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import psycopg

from rowcast.testing.valkey import ValkeyServer


async def test_the_next_event_of_a_new_topic_arrives_and_of_a_removed_one_does_not(
    make_drill: Any, follow: Any, database: str, redis_server: ValkeyServer
) -> None:
    """A stream on one replica, a PUT on another, an insert: for each of the pairs of four replicas in turn."""
    drill = make_drill(database, redis_server)
    rounds = int(drill.number("ROWCAST_ROUNDS", 12))
    took: list[float] = []
    async with contextlib.AsyncExitStack() as stack:
        replicas = await stack.enter_async_context(drill.replicas(4))
        connection = await stack.enter_async_context(await psycopg.AsyncConnection.connect(database, autocommit=True))
        streams, clients = [], []
        for at, url in enumerate(replicas.urls):
            stream = follow(replicas, drill.token("ann"), first=at, sticky=True)
            streams.append(await stack.enter_async_context(stream))
            clients.append(await stack.enter_async_context(drill.client(url, "ann")))
            await stream.until(lambda: stream.named("ready"))  # noqa: B023  # awaited at once
            assert stream.named("ready")[0]["replica"] == f"r{at + 1}"
        expected: list[int] = []
        inserted = 0
        for turn in range(rounds):
            # Whose stream is timed, and who is asked: never the same.
            watched, asked = streams[turn % 4], (turn + 1 + turn // 4 % 3) % 4
            for kind in ("x", "y"):
                told = len(watched.service)
                started = time.perf_counter()
                answer = await clients[asked].put("/users/me/channels/items", json={"config": {"kinds": [kind]}})
                assert answer.status_code in (200, 201)
                assert answer.headers["x-rowcast-replica"] == f"r{asked + 1}"
                await watched.until(lambda: len(watched.service) > told)  # noqa: B023  # awaited at once
                took.append(time.perf_counter() - started)
                await connection.execute("INSERT INTO items (kind) VALUES ('x'), ('y')")
                inserted += 2
                expected.append(inserted - (kind == "x"))
                for stream in streams:
                    await stream.until(lambda: stream.taken >= len(expected))  # noqa: B023  # awaited at once
        for stream in streams:
            assert list(stream.ids) == expected
            assert stream.connections == 1
            events = [block.event for block in stream.service]
            assert events == ["rowcast.ready"] + ["rowcast.subscriptions"] * len(took)
    took.sort()
    figures = ", ".join(
        f"{name} {1000 * took[min(len(took) - 1, int(len(took) * share))]:.1f}"
        for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
    )
    print(f"{redis_server.program.name}: PUT to effect on another replica, {len(took)} switches: {figures} ms")
