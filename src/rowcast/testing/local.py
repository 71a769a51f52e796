"""A stream of a Rowcast that runs in this very process, without HTTP: for tests of what is delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from rowcast.cast import Rowcast
from rowcast.core.grants import Grant
from rowcast.core.position import parse_position
from rowcast.core.stream import Stream
from rowcast.testing.stream import Block, parse_block


class LocalStream:
    """Opens a stream for `user` and collects its blocks. `topics` stand in the token; `last_event_id` resumes,
    `snapshot` asks for the current rows first."""

    def __init__(
        self,
        cast: Rowcast,
        user: str,
        topics: Iterable[str] = (),
        *,
        last_event_id: str | None = None,
        snapshot: bool = False,
    ) -> None:
        self.blocks: list[Block] = []
        """Every block but heartbeats' comments, in order."""
        self._changed = asyncio.Event()
        self._cast = cast
        cursor = None if last_event_id is None else parse_position(last_event_id)
        self._opened: list[Stream] = []
        grant = Grant(user, frozenset(topics))
        self._opened.append(cast.hub.connect(grant, self._read, cursor=cursor, snapshot=snapshot))
        self._read()

    @property
    def position(self) -> str:
        """The position to resume from."""
        return next((block.id for block in reversed(self.blocks) if block.id), "")

    def events(self, name: str = "message") -> list[Any]:
        """The data of all events with a name."""
        return [block.data for block in self.blocks if block.event == name and block.data is not None]

    def records(self) -> list[Any]:
        """The records of all changes."""
        return [data["record"] for data in self.events() if "record" in data]

    async def until(self, holds: Callable[[], bool], *, timeout: float = 30.0) -> None:
        """Wait until a condition of what has come holds. Raises TimeoutError after `timeout` seconds."""
        async with asyncio.timeout(timeout):
            while not holds():
                self._changed.clear()
                await self._changed.wait()

    async def ready(self) -> dict[str, Any]:
        """Wait for `rowcast.ready`, and return its data."""
        await self.until(lambda: bool(self.events("rowcast.ready")))
        data: dict[str, Any] = self.events("rowcast.ready")[0]
        return data

    async def settled(self) -> None:
        """Wait until everything that was committed before this call has been dispatched, and given to us."""
        await self._cast.hub.passed(await self._cast.log.head())
        self._read()

    def close(self) -> None:
        """Close the stream."""
        self._cast.hub.drop(self._opened[0])

    def _read(self) -> None:
        for stream in self._opened:
            while data := stream.take():
                self.blocks.extend(parse_block(block) for block in data.split(b"\n\n") if block[:1] not in (b"", b":"))
        self._changed.set()
