"""Publishing at an offered rate, inside a server's own event loop; used by the applications beside this file.

It needs nothing but the standard library, since the peers run in an environment of their own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping

Publish = Callable[[list[tuple[int, str]]], Awaitable[None]]
"""Publishes events: (number of the topic, JSON text)."""


def event(group: int, due: float, size: int) -> str:
    """A JSON text of `size` characters with the stamp that the load generator looks for; see load/load.c."""
    head = f'{{"t":"@{group}{int(due * 1e6):016d}@","x":"'
    return f'{head}{"x" * (size - len(head) - 2)}"}}'


async def run(query: Mapping[str, str], publish: Publish) -> None:
    """Publish as a query says: `rate` a second for `seconds`, over `topics` from `first` on; `size` in bytes.

    Events are stamped with the time at which they were due (the first one 1 / `rate` s after the start), with `now=1`
    with that at which they are published.
    """
    rate, seconds = float(query["rate"]), float(query["seconds"])
    topics, first, group = int(query.get("topics", 1)), int(query.get("first", 0)), int(query.get("group", 0))
    size, now = int(query.get("size", 150)), query.get("now") == "1"
    began, done = time.monotonic(), 0
    while True:
        elapsed = min(time.monotonic() - began, seconds)
        due = int(elapsed * rate)
        while done < due:
            batch = range(done, min(done + 500, due))
            moment = time.monotonic()
            await publish(
                [(first + n % topics, event(group, moment if now else began + (n + 1) / rate, size)) for n in batch]
            )
            done = batch.stop
        if elapsed >= seconds:
            return
        # Not sooner than there is something to do, or what is rare would cost less than the waiting for it.
        await asyncio.sleep(max(0.001, min((done + 1) / rate, seconds) - (time.monotonic() - began)))
