"""A replica's running parts: how they are made from the configuration, started, and stopped."""

from __future__ import annotations

import asyncio
import logging
import resource
import secrets
from collections.abc import Coroutine, Sequence
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from rowcast.auth.jwt import Authenticator
from rowcast.config import Config, Postgres
from rowcast.core.catalog import Catalog
from rowcast.core.routes import Route, Router
from rowcast.core.rules import Rule
from rowcast.core.validate import bind, validate
from rowcast.core.values import SESSION_OPTIONS
from rowcast.errors import ConfigError, SetupError
from rowcast.http.channels import ensure_channels
from rowcast.hub import Hub
from rowcast.loader import PostgresLoader
from rowcast.logs.guard import Guard
from rowcast.logs.memory import MemoryLog
from rowcast.logs.messages import Messages
from rowcast.logs.postgres import PostgresLog
from rowcast.ports import Loader, Log
from rowcast.sources.catalog import only, read_catalog
from rowcast.sources.publication import ensure_publication
from rowcast.sources.wal import options

logger = logging.getLogger(__name__)

Pool = AsyncConnectionPool[psycopg.AsyncConnection[tuple[Any, ...]]]

POOL_SIZE = 6
"""Connections for subscriptions, channels, publishing and the guard. No stream holds one."""

DESCRIPTORS_KEPT = 256
"""File descriptors that streams must leave for everything else: at the limit nothing could reconnect."""

DRAIN_GROUP = 200
DRAIN_PAUSE = 0.05


def make_pool(postgres: Postgres) -> Pool:
    """The pool of ordinary connections; to be opened. In autocommit mode, with text as the WAL has it.

    Local durability is all that a mark needs: with a synchronous standby away, a commit would wait for ever.
    """
    return AsyncConnectionPool(
        postgres.url,
        open=False,
        min_size=1,
        max_size=POOL_SIZE,
        timeout=5.0,
        kwargs={
            "autocommit": True,
            "application_name": "rowcast",
            "options": options(SESSION_OPTIONS | {"synchronous_commit": "local"}),
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
    ) -> None:
        self.config = config
        self.id = secrets.token_hex(4)
        self.name = config.server.name or self.id
        self.pool: Pool | None = None
        self.guard: Guard | None = None
        self.failed: BaseException | None = None
        """What ended a part that must not end; the process is of no use then."""
        self.channels = False
        """Whether the channel table is there."""
        self.warnings: list[str] = []
        """What validation found: works, but not for every change."""
        self.hub: Hub
        self.log: Log
        self.router: Router
        self._routes = routes
        self._rules = list(rules)
        self._authenticator = authenticator
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Connect, check, create what is missing, and fill the ring.

        Raises `ConfigError` or `SetupError`; nothing is left behind then.
        """
        self.config.require_auth()
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End everything, streams first."""
        if hasattr(self, "hub"):
            self.hub.draining = True
            for stream in tuple(self.hub.streams):
                self.hub.end(stream, "draining")
        if hasattr(self, "log"):
            await self.log.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.pool is not None:
            await self.pool.close()

    def drain(self) -> None:
        """Take no new stream; end the open ones in groups, each told to come back at a time of its own."""
        if hasattr(self, "hub") and not self.hub.draining:
            self.hub.draining = True
            self._run(self._drain())

    async def _drain(self) -> None:
        while self.hub.streams:
            for stream in tuple(self.hub.streams)[:DRAIN_GROUP]:
                self.hub.end(stream, "draining", retry=100 + secrets.randbelow(2000))
            await asyncio.sleep(DRAIN_PAUSE)

    # Making the parts

    async def _start(self) -> None:
        loader: Loader | None = None
        if self.config.postgres is not None:
            catalog = await self._prepare(self.config.postgres)
            self.router = Router(self._routes, self._rules, envelope=self.config.server.envelope)
            postgres_log = self._postgres_log(self.config.postgres, catalog)
            self.log = self._pick_log(postgres_log)
            if self._rules:
                assert self.pool is not None
                loader = PostgresLoader(self.pool, self._rules, catalog, self.log.head)
        else:
            if self._routes or self._rules:
                raise ConfigError("routes and subscriptions read tables: set [postgres] url")
            self.router = Router([])
            self.log = self._pick_log(None)
        self.hub = self._make_hub(loader)
        await self.log.open()
        self._run(self.hub.run())
        self._run(self.hub.joins.run())
        self._run(self.hub.wheel.run())
        if self.guard is not None:
            self._run(self.guard.run())
        await self._warm_up()

    async def _prepare(self, postgres: Postgres) -> Catalog:
        """Connect, create the channel table, and check routes and rules against the catalogue."""
        self.pool = make_pool(postgres)
        try:
            await self.pool.open(wait=True, timeout=10)
        except PoolTimeout:
            raise SetupError(f"Postgres can't be reached: {await _why(postgres.url)}") from None
        async with self.pool.connection() as connection:
            self.channels = await ensure_channels(connection, self.config.channels.enabled)
            catalog = await read_catalog(connection)
            self.warnings = validate(self._routes, self._rules, catalog)
            for warning in self.warnings:
                logger.warning("%s", warning)
            self._rules = bind(self._rules, catalog)
            tables = Router(self._routes, self._rules).tables
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
        )
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
        raise ConfigError(f'[log] url = "{url}": there are "memory:" and "postgres:" in this version')

    def _make_hub(self, loader: Loader | None) -> Hub:
        server = self.config.server
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return Hub(
            self.log,
            self._rules,
            loader,
            replica=self.name,
            ring_bytes=self.config.log.ring_bytes,
            max_event=server.max_event,
            max_streams=server.max_streams or max(1, descriptors - DESCRIPTORS_KEPT),
            max_streams_per_user=server.max_streams_per_user,
            heartbeat=server.heartbeat,
            on_disconnect=self._authenticator.revoke,
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
            logger.critical("a part of the replica failed", exc_info=error)


async def _why(url: str) -> str:
    """Why a connection can't be had: the pool only says that it timed out."""
    try:
        connection = await psycopg.AsyncConnection.connect(url, connect_timeout=5)
    except psycopg.Error as error:
        return " ".join(str(error).split())
    await connection.close()
    return "it took longer than 10 s"
