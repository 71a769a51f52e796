"""What streams cost that get nothing, how fast new ones are opened, and how cost grows with their number."""

from __future__ import annotations

import resource
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg

from benchmarks import fanout, servers
from benchmarks.fanout import Shape
from benchmarks.processes import Load
from benchmarks.servers import Server, token
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.valkey import ValkeyServer

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
    """Idle streams over several processes: as many as 100,000, if descriptors allow; then one event to all of them.

    Each process has its port, so that its connections have all of a client's ports to themselves.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    each = min(limit - SPARE, 19_000)
    count = -(-100_000 // each)
    replicas: list[Server] = []
    loads: list[Load] = []
    began = time.monotonic()
    try:
        for number in range(count):
            server = servers.Rowcast()
            server.start()
            replicas.append(server)
            wanted = min(each, 100_000 - number * each)
            lines = [server.request(n, [0, 1 + n % 1_000]) for n in range(wanted)]
            loads.append(Load([server.url], lines, wanted, mark=server.mark))
        opened, took = sum(load.ready["ready"] for load in loads), time.monotonic() - began
        memory = sum(server.rss() for server in replicas)
        before = sum(server.cpu() for server in replicas)
        time.sleep(seconds)
        used = (sum(server.cpu() for server in replicas) - before) / seconds
        last, got, event_cpu = [], [], []
        for _ in range(3):
            for load in loads:
                load.zero()
            before = sum(server.cpu() for server in replicas)
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(lambda server: server.publish(2, 0.5, now=True), replicas))
            time.sleep(seconds + 3)
            reports = [load.report() for load in loads]
            got.append(sum(report["events"] for report in reports))
            last.append(max(report["groups"][0]["max"] for report in reports) / 1e6)
            event_cpu.append((sum(server.cpu() for server in replicas) - before) / got[-1] * 1e6)
        alive = sum(load.report()["ended"] for load in loads)
    finally:
        for load in loads:
            load.stop()
        for server in replicas:
            server.stop()
    return [
        f"## {opened:,} idle streams of two topics, {count} processes on one core",
        "",
        (
            "| opened in s | RSS kB a stream, all in | CPU idle (heartbeats every 15 s) "
            "| one event: streams that got it | s to the last | CPU µs a delivery | streams that ended |"
        ),
        "|---|---|---|---|---|---|---|",
        (
            f"| {took:.0f} | {memory / opened / 1024:.1f} | {used:.1%} of a core | {min(got):,} "
            f"| {statistics.median(last):.2f} | {statistics.median(event_cpu):.1f} | {alive} |"
        ),
    ]


def workers(runs: int, seconds: float) -> list[str]:
    """CPU per delivery with one worker and with two, on a shared log; all of them on one core."""
    shape = Shape()
    out = [
        "## Workers, one topic, 5,000 streams, 250,000 deliveries/s offered, log on Valkey",
        "",
        "| workers | CPU µs a delivery, all workers | p50 ms | p99 ms | all came |",
        "|---|---|---|---|---|",
    ]
    for count in (1, 2):
        found = []
        for _ in range(runs):
            with ValkeyServer() as valkey, servers.Rowcast(count, BENCH_LOG=valkey.url) as server:
                with fanout.opened(server, shape) as load:
                    fanout.offer(server, load, shape, 50_000, 1.0)
                    found.append(fanout.offer(server, load, shape, 250_000, seconds))
        found.sort(key=lambda run: run.cpu)
        run = found[len(found) // 2]
        out.append(f"| {count} | {run.cpu:.2f} | {run.p50:.0f} | {run.p99:.0f} | {run.complete:.1%} |")
    return out


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
    """CPU per delivery at more streams and more topics: rarely, each event a write of its own, and often."""
    shapes = (
        (Shape(1_000), 0),
        (Shape(5_000), 0),
        (Shape(19_000), 0),
        (Shape(5_000, 10, 2), 0),
        (Shape(5_000, 1_000, 20), 0),
        (Shape(5_000, 1_000, 20), 20),
    )
    out = []
    for each, what in ((4.0, "each delivery a write of its own"), (40.0, "frames merge where there is load")):
        out += [
            f"## How cost grows: {each:g} events a second for each stream, so {what}",
            "",
            "| streams | topics with events | of each stream | topics in all | CPU µs a delivery | p99 ms |",
            "|---|---|---|---|---|---|",
        ]
        for shape, own in shapes:
            found = [_grown(shape, own, each, seconds) for _ in range(runs)]
            cpu = statistics.median(run.cpu for run in found)
            late = statistics.median(run.p99 for run in found)
            topics = shape.topics + own * shape.streams
            out.append(
                f"| {shape.streams:,} | {shape.topics:,} | {shape.each} | {topics:,} | {cpu:.2f} | {late:,.0f} |"
            )
        out.append("")
    return out


def _grown(shape: Shape, own: int, each: float, seconds: float) -> fanout.Run:
    """So many events a second for each stream, which has `own` topics besides that get none."""
    with servers.Rowcast() as server:
        lines = [
            server.request(n, [*shape.topics_of(n), *(shape.topics + n * own + k for k in range(own))])
            for n in range(shape.streams)
        ]
        with fanout.settled(server, lines) as load:
            fanout.offer(server, load, shape, 10.0 * shape.streams, 1.0)
            return fanout.offer(server, load, shape, each * shape.streams, seconds)
