"""The anchor: the durable slot that holds the retention window of a postgres log, and the epoch beside it.

The anchor is never streamed from; replicas copy it. The epoch is minted with it, and kept in the name of a
second slot, which reserves no WAL (see docs/adr/0001). Whoever makes, renews or advances them holds an
advisory lock, so that replicas do so one at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import secrets
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from rowcast.core.position import format_lsn, parse_lsn
from rowcast.errors import SetupError
from rowcast.sources.activity import blocking, oldest_transaction
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

Connection = psycopg.AsyncConnection[tuple[Any, ...]]
Pool = AsyncConnectionPool[Connection]

WATCH_AFTER = 1.0
WATCH_INTERVAL = 30.0
"""Seconds after which, and between which, it is said what the making of the anchor waits for."""

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

_DROP = """
SELECT slot_name, pg_drop_replication_slot(slot_name) FROM pg_replication_slots
WHERE (slot_name = %s OR slot_name ^@ %s) AND NOT active
"""


class Anchor(msgspec.Struct, frozen=True):
    """The anchor as it is. `nonce` is the minted part of the epoch; LSNs as integers.

    `confirmed` is where a copy can start to stream, `restart` up to where it holds WAL back, `current` the end
    of the WAL at the moment of looking.
    """

    nonce: str
    confirmed: int
    restart: int
    current: int


class HeldSlot(msgspec.Struct, frozen=True):
    """A slot whose name begins with ours, and how many bytes of WAL it holds back."""

    name: str
    active: bool
    wal_status: str
    held: int
    restart_lsn: str
    confirmed_lsn: str
    pid: int


class AnchorKeeper:
    """Makes, looks at, advances and drops the anchor named `slot`, by connections of `pool` (in autocommit).

    Every method raises psycopg.Error and psycopg_pool.PoolTimeout when the database can't be asked.
    """

    def __init__(self, pool: Pool, slot: str) -> None:
        self._pool = pool
        self.slot = slot
        self.waits_for = ""
        """What the making of the anchor waits for at this moment, in words; "" when it doesn't."""
        self._epoch_prefix = f"{slot}_epoch_"
        self._epoch_name = re.compile(re.escape(self._epoch_prefix) + "([0-9a-f]{8})")
        self._lock = int.from_bytes(hashlib.sha256(f"rowcast {slot}".encode()).digest()[:8], signed=True)

    async def ensure(self) -> Anchor:
        """The anchor; made, or made anew with a new epoch, where there is none that can be copied.

        Making it waits for every open transaction to end. Raises `SetupError` when the slot's name is taken by
        something else.
        """
        async with self._pool.connection() as connection:
            anchor = await self._look(connection)
            if anchor is not None:
                return anchor
            async with self._locked(connection):
                anchor = await self._look(connection)
                return anchor if anchor is not None else await self._make(connection)

    async def look(self) -> Anchor | None:
        """The anchor, or None when there is none that can be copied. Raises `SetupError` as `ensure`."""
        async with self._pool.connection() as connection:
            return await self._look(connection)

    async def renew(self, nonce: str) -> bool:
        """Drop the anchor of this epoch, if it is still there, so that the next `ensure` makes a new one."""
        async with self._pool.connection() as connection, self._locked(connection):
            anchor = await self._look(connection)
            if anchor is None or anchor.nonce != nonce:
                return False
            await self._drop(connection)
            return True

    async def drop(self) -> list[str]:
        """Drop the anchor and the epoch; returns the names of the slots that are gone."""
        async with self._pool.connection() as connection, self._locked(connection):
            return await self._drop(connection)

    async def held(self) -> list[HeldSlot]:
        """Every slot whose name begins with ours, and what it holds back."""
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_HELD, {"slot": self.slot, "prefix": f"{self.slot}_"})
            return [HeldSlot(*row) for row in await cursor.fetchall()]

    async def culprit(self) -> str:
        """Who keeps the slots from letting go of WAL, in words; "" when it is nobody that we can see."""
        async with self._pool.connection() as connection:
            transaction = await oldest_transaction(connection)
        return "" if transaction is None else str(transaction)

    async def advance(self, lsn: int) -> bool:
        """Move the anchor on to an LSN. False: not this time, since another replica is at it."""
        async with self._pool.connection() as connection, self._turn(connection) as turn:
            if not turn:
                return False
            try:
                await connection.execute("SELECT pg_replication_slot_advance(%s, %s)", [self.slot, format_lsn(lsn)])
            except (psycopg.errors.ObjectInUse, psycopg.errors.ObjectNotInPrerequisiteState):
                return False  # being copied at this moment, or further than that already
            return True

    async def mark(self, prefix: str) -> bool:
        """Put an empty logical message into the WAL, if no other replica is at it."""
        async with self._pool.connection() as connection, self._turn(connection) as turn:
            if turn:
                await connection.execute("SELECT pg_logical_emit_message(true, %s, '')", [prefix])
            return turn

    # Inside

    @contextlib.asynccontextmanager
    async def _locked(self, connection: Connection) -> AsyncIterator[None]:
        async with self._unlocking(connection):
            await connection.execute("SELECT pg_advisory_lock(%s)", [self._lock])
            yield

    @contextlib.asynccontextmanager
    async def _turn(self, connection: Connection) -> AsyncIterator[bool]:
        """Hold the lock, or not: whoever comes second leaves it to the first."""
        async with self._unlocking(connection):
            cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [self._lock])
            row = await cursor.fetchone()
            yield row is not None and bool(row[0])

    @contextlib.asynccontextmanager
    async def _unlocking(self, connection: Connection) -> AsyncIterator[None]:
        """Never give a connection back to the pool that holds the lock: nobody would ever get it again."""
        try:
            yield
        finally:
            try:
                # Also when taking the lock was cancelled: it may have been granted at that very moment.
                await connection.execute("SELECT pg_advisory_unlock_all()")
            except BaseException:
                await connection.close()
                raise

    async def _look(self, connection: Connection) -> Anchor | None:
        cursor = await connection.execute(_LOOK, {"slot": self.slot, "epoch": self._epoch_prefix})
        nonces: list[str] = []
        found: Anchor | None = None
        for name, kind, plugin, ours, wal_status, confirmed, restart, current in await cursor.fetchall():
            if name != self.slot:
                if match := self._epoch_name.fullmatch(name):
                    nonces.append(match[1])
            elif kind != "logical" or plugin != "pgoutput" or not ours:
                raise SetupError(
                    f"the replication slot {name!r} belongs to something else ({plugin or kind}, or another "
                    "database); set [postgres] slot to another name"
                )
            elif wal_status != "lost":
                found = Anchor("", parse_lsn(confirmed), parse_lsn(restart), parse_lsn(current))
        # Without exactly one epoch beside it, the making was cut short, or somebody dropped half of it.
        if found is None or len(nonces) != 1:
            return None
        return msgspec.structs.replace(found, nonce=nonces[0])

    async def _make(self, connection: Connection) -> Anchor:
        if dropped := await self._drop(connection):
            logger.warning(
                "slot_lost",
                "the replication slots %s are of no use any more (dropped in part, or invalidated since they held "
                "too much WAL): starting a new log; every stream is reset",
                ", ".join(dropped),
            )
        watching = asyncio.create_task(self._watch(connection.info.backend_pid))
        try:
            # It waits for every transaction that is open now to end, however long a role's statements may take.
            await connection.execute("SET statement_timeout = 0")
            await connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", [self.slot])
            name = self._epoch_prefix + secrets.token_hex(4)
            await connection.execute("SELECT pg_create_physical_replication_slot(%s, false)", [name])
            await connection.execute("RESET statement_timeout")
        finally:
            watching.cancel()
            self.waits_for = ""
        logger.info("slot_made", "made the replication slot %s and the epoch %s", self.slot, name)
        anchor = await self._look(connection)
        if anchor is None:
            raise SetupError(f"the replication slot {self.slot!r} was dropped while it was being made")
        return anchor

    async def _watch(self, maker: int) -> None:
        """Say which session the making of the slot waits for."""
        await asyncio.sleep(WATCH_AFTER)
        while True:
            with contextlib.suppress(psycopg.Error, PoolTimeout, PoolClosed):
                async with self._pool.connection() as connection:
                    transaction = await blocking(connection, maker)
                if transaction is not None:
                    self.waits_for = str(transaction)
                    logger.warning(
                        "slot_waits", "making the replication slot %s waits for %s", self.slot, self.waits_for
                    )
            await asyncio.sleep(WATCH_INTERVAL)

    async def _drop(self, connection: Connection) -> list[str]:
        cursor = await connection.execute(_DROP, [self.slot, self._epoch_prefix])
        return [row[0] for row in await cursor.fetchall()]


def epoch_text(system: str, timeline: int, nonce: str) -> str:
    """The epoch as it stands in positions: the cluster's identity, its timeline, and the anchor's nonce."""
    return hashlib.sha256(f"{system} {timeline} {nonce}".encode()).hexdigest()[:8]
