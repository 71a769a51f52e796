"""An ASGI application on a real socket, served in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import httpx
import uvicorn
from starlette.types import ASGIApp

from rowcast.errors import SetupError
from rowcast.http.heads import LimitedProtocol
from rowcast.http.takeover import Protocol
from rowcast.sockets import address_of, listen


@contextlib.asynccontextmanager
async def serving(
    app: ASGIApp,
    *,
    lifespan: Literal["on", "off"] = "on",
    takeover: bool = True,
    http: type[asyncio.Protocol] | None = None,
    **options: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which listens on a free port for the time of the block.

    `lifespan` "off" is what an application sees that is mounted into another. `takeover` False: streams go through
    ASGI `send`, as under a server of another make. `http`: another protocol than these two. `options` are further ones
    of `uvicorn.Config`.
    Raises `SetupError` when it does not start; its log says why.
    """
    config = uvicorn.Config(
        app,
        http=http or (Protocol if takeover else LimitedProtocol),
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        # By default uvicorn believes X-Forwarded-For when it comes from this machine, as `rowcast serve` does not.
        proxy_headers=False,
        **options,
    )
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        await asyncio.wait([task, waiting := asyncio.create_task(server.up.wait())], return_when="FIRST_COMPLETED")
        waiting.cancel()
        if task.done():
            await task
        try:
            async with httpx.AsyncClient(base_url=f"http://{address_of(sock)}", timeout=20) as client:
                yield client
        finally:
            server.should_exit = True
            await task


class _Server(uvicorn.Server):
    """Leaves the signals alone, tells when it listens, and raises where uvicorn would exit."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except SystemExit:
            raise SetupError("the application did not start; its log says why") from None
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
