"""A reconnect storm: 10,000 streams of one replica are cut at once and come back with Last-Event-ID within 3 s, while
1,000 changes a second are committed. Others stay, and must hardly notice.

Every stream has rows of Postgres for its subscription and five of a thousand topics, so a change is for some 55
streams. The load generator numbers what each stream must get, and finds what is lost, doubled or out of order; a stream
is live again once it has all that any stream had when it saw its own `rowcast.ready`.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import psycopg

from benchmarks import processes, servers
from benchmarks.processes import Load
from benchmarks.servers import token
from benchmarks.writing import Writer
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.valkey import ValkeyServer

STREAMS, STAYING = 10_000, 1_000
TOPICS, EACH = 1_000, 5
RATE = 1_000
"""Changes a second."""

INSERT = f"INSERT INTO ticks SELECT n, n % {TOPICS}, t FROM new"

SPREAD = 3.0
"""Seconds within which all are back, each at a moment of its own."""

STORMS = 3
"""Storms of one run; between two there are as many seconds without."""

LIMIT = 60.0
"""Seconds that a storm may take."""


class Storm(NamedTuple):
    """One storm, and the quiet seconds before it."""

    last_ready: float
    """Seconds from the cut until the last stream was let in."""
    last_live: float
    """The same until the last one was live again."""
    p99_live: float
    quiet: float
    """p99 latency of the streams that stayed, in ms, before the storm."""
    during: float
    """The same from the cut until the last one was live again."""
    turned_away: int


@contextlib.contextmanager
def _url(log: str) -> Iterator[str]:
    if log != "redis:":
        yield log
        return
    with ValkeyServer() as valkey:
        yield valkey.url


def _prepare(postgres: PostgresServer, streams: int) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE TABLE ticks (n int8 PRIMARY KEY, topic int NOT NULL, t text NOT NULL)")
        admin.execute("CREATE TABLE follows (user_id text, topic int, PRIMARY KEY (user_id, topic))")
        admin.execute(
            "INSERT INTO follows SELECT 'u' || s, (s * %s + k) %% %s FROM generate_series(0, %s) s, "
            "generate_series(0, %s) k",
            [EACH, TOPICS, streams - 1, EACH - 1],
        )


def one(log: str, storms: int, seconds: float, spread: float, streams: int = STREAMS) -> tuple[list[Storm], str]:
    """Several storms on one replica. Returns them, and in words whether every sequence was whole."""
    total = streams + STAYING
    with contextlib.ExitStack() as stack:
        postgres = stack.enter_context(PostgresServer())
        _prepare(postgres, total)
        server = stack.enter_context(
            servers.Rowcast(
                BENCH_POSTGRES=postgres.url(),
                BENCH_LOG=stack.enter_context(_url(log)),
                BENCH_SUBSCRIPTION='[{"table":"follows","user":"{user_id}","topics":["{topic}"]}]',
                BENCH_ROUTE='[{"table":"ticks","topic":"{topic}"}]',
            )
        )
        lines = [f"/events {token(f'u{n}', None)}" for n in range(total)]
        load = stack.enter_context(
            Load(
                [server.url], lines, total, mark=server.mark,
                options=["--numbered", f"{TOPICS}/{EACH}", "--stay", str(STAYING)],
            )
        )  # fmt: skip
        writer = Writer(postgres.url(), RATE, INSERT, "@0{due:016d}{number:010d}@")
        writer.start()
        time.sleep(2)
        found = []
        for _ in range(storms):
            load.zero()
            time.sleep(seconds)
            quiet = load.report()["groups"][0]["p99"] / 1e3
            load.zero()
            load.cut(spread)
            report = _until_live(load, streams)
            storm = report["storm"]
            found.append(
                Storm(
                    storm["last_ready"] / 1e6, storm["last_live"] / 1e6, storm["live_after"]["p99"] / 1e6,
                    quiet, report["groups"][0]["p99"] / 1e3, storm["byes"],
                )
            )  # fmt: skip
            wrong = {name: storm[name] for name in ("lost", "doubled", "resets", "broken") if storm[name]}
            if wrong:
                return found, f"NOT whole: {json.dumps(wrong)}"
        writer.stop()
        return found, _whole(load, writer.written)


def _until_live(load: Load, streams: int) -> dict[str, Any]:
    deadline = time.monotonic() + LIMIT
    while True:
        time.sleep(0.1)
        report = load.report()
        if report["storm"]["live"] >= streams or time.monotonic() > deadline:
            return report


def _whole(load: Load, written: int) -> str:
    """Whether every stream has its last number."""
    deadline = time.monotonic() + LIMIT
    while True:
        storm = load.report()["storm"]
        wrong = {name: storm[name] for name in ("lost", "doubled", "resets", "behind") if storm[name]}
        if storm["newest"] == written - 1 and not wrong:
            return f"whole: {written:,} changes, nothing lost, doubled or out of order"
        if wrong.keys() - {"behind"} or time.monotonic() > deadline:
            return f"NOT whole: {json.dumps(wrong)}, {storm['newest']} of {written - 1}"
        time.sleep(0.1)


def run(runs: int, seconds: float) -> list[str]:
    """Storms with each kind of log."""
    os.sched_setaffinity(0, {processes.LOAD_CORE})
    lines = [
        f"## {STREAMS:,} streams cut at once, back within {SPREAD:g} s, while {RATE:,} changes/s go on",
        "",
        f"{STAYING:,} other streams stay. Seconds from the cut; p99 of the streams that stayed, in ms.",
        "",
        "| log | last let in | last live | 99% live | p99 before | p99 during | ratio | told to wait | sequences |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for log in ("memory:", "postgres:", "redis:"):
        storms, whole = one(log, max(runs, 1), seconds, SPREAD)
        middle = [statistics.median(column) for column in zip(*storms, strict=True)]
        ratio = statistics.median(storm.during / storm.quiet for storm in storms)
        lines.append(
            f"| {log} | {middle[0]:.1f} | {middle[1]:.1f} | {middle[2]:.1f} | {middle[3]:.0f} | {middle[4]:.0f} "
            f"| {ratio:.1f} | {middle[5]:.0f} | {whole} |"
        )
    return lines
