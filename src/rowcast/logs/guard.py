"""The guard of a postgres log: moves the anchor on, and watches what is held back.

Every replica runs one; an advisory lock makes them take turns at what changes something. It

- advances the anchor to where the WAL was `retention` seconds ago, and sooner when more than `max_bytes` lie
  behind: an anchor that never moves bloats the catalogue and holds WAL back;
- emits a mark when WAL was written that is not for us, so that the slots can move on;
- notices an anchor that was dropped or invalidated, or a new epoch, and has the session start anew;
- warns when slots hold more than half of `max_held_wal`, and at the limit warns or drops as configured;
- checks once a minute that the publication still covers the tables, since one that leaves it is silent, and starts a
  new log when it covers them again: what came between is lost.
"""

from __future__ import annotations

import asyncio
import time

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast.core.catalog import Catalog
from rowcast.errors import RowcastError
from rowcast.logs.anchor import Anchor, HeldSlot, Pool
from rowcast.logs.messages import MARK
from rowcast.logs.postgres import PostgresLog
from rowcast.logs.retention import Retention
from rowcast.sources.explain import explain
from rowcast.sources.publication import problems
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

INTERVAL = 5.0
"""Seconds between two rounds."""

PUBLICATION_INTERVAL = 60.0
"""Seconds between two checks of the publication."""

TOUCH_INTERVAL = 30.0
"""Seconds after which an anchor that need not move is touched, so that no idle timeout of slots takes it."""

MARK_BYTES = 1 << 20
"""A mark is emitted when so much WAL was written, none of it for us."""

ADVANCE_SHARE = 20
"""Advancing reads the WAL that the anchor holds: it may take one part in so many of the time."""

HELD_PER_KEPT = 2.5
"""What is held swings up to so many times what is kept, since the server lets go of it in steps."""


class Guard:
    """See the module's docstring.

    `tables` are those that the publication must cover, `publication` its name. `max_bytes` and `max_held_wal`
    in bytes, `retention` and `interval` (between two rounds) in seconds.
    """

    def __init__(
        self,
        log: PostgresLog,
        pool: Pool,
        tables: Catalog,
        *,
        publication: str,
        retention: float,
        max_bytes: int,
        max_held_wal: int,
        drop_at_limit: bool,
        interval: float = INTERVAL,
    ) -> None:
        self._log = log
        self._anchor = log.anchor
        self._pool = pool
        self._tables = tables
        self._publication = publication
        # So little that what is held stays below the warning while nothing is wrong.
        self._retention = Retention(retention, min(max_bytes, int(max_held_wal / 2 / HELD_PER_KEPT)))
        self._max_held_wal = max_held_wal
        self._drop_at_limit = drop_at_limit
        self._interval = interval
        self._marked = 0
        self._touched = 0.0
        self._rest_until = 0.0
        self._checked = -PUBLICATION_INTERVAL
        self._held_problems: dict[str, str] = {}
        self._publication_problems: list[str] = []
        self._failure = ""
        self.slots: list[HeldSlot] = []
        """Our slots as of the last round."""

    @property
    def held(self) -> int:
        """The most bytes of WAL that one of our slots held back at the last round."""
        return max((slot.held for slot in self.slots), default=0)

    @property
    def lag(self) -> float:
        """Seconds by which this replica is behind the end of the WAL, as of the last round."""
        return self._retention.lag(time.monotonic(), self._log.position[0])

    @property
    def problems(self) -> list[str]:
        """What the operator should know, each with what to do."""
        failure = [f"the guard of the log fails: {self._failure}"] if self._failure else []
        return [*failure, *self._held_problems.values(), *self._publication_problems]

    def watch_tables(self, tables: Catalog) -> None:
        """Have these tables in the publication from now on."""
        self._tables = tables

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            await asyncio.sleep(self._interval)
            failure = ""
            try:
                await self.round(time.monotonic())
            except (psycopg.Error, PoolTimeout, PoolClosed, RowcastError) as error:
                failure = explain(error)
                if failure != self._failure:
                    logger.warning("guard_failed", "the guard of the log fails: %s", failure)
            self._failure = failure

    async def round(self, now: float) -> None:
        """One round. `now` is a monotonic time in seconds. Raises psycopg.Error or PoolTimeout."""
        if not self._log.nonce:
            return
        anchor = await self._anchor.look()
        if anchor is None or anchor.nonce != self._log.nonce:
            self._restart("the replication slot was dropped, invalidated or made anew")
            return
        self.slots = await self._anchor.held()
        self._retention.sample(now, anchor.current)
        if await self._over_limit():
            return
        await self._advance(anchor, now)
        await self._mark(anchor, now)
        if self._log.publication_lost or now - self._checked >= PUBLICATION_INTERVAL:
            self._checked = now
            await self._check_publication(anchor)

    def _restart(self, reason: str) -> None:
        self._retention.clear()
        self._log.restart_session(reason)

    async def _over_limit(self) -> bool:
        """Warn of what is held, or act as configured. Returns whether the anchor was dropped."""
        half = self._max_held_wal // 2
        if all(slot.held <= half for slot in self.slots):
            self._held_problems.clear()
            return False
        culprit = await self._anchor.culprit()
        if self._drop_at_limit:
            for slot in self.slots:
                if slot.name == self._anchor.slot and slot.held > self._max_held_wal:
                    logger.error(
                        "slot_dropped",
                        "slot %s held %s of WAL, over max_held_wal: dropped, every stream is reset%s",
                        *(slot.name, _megabytes(slot.held), f"; the cause is {culprit}" if culprit else ""),
                    )
                    await self._anchor.renew(self._log.nonce)
                    self._restart("the replication slot held too much WAL and was dropped")
                    return True
        problems: dict[str, str] = {}
        for slot in self.slots:
            if slot.held > half:
                problems[slot.name] = (
                    f"slot {slot.name} holds back {_megabytes(slot.held)} of WAL, of "
                    f"{_megabytes(self._max_held_wal)} allowed" + (f"; the cause may be {culprit}" if culprit else "")
                )
                if slot.name not in self._held_problems:
                    logger.warning("wal_held", "%s", problems[slot.name])
        self._held_problems = problems
        return False

    async def _advance(self, anchor: Anchor, now: float) -> None:
        # Never past what this replica has read: it must be able to come back.
        target = min(self._retention.target(), self._log.position[0])
        if now < self._rest_until or (target <= anchor.confirmed and now - self._touched < TOUCH_INTERVAL):
            return
        started = time.monotonic()
        if await self._anchor.advance(max(target, anchor.confirmed)):
            self._touched = now
            self._rest_until = now + ADVANCE_SHARE * (time.monotonic() - started)

    async def _mark(self, anchor: Anchor, now: float) -> None:
        if anchor.current - self._marked < MARK_BYTES:
            return
        self._marked = anchor.current
        if now - self._log.last_commit > self._interval:
            await self._anchor.mark(MARK)

    async def _check_publication(self, anchor: Anchor) -> None:
        async with self._pool.connection() as connection:
            found = await problems(connection, self._publication, self._tables)
        for problem in found:
            if problem not in self._publication_problems:
                logger.warning("publication_broken", "%s", problem)
        mended = not found and (self._publication_problems or self._log.publication_lost)
        self._publication_problems = found
        if mended and await self._anchor.renew(anchor.nonce):
            logger.warning(
                "publication_whole", "the publication is whole again: starting a new log, since changes were lost"
            )
            self._restart("the publication was incomplete for a while")


def _megabytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MB"
