"""Memory stays flat, and what is held back of the WAL stays bounded.

`ROWCAST_TEST_ROWS` sets the size of the large transaction (default 150,000; a million takes half a minute).
"""

from __future__ import annotations

import os
from pathlib import Path

import psycopg

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
ROWS = int(os.environ.get("ROWCAST_TEST_ROWS", "150000"))

CONFIG = """
[postgres]
url = "{url}"

[auth]
secret = "{secret}"

[log]
ring_bytes = "{ring}"

[[route]]
table = "items"
topic = "items:{{kind}}"
deletes = false
"""


def token(*topics: str) -> str:
    return mint(Config.from_sections({"auth": SECRET}), "ann", topics=list(topics))


async def test_a_huge_transaction_and_a_busy_rest_of_the_database_leave_memory_flat(database: str) -> None:
    ring = 16 << 20
    with psycopg.connect(database, autocommit=True) as admin:
        admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL, text text)")
        admin.execute("CREATE TABLE other (id bigserial PRIMARY KEY, text text)")
        admin.execute("INSERT INTO items (kind) SELECT 'x' FROM generate_series(1, 40000)")
        text = CONFIG.format(url=database, secret=SECRET, ring=ring)
        with RowcastServer(text) as server:
            async with OpenStream(server.url, token("items:end")) as stream:
                await stream.ready()
                # A ring that is full already: what comes on top must not make it grow.
                admin.execute(
                    "INSERT INTO items (kind, text) SELECT 'x', repeat('x', 50) FROM generate_series(1, 60000)"
                )
                admin.execute("INSERT INTO items (kind) VALUES ('end')")
                await stream.until(lambda: len(stream.events()) == 1, timeout=100)
                before = server.rss
                admin.execute(
                    "INSERT INTO items (kind, text) SELECT 'x', repeat('x', 50) FROM generate_series(1, %s)", [ROWS]
                )
                admin.execute("INSERT INTO other (text) SELECT 'x' FROM generate_series(1, %s)", [ROWS])
                admin.execute("INSERT INTO items (kind) VALUES ('end')")
                await stream.until(lambda: len(stream.events()) == 2, timeout=300)
                after = server.rss
    print(f"{ROWS} rows: {before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after")
    assert after - before < 24e6


def test_what_is_held_while_nobody_runs_is_bounded_by_the_server() -> None:
    """With max_slot_wal_keep_size set, as `rowcast check` demands, a stopped Rowcast can't fill the disk."""
    keep = 32 << 20
    settings = {"max_slot_wal_keep_size": "32MB", "max_wal_size": "32MB", "min_wal_size": "32MB"}
    with PostgresServer(settings=settings) as postgres, psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE TABLE items (id bigserial PRIMARY KEY, kind text NOT NULL, text text)")
        text = CONFIG.format(url=postgres.url(), secret=SECRET, ring="16MB")
        with RowcastServer(text):
            pass
        for _ in range(8):
            admin.execute("INSERT INTO items (kind, text) SELECT 'x', repeat('x', 1000) FROM generate_series(1, 20000)")
            admin.execute("CHECKPOINT")
            held = admin.execute(
                "SELECT coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)"
                " FROM pg_replication_slots WHERE wal_status <> 'lost'"
            ).fetchone()
            assert held is not None
            assert held[0] <= keep + (16 << 20), "one segment more than what may be kept"
        size = sum(file.stat().st_size for file in Path(postgres.data, "pg_wal").glob("0*"))
        assert size <= 4 * keep
        with RowcastServer(text) as server:  # the anchor is lost; a new one is made
            status = admin.execute("SELECT wal_status FROM pg_replication_slots WHERE slot_name = 'rowcast'").fetchone()
            assert status == ("reserved",)
            assert server.url
