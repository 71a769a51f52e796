"""Invalidation for users without an open stream: their keys in Redis are deleted for the entries of their topics.

`cache` deletes for the streams of this replica. Whom else an entry concerns, the `audience` tells. Nobody waits for
these deletions, and the hub only notes the topic; this task goes through the topics' users, a few at a time:

- one round takes at most USERS users, from all topics that are due in turn, so that a large topic does not hold up the
  small ones; the next one begins SPACING seconds later. A user's burst costs one deletion in that time;
- a topic that is noted again while its users are gone through is gone through once more;
- who loses a topic that is due is deleted for all the same: they had it at the entry's place.

With a `redis://` log the elected replica does it, with another one every replica (a deletion too many does no harm).
The others note the topics of the last WINDOW seconds, and whoever is elected begins with those. Where it can't be told
what was missed (a gap in the log, too many topics), everybody's keys are deleted.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence

from redis.asyncio import Redis, RedisCluster

from rowcast.asking import asking
from rowcast.cache import AWAY_PAUSE, MAX_OWED, PATIENCE, REPEAT_INTERVAL, SPACING
from rowcast.core.audience import Audience, Reading
from rowcast.core.entry import Entry, RowChange
from rowcast.core.position import Place
from rowcast.core.snapshot import Snapshot
from rowcast.core.template import Template
from rowcast.errors import Unavailable
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

USERS = 250
"""Users in one round: 10,000 in a second."""

ITEMS = 2000
"""Rows that are looked at in one round."""

MAX_SWEEPS = 1000
"""Topics whose users are gone through at the same time."""

MAX_TOPICS = 100_000
"""Topics that may wait; over that, everybody's keys are deleted instead."""

WINDOW = 60.0
"""Seconds for which topics are remembered by a replica that is not elected."""

LOOK = 0.25
"""Seconds between two looks at whether there is something to do."""

RETRY = 1.0
"""Seconds between two readings of the table."""

_Due = str | tuple[str]
"""A topic, or in a tuple what topics begin with."""

_EVERYONE: _Due = ("",)


