"""What goes on: slots, open transactions, and the log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from rowcast.check.results import Look, Result
from rowcast.sources.activity import oldest_transaction

LONG_TRANSACTION = 300
"""Seconds after which an open transaction is in the way."""

MANY_REPLICAS = 4
"""Decoding walsenders from which on a redis log is kinder to the database."""

_SLOTS = """
SELECT slot_name, active, coalesce(wal_status, ''), slot_type = 'logical',
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint
FROM pg_replication_slots WHERE slot_name = %(slot)s OR slot_name ^@ %(prefix)s OR slot_name ^@ 'rowcast'
ORDER BY slot_name
"""


async def check_slots(look: Look) -> AsyncIterator[Result]:
    """What holds WAL back, or will. Raises psycopg.Error."""
    yield await _transactions(look)
    async for result in _slots(look):
        yield result
    yield _log(look)


async def _transactions(look: Look) -> Result:
    oldest = await oldest_transaction(look.connection)
    if oldest is None or oldest.seconds < LONG_TRANSACTION:
        return Result("transactions", True, "none is open for long")
    exists = await look.rows("SELECT FROM pg_replication_slots WHERE slot_name = %(slot)s", look.slot)
    why = "keeps the WAL from being let go" if exists else "keeps the replication slot from being made"
    detail, _, fix = str(oldest).partition("; ")
    return Result("transactions", bool(exists), f"{detail}, {why}", fix)


async def _slots(look: Look) -> AsyncIterator[Result]:
    slot, epoch = look.postgres.slot, f"{look.postgres.slot}_epoch_"
    found = await look.rows(_SLOTS, look.slot)
    if not any(name == slot for name, *_ in found):
        yield Result("slot", True, f"{slot!r} will be made at start")
    for name, active, status, logical, held in found:
        megabytes = f"{held / (1 << 20):.0f} MB"
        if name == slot:
            yield _anchor(look, status, held, megabytes)
        elif not active and not name.startswith(epoch) and logical:
            yield Result(
                "slot",
                True,
                f"{name!r} is used by nobody and holds {megabytes} of WAL",
                f"if no other Rowcast is meant to use it, run: SELECT pg_drop_replication_slot('{name}')",
            )


def _anchor(look: Look, status: str, held: int, megabytes: str) -> Result:
    slot = look.postgres.slot
    if status == "lost":
        return Result("slot", True, f"{slot!r} was invalidated", "nothing need be done: it is made anew, with a reset")
    allowed = look.postgres.max_held_wal
    if held > allowed // 2:
        return Result(
            "slot",
            held <= allowed,
            f"{slot!r} holds {megabytes} of WAL, of {allowed >> 20} MB allowed",
            "look for a transaction that is open for long; if no replica is going to run, run: rowcast slot drop",
        )
    return Result("slot", True, f"{slot!r} holds {megabytes} of WAL")


def _log(look: Look) -> Result:
    url, replicas = look.config.log_url, look.replicas
    if url.startswith("memory:") and replicas > 1:
        detail = "memory: belongs to one process: what is published at one replica is not seen on the others"
        return Result("log", True, detail, 'set [log] url = "postgres:" for several replicas')
    if url.startswith("postgres:") and replicas > MANY_REPLICAS:
        detail = f"{replicas} replicas cost the database {replicas} decoding walsenders"
        return Result("log", True, detail, 'with a Redis at hand, [log] url = "redis://…" needs one')
    # Without the user and password that a URL may hold.
    return Result("log", True, url.split("@")[-1])
