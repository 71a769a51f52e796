"""The anchor: the durable slot that holds the retention window of a postgres log, and the epoch beside it.

The anchor is never streamed from; replicas copy it. The epoch is minted with it, and kept in the name of a
second slot, which reserves no WAL (see docs/adr/0001). Whoever makes, renews or advances them holds an
advisory lock, so that replicas do so one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool

from rowcast.core.position import format_lsn, parse_lsn
from rowcast.errors import SetupError

logger = logging.getLogger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Pool = AsyncConnectionPool[Connection]

_LOOK = """
SELECT slot_name, slot_type, plugin, database = current_database(), wal_status,
       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(restart_lsn, '0/0')::text, pg_current_wal_lsn()::text
FROM pg_replication_slots
WHERE slot_name = %(slot)s OR slot_name ^@ %(epoch)s
"""

_HELD = """
SELECT slot_name, active, coalesce(wal_status, ''),
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint, coalesce(restart_lsn, '0/0')::text,
       coalesce(confirmed_flush_lsn, '0/0')::text, coalesce(active_pid, 0)
FROM pg_replication_slots WHERE slot_name = %(slot)s OR slot_name ^@ %(prefix)s ORDER BY slot_name
"""

_WAITS_FOR = """
SELECT pid, coalesce(usename, ''), coalesce(application_name, ''), coalesce(state, ''),
       extract(epoch FROM now() - xact_start)::bigint
FROM pg_stat_activity
WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() ORDER BY xact_start LIMIT 1
"""


class Anchor(msgspec.Struct, frozen=True):
    """The anchor as it is. `nonce` is the minted part of the epoch; LSNs as integers."""

    nonce: str
    confirmed: int
    restart: int
    current: int


class HeldSlot(msgspec.Struct, frozen=True):
    """A slot of ours, and how many bytes of WAL it holds back."""

    name: str
    active: bool
    wal_status: str
    held: int
    restart_lsn: str
    confirmed_lsn: str
    pid: int


class AnchorKeeper:
    """Makes, looks at, advances and drops the anchor named `slot`, by connections of `pool`."""

    def __init__(self, pool: Pool, slot: str) -> None:
        self._pool = pool
        self.slot = slot
        self._epoch_prefix = f"{slot}_epoch_"
        self._lock = int.from_bytes(hashlib.sha256(f"rowcast {slot}".encode()).digest()[:8], signed=True)

    async def ensure(self) -> Anchor:
        """The anchor; made, or made anew, where there is none that can be copied.

        Raises psycopg.Error, or `SetupError` when the slot's name is taken by something else.
        """
        async with self._pool.connection() as connection:
            anchor = await self._look(connection)
            if anchor is not None:
                return anchor
            async with self._locked(connection):
                anchor = await self._look(connection)
                return anchor if anchor is not None else await self._make(connection)

    async def look(self) -> Anchor | None:
        """The anchor, or None when there is none that can be copied."""
        async with self._pool.connection() as connection:
            return await self._look(connection)

    async def renew(self, nonce: str) -> None:
        """Drop the anchor of this epoch, so that the next `ensure` makes a new one."""
        async with self._pool.connection() as connection, self._locked(connection):
            anchor = await self._look(connection)
            if anchor is not None and anchor.nonce == nonce:
                await self._drop(connection)

    async def drop(self) -> list[str]:
        """Drop the anchor and the epoch; returns the names of the slots that are gone."""
        async with self._pool.connection() as connection, self._locked(connection):
            return await self._drop(connection)

    async def held(self) -> list[HeldSlot]:
        """Every slot whose name begins with ours, and what it holds back."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_HELD, {"slot": self.slot, "prefix": f"{self.slot}_"})
            return [HeldSlot(*row) for row in await cursor.fetchall()]

    async def advance(self, lsn: int) -> bool:
        """Move the anchor on to an LSN, if no other replica is at it. False: not this time."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [self._lock])
            row = await cursor.fetchone()
            if row is None or not row[0]:
                return False
            try:
                await connection.execute("SELECT pg_replication_slot_advance(%s, %s)", [self.slot, format_lsn(lsn)])
            except psycopg.errors.ObjectInUse:
                return False  # it is being copied at this moment
            finally:
                await connection.execute("SELECT pg_advisory_unlock(%s)", [self._lock])
            return True

    # Inside

    @contextlib.asynccontextmanager
    async def _locked(self, connection: Connection) -> AsyncIterator[None]:
        await connection.execute("SELECT pg_advisory_lock(%s)", [self._lock])
        try:
            yield
        finally:
            if not connection.broken:
                await connection.execute("SELECT pg_advisory_unlock(%s)", [self._lock])

    async def _look(self, connection: Connection) -> Anchor | None:
        cursor = await connection.execute(_LOOK, {"slot": self.slot, "epoch": self._epoch_prefix})
        nonce = ""
        found: Anchor | None = None
        for name, kind, plugin, ours, wal_status, confirmed, restart, current in await cursor.fetchall():
            if name != self.slot:
                nonce = name.removeprefix(self._epoch_prefix)
            elif kind != "logical" or plugin != "pgoutput" or not ours:
                raise SetupError(
                    f"the replication slot {name!r} belongs to something else ({plugin or kind}, or another "
                    "database); set [postgres] slot to another name"
                )
            elif wal_status not in ("lost", None):
                found = Anchor("", parse_lsn(confirmed), parse_lsn(restart), parse_lsn(current))
        if found is None or not nonce:
            return None
        return msgspec.structs.replace(found, nonce=nonce)

    async def _make(self, connection: Connection) -> Anchor:
        await self._drop(connection)
        watching = asyncio.create_task(self._watch())
        try:
            # Waits for every transaction that is open now to end.
            await connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])
        finally:
            watching.cancel()
        name = self._epoch_prefix + secrets.token_hex(4)
        await connection.execute("SELECT pg_create_physical_replication_slot(%s, false)", [name])
        logger.info("made the replication slot %s, epoch slot %s", self.slot, name)
        anchor = await self._look(connection)
        assert anchor is not None
        return anchor

    async def _watch(self) -> None:
        """Say which session the making of the slot waits for."""
        while True:
            await asyncio.sleep(1.0)
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_WAITS_FOR)).fetchone()
            if row is not None:
                logger.warning(
                    "making the replication slot waits for an open transaction: pid %s, user %s, %s, %s, open for "
                    "%s s; end it, or: SELECT pg_terminate_backend(%s)",
                    *(*row, row[0]),
                )

    async def _drop(self, connection: Connection) -> list[str]:
        cursor = await connection.execute(
            "SELECT slot_name, pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
            " WHERE (slot_name = %s OR slot_name ^@ %s) AND NOT active",
            [self.slot, self._epoch_prefix],
        )
        return [row[0] for row in await cursor.fetchall()]


def epoch_text(system: str, timeline: int, nonce: str) -> str:
    """The epoch as it stands in positions: the cluster's identity, its timeline, and the anchor's nonce."""
    return hashlib.sha256(f"{system} {timeline} {nonce}".encode()).hexdigest()[:8]
