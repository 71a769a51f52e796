"""A stream as a test sees it: one connection, everything that came over it, and waiting for what must come."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx
import msgspec


class Block(msgspec.Struct):
    """One block of a stream, as it came. `event` is "message" where none is named; `data` is parsed JSON."""

    event: str = "message"
    id: str = ""
    data: Any = None
    retry: int | None = None


class OpenStream:
    """A connection to `GET /events` (or another `path`), read in the background; an async context manager.

    `url`: the service. `token`: the user's (None: none is sent). `last_event_id`, `params` and `headers` are sent as
    given. `tls`: whom to trust (None: whom everybody does). Unlike a client it does not reconnect: a test wants to see
    the end.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        last_event_id: str | None = None,
        params: dict[str, str] | None = None,
        path: str = "events",
        tls: ssl.SSLContext | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.blocks: list[Block] = []
        """Every block but comments, in order."""
        self.ended = False
        """Whether the server ended the stream, or the connection broke."""
        self.head: httpx.Headers = httpx.Headers()
        self._url = f"{url}/{path}"
        self._params = params
        self._verify = tls or True
        self._headers = dict(headers or {})
        if token is not None:
            self._headers["authorization"] = f"Bearer {token}"
        if last_event_id is not None:
            self._headers["last-event-id"] = last_event_id
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def position(self) -> str:
        """The position to resume from."""
        return next((block.id for block in reversed(self.blocks) if block.id), "")

    def events(self, name: str = "message") -> list[Any]:
        """The data of all events with a name."""
        return [block.data for block in self.blocks if block.event == name and block.data is not None]

    async def until(self, holds: Callable[[], bool], *, timeout: float = 30.0) -> None:
        """Wait until a condition of what has come holds. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def expect(self, holds: Callable[[Block], bool], *, timeout: float = 30.0) -> Block:
        """Wait for a block that fits, and return it; one that has come already counts."""
        await self.until(lambda: any(holds(block) for block in self.blocks), timeout=timeout)
        return next(block for block in self.blocks if holds(block))

    async def ready(self) -> dict[str, Any]:
        """Wait for `rowcast.ready`, and return its data."""
        data: dict[str, Any] = (await self.expect(lambda block: block.event == "rowcast.ready")).data
        return data

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _read(self) -> None:
        timeout = httpx.Timeout(10, read=None)
        try:
            async with (
                httpx.AsyncClient(timeout=timeout, verify=self._verify) as client,
                client.stream("GET", self._url, params=self._params, headers=self._headers) as response,
            ):
                response.raise_for_status()
                self.head = response.headers
                rest = b""
                async for chunk in response.aiter_bytes():
                    *blocks, rest = (rest + chunk).split(b"\n\n")
                    self.blocks.extend(parse_block(block) for block in blocks if not block.startswith(b":"))
                    self._changed.set()
        except httpx.TransportError:
            pass  # killed on the other side: the test looks at `ended`
        finally:
            self.ended = True
            self._changed.set()


def parse_block(block: bytes) -> Block:
    """Read one block of a stream; its data must be JSON."""
    parsed = Block()
    data: list[bytes] = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b": ")
        if name == b"data":
            data.append(value)
        elif name == b"retry":
            parsed.retry = int(value)
        elif name == b"id":
            parsed.id = value.decode()
        elif name == b"event":
            parsed.event = value.decode()
    if data:
        parsed.data = msgspec.json.decode(b"\n".join(data))
    return parsed
