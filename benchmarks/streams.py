"""What streams cost that get nothing, how fast new ones are opened, and how cost grows with their number."""

from __future__ import annotations

import resource
import statistics
import time

import psycopg

from benchmarks import fanout, servers
from benchmarks.fanout import Shape
from benchmarks.processes import Load
from benchmarks.servers import Server, token
from rowcast.testing.postgres import PostgresServer

SPARE = 300
"""Descriptors of a server that are no streams."""


def idle(runs: int, seconds: float) -> list[str]:
    """Resident memory of an idle stream."""
    lines = ["## Memory of an idle stream (the server's own; the kernel's buffers are not in it)", ""]
    lines += ["| server | kB with 1 topic | kB with 20 topics |", "|---|---|---|"]
    for kind in fanout.kinds():
        cells = []
        for shape in (Shape(5_000, 1_000, 1), Shape(5_000, 1_000, 20)):
            found = []
            for _ in range(runs):
                with kind() as server:
                    # The first streams bring in what all share: code, caches, the loop's buffers.
                    with Load([server.url], [server.request(0, [0])], 200, mark=server.mark):
                        time.sleep(1)
                        before = server.rss()
                        with fanout.opened(server, shape):
                            time.sleep(2)
                            found.append((server.rss() - before) / shape.streams / 1024)
            cells.append(f"{statistics.median(found):.1f}")
        lines.append(f"| {kind.name} | {' | '.join(cells)} |")
    return lines


def scale(runs: int, seconds: float) -> list[str]:
    """Idle streams over several processes: as many as 100,000, if descriptors allow."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = min(limit - SPARE, 19_000)
    count = -(-100_000 // each)
    processes: list[Server] = []
    loads: list[Load] = []
    began = time.monotonic()
    try:
        for number in range(count):
            server = servers.Rowcast()
            server.start()
            processes.append(server)
            wanted = min(each, 100_000 - number * each)
            lines = [server.request(n, [n % 1_000]) for n in range(wanted)]
            loads.append(Load([server.url], lines, wanted, mark=server.mark))
        opened, took = sum(load.ready["ready"] for load in loads), time.monotonic() - began
        memory = sum(server.rss() for server in processes)
        before = sum(server.cpu() for server in processes)
        time.sleep(seconds)
        used = (sum(server.cpu() for server in processes) - before) / seconds
        for load in loads:
            load.zero()
        for server in processes:
            server.publish(1_000, 1.0, topics=1_000)  # each topic once: each stream gets one event
        time.sleep(seconds + 3)
        events = sum(load.report()["events"] for load in loads)
    finally:
        for load in loads:
            load.stop()
        for server in processes:
            server.stop()
    return [
        f"## {opened:,} idle streams, {count} processes on one core",
        "",
        "| opened in s | RSS kB a stream, all in | CPU idle (heartbeats every 15 s) | streams that got their event |",
        "|---|---|---|---|",
        f"| {took:.0f} | {memory / opened / 1024:.1f} | {used:.1%} of a core | {events:,} |",
    ]


def connect(runs: int, seconds: float) -> list[str]:
    """New streams a second, until each said `rowcast.ready`."""
    streams = 4_000
    rows: dict[str, list[tuple[float, float]]] = {}
    for _ in range(runs):
        with servers.Rowcast() as server:
            lines = [server.request(n, [n % 100]) for n in range(streams)]
            for name in ("JWT check, topics from claims", "token seen before"):
                before = server.cpu()
                with Load([server.url], lines, streams, mark=server.mark) as load:
                    rows.setdefault(name, []).append((load.ready["seconds"], server.cpu() - before))
                time.sleep(1)
        with PostgresServer() as postgres, psycopg.connect(postgres.url(), autocommit=True) as admin:
            admin.execute("CREATE TABLE follows (user_id text, topic text, PRIMARY KEY (user_id, topic))")
            admin.execute(
                "INSERT INTO follows SELECT 'u' || n, ((n + k) %% 100)::text FROM generate_series(0, %s) n, "
                "generate_series(0, 2) k",
                [streams],
            )
            rule = '[{"table":"follows","user":"{user_id}","topics":["{topic}"]}]'
            with servers.Rowcast(
                BENCH_POSTGRES=postgres.url(), BENCH_LOG="postgres:", BENCH_SUBSCRIPTION=rule
            ) as server:
                lines = [f"/events {token(f'u{n}', None)}" for n in range(streams)]
                before = server.cpu()
                with Load([server.url], lines, streams, mark=server.mark) as load:
                    name = "JWT check, topics from rows of Postgres"
                    rows.setdefault(name, []).append((load.ready["seconds"], server.cpu() - before))
    out = [
        f"## New streams, {streams} at a time, one core",
        "",
        "| how | streams/s | CPU µs a stream | streams/s of CPU |",
    ]
    out.append("|---|---|---|---|")
    for name, figures in rows.items():
        wall, cpu = (statistics.median(column) for column in zip(*figures, strict=True))
        out.append(f"| {name} | {streams / wall:,.0f} | {cpu / streams * 1e6:.0f} | {streams / cpu:,.0f} |")
    return out


def growth(runs: int, seconds: float) -> list[str]:
    """CPU per delivery at more streams and more topics, 200,000 deliveries a second offered."""
    out = [
        "## How cost grows, 200,000 deliveries/s offered",
        "",
        "| streams | topics | topics each | CPU µs a delivery | p99 ms |",
    ]
    out.append("|---|---|---|---|---|")
    shapes = (
        Shape(1_000),
        Shape(5_000),
        Shape(19_000),
        Shape(5_000, 10, 2),
        Shape(5_000, 1_000, 20),
        Shape(5_000, 100_000, 20),
    )
    for shape in shapes:
        found = []
        for _ in range(runs):
            with servers.Rowcast() as server, fanout.opened(server, shape) as load:
                found.append(fanout.offer(server, load, shape, 200_000, seconds))
        cpu = statistics.median(run.cpu for run in found)
        late = statistics.median(run.p99 for run in found)
        out.append(f"| {shape.streams:,} | {shape.topics:,} | {shape.each} | {cpu:.2f} | {late:,.0f} |")
    return out
