"""Databases for tests: made in a server, and dropped with everything that replication left in it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

import psycopg
from psycopg.conninfo import make_conninfo


@contextlib.contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """The connection string of an empty database, there for the time of the block.

    `server` is the connection string of another database of that server, by a role that may create databases.
    """
    name = f"rowcast_test_{secrets.token_hex(6)}"
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    try:
        yield make_conninfo(server, dbname=name)
    finally:
        drop_database(server, name)


def drop_database(server: str, name: str) -> None:
    """Drop a database with its sessions, its slots and every slot of ours that belongs to no database."""
    with psycopg.connect(server, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(active_pid, 5000) FROM pg_replication_slots"
            " WHERE active_pid IS NOT NULL AND database = %s",
            [name],
        )
        connection.execute(
            "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE NOT active AND (database = %s OR (database IS NULL AND slot_name LIKE 'rowcast%%'))",
            [name],
        )
        connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())
