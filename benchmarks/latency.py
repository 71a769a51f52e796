"""Latency: from COMMIT to the client of a stream, against a `pg_recvlogical` that writes to a pipe.

Both read at the same time; each row carries the clock of its writer. One commit at a time, so this is the
latency of an idle system.
"""

from __future__ import annotations

import asyncio
import re
import statistics
import subprocess
import threading
import time

import httpx
import psycopg

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.server import RowcastServer

SECRET = "0123456789abcdef0123456789abcdef"
CONFIG = """
[postgres]
url = "{url}"
[auth]
secret = "{secret}"
[[route]]
table = "ticks"
topic = "t"
deletes = false
"""
STAMP = re.compile(rb"@(\d+)@")
COUNT = 2000


def run(rows: int, runs: int) -> list[str]:
    """The table of this case."""
    floors: list[float] = []
    ours: list[float] = []
    ratios: list[float] = []
    for number in range(runs + 1):
        floor, stream = asyncio.run(_measure())
        if number:
            floors.extend(floor)
            ours.extend(stream)
            ratios.append(statistics.median(stream) / statistics.median(floor))
    lines = [f"## COMMIT to the client, {COUNT} commits one by one, {runs} runs", ""]
    lines += ["| reader | p50 ms | p99 ms | p50 × floor |", "|---|---|---|---|"]
    for name, figures, ratio in (
        ("pg_recvlogical, to a pipe", floors, 1.0),
        ("rowcast serve, to an HTTP client", ours, statistics.median(ratios)),
    ):
        cuts = statistics.quantiles(figures, n=100)
        lines.append(f"| {name} | {cuts[49]:.2f} | {cuts[98]:.2f} | {ratio:.2f} |")
    return lines


async def _measure() -> tuple[list[float], list[float]]:
    with PostgresServer() as server, psycopg.connect(server.url(), autocommit=True) as admin:
        admin.execute("CREATE TABLE ticks (id bigserial PRIMARY KEY, stamp text)")
        with RowcastServer(CONFIG.format(url=server.url(), secret=SECRET)) as replica:
            admin.execute("SELECT pg_create_logical_replication_slot('floor', 'pgoutput')")
            floor: list[float] = []
            reader = subprocess.Popen(
                [str(server.program("pg_recvlogical")), "-d", server.url(), "-S", "floor", "--start", "-f", "-"]
                + ["-o", "proto_version=2", "-o", "publication_names=rowcast", "--fsync-interval=0"],
                stdout=subprocess.PIPE,
            )
            thread = threading.Thread(target=_read_floor, args=(reader, floor))
            thread.start()
            try:
                stream = await _read_stream(replica.url, server.url())
            finally:
                reader.terminate()
                thread.join()
        return floor, stream


def _read_floor(reader: subprocess.Popen[bytes], latencies: list[float]) -> None:
    assert reader.stdout is not None
    while chunk := reader.stdout.read1():  # type: ignore[attr-defined]  # a BufferedReader
        now = time.time_ns()
        latencies.extend((now - int(stamp)) / 1e6 for stamp in STAMP.findall(chunk))


async def _read_stream(url: str, database: str) -> list[float]:
    latencies: list[float] = []
    token = mint(Config.from_sections({"auth": SECRET}), "ann", topics=["t"])
    headers = {"authorization": f"Bearer {token}"}
    async with httpx.AsyncClient(timeout=None) as client:
        async with client.stream("GET", f"{url}/events", headers=headers) as response:
            chunks = response.aiter_raw()
            while b"rowcast.ready" not in await anext(chunks):
                pass
            writing = asyncio.get_running_loop().run_in_executor(None, _write, database)
            while len(latencies) < COUNT:
                chunk = await anext(chunks)
                now = time.time_ns()
                latencies.extend((now - int(stamp)) / 1e6 for stamp in STAMP.findall(chunk))
            await writing
    return latencies


def _write(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        for _ in range(COUNT):
            connection.execute("INSERT INTO ticks (stamp) VALUES (%s)", [f"@{time.time_ns()}@"])
            time.sleep(0.0005)  # one at a time: the case is an idle system's latency
