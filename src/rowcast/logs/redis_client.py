"""Clients for every URL of a Redis or Valkey: one server, the primary that Sentinel names, a Cluster.

`connect(url)` is a client for any key. `connect(url, key=…)` is a plain `Redis` whose connections always lead to the
server that has the key: with Sentinel to the primary, in a Cluster to the node that has the key's slot, asked anew for
each connection. It can do what a Cluster's client can't: transactions, WAIT, publish and subscribe, blocking reads.

Nothing is sent twice by a client: what was under way when its connection broke may have been done, or not. `asked`
repeats only what the server says it did not do: a redirection within a Cluster.

Sources: "Guidelines for Redis clients with support for Redis Sentinel", "Redis cluster specification" (MOVED, ASK).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, overload

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import Connection, ConnectionPool, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as Unreachable

from rowcast.logs.redis_url import Address, RedisUrl
from rowcast.telemetry.journal import get_logger

logger = get_logger(__name__)

TIMEOUT = 4.0
"""Seconds after which a connection that does not answer is given up."""

LOOKUP_TIMEOUT = 1.0
"""Seconds that a sentinel, or a node that is asked who has a slot, may take."""

REDIRECTIONS = 16
"""How often in a row a Cluster may send us elsewhere."""

TRY_AGAIN = 0.05
"""Seconds until what a slot that is just being moved could not do is tried again."""

T = TypeVar("T")


class Locator(Protocol):
    """Knows which server has the keys."""

    async def locate(self) -> Address:
        """The server's address. Raises redis's ConnectionError when nobody knows it."""
        ...

    def moved(self, address: Address) -> None:
        """A server said that another one has the keys."""
        ...

    def forget(self) -> None:
        """What was known is wrong: ask anew."""
        ...


@overload
def connect(url: str, *, key: str, **options: Any) -> Redis: ...


@overload
def connect(url: str, *, key: None = None, **options: Any) -> Redis | RedisCluster: ...


def connect(url: str, *, key: str | None = None, **options: Any) -> Redis | RedisCluster:
    """A client; nothing is connected yet. To be closed by `aclose()`.

    `key` None: for any key (for a Cluster that is a `RedisCluster`); else for this key and those in its slot.
    `options` are arguments of redis-py's connections, e.g. `socket_timeout` in seconds or `decode_responses`; the
    URL's own go before them. Raises ValueError when the URL is none of `redis_url`.
    """
    target = RedisUrl.parse(url)
    settings: dict[str, Any] = {
        "socket_timeout": TIMEOUT,
        "socket_connect_timeout": TIMEOUT,
        "client_name": "rowcast",
        # The shape of answers depends on it, and 6.2 to 8 all speak it.
        "protocol": 2,
    }
    settings |= options | dict(target.options)
    once = Retry(NoBackoff(), 0)
    if target.kind == "cluster" and key is None:
        nodes = [ClusterNode(host, port) for host, port in target.addresses]
        return RedisCluster(startup_nodes=nodes, retry=once, ssl=target.tls, **settings)
    settings |= {"retry": once, "driver_info": None}
    if target.kind == "node":
        kind: type[Connection] = SSLConnection if target.tls else Connection
        (host, port), *_ = target.addresses
        return Redis.from_pool(ConnectionPool(kind, host=host, port=port, **settings))
    locator: Locator
    if target.kind == "sentinel":
        locator = SentinelLocator(target)
    else:
        assert key is not None
        locator = SlotLocator(target, key)
    return Redis.from_pool(FollowingPool(_FollowingSSL if target.tls else _FollowingPlain, locator=locator, **settings))


class FollowingPool(ConnectionPool):
    """Connections to whichever server has the keys now."""

    def __init__(self, kind: type[Connection], *, locator: Locator, **settings: Any) -> None:
        super().__init__(kind, locator=locator, **settings)
        self.locator = locator
        self.address: Address | None = None
        """Where the last connection led to."""

    def make_connection(self) -> Any:
        """A new connection, not connected yet."""
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.pool = self
        return connection

    async def forget(self) -> None:
        """Give up every connection: the server is not the one any more."""
        self.locator.forget()
        await self.disconnect(inuse_connections=True)

    async def follow(self) -> bool:
        """Ask where the keys are by now, and give up the connections that lead elsewhere. Returns whether there were
        any.

        A primary that was cut off from its sentinels does not say that it is none any more. Not only the last one that
        was made is looked at: some are kept by one user for as long as they work.
        """
        if self.address is None:
            return False
        address = await self.locator.locate()
        connections: list[Any] = [*self._available_connections, *self._in_use_connections]
        astray = [one for one in connections if one.is_connected and (one.host, one.port) != address]
        if not astray:
            return False
        logger.warning("redis_moved", "the Redis that has the log is another one now")
        await asyncio.gather(*(one.disconnect() for one in astray), return_exceptions=True)
        return True


class _Following:
    """Asks where to before it connects. A mixin of redis-py's connections."""

    pool: FollowingPool | None = None

    def __init__(self, *, locator: Locator, **settings: Any) -> None:
        super().__init__(**settings)
        self.locator = locator
        self.host: str
        self.port: int

    async def connect_check_health(self, check_health: bool = True, retry_socket_connect: bool = True) -> None:
        if self.is_connected:  # type: ignore[attr-defined]
            return
        self.host, self.port = address = await self.locator.locate()
        try:
            await super().connect_check_health(check_health, retry_socket_connect)  # type: ignore[misc]
        except (RedisError, OSError):
            self.locator.forget()
            raise
        if self.pool is not None:
            self.pool.address = address

    async def read_response(self, *arguments: Any, **options: Any) -> Any:
        try:
            return await super().read_response(*arguments, **options)  # type: ignore[misc]
        except (MovedError, ReadOnlyError, ClusterDownError) as error:
            # Of use to those who don't call `asked`: this fails, and the next one finds the server.
            self.locator.forget()
            if isinstance(error, MovedError):
                self.locator.moved((error.host or self.host, int(error.port)))
            self.mark_for_reconnect()  # type: ignore[attr-defined]
            raise


