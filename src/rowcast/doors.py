"""The doors: how many requests for streams are let in at once.

When all streams of a replica come back together, opening them would keep the loop from everything else. So in one turn
of the loop OPENS of them are let in, and the live streams are written between two turns. The others stand in line, and
whoever would have to stand behind LINE others is told to come back later, before anything was done for it.

Under `rowcast serve` most of them wait in the kernel, since it accepts as many connections in a turn as it lets in
(see `sockets.shares`); under a server that accepts whatever there is they wait here.
"""

from __future__ import annotations

import asyncio
from functools import partial

from rowcast.errors import Busy
from rowcast.turnstile import Turnstile

OPENS = 8
"""Streams that are let in per turn of the loop: some two milliseconds of work."""

LINE = 2000
"""Requests that may wait at once: a second's work, as a rule."""


class Doors:
    """Lets requests in, in the order in which they come."""

    def __init__(self) -> None:
        self._turnstile = Turnstile(OPENS)

    def __len__(self) -> int:
        """How many requests wait."""
        return len(self._turnstile)

    async def enter(self) -> None:
        """Wait for one's turn. Raises `Busy` when the line is too long."""
        if len(self._turnstile) >= LINE:
            raise Busy("too many streams come at once; connect again later", "busy")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turnstile.do(partial(_open, turn))
        if not turn.done():
            await turn


def _open(turn: asyncio.Future[None]) -> None:
    if not turn.done():  # the server may have given the request up
        turn.set_result(None)
