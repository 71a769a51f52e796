"""A replica's running parts: how they are made from the configuration, started, and stopped."""

from __future__ import annotations

import asyncio
import math
import resource
import secrets
from collections.abc import Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from rowcast import workers
from rowcast.absent import Absentees
from rowcast.asking import connect
from rowcast.auth.jwt import Authenticator
from rowcast.cache import PATIENCE, Invalidation, parse_keys
from rowcast.config import Config, Postgres
from rowcast.core.audience import Audience
from rowcast.core.catalog import Catalog
from rowcast.core.routes import Route, Router
from rowcast.core.rules import RowRule, Rule
from rowcast.core.validate import bind, bind_routes, validate
from rowcast.core.values import SESSION_OPTIONS
from rowcast.drain import Drain
from rowcast.errors import ConfigError, SetupError
from rowcast.http.channels import ensure_channels
from rowcast.hub import Hub
from rowcast.loader import PostgresLoader
from rowcast.logs import redis_client
from rowcast.logs.capture import Capture
from rowcast.logs.guard import Guard
from rowcast.logs.leader import WalLeader
from rowcast.logs.memory import MemoryLog
from rowcast.logs.messages import Messages
from rowcast.logs.postgres import PostgresLog
from rowcast.logs.redis import RedisLog
from rowcast.logs.redis_store import STREAM, RedisStore
from rowcast.logs.redis_url import is_redis
from rowcast.logs.slot_watch import SlotWatch
from rowcast.pending import Pending
from rowcast.ports import Log, RowReader
from rowcast.roster import KEY as ROSTER
from rowcast.roster import RedisRoster, Roster
from rowcast.roster_postgres import PostgresRoster
from rowcast.signals import SIGNALS
from rowcast.snapshot_reader import SnapshotReader
from rowcast.sources.catalog import only, read_catalog
from rowcast.sources.publication import ensure_publication
from rowcast.sources.pubsub import Bridge
from rowcast.sources.wal import options
from rowcast.spool import Budget
from rowcast.telemetry.journal import get_logger

if TYPE_CHECKING:
    from rowcast.telemetry.traces import Traces

logger = get_logger(__name__)

Pool = AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]

POOL_SIZE = 6
"""Connections for subscriptions, channels, publishing and the guard. No stream holds one."""

DESCRIPTORS_KEPT = 256
"""File descriptors that streams must leave for everything else: at the limit nothing could reconnect."""


def make_pool(postgres: Postgres) -> Pool:
    """The pool of ordinary connections; to be opened. In autocommit mode, with text as the WAL has it."""
    return AsyncConnectionPool(
        postgres.url,
        open=False,
        min_size=1,
        max_size=POOL_SIZE,
        timeout=5.0,
        kwargs={
            "autocommit": True,
            "application_name": "rowcast",
            "options": options(SESSION_OPTIONS, postgres.url),
            "connect_timeout": 5,
        },
    )


