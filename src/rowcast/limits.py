"""Rate limits: how many requests a client address may send in a window of time.

A window begins with a client's first request and ends after its length; then the count begins anew. So a client
can send up to twice the number within one length, at the seam of two windows, and never more in one window: the
price for one number per client, where an exact window would keep every request.

With a redis log the counts are kept there, and one budget holds over all replicas. With another log each
process counts for itself.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import limits as library
import msgspec
from limits.aio.storage import MemoryStorage, RedisClusterStorage, RedisStorage
from limits.aio.storage import Storage as LibraryStorage
from limits.errors import ConfigurationError
from redis.asyncio import Redis

from rowcast.errors import ConfigError
from rowcast.logs.redis_client import connect
from rowcast.logs.redis_url import RedisUrl, is_redis
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.config import Config

logger = get_logger(__name__)

REDIS_PREFIX = "rowcast:limits"
"""Where the counts are kept in Redis: `rowcast:limits:*`."""

TIMEOUT = 0.25
"""Seconds that a request waits for the count; then it passes uncounted."""

PAUSE = 1.0
"""Seconds for which nothing is asked of a storage that just failed: its absence must not slow requests down."""

REPEAT_INTERVAL = 60.0
"""Seconds after which the storage's absence is logged again."""

SWEEP_INTERVAL = 1.0
"""Seconds between two removals of ended windows from memory."""


class Limit(msgspec.Struct, frozen=True):
    """`amount` requests in `window` seconds."""

    amount: int
    window: int


class Verdict(msgspec.Struct, frozen=True):
    """What became of a request: whether it may pass, and how the limit that it was nearest to stands.

    `remaining` is how many more requests the window has room for, `reset` in how many seconds it ends.
    """

    allowed: bool
    limit: Limit
    remaining: int
    reset: int


def parse_limits(text: str) -> list[Limit]:
    """The limits of a text like `"120/minute"`, `"10 per 5 seconds"`; several are separated by semicolons.

    Raises ValueError that says what was expected.
    """
    try:
        items = library.parse_many(text)
    except ValueError:
        items = []
    if not items or any(item.amount < 1 for item in items):
        raise ValueError(f'{text!r} is no rate limit; write it like "120/minute", "10/second" or "5 per 10 seconds"')
    return [Limit(item.amount, item.get_expiry()) for item in items]


def covers(prefix: str, path: str) -> bool:
    """Whether a path is the prefix or below it: `/a` covers `/a` and `/a/b`, not `/ab`."""
    return path == prefix or path.startswith(prefix if prefix.endswith("/") else prefix + "/")


def remark(config: Config) -> str | None:
    """What an operator should know of the limits as they are configured, or None."""
    if not configured(config) or is_shared(config.log.url):
        return None
    return (
        f'each process counts for itself, since the log is "{config.log.url.partition(":")[0]}:": '
        "with N replicas a client may send up to N times as much"
    )


def configured(config: Config) -> bool:
    """Whether there is any limit."""
    return bool(config.limits.requests or config.limits.strict)


def is_shared(log_url: str) -> bool:
    """Whether counts are kept in Redis."""
    return is_redis(log_url)


