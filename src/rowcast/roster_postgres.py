"""The roster in Postgres: each replica keeps a session whose `application_name` tells of it.

Nothing is written: a table would cost a transaction id and a commit record in the WAL for every beat, also in a
database in which nothing else happens. `pg_stat_activity` shows the name to every role, and forgets a session with its
end: of a replica that stops or is killed at once, of a host that vanished when the server's keepalives find out (some
10 s).

The name is `rowcast#SLOT#ID#STREAMS#NAME`, at most 63 bytes of printable ASCII (Postgres documentation,
"application_name"): SLOT stands for the slot that the replicas share, so that two services in one database are two;
of a longer NAME the end is kept, which is where those of pods differ.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from rowcast.errors import Unavailable
from rowcast.roster import BEAT, REPEAT_INTERVAL
from rowcast.sources.wal import options
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

ALIVE = 10.0
"""Seconds after which a session that has nothing new to tell is tried."""

PATIENCE = 5.0
"""Seconds that the server may take for an answer."""

RETRY = 2.0
"""Seconds until a lost session is made again."""

_KEEPALIVES = {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
_LIMIT = 63
_FIND = (
    "SELECT application_name FROM pg_stat_activity"
    " WHERE datname = current_database() AND starts_with(application_name, %s)"
)


class PostgresRoster:
    """See the module's docstring.

    `url` and `pool` are of the same database. `slot` names the anchor, `replica` is an id that no other replica has,
    `name` what people call it; `streams` counts its open streams.
    """

    def __init__(
        self,
        url: str,
        pool: AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]],
        *,
        slot: str,
        replica: str,
        name: str,
        streams: Callable[[], int],
    ) -> None:
        self._url = url
        self._pool = pool
        self._service = f"rowcast#{hashlib.sha256(slot.encode()).hexdigest()[:6]}#"
        self._replica = replica
        self._name = name
        self._streams = streams
        self._told = float("-inf")

    async def run(self) -> None:
        """See `Roster.run`."""
        while True:
            try:
                await self._session()
            except (psycopg.Error, OSError, TimeoutError) as error:
                if time.monotonic() - self._told >= REPEAT_INTERVAL:
                    self._told = time.monotonic()
                    reason = " ".join(str(error).split()) or "Postgres does not answer"
                    logger.warning("roster_unreachable", "this replica is not counted by the others: %s", reason)
                await asyncio.sleep(RETRY)

    async def leave(self) -> None:
        """See `Roster.leave`: the session has ended with `run`."""

    async def others(self) -> dict[str, int]:
        """See `Roster.others`."""
        try:
            async with asyncio.timeout(PATIENCE), self._pool.connection() as connection:
                rows = await (await connection.execute(_FIND, [self._service])).fetchall()
        except (psycopg.Error, PoolTimeout, PoolClosed, TimeoutError) as error:
            raise Unavailable("Postgres can't be asked for the replicas", what="postgres") from error
        counts: Counter[str] = Counter()
        for (line,) in rows:
            replica, _, rest = str(line).removeprefix(self._service).partition("#")
            streams, _, name = rest.partition("#")
            # Anybody may call their session so: what is no number is no replica.
            if replica != self._replica and streams.isdecimal() and streams.isascii():
                counts[unquote(name)] += int(streams)
        return dict(counts)

    async def _session(self) -> None:
        line = self._line()
        async with await psycopg.AsyncConnection.connect(
            self._url,
            autocommit=True,
            application_name=line,
            connect_timeout=round(PATIENCE),
            options=options(_KEEPALIVES, self._url),
        ) as connection:
            told, at = line, time.monotonic()
            while True:
                # Nobody notifies us: it is a sleep that ends with the session.
                async for _ in connection.notifies(timeout=BEAT):
                    pass
                line = self._line()
                if line != told or time.monotonic() - at >= ALIVE:
                    async with asyncio.timeout(PATIENCE):
                        await connection.execute("SELECT set_config('application_name', %s, false)", [line])
                    told, at = line, time.monotonic()

    def _line(self) -> str:
        head = f"{self._service}{self._replica}#{self._streams()}#"
        name = self._name
        while len(written := quote(name, safe=" !$&'()*+,/:;=?@[]")) > _LIMIT - len(head):
            name = name[1:]
        return head + written
