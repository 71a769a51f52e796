"""The replication slots as an operator sees them: `rowcast slot status` and `rowcast slot drop`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
from psycopg_pool import PoolTimeout

from rowcast.config import Config
from rowcast.core.position import parse_lsn
from rowcast.errors import ConfigError, SetupError
from rowcast.logs.anchor import AnchorKeeper, HeldSlot
from rowcast.logs.redis_url import is_redis
from rowcast.replica import make_pool


async def status(config: Config) -> list[HeldSlot]:
    """The anchor, its epoch and the replicas' temporary copies. Raises `SetupError` when there is no anchor."""
    async with _keeper(config) as keeper:
        slots = await keeper.held()
        if not any(slot.name == keeper.slot for slot in slots):
            raise _missing(keeper.slot)
        return slots


async def drop(config: Config) -> tuple[list[str], int]:
    """Drop the anchor and its epoch: their names, and how many replicas are connected.

    Connected replicas make a new one and reset their streams. Raises `SetupError` when there is none, when it is being
    copied at this moment, or while a replica with a redis log reads it.
    """
    async with _keeper(config) as keeper:
        before = await keeper.held()
        dropped = await keeper.drop()
        if keeper.slot not in dropped:
            holder = next((slot for slot in before if slot.name == keeper.slot), None)
            if holder is None:
                raise _missing(keeper.slot)
            todo = "stop the replicas first: one of them reads it" if is_redis(config.log_url) else "try again"
            raise SetupError(f"the replication slot {keeper.slot!r} is in use by process {holder.pid}; {todo}")
        return dropped, sum(slot.active and slot.name not in dropped for slot in before)


def lag(slot: HeldSlot) -> int:
    """Bytes of WAL from what the slot's reader has confirmed up to what is written now."""
    confirmed = parse_lsn(slot.confirmed_lsn)
    return max(0, parse_lsn(slot.restart_lsn) + slot.held - confirmed) if confirmed else 0


def as_dict(slot: HeldSlot) -> dict[str, str | int | None]:
    """A slot for programs: sizes in bytes, None for what there is none of."""
    return {
        "name": slot.name,
        "process": slot.pid or None,
        "wal_status": slot.wal_status or None,
        "held_bytes": slot.held,
        "lag_bytes": lag(slot),
        "confirmed_lsn": slot.confirmed_lsn or None,
    }


@asynccontextmanager
async def _keeper(config: Config) -> AsyncIterator[AnchorKeeper]:
    if config.postgres is None:
        raise ConfigError(
            "there is no [postgres] section with url, so there is no replication slot;"
            " name the file by --config, or set ROWCAST_POSTGRES_URL"
        )
    pool = make_pool(config.postgres)
    try:
        async with pool:
            yield AnchorKeeper(pool, config.postgres.slot)
    except (psycopg.Error, PoolTimeout) as error:
        raise SetupError(f"Postgres refuses: {' '.join(str(error).split())}") from None


def _missing(slot: str) -> SetupError:
    return SetupError(f"there is no replication slot {slot!r}; `rowcast serve` makes it")
