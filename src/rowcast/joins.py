"""Joins: reading users' subscription rows from the database and handing them to the hub.

One load at a time, for all users who wait: users who connect together share one query, and no load can be
older than what the recent changes were pruned by.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from rowcast import jitter
from rowcast.core.position import ORIGIN
from rowcast.core.stream import Stream, StreamState
from rowcast.core.subscriptions import Load, UserRows
from rowcast.errors import Unavailable
from rowcast.ports import Loader
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.hub import Hub

logger = get_logger(__name__)

GROUP = 1000
"""Users read by one query at most."""

PART = 50
"""Rows that are joined to the tail in one turn of the loop, or one user with more."""

RETRY = 1.0
"""Seconds between two tries to read users whose streams are already open."""

PRUNE_AT = 1000
"""Recent row changes kept before a fresh snapshot is asked for, to let go of the settled ones."""


class Joins:
    """Which users wait to be read, and the task that reads them.

    `loader` None: no rule needs the database, and every user is exact at once.
    """

    def __init__(self, hub: Hub, loader: Loader | None) -> None:
        self._hub = hub
        self._loader = loader
        self._wanted: dict[str, None] = {}
        self._tell: set[str] = set()
        self._heads: dict[Stream, None] = {}
        self._prune_at = PRUNE_AT
        self._work = asyncio.Event()
        self._reading = asyncio.Lock()

    def use(self, loader: Loader | None) -> None:
        """Read by another loader from now on. To be called when every user is wanted anew."""
        self._loader = loader

    def want(self, user: str, *, tell: bool = False) -> None:
        """Have a user read (again); a load of them that is under way is ignored. `tell`: once done, say so
        to their streams even if nothing differs."""
        if tell:
            self.tell(user)
        if self._loader is None:
            self._hub.subscriptions.join(Load(ORIGIN, {user: UserRows()}))
            self._hub.settle()
        else:
            self._wanted[user] = None
            self._work.set()

    def claim(self) -> list[str]:
        """Take users to be read now, together: at most GROUP."""
        users = list(self._wanted)[:GROUP]
        for user in users:
            del self._wanted[user]
        return users

    def deliver(self, load: Load) -> list[str]:
        """Hand over what was read of claimed users, and return those who must be wanted once more.

        A user who was wanted again meanwhile is left out: they need a load from after that. So is one who has gone,
        maybe before they were wanted again. After a gap of the log a load may be too early for all of them.
        """
        for user in [user for user in load.users if user in self._wanted or user not in self._hub.users]:
            del load.users[user]
        if load.users and not self._hub.relies_on(load):
            return list(load.users)
        return self._hub.join(load)

    def tell(self, user: str) -> None:
        """Once the user is read, say so to their streams even if nothing differs."""
        self._tell.add(user)

    def told(self, user: str) -> bool:
        """Whether the user's streams are to be told though nothing differs; asked once."""
        asked = user in self._tell
        self._tell.discard(user)
        return asked

    def forget(self, user: str) -> None:
        """The user has no stream any more."""
        self._wanted.pop(user, None)
        self._tell.discard(user)

    def want_head(self, stream: Stream) -> None:
        """A client holds a position above our head: this replica is behind, or the position is made up.
        Have the stream wait for what is committed now, and then decide."""
        self._heads[stream] = None
        self._work.set()

    def awaits_head(self, stream: Stream) -> bool:
        """Whether it is not known yet what the stream must wait for."""
        return stream in self._heads

    def mind(self, recent: int) -> None:
        """There are so many recent changes kept: prune when there are too many."""
        if recent > self._prune_at:
            self._prune_at = recent * 2
            self._work.set()

    async def prune(self) -> None:
        """Let go of the recent changes that every load to come will have seen."""
        if self._loader is None:
            return
        async with self._reading:
            self._hub.subscriptions.prune(await self._loader.horizon())
        self._prune_at = max(PRUNE_AT, 2 * self._hub.subscriptions.recent)

    async def run(self) -> None:
        """Read whoever waits, for ever."""
        while True:
            await self._work.wait()
            self._work.clear()
            try:
                await self._round()
            except Unavailable as error:
                logger.warning("subscriptions_unreadable", "subscriptions can't be read: %s", error)
                await self._pause()
            except Exception:
                # Whatever it was, those who wait must be told, and those who come must be served.
                logger.exception("subscriptions_failed", "subscriptions could not be read")
                await self._pause()

    async def _pause(self) -> None:
        self._give_up()
        await asyncio.sleep(RETRY)
        if self._wanted or self._heads:
            self._work.set()

    async def _round(self) -> None:
        if self._heads:
            streams = list(self._heads)
            after = await self._hub.log.head()
            for stream in streams:
                stream.after = after
                self._heads.pop(stream, None)
            self._hub.settle()
        if self._hub.subscriptions.recent > PRUNE_AT:
            await self.prune()
        stale: list[str] = []
        while self._wanted and self._loader is not None:
            users = self.claim()
            try:
                async with self._reading:
                    load = await self._loader.load(users)
                    for part in load.parts(PART):
                        stale.extend(self.deliver(part))
                        await asyncio.sleep(0)
            except Exception:
                for user in (*users, *stale):
                    if user in self._hub.users:
                        self._wanted[user] = None
                raise
        if stale:
            # The transaction that makes them stale is not visible yet: to ask at once would only spin.
            await asyncio.sleep(0.05)
            for user in stale:
                if user in self._hub.users:
                    self.want(user)

    def _give_up(self) -> None:
        """End the streams that have not started; the others stay, paused, and are tried again."""
        for user in [*self._wanted, *(stream.grant.user for stream in self._heads)]:
            for stream in tuple(self._hub.users.get(user, ())):
                if stream.state is StreamState.STARTING:
                    self._hub.end(stream, "unavailable", retry=jitter.retry(2.0, 6.0))
        self._heads.clear()
