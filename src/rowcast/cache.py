"""Invalidation: a user's keys in Redis are deleted before an entry is delivered to them.

The client that gets an event fetches its dashboard anew, and must not be served from a cache that was filled before the
change. So a stream that is given an entry is held (`Stream.hold`) until a deletion that was sent after the hub saw the
entry has been answered. Only the writing of that stream waits: the hub, and everybody else's stream, go on.

Deletions are coalesced: one round for all users that are due, and the next one of the same user at least SPACING
later; what came meanwhile waits for that. A round takes at most PATIENCE; then everything that is held is delivered,
nothing is held until Redis answers again, and the keys that are owed are deleted then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from redis.asyncio import Redis, RedisCluster

from rowcast.asking import asking
from rowcast.core.stream import Stream, StreamState
from rowcast.core.template import Template
from rowcast.errors import ConfigError, Unavailable
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

PATIENCE = 0.25
"""Seconds that a delivery waits for Redis."""

SPACING = 0.025
"""Seconds between two deletions for the same user."""

AWAY_PAUSE = 1.0
"""Seconds until a Redis that did not answer is asked again."""

MAX_USERS = 1000
"""Users in one round."""

MAX_OWED = 100_000
"""Users whose keys are remembered while Redis is away."""

REPEAT_INTERVAL = 60.0
"""Seconds after which a complaint is logged again."""


def parse_keys(texts: Iterable[str], origin: str) -> list[Template]:
    """The templates of keys, in which only `{user}` may stand. Raises `ConfigError`."""
    templates = [Template.parse(text, origin) for text in texts]
    for template in templates:
        if template.columns != {"user"}:
            raise ConfigError(f"{origin}: {template.text!r} must name the user's key, like 'cache:dashboard:{{user}}'")
    return templates


class Invalidation:
    """Deletes `keys` of users in `redis`. `wake` is called for a stream that has something to write again."""

    def __init__(self, redis: Redis | RedisCluster, keys: Sequence[Template], wake: Callable[[Stream], None]) -> None:
        self._redis = redis
        self._keys = keys
        self._wake = wake
        self._due: dict[str, None] = {}
        self._held: dict[str, dict[Stream, None]] = {}
        self._last: dict[str, float] = {}
        self._work = asyncio.Event()
        self._away = False
        self._told = float("-inf")
        self.deletions = 0
        """Deletions of a user's keys that were answered."""
        self.failures = 0
        """Deletions that failed."""
        self.late = 0
        """Deliveries that did not wait, or no longer, for their deletion."""

    def hold(self, streams: Iterable[Stream]) -> None:
        """These streams are about to be given something: have it wait for the deletion of their users' keys."""
        for stream in streams:
            user = stream.grant.user
            if self._away:
                self.late += 1
                if len(self._due) >= MAX_OWED:
                    continue
            else:
                stream.hold()
                self._held.setdefault(user, {})[stream] = None
            self._due[user] = None
        self._work.set()

    async def close(self) -> None:
        """Let go of the connections."""
        await self._redis.aclose()

    async def run(self) -> None:
        """Delete what is due, for ever."""
        while True:
            users, pause = self._ready()
            if users:
                await self._round(users)
                if self._away:
                    await asyncio.sleep(AWAY_PAUSE)
                continue
            self._work.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._work.wait()
            except TimeoutError:
                pass

    def _ready(self) -> tuple[list[str], float | None]:
        """The users of the next round; without any, the seconds until somebody is due (None: nobody is)."""
        now = time.monotonic()
        self._last = {user: at for user, at in self._last.items() if now - at < SPACING}
        users = [user for user in self._due if user not in self._last]
        if len(users) > MAX_USERS:
            # Those for whom somebody waits go first.
            users.sort(key=lambda user: user not in self._held)
        if users or not self._due:
            return users[:MAX_USERS], None
        return [], max(0.001, min(self._last[user] for user in self._due) + SPACING - now)

    async def _round(self, users: list[str]) -> None:
        now = time.monotonic()
        keys = [key for user in users for template in self._keys for key in template.render({"user": user})]
        marked: list[Stream] = []
        for user in users:
            del self._due[user]
            self._last[user] = now
            marked.extend(self._held.get(user, ()))
        for stream in marked:
            stream.mark()
        try:
            # Keys of several users lie in several slots of a cluster: each goes by itself, all in one go.
            async with asking("cache", timeout=PATIENCE), self._redis.pipeline(transaction=False) as pipe:
                for key in keys:
                    pipe.execute_command("UNLINK", key)
                await pipe.execute()
        except Unavailable as error:
            self._fail(users, error)
            return
        self._away = False
        self.deletions += len(users)
        for stream in marked:
            # What came after the deletion was sent waits for the next one.
            self._release(stream, marked=stream.grant.user in self._due)
        for user in users:
            if user not in self._due:
                self._held.pop(user, None)

    def _release(self, stream: Stream, *, marked: bool = False) -> None:
        stream.unhold(marked=marked)
        if stream.state is not StreamState.ENDED:
            self._wake(stream)

    def _fail(self, users: list[str], error: Unavailable) -> None:
        self._away = True
        self.failures += len(users)
        self._due |= dict.fromkeys(users)
        held, self._held = self._held, {}
        for streams in held.values():
            for stream in streams:
                self.late += 1
                self._release(stream)
        if time.monotonic() - self._told >= REPEAT_INTERVAL:
            self._told = time.monotonic()
            logger.warning(
                "cache_unreachable", "cached keys can't be deleted, and are delivered over until they can: %s", error
            )
