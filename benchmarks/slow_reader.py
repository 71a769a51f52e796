"""One client that reads a byte a second, among 5,000 on a busy topic of a conflated route.

The others' latency is measured with it and without it in turns, in one run; so is the server's memory. At last the slow
one reads on, and must end up with the newest row of every key.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import threading
import time

import psycopg

from benchmarks import processes, servers
from benchmarks.processes import Load
from benchmarks.servers import token
from benchmarks.writing import Writer
from rowcast.testing.postgres import PostgresServer

STREAMS = 5_000
KEYS = 50
RATE = 40
"""Changes a second: 200,000 deliveries."""

UPSERT = f"""INSERT INTO prices SELECT 's' || n % {KEYS}, n, t FROM new
ON CONFLICT (symbol) DO UPDATE SET n = EXCLUDED.n, t = EXCLUDED.t"""

FILLED = 3.0
"""Seconds until the buffers on the way to the slow client are full."""

LIMIT = 60.0
"""Seconds in which the slow one must have caught up when it reads on."""


class Sipping(threading.Thread):
    """The slow client. Read on, it keeps what it last heard of each key."""

    def __init__(self, url: str, request: str) -> None:
        super().__init__(daemon=True)
        path, bearer = request.split(" ")
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # the kernel must not read for it
        self._sock.connect((host, int(port)))
        self._sock.sendall(f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {bearer}\r\n\r\n".encode())
        self._reads_on = threading.Event()
        self._read = bytearray()
        self.rows: dict[str, int] = {}
        self.events = 0
        """How many events it was given."""

    def run(self) -> None:
        """Read a byte a second, until it is to read on."""
        while not self._reads_on.wait(1.0):
            self._read += self._sock.recv(1)
        with contextlib.suppress(OSError):
            while data := self._sock.recv(1 << 20):
                self._read += data
                *lines, rest = bytes(self._read).split(b"\n")
                self._read = bytearray(rest)
                for line in lines:
                    if line.startswith(b'data: {"topic":"hot"'):
                        record = json.loads(line.removeprefix(b"data: "))["record"]
                        self.rows[record["symbol"]] = record["n"]
                        self.events += 1

    def read_on(self) -> None:
        """Read as fast as it comes."""
        self._reads_on.set()

    def stop(self) -> None:
        """Go away."""
        self._sock.shutdown(socket.SHUT_RDWR)
        self.read_on()
        self.join()
        self._sock.close()


def run(runs: int, seconds: float) -> list[str]:
    """The others' p99 with and without the slow client, and what becomes of it."""
    os.sched_setaffinity(0, {processes.LOAD_CORE})
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer())
        admin = stack.enter_context(psycopg.connect(postgres.url(), autocommit=True))
        admin.execute("CREATE TABLE prices (symbol text PRIMARY KEY, n int8 NOT NULL, t text NOT NULL)")
        server = stack.enter_context(
            servers.Rowcast(
                BENCH_POSTGRES=postgres.url(),
                BENCH_LOG="postgres:",
                BENCH_ROUTE='[{"table":"prices","topic":"hot","conflate":true}]',
            )
        )
        lines = [f"/events {token(f'u{n}', ['hot'])}" for n in range(STREAMS)]
        load = stack.enter_context(Load([server.url], lines, STREAMS, mark=server.mark))
        writer = Writer(postgres.url(), RATE, UPSERT, "@0{due:016d}@", most=KEYS)
        writer.start()
        time.sleep(3)
        figures: list[tuple[float, float]] = []
        memory = [server.rss()]
        slow: Sipping | None = None
        for _ in range(max(runs, 3)):
            if slow is not None:
                slow.stop()
            without = _p99(load, seconds)
            slow = Sipping(server.url, lines[0])
            slow.start()
            time.sleep(FILLED)
            figures.append((without, _p99(load, seconds)))
            memory.append(server.rss())
        writer.stop()
        assert slow is not None
        slow.read_on()
        newest = dict(admin.execute("SELECT symbol, n FROM prices").fetchall())
        deadline = time.monotonic() + LIMIT
        while slow.rows != newest and time.monotonic() < deadline:
            time.sleep(0.05)
        outcome = (
            f"has the newest row of all {len(newest)} keys, of {slow.events:,} events"
            if slow.rows == newest
            else f"does NOT have the newest rows: {len(slow.rows.items() & newest.items())} of {len(newest)}"
        )
        slow.stop()
    ratio = statistics.median(with_it / without for without, with_it in figures)
    before, after = (statistics.median(column) for column in zip(*figures, strict=True))
    sizes = ", ".join(f"{size / 2**20:.1f}" for size in memory)
    return [
        f"## One client that reads a byte a second among {STREAMS:,}, {STREAMS * RATE:,} deliveries/s",
        "",
        "| others' p99 without it, ms | with it | ratio | RSS at first and after each window, MB | the slow one |",
        "|---|---|---|---|---|",
        f"| {before:.0f} | {after:.0f} | {ratio:.2f} | {sizes} | {outcome} |",
    ]


def _p99(load: Load, seconds: float) -> float:
    load.zero()
    time.sleep(seconds)
    p99: float = load.report()["groups"][0]["p99"] / 1e3
    return p99