class _FollowingPlain(_Following, Connection):
    pass


class _FollowingSSL(_Following, SSLConnection):
    pass


class SentinelLocator:
    """Asks the sentinels which server is the primary. Each time: a stale answer would be the old one."""

    def __init__(self, target: RedisUrl) -> None:
        self._target = target

    async def locate(self) -> Address:
        """See `Locator`."""
        sentinel = Sentinel(  # type: ignore[no-untyped-call]
            self._target.addresses,
            sentinel_kwargs={
                "socket_timeout": LOOKUP_TIMEOUT,
                "socket_connect_timeout": LOOKUP_TIMEOUT,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
                "ssl": self._target.tls,
                "driver_info": None,
            }
            | dict(self._target.sentinel_options),
        )
        try:
            host, port = await sentinel.discover_master(self._target.service)
        except AuthenticationError as error:
            raise AuthenticationError(f"a sentinel refuses ?sentinel_username or ?sentinel_password: {error}") from None
        except ResponseError as error:
            raise Unreachable(f"no sentinel answers there, but something else: {error}") from None
        finally:
            await sentinel.aclose()
        return host, int(port)

    def moved(self, address: Address) -> None:
        """See `Locator`: only sentinels say so."""

    def forget(self) -> None:
        """See `Locator`: nothing is kept."""


