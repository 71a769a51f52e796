"""What a real server writes while tokens and rows go wrong: lines with events, and no secret."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from rowcast.auth.jwt import mint
from rowcast.config import Config
from rowcast.telemetry import journal
from rowcast.testing.postgres import PostgresServer
from rowcast.testing.server import RowcastServer
from rowcast.testing.stream import OpenStream

SECRET = "0123456789abcdef0123456789abcdef"
ROW = "hidden-in-a-row"
CONFIG = """
[server]
log_format = "json"

[auth]
secret = "{secret}"
query_token = true
cookie = "session"

[api]
key = "the-key-of-the-api"

[postgres]
url = "{url}"

[[route]]
table = "orders"
topic = "orders:{{item}}"

[[subscription]]
sql = "select 'orders:' || item::int from orders where owner = %(user)s"
depends_on = {{ orders = "{{owner}}" }}
"""


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


async def test_never_a_token_nor_a_row(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE orders (id int PRIMARY KEY, owner text, item text)")
        connection.execute("ALTER TABLE orders REPLICA IDENTITY FULL")
        connection.execute("INSERT INTO orders VALUES (1, 'alice', %s)", [ROW])
    good = mint(Config.from_sections({"auth": SECRET}), "alice")
    bad = mint(Config.from_sections({"auth": "of somebody else, 32 bytes or more"}), "alice")
    arguments = ("--log-level", "debug")
    with RowcastServer(CONFIG.format(secret=SECRET, url=database), arguments=arguments) as server:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            # The rule's query fails at the row, and its message quotes it.
            with client.stream("GET", "/events", params={"token": good}) as response:
                assert response.status_code == 200
                until(lambda: "rule_query_failed" in server.log)
            for token in (bad, "not.a.token", "x" * 9000):
                assert client.get("/events", params={"token": token}).status_code in (400, 401)
                assert client.get("/events", headers={"cookie": f"session={token}"}).status_code == 401
                assert client.get("/events", headers={"authorization": f"Bearer {token}"}).status_code == 401
            for key in (bad, "hidden-as-a-key"):
                assert client.post("/publish", headers={"authorization": f"Bearer {key}"}, json={}).status_code == 401
            # A row that the built-in table refuses, by a rule of the operator's.
            with psycopg.connect(database, autocommit=True) as connection:
                connection.execute("ALTER TABLE rowcast_channels ADD CHECK (channel_type <> 'refused')")
            body = {"channel_type": "refused", "enabled": True, "config": {"note": ROW}}
            refused = client.post("/users/me/channels", headers={"authorization": f"Bearer {good}"}, json=body)
            assert refused.status_code == 503
            until(lambda: "channels_unusable" in server.log)
            target = urlsplit(server.url)
            with socket.create_connection((target.hostname or "", target.port or 0)) as raw:
                raw.sendall(f"GET /?token={good} nonsense {bad}\r\n\r\n".encode())
                raw.recv(100)
            async with OpenStream(server.url, good):
                with psycopg.connect(database, autocommit=True) as connection:
                    connection.execute("UPDATE orders SET item = item || '!' WHERE id = 1")
                # The log is cut off, and says so.
                _cut(database)
                until(lambda: "wal_unreadable" in server.log)
        said = server.log
    lines = [json.loads(line) for line in said.splitlines()]
    assert {"request", "rule_query_failed", "channels_unusable", "wal_reading"} <= {line["event"] for line in lines}
    assert "/events?token=…" in said
    for secret in (ROW, "hidden-as-a-key", "the-key-of-the-api", SECRET, "not.a.token", "xxxxxxxx"):
        assert secret not in said
    for token in (good, bad):
        for part in token.split(".")[1:]:
            assert part not in said


def _cut(database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = current_database()"
        )


def test_a_database_error_is_told_without_values(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as connection:
        for statement, told in [
            ("SELECT 'hidden'::int", "InvalidTextRepresentation (SQLSTATE 22P02"),
            ("SELECT 1 FROM nowhere", 'relation "nowhere" does not exist'),
            ("DO $$ BEGIN RAISE 'hidden'; END $$", "RaiseException (SQLSTATE P0001"),
            (
                "CREATE TEMP TABLE t (a text PRIMARY KEY); INSERT INTO t VALUES ('hidden'), ('hidden')",
                "UniqueViolation",
            ),
        ]:
            with pytest.raises(psycopg.Error) as caught:
                connection.execute(statement)
            assert told in journal.words(caught.value)
            assert "hidden" not in journal.words(caught.value)
            assert "hidden" not in journal.last_words(caught.value)
