"""Replicas that are replaced as Kubernetes does it with `maxUnavailable: 0` and `maxSurge: 1`, as processes.

A new one is started; when it is ready, an old one is told to end; when that is gone, the next. The addresses are one
more than the replicas, and known to the proxy from the start: at any moment of a quiet time nobody listens on one of
them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

import httpx

from rowcast.testing.postgres import free_port
from rowcast.testing.server import RowcastServer

PATIENCE = 120.0
"""Seconds within which a proxy sends to every replica."""

PAUSE = 0.02
"""Seconds between two calls, or pairs of calls."""


class Deployment:
    """`count` replicas on one configuration, named r1, r2, … as they are made; an async context manager.

    `config` is the text of their rowcast.toml, `environment` is added to ours (see `RowcastServer`).
    """

    def __init__(self, config: str, count: int, *, environment: Mapping[str, str] | None = None) -> None:
        self.alive: list[RowcastServer] = []
        """Those that serve, oldest first."""
        self.names: dict[RowcastServer, str] = {}
        """How each that was ever started names itself."""
        self._config = config
        self._count = count
        self._environment = dict(environment or {})
        self._free = [free_port() for _ in range(count + 1)]
        self.upstreams = [f"127.0.0.1:{port}" for port in self._free]
        """All addresses, as `host:port`, for a proxy."""

    async def add(self) -> RowcastServer:
        """Start one more on the free address, and wait until it is ready."""
        port = self._free.pop(0)
        name = f"r{len(self.names) + 1}"
        server = RowcastServer(self._config, name=name, environment=self._environment)
        self.names[server] = name
        await asyncio.to_thread(server.start, port=port)
        async with httpx.AsyncClient(base_url=server.url, timeout=PATIENCE) as client, asyncio.timeout(PATIENCE):
            while True:
                if (await client.get("/readyz")).status_code == 200:
                    break
                await asyncio.sleep(0.05)
        self.alive.append(server)
        return server

    async def end(self, server: RowcastServer) -> None:
        """SIGTERM, and wait until it is gone. Raises AssertionError when it did not leave in order."""
        port = int(server.url.rpartition(":")[2])
        self.alive.remove(server)
        code = await asyncio.to_thread(server.stop, timeout=120)
        assert code == 0, f"{self.names[server]} ended with {code}"
        self._free.append(port)

    async def roll(
        self, routed: Callable[[], Awaitable[None]], *, ended: Callable[[RowcastServer], None] = lambda server: None
    ) -> None:
        """Replace every replica, one after another.

        `routed` is awaited after each start: it returns when the proxy sends to all (`sends_to_all`). `ended` is told
        which replica is about to end.
        """
        for old in list(self.alive):
            await self.add()
            await routed()
            ended(old)
            await self.end(old)

    async def sends_to_all(self, client: httpx.AsyncClient) -> None:
        """Wait until a proxy, which `client` asks, has sent a request to each that serves.

        Raises TimeoutError after `PATIENCE`.
        """
        seen: set[str] = set()
        async with asyncio.timeout(PATIENCE):
            while not seen >= {self.names[server] for server in self.alive}:
                answer = await client.get("/readyz")
                seen.add(answer.headers.get("x-rowcast-replica", ""))

    async def __aenter__(self) -> Self:
        try:
            await asyncio.gather(*(self.add() for _ in range(self._count)))
        except BaseException:
            self._kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._kill()

    def _kill(self) -> None:
        for server in self.names:
            with contextlib.suppress(Exception):
                server.kill()


class Caller:
    """Calls the API through a proxy all the time, each time by a connection that it may find used before.

    `url` is the proxy's, `token` a user's. What it does is not safe to send twice (POST), so that a proxy can't hide
    a failure by asking another replica.
    """

    def __init__(self, url: str, token: str) -> None:
        self.statuses: list[int] = []
        """Every answer's."""
        self._url = url
        self._token = token

    @contextlib.asynccontextmanager
    async def calling(self) -> AsyncIterator[Self]:
        """Call as long as this is open. Raises what a call raised: a connection that was cut, for one."""
        stop = asyncio.Event()
        task = asyncio.create_task(self._run(stop))
        try:
            yield self
        finally:
            stop.set()
            await task

    async def _run(self, stop: asyncio.Event) -> None:
        headers = {"authorization": f"Bearer {self._token}"}
        async with httpx.AsyncClient(base_url=self._url, headers=headers, timeout=PATIENCE) as client:
            while not stop.is_set():
                kind = f"k{len(self.statuses)}"
                made = await client.post("/users/me/channels", json={"channel_type": kind})
                gone = await client.delete(f"/users/me/channels/{kind}")
                self.statuses += [made.status_code, gone.status_code]
                await asyncio.sleep(PAUSE)
