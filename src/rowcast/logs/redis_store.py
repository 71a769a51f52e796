"""The keys of the `redis://` log and what is done to them: every command that the log sends to Redis or Valkey.

All keys lie in one slot of a cluster: they have the stream's name for their hash tag.

Nothing is sent twice by the client itself: a script whose answer was lost may have run.

The two commands of each commit, the leader's append and the read of every replica's tail, go over lines of their own
(`redis_line`). What a server refuses there it did not do: it is asked again as everything else is, by way of redis-py's
client, which knows how to load scripts, to follow redirections and to find a new primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any, NamedTuple

import hiredis
from redis.asyncio import Redis
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.exceptions import ConnectionError as Unreachable

from rowcast.core.position import Place
from rowcast.errors import ConfigError, Unavailable
from rowcast.logs.redis_client import FollowingPool, asked, connect
from rowcast.logs.redis_cursor import Head, Item, format_place, parse_place
from rowcast.logs.redis_line import Declined, Line

STREAM = "rowcast:log"
HEAD = "{rowcast:log}:head"
ONCE = "{rowcast:log}:once:"
"""What the marks of entries that are appended only once begin with; the rest is a hash of the entry's name."""

BLOCK = 1.0
"""Seconds that a read waits for the next item."""

TIMEOUT = 4.0
"""Seconds after which a connection that does not answer is given up; above BLOCK, below wal_sender_timeout."""

REPLICATION_WAIT = 1.0
"""Seconds that Redis's own replicas have to acknowledge what was written."""

READ_ITEMS = 16
"""Items read at once: with batches of 512 entries, about a megabyte."""

RANGE_ITEMS = 4
"""Items read back at once: with batches of 512 entries, about 300 kB."""

