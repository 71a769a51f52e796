"""Which records of webhooks are in the log already: whoever sends them sends again what was not answered in time."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from typing import Protocol

MAX_KEYS = 200_000
"""Keys that are remembered, of about 150 bytes each; those seen longest ago go first."""


class Deliveries(Protocol):
    """Remembers what was appended, by key. Every `claim` that returns True is followed by a `settle`."""

    async def claim(self, key: str) -> bool:
        """Whether the caller is to append it; False when it is in the log.

        Waits while somebody else is appending it. Raises `Unavailable` when that can't be told.
        """
        ...

    async def settle(self, key: str, *, appended: bool) -> None:
        """Say what became of it. Not `appended`: the next one who claims it is to append it."""
        ...


class MemoryDeliveries:
    """The memory of this process: it knows what came to this replica, and since it was started."""

    def __init__(self, max_keys: int = MAX_KEYS) -> None:
        self._max_keys = max_keys
        self._appended: OrderedDict[bytes, None] = OrderedDict()
        self._pending: dict[bytes, asyncio.Event] = {}

    async def claim(self, key: str) -> bool:
        """See `Deliveries.claim`."""
        digest = _digest(key)
        while (pending := self._pending.get(digest)) is not None:
            await pending.wait()
        if digest in self._appended:
            self._appended.move_to_end(digest)
            return False
        self._pending[digest] = asyncio.Event()
        return True

    async def settle(self, key: str, *, appended: bool) -> None:
        """See `Deliveries.settle`."""
        digest = _digest(key)
        if appended:
            self._appended[digest] = None
            if len(self._appended) > self._max_keys:
                self._appended.popitem(last=False)
        self._pending.pop(digest).set()


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=16).digest()
