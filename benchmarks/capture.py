"""Capture: how fast one replica reads the WAL, against `pg_recvlogical` reading the same WAL into nothing.

Rows are inserted while nobody reads. Then the floor reads them through a slot of its own, and a replica reads
them from its anchor when it starts. Both ask for the same publication, of a table with six columns.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import subprocess
import time
from collections.abc import Callable

import psycopg

from rowcast import Rowcast
from rowcast.core.grants import Grant
from rowcast.core.stream import Stream
from rowcast.serve import GC_THRESHOLDS
from rowcast.testing.postgres import PostgresServer

SECRET = "0123456789abcdef0123456789abcdef"
TABLE = """
CREATE TABLE ticks (id bigserial PRIMARY KEY, symbol text NOT NULL, price numeric NOT NULL, volume int NOT NULL,
                    at timestamptz NOT NULL DEFAULT now(), note text)
"""
INSERT = """
INSERT INTO ticks (symbol, price, volume, note)
SELECT 'S' || n %% 1000, (n %% 9973) / 100.0, n, 'x' FROM generate_series(1, %s) n
"""


def run(rows: int, runs: int) -> list[str]:
    """The table of this case."""
    gc.set_threshold(*GC_THRESHOLDS)  # as `rowcast serve` does
    results: dict[str, list[tuple[float, float]]] = {"pg_recvlogical": [], "nobody listens": [], "all listened to": []}
    for number in range(runs + 1):
        measured = _measure(rows)
        if number:
            for name, figures in measured.items():
                results[name].append(figures)
    lines = [
        f"## Capture of {rows} rows",
        "",
        "| reader | changes/s | × floor's time | CPU µs a change |",
        "|---|---|---|---|",
    ]
    floors = [wall for wall, _ in results["pg_recvlogical"]]
    for name, figures in results.items():
        wall = statistics.median(w for w, _ in figures)
        ratio = statistics.median(w / floor for (w, _), floor in zip(figures, floors, strict=True))
        cpu = statistics.median(c for _, c in figures) / rows * 1e6
        lines.append(f"| {name} | {rows / wall:,.0f} | {ratio:.2f} | {cpu:.2f} |")
    return lines


def _measure(rows: int) -> dict[str, tuple[float, float]]:
    with PostgresServer() as server, psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute(TABLE)
        cast = _cast(server.url())
        asyncio.run(_start_and_stop(cast))
        admin.execute("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')")
        admin.execute(INSERT, [rows])
        end = admin.execute("SELECT pg_current_wal_lsn()::text").fetchone()
        assert end is not None
        floor = _timed(lambda: _floor(server, end[0]), children=True)
        return {
            "pg_recvlogical": floor,
            "nobody listens": _timed(lambda: asyncio.run(_start_and_stop(_cast(server.url())))),
            "all listened to": _timed(lambda: asyncio.run(_listen(_cast(server.url()), admin, rows))),
        }


def _cast(url: str) -> Rowcast:
    route = [{"table": "ticks", "topic": "finance:{symbol}", "deletes": False}]
    return Rowcast(postgres=url, auth=SECRET, route=route)  # type: ignore[arg-type]


async def _start_and_stop(cast: Rowcast) -> None:
    async with cast.lifespan():
        pass


async def _listen(cast: Rowcast, admin: psycopg.Connection[tuple[str, ...]], rows: int) -> None:
    """Ten streams with a tenth of the topics each; the rows come while they listen."""
    async with cast.lifespan():
        opened: list[Stream] = []
        for part in range(10):
            topics = frozenset(f"finance:S{n}" for n in range(part * 100, part * 100 + 100))
            opened.append(cast.hub.connect(Grant(f"u{part}", topics), lambda: [s.take() for s in opened] and None))
        await asyncio.to_thread(admin.execute, INSERT, [rows])
        await cast.hub.passed(await cast.log.head())


def _floor(server: PostgresServer, end: str) -> None:
    subprocess.run(
        [str(server.program("pg_recvlogical")), "-d", server.url(), "-S", "floor", "--start", "-f", "/dev/null"]
        + ["-o", "proto_version=2", "-o", "publication_names=rowcast", f"--endpos={end}"],
        check=True,
    )


def _timed(work: Callable[[], None], *, children: bool = False) -> tuple[float, float]:
    """Wall and CPU seconds; of child processes, with `children`."""
    import resource

    who = resource.RUSAGE_CHILDREN if children else resource.RUSAGE_SELF
    before, started = resource.getrusage(who), time.perf_counter()
    work()
    wall, after = time.perf_counter() - started, resource.getrusage(who)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