class Limiter:
    """Counts requests. `requests` holds for every path, `strict` in addition for those that a prefix covers.

    It fails open: while the storage can't be asked, every request passes, which is logged at most once a minute.
    Raises ValueError for a text that is no limit.
    """

    def __init__(self, storage: LibraryStorage, requests: str | None, strict: Mapping[str, str] | None = None) -> None:
        self._storage = storage
        self._requests = [("requests", limit) for limit in parse_limits(requests)] if requests else []
        self._strict = [
            (prefix, [(prefix, limit) for limit in parse_limits(text)]) for prefix, text in (strict or {}).items()
        ]
        self._away_until = -math.inf
        self._told = -math.inf
        self.failures = 0
        """Requests that passed uncounted since the storage could not be asked."""

    @classmethod
    def of(cls, config: Config) -> Limiter | None:
        """The limiter that a configuration asks for; None when there are no limits. Raises `ConfigError`."""
        if not configured(config):
            return None
        return cls(make_storage(config.log.url), config.limits.requests, config.limits.strict)

    async def check(self, client: str, path: str) -> Verdict | None:
        """Count a request of a client; None when no limit holds for it, or it could not be counted."""
        strict = [named for prefix, limits in self._strict if covers(prefix, path) for named in limits]
        # The strict ones first: what they refuse is not taken off the other budget.
        limits = [*strict, *self._requests]
        if not limits or time.monotonic() < self._away_until:
            self.failures += bool(limits)
            return None
        try:
            async with asyncio.timeout(TIMEOUT):
                return await self._count(client, limits)
        except Exception as error:  # whatever a storage raises: a client must not suffer for it
            self._failed(error)
            return None

    async def close(self) -> None:
        """Let go of the connections."""
        client = getattr(getattr(self._storage, "bridge", None), "storage", None)
        if isinstance(client, Redis):
            await client.aclose(close_connection_pool=True)
        elif client is not None:
            await client.aclose()

    async def _count(self, client: str, limits: list[tuple[str, Limit]]) -> Verdict:
        nearest: Verdict | None = None
        for name, limit in limits:
            key = f"{name}:{limit.amount}:{limit.window}:{client}"
            count = await self._storage.incr(key, limit.window)
            end = await self._storage.get_expiry(key)
            reset = min(max(math.ceil(end - time.time()), 1), limit.window)
            verdict = Verdict(count <= limit.amount, limit, max(limit.amount - count, 0), reset)
            if not verdict.allowed:
                return verdict
            if nearest is None or verdict.remaining < nearest.remaining:
                nearest = verdict
        assert nearest is not None
        return nearest

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        now = time.monotonic()
        self._away_until = now + PAUSE
        if now - self._told >= REPEAT_INTERVAL:
            self._told = now
            what = " ".join(str(error).split()) or f"no answer within {TIMEOUT:g} s"
            logger.warning("limits_uncounted", "rate limits can't be counted, so every request passes: %s", what)


class WindowStorage(MemoryStorage):
    """Counts of this process.

    The library's own looks at all clients for every request; this one does so once a second.
    """

    STORAGE_SCHEME = ["async+rowcast-memory"]  # noqa: RUF012  # what the library's class declares it to be

    def __init__(self) -> None:
        super().__init__()
        self._swept = time.monotonic()

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        """Count up; a window that has ended begins anew. `expiry` is its length in seconds."""
        now = time.time()
        if time.monotonic() - self._swept > SWEEP_INTERVAL:
            self._sweep(now)
        if self.expirations.get(key, 0.0) <= now:
            self.storage[key] = 0
            self.expirations[key] = now + expiry
        self.storage[key] += amount
        return self.storage[key]

    def _sweep(self, now: float) -> None:
        self._swept = time.monotonic()
        for key in [key for key, end in self.expirations.items() if end <= now]:
            del self.expirations[key]
            del self.storage[key]


def make_storage(log_url: str) -> LibraryStorage:
    """The storage that goes with a log. Nothing is connected yet.

    Raises `ConfigError` when the URL is none that can be used.
    """
    if not is_shared(log_url):
        return WindowStorage()
    waits = {"socket_timeout": TIMEOUT, "socket_connect_timeout": TIMEOUT}
    try:
        target = RedisUrl.parse(log_url)
        if target.kind != "cluster":
            client = connect(log_url, key=REDIS_PREFIX, **waits)
            return RedisStorage(
                "async+redis://",
                implementation="redispy",
                key_prefix=REDIS_PREFIX,
                connection_pool=client.connection_pool,  # type: ignore[arg-type]  # passed on as it is
            )
        return RedisClusterStorage(
            "async+redis+cluster://" + ",".join(f"{host}:{port}" for host, port in target.addresses),
            implementation="redispy",
            key_prefix=REDIS_PREFIX,
            ssl=target.tls,
            **waits | {"protocol": 2} | dict(target.options),
        )
    except (ConfigurationError, ValueError) as error:
        raise ConfigError(f"[log] url: rate limits can't be counted there: {error}") from None
