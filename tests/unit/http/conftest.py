"""Applications on real sockets: uvicorn in the test's own loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest
import uvicorn

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.serve import address_of, listen

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "the-api-key"
WITH_KEY = {"authorization": f"Bearer {KEY}"}

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


class _Server(uvicorn.Server):
    """Leaves the signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving(app: Any, *, lifespan: str = "on") -> AsyncIterator[httpx.AsyncClient]:
    """A client of an ASGI application that is served on a free port."""
    config = uvicorn.Config(app, http="httptools", ws="none", lifespan=lifespan, log_config=None, access_log=False)
    with contextlib.closing(listen("127.0.0.1", 0)) as sock:
        server = _Server(config)
        task = asyncio.create_task(server.serve(sockets=[sock]))
        while not server.started and not task.done():
            await asyncio.sleep(0.01)
        try:
            async with httpx.AsyncClient(base_url=f"http://{address_of(sock)}", timeout=20) as client:
                yield client
        finally:
            server.should_exit = True
            await task


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`serving`, as a fixture."""
    return serving


@pytest.fixture(scope="session")
def make() -> Callable[..., Rowcast]:
    """Makes a Rowcast without Postgres; sections are given as to `Rowcast`."""

    def _make(**sections: Any) -> Rowcast:
        server = {"name": "r1", "retry": "1s"} | sections.pop("server", {})
        auth = {"secret": SECRET} | sections.pop("auth", {})
        return Rowcast(server=server, auth=auth, **{"api": KEY} | sections)

    return _make


@pytest.fixture(scope="module")
async def client(make: Callable[..., Rowcast]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a Rowcast without Postgres, named r1, that all tests of a module share."""
    async with serving(make().asgi()) as made:
        yield made


@pytest.fixture(scope="session")
def bearer(make: Callable[..., Rowcast]) -> Callable[..., dict[str, str]]:
    """Headers with a user's token."""

    def _bearer(user: str = "alice", *topics: str) -> dict[str, str]:
        return {"authorization": f"Bearer {mint(make().config, user, topics=list(topics))}"}

    return _bearer
