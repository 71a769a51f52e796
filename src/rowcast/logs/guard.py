"""The guard of a postgres log: moves the anchor on, and watches what is held back.

Every replica runs one; an advisory lock makes them take turns at what changes something. It

- advances the anchor to the position of `retention` seconds ago, and sooner when more than `max_bytes` lie
  behind it: an anchor that never moves bloats the catalogue and holds WAL back;
- emits a mark when WAL was written that is not for us, so that the slots can move on;
- notices an anchor that was dropped or invalidated, or a new epoch, and has the session start anew;
- warns when slots hold more than half of `max_held_wal`, and at the limit warns or drops as configured;
- checks once a minute that the publication still covers the tables: one that leaves it is silent.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast.core.catalog import Catalog
from rowcast.errors import RowcastError
from rowcast.logs.anchor import Anchor, HeldSlot, Pool
from rowcast.logs.postgres import PostgresLog
from rowcast.sources.publication import missing_sql

logger = logging.getLogger(__name__)

INTERVAL = 5.0
"""Seconds between two rounds."""

PUBLICATION_INTERVAL = 60.0
MARK_BYTES = 1 << 20
"""A mark is emitted when so much WAL was written since the last one."""


class Guard:
    """See the module's docstring. `max_bytes` and `max_held_wal` in bytes, `retention` in seconds."""

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
    ) -> None:
        self._log = log
        self._pool = pool
        self._tables = tables
        self._publication = publication
        self._retention = retention
        # What is held swings up to two and a half times what is kept.
        self._max_bytes = min(max_bytes, max_held_wal * 2 // 5)
        self._max_held_wal = max_held_wal
        self._drop_at_limit = drop_at_limit
        self._samples: deque[tuple[float, int]] = deque()
        self._marked = 0
        self._published_checked = 0.0
        self._warned: set[str] = set()
        self.slots: list[HeldSlot] = []
        """Our slots as of the last round."""
        self.problems: list[str] = []
        """What the operator should know, as of the last round."""

    @property
    def held(self) -> int:
        """Bytes of WAL that the slots held back at the last round."""
        return max((slot.held for slot in self.slots), default=0)

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            try:
                await self.round(time.monotonic())
            except (psycopg.Error, PoolTimeout, PoolClosed, RowcastError) as error:
                logger.debug("the guard's round failed: %s", error)

    async def round(self, now: float) -> None:
        """One round. `now` is a monotonic time in seconds. Raises psycopg.Error."""
        anchor = await self._log.anchor.look()
        if anchor is None or (self._log.nonce and anchor.nonce != self._log.nonce):
            self._samples.clear()
            self._log.restart_session("the replication slot was dropped, invalidated or made anew")
            return
        self.slots = await self._log.anchor.held()
        self.problems = []
        if not await self._check_held():
            return
        await self._advance(anchor, now)
        if anchor.current - self._marked > MARK_BYTES:
            self._marked = (await self._log.head())[0]
        if now - self._published_checked > PUBLICATION_INTERVAL:
            self._published_checked = now
            await self._check_publication()

    async def _advance(self, anchor: Anchor, now: float) -> None:
        samples = self._samples
        samples.append((now, anchor.current))
        target = anchor.current - self._max_bytes
        while samples and samples[0][0] <= now - self._retention:
            target = max(target, samples.popleft()[1])
        # Never past what this replica has read: it must be able to come back.
        target = min(target, self._log.position[0])
        if target > anchor.confirmed:
            await self._log.anchor.advance(target)

    async def _check_held(self) -> bool:
        """Warn, or act as configured. Returns whether the anchor is still there."""
        for slot in self.slots:
            if slot.held > self._max_held_wal and slot.name == self._log.anchor.slot and self._drop_at_limit:
                logger.error("slot %s holds %d bytes of WAL, over max_held_wal: dropped", slot.name, slot.held)
                await self._log.anchor.renew(self._log.nonce)
                self._log.restart_session("the replication slot was dropped, since it held too much WAL")
                return False
            if slot.held > self._max_held_wal // 2:
                self.problems.append(
                    f"slot {slot.name} holds back {slot.held >> 20} MB of WAL, of {self._max_held_wal >> 20} MB "
                    "allowed; look for a transaction that is open for long, or drop the slot if nobody uses it"
                )
                if slot.name not in self._warned:
                    logger.warning("%s", self.problems[-1])
                    self._warned.add(slot.name)
            else:
                self._warned.discard(slot.name)
        return True

    async def _check_publication(self) -> None:
        async with self._pool.connection() as connection:
            for statement in await missing_sql(connection, self._publication, self._tables):
                self.problems.append(f"the publication does not cover every routed table; run: {statement}")
                logger.warning("%s", self.problems[-1])
