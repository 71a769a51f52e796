"""Latency: from COMMIT to the bytes at a client, 1,000 commits a second, against what Postgres itself offers.

The readers are measured one after the other, each alone on a core: a `pg_recvlogical` that writes to a pipe (the
floor), a connection that LISTENs while a trigger NOTIFYs, and `rowcast serve` with a stream, its log on Postgres and on
Valkey.
The writer (a process of its own, one commit at a time, at its due moments), Postgres and who reads the bytes share the
other core. Each row has the clock of its statement's execution in it, which is what the latency counts from; writer
and readers have the same clock.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import processes
from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.server import RowcastServer
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
[postgres]
url = "{url}"
slot = "{slot}"
[log]
url = "{log}"
[auth]
secret = "{secret}"
[[route]]
table = "ticks"
topic = "t"
deletes = false
"""
TABLES = """
CREATE TABLE ticks (id bigserial PRIMARY KEY, stamp text);
CREATE TABLE told (id bigserial PRIMARY KEY, stamp text);
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_notify('t', NEW.stamp); RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT ON told FOR EACH ROW EXECUTE FUNCTION tell();
"""
INSERT = "INSERT INTO {} (stamp) VALUES ('@' || (extract(epoch FROM clock_timestamp()) * 1000000)::bigint || '@')"
STAMP = re.compile(rb"@(\d+)@")
RATE = 1000
WARM = 500
"""Commits before those that count."""

FLOOR, NOTIFY = "pg_recvlogical, to a pipe", "LISTEN/NOTIFY, by a trigger"
OURS, REDIS = "rowcast serve, postgres: log", "rowcast serve, redis: log"


def run(seconds: float, runs: int) -> list[str]:
    """The table of this case."""
    count = round(RATE * seconds)
    p50: dict[str, list[float]] = {}
    p99: dict[str, list[float]] = {}
    for _ in range(runs):
        for name, latencies in measure(count).items():
            cuts = statistics.quantiles(latencies, n=100)
            p50.setdefault(name, []).append(cuts[49])
            p99.setdefault(name, []).append(cuts[98])
    lines = [f"## COMMIT to the client, {RATE:,} commits a second, {count:,} commits, {runs} runs", ""]
    lines += ["| reader | p50 ms | p99 ms | p50 × floor | p99 × floor |", "|---|---|---|---|---|"]
    for name in p50:
        cells = [f"{statistics.median(p50[name]):.2f}", f"{statistics.median(p99[name]):.2f}"]
        for figures in (p50, p99):
            ratios = [ours / floor for ours, floor in zip(figures[name], figures[FLOOR], strict=True)]
            cells.append(f"{statistics.median(ratios):.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def measure(count: int, names: tuple[str, ...] = (FLOOR, NOTIFY, OURS, REDIS)) -> dict[str, list[float]]:
    """Milliseconds of each commit, by reader."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processes.LOAD_CORE})
    try:
        with PostgresServer() as server, ValkeyServer() as valkey, psycopg.connect(server.url()) as admin:
            admin.autocommit = True
            admin.execute(TABLES)
            admin.execute("CREATE PUBLICATION rowcast FOR TABLE ticks")
            found = {}
            for name in names:
                if name == FLOOR:
                    with _recvlogical(server, admin) as reader:
                        found[name] = _latencies(reader, server.url(), "ticks", count)
                elif name == NOTIFY:
                    with _listening(server) as reader:
                        found[name] = _latencies(reader, server.url(), "told", count)
                else:
                    log, slot = (valkey.url, "rowcast_redis") if name == REDIS else ("postgres:", "rowcast")
                    with _stream(CONFIG.format(url=server.url(), slot=slot, log=log, secret=SECRET)) as reader:
                        found[name] = _latencies(reader, server.url(), "ticks", count)
            return found
    finally:
        os.sched_setaffinity(0, everywhere)


class _Reader:
    """What a reader is to this case: something to wait for, and something that then gives bytes."""

    def __init__(self, descriptor: int, read: Callable[[], bytes]) -> None:
        self.descriptor = descriptor
        self.read = read


def _latencies(reader: _Reader, url: str, table: str, count: int) -> list[float]:
    """Write, and read until everything is here. Raises RuntimeError when nothing came for 20 s."""
    writer = subprocess.Popen([sys.executable, "-m", __name__, url, table, str(count + WARM)], env=os.environ)
    latencies: list[float] = []
    rest = b""
    try:
        while len(latencies) < count + WARM:
            if not select.select([reader.descriptor], [], [], 20)[0]:
                raise RuntimeError(f"{len(latencies)} of {count + WARM} commits came")
            data = rest + reader.read()
            now = time.time_ns() / 1e6
            at = 0
            for match in STAMP.finditer(data):
                latencies.append(now - int(match[1]) / 1e3)
                at = match.end()
            rest = data[at:][-40:]
    finally:
        writer.terminate()
        writer.wait(30)
    return latencies[WARM:]


@contextmanager
def _recvlogical(server: PostgresServer, admin: psycopg.Connection[Any]) -> Iterator[_Reader]:
    admin.execute("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')")
    process = processes.pinned(
        processes.SERVER_CORE,
        [str(server.program("pg_recvlogical")), "-d", server.url(), "-S", "floor", "--start", "-f", "-"]
        + ["-o", "proto_version=2", "-o", "publication_names=rowcast", "--fsync-interval=0"],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    try:
        yield _Reader(pipe, lambda: os.read(pipe, 1 << 16))
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()
    while admin.execute("SELECT 1 FROM pg_replication_slots WHERE active").fetchone():
        time.sleep(0.02)
    admin.execute("SELECT pg_drop_replication_slot('floor')")


@contextmanager
def _listening(server: PostgresServer) -> Iterator[_Reader]:
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute("LISTEN t")
        pg = connection.pgconn

        def read() -> bytes:
            pg.consume_input()
            found = []
            while notification := pg.notifies():
                found.append(notification.extra)
            return b"".join(found)

        yield _Reader(pg.socket, read)


@contextmanager
def _stream(config: str) -> Iterator[_Reader]:
    with RowcastServer(config) as replica:
        for task in Path(f"/proc/{replica.pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {processes.SERVER_CORE})
        token = mint(Config.from_sections({"auth": SECRET}), "ann", topics=["t"])
        host, _, port = replica.url.removeprefix("http://").rpartition(":")
        with contextlib.closing(socket.create_connection((host, int(port)), timeout=20)) as sock:
            sock.sendall(f"GET /events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
            head = b""
            while b"rowcast.ready" not in head or not head.endswith(b"\n\n"):
                head += sock.recv(1 << 16)
            yield _Reader(sock.fileno(), lambda: sock.recv(1 << 16))


def write(url: str, table: str, count: int) -> None:
    """The writer: one commit at each due moment, or as soon after it as the one before is done."""
    with psycopg.connect(url, autocommit=True) as connection:
        statement = INSERT.format(table).encode()
        begin = time.perf_counter()
        for number in range(count):
            while (left := begin + number / RATE - time.perf_counter()) > 0:
                time.sleep(left)
            connection.execute(statement)


if __name__ == "__main__":
    write(sys.argv[1], sys.argv[2], int(sys.argv[3]))
