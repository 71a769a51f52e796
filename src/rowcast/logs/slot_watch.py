"""The watch over the slot of a `redis://` log: how much WAL it holds back, and whether the publication is whole.

Every replica runs one, since the leader may be the one that is gone. It never moves the slot: only reading does.

- It warns when our slots hold more than half of `max_held_wal`, and at the limit warns or drops as configured.
- It checks once a minute that the publication still covers the tables, since one that leaves it is silent, and starts
  a new log when it covers them again: what came between is lost.
"""

from __future__ import annotations

import asyncio
import time

import psycopg
from psycopg_pool import PoolClosed, PoolTimeout

from rowcast.core.catalog import Catalog
from rowcast.errors import RowcastError
from rowcast.logs.anchor import HeldSlot, Pool
from rowcast.logs.leader import WalLeader
from rowcast.sources.explain import explain
from rowcast.sources.publication import problems
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

INTERVAL = 5.0
"""Seconds between two rounds."""

PUBLICATION_INTERVAL = 60.0
"""Seconds between two checks of the publication."""


class SlotWatch:
    """See the module's docstring.

    `tables` are those that the publication must cover, `publication` its name. `max_held_wal` in bytes;
    `drop_at_limit`: whether the slot is dropped there (else it is only said).
    """

    def __init__(
        self,
        leader: WalLeader,
        pool: Pool,
        tables: Catalog,
        *,
        publication: str,
        max_held_wal: int,
        drop_at_limit: bool,
    ) -> None:
        self._leader = leader
        self._pool = pool
        self._tables = tables
        self._publication = publication
        self._max_held_wal = max_held_wal
        self._drop_at_limit = drop_at_limit
        self._checked = -PUBLICATION_INTERVAL
        self._held_problem = ""
        self._publication_problems: list[str] = []
        self._failure = ""
        self.slots: list[HeldSlot] = []
        """Our slots as of the last round."""

    @property
    def held(self) -> int:
        """The most bytes of WAL that one of our slots held back at the last round."""
        return max((slot.held for slot in self.slots), default=0)

    @property
    def problems(self) -> list[str]:
        """What the operator should know, each with what to do."""
        failure = f"the slot can't be watched: {self._failure}" if self._failure else ""
        return [problem for problem in (failure, self._held_problem, *self._publication_problems) if problem]

    def watch_tables(self, tables: Catalog) -> None:
        """Have these tables in the publication from now on."""
        self._tables = tables

    async def run(self) -> None:
        """Round after round, for ever."""
        while True:
            await asyncio.sleep(INTERVAL)
            failure = ""
            try:
                await self.round(time.monotonic())
            except (psycopg.Error, PoolTimeout, PoolClosed, RowcastError) as error:
                failure = explain(error)
                if failure != self._failure:
                    logger.warning("guard_failed", "the slot can't be watched: %s", failure)
            self._failure = failure

    async def round(self, now: float) -> None:
        """One round. `now` is a monotonic time in seconds. Raises psycopg.Error or PoolTimeout."""
        self.slots = await self._leader.anchor.held()
        await self._check_held()
        if now - self._checked >= PUBLICATION_INTERVAL or self._publication_problems:
            self._checked = now
            await self._check_publication()

    def _ours_to_act(self) -> bool:
        """Whether it is for us to have the slot made anew: the leader's, or anybody's when there is none."""
        name = self._leader.anchor.slot
        return self._leader.leading or not any(slot.active for slot in self.slots if slot.name == name)

    async def _check_held(self) -> None:
        worst = max(self.slots, key=lambda slot: slot.held, default=None)
        if worst is None or worst.held <= self._max_held_wal // 2:
            self._held_problem = ""
            return
        culprit = await self._leader.anchor.culprit()
        cause = f"; the cause may be {culprit}" if culprit else ""
        held, allowed = worst.held >> 20, self._max_held_wal >> 20
        problem = f"slot {worst.name} holds back {held} MB of WAL, of {allowed} MB allowed{cause}"
        if not self._held_problem:
            logger.warning("wal_held", "%s", problem)
        self._held_problem = problem
        if self._drop_at_limit and worst.name == self._leader.anchor.slot and worst.held > self._max_held_wal:
            await self._start_anew(f"{problem}: dropped")

    async def _check_publication(self) -> None:
        async with self._pool.connection() as connection:
            found = await problems(connection, self._publication, self._tables)
        for problem in found:
            if problem not in self._publication_problems:
                logger.warning("publication_broken", "%s", problem)
        mended = self._publication_problems and not found
        self._publication_problems = found
        if mended:
            await self._start_anew("the publication was incomplete for a while, and is whole again")

    async def _start_anew(self, reason: str) -> None:
        if self._ours_to_act():
            logger.error("slot_dropped", "%s: every stream is reset", reason)
            await self._leader.start_anew(reason)