class Replica:
    """One process that serves streams. `start` once, `stop` once."""

    def __init__(
        self,
        config: Config,
        routes: Sequence[Route],
        rules: Sequence[Rule],
        authenticator: Authenticator,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces
        self.config = config
        self.id = secrets.token_hex(4)
        self.name = config.server.name or self.id
        if config.server.name and (worker := workers.current()) is not None:
            self.name += f"-{worker.number}"
        self.pool: Pool | None = None
        self.guard: Guard | SlotWatch | None = None
        self.failed: BaseException | None = None
        """What ended a part that must not end; the process is of no use then."""
        self.channels = False
        """Whether the channel table is there."""
        self.warnings: list[str] = []
        """What validation found: works, but not for every change."""
        self.roster: Roster | None = None
        """The other replicas; None: with this log there are none."""
        self.asked_at = -math.inf
        """When the last request came, by the loop's clock."""
        self.bridge: Bridge | None = None
        self.hub: Hub
        self.drain: Drain
        self.pending: Pending
        self.log: Log
        self.router: Router
        self._routes = routes
        self.rules = list(rules)
        """The subscription rules; complete once it runs."""
        self.loader: PostgresLoader | None = None
        self.capture: Capture | None = None
        """What makes entries of the WAL; None: this replica never reads it."""
        self._authenticator = authenticator
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def reads_wal(self) -> bool:
        """Whether this replica reads the WAL: with a redis log only the elected one does."""
        leader = getattr(self.log, "leader", None)
        return bool(leader.leading) if leader is not None else self.config.postgres is not None

    async def start(self) -> None:
        """Connect, check, create what is missing, and fill the ring.

        Raises `ConfigError` or `SetupError`; nothing is left behind then.
        """
        config = self.config
        if config.webhooks.configured and config.log_url.startswith("postgres:") and config.signing_secret is None:
            raise ConfigError("what comes by webhook is put into the WAL signed: set [api] key to sign it with")
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything, streams first."""
        if hasattr(self, "drain"):
            SIGNALS.leave(self.drain)
            ending = self.drain.begin(delay=False)
            self.drain.cut()
            await ending
        if hasattr(self, "log"):
            await self.log.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.roster is not None:
            await self.roster.leave()
        if self.bridge is not None:
            await self.bridge.close()
        if hasattr(self, "hub") and self.hub.cache is not None:
            await self.hub.cache.close()
        if self.pool is not None:
            await self.pool.close()

    @staticmethod
    def most_streams(configured: int) -> int:
        """How many streams a replica may have; `configured` 0: as many as it may have files open, but for some."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return configured or max(1, descriptors - DESCRIPTORS_KEPT)

    def also(self, part: Coroutine[Any, Any, None]) -> None:
        """Run something until it ends, or this replica does."""
        self._tasks = [task for task in self._tasks if not task.done() or task is self._tasks[0]]
        self._run(part)

    # Making the parts

    async def _start(self) -> None:
        reader: RowReader | None = None
        if self.config.postgres is not None:
            catalog = await self._prepare(self.config.postgres)
            self.router = Router(self._routes, self.rules, envelope=self.config.server.envelope)
            if is_redis(self.config.log_url):
                self.log = self._redis_log(self._leader(self.config.postgres, catalog))
            else:
                self.log = self._pick_log(self._postgres_log(self.config.postgres, catalog))
            if self.rules:
                assert self.pool is not None
                self.loader = PostgresLoader(self.pool, self.rules, catalog, self.log.head)
            reader = await self._make_reader(self.config.postgres, catalog)
        else:
            if self.rules:
                raise ConfigError("subscriptions read tables: set [postgres] url")
            if self._routes and not self.config.webhooks.configured:
                raise ConfigError(
                    "routes send changes of tables: set [postgres] url, or the secret of a webhook that brings them"
                )
            for route in self._routes:
                if route.snapshot:
                    raise ConfigError(f"{route.origin}: snapshots are read from the database: set [postgres] url")
            self.router = Router(self._routes, envelope=self.config.server.envelope)
            self.log = self._pick_log(None)
        self.hub = self._make_hub(reader)
        if self._traces is not None:
            self.hub.trace(self._traces)
            if self.capture is not None:
                self.capture.traces = self._traces
        self.drain = self._make_drain()
        self.pending = Pending(self.hub, self.log)
        if self.config.cache.invalidate:
            self._delete_keys(self.hub)
        await self.log.open()
        self._run(self.hub.run())
        if self.hub.cache is not None:
            self._run(self.hub.cache.run())
        if self.hub.absent is not None:
            self._run(self.hub.absent.run())
        self._run(self.hub.joins.run())
        self._run(self.hub.snapshots.run())
        self._run(self.hub.wheel.run())
        self._run(self.hub.readback.run())
        self._run(self.hub.releases.run())
        self._run(self.pending.run())
        if self.guard is not None:
            self._run(self.guard.run())
        await self._warm_up()
        if self.config.log.pubsub_bridge:
            self.bridge = self._make_bridge()
            self._run(self.bridge.run())
            await self.bridge.opened()
        if is_redis(self.config.log_url):
            self.roster = RedisRoster(
                connect(self.config.log_url, ROSTER), self.id, self.name, lambda: self.hub.streams_count
            )
        elif self.config.postgres is not None and self.config.log_url.startswith("postgres:"):
            assert self.pool is not None
            self.roster = PostgresRoster(
                self.config.postgres.url,
                self.pool,
                slot=self.config.postgres.slot,
                replica=self.id,
                name=self.name,
                streams=lambda: self.hub.streams_count,
            )
        if self.roster is not None:
            self._run(self.roster.run())

    async def _prepare(self, postgres: Postgres) -> Catalog:
        """Connect, create the channel table, and check routes and rules against the catalogue."""
        await _try(postgres.url)
        self.pool = make_pool(postgres)
        try:
            await self.pool.open(wait=True, timeout=10)
        except PoolTimeout:
            raise SetupError("Postgres can't be reached: it took longer than 10 s") from None
        async with self.pool.connection() as connection:
            self.channels = await ensure_channels(connection, self.config.channels.enabled)
            catalog = await read_catalog(connection)
            self.warnings = validate(self._routes, self.rules, catalog)
            for warning in self.warnings:
                logger.warning("rules_warning", "%s", warning)
            self.rules = bind(self.rules, catalog)
            self._routes = bind_routes(self._routes, catalog)
            tables = Router(self._routes, self.rules).tables
            await ensure_publication(connection, postgres.publication, catalog, tables)
        return catalog

    def _postgres_log(self, postgres: Postgres, catalog: Catalog) -> PostgresLog:
        assert self.pool is not None
        section = self.config.log
        log = PostgresLog(
            postgres.url,
            self.pool,
            self.router,
            Messages(self.config.signing_secret),
            replica=self.id,
            slot=postgres.slot,
            publication=postgres.publication,
            wal_sender_timeout=postgres.wal_sender_timeout,
        )
        self.capture = log.capture
        self.guard = Guard(
            log,
            self.pool,
            only(catalog, self.router.tables),
            publication=postgres.publication,
            retention=section.retention,
            max_bytes=section.max_bytes,
            max_held_wal=postgres.max_held_wal,
            drop_at_limit=postgres.on_held_wal == "drop",
        )
        return log

    def _pick_log(self, postgres_log: PostgresLog | None) -> Log:
        url = self.config.log_url
        if is_redis(url):
            return self._redis_log(None)
        if url.startswith("postgres:"):
            if postgres_log is None:
                raise ConfigError('[log] url = "postgres:" needs a [postgres] section with url')
            return postgres_log
        if url.startswith("memory:"):
            section = self.config.log
            return MemoryLog(
                postgres_log,
                retention=section.retention,
                max_entries=section.max_entries,
                max_bytes=section.max_bytes,
            )
        raise ConfigError('[log] url: there are "memory:", "postgres:" and "redis://host:6379/0"')

    def _leader(self, postgres: Postgres, catalog: Catalog) -> WalLeader:
        assert self.pool is not None
        leader = WalLeader(
            postgres.url,
            self.pool,
            self._redis_store(),
            self.router,
            self.config.signing_secret,
            replica=self.name,
            slot=postgres.slot,
            publication=postgres.publication,
            max_event=self.config.server.max_event,
            redo=self.config.log.redo,
            wal_sender_timeout=postgres.wal_sender_timeout,
        )
        self.capture = leader.capture
        self.guard = SlotWatch(
            leader,
            self.pool,
            only(catalog, self.router.tables),
            publication=postgres.publication,
            max_held_wal=postgres.max_held_wal,
            drop_at_limit=postgres.on_held_wal == "drop",
        )
        return leader

    def _redis_store(self) -> RedisStore:
        return RedisStore(self.config.log_url, replicas=self.config.log.redis_replicas)

    def _redis_log(self, leader: WalLeader | None) -> RedisLog:
        section = self.config.log
        return RedisLog(
            leader.store if leader is not None else self._redis_store(),
            leader,
            max_event=self.config.server.max_event,
            retention=section.retention,
            max_entries=section.max_entries,
            max_bytes=section.max_bytes,
            remember=self.config.webhooks.remember,
        )

    async def _make_reader(self, postgres: Postgres, catalog: Catalog) -> SnapshotReader | None:
        """What reads snapshots, if any route has them. Raises `ConfigError` and `SetupError`."""
        routes = [route for route in self._routes if route.snapshot]
        if not routes:
            return None
        assert self.pool is not None
        reader = SnapshotReader(
            self.pool,
            routes,
            catalog,
            self.log.head,
            publication=postgres.publication,
            timeout=postgres.snapshot_timeout,
            budget=Budget(postgres.snapshot_bytes),
            max_event=self.config.server.max_event,
        )
        await reader.check()
        return reader

    def _make_bridge(self) -> Bridge:
        return Bridge(
            connect(self.config.log_url, STREAM),
            deliver=self.hub.deliver,
            resubscribe=self.hub.resubscribe,
            missed=self.hub.resubscribe_all,
            max_event=self.config.server.max_event,
            envelope=self.config.server.envelope,
        )

    def _make_hub(self, reader: RowReader | None) -> Hub:
        server = self.config.server
        return Hub(
            self.log,
            self.rules,
            self.loader,
            replica=self.name,
            ring_bytes=self.config.log.ring_bytes,
            max_event=server.max_event,
            max_streams=self.most_streams(server.max_streams),
            max_streams_per_user=server.max_streams_per_user,
            heartbeat=server.heartbeat,
            reader=reader,
            on_disconnect=self._authenticator.revoke,
        )

    def _delete_keys(self, hub: Hub) -> None:
        """Have the hub delete users' cached keys."""
        keys = parse_keys(self.config.cache.invalidate, "[cache] invalidate")
        redis = redis_client.connect(self.config.cache_url, socket_timeout=PATIENCE)
        hub.cache = Invalidation(redis, keys, hub.wake)
        rules = [rule for rule in self.rules if isinstance(rule, RowRule) and rule.everyone]
        if rules and self.loader is not None:
            one = is_redis(self.config.log_url)
            hub.absent = Absentees(
                redis,
                keys,
                Audience(rules),
                self.loader.read_all,
                hub.subscriptions.recent_changes,
                elected=lambda: self.reads_wal or not one,
            )

    def _make_drain(self) -> Drain:
        server = self.config.server
        return Drain(
            self.hub,
            delay=server.drain_delay,
            limit=server.drain_limit,
            rate=server.drain_rate,
            hand_over=self.log.resign if isinstance(self.log, RedisLog) else lambda: None,
            asked_at=lambda: self.asked_at,
        )

    async def _warm_up(self) -> None:
        """Wait for the ring to be warm, or for a part to fail."""
        warming = asyncio.create_task(self.hub.warm_up())
        done, _ = await asyncio.wait([warming, self._tasks[0]], return_when=asyncio.FIRST_COMPLETED)
        if warming not in done:
            warming.cancel()
            raise self.failed or SetupError("the log ended while the ring was being filled")
        await warming

    def _run(self, part: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(part)
        task.add_done_callback(self._ended)
        self._tasks.append(task)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed = error
            logger.critical("part_failed", "a part of the replica failed", error)


async def _try(url: str) -> None:
    """Connect once: the pool would try for a long time, and say only that it took too long."""
    try:
        connection = await psycopg.AsyncConnection.connect(url, connect_timeout=10)
    except psycopg.Error as error:
        raise SetupError(f"Postgres can't be reached: {' '.join(str(error).split())}") from None
    await connection.close()
