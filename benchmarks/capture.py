"""Capture: how fast one replica reads the WAL, against `pg_recvlogical` reading the same WAL into nothing.

Every reader is measured in the same way: it is connected and has read everything, its walsender is stopped (SIGSTOP),
the rows are inserted, and the clock runs from when the walsender goes on (SIGCONT) until the reader has the last row.
So nobody's start is counted, and no reader waits for the one who inserts. The reader has one core to itself, Postgres
and, with a redis log, Valkey share the other. A redis log's figures are of one replica that leads and tails.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import psycopg
import uvloop

from benchmarks import processes
from rowcast import Rowcast
from rowcast.core.grants import Grant
from rowcast.core.stream import Stream
from rowcast.serve import GC_THRESHOLDS
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.valkey import ValkeyServer

SECRET = "0123456789abcdef0123456789abcdef"
TABLE = """
CREATE TABLE ticks (id bigserial PRIMARY KEY, symbol text NOT NULL, price numeric NOT NULL, volume int NOT NULL,
                    at timestamptz NOT NULL DEFAULT now(), note text)
"""
FILL = """
CREATE PROCEDURE fill(first int, count int, each int) LANGUAGE plpgsql AS $$
BEGIN
    FOR part IN 0 .. count / each - 1 LOOP
        INSERT INTO ticks (symbol, price, volume, note)
        SELECT 'S' || n % 1000, round((n % 9973) / 100.0, 2), n, 'x'
        FROM generate_series(first + part * each, first + part * each + each - 1) n;
        COMMIT;
    END LOOP;
END $$
"""
EACH = 100
"""Rows of a transaction."""

LOGS = ("memory:", "postgres:", "redis:")
STREAMS = 10


class Figure(NamedTuple):
    """Of one reader, for all rows: seconds by the clock, and of its CPU."""

    wall: float
    cpu: float


def run(rows: int, runs: int) -> list[str]:
    """The table of this case."""
    gc.set_threshold(*GC_THRESHOLDS)  # as `rowcast serve` does
    rows = rows // EACH * EACH
    results: dict[str, list[Figure]] = {}
    for number in range(runs + 1):
        for name, figure in measure(rows).items():
            if number:
                results.setdefault(name, []).append(figure)
    lines = [
        f"## Capture of {rows:,} rows of six columns, {EACH} to a transaction",
        "",
        "| reader | changes/s | × floor's time | CPU µs a change |",
        "|---|---|---|---|",
    ]
    floors = [figure.wall for figure in results[FLOOR]]
    for name, figures in results.items():
        wall = statistics.median(figure.wall for figure in figures)
        ratio = statistics.median(figure.wall / floor for figure, floor in zip(figures, floors, strict=True))
        cpu = statistics.median(figure.cpu for figure in figures) / rows * 1e6
        lines.append(f"| {name} | {rows / wall:,.0f} | {ratio:.2f} | {cpu:.2f} |")
    return lines


FLOOR = "pg_recvlogical"


def measure(rows: int, logs: tuple[str, ...] = LOGS, listening: tuple[bool, ...] = (False, True)) -> dict[str, Figure]:
    """One run of every reader."""
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {processes.LOAD_CORE})
    try:
        with PostgresServer() as server, ValkeyServer() as valkey, psycopg.connect(server.url()) as admin:
            admin.autocommit = True
            admin.execute(TABLE)
            admin.execute(FILL)
            os.sched_setaffinity(0, {processes.SERVER_CORE})
            results = {}
            for log in logs:
                for listens in listening:
                    name = f"{log} {'all' if listens else 'nobody'} listening"
                    url = valkey.url if log == "redis:" else log
                    with valkey.client() as client:
                        client.flushall()
                    results[name] = uvloop.run(_replica(server, admin, url, rows, listens))
            # Last: before, there is no publication.
            return {FLOOR: _floor(server, admin, rows), **results}
    finally:
        os.sched_setaffinity(0, everywhere)


async def _replica(
    server: PostgresServer, admin: psycopg.Connection[Any], log: str, rows: int, listens: bool
) -> Figure:
    # A slot of its own: there is nothing to be read at the start.
    slot = f"bench_{log.partition(':')[0]}_{int(listens)}"
    cast = Rowcast(
        postgres={"url": server.url(), "wal_sender_timeout": "60s", "slot": slot},
        log=log,
        auth=SECRET,
        route=[{"table": "ticks", "topic": "finance:{symbol}", "deletes": False}],
    )
    async with cast.lifespan():
        if listens:
            part = 1000 // STREAMS
            for number in range(STREAMS):
                _Client().open(cast, frozenset(f"finance:S{number * part + n}" for n in range(part)), f"u{number}")
        await cast.hub.passed(await cast.log.head())
        with _held(admin):
            await asyncio.to_thread(admin.execute, "CALL fill(%s, %s, %s)", [0, rows, EACH])
            end = await cast.log.head()
            before, began = time.process_time(), time.perf_counter()
        await cast.hub.passed(end)
        figure = Figure(time.perf_counter() - began, time.process_time() - before)
        taken = cast.hub.deliveries
        assert taken == (rows if listens else 0), f"{taken} of {rows} rows were delivered"
    return figure


class _Client:
    """A stream whose client takes everything at once."""

    def open(self, cast: Rowcast, topics: frozenset[str], user: str) -> None:
        self._stream: Stream | None = None
        self._stream = cast.hub.connect(Grant(user, topics), self._wake)

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.take()


@contextmanager
def _held(admin: psycopg.Connection[Any]) -> Iterator[None]:
    """Within, the only walsender stands still."""
    found = admin.execute("SELECT pid FROM pg_stat_replication").fetchall()
    assert len(found) == 1, f"{len(found)} walsenders"
    os.kill(found[0][0], signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(found[0][0], signal.SIGCONT)


def _floor(server: PostgresServer, admin: psycopg.Connection[Any], rows: int) -> Figure:
    admin.execute("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')")
    # Where it is to end is not known before the rows are there: it ends when it is told to, and says what it has.
    reader = subprocess.Popen(
        [str(server.program("pg_recvlogical")), "-d", server.url(), "-S", "floor", "--start", "-f", "/dev/null"]
        + ["-o", "proto_version=2", "-o", "publication_names=rowcast", "--status-interval=1"],
    )
    try:
        while not admin.execute("SELECT 1 FROM pg_stat_replication WHERE state = 'streaming'").fetchone():
            time.sleep(0.02)
        with _held(admin):
            admin.execute("CALL fill(%s, %s, %s)", [0, rows, EACH])
            end = admin.execute("SELECT pg_logical_emit_message(true, 'end', '')::text").fetchone()
            assert end is not None
            before, began = processes.cpu(reader.pid), time.perf_counter()
        while not admin.execute(
            "SELECT 1 FROM pg_stat_replication WHERE sent_lsn > %s::pg_lsn", [str(end[0])]
        ).fetchone():
            time.sleep(0.005)
        wall = time.perf_counter() - began
        return Figure(wall, processes.cpu(reader.pid) - before)
    finally:
        reader.terminate()
        reader.wait(30)