class SlotLocator:
    """Asks the nodes of a Cluster which one has the slot of a key, and keeps the answer until it is wrong."""

    def __init__(self, target: RedisUrl, key: str) -> None:
        self._target = target
        self._slot = key_slot(key.encode())
        self._known: dict[Address, None] = dict.fromkeys(target.addresses)
        self._owner: Address | None = None

    async def locate(self) -> Address:
        """See `Locator`."""
        if self._owner is not None:
            return self._owner
        failures: list[str] = []
        for address in [*self._known]:
            try:
                ranges = await self._ask(address)
            except (RedisError, OSError, TimeoutError) as error:
                if isinstance(error, ResponseError) and "cluster support disabled" in str(error):
                    raise Unreachable("it is no Cluster: write redis:// in [log] url") from None
                failures.append(f"{address[0]}:{address[1]}: {' '.join(str(error).split()) or type(error).__name__}")
                # Whoever answers is asked first the next time.
                self._known[address] = self._known.pop(address)
                continue
            if (owner := self._owner_in(ranges, address)) is not None:
                self._owner = owner
                return owner
            failures.append(f"{address[0]}:{address[1]}: no node has slot {self._slot}")
        raise Unreachable(f"no node of the Cluster says who has the log: {'; '.join(failures)}")

    def moved(self, address: Address) -> None:
        """See `Locator`."""
        self._owner = address
        self._known.setdefault(address)

    def forget(self) -> None:
        """See `Locator`."""
        self._owner = None

    async def _ask(self, address: Address) -> list[Any]:
        settings = {name: value for name, value in self._target.options.items() if name not in ("client_name", "db")}
        client = Redis(
            host=address[0],
            port=address[1],
            ssl=self._target.tls,
            retry=Retry(NoBackoff(), 0),
            protocol=2,
            driver_info=None,
            **{"socket_timeout": LOOKUP_TIMEOUT, "socket_connect_timeout": LOOKUP_TIMEOUT} | settings,
        )
        # As it is, not as a dictionary: the client's own reading of it depends on its version.
        client.set_response_callback("CLUSTER SLOTS", _as_it_is)  # type: ignore[arg-type]
        async with client:
            found: list[Any] = await client.execute_command("CLUSTER SLOTS")  # type: ignore[no-untyped-call]
            return found

    def _owner_in(self, ranges: list[Any], asked: Address) -> Address | None:
        owner = None
        for first, last, *nodes in ranges:
            for host, port, *_ in nodes:
                # Without a name of its own a node means: where you asked.
                name = host.decode() if host else ""
                address = (name if name not in ("", "?") else asked[0], int(port))
                self._known.setdefault(address)
                if int(first) <= self._slot <= int(last) and owner is None:
                    owner = address
        return owner


async def asked(client: Redis, ask: Callable[[Redis], Awaitable[T]]) -> T:
    """Do something with a client of `connect(url, key=…)`, wherever the key's slot is.

    `ask` is called with the client to use, and once more where a Cluster sends us; each time it may send one command or
    one transaction about the keys, and others that are not about keys, if all go over one connection. Raises what
    `ask` raises; where the server is no primary any more, the next call finds the new one.
    """
    pool = client.connection_pool
    if not isinstance(pool, FollowingPool):
        return await ask(client)
    for _ in range(REDIRECTIONS):
        try:
            return await ask(client)
        except MovedError as error:
            address = _named(error, pool)
            await pool.forget()
            pool.locator.moved(address)
        except AskError as error:
            with contextlib.suppress(MovedError, AskError, TryAgainError):
                return await _asking(pool, _named(error, pool), ask)
            await asyncio.sleep(TRY_AGAIN)
        except TryAgainError:
            await asyncio.sleep(TRY_AGAIN)
        except (ReadOnlyError, ClusterDownError):
            await pool.forget()
            raise
        except Unreachable:
            pool.locator.forget()
            raise
    raise ClusterDownError("the slot of the log is being moved: nothing can be done there yet")


async def _asking(pool: FollowingPool, address: Address, ask: Callable[[Redis], Awaitable[T]]) -> T:
    """Ask the node that a slot is being moved to."""
    settings = {
        name: value for name, value in pool.connection_kwargs.items() if name not in ("locator", "host", "port")
    }
    kind = SSLConnection if issubclass(pool.connection_class, SSLConnection) else Connection
    one = ConnectionPool(kind, host=address[0], port=address[1], **settings)
    async with Redis.from_pool(one) as client, client.client() as single:
        await single.execute_command("ASKING")  # type: ignore[no-untyped-call]
        return await ask(single)


def _as_it_is(answer: Any, **options: Any) -> Any:
    return answer


def _named(error: AskError, pool: FollowingPool) -> Address:
    """The address in a redirection; without a host it is the one that answered."""
    host = error.host or (pool.address[0] if pool.address is not None else "")
    return host, int(error.port)
