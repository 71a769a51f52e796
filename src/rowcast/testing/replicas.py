"""Several replicas on one configuration, as processes of their own: to be killed, frozen and replaced."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self

import psycopg

from rowcast.testing.server import RowcastServer

POLL = 0.01
"""Seconds between two looks at who leads."""

_LEADER = "SELECT split_part(application_name, ' ', 2) FROM pg_stat_replication WHERE application_name LIKE %s"


class Replicas:
    """`count` replicas that start together, named r1, r2, …; an async context manager.

    `config` is the text of their rowcast.toml, `database` the connection string by which their leader is looked for.
    """

    def __init__(self, config: str, database: str, count: int) -> None:
        self.alive: list[RowcastServer] = []
        """Those that serve, oldest first."""
        self._config = config
        self._database = database
        self._count = count
        self._made: dict[str, RowcastServer] = {}

    @property
    def urls(self) -> list[str]:
        """Where those that serve listen."""
        return [server.url for server in self.alive]

    def __getitem__(self, index: int) -> RowcastServer:
        return self.alive[index]

    async def add(self) -> RowcastServer:
        """Start one more, and wait until it is ready."""
        name = f"r{len(self._made) + 1}"
        server = self._made[name] = RowcastServer(self._config, name=name)
        await asyncio.to_thread(server.start)
        self.alive.append(server)
        return server

    async def leader(self, *, other_than: RowcastServer | None = None, timeout: float = 30.0) -> RowcastServer:
        """Wait until one of those that serve, but not `other_than`, reads the WAL; which it is."""
        async with (
            asyncio.timeout(timeout),
            await psycopg.AsyncConnection.connect(self._database, autocommit=True) as connection,
        ):
            while True:
                for (name,) in await (await connection.execute(_LEADER, ["rowcast r% leader"])).fetchall():
                    server = self._made[name]
                    if server in self.alive and server is not other_than:
                        return server
                await asyncio.sleep(POLL)

    def kill(self, server: RowcastServer) -> None:
        """kill -9."""
        self.alive.remove(server)
        server.kill()

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self.add() for _ in range(self._count)))
        except BaseException:
            self._end()
            raise
        self.alive.sort(key=lambda server: list(self._made.values()).index(server))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for server in self._made.values():
            with contextlib.suppress(Exception):
                server.kill()