class Absentees:
    """See the module's docstring.

    `read` reads the rules' tables into a `Reading`; it returns the snapshot and the place that the hub must pass.
    `recent` gives the changes of these tables that a snapshot may not see yet. `elected`: whether this replica is the
    one to delete.
    """

    def __init__(
        self,
        redis: Redis | RedisCluster,
        keys: Sequence[Template],
        audience: Audience,
        read: Callable[[Reading], Awaitable[tuple[Snapshot, Place]]],
        recent: Callable[[], list[tuple[int, RowChange]]],
        elected: Callable[[], bool],
    ) -> None:
        self.audience = audience
        self._redis = redis
        self._keys = keys
        self._read = read
        self._recent = recent
        self._elected = elected
        self._due: dict[_Due, float] = {}
        self._prefixes: set[str] = set()
        self._sweeps: dict[_Due, Iterator[str | None]] = {}
        self._owed: dict[str, None] = {}
        self._work = asyncio.Event()
        self._told = float("-inf")
        self.deletions = 0
        """Deletions of a user's keys that were answered."""
        self.failures = 0
        """Deletions that failed; they are made good."""

    @property
    def waiting(self) -> int:
        """Topics whose users are still to be gone through."""
        return len(self._due.keys() | self._sweeps.keys())

    # The hub's side: nothing here takes longer for many users

    def note(self, topic: str) -> None:
        """An entry came by on a topic."""
        self._note(topic)

    def note_matching(self, prefix: str) -> None:
        """An entry came by on all topics with a prefix."""
        self._prefixes.add(prefix)
        self._note((prefix,))

    def apply(self, entry: Entry) -> None:
        """A ROW entry came by."""
        if self._due and entry.body.action == "truncate" and self.audience.known:
            self._begin_all()
        lost = self.audience.apply(entry)
        if lost is not None and any(self._is_due(topic) for topic in lost.topics):
            self._owe({lost.user: None})

    def settle(self, head: Place) -> None:
        """The hub passed a place."""
        self.audience.settle(head)

    def restart(self, *, gap: bool) -> None:
        """The log begins here; `gap`: after another one, and nobody knows what was between."""
        self.audience.restart()
        self._sweeps.clear()
        if gap:
            self._note_everyone()

    def _is_due(self, topic: str) -> bool:
        return topic in self._due or any(topic.startswith(prefix) for prefix in self._prefixes)

    def _note(self, due: _Due) -> None:
        # To the end: the oldest stands first.
        self._due.pop(due, None)
        self._due[due] = time.monotonic()
        if len(self._due) > MAX_TOPICS:
            self._note_everyone()
        self._work.set()

    def _note_everyone(self) -> None:
        self._due = {_EVERYONE: time.monotonic()}
        self._prefixes = {""}
        self._work.set()

    # The tasks

    async def run(self) -> None:
        """Keep the audience up to date, and delete what is due, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep())
            group.create_task(self._delete())

    async def _keep(self) -> None:
        while True:
            if not self._elected():
                if self.audience.known:
                    self.audience.restart()
                    self._sweeps.clear()
                    self._owed.clear()
                self._expire()
            elif self.audience.stale:
                await self._load()
                await asyncio.sleep(RETRY)
                continue
            await asyncio.sleep(LOOK)

    async def _load(self) -> None:
        reading = self.audience.begin(self._recent())
        try:
            snapshot, after = await self._read(reading)
        except Unavailable as error:
            self._complain("the users whose cached keys are to be deleted can't be read", error)
            self.audience.failed()
            return
        if self.audience.known:
            self._begin_all()
        self.audience.join(reading, snapshot, after)
        self._work.set()

    async def _delete(self) -> None:
        while True:
            if not (self._elected() and self.audience.known):
                await asyncio.sleep(LOOK)
                continue
            users = self._round()
            if users:
                await self._unlink(users)
            if self._sweeps or self._owed or self._due:
                await asyncio.sleep(SPACING)
            else:
                self._work.clear()
                # What is not ours any more is noticed without anything to do.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK):
                        await self._work.wait()

    def _expire(self) -> None:
        until = time.monotonic() - WINDOW
        old = itertools.takewhile(lambda due: self._due[due] < until, self._due)
        for due in list(old):
            self._take(due)

    def _take(self, due: _Due) -> None:
        del self._due[due]
        if isinstance(due, tuple):
            self._prefixes.discard(due[0])

    def _users(self, due: _Due) -> Iterator[str | None]:
        return self.audience.users(due) if isinstance(due, str) else self.audience.matching(due[0])

    def _begin_all(self) -> None:
        """The audience is about to be another one: what is due is for those who are in it now."""
        for due in list(self._due):
            self._take(due)
            users = self._users(due)
            self._sweeps[due] = itertools.chain(self._sweeps[due], users) if due in self._sweeps else users

    def _round(self) -> dict[str, None]:
        """The users of the next round."""
        for due in list(itertools.islice(self._due, MAX_SWEEPS)):
            if len(self._sweeps) >= MAX_SWEEPS:
                break
            if due not in self._sweeps:
                self._take(due)
                self._sweeps[due] = self._users(due)
        users = dict.fromkeys(itertools.islice(self._owed, USERS))
        for owed in users:
            del self._owed[owed]
        items, share = 0, max(10, USERS // max(1, len(self._sweeps)))
        for due in list(self._sweeps):
            if len(users) >= USERS or items >= ITEMS:
                break
            sweep = self._sweeps.pop(due)
            most, looked = min(len(users) + share, USERS), 0
            for user in sweep:
                looked += 1
                if user is not None:
                    users[user] = None
                if len(users) >= most or items + looked >= ITEMS:
                    # To the end: the others are to have their turn.
                    self._sweeps[due] = sweep
                    break
            items += max(1, looked)
        return users

    async def _unlink(self, users: dict[str, None]) -> None:
        keys = [key for user in users for template in self._keys for key in template.render({"user": user})]
        try:
            async with asking("cache", timeout=PATIENCE):
                if isinstance(self._redis, RedisCluster):
                    # They lie in several slots.
                    async with self._redis.pipeline(transaction=False) as pipe:
                        for key in keys:
                            pipe.execute_command("UNLINK", key)
                        await pipe.execute()
                elif keys:
                    await self._redis.unlink(*keys)
        except Unavailable as error:
            self.failures += len(users)
            self._owe(users)
            self._complain("cached keys of users without a stream can't be deleted, and will be when they can", error)
            await asyncio.sleep(AWAY_PAUSE)
        else:
            self.deletions += len(users)

    def _owe(self, users: dict[str, None]) -> None:
        self._owed |= users
        self._work.set()
        if len(self._owed) > MAX_OWED:
            self._owed.clear()
            self._note_everyone()

    def _complain(self, what: str, error: Exception) -> None:
        if time.monotonic() - self._told >= REPEAT_INTERVAL:
            self._told = time.monotonic()
            logger.warning("cache_unreachable", "%s: %s", what, error)
