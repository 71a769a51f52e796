"""The log on Redis: entries appended and tailed by one replica, against redis-py moving the same bytes.

The floor of appending is XADD of the same batches in pipelines of 16, that of tailing XREAD of the same items, thrown
away. A replica's tail is `RedisLog.tail` into a hub's `handle`, with nobody listening.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from redis.asyncio import Redis

from rowcast.core import codec
from rowcast.core.body import PublishBody
from rowcast.core.entry import Entry, Kind
from rowcast.core.position import MINOR_SPACING, Place
from rowcast.hub import Hub
from rowcast.logs.redis import RedisLog
from rowcast.logs.redis_store import STREAM, RedisStore
from rowcast.testing.valkey import ValkeyServer

BATCH = 512
"""Entries in an item, as the leader makes them under load."""

DATA = b'{"symbol":"AAPL","price":"187.4300","volume":1200,"at":"2026-11-24T12:00:00.000000Z"}'


def run(rows: int, runs: int) -> list[str]:
    """The table of this case."""
    count = rows // BATCH
    results: dict[str, list[tuple[float, float]]] = {}
    for number in range(runs + 1):
        measured = asyncio.run(_measure(count))
        if number:
            for name, figures in measured.items():
                results.setdefault(name, []).append(figures)
    entries = count * BATCH
    lines = [
        f"## The log on Valkey, {entries} entries in batches of {BATCH}",
        "",
        "| what | entries/s | × floor's time | CPU µs an entry |",
        "|---|---|---|---|",
    ]
    for name, figures in results.items():
        floors = results["XADD alone" if "append" in name or "XADD" in name else "XREAD alone"]
        wall = statistics.median(w for w, _ in figures)
        ratio = statistics.median(w / floor for (w, _), (floor, _) in zip(figures, floors, strict=True))
        cpu = statistics.median(c for _, c in figures) / entries * 1e6
        lines.append(f"| {name} | {entries / wall:,.0f} | {ratio:.2f} | {cpu:.2f} |")
    return lines


async def _measure(count: int) -> dict[str, tuple[float, float]]:
    batches = [_batch(number) for number in range(count)]
    encoded = [codec.encode(batch, 1 << 20) for batch in batches]
    with ValkeyServer() as server:
        redis = Redis(port=server.port, protocol=2, socket_read_size=1 << 18)
        store = RedisStore(server.url, block=0.1)

        async def xadd() -> None:
            for start in range(0, count, 16):
                async with redis.pipeline(transaction=False) as pipe:
                    for data in encoded[start : start + 16]:
                        pipe.xadd("floor", {"b": data})
                    await pipe.execute()

        async def xread() -> None:
            last = b"0"
            while found := await redis.xread({STREAM: last}, count=16):
                last = found[0][1][-1][0]

        async def append(*, encode: bool) -> None:
            await store.renew("", "a", (1, 0), "x")
            before: Place = (1, 0)
            for batch, data in zip(batches, encoded, strict=True):
                last = batch[-1].place
                data = codec.encode(batch, 1 << 20) if encode else data
                answer = await store.append("a", before, last, data, count=BATCH, now=time.time())
                assert answer.code == "OK", answer
                before = last

        async def tail() -> None:
            log = RedisLog(RedisStore(server.url, block=0.1), max_event=1 << 20, retention=1e6, max_bytes=1 << 40)
            hub = Hub(
                log,
                [],
                None,
                replica="bench",
                ring_bytes=128 << 20,
                max_event=1 << 20,
                max_streams=10,
                max_streams_per_user=10,
                heartbeat=15,
            )
            end = batches[-1][-1].place
            async for batch in log.tail():
                hub.handle(batch)
                if hub.head >= end:
                    break
            await log.close()

        results = {
            "XADD alone": await _timed(xadd),
            "append, encoded before": await _timed(lambda: append(encode=False)),
        }
        await redis.flushall()
        results["append"] = await _timed(lambda: append(encode=True))
        results["XREAD alone"] = await _timed(xread)
        results["tail and hub, nobody listens"] = await _timed(tail)
        await store.close()
        await redis.aclose()
    return results


def _batch(number: int) -> list[Entry]:
    return [
        Entry(
            Kind.DATA,
            (number + 2, (index + 1) * MINOR_SPACING),
            PublishBody(f"finance:S{(number * BATCH + index) % 1000}", DATA),
            topic=f"finance:S{(number * BATCH + index) % 1000}",
            xid=number,
            time=1_800_000_000_000_000,
        )
        for index in range(BATCH)
    ]


async def _timed(work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Wall and CPU seconds of this process."""
    cpu, started = time.process_time(), time.perf_counter()
    await work()
    return time.perf_counter() - started, time.process_time() - cpu
