"""The server: its version and settings, and whether this role may replicate."""

from __future__ import annotations

from collections.abc import AsyncIterator

import psycopg

from rowcast.check.results import Look, Result
from rowcast.sources.explain import WAL_LEVEL, explain
from rowcast.sources.wal import SessionEnded, WalSession

OLDEST, NEWEST = 14, 18
"""Major versions of Postgres that this version was tested with."""

_OTHERS = """
SELECT (SELECT count(*) FROM pg_replication_slots
        WHERE slot_name <> %(slot)s AND NOT slot_name ^@ %(prefix)s)::int,
       (SELECT count(*) FROM pg_stat_replication WHERE NOT application_name ^@ 'rowcast ')::int
"""


async def check_server(look: Look) -> AsyncIterator[Result]:
    """What the server must be and have. Raises psycopg.Error."""
    yield _version(look)
    yield _wal_level(look)
    yield await _replication(look)
    for result in await _room(look):
        yield result
    yield _wal_bound(look)
    for result in _standbys(look):
        yield result


def _version(look: Look) -> Result:
    major = int(look.settings["server_version_num"]) // 10_000
    version = look.settings["server_version"]
    if major < OLDEST:
        return Result("version", False, f"Postgres {version} is too old", f"upgrade to {OLDEST} or later")
    if major > NEWEST:
        return Result("version", True, f"Postgres {version}", f"not tested: {OLDEST} to {NEWEST} are")
    return Result("version", True, f"Postgres {version}")


def _wal_level(look: Look) -> Result:
    level = look.settings["wal_level"]
    fix = "" if level == "logical" else WAL_LEVEL
    return Result("wal_level", level == "logical", f"wal_level is {level}", fix)


async def _replication(look: Look) -> Result:
    """Whether this role may replicate: told by doing it, since managed services have rights of their own."""
    try:
        session = await WalSession.connect(look.postgres.url, name="rowcast check")
        try:
            await session.identify()
        finally:
            await session.close()
    except (psycopg.Error, SessionEnded) as error:
        # On a refused connection psycopg has no code; nothing but the right is new compared with ours.
        user = look.connection.info.user
        fix = (
            f'as an administrator, run: ALTER ROLE "{user}" REPLICATION (Amazon RDS: GRANT rds_replication TO '
            f'"{user}"); and have a walsender free'
        )
        return Result("replication", False, explain(error), fix)
    return Result("replication", True, f"{look.connection.info.user} may replicate")


async def _room(look: Look) -> list[Result]:
    """Slots and walsenders. A cut session lingers on the server while its replica makes another."""
    [(slots, senders)] = await look.rows(_OTHERS, look.slot)
    needed = 2 * (1 if look.config.log_url.startswith("redis") else look.replicas) + 2
    results = []
    for name, taken, what in (
        ("max_replication_slots", slots, "replication slots"),
        ("max_wal_senders", senders, "walsenders"),
    ):
        allowed = int(look.settings[name])
        detail = f"{allowed - taken} {what} are free or ours; {look.replicas} replicas need {needed}"
        fix = (
            ""
            if allowed - taken >= needed
            else f"run: ALTER SYSTEM SET {name} = {taken + needed + 4}; and restart Postgres"
        )
        results.append(Result(name, not fix, detail, fix))
    return results


def _wal_bound(look: Look) -> Result:
    """What bounds the WAL when no replica runs: then nobody guards the anchor."""
    name = "max_slot_wal_keep_size"
    kept = int(look.settings[name])
    idle = int(look.settings.get("idle_replication_slot_timeout", "0"))
    allowed = look.postgres.max_held_wal
    if kept >= 0 and kept << 20 < allowed:
        return Result(
            name,
            True,
            f"{kept} MB, less than max_held_wal: a log that holds more is lost, and every stream reset",
            f"set [postgres] max_held_wal below {kept}MB, or raise {name}",
        )
    if kept >= 0:
        return Result(name, True, f"slots hold at most {kept} MB of WAL")
    if idle > 0:
        unit = look.units.get("idle_replication_slot_timeout", "")
        return Result(name, True, f"slots that nobody used for {idle} {unit} are let go")
    return Result(
        name,
        False,
        "nothing bounds the WAL that a slot holds while no replica runs; the disk could fill up",
        f"run: ALTER SYSTEM SET {name} = '{2 * allowed >> 20}MB'; SELECT pg_reload_conf()",
    )


def _standbys(look: Look) -> list[Result]:
    names = look.settings["synchronous_standby_names"]
    if "*" not in names and "rowcast" not in names:
        return []
    detail = f"{names!r} takes a replica of Rowcast for a standby: commits would wait for it"
    return [Result("synchronous_standby_names", True, detail, "name the standbys there")]
