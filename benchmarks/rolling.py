"""A rollout under load: replicas behind a real proxy are replaced one after another, as Kubernetes does it with
maxUnavailable 0 and maxSurge 1, while thousands of EventSources follow and changes are written.

What every stream gets is checked: the numbers 1, 2, 3, … of its topic, whole and in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg

from benchmarks.processes import Follow
from benchmarks.servers import SECRET, token
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.proxies import Caddy, Nginx, Proxy
from rowcast.testing.rollout import Caller, Deployment
from rowcast.testing.valkey import ValkeyServer

PROXIES: dict[str, type[Proxy]] = {"caddy": Caddy, "nginx": Nginx}
TOPICS = 1_000
"""So that a stream gets an event a second, as each of 5,000 people does of what concerns few of them."""
RATE = 1_000
"""Changes per second, one topic after another."""

ROWS = 10
"""Rows in a transaction, at least: what is due by then."""

PACE = 500
"""`[server] drain_rate` of the drain case, in streams per second."""

CONFIG = """
[server]
drain_rate = {pace}
[postgres]
url = "{database}"
[log]
url = "{log}"
[auth]
secret = "{secret}"
[[route]]
table = "ticks"
topic = "{{topic}}"
"""
ENVIRONMENT = {"ROWCAST_SERVER_DRAIN_DELAY": "5s"}
"""The default, which tests' own replicas don't have."""


@dataclass
class Stage:
    """Postgres, Valkey, replicas, a proxy, the streams."""

    database: str
    deployment: Deployment
    proxy: Proxy
    follow: Follow
    asking: httpx.AsyncClient

    async def routed(self) -> None:
        """Until the proxy sends to every replica."""
        await self.deployment.sends_to_all(self.asking)

    async def report(self) -> dict[str, Any]:
        """What the streams have counted."""
        return await asyncio.to_thread(self.follow.report)


@contextlib.asynccontextmanager
async def stage(kind: type[Proxy], replicas: int, streams: int, *, pace: int) -> AsyncIterator[Stage]:
    """All of it, started, and every stream open."""
    with PostgresServer() as postgres, ValkeyServer() as valkey:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute(
                "CREATE TABLE ticks (id bigserial PRIMARY KEY, topic text NOT NULL, stamp text NOT NULL)"
            )
        config = CONFIG.format(pace=pace, database=postgres.url(), log=valkey.url, secret=SECRET)
        async with Deployment(config, replicas, environment=ENVIRONMENT) as deployment:
            proxy = Caddy(deployment.upstreams, interval=1.0) if kind is Caddy else kind(deployment.upstreams)
            with proxy:
                lines = [f"/events {token(f'u{number}', [f't{number % TOPICS}'])}" for number in range(streams)]
                async with httpx.AsyncClient(base_url=proxy.url, timeout=60) as asking:
                    await deployment.sends_to_all(asking)
                    follow = await asyncio.to_thread(Follow, [proxy.url], lines, streams, core=None)
                    with follow:
                        yield Stage(postgres.url(), deployment, proxy, follow, asking)


@contextlib.asynccontextmanager
async def written(database: str) -> AsyncIterator[None]:
    """Changes are written by another process meanwhile; at the end each topic has had the same number."""
    command = [sys.executable, "-m", "benchmarks.rolling", database]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE)
    try:
        yield
    finally:
        assert writer.stdin is not None
        writer.stdin.close()
        assert await asyncio.to_thread(writer.wait, 60) == 0


async def settled(on: Stage, count: int) -> dict[str, Any]:
    """The report, once every stream has the last number, or misses some of it for good."""
    for _ in range(120):
        report = await on.report()
        if report["least"] == count or report["lost"]:
            break
        await asyncio.sleep(0.5)
    return report


def total(database: str) -> tuple[int, int]:
    """How many changes were written, and how many of each topic."""
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*), count(DISTINCT topic) FROM ticks").fetchone()
    assert row is not None
    return row[0], row[0] // max(row[1], 1)


def run(rounds: int, proxies: list[str], *, quick: bool) -> list[str]:
    """Replace all of four replicas, `rounds` times, behind each proxy."""
    streams, replicas = (200, 2) if quick else (5_000, 4)
    columns = (
        "proxy | changes | events | lost | doubled | resets | closed for a browser | API calls, failed | moves | p50 ms"
        " | p99 ms | longest gap ms: median client, p99, any | away ms p50, p99, max | most back in a second"
    )
    return [
        f"## {replicas} replicas replaced {rounds} times, {streams:,} streams, {RATE:,} changes/s ({ROWS} at a time)",
        "",
        *_table(
            columns, [asyncio.run(_roll(kind, replicas, streams, rounds)) for kind in map(PROXIES.__getitem__, proxies)]
        ),
    ]


async def _roll(kind: type[Proxy], replicas: int, streams: int, rounds: int) -> str:
    async with stage(kind, replicas, streams, pace=1_000) as on:
        on.follow.zero()
        caller = Caller(on.proxy.url, token("caller", []))
        async with written(on.database), caller.calling():
            await asyncio.sleep(3)
            for number in range(rounds):
                began = time.monotonic()
                await on.deployment.roll(
                    on.routed, ended=lambda _: print(f"{time.monotonic():.0f} s: next", flush=True)
                )
                print(f"({kind.__name__}, round {number + 1}: {time.monotonic() - began:.0f} s)", flush=True)
        changes, each = total(on.database)
        report = await settled(on, each)
    failed = sum(status not in (201, 204) for status in caller.statuses)
    whole = report["lost"] == report["doubled"] == 0 and report["least"] == report["most"] == each
    latency, gap, away = report["latency"], report["gap"], report["away"]
    print(report, flush=True)
    return (
        f"| {kind.__name__} | {changes:,} | {report['events']:,}{'' if whole else ' (not whole)'} | {report['lost']}"
        f" | {report['doubled']} | {report['resets']} | {report['closed']} | {len(caller.statuses):,}, {failed}"
        f" | {report['reconnects']:,} | {_ms(latency['p50'])} | {_ms(latency['p99'])}"
        f" | {_ms(gap['p50'])}, {_ms(gap['p99'])}, {_ms(gap['max'])}"
        f" | {_ms(away['p50'])}, {_ms(away['p99'])}, {_ms(away['max'])} | {report['busiest_second']:,} |"
    )


def drained(proxies: list[str], *, quick: bool) -> list[str]:
    """One replica with all streams is drained into another."""
    streams = 500 if quick else 5_000
    columns = (
        "proxy | `drain_rate` | took s | most back in a second | lost | doubled | closed for a browser"
        " | away ms p50, p99, max"
    )
    return [
        f"## {streams:,} streams drained from one replica to another, {RATE:,} changes/s",
        "",
        *_table(columns, [asyncio.run(_drain(PROXIES[name], streams)) for name in proxies]),
    ]


async def _drain(kind: type[Proxy], streams: int) -> str:
    async with stage(kind, 1, streams, pace=PACE) as on:
        on.follow.zero()
        async with written(on.database):
            old = on.deployment.alive[0]
            await on.deployment.add()
            await on.routed()
            began = time.monotonic()
            await on.deployment.end(old)
            took = time.monotonic() - began
            await asyncio.sleep(3)
        _, each = total(on.database)
        report = await settled(on, each)
    away = report["away"]
    print(report, flush=True)
    return (
        f"| {kind.__name__} | {PACE} | {took:.1f} | {report['busiest_second']:,} | {report['lost']}"
        f" | {report['doubled']} | {report['closed']} | {_ms(away['p50'])}, {_ms(away['p99'])}, {_ms(away['max'])} |"
    )


def _table(columns: str, rows: list[str]) -> list[str]:
    return [f"| {columns} |", "|---" * (columns.count(" | ") + 1) + "|", *rows]


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:,.0f}"


def write(database: str) -> None:
    """The writer: `RATE` changes a second, topic after topic, until the input ends; then the round is made whole."""
    stop = asyncio.Event()

    async def stay() -> None:
        await asyncio.to_thread(sys.stdin.read)
        stop.set()

    async def run() -> None:
        ending = asyncio.create_task(stay())
        number, began = 0, time.monotonic()
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            while not (stop.is_set() and number % TOPICS == 0):
                await asyncio.sleep(max(0.0, began + (number + ROWS) / RATE - time.monotonic()))
                # All that is due by now, but no more than the round.
                until = min(int((time.monotonic() - began) * RATE), number - number % TOPICS + TOPICS)
                rows = [
                    (f"t{n % TOPICS}", f"@{round((began + n / RATE) * 1e6):016d}{n // TOPICS + 1:08d}@")
                    for n in range(number, until)
                ]
                await connection.execute(
                    "INSERT INTO ticks (topic, stamp) SELECT * FROM unnest(%s::text[], %s::text[])",
                    [[topic for topic, _ in rows], [stamp for _, stamp in rows]],
                )
                number = until
        await ending

    asyncio.run(run())


if __name__ == "__main__":
    write(sys.argv[1])