_pack: Callable[[tuple[str | int | bytes, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]

_HEAD_FIELDS = ("inc", "wal", "top", "pub", "db")


class Refused(Unavailable):
    """Redis answered, and did not do it."""


class Answer(NamedTuple):
    """What a script answers; see redis_scripts/*.lua for the codes."""

    code: str
    detail: str


class Unsecured(Unavailable):
    """It was done, but too few of Redis's own replicas said in time that they have it, too."""


class RedisStore:
    """Talks to the Redis or Valkey that has the log.

    `url`: see `redis_url`; redis-py's connections follow the log to wherever Sentinel or the Cluster has it. `block`:
    seconds that a read waits for the next item (0: not at all). `replicas`: how many of Redis's own replicas must have
    what was written before it counts as kept; None: one, as long as it has any. Every method raises `Refused` when
    Redis answers with an error, and `Unavailable` when it can't be reached or does not answer in TIMEOUT. Raises
    `ConfigError` when the URL is none.
    """

    def __init__(self, url: str, *, block: float = BLOCK, replicas: int | None = None) -> None:
        try:
            self._redis = connect(
                url,
                key=STREAM,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                socket_read_size=1 << 18,
            )
        except ValueError as error:
            raise ConfigError(f"[log] url: {error}") from None
        self._block = round(block * 1000)
        self._keys = [STREAM, HEAD]
        self._append = self._redis.register_script(_script("append"))
        self._publish = self._redis.register_script(_script("publish"))
        self._appending = Line(self._redis, TIMEOUT)
        self._reading = Line(self._redis, TIMEOUT)
        self._ahead: Place | None = None
        """The place after which the read begins that was sent already."""
        self._renew = self._redis.register_script(_script("renew"))
        self._mark = self._redis.register_script(_script("mark"))
        self._wanted = replicas
        self.replicas = 0
        """Redis's own replicas that are attached, as of the last `ping`."""

    @property
    def awaited(self) -> int:
        """How many of Redis's own replicas must have what was written."""
        return min(1, self.replicas) if self._wanted is None else self._wanted

    async def close(self) -> None:
        """Close every connection."""
        await self._appending.close()
        await self._reading.close()
        await self._redis.aclose()

    async def ping(self) -> None:
        """Ask whether it is there and still the primary, and how many replicas it has."""
        pool = self._redis.connection_pool
        async with _asking():
            if isinstance(pool, FollowingPool):
                await pool.follow()
            info = await asked(self._redis, lambda redis: redis.info("replication"))
            if info.get("role") == "slave" and isinstance(pool, FollowingPool):
                await pool.forget()
                raise ReadOnlyError("the server is no primary any more")
        self.replicas = int(info.get("connected_slaves", 0))

    async def look(self) -> tuple[Head | None, Item | None]:
        """The head and the oldest item, as of one moment."""

        async def ask(redis: Redis) -> Any:
            async with redis.pipeline(transaction=True) as pipe:
                pipe.hmget(HEAD, _HEAD_FIELDS)
                pipe.xrange(STREAM, count=1)
                return await pipe.execute()

        async with _asking():
            fields, items = await asked(self._redis, ask)
        return _head(fields), Item.parse(*items[0]) if items else None

    async def head(self) -> Head | None:
        """The head; None when there is none: the log was flushed, or never begun."""
        async with _asking():
            return _head(await asked(self._redis, lambda redis: redis.hmget(HEAD, _HEAD_FIELDS)))

    async def read(self, after: Place) -> list[Item]:
        """The next items, at most READ_ITEMS; none when none came in time."""
        line, ahead, self._ahead = self._reading, self._ahead, None
        if ahead is not None and ahead != after:
            line.drop()
        found: Any
        try:
            if (ahead == after and line.connected) or line.send(command := self._xread(after)):
                found = await line.answer()
            else:
                found = await _connected(line, command)
        except RedisError as error:
            raise _explained(error) from error
        except Declined:
            async with _asking():
                found = await asked(
                    self._redis,
                    lambda redis: redis.xread(
                        {STREAM: format_place(after)}, count=READ_ITEMS, block=self._block or None
                    ),
                )
            return [Item.parse(name, fields) for _, items in found for name, fields in items]
        if not found:
            return []
        items = [Item.of(name, fields) for name, fields in found[0][1]]
        if len(items) == READ_ITEMS:
            # There is more, most likely: the server can look for it while these are handled.
            ahead = items[-1].place
            with contextlib.suppress(Declined):
                self._ahead = ahead if line.send(self._xread(ahead)) else None
        return items

    def _xread(self, after: Place) -> bytes:
        block = ("BLOCK", self._block) if self._block else ()
        return _pack(("XREAD", "COUNT", READ_ITEMS, *block, "STREAMS", STREAM, f"{after[0]}-{after[1]}"))

    async def range(self, after: Place) -> list[Item]:
        """The next items that the stream holds now, at most RANGE_ITEMS."""
        async with _asking():
            found: Any = await asked(
                self._redis, lambda redis: redis.xrange(STREAM, min=f"({format_place(after)}", count=RANGE_ITEMS)
            )
        return [Item.parse(name, fields) for name, fields in found]

    async def append(
        self, incarnation: str, before: Place, last: Place, data: bytes, *, count: int, now: float
    ) -> Answer:
        """Append a batch of the WAL's entries; see redis_scripts/append.lua."""
        line = self._appending
        # `format_place`, here and for the read, without its calls: one of each goes out with each commit.
        places = f"{before[0]}-{before[1]}", f"{last[0]}-{last[1]}"
        arguments = (incarnation, *places, data, round(now * 1000), count)
        command = _pack(("EVALSHA", self._append.sha, 2, STREAM, HEAD, *arguments))
        try:
            answer = await line.answer() if line.send(command) else await _connected(line, command)
        except RedisError as error:
            raise _explained(error) from error
        except Declined:
            async with _asking():
                answer = await asked(self._redis, lambda redis: self._append(self._keys, arguments, client=redis))
        return _answer(answer)

    async def publish(self, nonce: str, data: bytes, *, now: float, once: str = "", remember: float = 3600.0) -> Answer:
        """Append one published entry; see redis_scripts/publish.lua.

        `once`: unless one of that name was appended within the last `remember` seconds; "": it has no name. Raises
        `Unsecured` where it was appended, and too few of Redis's own replicas have it after REPLICATION_WAIT.
        """
        arguments: list[bytes | str | int] = [nonce, data, round(now * 1000), max(1, round(remember * 1000))]
        keys = [*self._keys, ONCE + _digest(once)] if once else self._keys
        awaited = self.awaited
        async with _asking():
            if not awaited:
                return _answer(await asked(self._redis, lambda redis: self._publish(keys, arguments, client=redis)))
            answer, have = await asked(
                self._redis, lambda redis: _secured(redis, awaited, partial(self._publish, keys, arguments))
            )
        code = _answer(answer).code
        if code == "DUP":
            await self.secure()  # it was written over another connection, perhaps just now
        elif code == "OK" and have < awaited:
            await self._still_awaited(awaited, have)
        return _answer(answer)

    async def secure(self) -> tuple[str, Place] | None:
        """Up to where the log is kept: on Redis alone, or on as many of its replicas as are wanted.

        Returns (incarnation, WAL position); None when there is no log. Raises `Unsecured`.
        """
        awaited = self.awaited
        if not awaited:
            head = await self.head()
            return None if head is None else (head.incarnation, head.wal)

        async with _asking():
            fields, have = await asked(
                self._redis, lambda redis: _secured(redis, awaited, partial(self._mark, self._keys))
            )
        if have < awaited:
            await self._still_awaited(awaited, have)
        return None if not fields else (fields[0].decode(), parse_place(fields[1]))

    async def _still_awaited(self, awaited: int, have: int) -> None:
        """Raise `Unsecured`, unless there is none to wait for any more."""
        if self._wanted is None:
            await self.ping()
            if not self.replicas:
                return
        raise Unsecured(f"{have} of {awaited} Redis replicas have it after {REPLICATION_WAIT:g} s")

    async def renew(self, old: str, new: str, place: Place, database: str) -> Answer:
        """Begin a new incarnation in the place of `old` ("": of none); see redis_scripts/renew.lua."""
        arguments: list[bytes | str | int] = [old, new, format_place(place), database]
        async with _asking():
            return _answer(await asked(self._redis, lambda redis: self._renew(self._keys, arguments, client=redis)))

    async def trim(self, place: Place) -> None:
        """Drop every item below a place."""
        async with _asking():
            await asked(self._redis, lambda redis: redis.xtrim(STREAM, minid=format_place(place), approximate=False))


def mint() -> str:
    """A name that nobody else has: for a published entry, and part of an incarnation's."""
    return secrets.token_hex(8)


async def _secured(redis: Redis, awaited: int, write: Callable[..., Awaitable[Any]]) -> tuple[Any, int]:
    """Write, and wait until the replicas have it: (what the write answers, how many have it)."""
    if redis.connection is not None:
        answer = await write(client=redis)
        return answer, await redis.wait(awaited, round(REPLICATION_WAIT * 1000))
    # WAIT speaks of what was written on its own connection.
    async with redis.client() as one:
        return await _secured(one, awaited, write)


async def _connected(line: Line, command: bytes) -> Any:
    """Connect a line, and ask over it. Raises as the store does, and `Declined`."""
    async with _asking():
        await line.connect()
        if not line.send(command):
            raise Unreachable("Connection closed by server as soon as it was there.")
        return await line.answer()


@asynccontextmanager
async def _asking() -> AsyncIterator[None]:
    failure: Exception | None = None
    try:
        async with asyncio.timeout(TIMEOUT + BLOCK):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        failure = error
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        # Before Python 3.12, asyncio.wait_for forgets a cancellation that comes as a command is being sent.
        raise asyncio.CancelledError
    if failure is not None:
        raise _explained(failure) from failure


def _explained(error: Exception) -> Unavailable:
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, AuthenticationError):
        return Refused(f"Redis refuses the user or password of [log] url: {text}")
    if isinstance(error, (ResponseError, ReadOnlyError, ClusterDownError)):
        return Refused(f"Redis refuses: {text}{_advice(error)}")
    return Unavailable(f"Redis can't be reached: {text}")


def _advice(error: Exception) -> str:
    if isinstance(error, OutOfMemoryError):
        return "; raise its maxmemory, or lower [log] max_bytes"
    if isinstance(error, NoPermissionError):
        return "; see docs/reference/redis-log.md for the rights that the user of [log] url needs"
    if isinstance(error, MovedError):
        return "; it is a node of a Cluster: write redis+cluster:// in [log] url"
    if isinstance(error, ReadOnlyError):
        return "; [log] url leads to a replica: name the primary"
    if str(error).startswith("MISCONF"):
        return "; it can't write its snapshot: see its own log"
    return ""


def _head(fields: Any) -> Head | None:
    if fields[0] is None:
        return None
    incarnation, wal, top, pub, database = ((field or b"").decode() for field in fields)
    return Head(incarnation, parse_place(wal), parse_place(top), pub, database)


def _answer(answer: list[bytes]) -> Answer:
    code, detail = answer
    return Answer(code.decode(), detail.decode())


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _script(name: str) -> str:
    return (files("rowcast.logs") / "redis_scripts" / f"{name}.lua").read_text()
