"""The roster: which replicas there are, and how many streams each of them has.

In Redis it is the hash `rowcast:replicas`, with a field for each replica that it writes anew every BEAT seconds, by the
clock of Redis. A replica that stops takes its field away; one that died is left out EXPIRY seconds later, by whoever
reads, and its field goes with the next beat of any other.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
from redis.asyncio import Redis

from rowcast.asking import asking
from rowcast.errors import Unavailable
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

KEY = "rowcast:replicas"

BEAT = 1.0
"""Seconds between two beats of a replica: how old its count may be."""

EXPIRY = 5.0
"""Seconds without a beat after which a replica is taken for dead."""

REPEAT_INTERVAL = 60.0
"""Seconds after which the same complaint is logged again."""

_BEAT = """
-- KEYS  1 the roster
-- ARGV  1 the replica's id, 2 its name as JSON, 3 its streams, 4 seconds after which a replica is taken for dead
local now = tonumber(redis.call('TIME')[1])
redis.call('HSET', KEYS[1], ARGV[1], string.format('{"at":%d,"name":%s,"streams":%d}', now, ARGV[2], ARGV[3]))
local all = redis.call('HGETALL', KEYS[1])
for number = 1, #all, 2 do
  local at = tonumber(string.match(all[number + 1], '^{"at":(%d+)') or '0')
  if now - at > tonumber(ARGV[4]) then redis.call('HDEL', KEYS[1], all[number]) end
end
redis.call('EXPIRE', KEYS[1], 60)
return now
"""


class Roster(Protocol):
    """Knows the replicas and their streams."""

    async def run(self) -> None:
        """Tell of this replica, for ever."""
        ...

    async def leave(self) -> None:
        """This replica is going: be left out at once. Never raises."""
        ...

    async def others(self) -> dict[str, int]:
        """The streams of every other replica by its name; replicas with the same name are counted together.

        Raises `Unavailable` when it can't be told.
        """
        ...


class _Line(msgspec.Struct):
    """A replica's field."""

    at: int
    name: str
    streams: int


class RedisRoster:
    """A roster in Redis.

    `replica` is an id that no other replica has, `name` what people call it; `streams` counts its open streams.
    """

    def __init__(self, redis: Redis, replica: str, name: str, streams: Callable[[], int]) -> None:
        self._redis = redis
        self._replica = replica
        self._name = msgspec.json.encode(name)
        self._streams = streams
        self._beat = redis.register_script(_BEAT)
        self._told = float("-inf")

    async def run(self) -> None:
        """See `Roster.run`."""
        while True:
            try:
                async with asking("replicas"):
                    await self._beat([KEY], [self._replica, self._name, self._streams(), round(EXPIRY)])
            except Unavailable as error:
                if time.monotonic() - self._told >= REPEAT_INTERVAL:
                    self._told = time.monotonic()
                    logger.warning("roster_unreachable", "this replica is not counted by the others: %s", error)
            await asyncio.sleep(BEAT)

    async def leave(self) -> None:
        """See `Roster.leave`."""
        try:
            async with asking("replicas"):
                await self._redis.hdel(KEY, self._replica)
        except Unavailable:
            pass  # it expires
        await self._redis.aclose()

    async def others(self) -> dict[str, int]:
        """See `Roster.others`."""
        async with asking("replicas"), self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.hgetall(KEY)
            (now, _), fields = await pipe.execute()
        return self._counted(fields, int(now))

    def _counted(self, fields: dict[bytes, Any], now: int) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for replica, field in fields.items():
            if replica.decode(errors="replace") == self._replica:
                continue
            try:
                line = msgspec.json.decode(field, type=_Line)
            except msgspec.MsgspecError:
                continue  # nobody else may write here: what is no beat is no replica
            if now - line.at <= EXPIRY:
                counts[line.name] += line.streams
        return dict(counts)
