"""Rowcasts without Postgres, on real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import httpx
import pytest

from rowcast import Rowcast
from rowcast.auth.jwt import mint
from rowcast.testing.serving import serving

SECRET = "0123456789abcdef0123456789abcdef"
KEY = "the-api-key"
WITH_KEY = {"authorization": f"Bearer {KEY}"}

Serve = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`serving`, as a fixture."""
    return serving


@pytest.fixture(scope="session")
def make() -> Callable[..., Rowcast]:
    """Makes a Rowcast without Postgres; sections are given as to `Rowcast`."""

    def _make(**sections: Any) -> Rowcast:
        server = {"name": "r1", "retry": "1s", "drain_delay": 0} | sections.pop("server", {})
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
